"""Curves as SVG text, readable on a light and on a dark page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["Series", "curves"]

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
) -> str:
    """Lines over rounds, with intervals as bands and references as dashed levels, as an `<svg>` element.

    Args:
        series: name to x and y values.
        bands: name to lower and upper values at the same x.
        levels: name to the height of a horizontal line.
    """
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fedrec", "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(7.2, 3.1), layout="constrained")
        axes = figure.subplots()
        for number, (name, (xs, ys)) in enumerate(series.items()):
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(xs, ys, marker="o", markersize=3, linewidth=1.6, color=colour, label=name)
            if bands and name in bands:
                axes.fill_between(xs, *bands[name], color=colour, alpha=0.18, linewidth=0)
        for number, (name, value) in enumerate((levels or {}).items()):
            axes.axhline(value, linestyle="--", linewidth=1.2, color=COLOURS[(len(series) + number) % len(COLOURS)], label=name)
        if decorate:
            decorate(axes)
        axes.set_xlabel(x, color=INK)
        axes.set_ylabel(y, color=INK)
        axes.tick_params(colors=INK)
        axes.grid(alpha=0.25, color=INK)
        for spine in axes.spines.values():
            spine.set_color(INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        many = len(series) + len(levels or {})
        if many > 1:
            axes.legend(fontsize=7.5, labelcolor=INK, frameon=False, ncols=1 if many < 6 else 4, loc="best")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    # A document inside a page: no prologue, and it scales with the page.
    svg = svg[svg.index("<svg") :]
    return re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[^"]*"(?=[^>]*viewBox)', r"\1", svg, count=2)
