"""The first state of a run, and the line of `metrics.jsonl` for each round."""

from __future__ import annotations

import time
from typing import Any

from fedrec.config import Part, RunConfig
from fedrec.data import CentralData
from fedrec.errors import InputError
from fedrec.model import Scoring, TextEncoder, init_base, init_trained, load_encoder
from fedrec.objectives import OBJECTIVES, parts_of
from fedrec.wire import MOST_TEXTS
from server.given_start import GivenStart, check_start
from server.progress import notify
from server.run_folder import RunFolder, ServerState
from server.strategy import RoundRecord

__all__ = ["first_state", "load_encoder_for", "round_line"]


def load_encoder_for(config: RunConfig, state: ServerState | None = None) -> TextEncoder:
    """The encoder under these settings.

    Args:
        state: what was trained with it, where something was.

    Raises:
        InputError: it cannot be loaded, is not the one that `state` was trained with, or a rank is over its width.
    """
    encoder = load_encoder(
        config.encoder, config.encoder_layers, config.encoder_rank, config.max_tokens, config.device, config.texts_per_batch
    )
    if state is not None:
        encoder.check_fingerprint(state.encoder_fingerprint)
    if config.heads and config.rank > encoder.hidden:
        raise InputError(f"found {config.rank}", where="rank", expected=f"at most {encoder.hidden}, the encoder's width")
    return encoder


def first_state(config: RunConfig, central: CentralData, encoder: TextEncoder, given: GivenStart | None = None) -> ServerState:
    """Round 0: the pretrained encoder, `A` from the public catalogue, every `B` zero; or what was given.

    Raises:
        InputError: the catalogue has more items than merchants take, or what was given is not for this run.
    """
    if len(central.catalogue) > MOST_TEXTS:
        raise InputError(f"{len(central.catalogue):,} items", where="central/items", expected=f"at most {MOST_TEXTS:,}")
    notify("preparing", what="item texts through the frozen trunk", texts=len(central.catalogue))
    states = encoder.states(central.catalogue)
    if given is not None:
        base, trained = check_start(given, config, encoder)
    else:
        base = init_base(encoder, states, config.heads, config.rank, config.lora_init, config.seed)
        trained = init_trained(encoder, config.heads, config.rank, OBJECTIVES[config.objective].terms)
    scoring = Scoring(config.temperature, config.decay, config.prior_weight)
    scoring = Scoring.of_parts([scoring] * len(parts_of(OBJECTIVES[config.objective])))
    return ServerState(RunFolder.new_run_id(), 0, trained, base, {}, scoring, encoder.fingerprint)


def round_line(number: int, part: Part | None, record: RoundRecord, central: dict[str, Any]) -> dict[str, Any]:
    """A round's line of `metrics.jsonl`, with what was evaluated centrally."""
    return {
        "round": number,
        "part": part or "histogram",
        "seconds": round(time.time() - record.started, 3),
        "took_part": sorted(record.took_part),
        "declined": record.declined,
        "refused": record.refused,
        "bytes_down": record.bytes_down,
        "bytes_up": record.bytes_up,
        "privacy": record.privacy,
        **({"abandoned": record.abandoned} if record.abandoned else {}),
        **central,
    }
