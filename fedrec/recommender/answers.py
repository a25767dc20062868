"""What a person asks for and what the answer is: always a list, with the part that made it and the reasons.

Whoever ranks (a run's model, a merchant's with its own layer) is a `Ranker`; who falls back on what, and what is said
about it, is decided here and is the same for all of them:

    a history                  the ranker's own scores
    words                      those of a search, joined with the history's where there is one
    neither, or none is left   the popularity list
    nothing may be shown       an empty list
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import pandas as pd

from fedrec.data import Catalogue, ItemDetails
from fedrec.errors import InputError
from fedrec.model.ranking import blocks
from fedrec.recommender.exploring import Explorer, Place, check_explore, generator_for
from fedrec.recommender.frequency import PersonalFrequency
from fedrec.recommender.past import Past, bought_events
from fedrec.recommender.reasons import Reasons, Shares, reasons_of
from fedrec.recommender.selection import Filter, choose, intra_list_distance
from fedrec.recommender.words.searcher import Searcher

__all__ = [
    "NOTHING",
    "POPULARITY",
    "SEARCH",
    "Answer",
    "Person",
    "Ranker",
    "Wish",
    "answer_each",
    "answer_many",
    "answer_search",
    "first_few",
    "time_numbers",
]

POPULARITY, SEARCH, NOTHING = "popularity", "search", "none"
"""Sources of an answer beside a ranker's own."""
NAMED = 3
"""Items that a note names before it counts the others."""
DATE = r"\s*\d{4}-\d"


class Ranker(Protocol):
    """What an answer needs of whoever ranks."""

    @property
    def source(self) -> str:
        """What its own scores are called in an answer."""

    @property
    def catalogue(self) -> Catalogue:
        """What a history may name and a list may hold."""

    @property
    def details(self) -> ItemDetails:
        """Brand, category and price of the catalogue's items."""

    @property
    def vectors(self) -> np.ndarray:
        """(items, width) the items as candidates: what diversity is measured on."""

    @property
    def frequency(self) -> PersonalFrequency:
        """What is added where a list may hold what was bought before."""

    def notes(self, query: str | None) -> tuple[str, ...]:
        """What is to be said of the words, each a sentence."""

    def scores(self, pasts: Sequence[Past], query: str | None) -> np.ndarray:
        """(users, items) float32, -inf for what it does not offer. Without a query no past is empty.

        Raises:
            InputError: there are no words in the query.
        """

    def shares(self, past: Past, query: str | None, items: np.ndarray) -> Shares:
        """What each part adds to the scores of these items (positions of what it offers), frequency left out. Without a query
        an empty past has shares of the popularity list.
        """

    def popularity(self) -> np.ndarray:
        """(items,) float32, -inf for what it does not offer."""

    def past_of(self, user_id: str) -> Past | None:
        """What this user did here; None for a user it does not know."""


@dataclass(frozen=True)
class Person:
    """For whom a list is.

    Attributes:
        history: item ids, most recent last; what counts where it is given, whoever the user is.
        user_id: a user whose own events are looked up.
        times: for each item of the history an ISO 8601 time, or a number that grows with time. Items of one time are one
            basket. Without times each item is a basket of its own.
    """

    history: Sequence[str] | None = None
    user_id: str | None = None
    times: Sequence[object] | None = None


@dataclass(frozen=True)
class Wish:
    """What a list is to be like.

    Attributes:
        k: most items.
        query: words for what is looked for; a history then orders what they find.
        filter: what it may hold.
        exclude: item ids that it must not hold, beside the filter's.
        repeats: whether it may hold what is in the history; without words, how often and how recently that was bought then
            counts too.
        diversity: from 0, the best items, to 1, items that are least alike.
        explain: whether the answer has the reasons of each item.
        explore: share of the places, 0 to 1, that go to items of uncertain value by chance; not with a query; see
            `docs/exploration.md`.
        seed: of that chance, for the same list again; by default the operating system's.
    """

    k: int = 10
    query: str | None = None
    filter: Filter = field(default_factory=Filter)
    exclude: Sequence[str] = ()
    repeats: bool = False
    diversity: float = 0.0
    explain: bool = False
    explore: float = 0.0
    seed: int | None = None


@dataclass(frozen=True)
class Answer:
    """A list and why it is as it is.

    Attributes:
        items: (item id, score), in the order in which they are to be shown.
        source: what made it: the ranker's `source`, `search`, both with a plus between, `popularity` (scores are counts) or
            `none`.
        notes: what was ignored, missing or fallen back on, each a sentence.
        distance: mean of one minus the cosine over the pairs of the list; None for fewer than two items.
        reasons: of each item, in the same order; empty where they were not asked for.
        places: how each place was given, with its propensity, in the same order; empty without `explore`.
    """

    items: list[tuple[str, float]]
    source: str
    notes: tuple[str, ...] = ()
    distance: float | None = None
    reasons: tuple[Reasons, ...] = ()
    places: tuple[Place, ...] = ()


def answer_many(ranker: Ranker, people: Sequence[Person], wish: Wish, explorer: Explorer | None = None) -> list[Answer]:
    """An answer for each person, in their order; users are scored in blocks.

    Raises:
        InputError: an argument that means nothing, or a filter on a column that the catalogue lacks.
    """
    check_explore(wish.explore, wish.seed, wish.query)
    allowed, notes = _allowed(ranker, wish)
    return [
        answer
        for rows in blocks(len(people), len(ranker.catalogue))
        for answer in _block(ranker, people[rows], wish, allowed, notes, explorer)
    ]


def answer_search(ranker: Ranker, searcher: Searcher, wish: Wish) -> Answer:
    """The best items for the wish's query alone; what a filter leaves out changes nothing of the rest.

    Raises:
        InputError: there are no words, an argument that means nothing, or a filter on a column that the catalogue lacks.
    """
    allowed, about = _allowed(ranker, wish)
    offered = allowed & (ranker.popularity() > -np.inf)
    found = searcher.search(wish.query or "")
    (best,) = choose(found.scores[None], wish.k, np.zeros((0, 2), dtype=np.int64), offered)
    items = [(ranker.catalogue.item_ids[item], score) for item, score in best]
    notes = (*found.notes, *about, *_shortness(len(best), replace(wish, repeats=True), allowed))
    distance = intra_list_distance(ranker.vectors, [item for item, _ in best])
    return Answer(items, SEARCH if items else NOTHING, notes, distance)


def _allowed(ranker: Ranker, wish: Wish) -> tuple[np.ndarray, list[str]]:
    """(items,) what a list may hold, and what is to be said of it."""
    if wish.k < 1:
        raise InputError(f"found {wish.k}", where="k", expected="at least 1")
    if isinstance(wish.exclude, str):
        raise InputError(f"found the text {wish.exclude!r}", where="exclude", expected="a list")
    wanted = replace(wish.filter, exclude=(*wish.filter.exclude, *wish.exclude))
    parts = wanted.parts(ranker.catalogue, ranker.details)
    allowed: np.ndarray = np.logical_and.reduce([np.ones(len(ranker.catalogue), dtype=bool), *parts.values()])
    return allowed, _notes_on(wanted, parts, allowed, ranker.catalogue)


def answer_each(
    ranker: Ranker, asked: Sequence[tuple[Person, Wish]], explorer: Explorer | None = None
) -> list[Answer | InputError]:
    """What `answer_many` answers each person under a wish of their own; those without words are scored together.

    A score may differ in its last digits by how many are. What is wrong with one question is that one's answer.
    """
    found: list[Answer | InputError | None] = [None] * len(asked)
    open_: list[_Open] = []
    for place, (person, wish) in enumerate(asked):
        try:
            check_explore(wish.explore, wish.seed, wish.query)
            allowed, about = _allowed(ranker, wish)
            past, notes = _past(ranker, person)
            open_.append(_Open(place, person, past, wish, allowed, [*notes], about))
        except InputError as error:
            found[place] = error
    plain = [one for one in open_ if one.going and not one.wish.query]
    together = ranker.scores([one.past for one in plain], None) if plain else np.zeros((0, 0), dtype=np.float32)
    scores = dict(zip([one.place for one in plain], together[:, None], strict=True))  # (1, items) each
    for one in open_:
        try:
            if one.place not in scores:
                scores[one.place] = ranker.scores([one.past], one.wish.query) if one.going else ranker.popularity()[None]
            elif one.wish.repeats:
                scores[one.place] = scores[one.place] + _frequency(ranker, [one.past])
            row = scores.pop(one.place)
            (found[one.place],) = _answers(
                ranker, row, [one.person], [one.past], [one.going], one.wish, one.allowed, [one.notes], one.about, explorer
            )
        except InputError as error:
            found[one.place] = error
    return [one for one in found if one is not None]


@dataclass(frozen=True)
class _Open:
    """A question that can be answered, as `answer_each` works on it."""

    place: int
    person: Person
    past: Past
    wish: Wish
    allowed: np.ndarray
    notes: list[str]
    about: list[str]

    @property
    def going(self) -> bool:
        return bool(self.wish.query) or len(self.past.items) > 0


def _block(
    ranker: Ranker, people: Sequence[Person], wish: Wish, allowed: np.ndarray, about: list[str], explorer: Explorer | None
) -> list[Answer]:
    pasts, notes = zip(*(_past(ranker, person) for person in people), strict=True)
    going = [bool(wish.query) or len(past.items) > 0 for past in pasts]
    scores = np.empty((len(people), len(allowed)), dtype=np.float32)
    if any(going):
        known = [past for past, some in zip(pasts, going, strict=True) if some]
        scores[going] = ranker.scores(known, wish.query)
        if wish.repeats and not wish.query:  # who uses words says what is wanted, and that is not the usual
            scores[going] += _frequency(ranker, known)
    if not all(going):
        scores[~np.array(going)] = ranker.popularity()
    return _answers(ranker, scores, people, pasts, going, wish, allowed, notes, about, explorer)


def _frequency(ranker: Ranker, pasts: Sequence[Past]) -> np.ndarray:
    """(users, items) what is added where people buy again."""
    return ranker.frequency.scores(bought_events(pasts), (len(pasts), len(ranker.catalogue)))


def _answers(
    ranker: Ranker, scores: np.ndarray, people: Sequence[Person], pasts: Sequence[Past], going: Sequence[bool], wish: Wish,
    allowed: np.ndarray, notes: Sequence[list[str]], about: list[str], explorer: Explorer | None,
) -> list[Answer]:  # fmt: skip
    """From scores (users, items) to lists."""
    if not wish.explore:
        explorer = None
    elif explorer is None:
        raise ValueError("explorer: needed where lists explore")
    masked = [(user, item) for user, past in enumerate(pasts) for item in past.bought.tolist() if not wish.repeats]
    pairs = np.array(masked, dtype=np.int64).reshape(-1, 2)
    by = scores if explorer is None else explorer.ranked(scores, ~np.array(going))
    lists = choose(by, wish.k, pairs, allowed, wish.diversity, ranker.vectors if wish.diversity else None)
    answers, words = [], (*ranker.notes(wish.query), *(() if explorer is None else explorer.notes))
    for user, (past, found, some, said) in enumerate(zip(pasts, lists, going, notes, strict=True)):
        places: tuple[Place, ...] = ()
        if explorer is not None:
            may = allowed & (scores[user] > -np.inf)
            may[pairs[pairs[:, 0] == user, 1]] = False
            rng = generator_for(wish.seed, people[user].user_id, past.items.tolist())
            found, places = explorer.places(found, scores[user], may, wish.explore, rng, counts=not some)
        rows = [item for item, _ in found]
        source = _source(ranker, past, wish.query)
        if not some:
            said = [*said, "there is no history to go by, so this is the popularity list"]
        short = _shortness(len(found), wish, allowed)
        items = [(ranker.catalogue.item_ids[item], score) for item, score in found]
        distance = intra_list_distance(ranker.vectors, rows) if len(rows) > 1 else None
        reasons = reasons_of(ranker, past, found, wish.query, wish.repeats) if wish.explain and found else ()
        answers.append(Answer(items, source if items else NOTHING, (*said, *words, *about, *short), distance, reasons, places))
    return answers


def _source(ranker: Ranker, past: Past, query: str | None) -> str:
    if not len(past.items):
        return SEARCH if query else POPULARITY
    return f"{ranker.source} + {SEARCH}" if query else ranker.source


def _past(ranker: Ranker, person: Person) -> tuple[Past, list[str]]:
    """What a person did, as far as it is known, and what is not."""
    nothing = Past(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    if person.history is None:
        if person.times is not None:
            raise InputError("there are times and no history", where="times", expected="a time for each item of the history")
        if person.user_id is None:
            return nothing, []
        if (known := ranker.past_of(person.user_id)) is None:
            return nothing, [f"user {person.user_id!r} is not known here"]
        return known, [] if len(known.items) else [f"nothing is known here of user {person.user_id!r}"]
    if isinstance(person.history, str):
        raise InputError(f"found the text {person.history!r}", where="history", expected="a list of item ids")
    positions = ranker.catalogue.positions(person.history)
    times = person.times
    if times is not None and (isinstance(times, str) or len(times) != len(positions)):
        found = "found a text" if isinstance(times, str) else f"found {len(times)}"
        raise InputError(found, where="times", expected=f"a list of {len(positions)}, one for each item of the history")
    gone = [item for item, position in zip(person.history, positions, strict=True) if position < 0]
    notes = [f"not in the catalogue, so ignored: {first_few([repr(item) for item in gone])}"] if gone else []
    kept = positions >= 0
    if times is None:
        return Past(positions[kept], np.arange(int(kept.sum()))), notes
    # As `Histories` has it: a basket holds an item once, in the catalogue's order.
    moments, basket = np.unique(time_numbers(times)[kept], return_inverse=True)
    pairs = np.unique(np.stack([basket, positions[kept]], axis=1), axis=0)
    dates = None if _numbers(times) else moments.astype("datetime64[us]")[pairs[:, 0]]
    return Past(pairs[:, 1], pairs[:, 0], None, dates), notes


def _numbers(times: Sequence[object]) -> bool:
    return all(isinstance(time, int | float | np.integer | np.floating) and np.isfinite(time) for time in times)


def time_numbers(times: Sequence[object], place: Callable[[int], str] = "times[{}]".format) -> np.ndarray:
    """Times as numbers that grow with them, (events,); see `Person`.

    Args:
        place: what an error calls the place of a time.

    Raises:
        InputError: one of them is no time.
    """
    if _numbers(times):
        return np.array(times, dtype=np.float64)
    texts = pd.Series([str(time) for time in times], dtype=object)
    # As in a table of events: a number could be seconds or a date, and pandas would also read `now`.
    parsed = pd.to_datetime(texts.where(texts.str.match(DATE)), errors="coerce", format="ISO8601", utc=True)
    if parsed.isna().any():
        row = int(parsed.isna().argmax())
        raise InputError(
            f"{texts[row]!r} is not a time", where=place(row),
            expected="ISO 8601, such as 2026-01-31 or 2026-01-31T09:30:00, for all of them, or numbers for all",
        )  # fmt: skip
    return np.asarray(parsed.dt.tz_localize(None).astype("datetime64[us]").astype(np.int64))


def _notes_on(wanted: Filter, parts: dict[str, np.ndarray], allowed: np.ndarray, catalogue: Catalogue) -> list[str]:
    """What is to be said of the filters, whoever asks."""
    notes = []
    stock = list(wanted.only or ())
    if gone := [stock[place] for place in np.flatnonzero(catalogue.positions(stock) < 0)]:
        notes.append(f"in stock and not in the catalogue, so ignored: {first_few([repr(item) for item in gone])}")
    if parts and not allowed.any():
        each = ", ".join(f"{name} {int(part.sum()):,}" for name, part in parts.items())
        notes.append(f"the filters leave none of the {len(catalogue):,} items; each alone leaves: {each}")
    return notes


def _shortness(found: int, wish: Wish, allowed: np.ndarray) -> list[str]:
    if found >= wish.k or not allowed.any():
        return []
    seen = "" if wish.repeats else "; what is in the history is not repeated"
    return [f"{found:,} of the {wish.k:,} asked for: nothing else is left to choose from{seen}"]


def first_few(values: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(values) - NAMED:,} more" if len(values) > NAMED else ""
    return ", ".join(values[:NAMED]) + more
