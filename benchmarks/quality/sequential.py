"""GRU4Rec, the recurrent model of what comes next (Hidasi and Karatzoglou, CIKM 2018), as the library `cornac` has it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fedrec.data import Histories
from fedrec.errors import InputError
from fedrec.evaluation import Group

__all__ = ["Gru4Rec"]

MOST_SESSIONS = 256
"""Users side by side in a step; a quarter of them where there are fewer."""


class Gru4Rec:
    """Fitted on users' whole sequences; the order inside a basket, which means nothing, is drawn.

    The library's settings (one layer of 100, cross-entropy against 2,048 sampled items) but for the number of users in a step,
    which it cannot have above that of the users.

    Args:
        histories: by central items, of which there are `items`.

    Raises:
        InputError: the package is not installed.
    """

    def __init__(self, histories: Sequence[Histories], items: int, epochs: int, seed: int) -> None:
        try:
            from cornac.data import SequentialDataset
            from cornac.models import GRU4Rec
        except ModuleNotFoundError:
            raise InputError("the package cornac is not installed", hint="pip install 'fedrec[benchmarks]'") from None
        known = OrderedDict((item, item) for item in range(items))
        data = SequentialDataset.build(list(_events(histories, seed)), fmt="SIT", global_iid_map=known, seed=seed)
        together = min(MOST_SESSIONS, max(2, data.num_sessions // 4))
        self.model: Any = GRU4Rec(n_epochs=epochs, batch_size=together, seed=seed, device="cpu")
        self.model.fit(data)

    def scores(self, users: Group) -> np.ndarray:
        """(users, items) of the group's items, from what the users' histories pool."""
        found = []
        for items, valid in zip(users.items, users.valid, strict=True):
            found.append(np.asarray(self.model.score(0, items[valid].tolist()), dtype=np.float32)[users.positions])
        return np.stack(found)


def _events(histories: Sequence[Histories], seed: int) -> Iterator[tuple[int, int, int]]:
    """User, item and basket of each event, in time order."""
    rng = np.random.default_rng(seed)
    number = 0
    for one in histories:
        for user in range(len(one)):
            items, baskets = one.of(user)
            for place in np.lexsort((rng.random(len(items)), baskets)).tolist():
                yield number, int(items[place]), int(baskets[place])
            number += 1
