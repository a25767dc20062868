"""The oracle: fast per-user gradients equal one user at a time through plain autograd."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from fedrec.data import Catalogue
from fedrec.model import load_encoder
from fedrec.model.adapter import CENTRE, HEAD_A, HEAD_B, Arrays
from fedrec.model.encoder import PACKAGED
from fedrec.model.towers import Scoring, centred, init_base, init_trained, log_prior
from fedrec.objectives.examples import Examples, merged
from fedrec.objectives.records import build_examples
from fedrec.privacy import SeededNoise, UserDPOptimizer
from fedrec.training.encoder import EncoderTrainer
from fedrec.training.factors import HeadGradients, RecordGradients, Table, strongest
from fedrec.training.heads import HeadsTrainer

from .conftest import WORDS, make_catalogue, make_encoder, make_histories
from .helpers import last_positions


def setup(folder: Path, seed: int, items: int | None = None):
    """A random configuration: rank, layers, history lengths, positions, catalogue, adapter."""
    rng = np.random.default_rng(seed)
    layers, rank, head_rank = int(rng.integers(1, 4)), int(rng.integers(1, 6)), int(rng.integers(1, 9))
    history, positions = int(rng.integers(1, 12)), int(rng.integers(1, 4))
    catalogue = make_catalogue(items or int(rng.integers(8, 30)), seed)
    encoder = make_encoder(folder, layers, rank)
    states = encoder.states(catalogue)
    base = init_base(encoder, states, True, head_rank, "random" if seed % 2 else "principal", seed)
    trained = {
        name: rng.normal(0, 0.1, value.shape).astype(np.float32) for name, value in init_trained(encoder, True, head_rank).items()
    }
    encoder.load({**base, **trained})
    scoring = Scoring(float(rng.uniform(1, 15)), float(rng.uniform(0, 1)), float(rng.uniform(0, 2)))
    prior = log_prior(rng.exponential(3, len(catalogue)), 0.5)
    histories = make_histories(11, catalogue, baskets=6, seed=seed)
    unit = "event" if seed % 3 == 2 else "user"
    examples = build_examples(histories, history=history, positions=positions, decay=scoring.decay, unit=unit)
    return rng, encoder, states, base, trained, scoring, prior, histories, examples, (history, positions, unit)


def one_user(histories, user: int, history: int, positions: int, decay: float, h, c, scoring, prior, only=None):
    """The loss of one user, straight from the definition, position by position and item by item."""
    items, baskets = histories.of(user)
    chosen = last_positions(items, baskets, positions)
    losses = []
    start = np.flatnonzero(baskets < chosen[0][0])[-2 * history :][0] if chosen else 0
    chosen = [(number, new) for number, new in chosen if baskets[start] < number]
    for number, new in chosen:
        events = [i for i in range(len(items)) if i >= start and baskets[i] < number][-history:]
        w = torch.softmax(torch.tensor([-decay * float(number - 1 - baskets[i]) for i in events]), 0)
        u = normalize(sum(w[k] * h(items[i]) for k, i in enumerate(events)), dim=0)
        seen = set(items[baskets < number].tolist())
        for item in new:
            against = [j for j in (only if only is not None else range(len(prior))) if j not in seen]
            if only is not None:  # sampled softmax: the target against the negatives that are not targets
                against = [int(item), *(j for j in against if j not in set(new.tolist()))]
            logits = torch.stack([scoring.temperature * (u @ c(j)) + scoring.prior_weight * float(prior[j]) for j in against])
            losses.append((torch.logsumexp(logits, 0) - logits[against.index(int(item))]) / (len(new) * len(chosen)))
    return losses, [len(new) for _, new in chosen]


def records_of(losses, sizes, unit):
    """One sum a user, or one mean a position."""
    if unit == "user":
        return [sum(losses)] if losses else [None]
    out, start = [], 0
    for size in sizes:
        out.append(sum(losses[start : start + size]) * len(sizes))
        start += size
    return out


@pytest.mark.parametrize("seed", range(8))
def test_heads_equal_one_user_at_a_time(tiny_bert_folder: Path, seed: int) -> None:
    _, encoder, states, base, trained, scoring, prior, histories, examples, (history, positions, unit) = setup(
        tiny_bert_folder, seed
    )
    e = centred(encoder.pooled(states), base).double()
    base, trained = ({k: v.astype(np.float64) for k, v in arrays.items()} for arrays in (base, trained))
    trainer = HeadsTrainer(e, prior, base, trained, scoring)
    examples = Examples(
        examples.items, examples.weights.astype(np.float64), *(examples.target, examples.target_weight, examples.seen)
    )
    found = list(trainer.gradients(examples))
    whole = torch.cat([chunk.per_record() for chunk in found])
    once = torch.cat([chunk.per_record() for chunk in trainer.gradients(merged(examples))])
    order = np.argsort(distinct_items(examples), kind="stable")
    torch.testing.assert_close(once, whole[torch.as_tensor(order)])
    fast = [torch.cat([in_order(chunk, i) for chunk in found]) for i in range(2)]
    check_factors(found, fast)

    a = torch.tensor(base[HEAD_A])
    slow = []
    for user in range(len(histories)):
        b = {role: torch.tensor(trained[name], requires_grad=True) for role, name in HEAD_B.items()}
        role = lambda r: lambda j: normalize(e[j] + (e[j] @ a) @ b[r], dim=0)
        losses, sizes = one_user(
            histories, user, history, positions, scoring.decay, role("history"), role("candidate"), scoring, prior
        )
        for loss in records_of(losses, sizes, unit):
            if loss is None:
                slow.append([torch.zeros_like(b["history"]), torch.zeros_like(b["candidate"])])
            else:
                slow.append(torch.autograd.grad(loss, [b["history"], b["candidate"]], retain_graph=True))
    compare(fast, slow)


@pytest.mark.parametrize("seed", range(8))
def test_encoder_equals_one_user_at_a_time(tiny_bert_folder: Path, seed: int) -> None:
    rng, encoder, states, base, trained, scoring, prior, histories, examples, (history, positions, unit) = setup(
        tiny_bert_folder, seed
    )
    if seed % 4 == 3:
        trained = {name: value for name, value in trained.items() if name not in HEAD_B.values()}
    trainer = EncoderTrainer(encoder, states, prior, base, trained, scoring, history=2 * history)
    trainer.negatives = rng.integers(0, len(prior), 9)
    fast = [torch.cat(samples) for samples in zip(*(chunk.samples for chunk in trainer.gradients(examples)), strict=True)]

    slow = []
    for user in range(len(histories)):
        e = {j: one_text(encoder, states, base, j) for j in range(len(prior))}
        role = lambda r: lambda j: head(e[int(j)], base, trained, r)
        losses, sizes = one_user(
            histories,
            user,
            history,
            positions,
            scoring.decay,
            role("history"),
            role("candidate"),
            scoring,
            prior,
            trainer.negatives.tolist(),
        )
        for loss in records_of(losses, sizes, unit):
            if loss is None or not loss.requires_grad:
                slow.append([torch.zeros_like(p) for p in trainer.parameters()])
            else:
                slow.append(torch.autograd.grad(loss, trainer.parameters(), retain_graph=True))
    compare(fast, slow)


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_who_else_is_in_the_lot_does_not_change_how_a_gradient_is_rounded(threads: int) -> None:
    """A lot with and without a user differs in that user's gradient alone: to the bit on one thread, on a real model.

    With more, a product is split among them by its size.
    """
    encoder = load_encoder(PACKAGED, 1, 4, 32, "cpu", 16)
    rng = np.random.default_rng(0)
    # Of so many lengths that a text is alone in its batch now and then.
    texts = [" ".join(rng.choice(WORDS, rng.choice([1, 2, 4, 6, 12, 20]))) for _ in range(50)]
    catalogue = Catalogue(tuple(f"i{i}" for i in range(50)), tuple(texts))
    states = encoder.states(catalogue)
    base = init_base(encoder, states, True, 8, "principal", 0)
    trained = {name: rng.normal(0, 0.05, a.shape).astype(np.float32) for name, a in init_trained(encoder, True, 8).items()}
    examples = build_examples(make_histories(40, catalogue, baskets=9), history=6, positions=3, decay=0.3)
    trainer = EncoderTrainer(encoder, states, np.zeros(50, dtype=np.float32), base, trained, Scoring(10.0, 0.3, 0.0), history=6)
    trainer.negatives = rng.integers(0, 50, 7)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = flat_gradients(trainer, examples)
        for user in range(0, 40, 4):
            for mates in ([], [rng.integers(40)], rng.choice(40, 9, replace=False)):
                lot = np.unique([user, *mates])
                alone = flat_gradients(trainer, examples.take(lot))[np.searchsorted(lot, user)]
                difference = float((alone - whole[user]).norm())
                assert difference <= (0 if threads == 1 else 1e-6) * float(whole[user].norm()), (user, lot)
    finally:
        torch.set_num_threads(before)


def test_weights_that_make_much_of_rounding_make_little_of_who_else_is_there() -> None:
    """Nearly parallel embeddings that the history head takes to next to nothing, and the largest temperature: on the heads."""
    items, hidden, rank, clip, users = 20, 16, 4, 1e-3, 24
    histories = make_histories(users, make_catalogue(items), baskets=6)
    examples = merged(build_examples(histories, history=5, positions=3, decay=0.3))
    largest = 0.0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        e = rng.normal(size=(items, hidden)) * 10 ** -rng.uniform(1, 8) + rng.normal(size=hidden)
        e = normalize(torch.tensor(e, dtype=torch.float32), dim=1)
        matrix = (rng.normal(size=(hidden, rank)) * 10 ** rng.uniform(5, 15)).astype(np.float32)
        base, inverse = {HEAD_A: matrix}, -np.linalg.pinv(matrix.astype(np.float64))
        trained = {
            HEAD_B["history"]: inverse.astype(np.float32),  # so that an embedding is what is left of a difference
            HEAD_B["candidate"]: (1e5 * rng.normal(size=(rank, hidden))).astype(np.float32),
        }
        trainer = HeadsTrainer(e, np.zeros(items, dtype=np.float32), base, trained, Scoring(1000.0, 0.3, 0.0))
        whole = clipped_records(trainer, examples, clip)
        largest = max(largest, float(whole.norm(dim=1).max()))
        for user in range(0, users, 3):
            alone = clipped_records(trainer, examples.take(np.array([user])), clip)[0]
            assert float((alone - whole[user]).norm()) < 1e-4 * clip, (seed, user)
    assert 0.5 * clip < largest < 1.001 * clip


def clipped_records(trainer: HeadsTrainer, lot: Examples, clip: float) -> torch.Tensor:
    """(records, numbers) float64, each of them scaled as `clipped_sum` would."""
    found = list(trainer.gradients(lot))
    factors = (clip / torch.cat([chunk.squared_norms() for chunk in found]).sqrt().clamp_min(1e-12)).clamp(max=1.0)
    return torch.cat([chunk.per_record() for chunk in found]).double() * factors[:, None]


def hostile_heads(seed: int, items: int = 24, hidden: int = 32, rank: int = 4) -> HeadsTrainer:
    """Weights under which much is left of rounding: sums that nearly cancel, of embeddings that are nearly parallel."""
    rng = np.random.default_rng(seed)
    e = rng.normal(size=(items, hidden)) * 10 ** -rng.uniform(0, 3) + rng.normal(size=hidden)
    e = normalize(torch.tensor(e, dtype=torch.float32), dim=1)
    base = {HEAD_A: (rng.normal(size=(hidden, rank)) * 10 ** rng.uniform(-1, 5)).astype(np.float32)}
    trained = {name: (rng.normal(size=(rank, hidden)) * 10 ** -rng.uniform(0, 6)).astype(np.float32) for name in HEAD_B.values()}
    return HeadsTrainer(e, np.zeros(items, dtype=np.float32), base, trained, Scoring(1000.0, 0.1, 0.0))


def of_lot(trainer: HeadsTrainer, lot: Examples, clip: float) -> torch.Tensor:
    """The clipped sum as the optimizer takes it up."""
    parameters = [torch.nn.Parameter(torch.zeros_like(parameter)) for parameter in trainer.parameters()]
    optimizer = UserDPOptimizer(
        parameters, SeededNoise(0), learning_rate=1.0, noise_multiplier=1.0, clip_norm=clip, expected_lot=1.0
    )
    for chunk in trainer.gradients(lot):
        optimizer.add(chunk)
    return torch.cat([parameter.summed_grad.double().flatten() for parameter in parameters])


@pytest.mark.parametrize("seed", [1, 4, 7])
def test_a_user_moves_a_large_lots_sum_by_its_own_gradient_and_by_no_rounding(seed: int) -> None:
    """Summed in float32 it moved by a ten-thousandth of the clipping norm more, and by hundreds of times that at 20,000 users."""
    users, clip = 1500, 1e-3
    examples = merged(build_examples(make_histories(users, make_catalogue(24), baskets=6), history=50, positions=2, decay=0.1))
    trainer = hostile_heads(seed)
    whole, records = of_lot(trainer, examples, clip), clipped_records(trainer, examples, clip)
    assert float(records.norm(dim=1).max()) > 0.5 * clip
    for user in (0, 1, 700, users - 1):
        rest = of_lot(trainer, examples.take(np.delete(np.arange(users), user)), clip)
        own = clipped_sum_of(trainer, examples, user, clip)
        assert float((whole - rest - own).norm()) < 1e-6 * clip, user


def clipped_sum_of(trainer: HeadsTrainer, lot: Examples, user: int, clip: float) -> torch.Tensor:
    return of_lot(trainer, lot.take(np.array([user])), clip)


def test_a_gradient_that_is_not_finite_spoils_no_other_users(tiny_bert_folder: Path) -> None:
    """A server may choose weights that overflow for one item: whoever bought it counts as zero, and only they."""
    _, encoder, states, base, trained, scoring, prior, *_ = setup(tiny_bert_folder, 0)
    broken = 7
    shard = np.array(states.shards[states.shard[broken]])
    shard[states.start[broken]] = np.inf
    states = dataclasses.replace(states, shards=(shard,))
    catalogue = make_catalogue(len(states), 0)
    histories = make_histories(30, catalogue, baskets=6)
    examples = build_examples(histories, history=4, positions=2, decay=0.5)
    trainer = EncoderTrainer(encoder, states, prior, base, trained, scoring, history=4)
    trainer.negatives = np.array([item for item in range(len(states)) if item != broken])[:6]
    bought = np.array([broken in histories.of(user)[0] for user in range(30)])
    first = int(np.flatnonzero(~bought & (examples.weights.any(axis=(1, 2))))[0])
    lot = np.arange(first, 30)
    found = flat_gradients(trainer, examples.take(lot))
    spoilt = ~found.isfinite().all(dim=1).numpy()
    assert spoilt.any() and not spoilt[~bought[lot]].any()
    torch.testing.assert_close(flat_gradients(trainer, examples.take(lot[~spoilt])), found[~spoilt])


@pytest.mark.parametrize("seed", range(6))
def test_on_the_heads_a_gradient_is_the_same_to_the_bit_whoever_else_is_in_the_lot(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of a few records, where whoever leaves moves others into another chunk, beside longer histories."""
    users, items = 600, 40
    monkeypatch.setattr("fedrec.training.heads.FLOATS_IN_FLIGHT", 2 * 136 * (items + 32))
    histories = make_histories(users, make_catalogue(items), baskets=12)
    examples = merged(build_examples(histories, history=30, positions=2, decay=0.1))
    trainer = hostile_heads(seed, items)
    whole = factors_of(trainer, examples)
    rng = np.random.default_rng(seed)
    lots = [np.arange(1, users), np.arange(users - 1), np.delete(np.arange(users), 300), np.arange(250, 500)]
    for lot in (*lots, np.flatnonzero(rng.random(users) < 0.4), np.array([5]), np.array([5, 400])):
        for wanted, found in zip(whole, factors_of(trainer, examples.take(lot)), strict=True):
            assert np.array_equal(wanted[lot], found, equal_nan=True)


def factors_of(trainer: HeadsTrainer, lot: Examples) -> list[np.ndarray]:
    """Each record's norm and what its gradient is made of, in the records' order."""
    rows, norms = [], []
    for chunk in trainer.gradients(lot):
        norms.append(chunk.squared_norms())
        flat = []
        for heads in chunk.parts:
            made_of = [part.flatten(1) for head in heads for part in (head.left, head.right, head.along)]
            flat.append(torch.cat(made_of, dim=1)[: len(heads[0])])
        found = torch.cat(flat)
        rows.append(torch.empty_like(found).index_copy_(0, chunk.order, found))
    return [torch.cat(norms).numpy(), torch.cat(rows).numpy()]


def flat_gradients(trainer: EncoderTrainer, lot: Examples) -> torch.Tensor:
    """(records, numbers), all parameters together."""
    return torch.cat([torch.cat([s.flatten(1) for s in chunk.samples], dim=1) for chunk in trainer.gradients(lot)])


def distinct_items(examples: Examples) -> list[int]:
    return [len(set(items[used].tolist())) for items, used in zip(examples.items, examples.weights.max(1) > 0, strict=True)]


def in_order(chunk: RecordGradients, head: int) -> torch.Tensor:
    rows = torch.cat([heads[head].per_record() for heads in chunk.parts])
    return torch.empty_like(rows).index_copy_(0, chunk.order, rows)


def check_factors(found: list[RecordGradients], fast: list[torch.Tensor]) -> None:
    """Norms and weighted sums from the factors are those of the gradients; a norm is never too small."""
    whole = torch.cat([value.flatten(1) for value in fast], dim=1)
    squared = torch.cat([chunk.squared_norms() for chunk in found])
    exact = whole.square().sum(1)
    assert (squared >= exact).all() and squared == pytest.approx(exact, rel=1e-2, abs=1e-3 * float(exact.max()))
    weights = torch.rand(len(whole), dtype=torch.float64)
    parts = weights.split([len(chunk.squared_norms()) for chunk in found])
    sums = [sum(values) for values in zip(*(c.weighted_sum(w) for c, w in zip(found, parts, strict=True)), strict=True)]
    for total, samples in zip(sums, fast, strict=True):
        torch.testing.assert_close(total, torch.einsum("u,u...->...", weights, samples.double()), rtol=1e-4, atol=1e-5)


def in_factors(
    left: torch.Tensor, right: torch.Tensor, along: torch.Tensor, candidates: torch.Tensor, table: Table
) -> HeadGradients:
    """As `HeadsTrainer` makes them."""
    cross = (along * ((left @ table.scaled.T) * (right @ table.unit.T)).sum(1)).sum(1)
    own = strongest(along, candidates, table)
    return HeadGradients(left, right, along, cross, own, table)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000), st.floats(-6, 12), st.floats(-12, 0), st.sampled_from([1e-6, 0.1, 5.0]), st.integers(0, 5)
)  # fmt: skip
def test_no_choice_of_weights_makes_a_record_count_for_more_than_the_clip_norm(
    seed: int, size: float, rest: float, clip: float, common: int
) -> None:
    """What a hostile server can reach: huge factors that cancel up to a rest, in every part of the gradient."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng)
    items, rank, hidden = 5, 3, 4
    table = Table(normalize(draw(items, hidden), dim=1), draw(items, rank) * 10 ** (size / 2), common)
    left, right = draw(1, 1, rank) * 10**size, normalize(draw(1, 1, hidden), dim=2)
    left = torch.cat([left, -left + draw(1, 1, rank) * 10 ** (size + rest)], dim=1)
    right = torch.cat([right, right + draw(1, 1, hidden) * 10**rest], dim=1)
    along = draw(1, items) * 10 ** (size / 2 + rest)
    gradients = in_factors(left, right, along, torch.randint(-1, items, (1, 2), generator=rng), table)
    parameter = torch.nn.Parameter(torch.zeros(rank, hidden))
    optimizer = UserDPOptimizer(
        [parameter], SeededNoise(0), learning_rate=1.0, noise_multiplier=1e-12, clip_norm=clip, expected_lot=1.0
    )
    optimizer.add(RecordGradients(((gradients,),)))
    assert float(parameter.summed_grad.norm()) <= clip * 1.001


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(0, 40), st.floats(0, 3))
def test_norms_from_some_of_the_items_are_never_too_small(seed: int, items: int, common: int, flat: float) -> None:
    """And exact where no item is left over; the gradient itself is the same however it is split."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)
    records, rank, hidden, common = 6, 3, 7, min(common, items)
    table = Table(normalize(draw(items, hidden) + flat, dim=1), draw(items, rank) + flat, common)
    left, right, along = draw(records, 2, rank), normalize(draw(records, 2, hidden), dim=2), draw(records, items) + flat
    exact = torch.einsum("upr,upd->urd", left, right) - torch.einsum("uj,jr,jd->urd", along, table.scaled, table.unit)
    mass = along.abs() @ table.sizes
    gradients = in_factors(left, right, along, torch.randint(-1, items, (records, 6), generator=rng), table)
    torch.testing.assert_close(gradients.per_record(), exact)
    norms = gradients.squared_norms().sqrt()
    assert (norms >= exact.flatten(1).norm(dim=1) * (1 - 1e-9)).all()
    assert (norms <= 1.1 * (exact.flatten(1).norm(dim=1) + 8 * mass)).all()  # a candidate may be there four times
    if common == items:
        torch.testing.assert_close(norms, exact.flatten(1).norm(dim=1), rtol=0.0, atol=0.05 * float(mass.max() + 1))
    weights = torch.rand(records, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(
        RecordGradients(((gradients,),)).weighted_sum(weights)[0], torch.einsum("u,urd->rd", weights, exact)
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(-30, 3), st.floats(-20, 18), st.integers(0, 6))
def test_norms_hold_for_factors_of_any_size(seed: int, small: float, large: float, common: int) -> None:
    """Tiny numbers along huge embeddings, in float32, where the squares of one underflow."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng)
    items, rank, hidden = 6, 3, 7
    table = Table(normalize(draw(items, hidden), dim=1), draw(items, rank) * 10**large, common)
    right = normalize(draw(1, 2, hidden), dim=2)
    left, along = draw(1, 2, rank) * 10 ** (small + large), draw(1, items) * 10**small
    gradients = in_factors(left, right, along, torch.tensor([[2, 5]]), table)
    exact = float(gradients.per_record().double().norm())
    found = float(gradients.squared_norms().sqrt())
    assert not found < exact * (1 - 1e-6) or exact < 1e-6 * 1e-3  # what is far below any clip norm may be lost


def test_an_overflow_makes_a_record_count_as_zero() -> None:
    """Only the cross term overflows here: minus infinity must not be taken for a small norm."""
    unit = torch.tensor([[0.5, 0.75**0.5, 0.0], [0.5, 0.0, 0.75**0.5], [0.5, 0.75**0.5, 0.0]])
    table = Table(unit, torch.tensor([[1.6e17], [2.6e16], [7.5e16]]), 3)
    right, at = torch.tensor([[[1.0, 0.0, 0.0]]]), 1000 * torch.tensor([[0.5, 0.5, -1.0]])
    gradients = in_factors((at @ table.scaled)[:, None], right, at * 0.5, torch.tensor([[0]]), table)
    assert not gradients.squared_norms().isfinite().any()


@pytest.mark.parametrize("seed", range(4))
def test_heads_with_a_rest_differ_only_in_how_sharply_they_clip(
    tiny_bert_folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, encoder, states, base, trained, scoring, prior, _, examples, _ = setup(tiny_bert_folder, seed)
    e = centred(encoder.pooled(states), base)
    whole = next(HeadsTrainer(e, prior, base, trained, scoring).gradients(examples))
    monkeypatch.setattr("fedrec.training.factors.COMMON", 2)
    parted = next(HeadsTrainer(e, prior, base, trained, scoring).gradients(examples))
    assert not parted.parts[0][0].table.whole
    exact = whole.per_record()
    torch.testing.assert_close(parted.per_record(), exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))
    assert (parted.squared_norms() >= exact.double().square().sum(1)).all()


def one_text(encoder, states, base: Arrays, item: int) -> torch.Tensor:
    pooled = encoder.run_top(*encoder.gather(states, np.array([item])))[0]
    return normalize(pooled - torch.tensor(base[CENTRE]), dim=0)


def head(e: torch.Tensor, base: Arrays, trained: Arrays, role: str) -> torch.Tensor:
    if HEAD_B[role] not in trained:
        return e
    return normalize(e + (e @ torch.tensor(base[HEAD_A])) @ torch.tensor(trained[HEAD_B[role]]), dim=0)


def compare(fast: list[torch.Tensor], slow: list) -> None:
    """Largest difference over the largest gradient of any user, all parameters together."""
    fast_flat = torch.cat([value.flatten(1).double() for value in fast], dim=1)
    slow_flat = torch.stack([torch.cat([value.flatten().double() for value in user]) for user in slow])
    assert fast_flat.shape == slow_flat.shape
    assert slow_flat.norm(dim=1).max() > 1e-3, "the oracle has nothing to compare"
    difference = (fast_flat - slow_flat).norm(dim=1) / slow_flat.norm(dim=1).max()
    assert float(difference.max()) < 1e-5
