"""What the benchmark of hostile merchants is made of: what they claim that their users bought, and titles with typing errors."""

from __future__ import annotations

import numpy as np

from benchmarks.hostile import with_purchase
from benchmarks.robustness import garbled
from fedrec.data import Catalogue

from .conftest import make_catalogue, make_histories

TITLES = Catalogue(("1", "2"), ("grey stone lamp 4 x", "warm linen shirt"))


def test_a_pushed_item_is_every_users_last_basket_and_the_rest_is_as_it_was() -> None:
    catalogue = make_catalogue(20)
    before = make_histories(9, catalogue, 5)
    after = with_purchase(before, 7)
    assert after.user_ids == before.user_ids
    for user in range(9):
        (items, baskets), (known, numbers) = after.of(user), before.of(user)
        assert items.tolist() == [*known, 7] and baskets.tolist() == [*numbers, numbers[-1] + 1]


def test_titles_without_errors_are_as_they_were() -> None:
    assert garbled(TITLES, 0.0, False, 0) == TITLES


def test_an_error_changes_a_word_by_one_letter_and_its_place() -> None:
    found = garbled(TITLES, 1.0, False, 0)
    assert found.item_ids == TITLES.item_ids and found == garbled(TITLES, 1.0, False, 0)
    for old, new in zip(" ".join(TITLES.texts).split(), " ".join(found.texts).split(), strict=True):
        assert abs(len(old) - len(new)) <= 1 and set(new) <= set(old)
        assert (new == old) == (len(old) == 1), (old, new)


def test_the_share_of_words_with_an_error() -> None:
    many = Catalogue(("1",), (" ".join(["abcdef"] * 2000),))
    wrong = np.mean([word != "abcdef" for word in garbled(many, 0.3, False, 0).texts[0].split()])
    assert abs(wrong - 0.3) < 0.05


def test_shuffled_titles_have_the_same_words() -> None:
    found = garbled(TITLES, 0.0, True, 1)
    assert [sorted(text.split()) for text in found.texts] == [sorted(text.split()) for text in TITLES.texts]
    assert found != TITLES
