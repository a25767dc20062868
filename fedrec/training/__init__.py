"""Private local training."""

from fedrec.training.examples import Examples, build_examples, merged
from fedrec.training.round import RoundTask, expected_lot, round_sum, train_round
from fedrec.training.update_code import CodeError, decode_update, encode_update

__all__ = [
    "CodeError",
    "Examples",
    "RoundTask",
    "build_examples",
    "decode_update",
    "encode_update",
    "expected_lot",
    "merged",
    "round_sum",
    "train_round",
]
