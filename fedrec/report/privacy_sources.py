"""Where a privacy report's facts lie: ledgers, policies, audit results, on disk.

A broken chain is a finding, not a failure: whatever can be read is read, and the state of
the chain goes with it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedrec.errors import InputError
from fedrec.merchant import MerchantFile, read_merchant_file
from fedrec.privacy import Ledger, LedgerError, Release, head_file, head_folder
from fedrec.privacy.ledger_chain import split
from fedrec.privacy.ledger_head import HEAD_SUFFIX, read_file

__all__ = ["Audit", "Chain", "Source", "find_sources", "read_ledger"]

SUFFIX = ".ledger.jsonl"
POLICY_FILE, SITE_FILE, AUDIT_FILES = "merchant.toml", "site.json", "audit*.json"
DEPLOYED = Path("state", "privacy")
"""Where a deployed merchant's node keeps its ledger."""
ANY_DELTA = 0.5
"""Reading a ledger checks its chain; the delta it is opened with plays no part in that."""


@dataclass(frozen=True)
class Chain:
    """The state of a ledger file.

    Attributes:
        path: the file; empty when the merchant has none yet.
        lines: whole lines in it.
        broken_line: number of the first line that does not follow from the ones before; None when intact.
        reason: what is wrong with that line.
        torn_end: the last line breaks off; nothing was released for it.
        set_aside: the file that holds torn ends of the past, or empty.
        head: the file that counts the lines, or empty where none was found: then none that is missing at the end is noticed.
    """

    path: str = ""
    lines: int = 0
    broken_line: int | None = None
    reason: str = ""
    torn_end: bool = False
    set_aside: str = ""
    head: str = ""

    @property
    def intact(self) -> bool:
        """Whether every line follows from the one before."""
        return self.broken_line is None


@dataclass(frozen=True)
class Audit:
    """What an attack on one mechanism found, from an `audit*.json`."""

    epsilon_lower: float
    confidence: float
    epsilon_claimed: float
    method: str
    noise: bool
    mechanism: str
    noise_origin: str

    @property
    def refuted(self) -> bool:
        """Whether the attack shows the claim to be false; with the noise off there is no claim."""
        return self.noise and self.epsilon_lower > self.epsilon_claimed

    @property
    def verdict(self) -> str:
        """The result in a few words."""
        if not self.noise:
            return "the noise was off: a check of the audit itself"
        return "THE CLAIM IS REFUTED" if self.refuted else "the claim stands"


@dataclass(frozen=True)
class Source:
    """All that is known about one merchant's releases.

    Attributes:
        releases: every line that can be read, oldest first.
        merchant_file: the merchant's policy, when there is one.
        simulation: True in the folder of a simulated run; None when the files do not say.
        seed: the simulation's seed, when it has one.
    """

    merchant: str
    releases: tuple[Release, ...]
    chain: Chain
    merchant_file: MerchantFile | None = None
    simulation: bool | None = None
    seed: int | None = None
    audits: tuple[Audit, ...] = ()


def find_sources(paths: list[Path]) -> list[Source]:
    """Every merchant under `paths`: ledgers, merchant folders, run folders, federation folders.

    Raises:
        InputError: nothing there, or a file that is not a ledger.
    """
    found: dict[str, Source] = {}
    for path in paths:
        for source in _sources(path):
            found.setdefault(source.chain.path or str(path) + source.merchant, source)
    if not found:
        raise InputError("no path was given", expected="a ledger, a merchant folder, a run folder or a federation folder")
    return list(found.values())


def read_ledger(path: Path, head: Path | None = None) -> tuple[tuple[Release, ...], Chain]:
    """All readable releases of a ledger file, oldest first, and the state of its chain.

    Args:
        head: the file of its head, which need not be there; the usual place when absent.

    Raises:
        InputError: the file cannot be read, or nothing in it is a ledger line.
    """
    head = head or head_file(path)
    content = read_file(path)
    if content is None and not head.is_file():
        raise InputError("no such file", where=str(path), expected="a ledger")
    lines, torn = split(content or b"")
    releases = [release for release in map(_release, lines) if release]
    if (lines and not releases) or (content and not lines and not path.name.endswith(SUFFIX)):
        raise InputError("no line of it is a ledger line", where=str(path), expected=f"a ledger, *{SUFFIX}")
    aside = path.with_suffix(".torn")
    chain = Chain(
        str(path.resolve()), len(lines), torn_end=bool(torn), set_aside=str(aside) if aside.exists() else "",
        head=str(head) if head.is_file() else "",
    )  # fmt: skip
    try:
        Ledger(path, ANY_DELTA, head if head.is_file() else None).releases()
    except LedgerError as error:
        line = re.search(r"line (\d+)$", error.where or "")
        chain = replace(chain, broken_line=int(line[1]) if line else 1, reason=error.found)
    return tuple(releases), chain


def _release(line: bytes) -> Release | None:
    """The release of one line, or None where there is none that an accountant could count."""
    try:
        release = Release(**json.loads(line)["release"])
        _ = release.event, release.event_alone
        texts = (release.run, release.mechanism, release.time, release.accepted)
        sound = 0 < release.delta < 1 and all(isinstance(text, str) for text in texts)
        _ = release.round + release.clip_norm + release.epsilon_after + release.members + release.dropouts + release.colluders
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError):
        return None
    return release if sound else None


def _sources(path: Path) -> list[Source]:
    if not path.exists():
        raise InputError("no such file or folder", where=str(path))
    if path.is_file():
        return [_ledger_source(path)]
    if (path / "merchants").is_dir():
        return [_merchant_source(folder) for folder in sorted((path / "merchants").iterdir()) if folder.is_dir()]
    if (path / POLICY_FILE).is_file():
        return [_merchant_source(path)]
    site = _site(path)
    ledgers = _ledgers(path) or (_ledgers_elsewhere(site) if site else [])
    if not ledgers:
        raise InputError(
            f"there is no *{SUFFIX}, {POLICY_FILE} or merchants/ in it",
            where=str(path),
            expected="a ledger, a merchant folder, a run folder or a federation folder",
        )
    return [_ledger_source(ledger, site) for ledger in ledgers]


def _ledgers(folder: Path) -> list[Path]:
    """In the folder, in a run's `privacy/`, or where a deployed merchant's node keeps it; also those whose head alone is left."""
    found: set[Path] = set()
    for place in (folder, folder / "privacy", folder / DEPLOYED):
        found.update(place.glob(f"*{SUFFIX}"))
        heads = head_folder(place.resolve()).glob(f"*{HEAD_SUFFIX}")
        found.update(place / f"{head.name.removesuffix(HEAD_SUFFIX)}{SUFFIX}" for head in heads)
    return sorted(found)


def _ledgers_elsewhere(site: dict[str, Any]) -> list[Path]:
    """The ledgers of a run whose merchants keep them in a folder of their own, over several runs."""
    if not site.get("ledgers"):
        return []
    policies = Path(str(site.get("federation"))).glob(f"merchants/*/{POLICY_FILE}")
    names = [read_merchant_file(path).name for path in sorted(policies)]
    return [path for name in names if (path := Path(site["ledgers"]) / f"{name}{SUFFIX}").is_file()]


def _merchant_source(folder: Path) -> Source:
    """A merchant folder; without a ledger nothing was released about its users."""
    settings = read_merchant_file(folder / POLICY_FILE)
    ledgers = _ledgers(folder)
    if len(ledgers) > 1:
        names = ", ".join(path.name for path in ledgers)
        raise InputError(f"there is more than one ledger: {names}", where=str(folder), hint="give the ledgers one by one")
    if not ledgers and settings.ledger.head:
        ledger = folder / DEPLOYED / f"{settings.name}{SUFFIX}"
        ledgers = [ledger] if head_file(ledger, folder / settings.ledger.head).is_file() else []
    if ledgers:
        return _ledger_source(ledgers[0])
    return Source(settings.name, (), Chain(), settings)


def _ledger_source(path: Path, site: dict[str, Any] | None = None) -> Source:
    home = path.resolve().parent
    site = site or _site(home) or _site(home.parent)
    name = path.name.removesuffix(SUFFIX)
    policy = _policy(home, name, site)
    settings = read_merchant_file(policy) if policy else None
    apart = policy.parent / settings.ledger.head if policy and settings and settings.ledger.head and not site else None
    releases, chain = read_ledger(path, head_file(path, apart))
    merchant = settings.name if settings else name
    return Source(
        merchant=merchant,
        releases=releases,
        chain=chain,
        merchant_file=settings,
        simulation=bool(site) or any(release.simulated for release in releases),
        seed=site.get("seed") if site else None,
        audits=tuple(one for path in sorted(home.glob(AUDIT_FILES)) if (one := _audit(path, merchant))),
    )


def _policy(home: Path, name: str, site: dict[str, Any] | None) -> Path | None:
    """The policy in the merchant folder of a ledger, or in the federation folder that a run names."""
    candidates = [folder / POLICY_FILE for folder in (home, home.parent, home.parent.parent)]
    if site and "federation" in site:
        federation = Path(site["federation"]) / "merchants"
        candidates += [federation / name / POLICY_FILE, *sorted(federation.glob(f"*/{POLICY_FILE}"))]
    for path in candidates:
        if path.is_file() and (not site or read_merchant_file(path).name == name):
            return path
    return None


def _site(folder: Path) -> dict[str, Any] | None:
    path = folder / SITE_FILE
    return _read_json(path) if path.is_file() else None


def _audit(path: Path, merchant: str) -> Audit | None:
    """A result beside a ledger, unless it names another merchant."""
    values = _read_json(path)
    if values.get("merchant", merchant) != merchant:
        return None
    try:
        lower, confidence, claimed = (float(values[name]) for name in ("epsilon_lower", "confidence", "epsilon_claimed"))
        words = (str(values.get(name, default)) for name, default in (("mechanism", "heads"), ("noise_origin", "seed")))
        return Audit(lower, confidence, claimed, str(values["method"]), values.get("noise") != "off", *words)
    except (KeyError, TypeError, ValueError):
        expected = "epsilon_lower, confidence, epsilon_claimed (numbers) and method"
        raise InputError("is not an audit's result", where=str(path), expected=expected) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read as JSON ({error})", where=str(path)) from None
    if not isinstance(value, dict):
        raise InputError("is not a JSON object", where=str(path))
    return value
