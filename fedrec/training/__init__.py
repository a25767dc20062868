"""Private local training."""

from fedrec.training.examples import Examples, build_examples
from fedrec.training.round import RoundTask, expected_lot, train_round

__all__ = ["Examples", "RoundTask", "build_examples", "expected_lot", "train_round"]
