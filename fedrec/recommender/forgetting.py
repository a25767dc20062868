"""`fedrec merchant forget`: a person's events out of a merchant's folder, and the own layer as if they had never been there.

What was released before is not called back: see `STAYS`. Nothing here prints, logs or keeps the person's id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedrec.config import flush_folder
from fedrec.data.erasing import erase_user, rows_of_user
from fedrec.data.feedback import FEEDBACK, LOG, mended
from fedrec.data.kinds import MISSING, counts_as_history, counts_as_target
from fedrec.data.schema import Columns as C
from fedrec.data.tables import Table, find_table, read_table
from fedrec.errors import InputError
from fedrec.recommender.bandit import BANDIT
from fedrec.recommender.fitting import fit_merchant, up_to_date
from fedrec.recommender.impressions import BEFORE, IMPRESSIONS, erase_impressions, find_impressions
from fedrec.recommender.learning import learn_again, remove_bandit
from fedrec.recommender.merchant_text import LOCK, MerchantPlace
from fedrec.recommender.own_model import FILE
from fedrec.recommender.responding import FILE as RESPONSES
from fedrec.recommender.response_fit import fit_responses, responses_up_to_date

__all__ = ["STAYS", "Layer", "Traces", "check_gone", "erase", "find_traces", "may_have_layer", "renew_bandit", "renew_layer"]

SHOWN = (IMPRESSIONS, BEFORE)
STAYS = (
    "the privacy ledger: it says what was released, and of no one in particular",
    "stored replies: they were released with noise, and a repeated request must get the same bytes",
    "what adapters learned, here and elsewhere: it is bounded by the epsilon in the ledger",
    "what other people's lists showed while this person's events counted: items, values and propensities were computed from "
    "those too, and what lists that explored taught is learned from them",
    "backups and copies of your tables: they are yours to clear",
)
"""What an erasure leaves, for people."""


@dataclass(frozen=True)
class Traces:
    """Where a person is.

    Attributes:
        place: whose customer it is.
        files: rows of each table that has some.
        in_database: rows that the events query gives; None where events are in files.
    """

    place: MerchantPlace
    files: Mapping[Path, int]
    in_database: int | None

    @property
    def found(self) -> bool:
        """Whether there is anything, also where it cannot be taken out from here."""
        return bool(self.files or self.in_database)


@dataclass(frozen=True)
class Layer:
    """What became of the own layer.

    Attributes:
        state: there was none, it needed nothing, it was fitted anew, or it was removed since that was not possible; or nothing
            could be done about it.
        why: why not.
    """

    state: Literal["none", "unchanged", "fitted", "removed", "not renewed"]
    why: str | None = None


def find_traces(place: MerchantPlace, user_id: str) -> Traces:
    """Look through events and feedback, and change nothing.

    Raises:
        InputError: no id, or a table or the database cannot be read.
    """
    if not user_id.strip() or user_id in MISSING:
        raise InputError("is no user's id", where="USER")
    in_database = None
    if place.settings.data.url is not None:
        events = _events(place)
        events.require((C.USER,))
        in_database = int(events.frame[C.USER].eq(user_id).sum())
    return Traces(place, _rows_in_files(place, user_id), in_database)


def erase(traces: Traces, user_id: str) -> dict[Path, int]:
    """Take the rows out of the files; how many of each. Interrupted, it has done some of them; done again, it does the others.

    What a service writes is searched again for all that came, or moved to another file, since the traces were found.

    Raises:
        InputError: a file cannot be written or has changed meanwhile.
    """
    folder = traces.place.path
    log = folder / FEEDBACK / LOG
    services = (log, *(folder / FEEDBACK / name for name in SHOWN))
    with mended(folder):
        # What was shown goes first: the feedback says which of the lists that were for nobody by name were this person's.
        removed = erase_impressions(folder, user_id)
        if log.is_file():
            removed[log] = erase_user(log, user_id)
    removed |= {path: erase_user(path, user_id) for path in traces.files if path not in services}
    return {path: count for path, count in removed.items() if count}


def check_gone(traces: Traces, user_id: str) -> None:
    """Search the files once more, when all is done.

    Raises:
        InputError: the person is in one of them, or it cannot be read.
    """
    if left := _rows_in_files(traces.place, user_id):
        raise InputError(
            f"{sum(left.values()):,} rows of this person came meanwhile", where=", ".join(map(str, left)), expected="none",
            hint="run this again once nothing writes them any more, such as a service that this person uses",
        )  # fmt: skip


def may_have_layer(place: MerchantPlace) -> bool:
    """Whether there is an own layer or a bandit, or a fit that has begun may yet write one.

    Raises:
        InputError: `own/` cannot be read.
    """
    try:
        return any(path.name in (FILE, RESPONSES, BANDIT, LOCK) for path in place.own.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(place.own)) from None


def renew_layer(place: MerchantPlace, erased: bool, tell: Callable[[int, int], None] = lambda *_: None) -> Layer:
    """Fit the own layer on what is left, wherever there is one that was made from anything else.

    A layer that cannot be fitted anew is removed: the one that is there knows the person. It is called after the erasure and
    under `MerchantPlace.fitting`, so that what a fit made of what it read before is not what stays.

    Args:
        erased: whether something was taken out just now.
        tell: is told how many layers are fitted, of how many.

    Raises:
        InputError: nothing was taken out, and the tables cannot be read.
    """
    if erased:
        place.versions.empty_verdicts()
        place.versions_of("response").empty_verdicts()
    try:
        _renew_responses(place)
    except Exception:
        _renew_ranking(place, erased, tell)  # neither may keep what the other could not lose
        raise
    return _renew_ranking(place, erased, tell)


def _renew_ranking(place: MerchantPlace, erased: bool, tell: Callable[[int, int], None]) -> Layer:
    if not (place.own / FILE).exists():
        return Layer("none")
    if not place.settings.recommender.own_layer:
        return _removed(place, "it is turned off in merchant.toml")
    try:
        data = place.data()
        if _holds(place, lambda: up_to_date(place, data)):
            return Layer("unchanged")
        place.versions.empty_verdicts()
        fit_merchant(place, data, tell)
        return Layer("fitted")
    except InputError as error:
        if not erased and _has_targets(place):
            raise
        return _removed(place, str(error))
    except Exception:
        _removed(place, "")  # whatever goes wrong, the layer that knows the person must not stay
        raise


def _renew_responses(place: MerchantPlace) -> None:
    """Calibrate the response model on who is left; where that cannot be done, it predicts as it was delivered."""
    if not (place.own / RESPONSES).exists():
        return
    try:
        data = place.data()
        if not responses_up_to_date(place, data):
            place.versions_of("response").empty_verdicts()
            fit_responses(place, data)
    except InputError:
        (place.own / RESPONSES).unlink(missing_ok=True)
        flush_folder(place.own)
    except Exception:
        (place.own / RESPONSES).unlink(missing_ok=True)  # as of the layer
        raise


def renew_bandit(place: MerchantPlace) -> Layer:
    """Learn anew from the lists that are left, wherever something was learned; see `renew_layer`, after which this comes."""
    if not remove_bandit(place):
        return Layer("none")
    try:
        return Layer("removed" if learn_again(place) is None else "fitted")
    except InputError as error:
        return Layer("removed", str(error))


def _removed(place: MerchantPlace, why: str) -> Layer:
    (place.own / FILE).unlink(missing_ok=True)
    flush_folder(place.own)
    return Layer("removed", why)


def _rows_in_files(place: MerchantPlace, user_id: str) -> dict[Path, int]:
    source, tables = place.settings.data, _feedback(place)
    if source.url is None:
        tables.insert(0, find_table(place.path / (source.path or ""), "events"))
    with mended(place.path):
        rows = find_impressions(place.path, user_id) | {path: rows_of_user(path, user_id) for path in tables}
    return {path: count for path, count in rows.items() if count}


def _feedback(place: MerchantPlace) -> list[Path]:
    folder = place.path / FEEDBACK
    shown = [folder / name for name in SHOWN]
    found = sorted(path for suffix in ("csv", "parquet", "jsonl") for path in folder.rglob(f"*.{suffix}"))
    return [path for path in found if path.is_file() and not path.name.startswith(".") and path not in shown]


def _events(place: MerchantPlace) -> Table:
    source = place.settings.data
    if source.url is None:
        return read_table(find_table(place.path / (source.path or ""), "events"))
    from fedrec.data.sql import read_queries

    return read_queries(source, place.path)[1]


def _has_targets(place: MerchantPlace) -> bool:
    """Whether anything is left of which a layer could be made, be it in rows that have another fault."""
    events, source = _events(place).frame, place.settings.data
    return bool((counts_as_history(events, source.history_events) & counts_as_target(events, source.target_events)).any())


def _holds(place: MerchantPlace, asked: Callable[[], bool]) -> bool:
    try:
        return asked()
    except InputError:
        return False  # a layer or a version that cannot be read is fitted anew
