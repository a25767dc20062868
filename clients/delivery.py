"""The adapter comes home: what a merchant takes of it, what it answers, and what it does about it afterwards.

The answer depends on what was delivered and on the encoder here, which is public. It is given before anybody looks
at users' data: those are not even read. Whether the adapter is any good for this merchant is found out by a process
of its own, `fedrec merchant fit`, once the answer is gone.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

from flwr.app import Context, Message

from clients.public_part import FLOOR, check_adapter, check_ceilings
from clients.site import Site, site_of
from fedrec import wire
from fedrec.deploy.layout import MerchantFolder
from fedrec.errors import InputError
from fedrec.merchant import MERCHANT_FILE, read_merchant_file
from fedrec.model.encoder import TextEncoder, load_encoder
from fedrec.model.versions import FORMAT, Versions, content_digest
from fedrec.objectives import OBJECTIVES
from fedrec.wire import Delivery, Outcome, Receipt, WireError
from fedrec.wire.records import TASK, finite

__all__ = ["adopt", "answer_delivery", "settle"]

log = logging.getLogger("fedrec.merchant")

_fit: subprocess.Popen[bytes] | None = None


class _Refused(Exception):
    """What was delivered is not taken, for one of the reasons that may be said."""

    def __init__(self, outcome: Outcome, why: object) -> None:
        super().__init__(f"{outcome}: {why}")
        self.outcome: Outcome = outcome


def answer_delivery(message: Message, context: Context) -> Receipt:
    """Check what was delivered, keep it, say so; what was the current model stays that whatever comes."""
    name, about = wire.UNKNOWN, ("", 0, "")
    try:
        site = site_of(context)
        name = read_merchant_file(site.merchant / MERCHANT_FILE).name
        delivery = _said(message)
        about = delivery.run, delivery.round, delivery.digest
        return Receipt(name, _keep(site, delivery, message), *about)
    except _Refused as refused:
        log.warning("merchant %s: a delivery was %s", name, refused)
        return Receipt(name, refused.outcome, *about)
    except Exception:
        log.exception("merchant %s: a delivery could not be kept", name)
        return Receipt(name, "failed", *about)


def settle(folder: Path) -> None:
    """What follows a delivery: old versions go, and what arrived is compared. What fails is logged and harmless."""
    try:
        merchant = MerchantFolder(folder)
        kept = Versions.of_each_objective(merchant.model)
        for versions in kept:
            versions.tidy()
        if any(versions.arrived() is not None for versions in kept):
            adopt(folder)
    except Exception:
        log.exception("what was delivered is kept, but nothing was done about it")


def adopt(folder: Path) -> None:
    """Have the merchant's own layer fitted, and what arrived compared, by a process of low priority beside this one.

    One that is at it already is ended first: the newest arrival counts.

    Args:
        folder: the merchant's folder.

    Raises:
        OSError: the process cannot be started, or its log not be written.
    """
    global _fit
    if _fit is not None:
        _fit.terminate()
        _fit.wait()
    descriptor = os.open(MerchantFolder(folder).fit_log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as output:
        _fit = subprocess.Popen(
            [sys.executable, "-m", "clients.adopter", str(folder), str(os.getpid())],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    threading.Thread(target=_fit.wait, name="fit", daemon=True).start()  # else it stays a zombie until the next delivery


def _said(message: Message) -> Delivery:
    """What is said of the adapter; its size is looked at first."""
    if (bytes_ := wire.size(message.content)) > wire.MOST_BYTES:
        raise _Refused("refused: size", f"{bytes_:,} bytes, at most {wire.MOST_BYTES:,}")
    if TASK in message.content and (found := message.content[TASK].get("format")) != FORMAT:
        raise _Refused("refused: format", f"found {found!r}, this version of fedrec knows {FORMAT}")
    try:
        return wire.decode_delivery(message)
    except WireError as error:
        raise _Refused("refused: settings", error) from None


def _keep(site: Site, delivery: Delivery, message: Message) -> Outcome:
    try:
        public, trained = wire.delivered_arrays(message)
    except WireError as error:
        raise _Refused("refused: bytes", error) from None
    try:
        check_ceilings(public)
    except WireError as error:
        raise _Refused("refused: size", error) from None
    encoder = _encoder(site, delivery)
    try:
        check_adapter(encoder, public, trained, terms=OBJECTIVES[delivery.objective].terms)
    except WireError as error:
        raise _Refused("refused: names or shapes", error) from None
    arrays = {**public, **trained}
    try:
        finite(arrays)
    except WireError as error:
        raise _Refused("refused: not finite", error) from None
    floor = float(public[FLOOR][0])
    if not floor > 0:
        raise _Refused("refused: settings", f"{FLOOR} is {floor:g}, expected a positive number")
    settings = delivery.kept(floor)
    if content_digest(arrays, settings) != delivery.digest:
        raise _Refused("refused: digest", "arrays and settings are not those that were sent")
    name, known = Versions(site.adapters, delivery.objective).keep(arrays, settings)
    log.info("adapter %s %s", name, "is here already" if known else "has arrived")
    return "known" if known else "kept"


def _encoder(site: Site, delivery: Delivery) -> TextEncoder:
    """The encoder here, in the shape that the adapter is for."""
    model, shape = site.model, (delivery.encoder_layers, delivery.encoder_rank, delivery.max_tokens)
    try:
        encoder = load_encoder(model.encoder, *shape, model.device, model.texts_per_batch)
    except InputError as error:
        raise _Refused("refused: encoder", error) from None
    if encoder.fingerprint != delivery.encoder_fingerprint:
        raise _Refused("refused: encoder", "the encoder here is not the server's")
    return encoder
