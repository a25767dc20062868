"""What a merchant's node needs to be in order, looked at before it connects, in words."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from clients.losses import refusal
from clients.merchant import open_merchant
from clients.site import deployed_site
from fedrec.config import RunConfig, make_folder, make_private
from fedrec.data.role_record import RECORD, changed_roles
from fedrec.deploy.layout import MerchantFolder, check_private, parse_address
from fedrec.deploy.roster import own_roster
from fedrec.errors import InputError
from fedrec.merchant import ModelSettings
from fedrec.model import load_encoder
from fedrec.model.versions import Versions, misfit

__all__ = ["checks"]

LITTLE_SPACE = 500e6
"""Free bytes under which a node does not start: caches and replies need some of it."""
CONNECT_TIMEOUT = 5.0


def checks(folder: MerchantFolder) -> Iterator[tuple[str, str]]:
    """Look at one thing after the other; yields what was looked at and what was found.

    Raises:
        InputError: the first thing that is not in order.
    """
    settings = folder.settings
    policy = settings.privacy
    policy.check_delta(where=str(folder.settings_file))
    period = f", {policy.period_epsilon:g} in {policy.period_days} days" if policy.period_epsilon else ""
    yield (
        "policy",
        f"epsilon {policy.epsilon:g} at delta {policy.delta:g} for the life of the data{period}; unit {policy.unit}; "
        f"noise at least {policy.min_noise_multiplier:g}; {policy.population:,} users declared",
    )
    check_private(folder.key)
    yield "key", f"{folder.key.name}, mode 0600"
    if policy.trust == "secure-aggregation":
        roster = own_roster(folder)
        yield "roster", f"{len(roster.keys)} merchants, this one's key among them, digest {roster.digest}"
    _writable(folder.state)
    yield "disk", f"{shutil.disk_usage(folder.state).free / 1e9:,.1f} GB free for {folder.state.name}/"
    merchant = open_merchant(deployed_site(folder))
    data, ledger = merchant.data, merchant.ledger
    changed = changed_roles(merchant.site.ledger / RECORD, merchant.held_back)
    targets = "" if data.histories.target is None else f" ({int(data.histories.target.sum()):,} of them targets)"
    yield (
        "data",
        f"{len(data.histories):,} users who train, {len(data.histories.items):,} events{targets}, {len(data.catalogue):,} items; "
        "none of it is sent" + "".join(f"; {one}" for one in (changed, *data.left_out) if one),
    )
    with ledger.locked():
        if lost := refusal(ledger, merchant.site, merchant.name):
            raise lost
        standing = ledger.adopt()
        releases, spent = ledger.releases(), ledger.spent().value
    accepted = "".join(f"; {text}" for text in dict.fromkeys(release.accepted for release in releases) if text)
    yield (
        "ledger",
        f"{len(releases)} releases, chain intact, epsilon {spent:.3f} of {policy.epsilon:g} spent; {standing}{accepted}",
    )
    shape, model = RunConfig(), merchant.site.model
    encoder = load_encoder(
        model.encoder, shape.encoder_layers, shape.encoder_rank, shape.max_tokens, model.device, model.texts_per_batch
    )
    encoder.states(data.catalogue)
    how = f"{model.encoder} on {encoder.device}, {model.texts_per_batch} texts a batch; item texts cached"
    yield "model", f"{how}; {_adapters(folder, model)}"
    yield "server", _greet(folder.server, folder.ca)


def _writable(state: Path) -> None:
    """Write a file and flush it: a disk that is full shows here and not in the middle of a round."""
    probe = state / f".probe-{uuid.uuid4().hex}"
    try:
        make_folder(state)
        try:
            with probe.open("wb") as file:
                file.write(b"\0" * 4096)
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
        free = shutil.disk_usage(state).free
    except OSError as error:
        raise InputError(
            f"cannot be written ({error.strerror})", where=str(state), expected="a folder for ledger and cache"
        ) from None
    if free < LITTLE_SPACE:
        raise InputError(f"{free / 1e6:.0f} MB are free", where=str(state), expected=f"at least {LITTLE_SPACE / 1e6:.0f} MB")


def _adapters(folder: MerchantFolder, model: ModelSettings) -> str:
    """What came home. Nothing about it keeps a node from training, so it is only noted."""
    versions = Versions(folder.model)
    try:
        current = versions.current
        ranks = f"{current or 'the untrained text'} ranks"
        if (name := current or versions.newest) and (
            reason := misfit(versions.read(name)[1], model.encoder, model.device, model.texts_per_batch)
        ):
            ranks += f", and cannot: {reason}"
    except InputError as error:
        ranks = f"which one ranks cannot be told: {error}"
    try:
        make_private(folder.model)
        with tempfile.TemporaryFile(dir=folder.model):
            pass
    except OSError as error:
        return f"deliveries will fail: {folder.model} cannot be written ({error.strerror}); with systemd, see ReadWritePaths"
    arrived = sum(len(one.names()) for one in Versions.of_each_objective(folder.model))
    return f"adapters: {arrived} delivered, {ranks}" if arrived else "no adapter has been delivered yet"


def _greet(address: str, ca: Path) -> str:
    """A TLS handshake with the server: an unreachable one is only noted, a wrong one is refused."""
    server = parse_address(address, where="[server] address")
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"is no certificate ({error})", where=str(ca)) from None
    try:
        with (
            socket.create_connection((server.host, server.port), CONNECT_TIMEOUT) as plain,
            context.wrap_socket(plain, server_hostname=server.host),
        ):
            return f"{server}, certificate verified"
    except ssl.SSLCertVerificationError as error:
        raise InputError(
            f"its certificate is not to be trusted ({error.verify_message})",
            where=address,
            expected=f"one for {server.host} that the authority in {ca.name} signed",
            hint="ask the operator for the current ca.crt, and do not connect before you have it",
        ) from None
    except ssl.SSLError as error:
        raise InputError(f"does not speak TLS ({error.reason})", where=address) from None
    except OSError as error:
        return f"{server} does not answer yet ({error.strerror or error}); the node goes on trying"
