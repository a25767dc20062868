"""The same composition in fewer mechanisms: exactly, and then by rounding towards less privacy.

What an accountant takes grows with the number of *different* mechanisms, and a server chooses the
noise and the rate of every line of a ledger.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fedrec.privacy.events import SampledGaussian

__all__ = ["MOST_SAMPLED", "few", "merge"]

MOST_SAMPLED = 16
"""Most different pairs of noise and rate under 1 that a costly accountant composes: it takes 0.05 s (PRV)
to 0.3 s (PLD) a pair."""
FINEST = 2.0**-10
"""Width of the finest cell that pairs are rounded in, in the logarithms of noise and rate."""

_Cell = tuple[int, int]


def merge(events: Sequence[SampledGaussian]) -> list[SampledGaussian]:
    """The same composition, exactly: full steps as one Gaussian, equal sampled steps added up, sorted.

    Full steps are sqrt(steps)/sigma-Gaussian DP and compose to the root of the sum of squares, whatever
    noise each has (Dong, Roth, Su, 2022, corollary 3.3). Composition does not depend on the order.

    Raises:
        ValueError, ArithmeticError: more was released than a float holds.
    """
    full: list[float] = []
    steps: dict[tuple[float, float], int] = {}
    for event in events:
        if event.sample_rate == 1:
            full.append(math.sqrt(event.steps) / event.noise_multiplier)
        else:
            key = (event.noise_multiplier, event.sample_rate)
            steps[key] = steps.get(key, 0) + event.steps
    gaussian = [SampledGaussian(1 / math.hypot(*full))] if full else []
    return sorted([*gaussian, *(SampledGaussian(*pair, count) for pair, count in steps.items())], key=_order)


def few(events: Sequence[SampledGaussian]) -> list[SampledGaussian]:
    """An upper bound on the composition of `events` with at most `MOST_SAMPLED` sampled mechanisms, and one full one.

    So few are left as they are. More are put in the cells of a grid, and all steps of a cell count with its
    least noise and largest rate. That is never less: less noise with fresh noise on top, and a larger sample
    with a part of it left out, give the mechanism back (post-processing; joint convexity). The grid is
    the finest with so few cells. Each grid's cells are halves of the next one's, so adding an event never
    makes another count for less. Linear in the number of events.

    Raises:
        ValueError, ArithmeticError: as `merge`.
    """
    merged = merge(events)
    sampled = [event for event in merged if event.sample_rate < 1]
    if len(sampled) <= MOST_SAMPLED:
        return merged
    cells = _joined((_cell(event), event) for event in sampled)
    while len(cells) > MOST_SAMPLED:
        cells = _joined(((noise >> 1, rate >> 1), event) for (noise, rate), event in cells.items())
    return sorted([*cells.values(), *(event for event in merged if event.sample_rate == 1)], key=_order)


def _order(event: SampledGaussian) -> tuple[float, float]:
    return event.noise_multiplier, event.sample_rate


def _cell(event: SampledGaussian) -> _Cell:
    noise, rate = (math.floor(math.log(value) / FINEST) for value in _order(event))
    return noise, rate


def _joined(placed: Iterable[tuple[_Cell, SampledGaussian]]) -> dict[_Cell, SampledGaussian]:
    cells: dict[_Cell, SampledGaussian] = {}
    for cell, event in placed:
        if known := cells.get(cell):
            event = SampledGaussian(
                min(known.noise_multiplier, event.noise_multiplier),
                max(known.sample_rate, event.sample_rate),
                known.steps + event.steps,
            )
        cells[cell] = event
    return cells
