"""Lists of which some places are given by chance, with the exact probability of each place given the places above it.

At the place t the next item of the plain list is shown with probability `1 - s_t`; else the place explores: with probability
`FLOOR` it goes to any item that is left, all alike, and otherwise to the item with the largest value, each value drawn
from what is believed of it (Thompson 1933). So of the items that are left,

    P(j) = (1 - s_t) [j is next] + s_t (FLOOR / left + (1 - FLOOR) T(j)),    T(j) = P(V_j > V_i for all i)

The `s_t` grow in a straight line from share^2 at the first place to share (2 - share) at the last, and their mean is the share:
what is tried at the top pushes the best items down, and at the bottom only those that are worth least.

Values are drawn independently and anew for each place, V_j ~ N(mean_j, sd_j^2), because then

    T(j) = integral of phi_j(x) prod_{i != j} Phi_i(x) dx

is an integral in one dimension, which the trapezoid rule gives to about eight digits: its error falls exponentially for smooth
functions that vanish at both ends (Trefethen and Weideman, SIAM Review 2014). No propensity is zero: there is the floor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import log_ndtr

__all__ = ["FLOOR", "Thompson", "draw_places", "shares_of"]

FLOOR = 0.1
"""Share of the exploring places that go to any item."""
REACH = 7.0
"""Standard deviations beyond which a value is not looked for: 1e-12 of it is there."""
FINEST = 0.05
"""Smallest standard deviation, as a share of the largest: the grid has to be fine enough for it."""
SMALLEST = 1e-3
"""The same, as a share of the range of the means."""
STEP = 1 / 3
"""Of the grid, in the smallest standard deviation. The largest of n normal values varies less than one of them, by
sqrt(2 log n) (Fisher and Tippett 1928), so where many may be the largest the grid is finer by that."""
BLOCK = 256
"""Items whose probabilities are computed at once."""


class Thompson:
    """Which of some independent normal values is the largest, while items are taken away one by one.

    Args:
        mean, sd: (items,) of their values; a standard deviation counts as at least `FINEST` of the largest.
        most: how many items will be taken away at most.
    """

    def __init__(self, mean: np.ndarray, sd: np.ndarray, most: int) -> None:
        least = max(FINEST * float(sd.max()), SMALLEST * float(np.ptp(mean)), 1e-9)
        self.mean, self.sd = mean.astype(np.float64), np.maximum(sd, least).astype(np.float64)
        self.left = np.ones(len(mean), dtype=bool)
        low, high = self.mean - REACH * self.sd, float((self.mean + REACH * self.sd).max())
        # The largest is above the lower end of each: of the best one, or of the next once that is gone.
        start = float(np.sort(low)[::-1][min(most, len(low) - 1)])
        self.live = self.mean + REACH * self.sd > start
        sharper = max(1.0, float(np.sqrt(2 * np.log(self.live.sum()))))
        spacing = STEP / sharper * float(self.sd[self.live].min())
        self.grid = np.linspace(start, high, max(int((high - start) / spacing) + 2, 2))
        self.below = np.zeros(len(self.grid))  # (grid,) log P(all that are left are below)
        places = np.flatnonzero(self.live)
        for at in range(0, len(places), BLOCK):
            part = places[at : at + BLOCK]
            self.below += log_ndtr((self.grid[:, None] - self.mean[part]) / self.sd[part]).sum(axis=1)

    def draw(self, rng: np.random.Generator) -> int:
        """The item with the largest of newly drawn values."""
        values = self.mean + self.sd * rng.standard_normal(len(self.mean))
        return int(np.where(self.left, values, -np.inf).argmax())

    def take(self, item: int) -> float:
        """Away with an item that is left; its T before that."""
        self.left[item] = False
        if not self.live[item]:
            return 0.0
        at = (self.grid - self.mean[item]) / self.sd[item]
        self.below -= log_ndtr(at)
        height = float(np.exp(self.below - 0.5 * at**2).sum()) * (self.grid[1] - self.grid[0])
        return height / (self.sd[item] * np.sqrt(2 * np.pi))


def shares_of(share: float, places: int) -> np.ndarray:
    """(places,) how likely each place explores, of a list in which a share of them does.

    >>> shares_of(0.5, 3).tolist()
    [0.25, 0.5, 0.75]
    """
    slope = np.linspace(-1.0, 1.0, places) if places > 1 else np.zeros(places)
    found: np.ndarray = share * (1 + slope * (1 - share))
    return found


def draw_places(
    plain: Sequence[int], mean: np.ndarray, sd: np.ndarray, share: float, rng: np.random.Generator
) -> list[tuple[int, float]]:
    """A list as long as the plain one: each item with its propensity.

    Args:
        plain: the items as they are shown without exploring, of those that `mean` and `sd` tell.
        mean, sd: (items,) what is believed of the value of everything that may be shown; all of them have a place in the
            plain list, or it is as long as was asked for.
        share: of the places that explore, 0 to 1.
    """
    values, found = Thompson(mean, sd, len(plain)), list[tuple[int, float]]()
    for share_here in shares_of(share, len(plain)).tolist():
        following = next(item for item in plain if values.left[item])
        left = np.flatnonzero(values.left)
        if rng.random() >= share_here:
            item = following
        elif rng.random() < FLOOR:
            item = int(left[rng.integers(len(left))])
        else:
            item = values.draw(rng)
        tried = FLOOR / len(left) + (1 - FLOOR) * values.take(item)
        found.append((item, min(float((1 - share_here) * (item == following) + share_here * tried), 1.0)))
    return found
