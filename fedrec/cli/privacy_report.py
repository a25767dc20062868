"""`fedrec privacy report`: what was spent, from ledgers, for a person, a machine or a browser."""

from __future__ import annotations

import io
import json as json_module
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedrec.cli.console import Console, RenderableType, styled
from fedrec.cli.terminal import out, table
from fedrec.config import write_atomically

if TYPE_CHECKING:
    from fedrec.report.privacy_values import MerchantPrivacy, PrivacyReport

__all__ = ["report"]

HTML_NAME = "privacy-report.html"
MOST_ROWS = 30
"""Of a longer list of rounds the terminal shows both ends."""


class Format(StrEnum):
    """How the report is printed."""

    text = "text"
    json = "json"
    html = "html"


def report(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Ledgers, merchant, run or federation folders.")],
    format: Annotated[Format, typer.Option("--format", help="How to show it.")] = Format.text,
    target: Annotated[Path | None, typer.Option("--out", help=f"File to write; for html by default {HTML_NAME}.")] = None,
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """What was spent of each merchant's privacy budget. Exit status 1 if a ledger's chain is broken."""
    from fedrec.report.privacy_report import privacy_report, to_html, to_json
    from fedrec.report.privacy_sources import find_sources

    made = privacy_report(find_sources(paths))
    if json or format == Format.json:
        _write(json_module.dumps(to_json(made), indent=2) + "\n", target)
    elif format == Format.html:
        _write(to_html(made), target or Path(HTML_NAME))
    elif target:
        page = io.StringIO()
        _print(made, Console(file=page))
        _write(page.getvalue(), target)
    else:
        _print(made, out)
    if not made.intact:
        raise typer.Exit(1)


def _write(text: str, target: Path | None) -> None:
    if target is None:
        typer.echo(text, nl=False)
        return
    try:
        write_atomically(target, text.encode())
    except OSError as error:
        from fedrec.errors import InputError

        raise InputError(f"cannot be written ({error.strerror})", where=str(target)) from None
    out.print(f"report: {target}", soft_wrap=True)


def _print(made: PrivacyReport, console: Console) -> None:
    for part in _text(made):
        console.print(part)


def _text(made: PrivacyReport) -> Iterator[RenderableType]:
    """The report in the order of the page: words, then figures."""
    from fedrec.report.privacy_words import labelled, plain_words, when

    for label, sentence in plain_words(made):
        alarm = label in ("Warning", "This is a simulation")
        yield styled((f"{label}: ", "bold red" if alarm else "bold"), sentence)
    yield ""
    secure = any(merchant.secure_terms for merchant in made.merchants)
    alone = ["if all others collude"] if secure else []
    yield table(
        "Spent against the budget",
        ["merchant", "epsilon", *alone, "budget", "", "delta", "accountant", "unit", "declared users"],
        [
            [
                m.merchant, f"{m.epsilon:.3f}", *(f"{m.epsilon_alone:.3f}" for _ in alone), _number(m.budget), _bar(m.share),
                _number(m.delta), _accountants(m), m.unit, m.population or "",
            ]
            for m in made.merchants
        ],
    )  # fmt: skip
    alike = labelled(made)
    mechanisms = ((name, part) for name, merchant in alike.items() for part in merchant.mechanisms)
    yield table(
        "By mechanism, each alone (these do not add up to the total: composition costs less than the sum)",
        ["merchant", "mechanism", "releases", "steps", "epsilon", "accountant"],
        [[name, part.name, part.releases, part.steps, f"{part.epsilon:.3f}", part.accountant] for name, part in mechanisms],
    )
    columns = ["line", "run", "round", "mechanism", "sigma", *(["own share"] if secure else []), "rate", "steps", "epsilon"]
    for name, merchant in alike.items():
        yield table(f"By round: {name}", columns, _round_rows(merchant, secure))
    runs = ((name, part) for name, merchant in alike.items() for part in merchant.runs)
    yield table(
        "By run, each alone",
        ["merchant", "run", "first release", "last release", "releases", "epsilon"],
        [[name, part.name, when(part.first), when(part.last), part.releases, f"{part.epsilon:.3f}"] for name, part in runs],
    )
    left = [[merchant.merchant, _left(merchant)] for merchant in made.merchants]
    yield table("What still fits in the budget", ["merchant", "more rounds like the last"], left)
    yield from _attack(alike)
    yield table(
        "The ledger's chain (without its head, lines cut off at the very end leave an intact, shorter chain)",
        ["merchant", "chain", "lines", "head", "torn end"],
        [[m.merchant, _chain(m), m.chain.lines, "found" if m.chain.head else "none", _torn(m)] for m in made.merchants],
    )
    yield from _audit(made)


def _attack(alike: dict[str, MerchantPrivacy]) -> Iterator[RenderableType]:
    rows = []
    for name, merchant in alike.items():
        a = merchant.attacker
        found = (f"{100 * a.true_positives[r]:.2f}% ({100 * a.tighter_true_positives[r]:.2f}%)" for r in a.true_positives)
        rows.append([name, f"{a.odds:,.1f} times", f"{100 * a.certainty:.2f}%", *found, a.tighter_by])
    yield table(
        "What it means for an attacker who knows everything else: ceilings for every attack",
        ["merchant", "odds rise at most", "50:50 becomes", "found at 0.1% false alarms", "found at 1%", "(tighter) by"],
        rows,
    )


def _audit(made: PrivacyReport) -> Iterator[RenderableType]:
    from fedrec.report.privacy_words import audits

    rows = [
        [
            names, a.mechanism, f"{a.epsilon_lower:.3f}", f"{100 * a.confidence:g}%", f"{a.epsilon_claimed:.3f}",
            a.verdict, a.method,
        ]
        for names, a in audits(made)
    ]  # fmt: skip
    if rows:
        columns = ["merchants", "attacked", "epsilon at least", "confidence", "claimed", "verdict", "method"]
        yield table("The audit, by attack", columns, rows)


def _round_rows(merchant: MerchantPrivacy, secure: bool) -> list[list[Any]]:
    rows: list[list[Any]] = [
        [
            r.number, r.run, r.round, r.mechanism, f"{r.noise_multiplier:.4g}",
            *([f"{r.noise_multiplier_alone:.4g}"] if secure else []), f"{r.sample_rate:g}", r.steps,
            "" if r.epsilon is None else f"{r.epsilon:.3f}",
        ]
        for r in merchant.rounds
    ]  # fmt: skip
    if len(rows) > MOST_ROWS:
        rows[5 : 5 + len(rows) - MOST_ROWS] = [["...", *[""] * (len(rows[0]) - 1)]]
    return rows


def _bar(share: float | None) -> str:
    """Ten cells, filled as the budget is spent."""
    if share is None:
        return ""
    filled = min(10, round(10 * share))
    return f"{'#' * filled}{'.' * (10 - filled)} {100 * share:.0f}%"


def _accountants(merchant: MerchantPrivacy) -> str:
    others = (f"{name} {value:.3f}" for name, value in merchant.accountants.items() if name != merchant.accountant)
    return f"{merchant.accountant}{''.join(f' ({other})' for other in others)}"


def _left(merchant: MerchantPrivacy) -> str:
    if not merchant.chain.intact:
        return "none: the ledger is broken"
    if merchant.remaining is None:
        return "not known: no policy was found" if merchant.rounds else "nothing was released yet"
    left = merchant.remaining
    more = " or more" if left.capped else ""
    kind = f"{left.mechanism}, sigma {left.noise_multiplier:.4g}, rate {left.sample_rate:g}, steps {left.steps}"
    return f"{left.rounds:,}{more} ({kind})"


def _chain(merchant: MerchantPrivacy) -> str:
    if not merchant.chain.path:
        return "no ledger yet"
    return "intact" if merchant.chain.intact else f"BROKEN at line {merchant.chain.broken_line}: {merchant.chain.reason}"


def _torn(merchant: MerchantPrivacy) -> str:
    if merchant.chain.torn_end:
        return "the last line breaks off"
    return "set aside" if merchant.chain.set_aside else "none"


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:g}"
