"""The behaviour store: what models read, the same answers after any crash, threads, and what is refused."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from histories import item_table, stream

from sidera import artifacts
from sidera.core import ArtifactError, InputError
from sidera.store.behaviour import BehaviourStore, Pathways, StoreConfig
from sidera.store.events import COLUMNS, Events, ItemTable, concatenate
from sidera.store.lifelong import LifelongConfig, LifelongHistory
from sidera.store.record_log import RecordLog, cut, read_records

SMALL = StoreConfig(
    num_shards=2,
    num_short=5,
    num_positive=8,
    positive_labels=0b10,
    sync=False,
    lifelong=LifelongConfig(max_events=300, max_representatives=30, leaf_size=20),
)


def opened(path: Path, **changes: object) -> BehaviourStore:
    return BehaviourStore(path, item_table(), StoreConfig(**{**vars(SMALL), **changes}))  # type: ignore[arg-type]


def alike(a: Pathways, b: Pathways) -> bool:
    return (a.num_events, a.num_evicted) == (b.num_events, b.num_evicted) and all(
        np.array_equal(getattr(mine, name), getattr(other, name))
        for mine, other in ((a.short, b.short), (a.positive, b.positive), (a.lifelong, b.lifelong))
        for name in vars(mine)
    )


def write_some(store: BehaviourStore, rounds: int = 30, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for number in range(rounds):
        user = f"u{rng.integers(4)}"
        store.append(user, stream(int(rng.integers(1, 40)), start=1_000_000 + 1000 * number, seed=number + seed))


def test_pathways_are_the_newest_events_the_newest_positives_and_the_tokens(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store:
        parts = [stream(50, start=1000 * (number + 1), seed=number) for number in range(5)]
        for part in parts:
            store.append("a", part)
        every, paths = concatenate(parts), store.read("a")
        history = LifelongHistory(item_table(), SMALL.lifelong)
        for part in parts:
            history.append(part)
        assert paths.short.item_ids.tolist() == every.item_ids[-5:].tolist()
        positive = every.take((every.labels & 0b10) > 0)
        for name in COLUMNS:
            assert np.array_equal(getattr(paths.positive, name), getattr(positive, name)[-8:])
        assert np.array_equal(paths.lifelong.item_ids, history.representatives().item_ids)
        assert (paths.num_events, paths.num_evicted) == (250, 0)
        store.append("a", stream(90, start=10_000, seed=7))
        assert (store.read("a").num_events, store.read("a").num_evicted) == (300, 40)


def test_a_moment_sees_only_what_was_before_it(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store:
        store.append("a", stream(120, start=1000))
        store.append("a", stream(120, start=50_000, seed=1))
        with opened(tmp_path / "early") as early:
            early.append("a", stream(120, start=1000))
            then, alone = store.read("a", as_of=50_000), early.read("a")
        for name in COLUMNS:
            assert np.array_equal(getattr(then.short, name), getattr(alone.short, name))
            assert np.array_equal(getattr(then.positive, name), getattr(alone.positive, name))
        assert then.num_events == then.lifelong.counts.sum() == 120
        assert then.lifelong.times.max() < 50_000
        first = int(stream(120, start=1000).times[0])
        for moment in (first, 0):
            assert store.read("a", as_of=moment).num_events == len(store.read("a", as_of=moment).lifelong) == 0


def test_an_unknown_user_has_empty_pathways(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store:
        paths = store.read("nobody")
        assert (len(paths.short), len(paths.positive), len(paths.lifelong), paths.num_events) == (0, 0, 0, 0)
        assert store.users() == []


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
        assert all(alike(again.read(user), kept.read(user)) for user in kept.users())
        write_some(again, 20, seed=99)
        write_some(kept, 20, seed=99)
        assert all(alike(again.read(user), kept.read(user)) for user in kept.users())
    kept.close()


def test_cut_anywhere_the_log_gives_back_what_was_whole(tmp_path: Path) -> None:
    """A crash can leave any prefix of the last record: every prefix of the file is opened."""
    with opened(tmp_path / "s", num_shards=1) as store:
        answers, ends = [store.read("a")], [0]
        (log,) = (tmp_path / "s" / "shard-0000").glob("log-*")
        for number in range(4):
            store.append("a", stream(2, start=1000 * (number + 1), seed=number))
            answers.append(store.read("a"))
            ends.append(log.stat().st_size)
    whole = log.read_bytes()
    for length in range(len(whole) + 1):
        log.write_bytes(whole[:length])
        with opened(tmp_path / "s", num_shards=1) as store:
            number = max(n for n, end in enumerate(ends) if end <= length)
            assert alike(store.read("a"), answers[number])
            assert store.torn_bytes == length - ends[number]
            assert log.stat().st_size == ends[number]  # cut off, so that the next record is not buried
    log.write_bytes(whole[: ends[2]] + bytes(100))  # blocks that were given out and never filled
    with opened(tmp_path / "s", num_shards=1) as store:
        assert store.torn_bytes == 100
        assert alike(store.read("a"), answers[2])


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
    answers = {user: store.read(user) for user in store.users()}
    shutil.copytree(tmp_path / "s", tmp_path / "after")  # what a process finds that starts now
    monkeypatch.undo()
    with opened(tmp_path / "after") as again:
        assert all(alike(again.read(user), paths) for user, paths in answers.items())
        write_some(again, 5, seed=80)
        write_some(store, 5, seed=80)
        again.snapshot()
        store.snapshot()
        assert all(alike(again.read(user), store.read(user)) for user in answers)
    store.close()


def test_a_disk_that_takes_nothing_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "s", num_shards=1) as store:
        store.append("a", stream(3))
        before = store.read("a")
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
        assert alike(store.read("a"), before)
        store.append("a", stream(4, start=3_000_000))
        after = store.read("a")
    with opened(tmp_path / "s", num_shards=1) as store:
        assert (store.torn_bytes, alike(store.read("a"), after)) == (0, True)


def test_threads_lose_no_event(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store:
        failures: list[BaseException] = []

        def work(name: int) -> None:
            try:
                for number in range(25):
                    store.append("shared", stream(2, start=1000 * number, seed=name))
                    store.append(f"own{name}", stream(3, start=1000 * number, seed=number))
                    paths = store.read("shared")
                    assert paths.lifelong.counts.sum() == paths.num_events
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
        assert store.read("shared").num_events == 200
        answers = {user: store.read(user) for user in store.users()}
        assert all(answers[f"own{name}"].num_events == 75 for name in range(4))
    with opened(tmp_path / "s") as store:
        assert all(alike(store.read(user), paths) for user, paths in answers.items())


def test_new_items_can_come(tmp_path: Path) -> None:
    old = item_table()
    longer = ItemTable.of(np.concatenate([old.vectors, np.ones((2, 8))]))
    with opened(tmp_path / "s") as store:
        store.append("a", stream(60))
        with pytest.raises(InputError, match=r"item 301.*allowed: items 0\.\.299"):
            store.append("a", Events.of([301], [9_000_000]))
        assert store.read("a").num_events == 60
        store.set_items(longer)
        store.append("a", Events.of([301], [9_000_000]))
        store.append("new", Events.of([300], [9_000_000]))
        store.snapshot()
        answer = store.read("a")
    with BehaviourStore(tmp_path / "s", longer, SMALL) as store:
        assert alike(store.read("a"), answer)
    with pytest.raises(InputError, match="of item 301"):
        opened(tmp_path / "s")
    other = ItemTable.of(np.concatenate([item_table(seed=5).vectors, np.ones((2, 8))]))
    with pytest.raises(ArtifactError, match="other vectors"):
        BehaviourStore(tmp_path / "s", other, SMALL)


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
        store.read("a")
    with pytest.raises(InputError, match="was made with config"):
        opened(tmp_path / "s", num_short=6)
    with pytest.raises(InputError, match="was made with width"):
        BehaviourStore(tmp_path / "s", item_table(width=4), SMALL)
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
