"""The texts that `fedrec deploy init` writes: settings that explain themselves, instructions, systemd units."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import tomli_w

from fedrec.data import Columns as C
from fedrec.data.roles import UserShares
from fedrec.deploy.layout import MerchantFolder, ServerFile, ServerFolder
from fedrec.errors import InputError
from fedrec.merchant import MerchantFile

__all__ = ["CENTRAL_README", "DATA_README", "merchant_toml", "merchant_unit", "serve_unit", "server_toml", "server_unit"]

CENTRAL_README = f"""\
Here go the tables of the central users: people who consented to be evaluated on.

items.parquet or items.csv    the union of the merchants' public catalogues:
                              {", ".join(C.ITEM_REQUIRED)}; also {", ".join([*C.TEXT[1:], C.PRICE])}
events.parquet or events.csv  what the consenting users did: {", ".join(C.EVENT_REQUIRED)}

Where merchants have catalogues of their own, both tables have a column `{C.MERCHANT}` too.
The server reads this folder; no merchant's private events belong here.
"""

DATA_README = f"""\
Here go your tables. They stay on this machine.

items.parquet or items.csv    your public catalogue: {", ".join(C.ITEM_REQUIRED)};
                              also {", ".join([*C.TEXT[1:], C.PRICE])}
events.parquet or events.csv  what your users did: {", ".join(C.EVENT_REQUIRED)}

They may lie elsewhere: say where under [data] in merchant.toml.
`fedrec data check` tells what is wrong with a table, by file, column and row.
"""

_POLICY = {
    "epsilon": "Budget for the life of your data, over all runs together. Your node declines what would exceed it.",
    "delta": "Delta at which the budget holds. Keep it below one over your number of users.",
    "period_epsilon": "Also a budget for any `period_days` days in a row.",
    "period_days": "Length of that period, in days.",
    "population": "Your number of users, rounded: it is declared in public, and the expected lot is a share of it.",
    "unit": 'The weakest unit that you accept: "user" (all that a user did here) or, weaker, "event".',
    "trust": 'The weakest trust model that you accept: "local" (all noise is yours) or, weaker, "secure-aggregation".',
    "colluders": "Fewest other merchants that a secure sum must assume to tell the server all they know.",
    "dropouts": "Most merchants that may be missing from a secure sum; as many as it bears, where this is not set.",
    "min_noise_multiplier": "Floor for the noise of a step, over the clipping norm.",
    "max_clip_norm": "Ceiling for the clipping norm.",
    "max_rounds": "Most training rounds in one run.",
}
_EXAMPLE = {"period_epsilon": 4.0, "dropouts": 1}
_DATA = {
    "path": "Folder of your tables; a relative path starts at this file's folder.",
    "url": "SQLAlchemy URL of your database, without a password.",
    "items": "SQL of your catalogue.",
    "events": "SQL of your events.",
    "password_env": "Environment variable that holds the database's password.",
    "history_events": "The kinds of events that are history; by default all but impressions, views, clicks, wordless searches.",
    "target_events": "Those of them that are to be predicted; by default all.",
    "password_file": "File that holds the database's password and that only its owner can read.",
}
_MODEL = {
    "encoder": 'The text encoder: "minilm-l6" (packaged), a folder, or "hf:NAME"; weights and tokenizer are the server\'s.',
    "device": '"auto", "cpu", or a torch device.',
    "texts_per_batch": "Most texts that go through the encoder at once; with a large encoder fewer need less memory.",
}
_USERS = {
    "choose": "Share of your users on whom parts are weighed and adapters compared; they are in no round of training.",
    "measure": "Share of your users on whom you measure what you have; they are in no round either.",
}
_RECOMMENDER = {
    "own_layer": "Whether your own layer and your exact popularity rank too; what customers are shown then depends on others.",
    "language": 'Of your texts, for `fedrec search`: "english", "german", ..., or "none", which takes words as they are.',
}
_LEDGER = (
    "# Folder for the count and hash of your ledger's lines, best on another disk: a ledger that was cut or deleted is",
    "# noticed by it. Without this setting it is state/privacy-head.",
    '# head = "/mnt/other-disk/fedrec"',
)
_UNSET = "SET THIS before the first run; 1000 is a guess."


def merchant_toml(file: MerchantFile, *, guessed: bool) -> str:
    """`merchant.toml`, every key with what it means to the merchant.

    Args:
        guessed: the population is a placeholder that the merchant must set.
    """
    lines = [
        "# All that you decide for yourself, on your own machine. No message changes it: the server can ask",
        "# for less than this policy allows, never for more.",
        "",
        "# Your public name.",
        _key("name", file.name),
        "",
        "[privacy]",
    ]
    for key, value in file.privacy.model_dump().items():
        if key == "population" and guessed:
            lines.append(f"# {_UNSET}")
        lines += [f"# {_POLICY[key]}", f"# {key} = {_EXAMPLE[key]}" if value is None else _key(key, value)]
    lines += ["", "[data]"]
    for key, value in file.data.model_dump(mode="json", exclude_none=True).items():
        lines += [f"# {_DATA[key]}", _key(key, value)]
    lines += ["", "[model]"]
    for key, value in file.model.model_dump().items():
        lines += [f"# {_MODEL[key]}", _key(key, value)]
    lines += ["", "# [users]" if file.users is None else "[users]"]
    for key, value in (file.users or UserShares()).model_dump().items():
        lines += [f"# {_USERS[key]}", f"# {key} = {value}" if file.users is None else _key(key, value)]
    lines += ["", "[recommender]"]
    for key, value in file.recommender.model_dump().items():
        lines += [f"# {_RECOMMENDER[key]}", _key(key, value)]
    lines += ["", "[ledger]", *_LEDGER]
    if file.ledger.head is not None:
        lines.append(_key("head", str(file.ledger.head)))
    if file.server is not None:
        lines += ["", "[server]", "# Host and port that your node connects to; it opens no port of its own."]
        lines.append(_key("address", file.server.address))
    return "\n".join(lines) + "\n"


def server_toml(settings: ServerFile) -> str:
    """`server.toml`, every key with what it means."""
    comments = {
        "address": "What merchants connect to. The certificate holds for this host: change it with",
        "listen": "IP address of the interface to listen on.",
        "port": "Port to listen on.",
        "control_port": "Port through which runs are started and stopped; on the loopback interface only.",
    }
    lines = []
    for key, value in settings.model_dump(mode="json").items():
        lines.append(f"# {comments[key]}")
        if key == "address":
            lines.append("# `fedrec deploy rotate OUT --server-host HOST`.")
        lines.append(_key(key, value))
    return "\n".join(lines) + "\n"


def server_unit(folder: ServerFolder) -> str:
    """`fedrec-server.service` for a server folder at its final place."""
    return _unit("fedrec server", ["server", "up"], folder.path, [folder.state, folder.runs])


def merchant_unit(folder: MerchantFolder, name: str) -> str:
    """`fedrec-merchant.service` for a merchant's folder at its final place."""
    return _unit(f"fedrec merchant {name}", ["merchant", "up"], folder.path, [folder.state, folder.model, folder.own])


def serve_unit(folder: MerchantFolder, name: str) -> str:
    """`fedrec-serve.service`, the HTTP service over a merchant's folder at its final place."""
    writable = [folder.state, folder.model, folder.own, folder.feedback]
    return _unit(f"fedrec serve {name}", ["serve"], folder.path, writable, ["--key-file", _word(folder.serve_keys)])


def _key(name: str, value: object) -> str:
    return tomli_w.dumps({name: value}).strip()


def _unit(description: str, command: Sequence[str], folder: Path, writable: Sequence[Path], options: Sequence[str] = ()) -> str:
    # The environment that runs `init` is the best guess at the one that will run the service.
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    program = shutil.which("fedrec", path=beside) or str(Path(sys.executable).with_name("fedrec"))
    start = " ".join([_quoted(program), *command, _word(folder), *options])
    return f"""\
# After moving this folder, or onto a machine where `fedrec` is elsewhere, edit ExecStart and ReadWritePaths.
# Give User= the account that owns the folder; without it the service runs as root.

[Unit]
Description={description}
Wants=network-online.target
After=network-online.target

[Service]
#User=fedrec
ExecStart={start}
ReadWritePaths={" ".join(_quoted(str(path)) for path in writable)}
Restart=on-failure
RestartSec=5
# Exit status 2 is a setting that only a person can put right.
RestartPreventExitStatus=2
KillMode=mixed
TimeoutStopSec=30
UMask=0077
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ProtectHome=read-only
ProtectControlGroups=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictSUIDSGID=yes

[Install]
WantedBy=multi-user.target
"""


def _word(path: Path) -> str:
    """A path as a word of `ExecStart`, in which a dollar would begin a variable (systemd.service, "Command lines")."""
    return _quoted(str(path)).replace("$", "$$")


def _quoted(text: str) -> str:
    """A word of a unit file (systemd.syntax, "Quoting"; systemd.unit, "Specifiers").

    Raises:
        InputError: a control character, which could start a line of its own.
    """
    if not text.isprintable():
        raise InputError(f"found {text!r}", where="OUT", expected="a path of printable characters")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
