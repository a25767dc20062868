"""What a model can be trained for, and the records that say what is asked of each user."""

from fedrec.objectives.examples import Examples, merged
from fedrec.objectives.next_item import NextItem
from fedrec.objectives.objective import Asked, Known, Objective
from fedrec.objectives.rating import Rating
from fedrec.objectives.records import Records, build_examples, build_records
from fedrec.objectives.response import Response

__all__ = ["OBJECTIVES", "Asked", "Examples", "Known", "Objective", "Records", "build_examples", "build_records", "merged"]

OBJECTIVES: dict[str, Objective] = {
    one.name: one for one in (NextItem(), Response(), Rating(), Rating("rating-absolute", absolute=True))
}
"""Every objective by the name that a run's settings give it."""
