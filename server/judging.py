"""What the judging users decide: when a run stops, which round's adapter it ends with, and how much of that is kept.

They are consenting public users who neither train nor are measured, nor are what the scoring is fitted on. All that they
decide is a choice between adapters by one number, the mean loss of what they did: the objective's own, of several their
weighted sum.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fedrec.config import RunConfig
from fedrec.errors import InputError
from fedrec.evaluation import FEWEST
from fedrec.model import Arrays, Scoring
from server.evaluators import Evaluator
from server.run_folder import Best, ServerState

__all__ = ["StoppedEarly", "after_round", "at_the_end", "check_judges", "kept"]

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)


class StoppedEarly(Exception):
    """The judging users see no gain any more: the run ends here, with the best adapter so far."""


def check_judges(config: RunConfig, evaluator: Evaluator) -> None:
    """Whether somebody can judge when to stop, before anything is paid for.

    Raises:
        InputError: there are fewer than `FEWEST` users to judge or to fit the scoring on.
    """
    fit, judge = evaluator.choosing
    if config.patience and min(fit, judge) < FEWEST:
        raise InputError(
            f"patience = {config.patience} needs public users who judge: {judge} can, and {fit} fit the scoring",
            where="central/events", expected=f"at least {FEWEST} of each",
            hint="hold out more users (a third of calibration_share of them judge), or set patience=0",
        )  # fmt: skip


def after_round(
    config: RunConfig, evaluator: Evaluator, start: Arrays, now: ServerState, moved: bool
) -> tuple[ServerState, dict[str, Any]]:
    """The state after a round as the judging users have it, and what the round's line says of that.

    After the last round, or where they see no gain for `patience` rounds that moved the adapter, it has what is kept at the end.

    Args:
        start: the adapter that the run began with.
        moved: whether the round changed the adapter; where it did not, nothing is judged.
    """
    found: dict[str, Any] = {}
    if config.patience:
        loss, best = None, now.best
        if moved or best is None:
            under = evaluator.fitted(now.public, now.trained, now.scoring)
            loss = evaluator.loss(now.public, now.trained, under)
            loss = loss if np.isfinite(loss) else float(np.finfo(np.float64).max)  # JSON has no infinity
            best = best.followed_by(now.round, loss, now.trained) if best else Best(now.round, loss, 0, now.trained)
        now = replace(now, best=best, stopped=best.since >= config.patience and now.round < config.rounds)
        found["judged"] = {"loss": loss, "best_round": best.round, "stopped": now.stopped}
    if now.round and now.ended(config.rounds):
        now, found["kept"] = at_the_end(evaluator, start, now)
    return now, found


def at_the_end(evaluator: Evaluator, start: Arrays, now: ServerState) -> tuple[ServerState, float]:
    """The state as a run ends with it, and which share of the best adapter so far that has: see `kept`."""
    trained = now.trained if now.best is None else now.best.trained
    share, trained = kept(evaluator, now.public, start, trained, now.scoring)
    return replace(now, trained=trained), share


def kept(evaluator: Evaluator, public: Arrays, start: Arrays, trained: Arrays, under: Scoring) -> tuple[float, Arrays]:
    """How much of what was trained is kept: a run is not to end worse than its start.

    What the judging users did is most likely with this share of the way from the start to the adapter, each with the scoring
    that fits it; 0 is the start.

    Args:
        under: what merchants trained under last.

    Returns:
        The share, and what is kept; all of it where there are fewer than `FEWEST` users to fit or to judge.
    """
    if min(evaluator.choosing) < FEWEST:
        return 1.0, trained
    found = []
    for share in SHARES:
        part = {name: start[name] + np.float32(share) * (value - start[name]) for name, value in trained.items()}
        part = trained if share == 1 else part
        loss = evaluator.loss(public, part, evaluator.fitted(public, part, under))
        found.append((loss if np.isfinite(loss) else np.inf, share, part))
    _, share, part = min(found, key=lambda one: one[0])
    return share, part
