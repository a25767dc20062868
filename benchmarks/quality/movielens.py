"""MovieLens-100K (Harper and Konstan, TiiS 2015) as merchants, out of the wheel of the package `recbole`, which carries it.

    pip download --no-deps --dest FOLDER recbole

The wheel is read as the archive it is; nothing of it is installed. Merchants are occupations, which split the users without
looking at what they did; those of fewer than 50 users are one merchant together. An item's text is title and year, and its
genres as category; a film that is there under two ids is two items. **Every rating is an event**, whatever its value, as the
literature on next-item ranking has it: that somebody rated a film says that it was seen. Ratings of the same second are a
basket, as the protocol has it. Users rate many films in one sitting, in the order in which the site showed them: what comes
next says as much of that site as of taste, for every row alike.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pandas as pd

from fedrec.data.kinds import RATING
from fedrec.data.schema import Columns as C
from fedrec.errors import InputError

__all__ = ["movielens_tables"]

PARTS = ("inter", "item", "user")
INSIDE = "recbole/dataset_example/ml-100k"
FEWEST = 50
"""Users under which an occupation is not a merchant of its own."""
OTHERS = "occupations-under-50"


def movielens_tables(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Items and events in the form that `fedrec data split` reads.

    Args:
        source: the wheel, or a folder with `ml-100k.inter`, `.item` and `.user` in RecBole's format.

    Raises:
        InputError: it is neither, or a file or column is missing.
    """
    ratings, films, users = (_table(source, part) for part in PARTS)
    where = str(source)
    _require(ratings, ("user_id", "item_id", "rating", "timestamp"), f"{where}: ml-100k.inter")
    _require(films, ("item_id", "movie_title", "release_year", "class"), f"{where}: ml-100k.item")
    _require(users, ("user_id", "occupation"), f"{where}: ml-100k.user")
    # A text that was told as one of several tokens keeps its spaces; a film without a year has its title alone.
    year = films["release_year"].str.strip()
    items = pd.DataFrame(
        {
            C.ITEM: "m" + films["item_id"],
            C.TITLE: films["movie_title"].str.strip() + (" (" + year + ")").where(year != "", ""),
            C.CATEGORY: films["class"].str.strip().str.split().str.join(", "),
        }
    )
    occupation = users.set_index("user_id")["occupation"]
    size = occupation.map(occupation.value_counts())
    merchant = occupation.where(size >= FEWEST, OTHERS)
    events = pd.DataFrame(
        {
            C.MERCHANT: ratings["user_id"].map(merchant),
            C.USER: "u" + ratings["user_id"],
            C.ITEM: "m" + ratings["item_id"],
            C.TIME: pd.to_datetime(ratings["timestamp"].astype("int64"), unit="s"),
            C.EVENT: RATING,
            C.VALUE: ratings["rating"],
        }
    )
    return items, events


def _table(source: Path, part: str) -> pd.DataFrame:
    """One of the files as text, its columns without RecBole's types: `user_id:token` is `user_id`."""
    name = f"ml-100k.{part}"
    try:
        if source.is_dir():
            content = (source / name).read_bytes()
        else:
            with zipfile.ZipFile(source) as wheel:
                content = wheel.read(f"{INSIDE}/{name}")
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise InputError(
            f"{name} cannot be read ({error})", where=str(source), expected="the wheel of recbole, or a folder with its ml-100k",
            hint="pip download --no-deps --dest FOLDER recbole",
        ) from None  # fmt: skip
    frame = pd.read_csv(io.BytesIO(content), sep="\t", dtype=str, keep_default_na=False, quoting=3)
    return frame.rename(columns=lambda column: column.partition(":")[0])


def _require(frame: pd.DataFrame, columns: tuple[str, ...], where: str) -> None:
    missing = [column for column in columns if column not in frame]
    if missing:
        raise InputError(f"column {missing[0]!r} is missing", where=where, expected=f"the columns {', '.join(columns)}")
