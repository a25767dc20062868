"""Curves and intervals as SVG text, readable on a light and on a dark page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fedrec.text import visible

__all__ = ["Series", "curves", "intervals"]

INK = "#7f8c8d"
COLOURS = (
    "#3b82c4",
    "#d9822b",
    "#3d9970",
    "#b5546f",
    "#8e6bbf",
    "#7a8b2e",
    "#c0a02e",
    "#4aa5a5",
    "#a35d3d",
    "#5f6caf",
    "#cf6db0",
    "#708090",
)

Series = tuple[Sequence[float], Sequence[float]]


def curves(
    series: Mapping[str, Series],
    *,
    x: str,
    y: str,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    levels: Mapping[str, float] | None = None,
    decorate: Callable[[Axes], None] | None = None,
    whole: bool = True,
) -> str:
    """Lines over rounds, with intervals as bands and references as dashed levels, as an `<svg>` element.

    Args:
        series: name to x and y values.
        bands: name to lower and upper values at the same x.
        levels: name to the height of a horizontal line.
        whole: whether x counts something.
    """
    with _drawn() as (axes, svg):
        lines: list[Line2D] = []
        for number, (name, (xs, ys)) in enumerate(series.items()):
            colour = COLOURS[number % len(COLOURS)]
            lines += axes.plot(xs, ys, marker="o", markersize=3, linewidth=1.6, color=colour)
            if bands and name in bands:
                axes.fill_between(xs, *bands[name], color=colour, alpha=0.18, linewidth=0)
        for number, value in enumerate((levels or {}).values(), len(series)):
            lines.append(axes.axhline(value, linestyle="--", linewidth=1.2, color=COLOURS[number % len(COLOURS)]))
        if decorate:
            decorate(axes)
        axes.set_xlabel(x, color=INK)
        axes.set_ylabel(y, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=whole))
        if len(lines) > 1:
            ncols, most = (1, 64) if len(lines) < 6 else (4, 24)
            shown = [visible(name) for name in (*series, *(levels or {}))]
            names = [name if len(name) <= most else f"{name[: most - 3]}..." for name in shown]
            axes.legend(lines, names, fontsize=7.5, labelcolor=INK, frameon=False, ncols=ncols, loc="best")
    return svg[0]


def intervals(rows: Sequence[tuple[str, float, float, float]], *, x: str) -> str:
    """A mean with its interval for each name, the first on top, as an `<svg>` element.

    Args:
        rows: name, mean, low and high.
    """
    with _drawn() as (axes, svg):
        places = range(len(rows), 0, -1)
        means = [mean for _, mean, _, _ in rows]
        ends = [[mean - low for _, mean, low, _ in rows], [high - mean for _, mean, _, high in rows]]
        axes.errorbar(means, list(places), xerr=ends, fmt="o", markersize=5, linewidth=1.6, capsize=3, color=COLOURS[0])
        axes.set_yticks(list(places), [visible(name) for name, *_ in rows])
        axes.set_xlabel(x, color=INK)
    return svg[0]


@contextmanager
def _drawn() -> Iterator[tuple[Axes, list[str]]]:
    """Axes to draw on, and a list that holds the `<svg>` element afterwards."""
    # Names are text: no formula between two dollars, and no warning of glyphs that the page's own font may have.
    style = matplotlib.rc_context({
        "svg.fonttype": "none", "svg.hashsalt": "fedrec", "font.family": "sans-serif", "font.size": 9, "text.parse_math": False,
    })  # fmt: skip
    with style, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(7.2, 3.1), layout="constrained")
        axes, out = figure.subplots(), list[str]()
        yield axes, out
        axes.tick_params(colors=INK)
        axes.grid(alpha=0.25, color=INK)
        for spine in axes.spines.values():
            spine.set_color(INK)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    # A document inside a page: no prologue, and it scales with the page.
    svg = svg[svg.index("<svg") :]
    out.append(re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[^"]*"(?=[^>]*viewBox)', r"\1", svg, count=2))
