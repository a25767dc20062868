"""The encoder's LoRA, adapted to a public catalogue before anybody trains: nobody's data, and no epsilon."""

from fedrec.adaptation.adapting import adapt
from fedrec.adaptation.contrast import Schedule
from fedrec.adaptation.pairs import KINDS

__all__ = ["KINDS", "Schedule", "adapt"]
