"""The adapter on its way home: what is sent to each merchant, and who has it.

All of it is public: the final adapter, and the popularity that was released. Sending it asks nothing of a merchant
but a receipt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedrec import wire
from fedrec.config import HomeObjective
from fedrec.errors import InputError
from fedrec.model.adapter import TERMS
from fedrec.model.versions import FORMAT, content_digest
from fedrec.text import line
from fedrec.wire import Delivery
from server.evaluation import FLOOR
from server.progress import notify
from server.run_folder import DELIVERED, RunFolder
from server.start import load_encoder_for
from server.strategy import ERRORS

__all__ = ["MOST_SECONDS", "Delivered", "Parcel", "hand_over", "parcel_of"]

MOST_SECONDS = 300.0
"""So long receipts are waited for; who takes longer gets it from a later delivery."""


@dataclass(frozen=True)
class Parcel:
    """What every merchant gets.

    Attributes:
        delivery: what is said of the adapter.
        content: that, and the arrays.
    """

    delivery: Delivery
    content: RecordDict


def parcel_of(run: RunFolder) -> Parcel:
    """A run's last adapter, with the scoring that was chosen for it and the popularity that was released.

    Raises:
        InputError: no round is done, merchants cannot use it, or the encoder of a run from before its fingerprint was kept
            cannot be loaded.
    """
    state, config = run.load(), run.config
    if state is None or state.round == 0:
        raise InputError("no round is done", where=str(run.path), expected="a run with a trained adapter")
    if (objective := run.goes_home) is None:
        raise InputError(
            f"the run has objective = {config.objective!r}", where=str(run.path),
            expected=f"a run with objective = {' or '.join(map(repr, get_args(HomeObjective)))}: merchants use no other",
        )  # fmt: skip
    lines = [one for one in run.metrics() if one["round"] == state.round]
    scoring = lines[-1]["scoring"] if lines and "scoring" in lines[-1] else state.scoring.parts[0].by_name()
    delivery = Delivery(
        format=FORMAT, run=state.run, round=state.round, trust=config.trust, unit=config.unit,
        encoder_fingerprint=state.encoder_fingerprint or load_encoder_for(config).fingerprint,
        encoder_layers=config.encoder_layers, encoder_rank=config.encoder_rank, max_tokens=config.max_tokens,
        history=config.history, digest="", objective=objective, negative_share=config.negative_share, **scoring,
    )  # fmt: skip
    # Of several objectives it is the ranking that goes home, which has no use for the response's terms.
    trained = {name: value for name, value in state.trained.items() if name != TERMS or objective == "response"}
    arrays = {**state.public, **trained}
    delivery = replace(delivery, digest=content_digest(arrays, delivery.kept(float(state.public[FLOOR][0]))))
    return Parcel(delivery, wire.encode_delivery(delivery, state.public, trained))


class Delivered:
    """`delivered.json` of a run folder: who got its last adapter, or why not, and when."""

    def __init__(self, run: RunFolder, parcel: Parcel) -> None:
        self._run = run
        self._about = {"run": parcel.delivery.run, "round": parcel.delivery.round, "digest": parcel.delivery.digest}
        self.merchants: dict[str, dict[str, str]] = {}
        known = _read(run.path / DELIVERED)
        if {name: known.get(name) for name in self._about} == self._about:  # else it was another adapter
            self.merchants = known["merchants"]

    def have(self) -> set[str]:
        """The merchants that have it."""
        return {name for name, entry in self.merchants.items() if entry["outcome"] in wire.HERE}

    def add(self, outcomes: Mapping[str, str]) -> None:
        """Write down what merchants answered; who has it has it, even where a later answer was lost."""
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        have = self.have()
        for name, outcome in outcomes.items():
            if outcome in wire.OUTCOMES or name not in have:
                self.merchants[name] = {"outcome": outcome, "when": now}
        self._run.write_json(DELIVERED, {**self._about, "merchants": dict(sorted(self.merchants.items()))})


def hand_over(grid: Grid, parcel: Parcel, nodes: Mapping[int, str], timeout: float) -> dict[str, str]:
    """Send it to these nodes and wait for their receipts.

    Args:
        nodes: each with its merchant's name, or with none where only the merchant says it.
        timeout: seconds.

    Returns:
        By merchant one of `wire.OUTCOMES`, or in words why there is no receipt.
    """
    if not nodes:
        return {}
    notify("delivery_started", merchants=len(nodes))
    sent = [Message(parcel.content, node, wire.DELIVER, ttl=timeout) for node in sorted(nodes)]
    asked = {one.metadata.message_id: one.metadata.dst_node_id for one in sent}
    outcomes: dict[str, str] = {}
    silent = set(nodes)
    for reply in grid.send_and_receive(sent, timeout=timeout):
        source = reply.metadata.src_node_id
        node = source if source in nodes else asked.get(reply.metadata.reply_to_message_id, source)
        if node not in silent:
            continue
        silent.discard(node)
        name, outcome = _outcome(reply, nodes[node] or f"node {node}", parcel.delivery, known=bool(nodes[node]))
        outcomes[name] = outcome
        notify("delivered", merchant=name, outcome=outcome)
    for node in sorted(silent):
        outcomes[nodes[node] or f"node {node}"] = "did not answer in time"
    return outcomes


def _outcome(reply: Message, name: str, delivery: Delivery, known: bool) -> tuple[str, str]:
    """The merchant that a reply is from, and what it says."""
    if reply.has_error():
        return name, ERRORS.get(reply.error.code, f"error {reply.error.code}")
    try:
        receipt = wire.decode_receipt(reply)
    except (wire.WireError, ValueError, TypeError) as error:
        return name, line(f"no receipt: {error}")
    if receipt.merchant == wire.UNKNOWN:
        return name, receipt.outcome
    if known and receipt.merchant != name:
        return name, f"no receipt: it says that it is {receipt.merchant}, whose key it does not have"
    if receipt.outcome in wire.HERE and (receipt.run, receipt.digest) != (delivery.run, delivery.digest):
        return receipt.merchant, "no receipt: it is about something else"
    return receipt.merchant, receipt.outcome


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}
