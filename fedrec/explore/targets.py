"""The policy that is to be evaluated, as a log tells it: the probability of what was shown, and of everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from fedrec.errors import InputError
from fedrec.explore.log import ITEM, POSITION, PROPENSITY, REQUEST, REWARD, LogTable

__all__ = ["Rows", "Target"]

SUM = 1e-3
"""How far from 1 the probabilities of a place may add up: they may be rounded, or drawn by simulation."""


@dataclass(frozen=True)
class Rows:
    """What was shown, in numbers from 0.

    Attributes:
        frame: the rows of the log.
        request, cell, item: (rows,); a cell is a stratum at a position.
        propensity, reward: (rows,).
        place: (rows,) from 0, in logs of whole lists, where a propensity is given the places above; None where rows stand alone.
        stratum: (cells,).
        cells: what each cell is called.
        items: item ids.
    """

    frame: pd.DataFrame
    request: np.ndarray
    cell: np.ndarray
    item: np.ndarray
    propensity: np.ndarray
    reward: np.ndarray
    place: np.ndarray | None
    stratum: np.ndarray
    cells: tuple[str, ...]
    items: tuple[str, ...]

    @classmethod
    def of(cls, table: LogTable, by: Sequence[str]) -> Rows:
        """The rows of a log; `by` names the columns of its strata.

        Raises:
            InputError: a column of `by` is missing, or a request or position is none, by its row.
        """
        table.require(by)
        frame = table.frame
        parts = [frame[name].map(str) for name in by]
        names = parts[0].str.cat(parts[1:], sep=" ") if parts else pd.Series("", index=frame.index)
        place = frame[POSITION].map(str) if POSITION in frame else pd.Series("1", index=frame.index)
        stratum, _ = pd.factorize(names, sort=True)
        cell, cells = pd.factorize((names + " position " + place).str.strip(), sort=True)
        item, items = pd.factorize(frame[ITEM], sort=True)
        request, ordinal = np.arange(len(frame)), None
        if REQUEST in frame:
            ids = table.filled(REQUEST, "a request, or no such column")
            request, _ = pd.factorize(ids)
            if POSITION in frame:
                ordinal = table.whole(POSITION, 1) - 1
        of_cell = np.zeros(len(cells), dtype=np.int64)
        of_cell[cell] = stratum
        propensity, reward = (frame[name].to_numpy(np.float64) for name in (PROPENSITY, REWARD))
        return cls(frame, request, cell, item, propensity, reward, ordinal, of_cell, tuple(cells), tuple(items))

    def take(self, kept: np.ndarray) -> Rows:
        """Some of the rows; cells and items keep their numbers."""
        request = np.unique(self.request[kept], return_inverse=True)[1]
        return Rows(
            self.frame[kept], request, self.cell[kept], self.item[kept], self.propensity[kept], self.reward[kept],
            None if self.place is None else self.place[kept], self.stratum, self.cells, self.items,
        )  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A policy over the rows of another one.

    Attributes:
        probability: (rows,) of what was shown.
        choices: (groups, items) the probability of every item; None where only what was shown is known.
        group: (rows,) which of the groups a row has.
        cell: (groups,).
        varies: whether its own propensities of an item at a place were not always the same, so that how often it showed the
            item stands for them.
    """

    probability: np.ndarray
    choices: csr_array | None = None
    group: np.ndarray | None = None
    cell: np.ndarray | None = None
    varies: bool = False

    @classmethod
    def of_policy(cls, rows: Rows, shown: Rows) -> Target:
        """The policy that chose `shown`, over `rows`.

        Where it gave an item the same propensity each time, that is its probability. Where it did not, since it went on learning
        or looked at who asks, how often it showed the item is: it counts as a policy that does neither.

        Raises:
            InputError: it shows nothing in a cell that `rows` have.
        """
        shape = len(rows.cells), len(rows.items)
        key = shown.cell * shape[1] + shown.item
        count = np.bincount(key, minlength=shape[0] * shape[1])
        total = np.bincount(shown.cell, minlength=shape[0])
        if len(missing := np.setdiff1d(rows.cell, shown.cell)):
            raise InputError(f"the policy to be evaluated shows nothing at {rows.cells[missing[0]]}", where="the log")
        low, high = np.full(len(count), np.inf), np.zeros(len(count))
        np.minimum.at(low, key, shown.propensity)
        np.maximum.at(high, key, shown.propensity)
        known = np.where(count > 0, high, 0.0).reshape(shape)
        same = ((high - low <= 1e-9) | (count == 0)).reshape(shape)
        still = same.all(axis=1) & (abs(known.sum(axis=1) - 1) <= SUM)
        chance = np.where(still[:, None], known, count.reshape(shape) / np.maximum(total, 1)[:, None])
        varies = not bool(same[np.unique(rows.cell)].all())
        return cls(chance[rows.cell, rows.item], csr_array(chance), rows.cell, np.arange(shape[0]), varies)

    @classmethod
    def of_column(cls, table: LogTable, rows: Rows) -> Target:
        """The column `target`.

        Raises:
            InputError: a value is neither a probability nor an object of them that add up to 1, by its row.
        """
        values = rows.frame["target"]
        if not values.map(lambda one: isinstance(one, dict)).any():
            return cls(LogTable(rows.frame, table.name, table.place).numbers("target", 0.0, 1.0))
        numbers = {item: number for number, item in enumerate(rows.items)}
        data, columns, ends = list[float](), list[int](), [0]
        for row, value in values.items():
            good = isinstance(value, dict) and all(_probability(one) for one in value.values())
            if not good or abs(sum(value.values()) - 1) > SUM:
                found = f"they add up to {sum(value.values()):g}" if good else f"found {value!r:.60}"
                where = table.at("target", int(str(row)))
                raise InputError(found, where=where, expected="an object of items and probabilities that add up to 1")
            data += value.values()
            columns += [numbers.setdefault(item, len(numbers)) for item in value]
            ends.append(len(data))
        shape = len(values), len(numbers)
        chance = csr_array((np.array(data, dtype=np.float64), columns, ends), shape=shape)
        group = np.arange(len(values))
        return cls(np.asarray(chance[group, rows.item]).ravel(), chance, group, rows.cell)

    def values(self, rewards: np.ndarray) -> np.ndarray | None:
        """v of a reward model's q (cells, items), (rows,); None where only what was shown is known."""
        if self.choices is None or self.group is None or self.cell is None:
            return None
        group = np.repeat(np.arange(self.choices.shape[0]), np.diff(self.choices.indptr))
        terms = self.choices.data * rewards[self.cell[group], self.choices.indices]
        found: np.ndarray = np.bincount(group, terms, self.choices.shape[0])[self.group]
        return found

    def unseen(self, rows: Rows) -> float | None:
        """The mean probability of what the log never shows in the row's cell; None where only what was shown is known."""
        shown = np.zeros((len(rows.cells), len(rows.items) if self.choices is None else self.choices.shape[1]))
        shown[rows.cell, rows.item] = 1.0
        found = self.values(1.0 - shown)
        return None if found is None else float(found.mean())


def _probability(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1
