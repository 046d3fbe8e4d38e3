"""The embedded store: the same histories after a start, in two processes, what is let go, what is erased."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from histories import stream

from sidera.core import ArtifactError, InputError
from sidera.store.embedded import PLACES, EmbeddedStore, StoreConfig
from sidera.store.events import COLUMNS, Events, concatenate
from sidera.store.user_events import HEAD

SMALL = StoreConfig(max_events=300, durability="kernel")
KEYS = [f"item {number}" for number in range(300)]


def opened(path: Path, now: float = 2e9, **changes: object) -> EmbeddedStore:
    store = EmbeddedStore(path, StoreConfig(**{**vars(SMALL), **changes}), now=lambda: now)  # type: ignore[arg-type]
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


def content_of(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file())


def test_the_oldest_leave_first_and_are_counted(tmp_path: Path) -> None:
    parts = [stream(size, start=1000 * number, seed=number) for number, size in enumerate((250, 90, 700, 5))]
    with opened(tmp_path / "s") as store:
        for number, part in enumerate(parts):
            store.append("a", part)
            every = concatenate(parts[: number + 1])
            first, kept = store.arrivals("a")
            assert first == max(0, len(every) - 300)
            assert np.array_equal(kept.times, every.times[-300:])
            ordered = every.take(slice(first, None)).in_time_order()
            assert np.array_equal(store.history("a").times, ordered.times)  # type: ignore[union-attr]
            if len(kept) > 290:
                assert len(store.arrivals("a", first + 290)[1]) == len(kept) - 290
        before = held(store, "a")
        places = [row[0] for row in store.database.rows(f"SELECT id % {PLACES} FROM records")]
        assert sorted(places) == [9, 10, 11, 12, HEAD]  # of 13 full blocks: the others are gone from the disk
    with opened(tmp_path / "s") as store:
        assert held(store, "a") == before
        store.append("a", stream(20, start=9000))
        assert store.arrivals("a")[0] == 1045 + 20 - 300
    with opened(tmp_path / "s", max_events=100) as store:  # another limit counts from the next append on
        assert store.append("a", stream(1, start=9500)) == 1
        assert store.arrivals("a")[0] == 1066 - 100


def test_old_events_leave_in_order_of_arrival(tmp_path: Path) -> None:
    """Also inside a block; a late one stays for as long as what came before it; a user without events goes."""
    now = 10_000
    with opened(tmp_path / "s", now, max_age=1000, max_events=5000) as store:
        times = np.concatenate([np.arange(8500, 8900), [9500, 8000], np.arange(9600, 9700)])
        for start in range(0, len(times), 50):
            chunk = stream(len(times[start : start + 50]))
            store.append("a", Events(**{**vars(chunk), "times": times[start : start + 50]}))
        store.append("old", stream(200, start=1))
        store.append("new", stream(5, start=9900))
        assert store.compact() == ["old"]
        first, kept = store.arrivals("a")
        assert (first, kept.times.tolist()) == (400, times[400:].tolist())
        assert (store.users(), store.num_users, store.history("old")) == (["a", "new"], 2, None)
        assert store.compact() == []
        assert store.append("a", stream(300, start=9700)) == 300
        assert store.arrivals("a", 402 + 100)[1].times.tolist() == stream(300, start=9700).times.tolist()


def test_reopened_it_answers_and_grows_as_before(tmp_path: Path) -> None:
    kept = opened(tmp_path / "kept")
    for number in range(1, 16):
        with opened(tmp_path / "s") as store:
            for one in (store, kept):
                write_some(one, 2, seed=number)
            if number == 7:
                store.compact()
            assert store.users() == kept.users()
            assert all(held(store, user) == held(kept, user) for user in kept.users())
    assert kept.users() == ["u0", "u1", "u2", "u3"]
    kept.close()


def test_two_who_opened_one_folder_read_and_write_the_same(tmp_path: Path) -> None:
    """As two processes do: nothing that one of them remembers may hide what the other one wrote."""
    with EmbeddedStore(tmp_path / "s", SMALL) as one, EmbeddedStore(tmp_path / "s", SMALL) as two:
        assert one.numbers_of(["a", "b"]).tolist() == [0, 1]
        assert two.numbers_of(["c", "b", "a"]).tolist() == [2, 1, 0]
        assert one.item_keys() == two.item_keys() == ["a", "b", "c"]
        for number in range(200):
            writer, reader = (one, two) if number % 2 else (two, one)
            writer.append("ann", Events.of(writer.numbers_of([f"k{number}"]), [number]))
            assert len(reader.history("ann")) == number + 1  # type: ignore[arg-type]
        assert one.append("ann", Events.of(one.numbers_of(["k7"]), [7]), new_only=True) == 0
        assert two.erase("ann")
        assert (one.history("ann"), one.users()) == (None, [])


def test_threads_lose_no_event(tmp_path: Path) -> None:
    with opened(tmp_path / "s", max_events=10_000) as store:

        def work(name: int) -> None:
            for number in range(25):
                store.append("shared", stream(2, start=1000 * number, seed=name))
                store.append(f"own{name}", stream(3, start=1000 * number, seed=number))
                assert len(store.history(f"own{name}")) == 3 * number + 3  # type: ignore[arg-type]
                if number % 10 == 9:
                    store.compact()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))  # raises what a thread raised
        assert len(store.arrivals("shared")[1]) == 200
        answers = {user: held(store, user) for user in store.users()}
        assert all(len(store.arrivals(f"own{name}")[1]) == 75 for name in range(4))
    with opened(tmp_path / "s") as store:
        assert all(held(store, user) == paths for user, paths in answers.items())


def test_keys_of_many_threads_get_one_number_each(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "s", SMALL) as one, EmbeddedStore(tmp_path / "s", SMALL) as two:
        found: list[dict[str, int]] = []

        def work(name: int) -> None:
            rng = np.random.default_rng(name)
            mine: dict[str, int] = {}
            for _ in range(30):
                keys = [f"k{number}" for number in rng.integers(0, 200, 5)]
                mine.update(zip(keys, (one, two)[name % 2].numbers_of(keys).tolist(), strict=True))
            found.append(mine)

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))  # raises what a thread raised
        keys = one.item_keys()
        assert len(set(keys)) == len(keys)
        assert all(keys[number] == key for mine in found for key, number in mine.items())
        assert two.item_keys() == keys
        assert one.item_keys(3, 2) == keys[3:5]


def test_an_erased_user_is_on_no_file(tmp_path: Path) -> None:
    """Neither as a key nor as an event: the events have seconds that nobody else's have."""
    mark = np.float32(1234.5678)
    with opened(tmp_path / "s", max_events=5000) as store:
        write_some(store, 60)
        for number in range(40):  # pages are split and filled again around the records
            events = stream(20, start=2_000_000 + 1000 * number, seed=number)
            store.append("secret-ann", Events(**{**vars(events), "watch_time": np.full(20, mark, np.float32)}))
            write_some(store, 2, seed=number)
        users = {user: held(store, user) for user in store.users() if user != "secret-ann"}
        assert mark.tobytes() in content_of(tmp_path / "s")
        assert store.erase("secret-ann")
        content = content_of(tmp_path / "s")
        assert (b"secret-ann" in content, mark.tobytes() in content, b"u1" in content) == (False, False, True)
        write_some(store, 5, seed=7)
    with opened(tmp_path / "s") as store:
        assert store.users() == sorted(users)


def test_a_copy_of_a_store_that_is_being_written_opens(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store:
        write_some(store)
        stop = threading.Event()

        def work() -> None:
            number = 0
            while not stop.is_set():
                store.append("busy", stream(1, start=number))
                number += 1

        thread = threading.Thread(target=work)
        thread.start()
        store.copy_to(tmp_path / "copy")
        stop.set()
        thread.join()
        with pytest.raises(InputError, match="not empty"):
            store.copy_to(tmp_path / "copy")
        users = {user: held(store, user) for user in ("u0", "u1", "u2", "u3")}
    with opened(tmp_path / "copy") as copy:
        assert all(held(copy, user) == paths for user, paths in users.items())
        assert copy.verify()["users"] in (4, 5)
        write_some(copy, 3, seed=9)


def test_a_changed_or_missing_record_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store:
        for user in ("a", "b"):
            store.append(user, stream(200))
    for statement in (
        "UPDATE records SET record = zeroblob(5) WHERE id = 0", "DELETE FROM records WHERE id = 1",
        f"DELETE FROM records WHERE id = {HEAD}", f"UPDATE records SET record = zeroblob(60) WHERE id = {HEAD}",
        f"UPDATE records SET record = (SELECT record FROM records WHERE id = {PLACES}) WHERE id = 0",
        "DELETE FROM records", "UPDATE records SET record = 7", "UPDATE records SET record = 'text'",
    ):  # fmt: skip
        shutil.rmtree(tmp_path / "t", ignore_errors=True)
        shutil.copytree(tmp_path / "s", tmp_path / "t")
        with opened(tmp_path / "t") as store:
            store.database._connection().execute(statement)
            with pytest.raises(ArtifactError, match=r"of user 'a' is (damaged|missing)"):
                store.history("a")
            with pytest.raises(ArtifactError, match=r"of user 'a' is (damaged|missing)"):
                store.verify()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM users WHERE key = x'61'", "of 2 users 1 are there"),
        ("UPDATE users SET key = x'62' WHERE key = x'61'", "of 2 users 2 are there, or others"),
        ("UPDATE items SET key = 5 WHERE number = 3", "of 300 items 300 are there, or others"),
        ("DELETE FROM items WHERE number = 299", "of 300 items 299 are there"),
        ("UPDATE items SET key = x'61' WHERE number = 3", "of 300 items 300 are there, or others"),
    ],
)
def test_a_user_or_a_key_that_went_is_noticed_at_the_start(tmp_path: Path, statement: str, message: str) -> None:
    with opened(tmp_path / "s") as store:
        store.append("a", stream(2))
        store.append("c", stream(2))
        store.database._connection().execute(statement)
    with pytest.raises(ArtifactError, match=message):
        opened(tmp_path / "s")


def test_misuse_is_named(tmp_path: Path) -> None:
    for changes in ({"max_events": 0}, {"max_age": 0}, {"max_age": 1.5}, {"durability": "none"}):
        with pytest.raises(InputError, match=next(iter(changes))):
            StoreConfig(**changes)  # type: ignore[arg-type]
    store = opened(tmp_path / "s")
    for user in ("", "x" * 70_000, 7):
        with pytest.raises(InputError, match="user key"):
            store.append(user, stream(1))  # type: ignore[arg-type]
    store.close()
    store.close()
    with pytest.raises(InputError, match="is closed"):
        held(store, "a")
    with pytest.raises(InputError, match="is closed"):
        store.append("a", stream(1))
