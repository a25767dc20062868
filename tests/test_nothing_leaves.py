"""What a merchant knows of its own customers changes no byte of what it sends, and is in none of it."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
from flwr.app import Message
from flwr.common.serde import recorddict_to_proto

from clients.merchant import forget_merchants
from fedrec.data import load_merchant
from fedrec.data.feedback import FEEDBACK, FeedbackEvent, FeedbackLog
from fedrec.model.versions import UNTRAINED
from fedrec.recommender.bandit import BANDIT
from fedrec.recommender.fitting import fit_merchant
from fedrec.recommender.impressions import IMPRESSIONS, Impression, ImpressionLog
from fedrec.recommender.learning import learn_bandit
from fedrec.recommender.measuring import measure_merchant
from fedrec.recommender.merchant_text import MerchantPlace
from fedrec.recommender.own_model import FILE, OwnModel
from fedrec.wire import DELIVER
from server.run_folder import RunFolder
from simulations.run import simulate

from .helpers import make_federation, recorded, settings_of

MERCHANTS = ("m0", "m1", "m2")
Crossed = list[tuple[Message, Message]]


def sent(crossed: Crossed) -> list[tuple[str, dict[str, Any], dict[str, bytes]]]:
    """What each reply holds: kind, what is said, and the bytes of its arrays."""
    found = []
    for request, reply in crossed:
        assert not reply.has_error() and set(reply.content) <= {"arrays", "statement", "receipt"}
        said = {f"{name}.{key}": value for name in ("statement", "receipt") for key, value in reply.content.get(name, {}).items()}
        arrays = {name: value.data for name, value in reply.content.get("arrays", {}).items()}
        found.append((request.metadata.message_type, said, arrays))
    return found


def run_of(federation: Path, bert: Path, out: Path) -> tuple[RunFolder, Crossed]:
    forget_merchants()
    with recorded(deliveries=True) as crossed:
        run = simulate(federation, settings_of(bert), out, record_wire=True)
    return run, crossed


def lists_that_explored(shop: Path) -> None:
    """What a service would have kept, with marks that are nowhere else, and a click for every third list."""
    log, items = ImpressionLog(shop, 10**6), load_merchant(shop).catalogue.item_ids
    policy = f"{MerchantPlace(shop).versions.current or UNTRAINED} 0.1"
    for number in range(30):
        request = f"shown-secret-{number}"
        log.append([
            Impression(request, "shown-secret-user", "2026-02-01T10:00:00.000000Z", items[(number + at) % len(items)],
                       str(at + 1), policy, "0.123456789", "0.5", "1.0")
            for at in range(4)
        ])  # fmt: skip
        event = FeedbackEvent(f"click-{number}", "shown-secret-user", items[number % len(items)], "2026-02-01T11:00:00Z", "click",
                              request_id=request)  # fmt: skip
        FeedbackLog(shop).append([event] if number % 3 == 0 else [])


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> dict[str, Any]:
    """One run before the merchants fitted anything, and the same one after."""
    folder = tmp_path_factory.mktemp("leaves")
    federation = make_federation(folder, users=120, searches=True)
    for name in MERCHANTS:
        path = federation / "merchants" / name / "merchant.toml"
        settings = {**tomllib.loads(path.read_text()), "users": {"choose": 0.4, "measure": 0.2}}
        path.write_text(tomli_w.dumps({**settings, "model": {"encoder": str(tiny_bert_folder), "device": "cpu"}}))
        (path.parent / "own").mkdir(mode=0o700)
        (path.parent / "own" / "users.key").write_bytes(name.encode() * 16)
    # In one place, one after the other: the run's name is in what is said.
    before, crossed = run_of(federation, tiny_bert_folder, folder / "run")
    shutil.copytree(before.path / "models", folder / "models")
    before.path.rename(folder / "first")
    models, measured, bandits = {}, {}, {}
    for name in MERCHANTS:
        shop = federation / "merchants" / name
        shutil.copytree(folder / "models" / name, shop / "model")
        place = MerchantPlace(shop)
        fit_merchant(place, place.data())
        measured[name] = measure_merchant(place, place.data())
        lists_that_explored(shop)
        bandits[name] = learn_bandit(place)
        models[name] = OwnModel.read(shop / "own")
    _, again = run_of(federation, tiny_bert_folder, folder / "run")
    found = {
        "federation": federation,
        "before": crossed,
        "after": again,
        "models": models,
        "measured": measured,
        "bandits": bandits,
    }
    return {**found, "first": folder / "first", "second": folder / "run"}


def test_there_is_something_that_could_leave(twice: dict[str, Any]) -> None:
    for name in MERCHANTS:
        shop, model = twice["federation"] / "merchants" / name, twice["models"][name]
        assert load_merchant(shop).searches.events > 100
        assert (shop / "own" / BANDIT).exists() and (shop / FEEDBACK / IMPRESSIONS).stat().st_size > 1000
        assert twice["bandits"][name].facts["rewarded"] == 10
        assert (shop / "own" / FILE).stat().st_size > 1000 and model.blend.users >= 30 and list((shop / "model").iterdir())

    assert len(twice["before"]) == len(MERCHANTS) * (1 + 3 + 1)
    assert {request.metadata.message_type for request, _ in twice["before"]} >= {"train", "train.histogram", DELIVER}


def test_replies_are_the_same_to_the_byte_with_and_without_an_own_layer(twice: dict[str, Any]) -> None:
    before, after = sent(twice["before"]), sent(twice["after"])
    varying = [key for (_, one, _), (_, other, _) in zip(before, after, strict=True) for key in one if one[key] != other[key]]
    assert set(varying) <= {"statement.run", "receipt.run", "receipt.digest"}, "but for the name of the run"
    for (kind, one, arrays), (other_kind, other, again) in zip(before, after, strict=True):
        assert kind == other_kind and set(one) == set(other) and arrays == again
        assert bool(arrays) == (kind != DELIVER)


def test_nothing_of_the_layer_or_its_figures_is_in_a_reply_or_a_servers_file(twice: dict[str, Any]) -> None:
    private: list[float] = []
    for name in MERCHANTS:
        model, measured = twice["models"][name], twice["measured"][name]
        for value in model.layer.arrays().values():
            if value.dtype == np.float32:
                private += value[np.abs(value) > 1e-6].tolist()
        learned = twice["bandits"][name].learned
        private += [*learned.effect.tolist(), *learned.sd.tolist(), learned.slope, 0.123456789]
        private += [model.blend.own, *model.blend.pooling.values(), *model.blend.priors.values()]
        private += [row[key] for row in measured["rows"] for key in ("ndcg@10", "mrr") if 0 < row[key] < 1]
    secret = np.array([value for value in private if value not in (0.0, 0.5, 1.0, 3.0)], dtype=np.float32)
    assert len(secret) > 500
    for _, reply in twice["after"]:
        for array in reply.content.get("arrays", {}).values():
            assert not np.isin(secret, np.abs(array.numpy().ravel())).any()
        said = [value for name in ("statement", "receipt") for value in reply.content.get(name, {}).values()]
        assert not np.isin(np.array([value for value in said if isinstance(value, float)], dtype=np.float32), secret).any()
        raw = recorddict_to_proto(reply.content).SerializeToString()
        for name in MERCHANTS:
            made_from = twice["models"][name].facts["made_from"].encode()
            key = (twice["federation"] / "merchants" / name / "own" / "users.key").read_bytes()
            assert made_from not in raw and key not in raw and b"customer-" not in raw and b"searched" not in raw
            assert b"shown-secret" not in raw
    for path in twice["second"].rglob("*"):
        if path.is_file():
            held = path.read_bytes()
            assert not [name for name in MERCHANTS if twice["models"][name].facts["made_from"].encode() in held], path
            assert b"searched-secret" not in held and b"shown-secret" not in held, path
            assert path.name not in (FILE, BANDIT, IMPRESSIONS, "users.key", "verdict.json")


def test_those_who_choose_and_are_measured_change_no_reply(twice: dict[str, Any], tiny_bert_folder: Path, tmp_path: Path) -> None:
    """They are in no round: without their events every reply is the same."""
    federation = tmp_path / "federation"
    shutil.copytree(twice["federation"], federation)
    for name in MERCHANTS:
        shop = federation / "merchants" / name
        data = load_merchant(shop)
        roles = MerchantPlace(shop).roles(data)
        kept = {data.histories.user_ids[user] for user in roles.train}
        assert len(kept) < len(data.histories)
        events = pd.read_parquet(shop / "events.parquet")
        events[events["user_id"].isin(kept)].to_parquet(shop / "events.parquet", index=False)
    _, crossed = run_of(federation, tiny_bert_folder, tmp_path / "run")
    for (kind, _, arrays), (other_kind, _, expected) in zip(sent(crossed), sent(twice["before"]), strict=True):
        assert kind == other_kind and arrays == expected
