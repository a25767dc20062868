"""A response model at a merchant: kept beside the one that ranks, used where it is better than popularity, and asked."""

# ruff: noqa: F811

from __future__ import annotations

import json
import shutil
import stat
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from typer.testing import CliRunner

from fedrec.cli.main import app
from fedrec.data import Columns
from fedrec.errors import InputError
from fedrec.model import Scoring, centred
from fedrec.model.adapter import TERMS, Arrays
from fedrec.model.towers import log_prior
from fedrec.model.versions import KEPT, Versions
from fedrec.recommender import MerchantRecommender, Recommender, forgetting
from fedrec.recommender.fitting import fit_merchant
from fedrec.recommender.merchant_text import MerchantPlace
from fedrec.recommender.own_model import FILE as LAYER
from fedrec.recommender.responding import FILE, OwnResponses, impressions_of
from fedrec.recommender.response_fit import POPULARITY, fit_responses, measure_responses
from fedrec.serve.keys import Keys

from .stores import SHARE, client_of, response_model, with_key
from .test_cli_errors import Fedrec, fedrec  # noqa: F401
from .test_merchant_recommender import make_shop, with_settings

USER = "customer-3-secret"
SHARES = {"choose": 0.3, "measure": 0.3}


def add_impressions(folder: Path) -> None:
    """Each user is shown things after the first basket, and responds to every third item."""
    events, rng = pd.read_csv(folder / "events.csv", parse_dates=[Columns.TIME]), np.random.default_rng(2)
    shown = events.sample(frac=2, replace=True, random_state=0).reset_index(drop=True)
    number = rng.integers(0, 24, len(shown))
    answer = rng.random(len(shown)) < np.where(number % 3 == 0, 0.8, 0.1)
    shown = shown.assign(item_id=[f"i{one}" for one in number], event="impression", value=answer.astype(int))
    shown[Columns.TIME] += pd.Timedelta(hours=1)
    pd.concat([events.assign(event="purchase"), shown]).to_csv(folder / "events.csv", index=False)


@pytest.fixture(scope="module")
def adapter(shop_once: Path, tiny_bert_folder: Path) -> tuple[Arrays, dict[str, Any]]:
    """A model whose linear terms know which items are responded to, and the legal settings of a delivery."""
    return response_model(shop_once, tiny_bert_folder)


@pytest.fixture(scope="module")
def shop_once(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> Path:
    """A merchant with impressions and a fitted own layer, to whom nothing has come."""
    folder = make_shop(tmp_path_factory.mktemp("shown") / "shop", tiny_bert_folder, 200)
    with_settings(folder, model={"encoder": str(tiny_bert_folder), "device": "cpu"}, users=SHARES)
    add_impressions(folder)
    place = MerchantPlace(folder)
    fit_merchant(place, place.data())
    return folder


@pytest.fixture
def shop(shop_once: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    shutil.copytree(shop_once, tmp_path / "shop")
    return tmp_path / "shop"


@pytest.fixture(scope="module")
def home(shop_once: Path, adapter: tuple[Arrays, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, where the model has come home and was found good. Nothing changes it."""
    folder = tmp_path_factory.mktemp("home") / "shop"
    shutil.copytree(shop_once, folder)
    keep(folder, *adapter)
    place = MerchantPlace(folder)
    fit_responses(place, place.data())
    return folder


def keep(folder: Path, arrays: Arrays, settings: dict[str, Any], **changes: Any) -> str:
    return Versions(folder / "model", "response").keep(arrays, {**settings, **changes})[0]


def of_ranking(settings: dict[str, Any]) -> dict[str, Any]:
    """What is said of one that ranks, with the same arrays but for the linear terms."""
    return {name: value for name, value in settings.items() if name not in ("objective", "negative_share")} | {"run": "ranked"}


def test_one_current_version_of_each_objective(tmp_path: Path, adapter: tuple[Arrays, dict[str, Any]]) -> None:
    arrays, settings = adapter
    ranking, response, basket = Versions.of_each_objective(tmp_path / "model")
    assert (ranking.objective, response.objective, basket.objective) == ("next-item", "response", "basket")
    first = ranking.keep(arrays, of_ranking(settings))[0]
    shown = [response.keep(arrays, {**settings, "round": number})[0] for number in range(1, 3 + KEPT)]
    assert (ranking.names(), response.names()) == ([first], shown) and ranking.arrived() == first
    ranking.use(first)
    response.use(shown[0])
    assert (ranking.current, response.current) == (first, shown[0])
    for versions in (ranking, response):
        versions.tidy()
    assert ranking.names() == [first] and response.names() == [shown[0], *shown[-KEPT:]]
    with pytest.raises(InputError, match="no version"):
        ranking.use(shown[-1])
    response.use(None)
    assert (ranking.current, response.current) == (first, None)
    assert response.keep(arrays, {**settings, "round": KEPT + 2}) == (shown[-1], True), "it is known"


def test_impressions_are_those_that_counting_finds(home: Path) -> None:
    """Each with the latest events of the baskets that came before it, and nothing later."""
    histories, length = MerchantPlace(home).data().histories, 3
    users = np.array([5, 0, 17, 44])
    found = impressions_of(histories, users, length)
    assert found is not None and histories.shown is not None
    place = 0
    for user in users:
        held, baskets = histories.of(int(user))
        for row in range(histories.shown.offsets[user], histories.shown.offsets[user + 1]):
            before = int(histories.shown.before[row])
            if before == 0:
                continue
            known = np.flatnonzero(baskets < before)[-length:]
            at = found.asked.owner[place]
            valid = found.asked.valid[at]
            assert sorted(found.asked.items[at][valid]) == sorted(held[known])
            assert np.array_equal(found.asked.ages[at][valid], before - baskets[known])
            asked = (found.user[place], found.asked.shown[place], found.answer[place])
            assert asked == (user, histories.shown.items[row], histories.shown.answer[row])
            place += 1
    assert place == len(found.user) > 10


def test_a_prediction_is_the_formula_with_slope_and_intercept(home: Path, adapter: tuple[Arrays, dict[str, Any]]) -> None:
    arrays, settings = adapter
    place, own = MerchantPlace(home), OwnResponses.read(home / "own")
    catalogue, scoring = place.data().catalogue, Scoring(**settings["scoring"])
    assert own is not None and own.users > 30 and own.slope != 1
    e, prior = centred(place.encoder(None).embed(catalogue), arrays).numpy(), log_prior(arrays["prior.counts"], 1.0)
    held, shown = [0, 5, 7, 9, 2], [3, 4, 23]
    weights = np.exp(-scoring.decay * np.arange(4)[::-1])
    mean = (weights / weights.sum()) @ e[held[-4:]]
    a, d = arrays[TERMS][:, :-1]
    cosine = e @ (mean / np.linalg.norm(mean))
    logit = scoring.temperature * cosine + scoring.prior_weight * prior + scoring.bias + mean @ a + e @ d
    wanted = expit(own.slope * logit + own.intercept + np.log(SHARE))
    found = Recommender.load(home).predict(*([catalogue.item_ids[row] for row in rows] for rows in (held, shown)))
    np.testing.assert_allclose(found, wanted[shown], rtol=1e-4)


def test_what_arrives_is_used_where_it_is_better(fedrec: Fedrec, shop: Path, adapter: tuple[Arrays, dict[str, Any]]) -> None:
    arrays, settings = adapter
    asked = ["predict", shop, "--history", "i0,i1", "--items", "i3,i4"]
    refused = fedrec(*asked)
    assert refused.status == 2 and "no response model has come home" in refused.err
    good, ranking = keep(shop, arrays, settings), Versions(shop / "model").current
    said = json.loads(fedrec("merchant", "fit", shop, "--json").out)
    assert (
        said["responses"]["version"] == good and said["responses"]["log_loss"][good] < said["responses"]["log_loss"][POPULARITY]
    )
    assert Versions(shop / "model").current == ranking and Versions(shop / "model", "response").current == good
    file = shop / "own" / FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and f'"{good}"' in file.read_text()
    likely, unlikely = (one["probability"] for one in json.loads(fedrec(*asked, "--json").out)["predictions"])
    assert likely > 0.5 > 0.2 > unlikely
    spoilt = keep(shop, {**arrays, TERMS: -arrays[TERMS]}, settings, round=4)
    assert "predicts responses from now on: " + good in fedrec("merchant", "fit", shop).out.replace("\n", " ")
    versions = Versions(shop / "model", "response")
    assert versions.current == good and versions.verdict(spoilt)["predicts"] is False  # type: ignore[index]
    assert json.loads(fedrec("merchant", "fit", shop, "--json").out)["changed"] is False

    listed = json.loads(fedrec("merchant", "model", "list", shop, "--json").out)
    assert [(one["version"], one["objective"], one["current"]) for one in listed["versions"]] == [
        (spoilt, "response", False), (good, "response", True),
    ]  # fmt: skip
    assert listed["others"]["response"] == {"current": good, "arrived": None}
    assert "predicts responses now" in fedrec("merchant", "model", "use", shop, spoilt).out.replace("\n", " ")
    fedrec("merchant", "fit", shop)
    assert versions.current == spoilt, "as a person has it"
    assert json.loads(fedrec("merchant", "model", "show", shop, spoilt, "--json").out)["objective"] == "response"


@pytest.mark.parametrize("factor", [-1.0, 0.0], ids=["the opposite", "next to nothing"])
def test_one_that_is_no_better_than_popularity_is_not_used(
    shop: Path, adapter: tuple[Arrays, dict[str, Any]], factor: float
) -> None:
    arrays, settings = adapter
    keep(shop, {**arrays, TERMS: np.float32(factor) * arrays[TERMS]}, settings)
    place = MerchantPlace(shop)
    found = fit_responses(place, place.data())
    assert found is not None and found.own.version is None and place.versions_of("response").current is None
    with pytest.raises(InputError, match="no response model is in use here"):
        MerchantRecommender(place).predict(["i0"], ["i1"])


def test_turned_off_nothing_of_the_users_is_in_a_prediction(
    shop: Path, adapter: tuple[Arrays, dict[str, Any]], tiny_bert_folder: Path
) -> None:
    with_settings(shop, model={"encoder": str(tiny_bert_folder), "device": "cpu"}, recommender={"own_layer": False}, users=SHARES)
    keep(shop, *adapter)
    place = MerchantPlace(shop)
    found = fit_responses(place, place.data())
    assert found is not None and found.own == OwnResponses(found.own.version) and found.own.version is not None
    assert MerchantRecommender(place).predict(["i0"], ["i3"])[0] > 0.5


def test_the_measured_users_say_what_it_is_worth(home: Path) -> None:
    place = MerchantPlace(home)
    found = measure_responses(place, place.data())
    assert found is not None and found["users"] > 30
    first, delivered, last = found["rows"]
    assert last["auc"] == pytest.approx(delivered["auc"]) and last["log_loss"] < delivered["log_loss"] < first["log_loss"]
    assert found["gain"]["auc"]["low"] > 0.1 and found["gain"]["log_loss"]["high"] < 0
    roles, data = place.roles(place.data()), place.data()
    assert found["rows"][0]["users"] <= len(roles.measure) and data.histories.shown is not None
    shown = CliRunner().invoke(app, ["merchant", "evaluate", str(home)]).stdout
    assert "Responses:" in shown and "popularity here" in shown


def test_who_is_forgotten_has_no_part_in_the_calibration(shop: Path, adapter: tuple[Arrays, dict[str, Any]]) -> None:
    """It is, to the byte, that of a merchant where they never were."""
    keep(shop, *adapter)
    place = MerchantPlace(shop)
    chosen = place.data().histories.user_ids[int(place.roles(place.data()).choose[0])]
    without = shop.parent / "without"
    shutil.copytree(shop, without)
    fit_responses(place, place.data())
    before, versions = (shop / "own" / FILE).read_bytes(), place.versions_of("response")
    assert versions.verdict(str(versions.newest))["log_loss"]  # type: ignore[index]
    assert CliRunner().invoke(app, ["merchant", "forget", str(shop), chosen, "--yes"]).exit_code == 0
    events = pd.read_csv(without / "events.csv", dtype=str)
    events[events[Columns.USER] != chosen].to_csv(without / "events.csv", index=False)
    fit_responses(MerchantPlace(without), MerchantPlace(without).data())
    assert (shop / "own" / FILE).read_bytes() == (without / "own" / FILE).read_bytes() != before
    assert versions.verdict(str(versions.newest)) == {} and versions.arrived() is None


def test_where_the_calibration_cannot_be_renewed_the_layer_is(
    shop: Path, adapter: tuple[Arrays, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(shop, *adapter)
    place = MerchantPlace(shop)
    fit_responses(place, place.data())
    (shop / "own" / LAYER).write_bytes(b"it knows the person")
    events = pd.read_csv(shop / "events.csv", dtype=str)
    events[events[Columns.USER] != USER].to_csv(shop / "events.csv", index=False)

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(forgetting, "fit_responses", full)
    with pytest.raises(OSError, match="no space"):
        forgetting.renew_layer(place, erased=True)
    assert not (shop / "own" / FILE).exists()
    assert not (shop / "own" / LAYER).exists() or b"it knows" not in (shop / "own" / LAYER).read_bytes()


def test_the_service_predicts_for_a_history_and_names_nobody(home: Path, shop_once: Path, tmp_path: Path) -> None:
    Keys.open(tmp_path / "keys.toml", ["shop"])
    keys = tomllib.loads((tmp_path / "keys.toml").read_text())["keys"]["shop"]
    asked = {"history": ["i0", "i1"], "items": ["i3", "i4"]}
    with client_of(home, tmp_path / "keys.toml", keys["shop"]) as client:
        found = client.post("/v1/predict", json=asked)
        assert found.status_code == 200, found.text
        said = found.json()
        wanted = Recommender.load(home).predict(asked["history"], asked["items"])
        assert [one["item_id"] for one in said["predictions"]] == ["i3", "i4"] and said["model"].startswith("shown-00003")
        np.testing.assert_allclose([one["probability"] for one in said["predictions"]], wanted, rtol=1e-6)
        known = {"user_id": USER, "items": ["i3"]}
        assert client.post("/v1/predict", json=known).status_code == 401
        staff = client.post("/v1/predict", json=known, headers=with_key(keys["staff"]))
        assert staff.status_code == 200 and 0 < staff.json()["predictions"][0]["probability"] < 1
        assert client.post("/v1/predict", json={**known, "user_id": "nobody"}, headers=with_key(keys["staff"])).status_code == 422
        for wrong in ({"items": ["i3"]}, {**asked, "items": ["gone"]}, {**asked, "k": 3}, {**asked, "items": []}):
            assert client.post("/v1/predict", json=wrong).status_code == 422, wrong
        assert client.post("/v1/recommend", json={"history": ["i0"]}).status_code == 200
    with client_of(shop_once) as client:
        assert client.post("/v1/predict", json=asked).json()["error_type"] == "no_response_model"
