"""Private local training."""

from fedrec.objectives import Examples, Records, build_examples, build_records, merged
from fedrec.training.round import RoundTask, expected_lot, round_sum, train_round
from fedrec.training.update_code import CodeError, decode_update, encode_update

__all__ = [
    "CodeError",
    "Examples",
    "Records",
    "RoundTask",
    "build_examples",
    "build_records",
    "decode_update",
    "encode_update",
    "expected_lot",
    "merged",
    "round_sum",
    "train_round",
]
