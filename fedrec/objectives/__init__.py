"""What a model can be trained for, and the records that say what is asked of each user."""

from fedrec.objectives.examples import Examples, merged
from fedrec.objectives.next_item import NextItem
from fedrec.objectives.objective import Objective
from fedrec.objectives.records import Records, build_examples, build_records

__all__ = ["OBJECTIVES", "Examples", "Objective", "Records", "build_examples", "build_records", "merged"]

OBJECTIVES: dict[str, Objective] = {one.name: one for one in (NextItem(),)}
"""Every objective by the name that a run's settings give it."""
