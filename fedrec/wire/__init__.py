"""What travels: the only room of `fedrec` that knows Flower's messages.

`values` holds the list of what may be sent, `records` turns Flower's records into values and back, `messages`
puts requests and replies together.
"""

from fedrec.wire.messages import (
    decode_announce,
    decode_histogram_task,
    decode_lists,
    decode_reply,
    decode_step,
    decode_train,
    encode_announce,
    encode_histogram_task,
    encode_reply,
    encode_step,
    encode_train,
    with_step,
)
from fedrec.wire.records import PUBLIC, arrays_digest, from_record, size, to_record
from fedrec.wire.values import (
    HISTOGRAM,
    KEYS,
    MASKED,
    STATEMENT_KEYS,
    STEP_KEYS,
    UNKNOWN,
    Announce,
    HistogramTask,
    Reply,
    Statement,
    Step,
    WireError,
    content_of,
    content_of_histogram,
    content_of_train,
)

__all__ = [
    "HISTOGRAM",
    "KEYS",
    "MASKED",
    "PUBLIC",
    "STATEMENT_KEYS",
    "STEP_KEYS",
    "UNKNOWN",
    "Announce",
    "HistogramTask",
    "Reply",
    "Statement",
    "Step",
    "WireError",
    "arrays_digest",
    "content_of",
    "content_of_histogram",
    "content_of_train",
    "decode_announce",
    "decode_histogram_task",
    "decode_lists",
    "decode_reply",
    "decode_step",
    "decode_train",
    "encode_announce",
    "encode_histogram_task",
    "encode_reply",
    "encode_step",
    "encode_train",
    "from_record",
    "size",
    "to_record",
    "with_step",
]
