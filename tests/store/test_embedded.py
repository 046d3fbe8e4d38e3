"""The embedded store: the same histories after any crash, threads, what is refused, what is erased from the disk."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from histories import stream

from sidera import artifacts
from sidera.core import ArtifactError, InputError
from sidera.store.embedded import EmbeddedStore, StoreConfig
from sidera.store.events import COLUMNS, Events, concatenate
from sidera.store.item_keys import ItemKeys
from sidera.store.record_log import RecordLog, cut, read_records

SMALL = StoreConfig(num_shards=2, max_events=300, sync=False)
KEYS = [f"item {number}" for number in range(300)]


def opened(path: Path, **changes: object) -> EmbeddedStore:
    store = EmbeddedStore(path, StoreConfig(**{**vars(SMALL), **changes}))  # type: ignore[arg-type]
    store.numbers_of(KEYS)
    return store


def held(store: EmbeddedStore, user: str) -> tuple[int, bytes]:
    """All that the store says of a user: in order of arrival."""
    first, events = store.arrivals(user)
    return first, b"".join(getattr(events, name).tobytes() for name in COLUMNS)


def write_some(store: EmbeddedStore, rounds: int = 30, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for number in range(rounds):
        user = f"u{rng.integers(4)}"
        store.append(user, stream(int(rng.integers(1, 40)), start=1_000_000 + 1000 * number, seed=number + seed))


def test_the_oldest_leave_first_and_are_counted(tmp_path: Path) -> None:
    parts = [stream(size, start=1000 * number, seed=number) for number, size in enumerate((250, 90, 700, 5))]
    with opened(tmp_path / "s") as store:
        for number, part in enumerate(parts):
            store.append("a", part)
            every = concatenate(parts[: number + 1])
            first, kept = store.arrivals("a")
            assert first == max(0, len(every) - 300)
            assert np.array_equal(kept.times, every.times[-300:])
            assert len(store.arrivals("a", first + 290)[1]) == len(kept) - 290 if len(kept) > 290 else True
        store.snapshot()
        before = held(store, "a")
    with opened(tmp_path / "s") as store:
        assert held(store, "a") == before
        store.append("a", stream(20, start=9000))
        assert store.arrivals("a")[0] == 1045 + 20 - 300


@pytest.mark.parametrize("snapshots", [(), (30,), (10, 20)])
def test_reopened_it_answers_and_grows_as_before(tmp_path: Path, snapshots: tuple[int, ...]) -> None:
    store, kept = opened(tmp_path / "s"), opened(tmp_path / "kept")
    for number in range(1, 31):
        for one in (store, kept):
            write_some(one, 1, seed=number)
            if number in snapshots:
                one.snapshot()  # trees that are due are built anew
    store.close()
    with opened(tmp_path / "s") as again:
        assert again.users() == kept.users() == ["u0", "u1", "u2", "u3"]
        assert again.torn_bytes == 0
        assert all(held(again, user) == held(kept, user) for user in kept.users())
        write_some(again, 20, seed=99)
        write_some(kept, 20, seed=99)
        assert all(held(again, user) == held(kept, user) for user in kept.users())
    kept.close()


def test_cut_anywhere_the_log_gives_back_what_was_whole(tmp_path: Path) -> None:
    """A crash can leave any prefix of the last record: every prefix of the file is opened."""
    with opened(tmp_path / "s", num_shards=1) as store:
        answers, ends = [held(store, "a")], [0]
        (log,) = (tmp_path / "s" / "shard-0000").glob("log-*")
        for number in range(4):
            store.append("a", stream(2, start=1000 * (number + 1), seed=number))
            answers.append(held(store, "a"))
            ends.append(log.stat().st_size)
    whole = log.read_bytes()
    for length in range(len(whole) + 1):
        log.write_bytes(whole[:length])
        with opened(tmp_path / "s", num_shards=1) as store:
            number = max(n for n, end in enumerate(ends) if end <= length)
            assert held(store, "a") == answers[number]
            assert store.torn_bytes == length - ends[number]
            assert log.stat().st_size == ends[number]  # cut off, so that the next record is not buried
    log.write_bytes(whole[: ends[2]] + bytes(100))  # blocks that were given out and never filled
    with opened(tmp_path / "s", num_shards=1) as store:
        assert store.torn_bytes == 100
        assert held(store, "a") == answers[2]


def test_an_edited_log_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "s", num_shards=1) as store:
        for number in range(3):
            store.append("a", stream(2, start=1000 * (number + 1), seed=number))
    (log,) = (tmp_path / "s" / "shard-0000").glob("log-*")
    whole = log.read_bytes()
    for place in (0, 6, 14, 40, len(whole) // 3 + 3):  # magic, length, header checksum, payload; the second record
        log.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with pytest.raises(ArtifactError, match="damaged at byte"):
            opened(tmp_path / "s", num_shards=1)
    log.write_bytes(whole)
    opened(tmp_path / "s", num_shards=1).close()  # the lock of a store that could not be opened is given back


@pytest.mark.parametrize("crash", ["before the snapshot", "before old logs go"])
def test_a_crash_inside_a_snapshot_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: str) -> None:
    store = opened(tmp_path / "s")
    write_some(store)
    store.snapshot()
    write_some(store, seed=50)
    if crash == "before the snapshot":
        monkeypatch.setattr(artifacts, "save_tensors", lambda *a, **k: (_ for _ in ()).throw(OSError("no space")))
    else:
        monkeypatch.setattr(Path, "unlink", lambda *a, **k: (_ for _ in ()).throw(OSError("pulled")))
    with pytest.raises(OSError, match=r"no space|pulled"):
        store.snapshot()
    answers = {user: held(store, user) for user in store.users()}
    shutil.copytree(tmp_path / "s", tmp_path / "after")  # what a process finds that starts now
    monkeypatch.undo()
    with opened(tmp_path / "after") as again:
        assert all(held(again, user) == paths for user, paths in answers.items())
        write_some(again, 5, seed=80)
        write_some(store, 5, seed=80)
        again.snapshot()
        store.snapshot()
        assert all(held(again, user) == held(store, user) for user in answers)
    store.close()


def test_a_disk_that_takes_nothing_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "s", num_shards=1) as store:
        store.append("a", stream(3))
        before = held(store, "a")
        real, calls = os.write, []

        def half(handle: int, data: memoryview) -> int:
            if calls:
                raise OSError("no space left")
            calls.append(1)
            return real(handle, data[: len(data) // 2])

        monkeypatch.setattr(os, "write", half)
        with pytest.raises(OSError, match="no space"):
            store.append("a", stream(3, start=2_000_000))
        monkeypatch.undo()
        assert held(store, "a") == before
        store.append("a", stream(4, start=3_000_000))
        after = held(store, "a")
    with opened(tmp_path / "s", num_shards=1) as store:
        assert (store.torn_bytes, held(store, "a") == after) == (0, True)


def test_threads_lose_no_event(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store:
        failures: list[BaseException] = []

        def work(name: int) -> None:
            try:
                for number in range(25):
                    store.append("shared", stream(2, start=1000 * number, seed=name))
                    store.append(f"own{name}", stream(3, start=1000 * number, seed=number))
                    assert len(store.history(f"own{name}")) == 3 * number + 3  # type: ignore[arg-type]
                    if number % 10 == 9:
                        store.snapshot()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert len(store.arrivals("shared")[1]) == 200
        answers = {user: held(store, user) for user in store.users()}
        assert all(len(store.arrivals(f"own{name}")[1]) == 75 for name in range(4))
    with opened(tmp_path / "s") as store:
        assert all(held(store, user) == paths for user, paths in answers.items())


def test_keys_are_cut_where_a_crash_tore_them(tmp_path: Path) -> None:
    """Every prefix of the file of keys is opened: whole calls are there, and numbers go on behind them."""
    calls = (["a", "b"], ["c"], ["d", "e", "é"])
    keys, ends = ItemKeys(tmp_path / "k"), [0]
    for call in calls:
        keys.numbers_of(call)
        ends.append((tmp_path / "k").stat().st_size)
    keys.close()
    whole = (tmp_path / "k").read_bytes()
    for length in range(len(whole) + 1):
        (tmp_path / "k").write_bytes(whole[:length])
        keys = ItemKeys(tmp_path / "k")
        number = max(n for n, end in enumerate(ends) if end <= length)
        assert keys.from_number(0) == [key for call in calls[:number] for key in call]
        assert keys.torn_bytes == length - ends[number]
        assert keys.numbers_of(["z"]).tolist() == [len(keys) - 1]
        keys.close()
    (tmp_path / "k").write_bytes(whole + whole[: ends[1]])
    with pytest.raises(ArtifactError, match="holds a key twice"):
        ItemKeys(tmp_path / "k")


@pytest.mark.parametrize("snapshot", [False, True])
def test_events_without_their_keys_are_refused(tmp_path: Path, snapshot: bool) -> None:
    with EmbeddedStore(tmp_path / "s", SMALL) as store:
        store.append("a", Events.of(store.numbers_of(["one", "two"]), [1, 2]))
        if snapshot:
            store.snapshot()
    (tmp_path / "s" / "item-keys").unlink()
    with pytest.raises(ArtifactError, match="an event whose item has no key"):
        EmbeddedStore(tmp_path / "s", SMALL)


def test_an_erased_user_is_on_no_file(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store:
        for user in ("secret-ann", "bob"):
            store.append(user, stream(5))
            store.snapshot()
            store.append(user, stream(5, start=2_000_000))
        bob = held(store, "bob")
        assert store.erase("secret-ann")
        files = [file.read_bytes() for file in (tmp_path / "s").rglob("*") if file.is_file()]
        assert not any(b"secret-ann" in content for content in files)
        assert any(b"bob" in content for content in files)
    with opened(tmp_path / "s") as store:
        assert store.users() == ["bob"]
        assert held(store, "bob") == bob


def test_a_crash_inside_erasing_leaves_the_user_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path / "s")
    store.append("ann", stream(5))
    monkeypatch.setattr(artifacts, "save_tensors", lambda *a, **k: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        store.erase("ann")
    store.close()
    monkeypatch.undo()
    with opened(tmp_path / "s") as again:
        assert again.users() == []


def test_misuse_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="num_shards = 0"):
        StoreConfig(num_shards=0)
    store = opened(tmp_path / "s")
    with pytest.raises(InputError, match="is open already"):
        opened(tmp_path / "s")
    for user in ("", "x" * 70_000, 7):
        with pytest.raises(InputError, match="user key"):
            store.append(user, stream(1))  # type: ignore[arg-type]
    store.close()
    with pytest.raises(InputError, match="is closed"):
        held(store, "a")
    with pytest.raises(InputError, match="was made with num_shards = 2, not 3"):
        opened(tmp_path / "s", num_shards=3)
    with pytest.raises(InputError, match="was made with max_events = 300, not 200"):
        opened(tmp_path / "s", max_events=200)
    (tmp_path / "s" / "store.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        opened(tmp_path / "s")


def test_a_log_gives_back_its_records_in_order(tmp_path: Path) -> None:
    log = RecordLog(tmp_path / "log", sync=True)
    records = [(1, b"one"), (2, b""), (1, bytes(3000))]
    for kind, payload in records:
        log.append(kind, payload)
    log.close()
    with pytest.raises(OSError):
        log.append(1, b"late")
    assert read_records(tmp_path / "log") == (records, 0)
    with (tmp_path / "log").open("ab") as file:
        file.write(b"SDR1\x01")
    found, torn = read_records(tmp_path / "log")
    assert (found, torn) == (records, 5)
    cut(tmp_path / "log", torn)
    assert read_records(tmp_path / "log") == (records, 0)
