"""What a run's recommender and a merchant's have in common for whoever asks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from fedrec.data import Catalogue
from fedrec.recommender.answers import Answer, Person, Ranker, Wish, answer_many
from fedrec.recommender.selection import Filter

__all__ = ["Recommending"]


class Recommending(ABC):
    """An answer for whoever asks.

    Attributes:
        catalogue: what is ranked.
    """

    catalogue: Catalogue

    @abstractmethod
    def _ranker(self, merchant: str | None) -> Ranker:
        """Who ranks."""

    def recommend(
        self,
        history: Sequence[str] | None = None,
        user_id: str | None = None,
        times: Sequence[object] | None = None,
        k: int = 10,
        query: str | None = None,
        filter: Filter | None = None,
        exclude: Sequence[str] = (),
        repeats: bool = False,
        diversity: float = 0.0,
        merchant: str | None = None,
    ) -> Answer:
        """A list for a person, and why it is as it is; see `Person` and `Wish` for the arguments.

        Unlike `rank` it has an answer for whoever asks: an item that is not in the catalogue is ignored, who has no
        history gets the popularity list, and filters that leave nothing get an empty one; the notes say so. A run knows
        no user by name, a merchant its own.

        Args:
            merchant: only this merchant's items of a run's catalogue.

        Raises:
            InputError: an argument that means nothing, an unknown merchant, or a filter on a column that the catalogue lacks.
        """
        wish = Wish(k, query, filter or Filter(), exclude, repeats, diversity)
        return self.recommend_many([Person(history, user_id, times)], wish, merchant)[0]

    def recommend_many(self, people: Sequence[Person], wish: Wish, merchant: str | None = None) -> list[Answer]:
        """`recommend` for many people, in their order."""
        return answer_many(self._ranker(merchant), people, wish)
