"""What a merchant makes of its own events: what is fitted and kept, who ranks afterwards, and that an adapter must earn it."""

# ruff: noqa: F811

from __future__ import annotations

import json
import shutil
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w

from fedrec.config import RunConfig
from fedrec.data import Catalogue, Columns, Histories
from fedrec.data.roles import Roles
from fedrec.errors import InputError
from fedrec.model.adapter import Arrays
from fedrec.model.encoder import load_encoder
from fedrec.model.versions import Versions
from fedrec.recommender import MerchantRecommender, Recommender, contest
from fedrec.recommender.blend import scores
from fedrec.recommender.contest import ALONE, FEDERATED, HERE, LAYER, POPULARITY, ROWS, TEXT, THEIRS, users_as_group
from fedrec.recommender.fitting import Fit, fit_merchant, up_to_date
from fedrec.recommender.measuring import measure_merchant
from fedrec.recommender.merchant_text import MerchantPlace
from fedrec.recommender.own_model import FILE, OwnModel
from fedrec.recommender.past import Past
from simulations.run import simulate

from .conftest import WORDS, make_catalogue
from .helpers import make_federation, settings_of
from .test_cli_errors import Fedrec, assert_refused, fedrec  # noqa: F401

USERS, ITEMS = 400, 24
SECRET = bytes(range(32))


def make_shop(folder: Path, bert: Path, users: int = USERS, **changes: Any) -> Path:
    """A merchant whose users walk along the catalogue in small steps, so that its own layer learns something; roles are fixed."""
    (folder / "own").mkdir(parents=True, mode=0o700)
    (folder / "own" / "users.key").write_bytes(SECRET)
    catalogue, rng = make_catalogue(ITEMS), np.random.default_rng(1)
    rows = []
    for user in range(users):
        item = int(rng.integers(ITEMS))
        for basket in range(int(rng.integers(2, 6))):
            item = (item + int(rng.integers(1, 3))) % ITEMS
            rows.append(
                (f"customer-{user}-secret", catalogue.item_ids[item], pd.Timestamp("2026-01-01") + pd.Timedelta(days=basket))
            )
    pd.DataFrame({Columns.ITEM: catalogue.item_ids, Columns.TITLE: catalogue.texts}).to_csv(folder / "items.csv", index=False)
    pd.DataFrame(rows, columns=[Columns.USER, Columns.ITEM, Columns.TIME]).to_csv(folder / "events.csv", index=False)
    with_settings(folder, model={"encoder": str(bert), "device": "cpu"}, **changes)
    return folder


def with_settings(folder: Path, **changes: Any) -> None:
    """Write `merchant.toml`."""
    settings = {"name": "shop", "privacy": {"epsilon": 8.0, "delta": 1e-5, "population": 400}, **changes}
    (folder / "merchant.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")


@pytest.fixture(scope="module")
def fitted_once(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> Path:
    """A merchant without an adapter, fitted."""
    folder = make_shop(tmp_path_factory.mktemp("merchant") / "shop", tiny_bert_folder, users=USERS)
    place = MerchantPlace(folder)
    fit_merchant(place, place.data())
    return folder


@pytest.fixture
def fitted(fitted_once: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    shutil.copytree(fitted_once, tmp_path / "fitted")
    return tmp_path / "fitted"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> tuple[Arrays, dict[str, Any]]:
    """What a small run trained, as it is kept by a merchant, and what is said of it."""
    folder = tmp_path_factory.mktemp("adapter")
    simulate(make_federation(folder), settings_of(tiny_bert_folder), folder / "run")
    versions = Versions(folder / "run" / "models" / "m0")
    arrays, settings = versions.read(versions.names()[-1])
    return arrays, {name: value for name, value in settings.items() if name not in ("digest", "number", "arrived")}


def spoilt(arrays: Arrays) -> Arrays:
    """A legal adapter that ranks at random."""
    rng = np.random.default_rng(0)
    moved = {name for name in arrays if name.endswith(".B") or "lora_B" in name}
    assert moved
    return {name: rng.normal(0, 50, value.shape).astype(np.float32) if name in moved else value for name, value in arrays.items()}


def fit(folder: Path) -> Fit:
    place = MerchantPlace(folder)
    return fit_merchant(place, place.data())


def loaded(folder: Path) -> MerchantRecommender:
    found = Recommender.load(folder)
    assert isinstance(found, MerchantRecommender)
    return found


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}


# Fit


def test_fit_by_the_command_line(fedrec: Fedrec, tiny_bert_folder: Path, tmp_path: Path) -> None:
    folder = make_shop(tmp_path / "shop", tiny_bert_folder)
    shutil.rmtree(folder / "own")
    first = fedrec("merchant", "fit", folder, "--json")
    assert first.status == 0, first.err
    said = json.loads(first.out)
    assert said["changed"] and said["kind"] == "ease" and said["version"] == "untrained" and said["users"] == USERS
    assert said["training"] + said["choosing"] + said["measured"] == USERS and "customer-" not in first.out + first.err
    found = modes(folder / "own")
    assert found.pop("own") == 0o700 and set(found.values()) == {0o600} and {FILE, "users.key"} < set(found)
    before = (folder / "own" / FILE).read_bytes()
    second = fedrec("merchant", "fit", folder)
    assert second.status == 0 and "nothing has changed" in second.out
    again = fedrec("merchant", "fit", folder, "--force")
    assert again.status == 0 and "ranks from now on: untrained" in again.out
    assert (folder / "own" / FILE).read_bytes() == before, "the same data give the same bytes"
    events = pd.read_csv(folder / "events.csv")
    events.iloc[:-7].to_csv(folder / "events.csv", index=False)
    changed = json.loads(fedrec("merchant", "fit", folder, "--json").out)
    assert changed["changed"] and changed["made_from"] != said["made_from"]
    assert (folder / "own" / FILE).read_bytes() != before


def test_what_a_fit_depends_on_is_seen(fitted: Path, tiny_bert_folder: Path) -> None:
    place = MerchantPlace(fitted)
    assert up_to_date(place, place.data())
    items = pd.read_csv(fitted / "items.csv")

    def stale() -> bool:
        changed = MerchantPlace(fitted)
        return not up_to_date(changed, changed.data())

    for change in (items.assign(title=items["title"] + " new"), items.iloc[::-1], items.iloc[1:]):
        change.to_csv(fitted / "items.csv", index=False)
        assert stale()
    items.to_csv(fitted / "items.csv", index=False)
    assert not stale()
    for changes in ({"users": {"choose": 0.2}}, {"model": {"encoder": "minilm-l6"}}):
        with_settings(fitted, **{"model": {"encoder": str(tiny_bert_folder), "device": "cpu"}, **changes})
        assert stale()
    with_settings(fitted, model={"encoder": str(tiny_bert_folder), "device": "cpu", "texts_per_batch": 9})
    assert not stale(), "which the figures do not depend on"
    (fitted / "own" / "users.key").write_bytes(SECRET[::-1])
    assert stale()


def test_the_weights_are_chosen_on_those_who_choose(fitted_once: Path) -> None:
    model = OwnModel.read(fitted_once / "own")
    assert model is not None
    place = MerchantPlace(fitted_once)
    roles = place.roles(place.data())
    assert 30 <= model.blend.users <= len(roles.choose) and model.blend.own > 0


def test_a_merchant_too_small_to_choose_says_so(fedrec: Fedrec, tiny_bert_folder: Path, tmp_path: Path) -> None:
    folder = make_shop(tmp_path / "shop", tiny_bert_folder, users=40)
    answer = fedrec("merchant", "fit", folder)
    assert answer.status == 0 and "too few users to choose on, so shared defaults hold" in answer.out
    model = OwnModel.read(folder / "own")
    assert model is not None and model.blend.users == 0 and len(loaded(folder).rank(["i3"])) == 10


def test_nobody_to_fit_on_is_refused(fedrec: Fedrec, tiny_bert_folder: Path, tmp_path: Path) -> None:
    folder = make_shop(tmp_path / "shop", tiny_bert_folder, users=1)
    key = next(key for key in (bytes([n]) * 32 for n in range(256)) if not len(_roles(folder, key).train))
    (folder / "own" / "users.key").write_bytes(key)
    assert_refused(fedrec("merchant", "fit", folder), "no user is left to fit on", "lower the shares in [users]")


def _roles(folder: Path, key: bytes) -> Roles:
    (folder / "own" / "users.key").write_bytes(key)
    place = MerchantPlace(folder)
    return place.roles(place.data())


# Rank


def test_a_known_user_an_unknown_one_and_words(fitted_once: Path) -> None:
    found = loaded(fitted_once)
    known = found.recommend(user_id="customer-3-secret")
    past = found._data.histories.of(found._data.histories.user_ids.index("customer-3-secret"))
    assert known.source == "untrained text + own layer" and len(known.items) == 10
    assert not {item for item, _ in known.items} & {found.catalogue.item_ids[item] for item in past[0]}
    unknown = found.recommend(user_id="customer-x")
    assert unknown.source == "popularity" and "user 'customer-x' is not known here" in unknown.notes
    counts = np.bincount(found._data.histories.items, minlength=ITEMS)
    assert unknown.items[0][1] == counts.max()
    assert found.rank([], query="red lamp") == found.recommend(query="red lamp").items
    assert found.rank(["i3"], query="red lamp") != found.rank(["i3"])
    text = found.catalogue.texts[7]
    assert found.rank([], query=text, k=1)[0][0] == "i7", "the words of an item find it"
    with pytest.raises(InputError, match="neither a history nor a query"):
        found.rank([])
    with pytest.raises(InputError, match="item 'gone' is not in the catalogue"):
        found.rank(["gone"])
    with pytest.raises(InputError, match="there is no merchant 'other'"):
        found.recommend(["i3"], merchant="other")


def test_many_at_once_rank_as_each_alone(fitted_once: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, rng = loaded(fitted_once), np.random.default_rng(0)
    histories = [[f"i{item}" for item in rng.integers(ITEMS, size=rng.integers(1, 30))] for _ in range(50)]
    many = found.rank_many(histories, k=5)
    for history, one in zip(histories, many, strict=True):
        alone, answer = found.rank(history, k=5), found.recommend(history, k=5).items
        for other in (alone, answer):
            assert [item for item, _ in one] == [item for item, _ in other]
            assert [score for _, score in one] == pytest.approx([score for _, score in other], abs=1e-5)
    monkeypatch.setattr("fedrec.model.ranking.FLOATS", 1)  # sixteen users a block
    for one, other in zip(found.rank_many(histories, k=5), many, strict=True):
        assert [item for item, _ in one] == [item for item, _ in other]
    assert found.rank_many([]) == []
    with pytest.raises(InputError, match=r"histories\[1\]"):
        found.rank_many([["i3"], []])


def test_the_scores_are_the_formula_that_was_chosen_by(fitted_once: Path) -> None:
    found = loaded(fitted_once)
    own = OwnModel.read(fitted_once / "own")
    histories = found._data.histories
    group = users_as_group(histories, np.arange(len(histories)), ITEMS, RunConfig().history)
    assert own is not None and group is not None and own.blend.own and len(own.blend.pooling) > 1
    expected = scores(group, found.part, own.layer, own.blend)
    pasts = []
    for user in range(len(histories)):
        items, baskets = histories.of(user)
        before = baskets < baskets[-1]
        if before.any() and set(items[~before]) - set(items[before]):
            pasts.append(Past(items[before], baskets[before]))
    assert len(pasts) == len(expected) > 100
    np.testing.assert_allclose(found._ranks.scores(pasts), expected, atol=2e-5)


def test_a_new_item_ranks_at_once(fitted: Path) -> None:
    with (fitted / "items.csv").open("a") as file:
        file.write(f"new,{make_catalogue(ITEMS).texts[5]}\n")
    before = (fitted / "own" / FILE).read_bytes()
    found = loaded(fitted)
    assert (fitted / "own" / FILE).read_bytes() == before, "nothing is fitted"
    ranked = found.rank([], query="anything", k=ITEMS + 1)
    assert len(ranked) == ITEMS + 1 and {"new", "i5"} <= {item for item, _ in ranked}
    assert "new" in {item for item, _ in found.rank(["i4"], k=ITEMS)}
    assert len(found.rank(["new"])) == 10, "and may be in a history"


def test_an_item_that_is_gone_does_no_harm(fitted: Path) -> None:
    items = pd.read_csv(fitted / "items.csv")
    items[items["item_id"] != "i5"].to_csv(fitted / "items.csv", index=False)
    found = loaded(fitted)
    answer = found.recommend(["i4", "i5", "i6"], k=ITEMS)
    assert "i5" not in {item for item, _ in answer.items} and len(answer.items) == ITEMS - 3
    assert "not in the catalogue, so ignored: 'i5'" in answer.notes
    assert found.recommend(user_id="customer-3-secret").source == "untrained text + own layer"


def test_another_order_or_name_changes_no_score_of_the_others(fitted: Path) -> None:
    before = loaded(fitted)
    expected = dict(before.rank(["i4", "i9"], k=ITEMS))
    items = pd.read_csv(fitted / "items.csv")
    items.sample(frac=1, random_state=3).to_csv(fitted / "items.csv", index=False)
    after = loaded(fitted)
    assert after.catalogue.item_ids != before.catalogue.item_ids
    assert dict(after.rank(["i4", "i9"], k=ITEMS)) == pytest.approx(expected, abs=1e-5)
    items.assign(item_id=items["item_id"].replace("i7", "renamed")).iloc[::-1].to_csv(fitted / "items.csv", index=False)
    renamed = loaded(fitted)
    own = OwnModel.read(fitted / "own")
    assert own is not None
    whole = own.layer.scores(_row([4, 9]))[0]
    held = [renamed.catalogue.item_ids.index(name) for name in ("i4", "i9")]
    placed = own.placed(renamed.catalogue).scores(_row([*held, renamed.catalogue.item_ids.index("renamed")]))[0]
    for place, name in enumerate(renamed.catalogue.item_ids):
        assert placed[place] == pytest.approx(0.0 if name == "renamed" else whole[int(name[1:])], abs=1e-6)


def _row(held: list[int]) -> Any:
    from scipy.sparse import csr_array

    return csr_array((np.ones(len(held), np.float32), (np.zeros(len(held), int), held)), shape=(1, ITEMS))


def test_a_database_is_like_files(fitted: Path, tiny_bert_folder: Path) -> None:
    expected = loaded(fitted)
    with closing(sqlite3.connect(fitted / "shop.db")) as base:
        for name in ("items", "events"):
            pd.read_csv(fitted / f"{name}.csv").sample(frac=1, random_state=1).to_sql(name, base, index=False)
            (fitted / f"{name}.csv").unlink()
        base.commit()
    data = {"url": f"sqlite:///{fitted / 'shop.db'}", "items": "SELECT * FROM items", "events": "SELECT * FROM events"}
    with_settings(fitted, model={"encoder": str(tiny_bert_folder), "device": "cpu"}, data=data)
    found = loaded(fitted)
    for asked in ({"user_id": "customer-3-secret"}, {"history": ["i4", "i9"]}, {"query": "red lamp"}):
        one, other = found.recommend(**asked, k=ITEMS), expected.recommend(**asked, k=ITEMS)  # type: ignore[arg-type]
        assert one.source == other.source and dict(one.items) == pytest.approx(dict(other.items), abs=1e-5)
    with closing(sqlite3.connect(fitted / "shop.db")) as base:
        base.execute("INSERT INTO items (item_id, title) VALUES ('fresh', 'fresh warm tea')")
        base.commit()
    assert "fresh" in {item for item, _ in loaded(fitted).rank(["i4"], k=ITEMS)}


def test_items_of_somebody_else_are_ranked_by_their_texts(fitted: Path) -> None:
    found = loaded(fitted)
    kept = modes(fitted / "own")
    texts = (*found.catalogue.texts[:6], "steel rope clock")
    strange = Catalogue(tuple(f"s{number}" for number in range(7)), texts)
    assert found.rank([], query=texts[2], catalogue=strange, k=1)[0][0] == "s2"
    assert len(found.rank(["s1"], catalogue=strange)) == 6
    table = pd.DataFrame({Columns.ITEM: strange.item_ids, Columns.TITLE: texts})
    assert found.rank(["s1"], catalogue=table) == found.rank(["s1"], catalogue=strange)
    alone = Catalogue(("s1", "one"), texts[1:3])
    assert found.rank(["s1"], catalogue=alone)[0][1] == pytest.approx(
        dict(found.rank(["s1"], catalogue=strange))["s2"], abs=1e-4
    ), "what it is compared with does not depend on what else is in it"
    assert modes(fitted / "own") == kept, "the vectors that are kept are those of the merchant's own items"


@pytest.mark.parametrize("damage", ["cut", "flipped", "format", "text"])
def test_a_damaged_layer_is_refused_until_it_is_fitted_again(damage: str, fedrec: Fedrec, fitted: Path) -> None:
    path = fitted / "own" / FILE
    whole = path.read_bytes()
    damaged = {
        "cut": whole[:-9], "flipped": whole[:-600] + bytes([whole[-600] ^ 1]) + whole[-599:], "text": b"not even that",
        "format": whole.replace(b'\\"format\\": 1', b'\\"format\\": 9'),
    }[damage]  # fmt: skip
    assert damaged != whole
    path.write_bytes(damaged)
    assert_refused(fedrec("recommend", fitted, "--history", "i3"), FILE, "fit it again: `fedrec merchant fit`")
    answer = fedrec("merchant", "fit", fitted)
    assert answer.status == 0 and path.read_bytes() == whole, "as the hint says"


def test_a_folder_of_an_earlier_version_opens(fitted: Path, tiny_bert_folder: Path) -> None:
    shutil.rmtree(fitted / "own")
    found = loaded(fitted)
    assert found.recommend(user_id="customer-3-secret").source == "untrained text" and len(found.rank(["i4"])) == 10
    assert found.rank([], query=found.catalogue.texts[7], k=1)[0][0] == "i7"
    assert not (fitted / "own").exists() and not (fitted / "model").exists(), "to look does not change it"


# Delivery to fit


def keep(folder: Path, arrays: Arrays, settings: dict[str, Any], **changes: Any) -> str:
    return Versions(folder / "model").keep(arrays, {**settings, **changes})[0]


def test_what_arrived_is_compared_and_the_best_ranks(
    fedrec: Fedrec, fitted: Path, adapter: tuple[Arrays, dict[str, Any]]
) -> None:
    versions, first = Versions(fitted / "model"), keep(fitted, *adapter)
    said = json.loads(fedrec("merchant", "fit", fitted, "--json").out)
    assert said["changed"] and set(said["ndcg"]) == {"untrained", first}
    best = max(said["ndcg"], key=said["ndcg"].get)
    assert said["version"] == best and (versions.current or "untrained") == best
    verdict = versions.verdict(first)
    assert verdict is not None and verdict["ranks"] == (best == first) and verdict["ndcg"] == said["ndcg"]
    assert "customer-" not in json.dumps(verdict)
    for path, mode in modes(fitted / "model").items():
        assert mode == (0o700 if path in ("model", first) else 0o600), path
    versions.use(first)
    second = keep(fitted, adapter[0], adapter[1], round=9)
    again = fit(fitted)
    assert list(again.compared) == ["untrained", first, second]
    model = OwnModel.read(fitted / "own")
    assert model is not None and model.version == versions.current
    assert loaded(fitted).rank(["i4"]) and not again.refused


def test_a_fit_empties_the_cache_of_encoders_that_nothing_kept_needs(
    fedrec: Fedrec, fitted: Path, adapter: tuple[Arrays, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, shared = fitted / "state" / "cache" / "trunk", tmp_path / "shared" / "trunk"
    kept, gone = "a" * 24, "f" * 24
    keep(fitted, adapter[0], adapter[1], encoder_fingerprint=kept)  # another shape, and not one that can be used here
    for folder in (own, shared):
        monkeypatch.setenv("FEDREC_CACHE", str(folder.parent))
        for fingerprint in (kept, gone):
            (folder / fingerprint).mkdir(parents=True)
        assert fedrec("merchant", "fit", fitted, "--force").status == 0
        there = {path.name for path in folder.iterdir()}
        assert kept in there
        assert (gone in there) == (folder == shared), "others may need what is in a cache that is not the merchant's own"
    # With the own layer turned off, too.
    with (fitted / "merchant.toml").open("a") as toml:
        toml.write("\n[recommender]\nown_layer = false\n")
    monkeypatch.setenv("FEDREC_CACHE", str(own.parent))
    (own / gone).mkdir()
    assert fedrec("merchant", "fit", fitted).status == 0 and not (own / gone).exists()


def test_a_node_and_a_ranker_need_what_a_fit_leaves(fedrec: Fedrec, fitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = fitted / "state" / "cache" / "trunk"
    monkeypatch.setenv("FEDREC_CACHE", str(own.parent))
    place, default = MerchantPlace(fitted), RunConfig()
    model = place.settings.model
    place.encoder(None).states(place.data().catalogue)
    load_encoder(
        model.encoder, default.encoder_layers, default.encoder_rank, default.max_tokens, model.device, model.texts_per_batch
    ).states(place.data().catalogue)  # as a node does before it connects
    shapes = {path.name for path in own.iterdir()}
    assert len(shapes) == 2
    assert fedrec("merchant", "fit", fitted, "--force").status == 0
    assert shapes <= {path.name for path in own.iterdir()} <= place.encoders_in_use()


def test_a_spoilt_adapter_does_no_harm(fitted: Path, tiny_bert_folder: Path, adapter: tuple[Arrays, dict[str, Any]]) -> None:
    # Texts that say what is bought together, and enough users to tell.
    titles = [f"{WORDS[item // 3]} {WORDS[item // 3 + 8]} {WORDS[item // 3]}" for item in range(ITEMS)]
    pd.read_csv(fitted / "items.csv").assign(title=titles).to_csv(fitted / "items.csv", index=False)
    with_settings(fitted, model={"encoder": str(tiny_bert_folder), "device": "cpu"}, users={"choose": 0.4, "measure": 0})
    fit(fitted)
    before = dict(loaded(fitted).rank(["i4", "i9"], k=ITEMS))
    name = keep(fitted, spoilt(adapter[0]), adapter[1])
    found = fit(fitted)
    assert found.compared[name] < found.compared["untrained"]
    versions = Versions(fitted / "model")
    assert versions.current is None and found.model.version is None
    assert versions.verdict(name)["ranks"] is False  # type: ignore[index]
    assert dict(loaded(fitted).rank(["i4", "i9"], k=ITEMS)) == pytest.approx(before, abs=1e-5)
    place = MerchantPlace(fitted)
    assert up_to_date(place, place.data()), "it is not compared again and again"


def test_with_too_few_to_choose_those_who_train_tell_a_spoilt_adapter(
    fedrec: Fedrec, tmp_path: Path, tiny_bert_folder: Path, adapter: tuple[Arrays, dict[str, Any]]
) -> None:
    folder = make_shop(tmp_path / "shop", tiny_bert_folder, users=USERS)
    with_settings(folder, model={"encoder": str(tiny_bert_folder), "device": "cpu"}, users={"choose": 0.02, "measure": 0.0})
    # Texts that say nothing, and drown the rest.
    loud = {**adapter[1], "scoring": {**adapter[1]["scoring"], "temperature": 1000.0}}
    name = keep(folder, spoilt(adapter[0]), loud)
    answer = fedrec("merchant", "fit", folder)
    assert answer.status == 0 and "shared defaults hold" in answer.out and "ranks from now on: untrained" in answer.out
    versions = Versions(folder / "model")
    assert versions.current is None and versions.verdict(name)["ndcg"][name] < versions.verdict(name)["ndcg"]["untrained"]  # type: ignore[index]


def test_with_nobody_to_tell_what_ranked_before_stays(
    fedrec: Fedrec, tmp_path: Path, tiny_bert_folder: Path, adapter: tuple[Arrays, dict[str, Any]]
) -> None:
    folder = make_shop(tmp_path / "shop", tiny_bert_folder, users=20)
    first = keep(folder, *adapter)
    assert "ranks from now on: untrained" in fedrec("merchant", "fit", folder).out
    assert fedrec("merchant", "model", "use", folder, first).status == 0
    keep(folder, adapter[0], adapter[1], round=9)
    assert f"ranks from now on: {first}" in fedrec("merchant", "fit", folder).out
    assert loaded(folder).recommend(["i4"]).source == f"federated text {first} + own layer"


def test_an_adapter_of_another_encoder_is_refused_and_shown(
    fedrec: Fedrec, fitted: Path, adapter: tuple[Arrays, dict[str, Any]]
) -> None:
    other = keep(fitted, *adapter, encoder_fingerprint="0" * 24)
    answer = fedrec("merchant", "fit", fitted)
    assert answer.status == 0 and f"version {other} cannot be used here: " in answer.out and "another encoder" in answer.out
    versions = Versions(fitted / "model")
    assert versions.current is None and other in versions.verdict(other)["refused"]  # type: ignore[index]
    measured = json.loads(fedrec("merchant", "evaluate", fitted, "--json").out)
    assert measured["version"] is None and "another encoder" in measured["refused"] and measured["gain"] is None
    assert "the newest adapter cannot be used here" in fedrec("merchant", "evaluate", fitted).out
    good = keep(fitted, *adapter)
    fit(fitted)
    versions.use(good)
    third = keep(fitted, *adapter, encoder_fingerprint="1" * 24)
    found = fit(fitted)
    assert set(found.refused) == {third} and set(found.compared) == {"untrained", good}
    versions.use(third)
    assert_refused(
        fedrec("recommend", fitted, "--history", "i3"), "another encoder", "fedrec merchant model use FOLDER untrained"
    )
    assert_refused(fedrec("merchant", "evaluate", fitted), "another encoder")


def test_what_a_person_chose_ranks_until_the_next_arrival(
    fedrec: Fedrec, fitted: Path, adapter: tuple[Arrays, dict[str, Any]]
) -> None:
    before = dict(loaded(fitted).rank(["i4", "i9"], k=ITEMS))
    name, versions = keep(fitted, *adapter), Versions(fitted / "model")
    fit(fitted)
    assert fedrec("merchant", "model", "use", fitted, name).status == 0
    assert loaded(fitted).recommend(["i4"]).source == f"federated text {name} + own layer"
    assert fedrec("merchant", "model", "use", fitted, "untrained").status == 0
    assert loaded(fitted).recommend(["i4"]).source == "untrained text + own layer"
    best = OwnModel.read(fitted / "own")
    assert best is not None
    for chosen in ("untrained", name, "untrained") if best.version else (name, "untrained"):
        fedrec("merchant", "model", "use", fitted, chosen)
        answer = fedrec("merchant", "fit", fitted)
        assert answer.status == 0 and f"ranks from now on: {chosen}" in answer.out
        assert fedrec("merchant", "fit", fitted, "--force").status == 0
        assert (versions.current or "untrained") == chosen
        assert "nothing has changed" in fedrec("merchant", "fit", fitted).out
    assert dict(loaded(fitted).rank(["i4", "i9"], k=ITEMS)) == pytest.approx(before, abs=1e-5)
    second = keep(fitted, adapter[0], adapter[1], round=9)
    assert set(fit(fitted).compared) == {"untrained", second}


def test_what_arrives_during_a_fit_is_not_taken_for_compared(
    fitted: Path, adapter: tuple[Arrays, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, versions, late = keep(fitted, *adapter), Versions(fitted / "model"), []
    write = OwnModel.write

    def slow(model: OwnModel, folder: Path) -> None:
        late.append(keep(fitted, adapter[0], adapter[1], round=9))
        write(model, folder)

    monkeypatch.setattr(OwnModel, "write", slow)
    fit(fitted)
    assert versions.verdict(first) is not None and versions.arrived() == late[0]


def test_a_version_that_is_gone_is_replaced_by_a_fit(
    fedrec: Fedrec, fitted: Path, adapter: tuple[Arrays, dict[str, Any]]
) -> None:
    versions, name = Versions(fitted / "model"), keep(fitted, *adapter)
    fit(fitted)
    versions.use(name)
    shutil.rmtree(fitted / "model" / name)
    assert_refused(fedrec("recommend", fitted, "--history", "i3"), "there is no version")
    assert fedrec("merchant", "fit", fitted).status == 0
    assert fedrec("recommend", fitted, "--history", "i3").status == 0


def test_the_federated_scores_are_the_formula_too(fitted: Path, adapter: tuple[Arrays, dict[str, Any]]) -> None:
    name = keep(fitted, *adapter)
    fit(fitted)
    Versions(fitted / "model").use(name)
    fit(fitted)
    found, own = loaded(fitted), OwnModel.read(fitted / "own")
    assert own is not None and own.version == name and set(found.part.priors) == {HERE, THEIRS}
    pasts = [Past(np.array([3, 8]), np.array([0, 1]))]
    # By hand, for one history of two baskets.
    blend, part = own.blend, found.part
    value = sum(weight * part.priors[prior] for prior, weight in blend.priors.items())
    for decay, weight in blend.pooling.items():
        user = part.history[8] + np.exp(-decay) * part.history[3]
        value = value + weight * part.candidate @ (user / np.linalg.norm(user))
    layer = own.layer.scores(_row([3, 8]))[0]
    np.testing.assert_allclose(found._ranks.scores(pasts)[0], value + blend.own * layer / layer.std(), atol=1e-4)


# Evaluate


def test_evaluate_has_the_rows_and_names_nobody(
    fedrec: Fedrec, fitted: Path, adapter: tuple[Arrays, dict[str, Any]], tmp_path: Path
) -> None:
    alone = json.loads(fedrec("merchant", "evaluate", fitted, "--json").out)
    assert [row["name"] for row in alone["rows"]] == [POPULARITY, TEXT, LAYER, ALONE] and alone["gain"] is None
    name = keep(fitted, *adapter)
    page = tmp_path / "page.html"
    answer = fedrec("merchant", "evaluate", fitted, "--json", "--html", page)
    assert answer.status == 0, answer.err
    found = json.loads(answer.out)
    assert [row["name"] for row in found["rows"]] == list(ROWS) and found["version"] == name and "seed" in found
    values = {row["name"]: row for row in found["rows"]}
    assert found["gain"]["mean"] == pytest.approx(values[FEDERATED]["ndcg@10"] - values[ALONE]["ndcg@10"], abs=1e-9)
    assert found["gain"]["low"] <= found["gain"]["mean"] <= found["gain"]["high"]
    for row in found["rows"]:
        assert row["users"] == found["users"]["measured"] and 0 <= row["ndcg@10_low"] <= row["ndcg@10"] <= row["ndcg@10_high"]
        assert {"hr@10", "recall@10", "mrr"} <= set(row)
    assert values[LAYER]["ndcg@10"] > values[POPULARITY]["ndcg@10"], "there is something to learn"
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    html = unescape(page.read_text())
    assert "customer-" not in html + answer.out + answer.err and all(row in html for row in ROWS) and "Keep this page" in html
    shown = fedrec("merchant", "evaluate", fitted)
    assert "What federation pays here" in shown.out and "yours alone" in shown.out and "customer-" not in shown.out
    assert_refused(fedrec("merchant", "evaluate", fitted, "--html", tmp_path / "no" / "page.html"), "--html")


def test_nobody_measured_is_said(fedrec: Fedrec, fitted: Path, tiny_bert_folder: Path) -> None:
    with_settings(fitted, model={"encoder": str(tiny_bert_folder), "device": "cpu"}, users={"measure": 0})
    assert_refused(fedrec("merchant", "evaluate", fitted), "no user is measured", "[users] measure", "a share such as 0.1")


def test_who_is_measured_has_no_part_in_what_is_measured(fitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the measured users did, nothing but their own ranks changes: neither layer, counts nor choice."""
    place = MerchantPlace(fitted)
    data = place.data()
    roles = place.roles(data)
    names = {data.histories.user_ids[user] for user in roles.measure}
    seen: list[set[str]] = []
    with monkeypatch.context() as patch:
        for what in (contest.bought_by, contest.popularity_here):
            patch.setattr(contest, what.__name__, _watched(what, seen))
        before = measure_merchant(place, data)
    assert len(seen) >= 3, "all layers and counts are made from"
    assert all(users == {data.histories.user_ids[user] for user in roles.train} for users in seen), (
        "those who train and nobody else"
    )
    events = pd.read_csv(fitted / "events.csv")
    theirs = events["user_id"].isin(names)
    assert 0 < theirs.sum() < len(events)
    events.loc[theirs, "item_id"] = events.loc[theirs, "item_id"].map(lambda name: f"i{(int(name[1:]) * 5 + 1) % ITEMS}")
    events.to_csv(fitted / "events.csv", index=False)
    after = measure_merchant(place, place.data())
    assert before["chosen"] == after["chosen"] and before["rows"] != after["rows"]
    # And so it would be seen: with them in training everything moves.
    everyone = np.arange(len(data.histories))
    monkeypatch.setattr(MerchantPlace, "roles", lambda *_: replace(roles, train=np.setdiff1d(everyone, roles.choose)))
    assert measure_merchant(place, place.data())["chosen"] != after["chosen"]


def _watched(what: Callable[..., Any], seen: list[set[str]]) -> Callable[..., Any]:
    def watched(histories: Histories, items: int) -> Any:
        seen.append(set(histories.user_ids))
        return what(histories, items)

    return watched
