"""The secure sum: exact for every pattern of drop-outs it bears, uniform to the server, and refused when it cheats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, ks_2samp

from fedrec import secure
from fedrec.secure import Collector, Refused, Revealed, Roster, State, Terms, keys, neighbours, quorum
from fedrec.secure.graph import SMALL

NUMBERS = 40


@cache
def node_key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def public_line(name: str) -> str:
    public = node_key(name).public_key()
    return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


@cache
def roster_of(members: int) -> Roster:
    return Roster({name: public_line(name) for name in (f"m{i:03d}" for i in range(members))})


@dataclass
class Play:
    """A secure sum of members who each hold a vector, step by step as a server drives it."""

    members: int
    dropouts: int
    colluders: int
    attempt: str = "a"
    values: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.roster = roster_of(self.members)
        self.terms = Terms("run", 1, self.attempt, self.roster.digest, self.members, self.dropouts, self.colluders)
        self.collector, self.states = Collector(self.terms), dict[str, State]()

    def announce(self, away: frozenset[str] = frozenset()) -> None:
        for name in sorted(set(self.roster.keys) - away):
            self.states[name] = secure.announce(self.terms, name, self.roster, node_key(name))
            self.collector.announced[name] = self.states[name].announcement

    def share(self, away: frozenset[str] = frozenset()) -> None:
        for name in sorted(set(self.collector.announced) - away):
            self.states[name], self.collector.sealed[name] = secure.share(
                self.states[name], self.collector.announced, self.roster
            )

    def mask(self, away: frozenset[str] = frozenset(), content: str = "content") -> None:
        for name in sorted(set(self.collector.there) - away):
            held = secure.hold(self.states[name], self.collector.there, self.collector.sealed_for(name), content)
            self.states[name] = State.from_json(held.to_json())  # as a merchant who restarts
            value = self.values.setdefault(name, np.random.default_rng().integers(-(2**40), 2**40, NUMBERS))
            self.collector.masked[name] = secure.mask(self.states[name], value)
            self.states[name] = secure.forgetful(self.states[name])
        self.collector.content = content

    def confirm(self, away: frozenset[str] = frozenset()) -> None:
        for name in sorted(set(self.collector.survivors) - away):
            self.states[name], self.collector.signatures[name] = secure.confirm(
                self.states[name], self.collector.survivors, node_key(name)
            )

    def reveal(self, away: frozenset[str] = frozenset()) -> dict[str, Revealed]:
        signed = self.collector.signatures
        return {name: secure.reveal(self.states[name], signed, self.roster) for name in sorted(set(signed) - away)}

    def through(self, *away: frozenset[str]) -> np.ndarray:
        """All steps; at each some more are away, for good."""
        gone, steps = frozenset[str](), (self.announce, self.share, self.mask, self.confirm)
        for step, more in zip(steps, away[:4], strict=True):
            gone |= more
            step(gone)  # type: ignore[operator]
        return self.collector.open(self.reveal(gone | away[4]))

    def expected(self) -> np.ndarray:
        """The plain sum of the integers of those who masked, modulo 2^32."""
        total = sum((self.values[name] for name in self.collector.survivors), np.zeros(NUMBERS, dtype=np.int64))
        return (total % 2**32).astype(np.uint32)


NOBODY: tuple[frozenset[str], ...] = (frozenset(),) * 5


@st.composite
def drop_outs(draw: st.DrawFn) -> tuple[int, int, int, tuple[frozenset[str], ...]]:
    """A federation and who leaves at which step, at most as many in all as it bears."""
    members = draw(st.integers(2, 9))
    colluders = draw(st.integers(0, max(0, members - 1)))
    dropouts = draw(st.integers(0, max(0, (members - colluders - 1) // 2)))
    names = draw(st.permutations([f"m{i:03d}" for i in range(members)]))[: draw(st.integers(0, dropouts))]
    steps = [draw(st.integers(0, 4)) for _ in names]
    return (
        members,
        dropouts,
        colluders,
        tuple(frozenset(n for n, s in zip(names, steps, strict=True) if s == i) for i in range(5)),
    )


# -- what is opened ---------------------------------------------------------------------------------------------------------


@settings(max_examples=35, deadline=None)
@given(drop_outs())
def test_the_opened_sum_is_the_plain_sum_whoever_drops_out(case: tuple[int, int, int, tuple[frozenset[str], ...]]) -> None:
    members, dropouts, colluders, away = case
    play = Play(members, dropouts, colluders)
    opened = play.through(*away)
    assert np.array_equal(opened, play.expected())
    assert len(play.collector.survivors) >= members - dropouts


@pytest.mark.parametrize(("members", "dropouts", "colluders"), [(40, 4, 3), pytest.param(64, 6, 6, marks=pytest.mark.slow)])
def test_the_same_where_each_has_few_neighbours(members: int, dropouts: int, colluders: int) -> None:
    around = neighbours(members, dropouts, colluders, members)
    assert around.count < members - 1, "a sparse graph"
    gone = [f"m{i:03d}" for i in np.random.default_rng().permutation(members)[:dropouts]]
    cut = len(gone) // 2
    play = Play(members, dropouts, colluders)
    opened = play.through(frozenset(), frozenset(gone[:1]), frozenset(gone[1:cut]), frozenset(), frozenset(gone[cut:]))
    assert np.array_equal(opened, play.expected())


@pytest.mark.parametrize("step", ["announce", "share", "mask", "confirm"])
def test_with_one_more_drop_out_nothing_is_opened(step: str) -> None:
    gone = frozenset({"m000", "m001", "m002"})
    away = [gone if name == step else frozenset[str]() for name in ("announce", "share", "mask", "confirm")]
    play = Play(7, 2, 1)
    with pytest.raises(Refused):
        play.through(*away, frozenset())


def test_too_few_shares_open_nothing() -> None:
    play = Play(7, 2, 1)
    for step in (play.announce, play.share, play.mask, play.confirm):
        step()
    revealed = play.reveal()
    few = dict(list(revealed.items())[: neighbours(7, 2, 1, 7).threshold - 1])
    with pytest.raises(Refused, match="shares of a secret"):
        play.collector.open(few)


# -- what the server sees ---------------------------------------------------------------------------------------------------


def views(value: int, rounds: int) -> np.ndarray:
    """What a server holds of one merchant before opening, in so many sums: (rounds, NUMBERS) uint32."""
    out = []
    for attempt in range(rounds):
        play = Play(4, 1, 1, attempt=str(attempt))
        play.values["m001"] = np.full(NUMBERS, value, dtype=np.int64)
        for step in (play.announce, play.share, play.mask):
            step()
        out.append(play.collector.masked["m001"])
    return np.array(out)


def test_a_masked_vector_is_uniform_and_says_nothing_about_what_is_under_it() -> None:
    zero, other = views(0, 40), views(123_456_789, 40)
    for view in (zero, other):
        counts = np.bincount(view.view(np.uint8).ravel(), minlength=256)
        assert chisquare(counts).pvalue > 1e-6
        bits = np.unpackbits(view.view(np.uint8)).mean()
        assert abs(bits - 0.5) < 5 * 0.5 / np.sqrt(view.size * 32)
        correlation = np.corrcoef(view[:, :-1].ravel().astype(float), view[:, 1:].ravel().astype(float))[0, 1]
        assert abs(correlation) < 5 / np.sqrt(view.size)
    assert ks_2samp(zero.ravel(), other.ravel()).pvalue > 1e-6


def test_without_one_pair_mask_the_sum_of_the_others_is_uniform_too() -> None:
    play = Play(4, 1, 1)
    play.values = {name: np.zeros(NUMBERS, dtype=np.int64) for name in play.roster.keys}
    for step in (play.announce, play.share, play.mask):
        step()
    partial = sum(play.collector.masked[name] for name in ("m000", "m001", "m002"))
    assert np.unique(partial).size == NUMBERS and not np.any(partial == 0)


def test_no_secret_is_in_what_a_member_sends() -> None:
    play = Play(4, 1, 1)
    play.announce()
    play.share()
    seeds = [seed for state in play.states.values() for seed in state.seeds]
    play.mask()
    play.confirm()
    sent = repr(play.collector).encode() + b"".join(box for boxes in play.collector.sealed.values() for box in boxes.values())
    assert len(set(seeds)) == 12
    for seed in seeds:
        assert seed not in sent and repr(seed).encode() not in sent


def test_of_each_merchant_one_kind_of_share_is_revealed() -> None:
    play = Play(7, 2, 1)
    play.announce()
    play.share()
    play.mask(frozenset({"m002"}))
    play.confirm()
    for revealed in play.reveal().values():
        assert set(revealed.own).isdisjoint(revealed.pairs)
        assert set(revealed.pairs) == {"m002"} and "m002" not in revealed.own


# -- a server that cheats ---------------------------------------------------------------------------------------------------


def masked(members: int = 7, dropouts: int = 2, colluders: int = 1) -> Play:
    play = Play(members, dropouts, colluders)
    for step in (play.announce, play.share, play.mask):
        step()
    return play


def test_two_lists_of_survivors_never_both_get_a_quorum() -> None:
    """The server shows some merchants a sum without m001 and others one with it, to get both kinds of its share."""
    play = masked()
    everyone = play.collector.survivors
    without = tuple(name for name in everyone if name != "m001")
    signed: dict[str, bytes] = {}
    for name in everyone:
        seen = everyone if name in ("m001", "m002", "m003", "m004") else without
        play.states[name], signed[name] = secure.confirm(play.states[name], seen, node_key(name))
    for name in everyone:
        with pytest.raises(Refused, match="confirmed the same sum"):
            secure.reveal(play.states[name], signed, play.roster)


@given(st.integers(1, 400), st.integers(0, 200))
def test_the_quorum_is_more_than_honest_merchants_can_split_into(members: int, colluders: int) -> None:
    needed = quorum(members, colluders)
    assert 2 * needed > (members - colluders) + 2 * colluders
    assert 2 * (needed - 1) <= members + colluders


def announced_by(change: Callable[[Play], Mapping[str, secure.Announcement]]) -> str:
    play = Play(5, 1, 1)
    play.announce()
    with pytest.raises(Refused) as refused:
        secure.share(play.states["m000"], change(play), play.roster)
    return str(refused.value)


def stranger(play: Play, name: str, signer: str) -> secure.Announcement:
    unsigned = secure.Announcement(keys.key_pair(b"1" * 16)[1], keys.key_pair(b"2" * 16)[1], b"own" * 11, b"")
    return replace(unsigned, signature=keys.sign(node_key(signer), unsigned.statement(play.terms, name)))


def test_an_invented_merchant_is_refused() -> None:
    reason = announced_by(lambda play: {**play.collector.announced, "mallory": stranger(play, "mallory", "mallory")})
    assert reason == "mallory is not in the roster"


def test_replaced_keys_are_refused() -> None:
    reason = announced_by(lambda play: {**play.collector.announced, "m001": stranger(play, "m001", "mallory")})
    assert reason == "the announcement of m001 is not signed by the key in the roster"


def test_own_keys_that_were_changed_are_refused() -> None:
    reason = announced_by(lambda play: {**play.collector.announced, "m000": stranger(play, "m000", "m000")})
    assert reason == "its own announcement is missing or changed"


def test_announcements_of_another_attempt_round_or_run_are_refused() -> None:
    for changed in ({"attempt": "b"}, {"round": 2}, {"run": "other"}, {"dropouts": 0}, {"colluders": 2}):
        play, other = Play(5, 1, 1), Play(5, 1, 1)
        other.terms = replace(other.terms, **changed)
        play.announce()
        other.announce()
        with pytest.raises(Refused, match="is not signed by"):
            secure.share(
                play.states["m000"], {**other.collector.announced, "m000": play.collector.announced["m000"]}, play.roster
            )


def test_too_few_announcements_are_refused() -> None:
    reason = announced_by(lambda play: {name: play.collector.announced[name] for name in ("m000", "m001", "m002")})
    assert reason == "3 of 5 merchants announced, 4 are needed"


def test_a_key_that_two_announce_is_refused() -> None:
    def copied(play: Play) -> dict[str, secure.Announcement]:
        known = play.collector.announced["m001"]
        unsigned = replace(known, signature=b"")
        return {
            **play.collector.announced,
            "m002": replace(unsigned, signature=keys.sign(node_key("m002"), unsigned.statement(play.terms, "m002"))),
        }

    assert announced_by(copied) == "two announcements hold the same key"


def test_a_key_in_another_form_or_one_that_agrees_on_zero_is_refused() -> None:
    def disguised(change: Callable[[bytes], bytes]) -> Callable[[Play], dict[str, secure.Announcement]]:
        def announced(play: Play) -> dict[str, secure.Announcement]:
            known = play.collector.announced["m001"]
            unsigned = replace(known, masking=change(known.masking), signature=b"")
            signed = replace(unsigned, signature=keys.sign(node_key("m002"), unsigned.statement(play.terms, "m002")))
            return {**play.collector.announced, "m002": signed}

        return announced

    # X25519 ignores the top bit: a colluder would announce m001's key once more, and share all its masks.
    for change in (
        lambda key: key[:-1] + bytes([key[-1] | 0x80]),
        lambda key: bytes(32),
        lambda key: (1).to_bytes(32, "little"),
        lambda key: (2**255 - 19 + 9).to_bytes(32, "little"),
        lambda key: key[:-1],
    ):
        assert announced_by(disguised(change)) == "the keys of m002 are unusable"


def test_a_pair_mask_belongs_to_two_names_and_to_what_they_saw() -> None:
    private, public = keys.key_pair(b"1" * 16)
    mine = secure.member.pair_key(private, public, b"seen", "a", "b")
    assert mine == secure.member.pair_key(private, public, b"seen", "b", "a")
    assert mine != secure.member.pair_key(private, public, b"seen", "a", "c")
    assert mine != secure.member.pair_key(private, public, b"other", "a", "b")


def test_a_roster_without_this_merchant_or_another_than_agreed_is_refused() -> None:
    play = Play(5, 1, 1)
    with pytest.raises(Refused, match="not in its roster"):
        secure.announce(play.terms, "mallory", play.roster, node_key("mallory"))
    with pytest.raises(Refused, match="another roster"):
        secure.announce(play.terms, "m000", roster_of(4), node_key("m000"))


def test_different_lists_for_different_merchants_end_without_a_quorum() -> None:
    play = Play(5, 1, 1)
    play.announce()
    play.share()
    lists = dict.fromkeys(play.collector.there, play.collector.there)
    for name in ("m003", "m004"):
        lists[name] = tuple(one for one in play.collector.there if one != "m000")
    for name, there in lists.items():
        boxes = {maker: box for maker, box in play.collector.sealed_for(name).items() if maker in there}
        play.states[name] = secure.hold(play.states[name], there, boxes, "content")
        play.collector.masked[name] = secure.mask(play.states[name], np.zeros(NUMBERS, dtype=np.int64))
    everyone = tuple(name for name in play.collector.survivors if name != "m000")
    for name in everyone:
        play.states[name], play.collector.signatures[name] = secure.confirm(play.states[name], everyone, node_key(name))
    for name in everyone:
        with pytest.raises(Refused, match="confirmed the same sum"):
            secure.reveal(play.states[name], play.collector.signatures, play.roster)


def test_a_merchant_that_was_shown_something_else_cancels_with_nobody() -> None:
    """All but m000 sign and open; what m000 was shown differs in one thing, and its vector stays under its masks."""
    for differs in ("content", "there", "announced"):
        play = Play(7, 2, 1)
        play.values = {name: np.zeros(NUMBERS, dtype=np.int64) for name in play.roster.keys}
        play.announce()
        play.share()
        other = play.states["m000"]
        there, content = play.collector.there, "content"
        play.mask()
        if differs == "content":
            content = "another scale"
        elif differs == "there":
            there = there[:-1]
        else:
            announced = dict(other.announced)
            del announced["m006"]
            other, there = replace(other, announced=announced), there[:-1]
        boxes = {maker: box for maker, box in play.collector.sealed_for("m000").items() if maker in there}
        play.collector.masked["m000"] = secure.mask(secure.hold(other, there, boxes, content), play.values["m000"])
        play.confirm(frozenset({"m000"}))
        opened = play.collector.open(play.reveal(frozenset({"m000"})))
        assert np.unique(opened).size == NUMBERS and not np.any(opened == 0), "six masks that only m000 has are left on it"


def test_a_server_that_hides_who_drew_a_merchant_opens_nothing_of_it() -> None:
    """Above 32 merchants shares go to few. Hiding a merchant's holders from it must not take its masks away."""
    play = Play(40, 4, 1)
    play.announce()
    play.share()
    target = play.states["m000"]
    there = tuple(name for name in play.collector.there if name not in target.drawn[:4])
    play.values = {name: np.zeros(NUMBERS, dtype=np.int64) for name in play.roster.keys}
    play.mask()
    play.collector.masked["m000"] = secure.mask(secure.hold(target, there, {}, "content"), play.values["m000"])
    gone = set(target.drawn[4:][:4])
    play.collector.masked = {name: value for name, value in play.collector.masked.items() if name not in gone}
    play.confirm(frozenset({"m000"}))
    opened = play.collector.open(play.reveal(frozenset({"m000"})))
    assert np.unique(opened).size == NUMBERS and not np.any(opened == 0)


def test_different_tasks_for_different_merchants_end_without_a_quorum() -> None:
    play = Play(5, 1, 1)
    play.announce()
    play.share()
    for name in play.collector.there:
        content = "one task" if name < "m002" else "another"
        play.states[name] = secure.hold(play.states[name], play.collector.there, play.collector.sealed_for(name), content)
        play.collector.masked[name] = secure.mask(play.states[name], np.zeros(NUMBERS, dtype=np.int64))
    play.confirm()
    with pytest.raises(Refused, match="confirmed the same sum"):
        play.reveal()


def test_a_seal_for_somebody_else_or_changed_is_refused() -> None:
    play = Play(5, 1, 1)
    play.announce()
    play.share()
    boxes = play.collector.sealed_for("m000")
    swapped = {**boxes, "m001": play.collector.sealed["m001"]["m002"]}
    flipped = {**boxes, "m001": boxes["m001"][:-1] + bytes([boxes["m001"][-1] ^ 1])}
    for wrong in (swapped, flipped, {**boxes, "m001": b""}):
        with pytest.raises(Refused, match="seal of m001"):
            secure.hold(play.states["m000"], play.collector.there, wrong, "content")


def test_lists_that_do_not_fit_together_are_refused() -> None:
    play = Play(5, 1, 1)
    play.announce(frozenset({"m004"}))
    play.share()
    state, boxes, there = play.states["m000"], play.collector.sealed_for("m000"), play.collector.there
    for wrong, given_boxes in (
        ((*there, "m004"), boxes),  # never announced
        (there[1:], boxes),  # without this merchant
        (there[:-1], boxes),  # too few, and a share of who is not there
        (there, {**boxes, "m000": b"x"}),  # a share of its own
    ):
        with pytest.raises(Refused):
            secure.hold(state, wrong, given_boxes, "content")
    state = secure.hold(state, there, boxes, "content")
    for survivors in ((*there, "m004"), there[1:], there[:2]):
        with pytest.raises(Refused):
            secure.confirm(state, survivors, node_key("m000"))


def test_a_forged_or_borrowed_signature_does_not_count() -> None:
    play = masked(5, 1, 1)
    play.confirm()
    needed = quorum(5, 1)
    honest = dict(list(play.collector.signatures.items())[: needed - 1])
    missing = sorted(set(play.collector.survivors) - set(honest))
    forged = keys.sign(node_key("mallory"), secure.member.confirmation(play.states["m000"]))
    for more in ({}, {missing[0]: forged}, {missing[0]: next(iter(honest.values()))}, {"mallory": forged}):
        with pytest.raises(Refused, match=f"{needed - 1} merchants confirmed"):
            secure.reveal(play.states["m000"], {**honest, **more}, play.roster)


def test_shares_that_do_not_fit_together_are_noticed() -> None:
    play = Play(7, 2, 1)
    play.announce()
    play.share()
    play.mask(frozenset({"m002"}))
    play.confirm()
    revealed = play.reveal()
    for kind, name in (("pairs", "m002"), ("own", "m004")):
        for wrong, liars in ((bytes(16), 1), (b"short", 1), (bytes(16), 4)):
            lied = {
                holder: replace(one, **{kind: {**getattr(one, kind), name: wrong}}) if place < liars else one
                for place, (holder, one) in enumerate(revealed.items())
            }
            if liars == 1:
                assert np.array_equal(play.collector.open(lied), play.expected()), "one who lies is passed over"
            else:
                with pytest.raises(Refused, match=f"the shares of {name}'s secret do not fit together"):
                    play.collector.open(lied)


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20))
def test_terms_that_cannot_hold_are_refused(members: int, dropouts: int, colluders: int) -> None:
    make = lambda: Terms("run", 1, "a", "roster", members, dropouts, colluders)
    if members > 1 and 2 * dropouts + colluders < members:
        terms = make()
        assert terms.honest >= 1 and terms.least >= quorum(members, colluders)
    else:
        with pytest.raises(Refused, match="cannot bear"):
            make()


# -- the graph --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("members", "dropouts", "colluders"), [(33, 3, 3), (128, 12, 12), (128, 30, 10), (300, 30, 30)])
def test_colluders_do_not_reach_the_threshold_and_the_rest_does(members: int, dropouts: int, colluders: int) -> None:
    around = neighbours(members, dropouts, colluders, members)
    rng, draws = np.random.default_rng(0), 20_000
    # Who is drawn is without replacement; merchants 0.. are colluders, then those who drop out.
    worst_colluders = rng.hypergeometric(colluders, members - 1 - colluders, around.count, draws).max()
    worst_lost = rng.hypergeometric(dropouts, members - 1 - dropouts, around.count, draws).max()
    assert worst_colluders < around.threshold <= around.count - worst_lost
    assert around.count < members - 1


def test_small_federations_and_hopeless_ones_share_with_everyone() -> None:
    for members in (2, 9, SMALL):
        around = neighbours(members, 0, 1, members)
        assert (around.count, around.threshold) == (members - 1, quorum(members, 1) - 1)
    assert neighbours(40, 0, 39, 40).count == 39


def test_fewer_who_announce_leave_fewer_to_lose() -> None:
    assert neighbours(128, 12, 12, 116).count <= 115
    assert neighbours(9, 2, 1, 7) == secure.Neighbours(6, quorum(9, 1) - 1)


# -- the roster -------------------------------------------------------------------------------------------------------------


def test_a_roster_survives_its_file_and_its_digest_tells_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    roster = roster_of(4)
    roster.write(tmp_path / "roster.txt")
    known = Roster.read(tmp_path / "roster.txt")
    assert known == roster and known.digest == roster.digest
    assert roster_of(5).digest != roster.digest
    swapped = Roster({**roster.keys, "m000": roster.keys["m001"], "m001": roster.keys["m000"]})
    assert swapped.digest != roster.digest


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("m000 nonsense", "line 1: holds no elliptic-curve public key"),
        (f"m000 {public_line('m000')}\n\nm000 {public_line('m001')}", "line 3: the name of m000 is there twice"),
        (f"m000 {public_line('m000')}\nm001 {public_line('m000')}", "line 2: the key of m001 is there twice"),
    ],
)
def test_a_wrong_roster_is_named_by_line(tmp_path, text: str, found: str) -> None:  # type: ignore[no-untyped-def]
    from fedrec.errors import InputError

    (tmp_path / "roster.txt").write_text(text)
    with pytest.raises(InputError, match=found):
        Roster.read(tmp_path / "roster.txt")
    with pytest.raises(InputError, match="cannot be read"):
        Roster.read(tmp_path / "missing.txt")


def test_keys_for_different_uses_are_different_and_streams_are_long_enough() -> None:
    assert keys.derive(b"s" * 16, b"a", b"b") != keys.derive(b"s" * 16, b"ab")
    stream = keys.expand(keys.derive(b"s" * 16, b"a"), 25_000)
    assert stream.shape == (25_000,) and np.unique(stream).size > 24_990
    secret = keys.new_seed()
    shares = list(enumerate(keys.split(secret, 3, 5)))
    assert keys.combine(shares[1:4]) == secret != keys.combine(shares[:2])


@pytest.mark.parametrize(("members", "dropouts", "colluders"), [(12, 1, 1), (31, 2, 2)])
def test_a_holder_who_lies_is_passed_over_wherever_it_stands(members: int, dropouts: int, colluders: int) -> None:
    play = Play(members, dropouts, colluders)
    for step in (play.announce, play.share, play.mask, play.confirm):
        step()
    revealed = play.reveal()
    for liar in ("m000", f"m{members - 1:03d}"):
        lies = replace(revealed[liar], own={name: bytes(16) for name in revealed[liar].own})
        assert np.array_equal(play.collector.open({**revealed, liar: lies}), play.expected())


def test_who_shares_something_else_than_its_seeds_is_blamed() -> None:
    play = Play(7, 1, 1)
    play.announce()
    state = play.states["m004"]
    play.states["m004"] = replace(state, seeds=(state.seeds[0], state.seeds[1], b"another seed 16 "))
    play.share()
    play.states["m004"] = replace(play.states["m004"], seeds=state.seeds)
    play.mask()
    play.confirm()
    with pytest.raises(Refused, match="m004") as refused:
        play.collector.open(play.reveal())
    assert refused.value.blamed == "m004"
