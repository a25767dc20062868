"""`fedrec privacy`: what a budget buys, before anything is spent."""

from __future__ import annotations

import io
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrec.cli.terminal import err, out, print_json, table
from fedrec.config import RunConfig, write_atomically
from fedrec.errors import InputError

if TYPE_CHECKING:
    from fedrec.privacy.planning import Plan

__all__ = ["app"]

app = typer.Typer(help="Plan a privacy budget, and report on what was spent.", no_args_is_help=True)

DEFAULTS = RunConfig()
PICTURES = (".svg", ".png")
LEARNED = "the run learns about what so many consenting users would teach"


@app.callback()
def privacy() -> None:
    """Plan a privacy budget, and report on what was spent."""


@app.command()
def plan(
    users: Annotated[int, typer.Option(min=1, help="Users of one merchant (its declared population).")],
    epsilon: Annotated[float, typer.Option(help="Target epsilon, a merchant and run.")] = DEFAULTS.epsilon,
    delta: Annotated[float | None, typer.Option(help="Target delta; by default 1/(10 users).")] = None,
    rounds: Annotated[int | None, typer.Option(help="Training rounds.")] = None,
    local_steps: Annotated[int, typer.Option(help="Private steps in a round.")] = DEFAULTS.local_steps,
    sample_rate: Annotated[float | None, typer.Option(help="Share of the users in a step (Poisson).")] = None,
    noise_multiplier: Annotated[float | None, typer.Option(help="Noise of a step over the clipping norm.")] = None,
    rank: Annotated[int, typer.Option(help="Rank of the heads.")] = DEFAULTS.rank,
    merchants: Annotated[int, typer.Option(min=1, help="Merchants of this size whose updates are averaged.")] = 1,
    dropouts: Annotated[
        int, typer.Option(min=0, help="Secure aggregation: merchants that may be missing from a sum.")
    ] = DEFAULTS.dropouts,
    colluders: Annotated[
        int, typer.Option(min=0, help="Secure aggregation: merchants that may tell the server all they know.")
    ] = DEFAULTS.colluders,
    histogram_share: Annotated[float, typer.Option(help="Budget share of the histogram.")] = DEFAULTS.histogram_share,
    complement_share: Annotated[
        float, typer.Option(help="Budget share of what goes with what in baskets.")
    ] = DEFAULTS.complement_share,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw epsilon against rounds, .svg or .png.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Solve for the noise multiplier, the rounds or the sample rate that a budget allows.

    The one of the three that is not given is solved for. With fewer than two given, rounds is
    18, sample rate 1, and the noise is solved for (with the noise given: the rounds). For several
    merchants both trust models are shown side by side.
    """
    if plot is not None and plot.suffix.lower() not in PICTURES:
        raise InputError(f"found {str(plot)!r}", where="--plot", expected=" or ".join(f"a name in {end}" for end in PICTURES))
    from fedrec.privacy.planning import solve

    if noise_multiplier is None:
        rounds = DEFAULTS.rounds if rounds is None else rounds
    if noise_multiplier is None or rounds is None:
        sample_rate = DEFAULTS.sample_rate if sample_rate is None else sample_rate
    solved = solve(
        users=users,
        epsilon=epsilon,
        delta=delta,
        noise_multiplier=noise_multiplier,
        rounds=rounds,
        sample_rate=sample_rate,
        merchants=merchants,
        local_steps=local_steps,
        rank=rank,
        dropouts=dropouts,
        colluders=colluders,
        histogram_share=histogram_share,
        complement_share=complement_share,
    )
    if json:
        print_json(asdict(solved))
    else:
        _print(solved, delta_given=delta is not None)
    if plot is not None:
        _draw(solved, plot)
        err.print(f"epsilon against rounds: {plot}", style="dim")


def _print(plan: Plan, delta_given: bool) -> None:
    from fedrec.privacy.worth import LEAST_WORTH

    histogram, pairs = plan.histogram_noise_multiplier, plan.complement_noise_multiplier
    settings = {
        "noise_multiplier": f"{plan.noise_multiplier:.4g}",
        "rounds": f"{plan.rounds:,}",
        "sample_rate": f"{plan.sample_rate:.4g}",
        "local_steps": f"{plan.local_steps:,}",
        "users": f"{plan.users:,}",
        "epsilon": f"{plan.epsilon:g}",
        "delta": f"{plan.delta:.3g}",
        "histogram_share": f"{plan.histogram_share:g}",
        "histogram_noise_multiplier": "not sent" if histogram is None else f"{histogram:.4g}",
        "complement_share": f"{plan.complement_share:g}",
        "complement_noise_multiplier": "not sent" if pairs is None else f"{pairs:.4g}",
    }
    marked = [[name, value, "solved for" if name == plan.solved else ""] for name, value in settings.items()]
    out.print(table("A run that fits the budget", ["setting", "value", ""], marked))
    trade = [
        [f"epsilon spent, of {plan.epsilon:g} ({plan.accountant})", f"{plan.epsilon_spent:.3f}"],
        ["epsilon without the histogram", f"{plan.epsilon_without_histogram:.3f}"],
        ["the histogram costs", f"{plan.epsilon_spent - plan.epsilon_without_histogram:.3f}"],
        ["expected users in a step (lot)", f"{plan.lot:,.1f}"],
        [f"signal to noise of a step on the heads, {plan.trainable:,} numbers", f"{plan.signal_to_noise:.3g}"],
    ]
    if plan.encoder_signal_to_noise is not None:
        what = f"the same, a step on the encoder, {plan.encoder_trainable:,} numbers"
        trade.append([what, f"{plan.encoder_signal_to_noise:.3g}"])
    if plan.merchants == 1:
        trade.append([LEARNED, f"{plan.worth_in_users:,.3g}"])
    out.print(table("What it trades", ["", "value"], trade))
    if plan.merchants > 1:
        _print_trust_models(plan)
    notes = [
        "signal to noise is at most lot / (noise_multiplier sqrt(numbers)): all gradients clipped and of one direction",
        "all rounds are taken to train the heads at this sample rate",
    ]
    best = max(plan.worth_in_users, plan.secure_aggregation.worth_in_users if plan.secure_aggregation else 0.0)
    if best < LEAST_WORTH:
        notes.append(f"training is not advised: it learns less than {LEAST_WORTH:g} consenting user would teach")
    if not delta_given:
        notes.append("delta is 1/(10 users): a delta near 1/users would allow publishing one user's record outright")
    if plan.solved == "rounds" and plan.rounds == _most_rounds():
        notes.append(f"{plan.rounds:,} rounds are the most a run may have; the budget would allow more")
    if plan.solved == "sample_rate" and plan.sample_rate == 1 and plan.epsilon_spent < 0.98 * plan.epsilon:
        notes.append("every user takes part in every step and the budget is not used up: less noise would fit")
    for note in notes:
        out.print(note, style="dim")


def _print_trust_models(plan: Plan) -> None:
    """The mean of several merchants under both trust models: the same epsilon, other noise, other assumptions."""
    secure, many = plan.secure_aggregation, plan.merchants
    rows: list[tuple[str, str, str]] = [
        (
            "noise of a step that each merchant adds",
            f"{plan.noise_multiplier:.4g}",
            _four(secure.noise_multiplier_alone if secure else None),
        ),
        (
            f"noise in the sum of {many} steps, at most",
            f"{plan.noise_multiplier * math.sqrt(many):.4g}",
            _four(secure.noise_multiplier_of_sum if secure else None),
        ),
        (
            f"signal to noise, mean of {many} merchants",
            f"{plan.signal_to_noise_of_mean:.3g}",
            f"{secure.signal_to_noise:.3g}" if secure else "",
        ),
        (LEARNED, f"{plan.worth_in_users:,.3g}", f"{secure.worth_in_users:,.3g}" if secure else ""),
        ("epsilon against the server", f"{plan.epsilon_spent:.3f}", f"{plan.epsilon_spent:.3f}" if secure else ""),
        (
            "epsilon if every other merchant colludes",
            f"{plan.epsilon_spent:.3f}",
            f"{secure.epsilon_alone:.3f}" if secure else "",
        ),
    ]
    pairs = secure.complement_noise_multiplier_of_sum if secure else None
    histogram = secure.histogram_noise_multiplier_of_sum if secure else None
    for what, sigma, shared in (
        ("counts of pairs", plan.complement_noise_multiplier, pairs),
        ("histograms", plan.histogram_noise_multiplier, histogram),
    ):
        if sigma is not None:
            rows.insert(2, (f"noise in the sum of {many} {what}, at most", f"{sigma * math.sqrt(many):.4g}", _four(shared)))
    out.print(table("The two trust models at the same epsilon and rounds", ["", "local", "secure-aggregation"], rows))
    if secure is None:
        out.print(f"secure aggregation is not possible here: {plan.no_secure_aggregation}")
        return
    assumed = (
        f"secure-aggregation trusts that at least {secure.honest} of the {many} merchants are honest and in every sum "
        f"that is opened: {secure.dropouts} may be missing, {secure.colluders} may tell the server all they know"
    )
    out.print(assumed, style="dim")


def _four(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _most_rounds() -> int:
    from fedrec.privacy.planning import MOST_ROUNDS

    return MOST_ROUNDS


def _draw(plan: Plan, path: Path) -> None:
    """Write epsilon against rounds at the plan's noise, whole or not at all."""
    # Without pyplot: it would look for a display and keep the figure for the life of the process.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    last = min(2 * plan.rounds, _most_rounds())
    count = min(last, 16)
    rounds = sorted({plan.rounds, *(max(1, round(last * number / count)) for number in range(1, count + 1)), 1})
    with rc_context({"svg.hashsalt": "fedrec", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=(7.2, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.plot(rounds, plan.spent_after(rounds), marker="o", markersize=3, label="with the histogram")
        if plan.histogram_noise_multiplier is not None:
            axes.plot(rounds, plan.spent_after(rounds, histogram=False), marker="o", markersize=3, label="without it")
        axes.axhline(plan.epsilon, linestyle="--", color="#b5546f", label=f"target, {plan.epsilon:g}")
        axes.axvline(plan.rounds, linestyle=":", color="#7f8c8d", label=f"the plan, {plan.rounds:,} rounds")
        axes.set(xlabel="rounds", ylabel=f"epsilon at delta {plan.delta:.2g}", ylim=(0, None), xlim=(0, math.ceil(last * 1.03)))
        axes.set_title(f"noise multiplier {plan.noise_multiplier:.3g}, sample rate {plan.sample_rate:.3g}", fontsize=10)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        picture = io.BytesIO()
        kind = path.suffix.lower().removeprefix(".")
        # No date: the same plan gives the same bytes.
        figure.savefig(picture, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, picture.getvalue())
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=str(path)) from None
