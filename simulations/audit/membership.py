"""The membership attack on the heads that a run releases: it sees the last adapter only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedrec.config import RunConfig
from fedrec.model import Arrays
from fedrec.privacy import SeededNoise
from fedrec.privacy.audit import membership_metrics, tpr_bound
from fedrec.training import Examples
from simulations.audit.mechanisms import MECHANISMS, audit_config
from simulations.audit.rounds import examples_of, heads_trainer, make_task, noisy_update, rounds
from simulations.audit.target import Attacked, Origin, Switch, Target

__all__ = ["Membership", "membership_attack"]


@dataclass(frozen=True)
class Membership:
    """What the membership attack on the released adapter found.

    Attributes:
        members, non_members: users trained on, and users of the same merchant left out.
        auc: 0.5 is guessing.
        tpr_at_1_percent, tpr_at_01_percent: members found at 1% and 0.1% false positives.
        bound_at_1_percent, bound_at_01_percent: the most that the claim allows.
    """

    members: int
    non_members: int
    auc: float
    tpr_at_1_percent: float
    bound_at_1_percent: float
    tpr_at_01_percent: float
    bound_at_01_percent: float
    noise: Switch
    method: str = "fall of the user's loss from the initial to the released adapter"

    def as_json(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)


def membership_attack(
    config: RunConfig, target: Target, *, noise: bool = True, origin: Origin = "seed", seed: int = 0
) -> Membership:
    """Train the heads on a random half of the users and tell them from the other half by the released adapter.

    Each user is a member by a fair coin, so members and others are alike but for the training.
    The score is the user's loss under the initial adapter minus that under the last one.

    Raises:
        InputError: one of the halves has no user with anything to predict.
    """
    config = audit_config(config)
    users = len(target.merchant.data.histories)
    member = np.isin(np.arange(users), SeededNoise(seed, target.merchant.name, "audit members").poisson(users, 0.5))
    sigma, claimed = MECHANISMS["heads"].plan(config, noise)
    everyone = examples_of(config, target.merchant.data.histories)
    half = max(1, target.merchant.policy.population // 2)
    run = Attacked(config, target, "membership", half, sigma, seed, origin)
    last = target.trained
    for one in rounds(run, "heads", everyone.take(np.flatnonzero(member)), noisy_update):
        last = one.after
    fall = _losses(run, target.trained, everyone) - _losses(run, last, everyone)
    usable = np.isin(np.arange(users), everyone.target[:, 0])  # a user with nothing to predict has no loss
    metrics = membership_metrics(fall[usable & member], fall[usable & ~member])
    return Membership(
        members=int((usable & member).sum()),
        non_members=int((usable & ~member).sum()),
        auc=metrics.auc,
        tpr_at_1_percent=metrics.tpr_at_1_percent,
        bound_at_1_percent=tpr_bound(claimed, config.delta, 0.01),
        tpr_at_01_percent=metrics.tpr_at_01_percent,
        bound_at_01_percent=tpr_bound(claimed, config.delta, 0.001),
        noise="on" if noise else "off",
    )


def _losses(run: Attacked, trained: Arrays, records: Examples) -> np.ndarray:
    """Each record's loss under the heads, (records,) float64."""
    trainer = heads_trainer(run.target, trained, make_task(run, "heads", 1))
    return trainer.losses(records).cpu().numpy().astype(np.float64)
