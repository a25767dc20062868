"""What is known before a run: whether its data are in order, and which merchants would take part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from clients.losses import SUFFIX
from fedrec.config import RunConfig
from fedrec.data import CentralData, Histories, MerchantData, load_central, load_merchant, merchant_folders
from fedrec.errors import InputError
from fedrec.evaluation import EvaluationSet, hidden_items
from fedrec.evaluation.protocol import is_calibration
from fedrec.merchant import MERCHANT_FILE, MerchantFile, read_merchant_file
from fedrec.privacy import Ledger, Policy, Release, head_file, over_budget, plan_noise
from fedrec.privacy.secure_plan import why_no_secure_sum
from fedrec.privacy.worth import LEAST_WORTH, worth_in_users

__all__ = [
    "check_federation", "check_merchant", "check_run", "checked", "merchant_files", "not_advised", "nothing_to_learn",
    "would_not_work",
]  # fmt: skip

SHOWN = 5
"""How many merchants an error names before it counts the others."""
A_RATING = "the objective rating needs events of kind rating, with a number as their value"
AN_IMPRESSION = "the objective response needs events of kind impression, with value 0 or 1"
A_BASKET = "a basket is what a user did at one timestamp, and training asks what the next one holds: look at the timestamps"
JOINT = "the objective basket needs baskets of two items: what a user did at one timestamp is one basket"
RATES = ("rating", "rating-absolute")
NEEDS = {"next-item": A_BASKET, "response": AN_IMPRESSION, "basket": JOINT} | dict.fromkeys(RATES, A_RATING)


def check_federation(federation: Path, config: RunConfig | None = None, *, strict: bool = False) -> dict[str, MerchantData]:
    """Read every table of a federation folder, so that bad data stops a run before it starts.

    Args:
        config: also check that every merchant is large enough for these settings, and that enough of them
            would take part.
        strict: refuse the first row that would be left out.

    Raises:
        InputError: the first thing that is wrong.
    """
    for path, settings in merchant_files(federation).items():
        settings.privacy.check_delta(where=str(path))
    merchants = dict(checked(federation, config, strict=strict))
    if config is not None:
        check_run(federation, config)
    return merchants


def check_run(federation: Path, config: RunConfig, ledgers: Path | None = None) -> list[str]:
    """Whether enough merchants would take part in a run, by their policies and ledgers.

    Args:
        ledgers: folder of what they have spent so far; nothing by default.

    Returns:
        What a person should know of the others: who would decline and why, and whose delta is no protection.

    Raises:
        InputError: every merchant would decline, or more than may be missing from a secure sum.
    """
    files = merchant_files(federation)
    policies = {settings.name: settings.privacy for settings in files.values()}
    declined: dict[str, str] = {}
    for reasons in _declined(policies, config, ledgers):
        _enough(files, config, reasons)
        declined = {**reasons, **declined}
    faults = {name: fault for name, policy in policies.items() if (fault := policy.fault_of_delta())}
    return _would_decline(declined) + [f"merchant {name}: {fault}" for name, fault in faults.items()]


def not_advised(federation: Path, config: RunConfig, width: int) -> list[str]:
    """Why these merchants had better not train the heads under this noise: at most one reason.

    Args:
        width: of the encoder.
    """
    if not config.rounds_of("heads"):
        return []
    populations = [one.privacy.population for one in merchant_files(federation).values()]
    many, sums = len(populations), float(len(populations))
    if config.trust == "secure-aggregation":
        sums = many / (many - config.dropouts - config.colluders)
    worth = worth_in_users(
        steps=config.rounds_of("heads") * config.local_steps, lot=config.sample_rate * sum(populations),
        noise_multiplier=plan_noise(config).of("heads"), numbers=2 * config.rank * width, sums=sums,
    )  # fmt: skip
    if worth >= LEAST_WORTH:
        return []
    return [
        f"training is not advised: under this noise the heads learn about what {worth:.2g} consenting users would teach them "
        f"(expected: {LEAST_WORTH:g}); more users, a larger epsilon, a lower rank or secure aggregation would help"
    ]


def _check_terms(federation: Path, config: RunConfig) -> None:
    """Whether a secure sum can be opened at all: enough merchants, and enough whose policies accept it."""
    files = merchant_files(federation)
    if reason := why_no_secure_sum(config, len(files)):
        raise InputError(
            reason, where=str(federation), expected=f"more than {2 * config.dropouts + config.colluders} merchants",
            hint="fewer --set dropouts or --set colluders, or trust = 'local'",
        )  # fmt: skip
    refusals = {one.name: _refusal_of_terms(one.privacy, config) for one in files.values()}
    _enough(files, config, {name: reason for name, reason in refusals.items() if reason})


def _refusal_of_terms(policy: Policy, config: RunConfig) -> str | None:
    if config.trust == "local":
        return None
    reason = policy.refusal_of_terms(dropouts=config.dropouts, colluders=config.colluders)
    return f"policy: {reason}" if reason else None


def _enough(files: Mapping[Path, MerchantFile], config: RunConfig, reasons: Mapping[str, str]) -> None:
    """Refuse a run that these merchants, who would decline for these reasons, leave without any who could take part."""
    secure = config.trust == "secure-aggregation"
    if len(reasons) <= (config.dropouts if secure else len(files) - 1):
        return
    raise InputError(
        f"{len(reasons)} of {len(files)} merchants would decline: {_listed(reasons)}",
        where=str(next(path for path, settings in files.items() if settings.name in reasons)),
        expected=f"at most dropouts = {config.dropouts} who decline" if secure else "at least one who takes part",
        hint="--set asks for something else; their [privacy] and ledgers decide what they accept",
    )


def merchant_files(federation: Path) -> dict[Path, MerchantFile]:
    """Every `merchant.toml` of a federation folder, in the order of the folders.

    Raises:
        InputError: one is bad, or its name is there twice.
    """
    paths = [folder / MERCHANT_FILE for folder in merchant_folders(federation)]
    files = {path: read_merchant_file(path) for path in paths}
    names = [one.name for one in files.values()]
    for path, settings in files.items():
        if names.count(settings.name) > 1:
            raise InputError(f"the name {settings.name!r} is there twice", where=str(path))
    return files


def _declined(policies: Mapping[str, Policy], config: RunConfig, ledgers: Path | None = None) -> Iterator[dict[str, str]]:
    """For each of a run's first requests who would decline it and why: the statistics that it asks for, then round 1."""
    before: dict[str, list[Release]] = {name: [] for name in policies}
    if ledgers is not None:
        paths = {name: ledgers / f"{name}{SUFFIX}" for name in policies}
        before = {name: Ledger(path, policies[name].delta, head_file(path)).releases() for name, path in paths.items()}
    for request in _first_requests(config):
        reasons = {}
        for name, policy in policies.items():
            if reason := _refusal(policy, config, before[name], request):
                reasons[name] = reason
            else:
                before[name].append(request)
        yield reasons


def _first_requests(config: RunConfig) -> Iterator[Release]:
    plan, part, now = plan_noise(config), config.part(1), datetime.now(UTC).isoformat(timespec="seconds")
    if plan.complements is not None:
        yield Release("", -1, "complements", plan.complements, 1.0, 1, 1.0, config.unit, config.delta, time=now)
    if plan.histogram is not None:
        yield Release("", 0, "histogram", plan.histogram, 1.0, 1, 1.0, config.unit, config.delta, time=now)
    rate, steps = config.sample_rate_of(part), config.local_steps
    yield Release("", 1, "dp-sgd", plan.of(part), rate, steps, config.clip_norm, config.unit, config.delta, time=now)


def _refusal(policy: Policy, config: RunConfig, before: list[Release], request: Release) -> str | None:
    """What a merchant with this policy and ledger answers, or None if it takes part."""
    if reason := _refusal_of_terms(policy, config):
        return reason
    reason = policy.refusal(
        unit=request.unit, noise_multiplier=request.noise_multiplier, clip_norm=request.clip_norm, delta=request.delta
    )
    return f"policy: {reason}" if reason else over_budget(policy, before, request)


def _listed(reasons: Mapping[str, str]) -> str:
    names: dict[str, list[str]] = defaultdict(list)
    for name, reason in reasons.items():
        names[reason].append(name)
    said = [f"{_some(who)} ({reason})" for reason, who in names.items()]
    return _some(said)


def _some(values: list[str]) -> str:
    more = f" and {len(values) - SHOWN:,} more" if len(values) > SHOWN else ""
    return ", ".join(values[:SHOWN]) + more


def check_merchant(folder: Path, *, strict: bool = False) -> tuple[MerchantFile, MerchantData]:
    """Read a merchant folder on its own.

    Raises:
        InputError: the first thing that is wrong; that nothing can be learned is, where it holds of every objective.
    """
    path = folder / MERCHANT_FILE
    settings = read_merchant_file(path)
    settings.privacy.check_delta(where=str(path))
    data = load_merchant(folder, settings.data, strict=strict)
    reasons = [nothing_to_learn(data.histories, objective) for objective in NEEDS]
    if None not in reasons:
        raise InputError(f"{reasons[0]}", where=str(folder), hint=A_BASKET)
    return settings, data


def checked(federation: Path, config: RunConfig | None, *, strict: bool = False) -> Iterator[tuple[str, MerchantData]]:
    """Merchant after merchant: a run that only wants to know never holds the data of two."""
    if config is not None and config.trust == "secure-aggregation":
        _check_terms(federation, config)
    objectives = config.objective.split("+") if config else ["next-item"]
    learn_nothing: dict[str, list[str | None]] = {name: [] for name in objectives}
    for path, settings in merchant_files(federation).items():
        if config is not None and (reason := _too_small(settings.name, settings.privacy, config)):
            raise InputError(reason, where=str(path), hint="or leave the merchant out")
        data = load_merchant(path.parent, settings.data, strict=strict)
        for objective, reasons in learn_nothing.items():
            reasons.append(nothing_to_learn(data.histories, objective))
        yield settings.name, data
    for objective, reasons in learn_nothing.items():
        if None not in reasons:
            hint = A_BASKET if config is None else NEEDS[objective]
            raise InputError(f"{reasons[0]}, at any merchant", where=str(federation / "merchants"), hint=hint)
    _check_central(load_central(federation, strict=strict), config or RunConfig(), federation / "central")


def _check_central(central: CentralData, config: RunConfig, where: Path) -> None:
    if config.objective in RATES:
        _check_ratings(central, config, where)
        return
    if "response" in config.objective:
        answers = _measured_answers(central, config)
        if answers.all() or not answers.any():
            found = f"of {len(answers):,} measured impressions after a first basket {int(answers.sum()):,} have a response"
            raise InputError(found, where=str(where), expected="some with and some without", hint=AN_IMPRESSION)
    share = config.calibration_share if config.calibrate else 0.0
    if config.objective == "basket":
        if not EvaluationSet.build(central, config.history, share, config.seed, asks=hidden_items)[0].users:
            raise InputError("no held-out user has a basket of two items", where=str(where), hint=JOINT)
        return
    if "next-item" not in config.objective:
        return
    evaluated, _ = EvaluationSet.build(central, config.history, share, config.seed)
    if not evaluated.users:
        nothing = [nothing_to_learn(group.histories) for group in central.groups]
        found = "no held-out user's last basket holds anything new" if None in nothing else f"{nothing[0]} among those held out"
        raise InputError(found, where=str(where), hint=A_BASKET)


def _check_ratings(central: CentralData, config: RunConfig, where: Path) -> None:
    """Constant ratings teach nothing, and an RMSE of 0 says so; a range that none is in is a mistake."""
    found = _measured(central, config, "rated")
    if not len(found):
        raise InputError("no measured user rated anything after a first basket", where=str(where), hint=A_RATING)
    inside = (found >= config.rating_min) & (found <= config.rating_max)
    if not inside.any():
        raise InputError(
            f"all {len(found):,} measured ratings are outside {config.rating_min:g} to {config.rating_max:g}: "
            f"they are {found.min():g} to {found.max():g}", where=str(where), hint="set rating_min and rating_max",
        )  # fmt: skip


def _measured_answers(central: CentralData, config: RunConfig) -> np.ndarray:
    """(impressions,) bool, the responses that a run is measured by: of central users who do not serve to calibrate."""
    return _measured(central, config, "shown").astype(bool)


def _measured(central: CentralData, config: RunConfig, labels: Literal["shown", "rated"]) -> np.ndarray:
    """(labels,) what users said, after a first basket, who do not serve to calibrate."""
    share = config.calibration_share if config.calibrate else 0.0
    found = [np.zeros(0)]
    for group in central.groups:
        measured = [n for n, user in enumerate(group.histories.user_ids) if not is_calibration(user, share, config.seed)]
        if (held := getattr(group.histories, labels)) is not None:
            said = held.take(np.array(measured, dtype=np.int64))
            found.append(said.answer[said.before > 0])
    return np.concatenate(found)


def nothing_to_learn(histories: Histories, objective: str = "next-item") -> str | None:
    """Why no user is an example for training of one objective, or None."""
    if objective in RATES:
        rated = histories.rated
        if rated is None or not len(rated):
            return "no user rated anything"
        return None if (rated.before > 0).any() else "no user rated anything after a first basket"
    if objective == "response":
        shown = histories.shown
        if shown is None or not len(shown):
            return "no user was shown anything"
        return None if (shown.before > 0).any() else "no user was shown anything after a first basket"
    bought = histories.targets()
    if objective == "basket":
        owner = np.repeat(np.arange(len(bought)), np.diff(bought.offsets))
        joint = (np.diff(owner) == 0) & (np.diff(bought.baskets) == 0)
        return None if joint.any() else "no user has a basket of two items"
    if not histories.baskets.any():
        return "no user has two baskets"
    user = np.repeat(np.arange(len(bought)), np.diff(bought.offsets))
    _, first = np.unique(user * (histories.items.max() + 1) + bought.items, return_index=True)
    return None if bought.baskets[first].any() else "no user has a second basket with anything new in it"


def _too_small(name: str, policy: Policy, config: RunConfig) -> str | None:
    for part in ("heads", "encoder"):
        lot = config.sample_rate_of(part) * policy.population
        if config.rounds_of(part) and lot < config.min_lot:
            rate = "sample_rate" if part == "heads" else "encoder_sample_rate"
            return (
                f"merchant {name} declares {policy.population:,} users: at {rate} {config.sample_rate_of(part):g} a step expects "
                f"{lot:.1f} of them; expected at least min_lot = {config.min_lot:g}; raise {rate}"
            )
    return None


def would_not_work(policies: Mapping[str, Policy], config: RunConfig) -> list[str]:
    """What a run with these settings would refuse or go without, that other settings would not."""
    small = [reason for name, policy in policies.items() if (reason := _too_small(name, policy, config))]
    declined: dict[str, str] = {}
    for reasons in _declined(policies, config):
        declined = {**reasons, **declined}
    return small + _would_decline(declined)


def _would_decline(reasons: Mapping[str, str]) -> list[str]:
    return [f"merchant {name} would decline: {reason}" for name, reason in reasons.items()]
