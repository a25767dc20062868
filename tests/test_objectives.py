"""The contract that every objective keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from fedrec.data import Histories
from fedrec.data.shown import Shown
from fedrec.model.adapter import CENTRE, HEAD_A, HEAD_B, TERMS
from fedrec.model.towers import Scoring, centred, init_base, init_trained, log_prior
from fedrec.objectives import OBJECTIVES, Asked, Examples, Known, Objective, parts_of
from fedrec.objectives.joint import JointRecords, of_part
from fedrec.objectives.response import response_records
from fedrec.privacy import SeededNoise
from fedrec.training import RoundTask, round_sum, train_round
from fedrec.training.encoder import EncoderTrainer
from fedrec.training.heads import HeadsTrainer

from .conftest import make_catalogue, make_encoder, make_histories

ITEMS, QUERIES = 14, ("green tea", "a kettle", "mugs")
EACH = {"decays": (0.3, 0.1), "weights": (0.7, 1.5)}
"""Of the parts of several objectives; one alone has no use for it."""
BOTH = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def histories_of(seed: int = 0, users: int = 9, items: int = ITEMS, searches: bool = False) -> Histories:
    """Users who buy, and are shown things and rate others at the times of their baskets and between.

    Args:
        searches: some of what was bought is a search instead.
    """
    histories = make_histories(users, make_catalogue(items, seed), baskets=5, seed=seed)
    if searches:
        asked = np.random.default_rng(seed).random(len(histories.items)) < 0.3
        words = np.where(asked, items + histories.items % len(QUERIES), histories.items)
        histories = replace(histories, items=words, target=~asked, queries=QUERIES)
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 12, users)
    last = np.array([histories.of(user)[1].max() for user in range(users)])
    before = [np.sort(rng.integers(0, last[user] + 2, count)) for user, count in enumerate(counts)]
    answer = rng.random(counts.sum()) < 0.4
    shown = Shown(np.append(0, np.cumsum(counts)), rng.integers(0, items, counts.sum()), np.concatenate(before), answer)
    # Drawn last, so that what came before is what it was; nobody rates an item twice.
    rated = [rng.choice(items, count, replace=False) for count in counts]
    said = Shown(shown.offsets, np.concatenate(rated), shown.before, rng.integers(0, 7, counts.sum()).astype(float))
    return replace(histories, shown=shown, rated=said)


def records_of(objective: Objective, seed: int = 0, searches: bool = False) -> Examples:
    """Some users' records, of whom the last has nothing to predict."""
    examples = objective.records(histories_of(seed, searches=searches), Asked(6, 2, 0.3, "user", 9, merge=False, **EACH)).padded()
    last = len(examples) - 1
    asked, seen = examples.target[:, 0] < last, examples.seen[:, 0] < last
    weights = examples.weights.astype(np.float64)
    answer = None if examples.answer is None else examples.answer[asked]
    return Examples(examples.items, weights, examples.target[asked], examples.target_weight[asked], examples.seen[seen], answer)


def scores_of(chunk: Examples, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.as_tensor(rng.normal(0, scale, (len(chunk), chunk.positions, ITEMS)))


@BOTH
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_the_derivative_is_that_of_the_loss(objective: Objective, scale: float) -> None:
    chunk = records_of(objective)
    scores = scores_of(chunk, scale=scale).requires_grad_(True)
    (slow,) = torch.autograd.grad(objective.losses(scores, chunk).sum(), scores)
    torch.testing.assert_close(objective.at_scores(scores.detach().clone(), chunk), slow, rtol=1e-5, atol=1e-7)
    assert slow[:-1].abs().sum() > 0
    assert not slow[-1].any()


@BOTH
def test_a_record_is_asked_alone(objective: Objective) -> None:
    chunk = records_of(objective)
    scores = scores_of(chunk)
    losses, at = objective.losses(scores, chunk), objective.at_scores(scores.clone(), chunk)
    for record in range(len(chunk)):
        one = chunk.take(np.array([record]))
        torch.testing.assert_close(objective.losses(scores[record : record + 1], one), losses[record : record + 1])
        torch.testing.assert_close(objective.at_scores(scores[record : record + 1].clone(), one), at[record : record + 1])
    assert losses[-1] == 0


@BOTH
def test_the_loss_of_some_items_is_that_of_the_catalogue_where_they_are_all_of_it(objective: Objective) -> None:
    """Each record's own texts are its targets, and the negatives are everything."""
    chunk = records_of(objective)
    scores = scores_of(chunk)
    planes = [torch.zeros(len(chunk), chunk.positions, ITEMS, dtype=torch.float64) for _ in objective.wanted(chunk)]
    for plane, values in zip(planes, objective.wanted(chunk), strict=True):
        plane.index_put_(tuple(torch.as_tensor(chunk.target).T), torch.as_tensor(values, dtype=torch.float64), accumulate=True)
    masked = torch.zeros(len(chunk), chunk.positions, ITEMS, dtype=torch.bool)
    masked[tuple(chunk.seen.T)] = True
    others = [objective.sampled_losses(scores, scores if objective.negatives else scores[:, :, :0], masked, planes)]
    # A target that is among the negatives too would count twice, so each is taken out and looked at on its own.
    if objective.negatives:
        others = [torch.zeros(len(chunk), dtype=torch.float64)]
        for number, row in enumerate(chunk.target):
            hidden = masked.clone()
            hidden[tuple(row)] = True
            alone = [torch.zeros_like(plane) for plane in planes]
            for plane, values in zip(alone, objective.wanted(chunk), strict=True):
                plane[tuple(row)] = float(values[number])
            others.append(objective.sampled_losses(scores, scores, hidden, alone))
    torch.testing.assert_close(sum(others), objective.losses(scores, chunk), rtol=1e-6, atol=1e-7)


def adapter_of(bert: Path, objective: Objective, seed: int):
    """An encoder, and a random adapter with linear terms where the objective has some."""
    rng, catalogue = np.random.default_rng(seed), make_catalogue(ITEMS, seed)
    encoder = make_encoder(bert, 1, 3)
    states = encoder.states(catalogue)
    base = init_base(encoder, states, True, 4, "principal", seed)
    start = init_trained(encoder, True, 4, objective.terms)
    trained = {name: rng.normal(0, 0.2, value.shape).astype(np.float32) for name, value in start.items()}
    encoder.load({**base, **trained})
    one = [Scoring(4.0, 0.3, 0.7, -0.5 if objective.terms else 0.0)]
    parts = [Scoring(3.0, 0.3, 0.9), Scoring(5.0, 0.1, 0.4, -0.5)] if len(parts_of(objective)) == 2 else one
    scoring = Scoring.of_parts(parts)
    return encoder, states, base, trained, scoring, log_prior(rng.exponential(3, ITEMS), 0.5)


def naive_scores(objective, e, chunk, record, history, candidate, terms, scorings, prior):
    """(P, items) of one record, straight from the definition."""
    prior = torch.as_tensor(prior, dtype=torch.float64)
    rows, each = [], chunk.positions // len(scorings.parts)
    for place, weights in enumerate(torch.as_tensor(chunk.weights[record], dtype=torch.float64)):
        part, scoring = parts_of(objective)[place // each], scorings.parts[place // each]
        pooled = sum(weight * history[item] for weight, item in zip(weights, chunk.items[record], strict=True))
        row = scoring.temperature * candidate @ normalize(pooled, dim=0) + scoring.prior_weight * prior + scoring.bias
        if part.terms:
            mean = sum(weight * e[item] for weight, item in zip(weights, chunk.items[record], strict=True))
            row = row + mean @ terms[0, :-1] + terms[0, -1] + e[:ITEMS] @ terms[1, :-1] + terms[1, -1] * (prior - prior.mean())
        rows.append(row)
    return torch.stack(rows)


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_heads_equal_one_record_at_a_time(tiny_bert_folder: Path, objective: Objective, seed: int) -> None:
    encoder, states, base, trained, scoring, prior = adapter_of(tiny_bert_folder, objective, seed)
    chunk, e = records_of(objective, seed, searches=seed == 2), centred(encoder.pooled(states), base).double()
    asked = centred(encoder.embed_private(QUERIES), base).double()
    assert (chunk.items >= ITEMS).any() == (seed == 2 and objective.name != "basket")  # in which nobody searches
    wide = [{name: value.astype(np.float64) for name, value in one.items()} for one in (base, trained)]
    trainer = HeadsTrainer(e, prior.astype(np.float64), *wide, scoring, queries=asked, objective=objective)
    found = list(trainer.gradients(chunk))
    fast = torch.cat([one.per_record() for one in found])

    a, slow = torch.as_tensor(wide[0][HEAD_A]), []
    for record in range(len(chunk)):
        moving = {name: torch.tensor(wide[1][name], requires_grad=True) for name in trainer.arrays()}
        texts = torch.cat([e, asked])
        tables = [normalize(of + of @ a @ moving[HEAD_B[role]], dim=-1) for role, of in (("history", texts), ("candidate", e))]
        one = chunk.take(np.array([record]))
        scores = naive_scores(objective, texts, chunk, record, *tables, moving.get(TERMS), scoring, prior)
        loss = objective.losses(scores[None], one).sum()
        gradients = torch.autograd.grad(loss, list(moving.values()))
        slow.append(torch.cat([gradient.flatten() for gradient in gradients]))
    slow = torch.stack(slow)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-8)

    norms = torch.cat([one.squared_norms() for one in found]).sqrt()
    exact = slow.norm(dim=1)
    assert (norms >= exact).all()
    assert (norms <= 1.05 * exact + 1e-6).all()
    weights = torch.linspace(0, 1, len(chunk), dtype=torch.float64)
    summed = [sum(parts) for parts in zip(*(one.weighted_sum(weights) for one in found), strict=True)]
    torch.testing.assert_close(torch.cat([one.flatten() for one in summed]), weights @ slow, rtol=1e-5, atol=1e-8)


@BOTH
@pytest.mark.parametrize("seed", range(2))
def test_the_encoder_equals_one_record_at_a_time(tiny_bert_folder: Path, objective: Objective, seed: int) -> None:
    encoder, states, base, trained, scoring, prior = adapter_of(tiny_bert_folder, objective, seed)
    chunk, asked = records_of(objective, seed), np.random.default_rng(seed).integers(0, ITEMS, 7)
    trainer = EncoderTrainer(encoder, states, prior, base, trained, scoring, history=12, objective=objective)
    trainer.negatives = asked if objective.negatives else asked[:0]
    fast = [torch.cat(samples) for samples in zip(*(part.samples for part in trainer.gradients(chunk)), strict=True)]

    terms = torch.as_tensor(trained[TERMS]).double() if objective.terms else None
    a = torch.as_tensor(base[HEAD_A]).double()
    for record in range(len(chunk)):
        pooled = torch.cat([encoder.run_top(*encoder.gather(states, np.array([item]))) for item in range(ITEMS)])
        e = normalize(pooled.double() - torch.as_tensor(base[CENTRE]).double(), dim=-1)
        heads = [torch.as_tensor(trained[HEAD_B[role]]).double() for role in ("history", "candidate")]
        scores = naive_scores(
            objective, e, chunk, record, *(normalize(e + e @ a @ b, dim=-1) for b in heads), terms, scoring, prior
        )
        one, loss = chunk.take(np.array([record])), torch.zeros((), dtype=torch.float64)
        for number, (_, position, item) in enumerate(one.target):
            known = [*one.seen[one.seen[:, 1] == position][:, 2], *one.target[one.target[:, 1] == position][:, 2]]
            others = scores[position, [j for j in trainer.negatives if j not in known]]
            here = torch.zeros(1, one.positions, 1, dtype=torch.float64)
            here[0, position] = 1.0
            planes = [here * float(values[number]) for values in objective.wanted(one)]
            masked = torch.zeros(1, one.positions, len(others), dtype=torch.bool)
            against = others.expand(1, one.positions, -1)
            loss = loss + objective.sampled_losses(here * scores[position, item], against, masked, planes).sum()
        slow = torch.autograd.grad(loss, trainer.parameters(), allow_unused=True) if loss.requires_grad else [None] * len(fast)
        for own, other in zip(fast, slow, strict=True):
            other = torch.zeros_like(own[record]) if other is None else other
            torch.testing.assert_close(own[record], other, rtol=1e-4, atol=1e-6)


@BOTH
def test_who_else_is_in_a_lot_changes_no_bit(tiny_bert_folder: Path, objective: Objective) -> None:
    encoder, states, base, trained, scoring, prior = adapter_of(tiny_bert_folder, objective, 0)
    trainer = HeadsTrainer(centred(encoder.pooled(states), base), prior, base, trained, scoring, objective=objective)
    lot = objective.records(histories_of(0, users=300), Asked(6, 2, 0.3, "user", 9, merge=True, **EACH))
    whole = torch.cat([one.per_record() for one in trainer.gradients(lot)])
    norms = torch.cat([one.squared_norms() for one in trainer.gradients(lot)])
    some = np.flatnonzero(np.random.default_rng(0).random(len(lot)) < 0.4)
    part = torch.cat([one.per_record() for one in trainer.gradients(lot.take(some))])
    assert torch.equal(part, whole[some])
    assert torch.equal(torch.cat([one.squared_norms() for one in trainer.gradients(lot.take(some))]), norms[some])


@BOTH
@pytest.mark.parametrize("part", ["heads", "encoder"])
@pytest.mark.parametrize("secure", [False, True], ids=["train_round", "round_sum"])
def test_a_reply_comes_whoever_was_drawn(tiny_bert_folder: Path, objective: Objective, part: str, secure: bool) -> None:
    """Of nobody, and of users with nothing to predict: what is sent has the same arrays, and says nothing."""
    encoder, _, base, trained, scoring, prior = adapter_of(tiny_bert_folder, objective, 0)
    task = RoundTask(
        run="r", round=1, part=part, trunk="", encoder_layers=1, encoder_rank=3, max_tokens=16, local_steps=1, sample_rate=1.0,
        clip_norm=1.0, noise_multiplier=1.0, delta=1e-5, unit="user", learning_rate=1.0, history=6, positions=2, negatives=4,
        encoder_history=6, temperature=scoring.temperature, decay=scoring.decay, prior_weight=scoring.prior_weight,
        update_code="float32", objective=objective.name, impressions=9, bias=scoring.parts[-1].bias, response_temperature=5.0,
    )  # fmt: skip
    held = {"encoder": encoder, "base": base, "trained": trained, "prior": prior, "noise": SeededNoise(0)}
    one = objective.records(histories_of(users=9), task.asked).padded()
    none = np.zeros(0, dtype=np.int64)
    empty = Examples(
        one.items[:5], one.weights[:5] * 0, one.target[none], one.target_weight[none], one.seen[none],
        None if one.answer is None else one.answer[none],
    )  # fmt: skip
    for records in (empty, empty.take(none)):
        if secure:
            found = round_sum(task, make_catalogue(ITEMS), records, **held)
            assert not any(value.any() for value in found.values())
        else:
            found = train_round(task, make_catalogue(ITEMS), records, population=9, **held)
            assert all(np.isfinite(value).all() for value in found.values())
        assert found


@BOTH
def test_a_chunk_in_which_nobody_was_shown_anything_changes_nothing(
    tiny_bert_folder: Path, objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, states, base, trained, scoring, prior = adapter_of(tiny_bert_folder, objective, 0)
    chunk = records_of(objective)
    trainer = EncoderTrainer(encoder, states, prior, base, trained, scoring, history=12, objective=objective)
    trainer.negatives = np.arange(4 if objective.negatives else 0)
    whole = torch.cat([part.squared_norms() for part in trainer.gradients(chunk)])
    monkeypatch.setattr("fedrec.training.encoder.FLOATS_PER_RECORD", 0)
    parts = list(trainer.gradients(chunk))
    assert len(parts) > 1
    torch.testing.assert_close(torch.cat([part.squared_norms() for part in parts]), whole)
    assert whole[-1] == 0


def test_a_joint_record_is_each_parts_own() -> None:
    """Where records are padded at once and where they are not, with each item once and not."""
    histories, objective = histories_of(4, users=20), OBJECTIVES["next-item+response"]
    asked = Asked(6, 2, 0.3, "user", 9, merge=False, **EACH)
    joint = objective.records(histories, asked).padded()
    for number, (part, decay) in enumerate(zip(objective.parts, asked.decays, strict=True)):
        own, alone = of_part(joint, number, 2), part.records(histories, replace(asked, decay=decay)).padded()
        columns = slice(number * alone.length, (number + 1) * alone.length)
        np.testing.assert_array_equal(own.weights[:, :, columns], alone.weights)
        np.testing.assert_array_equal(own.items[:, columns], alone.items)
        np.testing.assert_array_equal(own.target, alone.target)
        np.testing.assert_array_equal(own.seen, alone.seen)
        np.testing.assert_allclose(own.target_weight, asked.weights[number] * alone.target_weight, rtol=1e-6)
        assert own.weights.sum() == pytest.approx(alone.weights.sum())
    lazy = JointRecords(tuple(part.records(histories, asked) for part in objective.parts), asked.weights)
    some = np.array([1, 4, 5])
    np.testing.assert_array_equal(lazy.take(some).padded().target, lazy.padded().take(some).target)


LABELLED = [one for one in OBJECTIVES.values() if one.terms and parts_of(one) == (one,)]


@pytest.mark.parametrize("objective", LABELLED, ids=lambda one: one.name)
def test_a_merchants_other_users_change_no_users_record(objective: Objective) -> None:
    asked = Asked(6, 3, 0.3, "user", 4, merge=False)
    histories, rng = histories_of(3, users=12), np.random.default_rng(0)
    known = Known(rng.uniform(-1, 1, ITEMS), rng.normal(0, 1, (ITEMS, 3)))
    everyone = objective.records(histories, asked, known)
    for user in range(len(histories)):
        only = np.array([user])
        alone, beside = objective.records(histories.take(only), asked, known).padded(), everyone.take(only).padded()
        for name in ("items", "weights", "target", "target_weight", "answer"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(beside, name))
        assert len(alone.target) <= 4


def test_impressions_are_predicted_from_what_came_before_their_block() -> None:
    """Against a plain count, with room for all of them."""
    histories = histories_of(5, users=30)
    padded = response_records(histories, Asked(50, 3, 0.0, "user", 100, merge=False)).padded()
    found = 0
    for user in range(len(histories)):
        items, baskets = histories.of(user)
        seen = histories.shown.take(np.array([user]))
        shown = [row for row in zip(seen.items, seen.before, seen.answer, strict=True) if row[1]]
        blocks = [[row for place, row in enumerate(shown) if place * 3 // len(shown) == block] for block in range(3)]
        for position, block in enumerate([block for block in blocks if block][::-1]):
            here = (padded.target[:, 0] == user) & (padded.target[:, 1] == position)
            assert padded.target[here][:, 2].tolist() == [item for item, _, _ in block]
            assert padded.answer[here].astype(bool).tolist() == [answer for _, _, answer in block]
            pooled = padded.items[user][padded.weights[user, position] > 0]
            assert pooled.tolist() == items[baskets < block[0][1]].tolist()
            found += len(block)
    assert found == len(padded.target) > 50
