"""What `fedrec merchant fit` and `evaluate` say of the response model, where one has come home."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedrec.cli.terminal import out, table
from fedrec.errors import InputError

if TYPE_CHECKING:
    from fedrec.data import MerchantData
    from fedrec.recommender.merchant_text import MerchantPlace

__all__ = ["fit_responses_here", "show_responses"]


def fit_responses_here(place: MerchantPlace, data: MerchantData, force: bool, json: bool) -> dict[str, Any] | None:
    """Compare and calibrate where something has changed: what is to be said in JSON, else it is said here."""
    from fedrec.recommender.response_fit import fit_responses, responses_up_to_date

    if not force and responses_up_to_date(place, data):
        return None
    try:
        found = fit_responses(place, data)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=str(error.filename or place.path)) from None
    if found is None or json:
        return None if found is None else found.to_json()
    for name, why in found.refused.items():
        out.print(f"version {name} cannot be used here: {why}", style="yellow", soft_wrap=True)
    own = found.own
    if found.compared:
        rows = [[name, f"{value:.4f}", "predicts" if name == own.version else ""] for name, value in found.compared.items()]
        out.print(table("Log-loss of responses on your own users, each calibrated on them", ["version", "log-loss", ""], rows))
    else:
        out.print("too few users with impressions of both answers to compare response models on", style="yellow", soft_wrap=True)
    if own.users:
        said = f"slope {own.slope:.2f} and intercept {own.intercept:+.2f} of the logit"
        out.print(f"calibrated on {own.users:,} users of your own: {said}", soft_wrap=True)
    kept = " (as `fedrec merchant model use` has it, until the next one arrives)" if own.by_hand else ""
    out.print(f"predicts responses from now on: {own.version or 'nothing'}{kept}", soft_wrap=True)
    return None


def show_responses(found: dict[str, Any]) -> None:
    """Print what `measure_responses` found."""
    first = found["rows"][0]
    title = f"Responses: {first['impressions']:,.0f} impressions of {first['users']:,.0f} measured users, 95% intervals"
    rows = [
        [row["name"], *(f"{row[name]:.4f} [{row[name + '_low']:.4f}, {row[name + '_high']:.4f}]" for name in ("auc", "log_loss")),
         f"{row['ece']:.4f}"]
        for row in found["rows"]
    ]  # fmt: skip
    out.print(table(title, [found["version"], "AUC", "log-loss", "ECE"], rows))
    if found["gain"] is None:
        out.print("too few choosing users with impressions of both answers: nothing to calibrate or compare with", style="yellow")
        return
    said = [f"{name} {one['mean']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]" for name, one in found["gain"].items()]
    out.print(f"The last over popularity here, user by user: {', '.join(said)}", soft_wrap=True)
