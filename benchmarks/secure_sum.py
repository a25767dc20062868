"""What a secure sum costs: bytes and seconds of a round against the plain mean, and what each merchant computes for it.

    python -m benchmarks.secure_sum

For each number of merchants two simulations of the same federation, `trust = "local"` and `trust =
"secure-aggregation"` with a tenth of the merchants as drop-outs and as colluders, rounds on the heads
(24,576 numbers a merchant); bytes are those of the real messages, from `metrics.jsonl`, and seconds are from
one round's end to the next's. The merchant's own steps are timed apart: keys, shares, the noise, masks, signatures,
and keeping them, for one merchant among so many, medians. `plain` is the noise that it draws without secure
aggregation.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.measure import options, report
from benchmarks.rounds import engine, write_merchants
from benchmarks.rounds import measure as measure_run
from fedrec import secure
from fedrec.config import RunConfig, save_config
from fedrec.privacy import SystemNoise, discrete_gaussian, noise_share, noisy
from server.run_folder import RunFolder

__all__ = ["main", "measure", "table"]

NUMBERS, SIGMA, CLIP, USERS = 24_576, 5.0, 0.1, 60


def bearable(members: int) -> int:
    """A tenth of the merchants, at least one."""
    return max(1, members // 10)


def rounds(merchants: int, count: int, folder: Path) -> dict[str, Any]:
    """Seconds and bytes a merchant of later rounds under both trust models."""
    federation, found = folder / f"federation-{merchants}", {}
    write_merchants(federation, merchants)
    for trust in ("local", "secure-aggregation"):
        run, config = folder / f"{trust}-{merchants}", folder / "run.toml"
        few = bearable(merchants)
        settings = RunConfig(
            rounds=count, encoder_layers=0, min_lot=1, encoder_rounds=0, noise_multiplier=SIGMA, clip_norm=CLIP,
            histogram_noise_multiplier=SIGMA, bootstrap=100, trust=trust, dropouts=few, colluders=few,
        )  # fmt: skip
        save_config(settings, config)
        environment = {**os.environ, "FEDREC_CACHE": str(folder / "cache")}
        done = measure_run(engine()(federation, config, run), run, count, environment)
        last = RunFolder(run).metrics()[-1]
        found[trust] = {
            "seconds": statistics.median(done["seconds"][2:]),
            "up": statistics.mean(last["bytes_up"].values()),
            "down": statistics.mean(last["bytes_down"].values()),
        }
    return found


def merchant(members: int, repeats: int) -> dict[str, float]:
    """Median seconds of one merchant's own steps among so many; the others' are done beforehand."""
    names = [f"m{i}" for i in range(members)]
    node_keys = {name: ec.generate_private_key(ec.SECP384R1()) for name in names}
    encoding, form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    roster = secure.Roster({name: key.public_key().public_bytes(encoding, form).decode() for name, key in node_keys.items()})
    few = bearable(members)
    spent: dict[str, list[float]] = {}
    vector = np.random.default_rng(0).normal(0, CLIP, NUMBERS)
    for attempt in range(repeats):
        terms = secure.Terms("run", 1, str(attempt), roster.digest, members, few, few)
        clock = _Clock(spent)
        states = {name: secure.announce(terms, name, roster, node_keys[name]) for name in names[1:]}
        states["m0"] = clock("keys", lambda: secure.announce(terms, "m0", roster, node_keys["m0"]))  # noqa: B023
        announced = {name: states[name].announcement for name in names}
        sealed = {}
        for name in names[1:]:
            states[name], sealed[name] = secure.share(states[name], announced, roster)
        states["m0"], sealed["m0"] = clock("shares", lambda: secure.share(states["m0"], announced, roster))  # noqa: B023
        boxes = {maker: given["m0"] for maker, given in sealed.items() if "m0" in given}
        scale = secure.finest(NUMBERS, CLIP, members * USERS, SIGMA, 1e7)
        lattice, noise = secure.Lattice(NUMBERS, scale, "round 1"), SystemNoise()
        share = noise_share(SIGMA, lattice.sensitivity(CLIP), terms.honest)
        steps = clock("rounding", lambda: lattice.encode(vector, noise.uniform(NUMBERS)))  # noqa: B023
        drawn = clock("noise", lambda: discrete_gaussian(NUMBERS, share, noise))  # noqa: B023
        state = clock("masks", lambda: secure.hold(states["m0"], tuple(names), boxes, "content"))  # noqa: B023
        clock("masks", lambda: secure.mask(state, steps + drawn))  # noqa: B023
        clock("keeping", lambda: secure.State.from_json(json.loads(json.dumps(state.to_json()))))  # noqa: B023
        state, own = clock("signatures", lambda: secure.confirm(state, tuple(names), node_keys["m0"]))  # noqa: B023
        statement = secure.member.confirmation(state)
        signed = {name: secure.keys.sign(node_keys[name], statement) for name in names[1:]} | {"m0": own}
        clock("signatures", lambda: secure.reveal(state, signed, roster))  # noqa: B023
        clock("plain", lambda: noisy(vector, SIGMA, CLIP, noise))  # noqa: B023
        clock.done()
    return {name: statistics.median(values) for name, values in spent.items()}


class _Clock:
    """Seconds by name; what has one name adds up within a turn."""

    def __init__(self, spent: dict[str, list[float]]) -> None:
        self.spent, self.turn = spent, dict[str, float]()

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        out = work()
        self.turn[name] = self.turn.get(name, 0.0) + time.perf_counter() - started
        return out

    def done(self) -> None:
        """The turn is over."""
        for name, value in self.turn.items():
            self.spent.setdefault(name, []).append(value)


def measure(merchants: list[int], repeats: int) -> dict[str, Any]:
    """Everything, for each number of merchants."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in merchants:
            around = secure.neighbours(count, bearable(count), bearable(count), count)
            own = merchant(count, repeats)
            rows.append({"merchants": count, "neighbours": around.count, **rounds(count, repeats + 1, Path(folder)), "own": own})
    return {"numbers": NUMBERS, "rows": rows}


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    plain = 4 * found["numbers"]
    out = [
        "| merchants | neighbours | a round, plain, s | secure, s | times | up, plain | up, secure "
        "| all messages over a plain update "
        "| a merchant's own steps, s | of these noise | plain noise |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        local, other, own = row["local"], row["secure-aggregation"], row["own"]
        extra = sum(value for name, value in own.items() if name != "plain")
        out.append(
            f"| {row['merchants']} | {row['neighbours']} | {local['seconds']:.2f} | {other['seconds']:.2f} "
            f"| {other['seconds'] / local['seconds']:.1f} | {local['up']:,.0f} | {other['up']:,.0f} "
            f"| {(other['up'] + other['down']) / plain:.2f} | {extra:.3f} | {own['noise'] + own['rounding']:.3f} "
            f"| {own['plain']:.3f} |"
        )
    return "\n".join(out)


def main() -> None:
    """The command."""
    parser = options(__doc__, repeats=3)
    parser.add_argument("--merchants", type=int, nargs="+", default=[4, 9, 32, 128])
    arguments = parser.parse_args()
    found = measure(arguments.merchants, arguments.repeats)
    report(found, table(found), arguments.json)


if __name__ == "__main__":
    main()
