"""How the places of the last lists that explored were given, so that feedback to them need not say it.

A propensity is computed from scores, which a shop may not see; so it stays here, and whoever reacts names the answer.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

from fedrec.data.feedback import FeedbackEvent
from fedrec.recommender.exploring import Place

__all__ = ["ANSWERS", "Shown"]

ANSWERS = 10_000
"""Most answers of a merchant that are remembered: 36 MB where each has 200 items, 5 MB where each has 10."""


class Shown:
    """One merchant's last answers that explored, in memory alone.

    Args:
        most: of how many answers; the oldest leave.
    """

    def __init__(self, most: int = ANSWERS) -> None:
        self._most = most
        self._answers: OrderedDict[str, tuple[tuple[str, ...], array[float]]] = OrderedDict()

    def keep(self, request_id: str, items: Sequence[str], places: Sequence[Place]) -> None:
        """Remember an answer: its items, and how the place of each was given, in the same order."""
        if not places:
            return
        self._answers[request_id] = tuple(items), array("d", [place.propensity for place in places])
        if len(self._answers) > self._most:
            self._answers.popitem(last=False)

    def filled(self, event: FeedbackEvent) -> FeedbackEvent:
        """The event with the position and the propensity of its item in the answer that it names, where it lacks them.

        What is not remembered stays empty, and so does the propensity where the event says that the item stood elsewhere.
        """
        items, propensities = self._answers.get(event.request_id, ((), ()))
        if event.item_id not in items:
            return event
        at = items.index(event.item_id)
        position = event.position or str(at + 1)
        known = str(propensities[at]) if position == str(at + 1) else ""
        return replace(event, position=position, propensity=event.propensity or known)
