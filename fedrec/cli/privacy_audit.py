"""`fedrec privacy audit`: attack what one merchant releases, and set the result beside the claim."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedrec.cli.console import TaskID, progress_bars
from fedrec.cli.terminal import out, print_json, quiet_libraries, table
from fedrec.config import RunConfig, load_config, parse_overrides, write_atomically
from fedrec.errors import InputError

if TYPE_CHECKING:
    from simulations.audit import CanaryAudit, Membership
    from simulations.audit.target import Origin

__all__ = ["audit"]

FILE = "audit.json"
NAMES = {"canaries": "canary audit", "membership": "membership attack"}


def audit(
    federation: Annotated[Path, typer.Argument(metavar="FEDERATION_FOLDER", help="merchants/ and central/.")],
    merchant: Annotated[str | None, typer.Option("--merchant", help="Whom to attack; by default the largest.")] = None,
    mechanism: Annotated[
        str, typer.Option("--mechanism", help="heads, encoder, histogram, complements or secure-sum.")
    ] = "heads",
    canaries: Annotated[int, typer.Option("--canaries", help="Made-up users to plant.")] = 500,
    rounds: Annotated[int | None, typer.Option("--rounds", help="Rounds of training.")] = None,
    epsilon: Annotated[float | None, typer.Option("--epsilon", help="The claim; by default the merchant's budget.")] = None,
    delta: Annotated[float | None, typer.Option("--delta", help="Of the claim; by default the merchant's.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of canaries, coins and noise.")] = 0,
    noise: Annotated[bool, typer.Option("--noise/--no-noise", help="--no-noise checks that the attack finds a leak.")] = True,
    system_noise: Annotated[bool, typer.Option("--system-noise", help="Noise as a deployed merchant draws it.")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")] = None,
    target: Annotated[Path, typer.Option("--out", help="File to write.")] = Path(FILE),
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Attack what one merchant releases. Exit status 1 if the attack shows that the claimed epsilon is false."""
    if not target.parent.is_dir():
        raise InputError("no such folder", where=str(target.parent), hint="give --out a file in a folder that exists")
    overrides = parse_overrides(settings or [])
    given = {"rounds": rounds, "epsilon": epsilon, "delta": delta}
    overrides |= {name: value for name, value in given.items() if value is not None}
    quiet_libraries()
    from simulations.audit import audit_config, canary_audit, forced_settings, membership_attack, open_target, pick_merchant

    forced = forced_settings(mechanism, overrides.get("rounds", RunConfig.model_fields["rounds"].default))
    for name, value in forced.items():
        if overrides.get(name, value) != value:
            expected = f"{name} = {value!r}: the audit attacks the {mechanism} only"
            raise InputError(f"{name} = {overrides[name]!r}", where="--set", expected=expected)
    chosen = pick_merchant(federation, merchant)
    policy = {"epsilon": chosen.policy.epsilon, "delta": chosen.policy.delta}
    config = audit_config(load_config(None, policy | overrides | forced), mechanism)
    attacked = open_target(federation, chosen, config)
    origin: Origin = "system" if system_noise else "seed"
    with _progress():
        found = canary_audit(config, attacked, mechanism=mechanism, canaries=canaries, noise=noise, origin=origin, seed=seed)
        membership = membership_attack(config, attacked, noise=noise, origin=origin, seed=seed) if mechanism == "heads" else None
    values = {**found.as_json(), "simulation": True, "settings": config.model_dump()}
    if membership:
        values["membership"] = membership.as_json()
    write_atomically(target, (json_module.dumps(values, indent=2) + "\n").encode())
    if json:
        print_json(values)
    else:
        _show(found, membership, target)
    if found.refuted:
        raise typer.Exit(1)


def _show(found: CanaryAudit, membership: Membership | None, target: Path) -> None:
    title = f"{found.merchant}, {found.mechanism}: {found.users:,} users, releases: {found.rounds}, noise {found.noise}"
    rows: list[list[Any]] = [
        ["epsilon claimed", f"{found.epsilon_claimed:.3g}", f"at delta {found.delta:g}"],
        ["epsilon at least, by the canaries", f"{found.epsilon_lower:.3f}", f"with {found.confidence:.0%} confidence"],
        ["  guessed right", f"{found.correct:,} of {found.guesses:,}", f"of {found.canaries:,} canaries; AUC {found.auc:.3f}"],
        ["  the most so many could show", f"{found.epsilon_most:.3f}", "all guesses right"],
    ]
    if membership:
        rows += _membership(membership)
    out.print(table(title, ["attack", "found", ""], rows))
    out.print(_verdict(found))
    origin = "the operating system" if found.noise_origin == "system" else "a seed"
    text = f"Attacked: {found.method}. The whole budget was in it, and the noise came from {origin}."
    if membership:
        text += (
            f" The membership attack had {membership.members:,} members and {membership.non_members:,} others, so its rates at "
            "so few false positives are rough."
        )
    out.print(text, style="dim")
    out.print(f"written: {target}", soft_wrap=True)


def _membership(found: Membership) -> list[list[Any]]:
    rows: list[list[Any]] = [["membership: AUC", f"{found.auc:.3f}", "0.5 is guessing"]]
    for share, rate, bound in (
        ("1%", found.tpr_at_1_percent, found.bound_at_1_percent),
        ("0.1%", found.tpr_at_01_percent, found.bound_at_01_percent),
    ):
        rows.append([f"  members found at {share} false alarms", f"{rate:.2%}", f"the claim allows {bound:.2%}"])
    return rows


def _verdict(found: CanaryAudit) -> str:
    if found.refuted:
        if found.noise == "off":
            return "The claim does not hold with the noise off, and the attack finds it out: the audit works."
        return "THE CLAIM IS FALSE: the attack found more than the claimed epsilon allows."
    if found.noise == "on":
        return (
            "The attack found less than the claim allows. That does not prove the claim, which rests on the accounting; "
            "it shows that this attack does not refute it."
        )
    if found.epsilon_most <= found.epsilon_claimed:
        return (
            f"The noise was off. {found.guesses:,} guesses cannot refute epsilon {found.epsilon_claimed:.3g} even if all are "
            "right; give more --canaries or a smaller --epsilon to see it refuted."
        )
    return "The noise was off, but this attack does not refute the claim: it is too weak here to say anything."


@contextmanager
def _progress() -> Iterator[None]:
    from server.progress import watching

    bars: dict[str, TaskID] = {}

    def watch(event: str, fields: dict[str, Any]) -> None:
        if event == "audit_round":
            attack = fields["attack"]
            if attack not in bars:
                bars[attack] = progress.add_task(NAMES[attack], total=fields["rounds"])
            progress.update(bars[attack], completed=fields["round"])

    with progress_bars() as progress, watching(watch):
        yield
