"""`fedrec explain`: why these items are in a list, as bars, as JSON, or as a page."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedrec.cli.asking import Folder, History, Json, K, Merchant, Query, Repeats, Times, User, comma_separated, times_of
from fedrec.cli.terminal import out, print_json, quiet_models, styled

if TYPE_CHECKING:
    from fedrec.recommender import Answer
    from fedrec.recommender.reasons import Reasons

__all__ = ["View", "explain", "show_reasons"]

BAR = 24
"""Columns of the longest bar."""
BLOCKS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
NAME = 54
"""Characters of a share's name."""
LONGEST = 12
"""Shares of an item that the terminal shows, the largest by size."""
COLOURS = {"history": "cyan", "search": "cyan", "query": "magenta", "popularity": "yellow", "own layer": "green", "base": "dim"}
HOW = {"strong": 3, "some": 2, "slight": 1}


class View(StrEnum):
    """Who is to read it."""

    staff = "staff"
    shopper = "shopper"


def explain(
    path: Folder,
    history: History = None,
    times: Times = None,
    user: User = None,
    query: Query = None,
    items: Annotated[str | None, typer.Option(help="Explain these item ids, separated by commas, and not the best.")] = None,
    merchant: Merchant = None,
    k: K = 10,
    repeats: Repeats = False,
    words: Annotated[bool, typer.Option("--words", help="Also which words of each item's text carry it.")] = False,
    view: Annotated[View, typer.Option(help="Exact numbers for staff, or what a shopper may see.")] = View.staff,
    html: Annotated[Path | None, typer.Option(help="Write a page there.")] = None,
    json: Json = False,
) -> None:
    """Say why items are recommended: the share of each item of the history, of words and of popularity in the score."""
    quiet_models()
    from fedrec.recommender import Recommender

    recommender = Recommender.load(path)
    answer = recommender.explain(
        None if history is None else comma_separated(history), user, None if times is None else times_of(times), k, query,
        None if items is None else comma_separated(items), repeats, merchant, words,
    )  # fmt: skip
    texts = dict(zip(recommender.catalogue.item_ids, recommender.catalogue.texts, strict=True))
    if html is not None:
        from fedrec.report.reasons_report import write_reasons

        write_reasons(html, explained(answer, view, texts))
    show_reasons(answer, view, texts, json)
    if html is not None and not json:
        out.print(f"page: {html}", soft_wrap=True)


def show_reasons(answer: Answer, view: View, texts: dict[str, str], json: bool) -> None:
    """A list with the reasons of each item, what made it and what is to be said of it."""
    if json:
        print_json(explained(answer, view, texts))
        return
    for one in answer.reasons:
        _show(one, view, texts)
    out.print(f"source: {answer.source}", style="dim", soft_wrap=True)
    for note in answer.notes:
        out.print(note, style="yellow", soft_wrap=True)


def explained(answer: Answer, view: View, texts: dict[str, str]) -> dict[str, Any]:
    """An answer's reasons for JSON and for the page; the share of an item of the history has its text."""
    found = []
    for one in answer.reasons:
        said = one.for_staff() if view is View.staff else one.for_shopper()
        shares = [{**share, "text": texts[share["name"]] if share["kind"] == "history" else ""} for share in said["shares"]]
        found.append({**said, "text": texts[one.item_id], "shares": shares})
    return {"items": found, "source": answer.source, "notes": list(answer.notes), "view": view.value}


def _show(one: Reasons, view: View, texts: dict[str, str]) -> None:
    score = f"  {one.score:.3f}" if view is View.staff else ""
    out.print(styled((one.item_id, "bold"), (score, "dim"), "  ", *_marked(one, texts)), soft_wrap=True)
    if one.sentence:
        out.print(styled("  ", (one.sentence, "italic")), soft_wrap=True)
    if view is View.shopper:
        for told in one.told:
            bar = "■" * HOW[told.how]
            out.print(
                styled("  ", (f"{bar:<4}", COLOURS[told.kind]), f"{told.how:<7}", _name(told.kind, told.name, texts)),
                soft_wrap=True,
            )
        return
    sizes = sorted((share for share in one.shares if share.kind != "base"), key=lambda share: -abs(share.value))
    most, shown = abs(sizes[0].value) if sizes else 0.0, set(map(id, sizes[:LONGEST]))
    for share in one.shares:
        base = share.kind == "base"  # it is the same for all items and would dwarf the others
        if base or id(share) in shown:
            bar, colour = "" if base else _bar(share.value, most), "red" if share.value < 0 else COLOURS[share.kind]
            name = _name(share.kind, share.name, texts)
            out.print(styled(f"  {share.value:>9.4f} ", (f"{bar:<{BAR}}", colour), " ", name), soft_wrap=True)
    if rest := [share.value for share in sizes[LONGEST:]]:
        out.print(styled(f"  {sum(rest):>9.4f} ", " " * BAR, (f" {len(rest)} smaller shares together", "dim")), soft_wrap=True)


def _marked(one: Reasons, texts: dict[str, str]) -> list[str | tuple[str, str]]:
    """Its text, the words that carry it underlined."""
    if one.words is None:
        return [texts[one.item_id]]
    text, parts, last = texts[one.item_id], list[str | tuple[str, str]](), 0
    for start, end in one.words.marked:
        parts += [text[last:start], (text[start:end], "bold underline")]
        last = end
    return [*parts, text[last:]]


def _bar(value: float, most: float) -> str:
    eighths = round(8 * BAR * abs(value) / most) if most else 0
    return "█" * (eighths // 8) + BLOCKS[eighths % 8]


def _name(kind: str, name: str, texts: dict[str, str]) -> str:
    text = texts.get(name, name) if kind == "history" else f"{kind} {name}".strip()
    return text if len(text) <= NAME else f"{text[: NAME - 1]}…"
