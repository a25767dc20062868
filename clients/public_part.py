"""What a merchant takes of an adapter that a server sends: the arrays that its own encoder can use, and no more.

A request is looked at before anything is paid, so nobody has vouched for it yet. What it may make a merchant keep is
bounded by the encoder here and by public ceilings.
"""

from __future__ import annotations

import numpy as np

from fedrec.model.adapter import CENTRE, HEAD_A, HEAD_B, TERMS, Arrays
from fedrec.model.complements import KINDS, LIFT, MOST_KINDS
from fedrec.model.encoder import TextEncoder
from fedrec.training.heads import MOST_RANK
from fedrec.wire import MOST_TEXTS, WireError

__all__ = ["FLOOR", "PRIOR_COUNTS", "PRIOR_KEYS", "PRIOR_RATINGS", "check_adapter", "check_ceilings"]

FLOOR, PRIOR_KEYS, PRIOR_COUNTS, PRIOR_RATINGS = "prior.floor", "prior.keys", "prior.counts", "prior.ratings"

Form = tuple[tuple[int, ...], np.dtype]


def check_ceilings(public: Arrays) -> tuple[int, int]:
    """The rank of an adapter's heads, and how many texts it knows: what no encoder bounds.

    Raises:
        WireError: they are over `MOST_RANK` or `MOST_TEXTS`.
    """
    rank = public[HEAD_A].shape[-1] if HEAD_A in public and public[HEAD_A].ndim == 2 else 0
    texts = public[PRIOR_KEYS].size if PRIOR_KEYS in public else 0
    if rank > MOST_RANK or texts > MOST_TEXTS:
        raise WireError(f"the adapter is of rank {rank} and knows {texts} texts: at most {MOST_RANK} and {MOST_TEXTS}")
    if (kinds := _kinds(public)) > MOST_KINDS:
        raise WireError(f"the adapter knows {kinds} kinds of item: at most {MOST_KINDS}")
    return rank, texts


def _kinds(public: Arrays) -> int:
    return len(public[KINDS]) if KINDS in public and public[KINDS].ndim else 0


def check_adapter(encoder: TextEncoder, public: Arrays, trained: Arrays, terms: bool = False, rates: bool = False) -> None:
    """Hold an adapter's arrays against the encoder, by name, shape and type.

    Args:
        terms: whether it has linear terms.
        rates: whether it says what rating is expected of each text.

    Raises:
        WireError: one is missing, unknown, of another shape or type, or there are more texts than `MOST_TEXTS`.
    """
    rank, texts = check_ceilings(public)
    frozen: dict[str, tuple[int, ...]] = {
        CENTRE: (encoder.hidden,), FLOOR: (1,), PRIOR_COUNTS: (texts,), PRIOR_KEYS: (texts,),
    }  # fmt: skip
    if rates:
        frozen[PRIOR_RATINGS] = (texts,)
    frozen |= {name: value.shape for name, value in encoder.frozen().items()}
    if KINDS in public or LIFT in public:
        kinds = _kinds(public)
        frozen |= {KINDS: (kinds, encoder.hidden), LIFT: (kinds, kinds)}
    moved: dict[str, tuple[int, ...]] = {name: value.shape for name, value in encoder.trained().items()}
    if HEAD_A in public or set(trained) & set(HEAD_B.values()):
        frozen[HEAD_A] = (encoder.hidden, rank)
        moved |= dict.fromkeys(HEAD_B.values(), (rank, encoder.hidden))
    if terms:
        moved[TERMS] = (2, encoder.hidden + 1)
    for what, arrays, shapes in (("public part", public, frozen), ("adapter", trained, moved)):
        expected = {name: (shape, np.dtype(np.uint64 if name == PRIOR_KEYS else np.float32)) for name, shape in shapes.items()}
        found: dict[str, Form] = {name: (value.shape, value.dtype) for name, value in arrays.items()}
        if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
            raise WireError(f"{what}: {wrong[0]} is not what the encoder here has")
