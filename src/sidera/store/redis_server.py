"""A Redis server as a store needs it: connected without repeats, and as durable as its appends say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sidera.core import InputError

if TYPE_CHECKING:
    from redis import Redis

SECONDS = 5.0  # that an answer of the server may take
COUNT_BITS = 20  # of the number of a stream's entry, behind its milliseconds
# Item keys that are not known yet get the next numbers.
GIVE = """
local number = redis.call('LLEN', KEYS[1])
for _, key in ipairs(ARGV) do
  if redis.call('HSETNX', KEYS[2], key, number) == 1 then
    redis.call('RPUSH', KEYS[1], key)
    number = number + 1
  end
end
"""


def connected(url: str) -> Redis:
    """InputError without the package, or for no address."""
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError:
        raise InputError("a store on Redis needs the package redis", fix="pip install 'sidera[redis]'") from None
    try:  # no command is sent twice by itself: an append could be kept twice
        return redis.Redis.from_url(
            url, retry=Retry(NoBackoff(), 0), socket_timeout=SECONDS, socket_connect_timeout=SECONDS
        )
    except ValueError as error:
        raise InputError(f"store {url!r}: {error}", allowed="redis://HOST:PORT/NUMBER") from None


def check_durability(server: Redis, wanted: str) -> None:
    """InputError when the server is not as durable as is wanted: "disk", "kernel" or "memory"."""
    from redis.exceptions import ResponseError

    server.ping()
    if wanted == "memory":
        return
    try:
        settings: Any = server.config_get("append*") | server.config_get("maxmemory*")
    except ResponseError:
        raise InputError(
            "the Redis server does not say how durable it is", fix='allow CONFIG GET, or durability="memory"'
        ) from None
    if settings.get("appendonly") != "yes" or (wanted == "disk" and settings.get("appendfsync") != "always"):
        raise InputError(
            f"the Redis server has appendonly {settings.get('appendonly')}, appendfsync {settings.get('appendfsync')}",
            allowed="appendonly yes" + (" and appendfsync always" if wanted == "disk" else ""),
            fix="change the server's settings, or open the store with another durability",
        )
    if settings.get("maxmemory") != "0" and settings.get("maxmemory-policy") != "noeviction":
        raise InputError(
            f"the Redis server lets keys go (maxmemory-policy {settings.get('maxmemory-policy')})",
            allowed="noeviction", fix="CONFIG SET maxmemory-policy noeviction",
        )  # fmt: skip


def number_of_entry(entry: bytes) -> int:
    """The id of a stream's entry, "milliseconds-count", as one number; :func:`entry_of_number` goes back."""
    milliseconds, count = entry.split(b"-")
    return (int(milliseconds) << COUNT_BITS) + int(count)


def entry_of_number(number: int) -> str:
    return f"{number >> COUNT_BITS}-{number % 2**COUNT_BITS}"
