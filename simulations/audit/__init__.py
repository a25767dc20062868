"""Attacks on one merchant's releases: what a claim of privacy is worth when somebody tries.

`canary_audit` (Steinke, Nasr, Jagielski, NeurIPS 2023) plants made-up users and guesses from what is released which of
them were there. `mechanisms` are the releases that it can attack, all through the code that merchants run: the rounds
of the heads, those of the encoder, the popularity histogram, what goes with what, and an opened secure sum.
`membership_attack` looks at the released heads only and asks which real users they were trained on.

Only a simulation can run them: the auditor knows everything but the coins, the sampling and the noise.
"""

from simulations.audit.canaries import disjoint_canaries, make_canaries, shown_canaries
from simulations.audit.canary_audit import CanaryAudit, canary_audit
from simulations.audit.mechanisms import MECHANISMS, audit_config, forced_settings
from simulations.audit.membership import Membership, membership_attack
from simulations.audit.target import NO_NOISE, Target, open_target, pick_merchant

__all__ = [
    "MECHANISMS", "NO_NOISE", "CanaryAudit", "Membership", "Target", "audit_config", "canary_audit", "disjoint_canaries",
    "forced_settings", "make_canaries", "membership_attack", "open_target", "pick_merchant", "shown_canaries",
]  # fmt: skip
