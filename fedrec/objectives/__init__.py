"""What a model can be trained for, and the records that say what is asked of each user."""

from fedrec.objectives.basket import Basket
from fedrec.objectives.examples import Examples, merged
from fedrec.objectives.joint import Lot
from fedrec.objectives.next_item import NextItem
from fedrec.objectives.objective import Asked, Known, Objective
from fedrec.objectives.rating import Rating
from fedrec.objectives.records import Records, build_examples, build_records
from fedrec.objectives.response import Response
from fedrec.objectives.several import Several, parts_of

__all__ = [
    "OBJECTIVES", "Asked", "Examples", "Known", "Lot", "Objective", "Records", "Several", "build_examples", "build_records",
    "merged", "parts_of",
]  # fmt: skip

_ALONE = (NextItem(), Response(), Rating(), Rating("rating-absolute", absolute=True), Basket())
OBJECTIVES: dict[str, Objective] = {one.name: one for one in (*_ALONE, Several(_ALONE[:2]))}
"""Every objective by the name that a run's settings give it."""
