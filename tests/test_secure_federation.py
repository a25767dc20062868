"""Whole runs under secure aggregation: what crosses, what is paid, what a cheating server gets, what is opened."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import recorddict_to_proto

from clients.merchant import Merchant, forget_merchants, open_merchant
from clients.site import site_of
from fedrec import wire
from fedrec.aggregation import weighted_mean
from fedrec.model.adapter import digest, flat, norm, of_part, unflat
from fedrec.privacy import Ledger, SeededNoise
from fedrec.privacy.ledger_head import Head
from fedrec.secure import Lattice, Roster
from fedrec.training import expected_lot
from server.run_folder import RunFolder
from simulations.run import simulate

from .helpers import Tamper, central, ledger_rounds, ledgers, make_federation, recorded, set_policy, settings_of, simulate_with

MERCHANTS = [f"m{i}" for i in range(5)]
STEPS = ["announce", "share", "mask", "confirm", "reveal"]
Crossed = list[tuple[Message, Message]]


def config_of(bert: Path, **values: Any) -> Any:
    return settings_of(bert, **{"trust": "secure-aggregation", "dropouts": 1, "colluders": 1, **values})


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_federation(tmp_path_factory.mktemp("secure"), merchants=5, users=30, policy={"trust": "secure-aggregation"})


@pytest.fixture(scope="module")
def run(federation: Path, tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Crossed]:
    with recorded() as crossed:
        folder = simulate(federation, config_of(tiny_bert_folder), tmp_path_factory.mktemp("run") / "a")
    return folder, crossed


def step_of(message: Message) -> str:
    return message.metadata.message_type.removeprefix("train.")


# -- a run ------------------------------------------------------------------------------------------------------------------


def test_every_round_is_one_opened_sum(run: tuple[RunFolder, Crossed]) -> None:
    folder, crossed = run
    for line in folder.metrics():
        assert (line["took_part"], line["declined"], line["refused"]) == (MERCHANTS, {}, {})
        assert "abandoned" not in line
    state = folder.load()
    assert state is not None and state.round == 3
    assert all(np.any(value != 0) for value in state.trained.values()), "every B was trained"
    kinds = [step_of(request) for request, _ in crossed]
    assert kinds[: 5 * 5 : 5] == ["announce", "share", "mask_histogram", "confirm", "reveal"]
    assert kinds[5 * 5 : 2 * 5 * 5 : 5] == STEPS


def test_the_ledger_names_the_trust_model_and_both_noises(run: tuple[RunFolder, Crossed]) -> None:
    folder, _ = run
    assert ledger_rounds(folder) == {name: [0, 1, 2, 3] for name in MERCHANTS}
    for ledger in ledgers(folder).values():
        for release in ledger.releases():
            assert (release.trust, release.members, release.dropouts, release.colluders) == ("secure-aggregation", 5, 1, 1)
            # Three honest shares give what was asked for; one alone is a root of three less.
            assert release.noise_multiplier_alone == pytest.approx(release.noise_multiplier / math.sqrt(3), rel=1e-3)
            assert release.event.noise_multiplier == release.noise_multiplier
            assert release.event_alone.noise_multiplier == release.noise_multiplier_alone


def test_what_crosses_is_on_the_list(run: tuple[RunFolder, Crossed]) -> None:
    folder, crossed = run
    state = folder.load()
    assert state is not None
    for request, reply in crossed:
        step = step_of(request)
        masked = step in ("mask", "mask_histogram")
        assert set(reply.content) == {"arrays", "statement", "secure"}
        assert set(reply.content["statement"]) == wire.STATEMENT_KEYS and set(reply.content["secure"]) == wire.STEP_KEYS
        arrays = wire.from_record(reply.content["arrays"])
        assert set(arrays) == ({wire.MASKED} if masked else set())
        if step == "mask":
            part = of_part(state.trained, request.content["task"]["part"])
            assert arrays[wire.MASKED].shape == (sum(value.size for value in part.values()),)
        assert all(value.dtype == np.uint32 for value in arrays.values())
        assert b"customer" not in recorddict_to_proto(reply.content).SerializeToString()
        statement = reply.content["statement"]
        assert statement["trust"] == "secure-aggregation" and bool(statement["epsilon_spent"]) == masked
        filled = {name for name, value in reply.content["secure"].items() if value not in ([], "", 0, 0.0)}
        assert filled <= {
            "announce": {"attempt", "roster", "members", "names", "first", "second", "third", "fourth"},
            "share": {"attempt", "names", "first"},
            "confirm": {"attempt", "first"},
            "reveal": {"attempt", "names", "first", "second"},
        }.get(step, {"attempt"})


def test_a_masked_sum_looks_nothing_like_what_is_under_it(run: tuple[RunFolder, Crossed]) -> None:
    _, crossed = run
    values = [wire.from_record(reply.content["arrays"])[wire.MASKED] for request, reply in crossed if step_of(request) == "mask"]
    assert len(values) == 15
    shares = np.bincount(np.concatenate(values) >> np.uint32(28), minlength=16) / sum(map(len, values))
    assert np.abs(shares - 1 / 16).max() < 6 * math.sqrt(1 / 16 / sum(map(len, values)))


def test_the_same_seed_gives_the_same_run(run: tuple[RunFolder, Crossed], federation: Path, tmp_path: Path) -> None:
    again = simulate(federation, run[0].config, tmp_path / "again")
    assert central(again) == central(run[0]), "masks differ, and what they hide does not"


@pytest.mark.slow
@pytest.mark.integration
def test_any_worker_goes_on_with_what_another_began(run: tuple[RunFolder, Crossed], federation: Path, tmp_path: Path) -> None:
    other = simulate(federation, run[0].config, tmp_path / "workers", workers=2)
    assert [line["took_part"] for line in other.metrics()] == [line["took_part"] for line in run[0].metrics()]
    for mine, theirs in zip(central(run[0]), central(other), strict=True):
        assert mine["ndcg@10"] == pytest.approx(theirs["ndcg@10"], abs=0.02)


@pytest.mark.slow
@pytest.mark.integration
def test_both_engines_open_the_same(run: tuple[RunFolder, Crossed], federation: Path, tmp_path: Path) -> None:
    other = simulate(federation, run[0].config, tmp_path / "ray", "flower")
    assert [line["took_part"] for line in other.metrics()] == [line["took_part"] for line in run[0].metrics()]
    for mine, theirs in zip(central(run[0]), central(other), strict=True):
        assert mine["ndcg@10"] == pytest.approx(theirs["ndcg@10"], abs=0.02)


# -- with the noise off, it is the training without secure aggregation -------------------------------------------------------


@pytest.mark.parametrize("part", ["heads", "encoder"])
def test_without_noise_the_mean_is_that_of_the_local_trust_model_up_to_rounding(
    run: tuple[RunFolder, Crossed], federation: Path, part: str
) -> None:
    folder, crossed = run
    request = next(request for request, _ in crossed if step_of(request) == "mask" and request.content["task"]["part"] == part)
    content = {name: request.content[name] for name in request.content if name != "secure"}
    public = wire.from_record(next(one for one, _ in crossed if "public" in one.content).content["public"])
    task, trained, _, _ = wire.decode_train(Message(RecordDict(content), 2, "train"))
    os.environ["FEDREC_SITE"] = str((folder.path / "site.json").resolve())
    forget_merchants()
    shops = [open_merchant(site_of(context_of(i))) for i in range(5)]
    size = sum(value.size for value in of_part(trained, task.part).values())
    lattice = Lattice(size, wire.decode_lists(request).scale, "round 1")

    total = np.zeros(size, dtype=np.uint32)
    for shop in shops:
        noise = SeededNoise(7, shop.name)
        steps = lattice.encode(flat(shop.clipped_sum(task, trained, public, noise)), noise.uniform(size))
        total += steps.astype(np.uint64).astype(np.uint32)
    lot = sum(expected_lot(task, shop.policy.population) for shop in shops)
    opened = unflat(-task.learning_rate * lattice.decode(total) / lot, of_part(trained, task.part))

    local = [update_of(shop, task, trained, public) for shop in shops]
    wanted = weighted_mean(local, [shop.policy.population for shop in shops])
    difference = norm({name: opened[name] - wanted[name] for name in wanted})
    # Each merchant's rounding moves a coordinate by less than a step, the rotation keeps lengths; the rest is float32.
    bound = len(shops) * math.sqrt(size) / lattice.scale * task.learning_rate / lot
    assert norm(wanted) > 100 * bound, "the bound is far under what is learned"
    assert difference <= bound + 1e-5 * norm(wanted)


def update_of(shop: Merchant, task: Any, trained: Any, public: Any) -> Any:
    from fedrec.training import train_round

    base = {name: value for name, value in public.items() if not name.startswith("prior.")}
    return train_round(
        replace(task, noise_multiplier=1e-12), shop.data.catalogue, shop.examples(task, trained, public),
        encoder=shop.encoder(task), base=base, trained=trained, prior=shop.prior(public), population=shop.policy.population,
        noise=SeededNoise(7, shop.name),
    )  # fmt: skip


# -- merchants that fail ----------------------------------------------------------------------------------------------------


def failing(at: dict[tuple[int, str], set[int]]) -> Tamper:
    """Merchants (by partition) that have no answer for a step, or the steps after it, of a round."""
    number = {"round": -1}

    def tamper(request: Message, context: Context, reply: Message) -> Message:
        from flwr.app import Error

        step, merchant = step_of(request), int(context.node_config["partition-id"])
        number["round"] = int(request.content["task"].get("round", 0))
        for (when, first), who in at.items():
            if when == number["round"] and merchant in who and STEPS.index(step.removesuffix("_histogram")) >= STEPS.index(first):
                return Message(Error(code=3, reason="gone"), reply_to=request)
        return reply

    return tamper


@pytest.mark.parametrize("step", STEPS)
def test_a_merchant_that_drops_out_at_any_step_is_borne(
    federation: Path, tiny_bert_folder: Path, tmp_path: Path, step: str
) -> None:
    config = config_of(tiny_bert_folder, rounds=2, encoder_rounds=0)
    folder = simulate_with(federation, config, tmp_path / "run", failing({(1, step): {2}}))
    first, second = folder.metrics()[1:]
    assert "abandoned" not in first and second["took_part"] == MERCHANTS
    assert first["took_part"] == (MERCHANTS if step in ("confirm", "reveal") else [n for n in MERCHANTS if n != "m2"])
    assert "m2" in first["refused"]
    # Who masked has paid, whether or not it was there at the end; who did not mask has paid only if its answer was lost.
    paid = ledger_rounds(folder)["m2"]
    assert paid == ([0, 2] if step in ("announce", "share") else [0, 1, 2])


@pytest.mark.parametrize("step", STEPS)
def test_with_too_few_left_the_round_is_abandoned_and_the_run_goes_on(
    federation: Path, tiny_bert_folder: Path, tmp_path: Path, step: str
) -> None:
    config = config_of(tiny_bert_folder, rounds=2, encoder_rounds=0)
    folder = simulate_with(federation, config, tmp_path / "run", failing({(1, step): {1, 2}}))
    _, first, second = folder.metrics()
    assert first["abandoned"] and second["took_part"] == MERCHANTS
    assert first["central"]["ndcg@10"] == folder.metrics()[0]["central"]["ndcg@10"], "nothing was opened"
    paid = step not in ("announce", "share")
    assert ledger_rounds(folder)["m0"] == ([0, 1, 2] if paid else [0, 2]), "who masked has paid, and gets nothing back"


def test_a_histogram_that_cannot_be_opened_leaves_a_flat_prior(federation: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    config = config_of(tiny_bert_folder, rounds=1, encoder_rounds=0)
    folder = simulate_with(federation, config, tmp_path / "run", failing({(0, "mask"): {1, 2}}))
    state = folder.load()
    assert state is not None and not state.public["prior.counts"].any()
    assert folder.metrics()[0]["abandoned"] and folder.metrics()[1]["took_part"] == MERCHANTS


# -- policies ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return make_federation(tmp_path / "own", merchants=5, users=30, policy={"trust": "secure-aggregation"})


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"colluders": 2}, "policy: 1 colluders are under the policy's 2"),
        ({"dropouts": 0}, "policy: 1 dropouts are over the policy's 0"),
        ({"min_noise_multiplier": 99.0}, "policy: noise_multiplier"),
        ({"epsilon": 0.5}, "budget: epsilon"),
    ],
)
def test_a_merchant_whose_policy_asks_for_more_declines_before_anyone_pays_for_it(
    own: Path, tiny_bert_folder: Path, tmp_path: Path, policy: dict[str, Any], reason: str
) -> None:
    set_policy(own, "m3", **policy)
    with recorded() as crossed:
        folder = simulate(own, config_of(tiny_bert_folder, rounds=1, encoder_rounds=0), tmp_path / "run")
    assert all(line["declined"]["m3"].startswith(reason) for line in folder.metrics())
    assert all(line["took_part"] == ["m0", "m1", "m2", "m4"] for line in folder.metrics())
    assert {step_of(request) for request, _ in crossed if request.metadata.dst_node_id == 5} == {"announce"}
    assert "m3" not in ledger_rounds(folder)


def test_a_run_ends_when_more_decline_for_good_than_may_be_missing(own: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    for name in ("m1", "m2"):
        set_policy(own, name, epsilon=5.0)
    folder = simulate(own, config_of(tiny_bert_folder, rounds=4, encoder_rounds=0), tmp_path / "run")
    ended = json.loads((folder.path / "ended_early.json").read_text())
    assert ended["reason"].startswith("budget:") and len(folder.metrics()) == 2
    assert list(ledger_rounds(folder).values()) == [[0, 1]] * 5, "nobody paid for what could not be opened"


# -- a server that cheats ---------------------------------------------------------------------------------------------------


def context_of(partition: int) -> Context:
    return Context(run_id=1, node_id=2, node_config={"partition-id": partition}, state=RecordDict(), run_config={})


def ask(partition: int, request: Message, task: dict[str, Any] | None = None, **lists: Any) -> Message:
    """Send a request to a merchant again, with changes to its task and lists."""
    from clients.app import app

    content = RecordDict(dict(request.content))
    content["task"] = ConfigRecord({**dict(request.content["task"]), **(task or {})})
    if lists:
        content["secure"] = ConfigRecord({**dict(request.content["secure"]), **lists})
    return app(Message(content, partition + 2, request.metadata.message_type), context_of(partition))


def reason_of(reply: Message) -> str:
    return str(reply.content["statement"]["reason"])


def content_of(reply: Message) -> bytes:
    return recorddict_to_proto(reply.content).SerializeToString(deterministic=True)


@contextmanager
def stopped_after(
    step: str, federation: Path, bert: Path, out: Path, **settings: Any
) -> Iterator[dict[str, list[tuple[Message, Message]]]]:
    """The requests and replies of round 1, of which no later step than `step` has been asked."""

    class Stop(Exception):
        pass

    seen: dict[str, list[tuple[Message, Message]]] = {}

    def tamper(request: Message, context: Context, reply: Message) -> Message:
        if request.content["task"].get("round", 0) == 1:
            seen.setdefault(step_of(request), []).append((request, reply))
            if step_of(request) == step and len(seen[step]) == 5:
                raise Stop
        return reply

    with pytest.raises(Stop):
        simulate_with(federation, config_of(bert, rounds=1, encoder_rounds=0, **settings), out, tamper)
    yield seen


def ledger_of(out: Path, name: str = "m0") -> Ledger:
    return Ledger(out / "privacy" / f"{name}.ledger.jsonl", 1e-5)


def test_every_repeated_request_gets_the_same_bytes_and_costs_nothing(
    federation: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with stopped_after("reveal", federation, tiny_bert_folder, out) as seen:
        lines = ledger_of(out).path.read_bytes()
        forget_merchants()
        for step in STEPS:
            request, reply = seen[step][0]
            assert content_of(ask(0, request)) == content_of(reply), step
        assert ledger_of(out).path.read_bytes() == lines


def test_a_step_that_was_answered_is_not_answered_with_other_content(
    federation: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with stopped_after("reveal", federation, tiny_bert_folder, out) as seen:
        lines = ledger_of(out).path.read_bytes()
        four = {
            key: list(seen["share"][0][0].content["secure"][key])[:4] for key in ("names", "first", "second", "third", "fourth")
        }
        changes: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
            "share": ({}, four),
            "mask": ({"temperature": 9.0}, {}),
            "confirm": ({}, {"there": ["m0", "m1", "m2", "m3"]}),
            "reveal": ({}, {"names": ["m0"], "first": [b"x"]}),
        }  # fmt: skip
        for step, (task, lists) in changes.items():
            reply = ask(0, seen[step][0][0], task, **lists)
            assert reason_of(reply) == f"secure aggregation: {step} was asked before with other content"
            assert not reply.content["arrays"]
        lower = ask(0, seen["mask"][0][0], {}, scale=seen["mask"][0][0].content["secure"]["scale"] / 2)
        assert reason_of(lower).endswith("other content")
        assert ledger_of(out).path.read_bytes() == lines


def test_both_kinds_of_share_of_one_merchant_are_never_revealed(federation: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    """The server first confirms a sum with all in it, then asks for the pair masks of one of them."""
    out = tmp_path / "run"
    with stopped_after("confirm", federation, tiny_bert_folder, out) as seen:
        signatures = [reply.content["secure"]["first"][0] for _, reply in seen["confirm"]]
        request = seen["confirm"][0][0]
        again = ask(0, request, {}, there=["m0", "m2", "m3", "m4"])
        assert reason_of(again) == "secure aggregation: confirm was asked before with other content"
        opening = Message(RecordDict({"task": request.content["task"], "secure": request.content["secure"]}), 2, "train.reveal")
        few = ask(0, opening, {}, there=[], names=["m0", "m2"], first=[signatures[0], signatures[2]])
        assert reason_of(few) == "secure aggregation: 2 merchants confirmed the same sum, 4 are needed"
        reply = ask(0, opening, {}, there=[], names=MERCHANTS, first=signatures)
        shares = reply.content["secure"]
        assert all(shares["first"]) and not any(shares["second"]) and "m0" not in shares["names"]


def test_steps_out_of_turn_are_refused(federation: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with stopped_after("share", federation, tiny_bert_folder, out) as seen:
        request = seen["share"][0][0]
        for step in ("confirm", "reveal"):
            early = Message(RecordDict(dict(request.content)), 2, f"train.{step}")
            assert reason_of(ask(0, early)) == f"secure aggregation: {step} was asked out of turn"
        other = ask(0, request, {}, attempt="another")
        assert "has not begun" in reason_of(other)
        assert "has not begun" in reason_of(ask(0, request, {"round": 2}))


def test_a_round_that_was_paid_for_is_not_begun_again(federation: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with stopped_after("mask", federation, tiny_bert_folder, out) as seen:
        request = seen["announce"][0][0]
        assert reason_of(ask(0, request, {"attempt": "another"})) == "the round is over"
        # What it knew is gone, as on a machine that was set up anew: the ledger still says so.
        (out / "replies" / "m0" / "secure.json").unlink()
        assert reason_of(ask(0, request)) == "the round is over"
        assert "has not begun" in reason_of(ask(0, seen["mask"][0][0]))
        assert len(ledger_of(out).releases()) == 2


def test_a_round_that_nobody_paid_for_may_begin_again_with_fresh_keys(
    federation: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with stopped_after("share", federation, tiny_bert_folder, out) as seen:
        request, first = seen["announce"][0]
        second = ask(0, request, {"attempt": "another"})
        assert second.content["statement"]["status"] == "ok"
        assert second.content["secure"]["first"] != first.content["secure"]["first"]


@pytest.mark.parametrize(
    ("task", "lists", "reason"),
    [
        ({"noise_multiplier": 500.0}, {}, "not the one that was announced"),
        ({"clip_norm": 0.01}, {}, "not the one that was announced"),
        ({"sample_rate": 0.5}, {}, "not the one that was announced"),
        ({}, {"scale": 0.0}, "scale 0 is not positive"),
        ({}, {"scale": -1.0}, "scale -1 is not positive"),
        ({}, {"scale": float("nan")}, "failed: WireError"),
        ({}, {"scale": 1e12}, "a noise share of"),
        ({}, {"scale": 500.0}, ""),
        ({}, {"there": ["m0", "m1", "m2"]}, "sealed a share without being there"),
        ({}, {"there": [*MERCHANTS, "m9"]}, "shared without having announced"),
        ({}, {"names": [], "first": [], "there": ["m0", "m1"]}, "4 are needed"),
        ({}, {"names": ["m1", "m1"], "first": [b"", b""]}, "failed: WireError"),
    ],
)  # fmt: skip
def test_a_hostile_request_for_masked_numbers_costs_nothing(
    federation: Path, tiny_bert_folder: Path, tmp_path: Path, task: dict[str, Any], lists: dict[str, Any], reason: str
) -> None:
    out = tmp_path / "run"
    with stopped_after("share", federation, tiny_bert_folder, out) as seen:
        masks = mask_requests(seen, tiny_bert_folder, out)
        reply = ask(0, masks[0], task, **lists)
        if not reason:  # a coarse grid is the server's own loss: the noise covers its rounding
            assert reply.content["statement"]["status"] == "ok" and reply.content["arrays"]
            return
        assert reply.content["statement"]["status"] == "declined" and reason in reason_of(reply) and not reply.content["arrays"]
        assert len(ledger_of(out).releases()) == 1


def mask_requests(seen: dict[str, list[tuple[Message, Message]]], bert: Path, out: Path) -> list[Message]:
    """The requests that an honest server would make next, for each merchant."""
    folder = RunFolder.open(out)
    state = folder.load()
    assert state is not None
    from fedrec.privacy import plan_noise
    from server.secure import SecureLora
    from server.start import load_encoder_for

    strategy = SecureLora(folder.config, plan_noise(folder.config), state, load_encoder_for(folder.config).fingerprint)
    sealed = {
        reply.content["statement"]["merchant"]: dict(
            zip(reply.content["secure"]["names"], reply.content["secure"]["first"], strict=True)
        )
        for _, reply in seen["share"]
    }
    content = wire.encode_train(strategy.task(1), state.trained, digest(state.public), state.public)
    attempt = str(seen["share"][0][0].content["secure"]["attempt"])
    out_requests = []
    for name in MERCHANTS:
        boxes = {maker: kept[name] for maker, kept in sealed.items() if name in kept}
        step = wire.Step(attempt, names=tuple(boxes), first=tuple(boxes.values()), there=tuple(MERCHANTS), scale=1000.0)
        out_requests.append(Message(wire.with_step(content, step), 2, "train.mask"))
    return out_requests


def test_a_merchant_with_another_roster_is_left_out(
    federation: Path, tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import clients.merchant

    real = clients.merchant.site_of

    def site(context: Context) -> Any:
        found = real(context)
        if found.merchant.name != "m4":
            return found
        mine = found.roster.with_name("m4.txt")
        kept = dict(Roster.read(found.roster).keys)
        del kept["m0"]
        Roster(kept).write(mine)
        return replace(found, roster=mine)

    monkeypatch.setattr(clients.merchant, "site_of", site)
    folder = simulate(federation, config_of(tiny_bert_folder, rounds=1, encoder_rounds=0), tmp_path / "run")
    line = folder.metrics()[1]
    assert line["refused"] == {"m4": "holds another roster than most"} and line["took_part"] == ["m0", "m1", "m2", "m3"]
    assert "m4" not in ledger_rounds(folder)


def test_keys_that_the_server_replaced_are_refused_and_named(federation: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with stopped_after("announce", federation, tiny_bert_folder, out) as seen:
        steps = [reply.content["secure"] for _, reply in seen["announce"]]
        lists = {key: [step[key][0] for step in steps] for key in ("names", "first", "second", "third", "fourth")}
        request = Message(
            RecordDict(
                {
                    "task": ConfigRecord({"run": seen["announce"][0][0].content["task"]["run"], "round": 1}),
                    "secure": ConfigRecord({**dict(steps[0]), "roster": "", "members": 0, **lists}),
                }
            ),
            2,
            "train.share",
        )
        lists["first"][3] = bytes(32)
        reply = ask(0, request, {}, first=lists["first"])
        assert reason_of(reply) == "secure aggregation: the announcement of m3 is not signed by the key in the roster"
        assert ask(0, request).content["statement"]["status"] == "declined", "its list was changed, too"


def test_secrets_are_for_their_owner_alone_and_gone_at_the_end(federation: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    path = out / "replies" / "m0" / "secure.json"
    with stopped_after("confirm", federation, tiny_bert_folder, out):
        assert path.stat().st_mode & 0o777 == 0o600
        assert json.loads(path.read_text())["state"]["held"]
        assert Head.from_json(json.loads(path.read_text())["head"]).lines == len(ledger_of(out, "m0").releases()) > 0
    with stopped_after("reveal", federation, tiny_bert_folder, tmp_path / "other"):
        assert json.loads((tmp_path / "other" / "replies" / "m0" / "secure.json").read_text())["state"] is None


@pytest.mark.parametrize(
    ("step", "change"),
    [
        ("announce", {"names": ["m1"]}), ("announce", {"first": [b"short"]}), ("share", {"names": ["m1"], "first": [b""]}),
        ("share", {"names": [], "first": []}), ("mask", {"attempt": "another"}), ("confirm", {"first": []}),
        ("confirm", {"first": [b"forged"]}), ("reveal", {"first": [b"x"] * 4}), ("reveal", {"names": []}),
        *(
            pytest.param(*more, marks=pytest.mark.slow)
            for more in [
                ("announce", {"first": []}), ("announce", {"second": [bytes(32)]}), ("announce", {"fourth": [b"forged"]}),
                ("announce", {"members": 2}), ("share", {"names": ["m1", "m1"], "first": [b"", b""]}),
                ("share", {"first": [b"broken"] * 4}), ("reveal", {"first": [bytes(16)] * 4}),
            ]
        ),
    ],
)  # fmt: skip
def test_a_merchant_that_answers_nonsense_does_not_end_the_run(
    federation: Path, tiny_bert_folder: Path, tmp_path: Path, step: str, change: dict[str, Any]
) -> None:
    def tamper(request: Message, context: Context, reply: Message) -> Message:
        if step_of(request) == step and context.node_config["partition-id"] == 2 and request.content["task"]["round"] == 1:
            reply.content["secure"] = ConfigRecord({**dict(reply.content["secure"]), **change})
        return reply

    config = config_of(tiny_bert_folder, rounds=2, encoder_rounds=0)
    folder = simulate_with(federation, config, tmp_path / "run", tamper)
    assert [line["round"] for line in folder.metrics()] == [0, 1, 2]
    forged = (step, change) in (("announce", {"fourth": [b"forged"]}), ("share", {"first": [b"broken"] * 4}))
    if forged:  # others cannot go on with it, before anybody has paid: it is named, and not asked again
        assert folder.metrics()[1]["abandoned"] and ledger_rounds(folder)["m0"] == [0, 2]
        assert folder.metrics()[2]["refused"] == {"m2": "is blamed by more merchants than may collude"}
    else:
        assert "abandoned" not in folder.metrics()[1]
    assert folder.metrics()[2]["took_part"] == [name for name in MERCHANTS if name != "m2" or not forged]


def test_who_makes_paid_rounds_fail_is_left_out_and_a_second_one_stops_the_run(
    federation: Path, tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """m2 splits another seed than that of its mask: all pay for the round, and then it does not open."""
    import clients.secure
    from server.strategy import TooFewMerchants

    honest = clients.secure.secure.share

    def lying(state: Any, *rest: Any) -> Any:
        if state.name not in liars or state.terms.round == 0:
            return honest(state, *rest)
        changed, sealed = honest(replace(state, seeds=(*state.seeds[:2], b"another seed 16 ")), *rest)
        return replace(changed, seeds=state.seeds), sealed

    monkeypatch.setattr(clients.secure.secure, "share", lying)
    liars = {"m2"}
    # With colluders 1 and nobody missing a secret has four shares, of which three give it back: one more than the least.
    folder = simulate(federation, config_of(tiny_bert_folder, rounds=3, encoder_rounds=0, dropouts=1), tmp_path / "run")
    first, second = folder.metrics()[1:3]
    assert "the shares of m2's secret do not fit together" in first["abandoned"]
    assert "m2" in second["refused"] and second["took_part"] == ["m0", "m1", "m3", "m4"]

    liars = {"m1", "m2"}
    with pytest.raises(TooFewMerchants, match="2 rounds in a row were paid for"):
        simulate(federation, config_of(tiny_bert_folder, rounds=5, encoder_rounds=0), tmp_path / "stopped")
    stopped = RunFolder.open(tmp_path / "stopped")
    assert [bool(line.get("abandoned")) for line in stopped.metrics()] == [False, True, True]
    assert ledger_rounds(stopped)["m0"] == [0, 1, 2], "no third round is paid for"


def test_a_population_beyond_all_others_is_capped(own: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    set_policy(own, "m3", population=2**40)
    folder = simulate(own, config_of(tiny_bert_folder, rounds=1, encoder_rounds=0), tmp_path / "run")
    assert folder.metrics()[1]["took_part"] == MERCHANTS


def test_noise_is_drawn_for_every_number_whatever_shape_a_server_sends(
    federation: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    """A hidden encoder part and an empty trained one would be one draw of noise for all numbers, which anyone can subtract."""
    out = tmp_path / "run"
    with stopped_after("share", federation, tiny_bert_folder, out) as seen:
        request = mask_requests(seen, tiny_bert_folder, out)[0]
        public, trained = (wire.from_record(request.content[name]) for name in ("public", "arrays"))
        lora = {name: value for name, value in trained.items() if not name.startswith("heads.")}
        assert lora
        heads = {name: value for name, value in trained.items() if name not in lora}
        for spoilt, hidden, part in (
            ({**heads, "x": np.zeros(1, np.float32)}, lora, "encoder"),
            ({**heads}, lora, "encoder"),
            ({**trained, "x": np.zeros(1, np.float32)}, {}, "encoder"),
            ({**lora, "heads.history.B": np.zeros((1, 1), np.float32)}, heads, "heads"),
            ({**trained, "heads.history.B": heads["heads.history.B"][:, :1]}, {}, "heads"),
        ):
            content = RecordDict(dict(request.content))
            content["arrays"], content["public"] = wire.to_record(spoilt), wire.to_record({**public, **hidden})
            content["task"] = ConfigRecord(
                {**dict(request.content["task"]), "part": part, "public": digest({**public, **hidden})}
            )
            reply = ask(0, Message(content, 2, "train.mask"))
            assert reason_of(reply) == "failed: WireError" and not reply.content["arrays"]
        assert len(ledger_of(out).releases()) == 1


def test_seeds_are_forgotten_once_the_masks_are_on(federation: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with stopped_after("mask", federation, tiny_bert_folder, out):
        assert json.loads((out / "replies" / "m0" / "secure.json").read_text())["state"]["seeds"] == ["", "", ""]


def test_terms_of_another_size_of_federation_are_declined(federation: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with stopped_after("announce", federation, tiny_bert_folder, out) as seen:
        reply = ask(0, seen["announce"][0][0], {"attempt": "b", "dropouts": 3})
        assert "5 merchants cannot bear 3 dropouts and 1 colluders" in reason_of(reply)
