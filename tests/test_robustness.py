"""What the benchmark of hostile merchants is made of: what they claim that their users bought, and titles with typing errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message

from benchmarks.hostile import ATTACKS, HostileClients, with_purchase
from benchmarks.robustness import garbled
from fedrec import wire
from fedrec.data import Catalogue
from fedrec.model.adapter import flat

from .conftest import make_catalogue, make_histories
from .helpers import PLANNED, make_federation, settings_of, simulate_with

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


def test_each_attack_passes_the_servers_checks_and_is_what_it_says(tiny_bert_folder: Path, tmp_path: Path) -> None:
    """One run, in which one merchant attacks in another way every round."""
    names, sent = list(ATTACKS), []
    config = settings_of(
        tiny_bert_folder, **{**PLANNED, "noise_multiplier": 5.0}, rounds=len(names), encoder_rounds=0, encoder_layers=0,
        calibrate=False,
    )  # fmt: skip

    def tamper(request: Message, context: Context, reply: Message) -> Message:
        if request.metadata.message_type == "train" and context.node_config["partition-id"] == 1:
            attack = names[int(request.content["task"]["round"]) - 1]
            reply = HostileClients(lambda *_: reply, config, {"m1"}, attack, "i0")(request, context)
            sent.append(flat(wire.decode_reply(reply).arrays))
        return reply

    folder = simulate_with(make_federation(tmp_path, policy={"epsilon": 1000.0}), config, tmp_path / "run", tamper)
    assert all(line["took_part"] == ["m0", "m1", "m2"] for line in folder.metrics())
    found = dict(zip(names, sent, strict=True))
    size = {name: float(np.linalg.norm(value)) for name, value in found.items()}
    assert size["push"] == pytest.approx(size["sign flip"], rel=1e-4)
    for name in set(names) - {"push", "sign flip"}:
        assert size[name] == pytest.approx(9.9 * size["push"], rel=1e-4), name
