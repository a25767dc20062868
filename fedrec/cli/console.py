"""Where the commands print: consoles that show what others wrote and obey none of it.

A plain string is shown character by character, whoever wrote it. Styles and line breaks are ours, and come in as
what `styled`, `stacked` and `table` make. No other module of the program imports Rich.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from rich.console import Console as RichConsole
from rich.console import ConsoleDimensions, Group, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.protocol import is_renderable
from rich.table import Table
from rich.text import Text

from fedrec.text import visible

__all__ = [
    "Console", "Progress", "RenderableType", "TaskID", "err", "out", "progress_bars", "stacked", "styled", "table", "waiting_for",
]  # fmt: skip

UNBOUNDED = 1_000_000
"""Columns of what is no terminal: nobody's lines are as long, so none is wrapped."""


class Console(RichConsole):
    """Rich's console with markup, emoji codes and highlighting off; where it is no terminal, nothing is wrapped or cut."""

    def __init__(self, file: IO[str] | None = None, stderr: bool = False) -> None:
        super().__init__(file=file, stderr=stderr, markup=False, emoji=False, highlight=False)

    @property  # type: ignore[misc]
    def size(self) -> ConsoleDimensions:
        """Columns and lines."""
        known = super().size
        return known if self.is_terminal else ConsoleDimensions(UNBOUNDED, known.height)

    def print(self, *objects: Any, **settings: Any) -> None:
        """See Rich; what it would print by its `str` is a string here too."""
        super().print(*(one if is_renderable(one) else str(one) for one in objects), **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Every string that is printed passes here: lines, cells, titles."""
        return super().render_str(visible(text), **settings)


out = Console()
err = Console(stderr=True)


def styled(*parts: str | tuple[str, str]) -> Text:
    """A line of strings, some of them with a style."""
    pairs = (part if isinstance(part, tuple) else (part, "") for part in parts)
    return Text.assemble(*((visible(text), style) for text, style in pairs))


def stacked(*lines: str) -> Text:
    """Lines under each other in one cell."""
    return Text("\n".join(map(visible, lines)))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, lines: bool = False) -> RenderableType:
    """A table whose first column is text and whose others are numbers.

    Args:
        lines: whether there is a line between rows.
    """
    made = Table(show_lines=lines)
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        made.add_row(*(value if isinstance(value, Text) else str(value) for value in row))
    # Above it, not in it: Rich breaks a table's title at the table's width.
    return Group(styled((title, "italic")), made) if title else made


def progress_bars(left: bool = False) -> Progress:
    """Bars on standard error; no bars, and lines alone, where that is no terminal.

    Args:
        left: whether they say how much time is left.
    """
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=28), MofNCompleteColumn(), TimeElapsedColumn(),
    ]  # fmt: skip
    if left:
        columns += [TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False)]
    return Progress(*columns, console=err, speed_estimate_period=600, disable=not err.is_terminal)


@contextmanager
def waiting_for(what: str) -> Iterator[Callable[[str], None]]:
    """Show what is waited for; the value changes it."""
    with err.status(styled(what), spinner="line") as status:
        yield lambda now: status.update(styled(now))
