"""A ledger fails closed: whatever happens to its file or its head, what counts as spent never becomes less in silence."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedrec.privacy import Ledger, LedgerError, Release, head_file
from fedrec.privacy.ledger import used
from fedrec.privacy.ledger_head import Head
from fedrec.wire import HistogramTask

DELTA = 1e-5
HISTOGRAM = Release("run-a", 0, "histogram", 20.0, 1.0, 1, 1.0, "user", DELTA)
LINES = 8


def release(number: int, noise: float = 9.0) -> Release:
    return Release("run-a", number, "dp-sgd", noise, 1.0, 1, 0.1, "user", DELTA)


def open_ledger(folder: Path) -> Ledger:
    path = folder / "privacy" / "shop.ledger.jsonl"
    return Ledger(path, DELTA, head_file(path))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ledger of eight lines and its head."""
    folder = tmp_path_factory.mktemp("written")
    ledger = open_ledger(folder)
    ledger.append(HISTOGRAM)
    for number in range(1, LINES):
        ledger.append(release(number, 9.0 if number < 5 else 7.0))
    return folder


@pytest.fixture
def ledger(written: Path, tmp_path: Path) -> Ledger:
    """A copy of it."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return open_ledger(tmp_path)


def cut_last_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


# Damage


def damages(content: bytes, rng: random.Random) -> bytes:
    """One random edit, cut, insertion or move."""
    lines = content.splitlines(keepends=True)
    at, to = sorted((rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)))
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(12)
    if kind == 0:
        return content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
    if kind == 1:
        return content[:at] + rng.randbytes(rng.randrange(1, 40)) + content[at:]
    if kind == 2:
        return content[:at] + content[to:]
    if kind == 3:
        return content[:at]
    if kind == 4:
        return b"".join(lines[: one + 1])
    if kind == 5:
        lines.insert(other, lines.pop(one))
    if kind == 6:
        lines.insert(other, lines[one])
    if kind == 7:
        del lines[one]
    if kind == 8:
        return content[:at] + b"\0" * (to - at) + content[to:]
    if kind == 9:
        return content[: -rng.randrange(1, 4)]
    if kind == 10:
        lines = [line for line in lines if rng.random() < 0.7]
    if kind == 11:
        return content.replace(b"\n", rng.choice([b"", b" ", b"\r\n", b"\n\n"]), rng.randrange(1, 9))
    return b"".join(lines)


def test_a_thousand_random_damages_lower_nothing_in_silence(ledger: Ledger) -> None:
    content, before = ledger.path.read_bytes(), used(ledger.releases())
    rng, refused, read = random.Random(11), 0, 0
    for _ in range(1000):
        ledger.path.write_bytes(damages(content, rng))
        # One reader that knows the bytes of before, and one that does not.
        for reader in (ledger, open_ledger(ledger.path.parent.parent)):
            try:
                assert used(reader.releases()) >= before
                read += 1
            except LedgerError as error:
                assert error.hint
                refused += 1
    assert refused > 1500 and read > 50


@pytest.mark.parametrize("damage", [bytes, lambda text: text[: len(text) // 2], lambda text: b"\0" * len(text)])
def test_a_damaged_head_is_refused_and_so_is_a_lost_one(ledger: Ledger, damage: Callable[[bytes], bytes]) -> None:
    assert ledger.head_path is not None
    content = ledger.head_path.read_bytes()
    for position in range(0, len(content) - 1, 37):
        ledger.head_path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(LedgerError, match=r"head.* is damaged"):
            ledger.releases()
    ledger.head_path.write_bytes(damage(content[:-1])[:-1])
    with pytest.raises(LedgerError, match=r"head.* is damaged"):
        ledger.append(release(LINES))
    ledger.head_path.unlink()
    with pytest.raises(LedgerError, match=r"head.* is missing"):
        ledger.releases()
    assert len(Ledger(ledger.path, DELTA).releases()) == LINES


REMOVED = [*itertools.combinations(range(1, LINES + 1), 1), (1, 2), (7, 8), (2, 5, 7), (1, 8), (4, 8), tuple(range(1, LINES + 1))]


@pytest.mark.parametrize("removed", REMOVED)
def test_the_first_removed_line_is_named(ledger: Ledger, removed: tuple[int, ...]) -> None:
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join(line for number, line in enumerate(lines, 1) if number not in removed))
    for act in (ledger.releases, ledger.spent, lambda: ledger.append(release(LINES)), ledger.adopt):
        with pytest.raises(LedgerError, match=rf"line {removed[0]}\b"):
            act()


def test_a_removed_ledger_is_named(ledger: Ledger) -> None:
    ledger.path.unlink()
    with pytest.raises(LedgerError, match=r"there is no ledger: its head, .*shop.head.json, counts 8"):
        ledger.append(release(1))
    assert not ledger.path.exists()


def test_a_ledger_of_another_chain_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    other = open_ledger(tmp_path / "other")
    for number in range(LINES + 1):
        other.append(release(number, 50.0))
    shutil.copy(other.path, ledger.path)
    with pytest.raises(LedgerError, match=r"line 8: is of another chain"):
        ledger.releases()


NESTED = b"[" * 100_000
CONTENTS = [
    b"\0", b"\0" * 4096, b"\n", b"\n\n", b" ", b"hello", b"hello\n", b"[]", b"[1]\n", b"null\n", b'"release"\n', b"{}", b"{}\n",
    b'{"release": {}, "chain": 1}\n', b'{"release": [], "chain": ""}\n', b'{"chain": "a"}', NESTED,
    b'{"chain": ' + NESTED + b"\n", b"\xff\xfe\x00", '{"chain": "'.encode("utf-16"), b'{"chain": "a\0', b'{"chain": "\xc3',
    b"\x7fELF\x01\n\n", b'\xef\xbb\xbf{"chain', b'{"release": {"round": 1' + b"0" * 5000 + b'}, "chain": ""}\n',
]  # fmt: skip


@pytest.mark.parametrize("headed", [True, False], ids=["headed", "alone"])
@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
def test_what_is_no_ledger_is_refused_and_left_as_it_is(ledger: Ledger, content: bytes, headed: bool) -> None:
    if not headed:
        ledger.head_path.unlink()  # type: ignore[union-attr]
    for before in (b"", ledger.path.read_bytes()):
        ledger.path.write_bytes(before + content)
        for act in (ledger.releases, lambda: ledger.append(release(LINES))):
            with pytest.raises(LedgerError) as refused:
                act()
            assert refused.value.hint
        assert ledger.path.read_bytes() == before + content


def in_its_place(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(path.with_name("not-mounted"))
    elif kind == "pipe":
        os.mkfifo(path)


@pytest.mark.parametrize("which", ["ledger", "head"])
@pytest.mark.parametrize("kind", ["folder", "loop", "dangling", "pipe"])
def test_what_is_no_file_is_refused(ledger: Ledger, kind: str, which: str) -> None:
    path = ledger.path if which == "ledger" else ledger.head_path
    assert path is not None
    in_its_place(path, kind)
    for act in (ledger.releases, lambda: ledger.append(release(LINES))):
        with pytest.raises(LedgerError, match=r": (is not a file|is a link to a file|cannot be read \(Too many)"):
            act()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_ledger_that_may_not_be_read_is_refused(ledger: Ledger) -> None:
    ledger.path.chmod(0)
    with pytest.raises(LedgerError, match="cannot be read"):
        ledger.releases()


# The end of the file


def test_a_whole_last_line_counts_without_its_newline(ledger: Ledger) -> None:
    before = ledger.spent()
    cut_last_byte(ledger.path)
    assert ledger.spent() == open_ledger(ledger.path.parent.parent).spent() == before
    ledger.append(release(LINES))
    assert [one.round for one in ledger.releases()] == list(range(LINES + 1))
    assert ledger.path.read_bytes().count(b"\n") == LINES + 1 and not ledger.path.with_suffix(".torn").exists()


def test_an_end_that_breaks_off_anywhere_is_set_aside(ledger: Ledger) -> None:
    """A crash in the middle of a write: the head knows nothing of that line, and nothing was released for it."""
    before = ledger.path.read_bytes()
    line = ledger.path.read_bytes().splitlines(keepends=True)[-1]
    torn = ledger.path.with_suffix(".torn")
    for length in (1, 11, 12, 40, 76, 90, 200, len(line) - 2):
        ledger.path.write_bytes(before + line[:length])
        assert len(ledger.releases()) == LINES
        ledger._mend_end()
        assert ledger.path.read_bytes() == before and torn.read_bytes() == line[:length] + b"\n"
        torn.unlink()


# Ledger and head


def test_a_head_that_cannot_be_written_costs_no_line(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or every round would be paid for and none answered."""
    before = ledger.path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Head, "write", full)
        with pytest.raises(LedgerError, match="nothing was released"):
            ledger.append(release(LINES))
    assert ledger.path.read_bytes() == before
    assert ledger.append(release(LINES)).round == LINES


def test_a_line_that_is_ahead_of_its_head_counts(ledger: Ledger) -> None:
    """A crash between the two writes."""
    assert ledger.head_path is not None
    head = ledger.head_path.read_bytes()
    spent = ledger.append(release(LINES)).epsilon_after
    ledger.head_path.write_bytes(head)
    assert ledger.standing() == "it is 1 line, which counts, ahead of its head"
    assert (ledger.spent().value, len(ledger.releases())) == (spent, LINES + 1)
    ledger.append(release(LINES + 1))
    assert ledger.standing() == "its head agrees" and len(ledger.releases()) == LINES + 2


def test_a_ledger_of_a_version_without_heads_is_adopted(tmp_path: Path) -> None:
    old = tmp_path / "privacy" / "shop.ledger.jsonl"
    for number in (1, 2):
        Ledger(old, DELTA).append(release(number))
    ledger = open_ledger(tmp_path)
    assert ledger.standing() == "it has no head yet"
    assert "it is kept from now on in" in ledger.adopt() and ledger.adopt() == ledger.standing() == "its head agrees"
    old.write_bytes(old.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(LedgerError, match="line 2 is missing"):
        ledger.releases()


def test_an_empty_file_is_what_a_crash_before_the_first_line_leaves(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.path.parent.mkdir()
    ledger.path.touch()
    assert (ledger.releases(), ledger.standing(), ledger.adopt()) == ([], *["nothing was released yet"] * 2)
    ledger.append(release(1))
    assert ledger.standing() == "its head agrees"


def test_a_head_says_what_the_lines_used(ledger: Ledger) -> None:
    assert ledger.head_path is not None
    head = Head.read(ledger.head_path)
    assert head == ledger.head() and head is not None and head.lines == LINES
    assert used(Release(**entry) for entry in head.used) == used(ledger.releases())
    assert {(entry["noise_multiplier"], entry["steps"]) for entry in head.used} == {(20.0, 1), (9.0, 4), (7.0, 3)}


# kill -9 at every call that reaches the disk

CALLS = ("fsync", "replace", "rename", "truncate", "mkdir", "open")


def killed_at(number: int, act: Callable[[], object]) -> bool:
    """Whether `act`, in a process of its own, was killed at its `number`th call of `CALLS`; else it ended."""
    child = os.fork()
    if child == 0:
        left = itertools.count(number, -1)

        def hooked(call: Callable[..., object]) -> Callable[..., object]:
            def hook(*arguments: object, **named: object) -> object:
                if next(left) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **named)

            return hook

        for name in CALLS:
            setattr(os, name, hooked(getattr(os, name)))
        try:
            act()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def kills(act: Callable[[], object], again: Callable[[], None]) -> Iterator[int]:
    """Kill `act` at one call after the other, from the state that `again` restores each time."""
    for number in range(100):
        again()
        if not killed_at(number, act):
            assert number > 4
            return
        yield number
    raise AssertionError("it never ended")


def test_an_append_that_is_killed_anywhere_loses_nothing_and_locks_nobody_out(written: Path, tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)

    def again() -> None:
        shutil.rmtree(tmp_path)
        shutil.copytree(written, tmp_path)
        ledger.path.write_bytes(ledger.path.read_bytes() + b'{"chain": "12')

    again()
    before = used(ledger.releases())
    ledger.append(release(LINES))
    for _ in kills(lambda: ledger.append(release(LINES)), again):
        assert used(ledger.releases()) >= before
        if len(ledger.releases()) == LINES:
            ledger.append(release(LINES))
        assert (len(ledger.releases()), bool(ledger.adopt()), ledger.standing()) == (LINES + 1, True, "its head agrees")


def test_a_first_append_that_is_killed_anywhere_locks_nobody_out(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path / "state")

    def again() -> None:
        shutil.rmtree(tmp_path / "state", ignore_errors=True)

    ledger.append(release(1))
    for _ in kills(lambda: ledger.append(release(1)), again):
        if not ledger.releases():
            ledger.append(release(1))
        assert (len(ledger.releases()), bool(ledger.adopt()), ledger.standing()) == (1, True, "its head agrees")


# What a power cut leaves


class Disk:
    """What a power cut would leave: names that were flushed with their folder, content that was flushed with its file."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.names: dict[int, dict[str, int]] = {root.stat().st_ino: {path.name: path.stat().st_ino for path in root.iterdir()}}
        self.content: dict[int, bytes] = {}
        fsync = os.fsync

        def flushed(file: int) -> None:
            path, number = Path(f"/proc/self/fd/{file}").resolve(), os.fstat(file).st_ino
            if path.is_dir():
                self.names[number] = {child.name: child.lstat().st_ino for child in path.iterdir()}
            else:
                self.content[number] = path.read_bytes()
            fsync(file)

        monkeypatch.setattr(os, "fsync", flushed)

    def read(self, path: Path) -> bytes | None:
        """The content of a file after the power cut, or None."""
        number = self.root.stat().st_ino
        for part in path.relative_to(self.root).parts:
            number = self.names.get(number, {}).get(part, -1)
        return self.content.get(number)


def test_a_release_is_on_disk_before_it_is_computed(
    tmp_path: Path, tiny_bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders, ledger and head, at the first release and at the next; and the head is never ahead of the ledger."""
    from clients import merchant

    from .merchants import open_shop, public_and_trained, task, write_merchant

    shop = open_shop(write_merchant(tmp_path / "shop", epsilon=9.0), tiny_bert_folder, tmp_path / "new" / "state", seed=None)
    public, trained = public_and_trained(shop)
    ledger, disk = shop.ledger, Disk(tmp_path, monkeypatch)
    assert ledger.head_path is not None
    seen, replace = [], os.replace

    def watched(compute: Callable[..., object]) -> Callable[..., object]:
        def computed(*arguments: object, **named: object) -> object:
            assert ledger.head_path is not None
            seen.append((disk.read(ledger.path), disk.read(ledger.head_path)))
            assert seen[-1] == (ledger.path.read_bytes(), ledger.head_path.read_bytes())
            return compute(*arguments, **named)

        return computed

    def replaced(source: Path, target: Path) -> None:
        if target == ledger.head_path:
            kept = disk.read(ledger.path) or b""
            assert json.loads(Path(source).read_bytes())["lines"] <= kept.count(b"\n")
            assert source.stat().st_ino in disk.content, "the head gets its name before its content is on disk"
        replace(source, target)

    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(merchant, "noisy", watched(merchant.noisy))
    monkeypatch.setattr(merchant, "train_round", watched(merchant.train_round))
    asked = HistogramTask("run", 60.0, DELTA, "user")
    replies = [shop.histogram(asked, public["prior.keys"])]
    replies += [shop.train(task(shop, round=number, noise_multiplier=60.0), trained, public) for number in (1, 2)]
    assert [reply.statement.status for reply in replies] == ["ok"] * 3
    assert [content.count(b"\n") for content, _ in seen if content] == [1, 2, 3]
    assert [json.loads(head)["lines"] for _, head in seen if head] == [1, 2, 3]
