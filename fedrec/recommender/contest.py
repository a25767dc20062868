"""What a merchant has alone, and what it has with the federation, measured on the same users.

*Alone* is all that needs nobody else: the untrained text, the merchant's exact popularity and its own layer, joined as its
own users say. The last contender is the same with what came home from the federation; the difference of the two is what
the federation pays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from torch import Tensor
from torch.nn.functional import normalize

from fedrec.data import CentralGroup, Histories
from fedrec.data.roles import Roles
from fedrec.evaluation import PerUser, lists_of
from fedrec.evaluation.protocol import Group, group_of, joined, metrics_of
from fedrec.model.adapter import Arrays
from fedrec.model.towers import Scoring, centred, log_prior, role_table
from fedrec.recommender.blend import Blend, Fold, TextPart, choose_blend, held_items, scores
from fedrec.recommender.own_layer import OwnLayer, bought_by, choose_kind

__all__ = [
    "ALONE", "FEDERATED", "HERE", "HERE_ROWS", "ROWS", "SERVED", "TEXT", "THEIRS", "WITH_COUNTS", "Contender", "Entry",
    "Received", "choices", "contenders", "folds_of", "plain_part", "popularity_here", "run_contest", "trained_part",
    "users_as_group",
]  # fmt: skip

HERE, THEIRS = "own", "federation"
"""Names of the merchant's exact popularity and of the federation's."""
POPULARITY, TEXT, LAYER = "popularity here", "text, untrained", "own layer"
ALONE = "alone: text + own layer + popularity here"
WITH_COUNTS = "alone + the federation's popularity"
SERVED, FEDERATED = "federated text", "federated + own layer"
HERE_ROWS = (POPULARITY, TEXT, LAYER, ALONE)
"""What needs nothing of the federation."""
ROWS = (*HERE_ROWS, WITH_COUNTS, SERVED, FEDERATED)
FOLDS = 3
MOST_CHOOSERS = 600
"""Users of all folds together on whom a choice is made: more of them cost time and change nothing."""
TEMPERATURE, DECAY = 3.0, 0.1
"""Of the shared defaults, for a merchant whom nobody has told better."""


@dataclass(frozen=True)
class Received:
    """What came home from the federation.

    Attributes:
        part: the trained text over the merchant's catalogue; its priors are the merchant's own and the federation's.
        scoring: what the server chose on its consenting users.
    """

    part: TextPart
    scoring: Scoring


@dataclass(frozen=True)
class Contender:
    """A way to rank.

    Attributes:
        part: the text.
        default: what its weights are drawn towards.
        own: whether the own layer counts.
    """

    part: TextPart
    default: Blend
    own: bool


@dataclass(frozen=True)
class Entry:
    """A contender as it ranks.

    Attributes:
        blend: the weights that were chosen for it, where it has some.
        metrics: None where nobody was measured.
        layer: the own layer beside it, that of those who train; None where nobody was measured.
        lists: (users, k) what each measured user is shown, as `lists_of` has it; None where nobody was measured.
    """

    blend: Blend | None
    metrics: PerUser | None
    layer: OwnLayer | None = None
    lists: np.ndarray | None = None


def popularity_here(histories: Histories, items: int) -> np.ndarray:
    """(items,) float32: how often each was a target, which is to say bought."""
    return np.bincount(histories.targets().items, minlength=items).astype(np.float32)


def plain_part(pooled: Tensor, here: np.ndarray, centre: Tensor | None = None, asked: Tensor | None = None) -> TextPart:
    """The untrained text.

    Args:
        pooled: (items, hidden).
        here: (items,) the merchant's own counts.
        centre: (hidden,) of another catalogue; this one's by default.
        asked: (queries, hidden) pooled, what users searched for: it is history alone.
    """
    mean = pooled.mean(0) if centre is None else centre
    e = normalize(pooled - mean, dim=-1).cpu().numpy()
    history = e if asked is None else np.concatenate([e, normalize(asked - mean, dim=-1).cpu().numpy()])
    return TextPart(history, e, {HERE: log_prior(here, 1.0)})


def trained_part(
    pooled: Tensor, arrays: Arrays, here: np.ndarray, counts: np.ndarray, floor: float, asked: Tensor | None = None
) -> TextPart:
    """The federated text.

    Args:
        pooled: (items, hidden) of the encoder with its LoRA.
        arrays: centre and heads.
        here: (items,) the merchant's own counts.
        counts: (items,) the federation's, at least `floor` each.
        asked: (queries, hidden) of the same encoder, what users searched for: it is history alone.
    """
    e = centred(pooled, arrays)
    history, candidate = (role_table(e, arrays, arrays, role).cpu().numpy() for role in ("history", "candidate"))
    if asked is not None:
        history = np.concatenate([history, role_table(centred(asked, arrays), arrays, arrays, "history").cpu().numpy()])
    return TextPart(history, candidate, {HERE: log_prior(here, 1.0), THEIRS: log_prior(counts, floor)})


def users_as_group(histories: Histories, users: np.ndarray, items: int, length: int, *, repeats: bool = False) -> Group | None:
    """Those users with what is new in their last basket as the truth, against the merchant's whole catalogue.

    Args:
        repeats: whether what is bought again counts: then all of the basket is the truth.
    """
    return group_of(CentralGroup("", pd.RangeIndex(items), histories), users, length, repeats)[0]


def folds_of(
    histories: Histories, roles: Roles, items: int, length: int, seed: int, tell: Callable[[int, int], None] = lambda *_: None
) -> list[Fold]:
    """The users to choose on, with own layers that know nothing of them.

    Those who choose are one fold. Where there are none, the users who train are cut into several, each chosen on with
    layers of the others.

    Args:
        tell: is told how many layers are fitted, of how many.
    """
    rng = np.random.default_rng(seed)
    if len(roles.choose):
        parts = [(rng.permutation(roles.choose), roles.train)]
    else:
        cut = np.array_split(rng.permutation(roles.train), FOLDS)
        parts = [(part, np.setdiff1d(roles.train, part)) for part in cut]
    kind = choose_kind(bought_by(histories.take(roles.train), items))
    folds: list[Fold] = []
    for number, (choosing, fitting) in enumerate(parts):
        users = np.sort(choosing[: MOST_CHOOSERS // len(parts)])
        group, again = (users_as_group(histories, users, items, length, repeats=repeats) for repeats in (False, True))
        if again is None or not len(fitting):
            continue
        if group is None:  # all of them bought nothing but what they had: personal frequency can still be chosen on them
            group = again.part(slice(0, 0))
        bought = bought_by(histories.take(fitting), items)
        layers: dict[float, OwnLayer] = {}
        for place, strength in enumerate(kind.strengths):
            layers[strength] = kind.fit(bought, strength)
            tell(number * len(kind.strengths) + place + 1, len(parts) * len(kind.strengths))
        here = popularity_here(histories.take(fitting), items)
        folds.append(Fold(group, layers, {HERE: log_prior(here, 1.0)}, again))
    return folds


def contenders(plain: TextPart, received: Received | None, strengths: Sequence[float]) -> dict[str, Contender]:
    """Each way to rank of `ROWS` that has weights to choose, as far as something was received."""
    middle = strengths[len(strengths) // 2]
    alone = Blend({DECAY: TEMPERATURE}, {HERE: 1.0}, 0.2, middle)
    text = TextPart(plain.history, plain.candidate, {})
    found = {TEXT: Contender(text, Blend({DECAY: TEMPERATURE}, {}, 0.0, middle), False), ALONE: Contender(plain, alone, True)}
    if received is None:
        return found
    scoring, part = received.scoring, received.part
    pooling = {scoring.decay: scoring.temperature}
    both = TextPart(plain.history, plain.candidate, part.priors)
    theirs = TextPart(part.history, part.candidate, {THEIRS: part.priors[THEIRS]})
    served = Blend(pooling, {THEIRS: scoring.prior_weight}, 0.0, middle)
    home = Blend(pooling, {HERE: scoring.prior_weight, THEIRS: 0.0}, 0.2, middle)
    found |= {WITH_COUNTS: Contender(both, alone, True), SERVED: Contender(theirs, served, False)}
    return {**found, FEDERATED: Contender(part, home, True)}


def choices(folds: Sequence[Fold], entered: Mapping[str, Contender], k: int, seed: int) -> dict[str, Blend]:
    """The weights of each contender."""
    return {
        name: choose_blend(folds, one.part, one.default, k, own=one.own, seed=seed) if folds else one.default
        for name, one in entered.items()
    }


def run_contest(
    histories: Histories,
    roles: Roles,
    measured: Group | None,
    plain: TextPart,
    received: Received | None,
    folds: Sequence[Fold],
    *,
    k: int,
    seed: int,
) -> dict[str, Entry]:
    """Every row of `ROWS`, chosen on the merchant's own users and measured on others.

    Args:
        histories: the merchant's users.
        roles: who of them trains.
        measured: users whose own layer knows nothing of them.
        folds: who chooses; where there are none, shared defaults hold.
    """
    items = len(plain.candidate)
    known = histories.take(roles.train)
    bought = bought_by(known, items)
    kind = choose_kind(bought)
    entered = contenders(plain, received, kind.strengths)
    blends = choices(folds, entered, k, seed)
    if measured is None:
        return {name: Entry(blend, None) for name, blend in blends.items()}
    layers = {strength: kind.fit(bought, strength) for strength in {blend.strength for blend in blends.values()}}
    counts = popularity_here(known, items)
    layer, blocks = layers[blends[ALONE].strength], list(measured.blocks())

    def entry(score: Callable[[Group], np.ndarray], blend: Blend | None = None, beside: OwnLayer | None = None) -> Entry:
        found = [(metrics_of(block, values, k), lists_of(block, values, k)) for block in blocks for values in [score(block)]]
        metrics, lists = zip(*found, strict=True)
        return Entry(blend, joined(list(metrics)), beside, np.concatenate(lists))

    found = {
        POPULARITY: entry(lambda block: np.broadcast_to(counts, (len(block.items), items))),
        LAYER: entry(lambda block: layer.scores(held_items(block))),
    }
    for name, one in entered.items():
        blend, beside = blends[name], layers[blends[name].strength]
        found[name] = entry(partial(scores, part=one.part, layer=beside, blend=blend), blend, beside)
    return {name: found[name] for name in ROWS if name in found}
