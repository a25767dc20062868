"""`fedrec merchant drift`: whether customers have moved away from what the model learned."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedrec.cli.merchant_own import Folder, Json, opened, tell_changed_roles
from fedrec.cli.terminal import out, print_json, table

if TYPE_CHECKING:
    from fedrec.privacy.next_run import NextRun
    from fedrec.recommender.drift import Window
    from fedrec.recommender.merchant_text import MerchantPlace

__all__ = ["drift"]


def drift(
    folder: Folder,
    weeks: Annotated[int, typer.Option(min=1, max=52, help="Weeks in a window.")] = 4,
    windows: Annotated[int, typer.Option(min=2, max=60, help="At most so many, the last ones.")] = 12,
    json: Json = False,
) -> None:
    """Hold the last weeks against those before: what is bought, by whom, and how often the model's list held it.

    Nothing follows from it by itself: neither a fit nor a run is started, and no server hears of it.
    """
    place = opened(folder)
    data = place.data()
    from fedrec.recommender.drifting import drift_of, drift_sentence

    found = drift_of(place, data, weeks, windows)
    version = place.versions.current
    cost, more = _next_run(place)
    sentence = f"{drift_sentence(found)} {more}"
    if json:
        said: dict[str, Any] = {"merchant": place.settings.name, "version": version, **asdict(found), "sentence": sentence}
        for window in said["windows"]:
            window |= {"start": window["start"].date().isoformat(), "end": window["end"].date().isoformat()}
        print_json({**said, "last_run": None if cost is None else asdict(cost), "changed_roles": place.changed_roles()})
        return
    title = f"{place.settings.name}: windows of {weeks} weeks, the last against the others"
    heads = ["to", "baskets", "buyers", f"mix by {found.by}", "new since", "baskets before", f"HR@{found.k} of the text", "users"]
    out.print(table(title, heads, [_row(window) for window in found.windows]))
    out.print(sentence, soft_wrap=True)
    tell_changed_roles(place.changed_roles())
    if not found.held_back:
        out.print("Nobody is held back from training here, so the model may know those whom it is measured on.", style="yellow")
    out.print("These figures come from your customers' data without noise: they are yours alone.", style="dim")


def _row(window: Window) -> list[str]:
    hits = window.hits
    rate = "-" if hits is None else f"{hits.mean:.3f} [{hits.low:.3f}, {hits.high:.3f}]"
    mix, unknown = ("-" if one is None else f"{one:.3f}" for one in (window.mix, window.unknown))
    users = "0" if hits is None else f"{hits.users:,}"
    return [
        window.end.date().isoformat(),
        f"{window.baskets:,}",
        f"{window.buyers:,}",
        mix,
        unknown,
        f"{window.history:g}",
        rate,
        users,
    ]


def _next_run(place: MerchantPlace) -> tuple[NextRun | None, str]:
    """What a run like the last would cost, None where that is not known; and the sentence that says so."""
    from clients.losses import open_ledger, refusal
    from clients.site import deployed_site
    from fedrec.deploy.layout import MerchantFolder
    from fedrec.privacy.next_run import next_run

    site, name, policy = deployed_site(MerchantFolder(place.path)), place.settings.name, place.settings.privacy
    ledger = open_ledger(site, name, policy.delta)
    if refusal(ledger, site, name):
        return None, "The ledger is broken, so no run's cost is known and nothing is released: see `fedrec merchant ledger`."
    found = next_run(ledger.releases(), policy.delta, policy.epsilon)
    return found, "Nothing was ever released here, so no run's cost is known." if found is None else found.sentence
