"""`fedrec merchant fit` and `evaluate`: what a merchant makes of its own events, on its own machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedrec.cli.console import progress_bars
from fedrec.cli.merchant_responses import fit_responses_here, show_responses
from fedrec.cli.terminal import err, merchants_table, out, print_json, quiet_models, repeats_table, table
from fedrec.errors import InputError

if TYPE_CHECKING:
    from fedrec.data import MerchantData
    from fedrec.recommender.bandit import Bandit
    from fedrec.recommender.frequency import PersonalFrequency
    from fedrec.recommender.merchant_text import MerchantPlace

__all__ = ["Folder", "Json", "another_fit", "evaluate", "fit", "not_written", "opened", "say_learned", "tell_changed_roles"]

Folder = Annotated[Path, typer.Argument(help="The merchant's folder, with merchant.toml.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def fit(
    folder: Folder,
    force: Annotated[bool, typer.Option("--force", help="Also where nothing has changed since the last time.")] = False,
    json: Json = False,
) -> None:
    """Fit the own layer on all events, choose how it is joined with the text, and which adapters rank and predict."""
    place = opened(folder)
    with place.fitting(another_fit):
        data = place.data()
        said = (
            _fit(place, data, force, json) if place.settings.recommender.own_layer else _fit_text_alone(place, data, force, json)
        )
        responses = fit_responses_here(place, data, force, json)
        _learn(place, json)
    if json:
        print_json({**said, "changed": said["changed"] or bool(responses)} | ({"responses": responses} if responses else {}))


def another_fit() -> None:
    """Say why nothing happens yet."""
    err.print("another fit of this folder is going on; waiting for it to end")


def not_written(error: OSError, folder: Path) -> InputError:
    """What a fit ran into, for people."""
    return InputError(f"cannot be written ({error.strerror})", where=str(error.filename or folder))


def _fit(place: MerchantPlace, data: MerchantData, force: bool, json: bool) -> dict[str, Any]:
    """What is to be said in JSON; else it is said here."""
    from fedrec.recommender.fitting import fit_merchant, up_to_date

    if not force and up_to_date(place, data):
        return _unchanged({"changed": False}, "nothing has changed since the last fit; --force fits again", place, json)
    try:
        with _told("own layers") as tell:
            found = fit_merchant(place, data, tell)
    except OSError as error:
        raise not_written(error, place.path) from None
    _prune(place)
    said = found.to_json()
    if json:
        return {"changed": True, **said}
    model = found.model
    out.print(f"own layer: {model.layer.kind}, smoothing {model.blend.strength:g}, from {len(data.histories):,} users' events")
    if model.blend.users:
        out.print(f"weights chosen on {model.blend.users:,} users of your own: own layer {model.blend.own:.2f}", soft_wrap=True)
    else:
        out.print("too few users to choose on, so shared defaults hold", style="yellow", soft_wrap=True)
    out.print(_of_frequency(model.frequency), soft_wrap=True)
    tell_changed_roles(said["changed_roles"])
    for name, why in found.refused.items():
        out.print(f"version {name} cannot be used here: {why}", style="yellow", soft_wrap=True)
    if found.compared:
        best = max(found.compared.values())
        on = "those users" if model.blend.users else "those who train, since those who choose are too few"
        rows = [[name, f"{value:.4f}", "ranks" if value == best else ""] for name, value in found.compared.items()]
        out.print(table(f"NDCG on {on}, each with the own layer", ["version", "NDCG@10", ""], rows))
    kept = " (as `fedrec merchant model use` has it, until the next one arrives)" if model.facts["by_hand"] else ""
    out.print(f"ranks from now on: {said['version']}{kept}", soft_wrap=True)
    return {}


def _learn(place: MerchantPlace, json: bool) -> None:
    """What lists that explored taught, beside what ranks now. It is no reason for a fit to fail."""
    from fedrec.recommender.learning import learn_again, remove_bandit

    try:
        found = learn_again(place)
    except InputError as error:
        remove_bandit(place)
        err.print(f"nothing was learned from lists that explored: {error}", style="yellow", soft_wrap=True)
        return
    if found is not None and not json:
        say_learned(found)


def say_learned(found: Bandit) -> None:
    """How much lists that explored had to teach, for people."""
    facts = found.facts
    out.print(
        f"learned from {facts['lists']:,} lists that explored: {facts['places']:,} places with {facts['items']:,} items, "
        f"of which {facts['rewarded']:,} were clicked or bought", soft_wrap=True,
    )  # fmt: skip
    if others := facts["lists_of_other_versions"]:
        out.print(f"left out: {others:,} lists that another version ranked", style="yellow", soft_wrap=True)


def evaluate(
    folder: Folder,
    html: Annotated[Path | None, typer.Option(help="Also write a page there, made from your customers' data: keep it.")] = None,
    json: Json = False,
) -> None:
    """Measure, on users of your own that nothing was trained on, what you have alone and with the federation."""
    place = opened(folder)
    data = place.data()
    from fedrec.recommender.contest import SERVED, TEXT
    from fedrec.recommender.measuring import measure_merchant
    from fedrec.recommender.response_fit import measure_responses
    from fedrec.report.merchant_report import write_merchant_report

    with _told("own layers") as tell:
        found = measure_merchant(place, data, tell)
    found["responses"] = measure_responses(place, data)
    if html is not None:
        write_merchant_report(html, found)
    found["own_layer"] = place.settings.recommender.own_layer
    if json:
        print_json(found)
        return
    users = found["users"]
    title = f"{found['merchant']}: {users['measured']:,} users who are in no training, full catalogue, 95% intervals"
    out.print(merchants_table(found, found["k"], title))
    tell_changed_roles(found["changed_roles"])
    for part in found["parts"]:
        said = ", ".join(f"{row} {value:.4f}" for row, value in part["ndcg"].items())
        out.print(f"{part['name']} ({part['users']:,} users), NDCG@{found['k']}: {said}", soft_wrap=True)
    if found["refused"] is not None:
        out.print(f"the newest adapter cannot be used here: {found['refused']}", style="yellow", soft_wrap=True)
    elif (gain := found["gain"]) is None:
        out.print("no adapter has come home yet, so there is nothing to compare with", style="yellow")
    else:
        out.print(
            f"What federation pays here: NDCG@{found['k']} {gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}] "
            "over what you have alone, user by user", soft_wrap=True,
        )  # fmt: skip
    if (again := found["repeats"]) is not None:
        rows, gain = {row["name"]: row for row in again["rows"]}, again["gain"]
        count = int(again["rows"][0]["users"])
        title = f"Where people buy again: whole last baskets of {count:,} such users, nothing masked, 95% intervals"
        out.print(repeats_table(rows, found["k"], title))
        out.print(
            f"What personal frequency adds: NDCG@{found['k']} {gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}], "
            "user by user", soft_wrap=True,
        )  # fmt: skip
    if found["responses"] is not None:
        show_responses(found["responses"])
    if not found["own_layer"]:
        row = TEXT if found["version"] is None else SERVED
        out.print(
            f"The own layer is turned off in merchant.toml: what ranks is the row '{row}', "
            "with weights that your users had no part in", soft_wrap=True,
        )  # fmt: skip
    out.print("These figures come from your customers' data without noise: they are yours alone.", style="dim")
    if html is not None:
        out.print(f"page: {html}", soft_wrap=True)


def _of_frequency(found: PersonalFrequency) -> str:
    if not found.weight:
        why = f"chosen on {found.users:,} users of your own" if found.users else "nobody has bought anything again"
        return f"with --repeats: personal frequency does not count ({why})"
    on = f"chosen on {found.users:,} users of your own" if found.users else "too few users to choose on, so shared defaults"
    return f"with --repeats: personal frequency counts with weight {found.weight:g} and decay {found.decay:g} a basket ({on})"


def _fit_text_alone(place: MerchantPlace, data: MerchantData, force: bool, json: bool) -> dict[str, Any]:
    from fedrec.recommender.text_alone import settle, settled

    if not force and settled(place):
        said = "the own layer is turned off, and nothing has arrived since; --force compares again"
        return _unchanged({"changed": False, "own_layer": False}, said, place, json)
    found = settle(place, data)
    _prune(place)
    if json:
        return {"changed": True, **found.to_json()}
    out.print("the own layer is turned off in merchant.toml: there is none, and no weight was chosen", soft_wrap=True)
    tell_changed_roles(found.changed_roles)
    for name, why in found.refused.items():
        out.print(f"version {name} cannot be used here: {why}", style="yellow", soft_wrap=True)
    if found.compared:
        rows = [[name, f"{value:.4f}", "ranks" if name == found.version else ""] for name, value in found.compared.items()]
        out.print(table("NDCG on your choosing users", ["version", "NDCG@10", ""], rows))
    out.print(f"ranks from now on: {found.version}", soft_wrap=True)
    return {}


def _unchanged(found: dict[str, bool], said: str, place: MerchantPlace, json: bool) -> dict[str, Any]:
    # No fit is made from the record of earlier releases, so that may have changed, or been lost.
    changed = place.changed_roles()
    if not json:
        out.print(said)
        tell_changed_roles(changed)
    return {**found, "changed_roles": changed}


def _prune(place: MerchantPlace) -> None:
    """Empty the merchant's own cache of encoders that nothing kept needs; one that it may share is left alone."""
    from fedrec.deploy.layout import MerchantFolder
    from fedrec.model.cache import prune_caches
    from fedrec.model.encoder import cache_folder

    folder = cache_folder()
    if folder.resolve().is_relative_to(MerchantFolder(place.path).cache.resolve()):
        prune_caches(folder, place.encoders_in_use())


def tell_changed_roles(why: str | None) -> None:
    """Say why some of those who choose or are measured may have trained, where some may."""
    if why is not None:
        out.print(why, style="yellow", soft_wrap=True)


def opened(folder: Path) -> MerchantPlace:
    """A merchant's folder, with its own cache of encoders where it is a deployed one's."""
    from fedrec.deploy.layout import MerchantFolder

    merchant = MerchantFolder(folder.resolve())
    if merchant.state.is_dir():
        os.environ.setdefault("FEDREC_CACHE", str(merchant.cache))
    quiet_models()
    from fedrec.recommender.merchant_text import MerchantPlace

    return MerchantPlace(merchant.path)


@contextmanager
def _told(what: str) -> Iterator[Callable[[int, int], None]]:
    with progress_bars(left=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)
