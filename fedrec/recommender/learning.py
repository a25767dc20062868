"""`fedrec explore learn`: a merchant's bandit, from its own log of what was shown and the feedback to it."""

from __future__ import annotations

from dataclasses import replace

from fedrec.config import flush_folder
from fedrec.errors import InputError
from fedrec.model.versions import UNTRAINED
from fedrec.recommender.bandit import BANDIT, Bandit
from fedrec.recommender.exploring import Explorer, Shown
from fedrec.recommender.impressions import has_shown, read_shown, version_of
from fedrec.recommender.merchant_text import MerchantPlace
from fedrec.recommender.of_merchant import MerchantRecommender

__all__ = ["learn_again", "learn_bandit", "remove_bandit"]


def learn_bandit(place: MerchantPlace) -> Bandit:
    """Learn from all lists in the log that the current version ranked, as if nothing had been learned before, and write it.

    Beside another version a `value` means something else. Call it under `place.fitting`.

    Raises:
        InputError: the own layer is turned off, there is no list of this version that explored, or what is there cannot be
            read.
    """
    if not place.settings.recommender.own_layer:
        raise InputError(
            "is off, so nothing that was computed from customers ranks here, and nothing is learned",
            where="merchant.toml, recommender.own_layer", expected="true",
        )  # fmt: skip
    table = read_shown(place.path)
    recommender = MerchantRecommender(place)
    version = None if recommender.adapter is None else recommender.adapter.name
    ours = table.frame["policy"].map(version_of) == (version or UNTRAINED)
    lists, every = (int(frame["request_id"].nunique()) for frame in (table.frame[ours], table.frame))
    if not lists:
        raise InputError(
            f"has no list that explored under version {version or UNTRAINED}, which ranks now; {every:,} of others are left out",
            where=table.name, hint="what is shown from now on will count",
        )  # fmt: skip
    shown = Shown.of(replace(table, frame=table.frame[ours]), recommender.catalogue)
    ranker = recommender._ranker(None)
    explorer = Explorer.of(ranker.vectors, ranker.popularity())
    feedback = shown.among(explorer.offered)
    facts = {
        "lists": lists, "places": len(feedback.item), "rewarded": int(feedback.reward.sum()),
        "items": len(set(feedback.item.tolist())), "lists_of_other_versions": every - lists,
    }  # fmt: skip
    names = [ranker.catalogue.item_ids[item] for item in explorer.offered]
    found = Bandit.of(names, explorer.prior, feedback, version, facts)
    found.write(place.own)
    return found


def learn_again(place: MerchantPlace) -> Bandit | None:
    """The same where there is something to learn from; else nothing that was learned stays.

    Raises:
        InputError: what is there cannot be read.
    """
    if place.settings.recommender.own_layer and has_shown(place.path):
        return learn_bandit(place)
    remove_bandit(place)
    return None


def remove_bandit(place: MerchantPlace) -> bool:
    """Remove what was learned; whether there was anything."""
    path = place.own / BANDIT
    if not path.exists():
        return False
    path.unlink()
    flush_folder(place.own)
    return True
