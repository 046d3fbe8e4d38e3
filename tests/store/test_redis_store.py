"""The store on a Redis server: gone and back, killed, not durable enough. What every store does holds elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from histories import stream
from redis_servers import RedisServer, needs_redis

from sidera.core import ArtifactError, InputError
from sidera.store.events import Events
from sidera.store.redis_store import RedisConfig, RedisStore
from sidera.store.user_events import HEAD

pytestmark = needs_redis


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    yield server
    server.kill()


def test_a_server_that_went_is_an_oserror_and_what_was_acknowledged_comes_back(server: RedisServer) -> None:
    with RedisStore(server.url) as store:
        numbers = store.numbers_of(["a", "b"])
        for second in range(30):
            store.append("ann", Events.of(numbers, [second, second]))
        server.kill()
        for call in (
            lambda: store.append("ann", Events.of(numbers, [99, 99])), lambda: store.history("ann"),
            lambda: store.numbers_of(["new"]), lambda: store.users(), lambda: store.num_users,
            lambda: store.erase("ann"), lambda: store.settled("x", "y"),
        ):  # fmt: skip
            with pytest.raises(OSError, match="Redis server of the store"):
                call()
        with pytest.raises(OSError, match="Redis server of the store"):
            RedisStore(server.url)
        server.start()
        assert store.history("ann").times.tolist() == sorted([*range(30)] * 2)  # type: ignore[union-attr]
        assert store.append("ann", Events.of(numbers, [29, 30]), new_only=True) == 1
        assert store.item_keys() == ["a", "b"]


def test_writers_of_two_processes_lose_nothing(server: RedisServer) -> None:
    with RedisStore(server.url) as one, RedisStore(server.url) as two:

        def work(name: int) -> None:
            store = (one, two)[name % 2]
            for second in range(25):
                numbers = store.numbers_of([f"k{name}", f"k{second}"])
                store.append("shared", Events.of(numbers, [1000 * name + second] * 2))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))  # raises what a thread raised
        for store in (one, two):
            assert len(store.history("shared")) == 200  # type: ignore[arg-type]
            keys = store.item_keys()
            assert len(set(keys)) == len(keys) == 25


def test_limits_hold_and_the_old_leave(server: RedisServer) -> None:
    config = RedisConfig(max_events=300, max_age=1000)
    with RedisStore(server.url, config, now=lambda: 10_000) as store:
        store.numbers_of([f"i{n}" for n in range(300)])
        for start in range(1, 8000, 1000):
            store.append("a", stream(99, start=start, seed=start))
        assert store.arrivals("a")[0] == 8 * 99 - 300
        assert store.server.hlen("sidera:user:a") <= 1 + 300 // 80 + 1
        store.append("b", stream(10, start=9900))
        store.append("mixed", stream(100, start=8000, seed=1))
        store.append("mixed", stream(100, start=9200, seed=2))
        assert store.compact() == ["a"]
        first, kept = store.arrivals("mixed")
        assert kept.times.min() >= 9000 or first == 100
        assert store.users() == ["b", "mixed"]


def test_what_is_missing_or_changed_is_refused(server: RedisServer) -> None:
    with RedisStore(server.url) as store:
        store.numbers_of([f"i{n}" for n in range(300)])
        for user, change in (
            ("head", lambda key: store.server.hdel(key, str(HEAD))), ("block", lambda key: store.server.hdel(key, "0")),
            ("all", store.server.delete), ("bit", lambda key: store.server.hset(key, "0", b"x" * 2000)),
        ):  # fmt: skip
            store.append(user, stream(100))
            change(f"sidera:user:{user}")
            with pytest.raises(ArtifactError, match=r"missing|damaged"):
                store.history(user)


@pytest.mark.parametrize(
    ("settings", "durability", "message"),
    [
        (("--appendfsync", "everysec"), "disk", "appendfsync everysec; allowed: appendonly yes and appendfsync always"),
        (("--appendonly", "no"), "kernel", "appendonly no"),
        (("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"), "disk", "lets keys go"),
    ],
)
def test_a_server_that_promises_less_is_refused(
    tmp_path: Path, settings: tuple[str, ...], durability: str, message: str
) -> None:
    server = RedisServer(tmp_path / "redis", *settings)
    try:
        with pytest.raises(InputError, match=message):
            RedisStore(server.url, RedisConfig(durability=durability))  # type: ignore[arg-type]
        RedisStore(server.url, RedisConfig(durability="memory")).close()
    finally:
        server.kill()


def test_a_full_server_takes_nothing_and_loses_nothing(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    try:
        with RedisStore(server.url) as store:
            numbers = store.numbers_of(["a"])
            store.append("ann", Events.of(numbers, [1]))
            store.server.config_set("maxmemory", 1)
            with pytest.raises(OSError, match="maxmemory"):
                store.append("ann", Events.of(numbers, [2]))
            assert len(store.history("ann")) == 1  # type: ignore[arg-type]
            store.server.config_set("maxmemory", 0)
            assert store.append("ann", Events.of(numbers, [2])) == 1
    finally:
        server.kill()
    with pytest.raises(InputError, match="store 'http://x'"):
        RedisStore("http://x")
