"""Who may do what: keys with scopes, and how often. The file holds the keys' hashes, never the keys.

    sidera api-keys add shop --keys keys.json --scopes read,write      # prints the key, once
    curl -H "Authorization: Bearer sidera_..." ...                     # or X-API-Key

``read`` asks for recommendations. ``write`` sends events, and may ask for what shows a stored user's history: answers
with or without seen items, unknown items by name, and what is popular in any span of time. ``admin`` may also ask as
of an earlier moment, for a history and why (which show its times), and change what is served. A scope does not include
another. A key is 32 random bytes, so a plain SHA-256 of it can be kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sidera.artifacts import write_text
from sidera.core import ArtifactError, InputError
from sidera.serve.errors import Refused

SCOPES = ("read", "write", "admin")
PREFIX = "sidera_"
RECHECK = 1.0  # seconds between two looks at the file: a key that was removed stops working then
BURST = 2.0  # seconds of a key's rate that may come at once


@dataclass(frozen=True)
class Key:
    """One entry of the file."""

    name: str
    scopes: tuple[str, ...]
    hash: str  # hexadecimal SHA-256 of the key
    expires: int = 0  # unix seconds; 0: never
    rate: float = 0.0  # requests a second; 0: as many as it likes


ANYONE = Key("anyone", SCOPES, "")  # where no keys are asked for
NOBODY = Key("", (), "")  # where they are, on a path that needs none


class KeyFile:
    """The keys of a server, read again when the file changes."""

    def __init__(self, path: str | Path, now: Callable[[], float] = time.time) -> None:
        """ArtifactError when the file is damaged; a file that is not there yet holds no key."""
        self.path, self.now = Path(path), now
        self._stamp: tuple[int, int] | None = None
        self._looked, self._buckets = 0.0, dict[str, tuple[float, float]]()
        self._keys = self._read()

    def check(self, presented: str, scope: str | None) -> Key:
        """The key that was presented; Refused when it is unknown, expired, without the scope, or used too often."""
        now = self.now()
        if not 0 <= now - self._looked < RECHECK:
            self._looked = now
            if _stamp(self.path) != self._stamp:
                with contextlib.suppress(ArtifactError):  # damaged while it runs: those of before hold
                    self._keys = self._read()
        if not presented:
            raise Refused(401, "the request has no key; fix: send it as Authorization: Bearer KEY, or X-API-Key: KEY")
        key = self._keys.get(hash_of(presented))
        if key is None:
            raise Refused(401, "the key is not known; fix: ask whoever runs this server for one")
        if key.expires and now >= key.expires:
            raise Refused(401, f"the key {key.name!r} has expired")
        if scope is not None and scope not in key.scopes:
            has = ", ".join(key.scopes)
            raise Refused(403, f"the key {key.name!r} has no scope {scope!r}; it has: {has}")
        if key.rate:
            self._spend(key, now)
        return key

    def _spend(self, key: Key, now: float) -> None:
        left, then = self._buckets.get(key.hash, (max(1.0, BURST * key.rate), now))
        left = min(max(1.0, BURST * key.rate), left + key.rate * max(0.0, now - then))
        if left < 1:
            self._buckets[key.hash] = left, now
            raise Refused(429, f"the key {key.name!r} may be used {key.rate:g} times a second", (1 - left) / key.rate)
        self._buckets[key.hash] = left - 1, now

    def _read(self) -> dict[str, Key]:
        self._stamp = _stamp(self.path)
        return {key.hash: key for key in read_keys(self.path).values()}


def presented_key(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """What stands in ``Authorization: Bearer ...`` or ``X-API-Key``; "" for nothing."""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip().decode("latin-1")
        if name == b"x-api-key":
            return value.strip().decode("latin-1")
    return ""


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def add_key(path: str | Path, name: str, scopes: Iterable[str], days: float = 0, rate: float = 0) -> str:
    """A new key; -> the key itself, which is kept nowhere."""
    keys, path = read_keys(path), Path(path)
    chosen = tuple(scope for scope in SCOPES if scope in set(scopes))
    others = sorted(set(scopes) - set(SCOPES))
    if others or not chosen:
        raise InputError(f"scope {others[0] if others else ''!r}", allowed=", ".join(SCOPES))
    if not name or not name.isprintable() or len(name) > 64:
        raise InputError(f"the name {name[:64]!r}", allowed="1 to 64 printable characters")
    if name in keys:
        raise InputError(f"{path} holds a key {name!r} already", fix="remove it first, or choose another name")
    if days < 0 or rate < 0:
        raise InputError("days or rate below 0", allowed="0 (no limit) or more")
    key = PREFIX + secrets.token_urlsafe(32)
    expires = int(time.time() + 86_400 * days) if days else 0
    _write(path, keys | {name: Key(name, chosen, hash_of(key), expires, rate)})
    return key


def remove_key(path: str | Path, name: str) -> None:
    keys = read_keys(path)
    if name not in keys:
        raise InputError(f"{path} holds no key {name!r}", allowed=", ".join(keys) or "none is there")
    del keys[name]
    _write(Path(path), keys)


def read_keys(path: str | Path) -> dict[str, Key]:
    """Every key of a file by its name; none where there is no file. ArtifactError when it is damaged."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    try:
        return {key.name: key for key in map(_key, json.loads(text)["keys"])}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ArtifactError(f"{path} is no file of keys, or damaged", fix="restore it, or make keys again") from None


def _key(entry: Mapping[str, Any]) -> Key:
    key = Key(
        str(entry["name"]), tuple(entry["scopes"]), str(entry["hash"]), int(entry["expires"]), float(entry["rate"])
    )
    if len(key.hash) != 64 or not set(key.scopes) <= set(SCOPES):
        raise ValueError
    return key


def _write(path: Path, keys: Mapping[str, Key]) -> None:
    write_text(path, json.dumps({"keys": [asdict(key) for key in keys.values()]}, indent=1) + "\n")
    os.chmod(path, 0o600)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
