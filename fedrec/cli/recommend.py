"""`fedrec recommend`: a list for one person, or for a file of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

import typer

from fedrec.cli.asking import (
    FILES,
    Brand,
    Category,
    Exclude,
    Folder,
    History,
    Json,
    K,
    Merchant,
    PriceMax,
    PriceMin,
    Query,
    Repeats,
    Stock,
    Times,
    User,
    comma_separated,
    excluded,
    ids_in,
    times_of,
)  # fmt: skip
from fedrec.cli.console import progress_bars
from fedrec.cli.terminal import out, print_json, quiet_models, table
from fedrec.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from fedrec.recommender import Answer, Person, Wish
    from fedrec.recommender.recommending import Recommending

__all__ = ["recommend", "show_answer"]

CHUNK = 1000
"""People who are answered between two steps of the progress bar."""
NOTES = 5
"""Most frequent notes that are shown of many answers."""


def recommend(
    path: Folder,
    history: History = None,
    times: Times = None,
    user: User = None,
    query: Query = None,
    merchant: Merchant = None,
    k: K = 10,
    category: Category = None,
    brand: Brand = None,
    price_min: PriceMin = None,
    price_max: PriceMax = None,
    stock: Stock = None,
    exclude: Exclude = "",
    repeats: Repeats = False,
    diversity: Annotated[
        float, typer.Option(min=0, max=1, help="From 0, the best items, to 1, items that are least alike.")
    ] = 0.0,
    explore: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of the places that go by chance to items of uncertain value; not with --query."),
    ] = 0.0,
    seed: Annotated[int | None, typer.Option(min=0, help="Of that chance, for the same list again.")] = None,
    learn_from: Annotated[
        Path | None, typer.Option(help="With --explore: a log of what was shown and what came of it, to learn from.")
    ] = None,
    users: Annotated[
        Path | None, typer.Option(help="CSV or Parquet with user_id, and item_id and timestamp where histories are given.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--out", help="CSV or Parquet to write the lists of --users to.")] = None,
    json: Json = False,
) -> None:
    """Recommend items for a history, a known user or words; or for all users of a file."""
    _check_batch(users, to, history or times or user)
    if learn_from is not None and not explore:
        raise InputError("is given without --explore", where="--learn-from", expected="both, or --explore alone")
    quiet_models()
    from fedrec.recommender import Filter, Person, Wish

    only = None if stock is None else ids_in(stock)
    wanted = Filter(category or (), brand or (), price_min, price_max, only, excluded(exclude))
    wish = Wish(k, query, wanted, repeats=repeats, diversity=diversity, explore=explore, seed=seed)
    if users is not None and to is not None:
        people = _people(users)
        _answer_all(_opened(path, learn_from), people, wish, merchant, to, json)
        return
    person = Person(None if history is None else comma_separated(history), user, None if times is None else times_of(times))
    recommender = _opened(path, learn_from)
    (answer,) = recommender.recommend_many([person], wish, merchant)
    show_answer(answer, dict(zip(recommender.catalogue.item_ids, recommender.catalogue.texts, strict=True)), json)


def _opened(path: Path, log: Path | None) -> Recommending:
    from fedrec.recommender import Recommender

    recommender = Recommender.load(path)
    if log is not None:
        recommender.learn_from(log)
    return recommender


def _check_batch(users: Path | None, to: Path | None, single: str | None) -> None:
    """Before anything is loaded, which takes seconds."""
    if (users is None) != (to is None):
        raise InputError("one is given without the other", where="--users and --out", expected="both, or neither")
    if users is None or to is None:
        return
    if single:
        raise InputError("one person and a file of users are asked for", where="--users", hint="leave one of them out")
    if to.suffix not in FILES:
        raise InputError(f"found {to.name}", where="--out", expected="a name that ends in .csv or .parquet")
    if not to.parent.is_dir():
        raise InputError("its folder is not there", where=f"--out {to}", expected="a file to write")
    if to.resolve() == users.resolve():
        raise InputError("is the file of --users", where=f"--out {to}", expected="another name")


def _people(path: Path) -> dict[str, Person]:
    """The users of a file, in the order in which they first come; their histories where it has items."""
    from fedrec.data import Columns
    from fedrec.data.tables import read_table
    from fedrec.recommender import Person
    from fedrec.recommender.answers import time_numbers

    if path.suffix not in FILES:
        raise InputError(f"found {path.name}", where="--users", expected="a .csv or .parquet table")
    found = read_table(path)
    found.require((Columns.USER,))
    frame = found.frame
    if frame.empty:
        raise InputError("there is no user", where=str(path))
    if (blank := frame[Columns.USER].isna()).any():
        raise InputError("is empty", where=found.at(Columns.USER, int(blank.idxmax())), expected="a user")
    names = frame[Columns.USER].unique().tolist()
    if Columns.ITEM not in frame:
        return {name: Person(user_id=name) for name in names}
    events = frame[frame[Columns.ITEM].notna()]
    numbers = None
    if Columns.TIME in events:
        numbers = time_numbers(events[Columns.TIME].tolist(), lambda row: found.at(Columns.TIME, int(events.index[row])))
    people = {name: Person([], name) for name in names}
    items = events[Columns.ITEM].to_numpy()
    for name, rows in events.groupby(Columns.USER, sort=False).indices.items():
        people[str(name)] = Person(items[rows].tolist(), str(name), None if numbers is None else numbers[rows].tolist())
    return people


def _answer_all(
    recommender: Recommending, people: dict[str, Person], wish: Wish, merchant: str | None, to: Path, json: bool
) -> None:
    names = list(people)
    answers: list[Answer] = []
    with progress_bars(left=True) as progress:
        task = progress.add_task("users", total=len(names))
        for start in range(0, len(names), CHUNK):
            part = [people[name] for name in names[start : start + CHUNK]]
            answers += recommender.recommend_many(part, wish, merchant)
            progress.advance(task, len(part))
    _write(_table(names, answers), to)
    sources = Counter(answer.source for answer in answers)
    if json:
        print_json({"out": str(to), "users": len(names), "sources": dict(sources)})
        return
    said = ", ".join(f"{count:,} from {source}" for source, count in sources.most_common())
    out.print(f"{to}: lists for {len(names):,} users: {said}", soft_wrap=True)
    for note, count in Counter(note for answer in answers for note in answer.notes).most_common(NOTES):
        out.print(f"{count:,} times: {note}", style="yellow", soft_wrap=True)


def _table(names: Sequence[str], answers: Sequence[Answer]) -> pd.DataFrame:
    import pandas as pd

    rows = [
        (name, rank, item, score, answer.source)
        for name, answer in zip(names, answers, strict=True)
        for rank, (item, score) in enumerate(answer.items, 1)
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "rank", "item_id", "score", "source"])
    if any(answer.places for answer in answers):
        # As the log has it. An id is new each time, so that the lists of several nights can be in one log.
        ids = [uuid4().hex for _ in answers]
        frame["request_id"] = [name for name, answer in zip(ids, answers, strict=True) for _ in answer.items]
        frame["position"] = frame["rank"]
        frame[["propensity", "value", "target"]] = [place for answer in answers for place in answer.places]
    return frame


def _write(frame: pd.DataFrame, to: Path) -> None:
    """Whole or not at all."""
    temporary = to.with_name(f".{to.name}.tmp")
    try:
        if to.suffix == ".csv":
            frame.to_csv(temporary, index=False)
        else:
            frame.to_parquet(temporary, index=False)
        temporary.replace(to)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=f"--out {to}") from None
    finally:
        temporary.unlink(missing_ok=True)


def show_answer(answer: Answer, texts: dict[str, str], json: bool) -> None:
    """A list, what made it and what is to be said of it; each item with its text."""
    places = answer.places
    if json:
        items = [{"item_id": item, "score": score, "text": texts[item]} for item, score in answer.items]
        items = [{**one, **place._asdict()} for one, place in zip(items, places, strict=True)] if places else items
        print_json({"items": items, "source": answer.source, "distance": answer.distance, "notes": list(answer.notes)})
        return
    if answer.items:
        lines = [[item, f"{score:.3f}", texts[item]] for item, score in answer.items]
        columns = ["item", "score", "text"]
        if places:
            columns.append("propensity")
            lines = [[*line, f"{place.propensity:.3g}"] for line, place in zip(lines, places, strict=True)]
        out.print(table("", columns, lines))
    distance = "" if answer.distance is None else f"; mean distance between its items {answer.distance:.3f}"
    out.print(f"source: {answer.source}{distance}", style="dim", soft_wrap=True)
    for note in answer.notes:
        out.print(note, style="yellow", soft_wrap=True)
