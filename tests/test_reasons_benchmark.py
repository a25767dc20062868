"""The benchmark of reasons, on a small model: what it takes away and reads again, against the same by hand."""

# ruff: noqa: F811

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.reasons import deletion, measure
from benchmarks.reasons_cases import MOST, Case, Subject, cases_of, seen
from benchmarks.reasons_words import WORD_WAYS, gradients_of, word_deletion
from fedrec.recommender import Recommender
from fedrec.recommender.past import Past
from fedrec.recommender.reasons.words import split_words

from .conftest import make_histories
from .test_answers import recommender  # noqa: F401


@pytest.fixture(scope="module")
def subject(recommender: Recommender) -> Subject:
    longer = Recommender(
        recommender.encoder, recommender.arrays, {**recommender.settings, "history": 20}, recommender.table, "cpu"
    )
    return Subject("small", longer, make_histories(40, recommender.catalogue, 9))


@pytest.fixture(scope="module")
def cases(subject: Subject) -> list[Case]:
    """With items whose texts are long enough first."""
    found = cases_of(subject, subject.pasts(40))
    long = [number for number, text in enumerate(subject.ranker.catalogue.texts) if len(text.split()) > MOST]
    rng = np.random.default_rng(0)
    scores = subject.ranker.scores([one.past for one in found], None)  # of what the history holds too
    return [
        Case(one.past, row, [int(rng.choice(long)), *one.items[1:]], one.named, one.direction)
        for one, row in zip(found[:8], scores[:8], strict=True)
    ]


def test_deleting_is_what_it_says(subject: Subject) -> None:
    (case, *_) = cases_of(subject, subject.pasts(5))
    lost = deletion(subject, [case])[0]
    by_hand = np.zeros(3)
    for item, named in zip(case.items, case.named, strict=True):
        kept = ~np.isin(case.past.items, named[:2])
        scores = subject.ranker.scores([Past(case.past.items[kept], case.past.baskets[kept])], None)[0]
        scores[case.past.items] = -np.inf
        chance = np.exp(scores - scores.max())
        before = seen(case.scores, item)
        by_hand += np.array(
            [before[0] - scores[item], (scores > scores[item]).sum() + 1 - before[1], before[2] - (chance / chance.sum())[item]]
        )
    assert lost[0, 1, 0] == pytest.approx(by_hand / len(case.items), abs=1e-5)


def test_gradients_are_complete_and_agree_with_the_words_of_the_whole_way(subject: Subject, cases: list[Case]) -> None:
    gradients, text = gradients_of(subject), subject.ranker.catalogue.texts[cases[0].items[0]]
    shares, error = gradients.shares(text, split_words(text), cases[0].direction)
    assert len(shares) == len(text.split()) and abs(error) < 0.05 * max(np.abs(shares).max(), 1.0)
    found = word_deletion(subject, cases)
    assert found["pairs"] == len(cases) and found["lost"].shape == (len(cases), len(WORD_WAYS), MOST, 2, 3)
    best = found["lost"][:, WORD_WAYS.index("left out"), 0, 0, 0]
    assert (best >= found["lost"][:, :, 0, 0, 0].max(axis=1) - 5e-3).all(), "no one word is worth more than the best to leave out"


def test_all_figures_of_a_subject_are_measured(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.reasons_words.FEWEST", 3)
    monkeypatch.setattr("benchmarks.reasons.FEWEST", 3)
    figures, lines = measure(subject, 6, 6, 1)
    assert figures["users"] == 6 and set(figures["seconds"]) == {"without", "with", "in words"}
    assert figures["randomised"]["10"]["items"]["mean"] < 0.99
    assert any(line.startswith("| score lost, top 5 |") for line in lines)
