"""An adapter that was trained to complete baskets, at a merchant: it arrives, is compared, used, left again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedrec.data import Columns
from fedrec.model import load_encoder
from fedrec.model.adapter import HEAD_A, HEAD_B
from fedrec.model.towers import centred, init_base, init_trained
from fedrec.model.versions import FORMAT, Versions
from fedrec.recommender import Recommender
from fedrec.recommender.basket_fit import RANKING
from fedrec.recommender.fitting import fit_merchant, up_to_date
from fedrec.recommender.merchant_text import MerchantPlace
from fedrec.recommender.own_model import OwnModel
from server.run_folder import RunFolder

from .conftest import make_catalogue
from .helpers import settings_of
from .test_baskets import ITEMS, drawn
from .test_merchant_recommender import make_shop, with_settings


@pytest.fixture(scope="module")
def shop_once(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> Path:
    """A small merchant whose customers buy an even item and the next one at once; fitted, and nothing has come."""
    folder = make_shop(tmp_path_factory.mktemp("baskets") / "shop", tiny_bert_folder, users=2)
    ids, baskets = make_catalogue(ITEMS).item_ids, drawn(150, ITEMS, 1, owners=90)
    rows = [
        (f"c{owner}", ids[item], f"2026-01-01T{number // 60:02}:{number % 60:02}")
        for number, owner in enumerate(baskets.owner.tolist())
        for item in baskets.bought.indices[baskets.bought.indptr[number] : baskets.bought.indptr[number + 1]].tolist()
    ]
    pd.DataFrame(rows, columns=[Columns.USER, Columns.ITEM, Columns.TIME]).to_csv(folder / "events.csv", index=False)
    with_settings(folder, model={"encoder": str(tiny_bert_folder), "device": "cpu"}, users={"choose": 0.4, "measure": 0.1})
    place = MerchantPlace(folder)
    fit_merchant(place, place.data())
    return folder


@pytest.fixture
def shop(shop_once: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    shutil.copytree(shop_once, tmp_path / "shop")
    return tmp_path / "shop"


def arrives(folder: Path, bert: Path, run: str) -> str:
    """An adapter under which an item's text as history is that of its partner as candidate, or a spoilt one."""
    catalogue, encoder = MerchantPlace(folder).data().catalogue, load_encoder(str(bert), 0, 8, 48, "cpu")
    base = init_base(encoder, encoder.states(catalogue), True, 16, "principal", 0)
    trained = init_trained(encoder, True, 16)
    e = centred(encoder.embed(catalogue), base).numpy().astype(np.float64)
    wanted = e[np.arange(ITEMS) ^ 1] - e if run == "knows" else np.random.default_rng(0).normal(size=e.shape)
    trained[HEAD_B["history"]] = np.linalg.lstsq(e @ base[HEAD_A], wanted, rcond=None)[0].astype(np.float32)
    public = {
        "prior.keys": catalogue.keys, "prior.counts": np.ones(ITEMS, np.float32), "prior.floor": np.ones(1, np.float32)
    }  # fmt: skip
    settings = {
        "format": FORMAT, "run": run, "round": 1, "trust": "local", "unit": "user", "encoder_fingerprint": encoder.fingerprint,
        "encoder_layers": 0, "encoder_rank": 8, "max_tokens": 48, "history": 50, "objective": "basket", "floor": 1.0,
        "scoring": {"temperature": 3.0, "decay": 0.0, "prior_weight": 1.0, "bias": 0.0}, "negative_share": 1.0,
    }  # fmt: skip
    return Versions(folder / "model", "basket").keep({**base, **trained, **public}, settings)[0]


def refit(folder: Path) -> OwnModel:
    place = MerchantPlace(folder)
    fit_merchant(place, place.data())
    model = OwnModel.read(place.own)
    assert model is not None and model.baskets is not None and up_to_date(place, place.data())
    return model


def test_what_completes_better_is_used_and_the_rest_stays(shop: Path, tiny_bert_folder: Path) -> None:
    place = MerchantPlace(shop)
    before, ranked = Recommender.load(shop), [item for item, _ in Recommender.load(shop).recommend(["i4"]).items]
    name = arrives(shop, tiny_bert_folder, "knows")
    assert not up_to_date(place, place.data())
    model, versions = refit(shop), place.versions_of("basket")
    verdict = versions.verdict(name)
    assert versions.current == name == model.baskets.version and place.versions.current is None is model.version
    assert verdict["completes"] and verdict["ndcg"][name] > verdict["ndcg"][RANKING]
    here = Recommender.load(shop)
    answer = here.basket(["i4", "i10"], k=ITEMS, explain=True)
    assert answer.source == f"federated text {name} + own baskets"
    assert before.basket(["i4"]).source == "untrained text + own baskets"
    for (_, score), why in zip(answer.items, answer.reasons, strict=True):
        assert sum(share.value for share in why.shares) == pytest.approx(score, abs=1e-5)
    assert [item for item, _ in here.recommend(["i4"]).items] == ranked, "it completes baskets, and ranks nothing else"


def test_a_spoilt_one_is_not_used_and_a_person_decides(shop: Path, tiny_bert_folder: Path) -> None:
    name, versions = arrives(shop, tiny_bert_folder, "spoilt"), MerchantPlace(shop).versions_of("basket")
    assert refit(shop).baskets.version is None and versions.current is None
    assert versions.verdict(name)["completes"] is False
    versions.use(name)
    assert not up_to_date(MerchantPlace(shop), MerchantPlace(shop).data())
    assert refit(shop).baskets.version == name, "a person's choice stays until the next one arrives"
    assert refit(shop).baskets.version == name
    knows = arrives(shop, tiny_bert_folder, "knows")
    assert refit(shop).baskets.version == knows == versions.current
    shutil.rmtree(shop / "model" / knows)
    assert Recommender.load(shop).basket(["i4"]).source == "untrained text + own baskets", (
        "it is gone, and the text that ranks does it"
    )
    assert refit(shop).baskets.version in (None, name)


def test_where_baskets_are_too_few_to_choose_the_texts_are_told_apart(shop: Path, tiny_bert_folder: Path) -> None:
    with_settings(shop, model={"encoder": str(tiny_bert_folder), "device": "cpu"}, users={"choose": 0.02, "measure": 0.1})
    arrives(shop, tiny_bert_folder, "spoilt")
    assert refit(shop).baskets.version is None
    knows = arrives(shop, tiny_bert_folder, "knows")
    assert refit(shop).baskets.version == knows


def test_a_run_goes_home_for_what_it_was_trained_for(tmp_path: Path, tiny_bert_folder: Path) -> None:
    for objective, home in (("basket", "basket"), ("next-item+response", "next-item"), ("rating", None)):
        assert RunFolder.create(tmp_path / objective, settings_of(tiny_bert_folder, objective=objective)).goes_home == home
