"""Changes of items as messages in one file beside the versions of a run: ``runs/shop/items.sqlite``.

Why a log and no new catalogue: a message costs its own bytes where a catalogue costs those of all items, and every
version of the run (also one with other codes) takes in the same messages. SQLite because a transaction is all of a
message or nothing of it, survives a crash, and is the one lock of all processes that serve the run.

A message has the publisher's number (``version``). The same number again with the same content changes nothing; with
other content, or behind a later number, it is a conflict. A change of the model that answers is a record, too, so that
``items_version`` only ever rises.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidera.config import digest
from sidera.core import ArtifactError, InputError

NAME = "items.sqlite"
ITEMS, MODEL = "items", "model"  # kinds of records
PATIENCE = 30.0  # seconds that a writer waits for another process


class Conflict(InputError):
    """A message contradicts one that was applied."""


@dataclass(frozen=True)
class Record:
    """One line of the log."""

    number: int  # its place, from 1
    kind: str
    version: int  # of a message: the publisher's number; of a model: the version of the run
    items_version: int  # of the catalogue behind it
    body: Mapping[str, Any]
    content: str  # digest of what the publisher sent
    second: int = 0


class ItemsLog:
    """Any number of threads and processes. ``path`` None: in memory, for a recommender that has no run folder."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(
                ":memory:" if path is None else str(path), timeout=PATIENCE, isolation_level=None,
                check_same_thread=False,
            )  # fmt: skip
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS records (number INTEGER PRIMARY KEY, kind TEXT NOT NULL,"
                " version INTEGER NOT NULL, items_version INTEGER NOT NULL, body TEXT NOT NULL,"
                " content TEXT NOT NULL, second INTEGER NOT NULL)"
            )
            self._db.execute("CREATE UNIQUE INDEX IF NOT EXISTS versions ON records (version) WHERE kind = 'items'")
        except sqlite3.OperationalError as error:
            raise OSError(f"{path}: {error}") from None
        except sqlite3.DatabaseError:
            raise ArtifactError(f"{path} is damaged", fix="restore it from a backup") from None

    @classmethod
    def of_run(cls, run: Path | None, must_exist: bool = False) -> ItemsLog:
        """The log of a run folder; ``must_exist``: an empty one in memory where the run has none."""
        path = None if run is None else run / NAME
        return cls(None if path is not None and must_exist and not path.exists() else path)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Nobody else writes meanwhile; an error leaves the log as it was."""
        with self._lock:
            self._execute("BEGIN IMMEDIATE")
            try:
                yield
                self._execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    def after(self, number: int) -> list[Record]:
        """The records behind a place, oldest first."""
        query = "SELECT number, kind, version, items_version, body, content, second FROM records WHERE number > ?"
        with self._lock:
            rows = self._execute(f"{query} ORDER BY number", number)
        return [
            Record(n, kind, v, i, json.loads(body), content, second) for n, kind, v, i, body, content, second in rows
        ]

    def append(self, kind: str, version: int, items_version: int, body: Mapping[str, Any], content: str) -> int:
        """Inside :meth:`writing`; -> the record's place."""
        number = self.last() + 1
        values = (number, kind, version, items_version, json.dumps(body), content, int(time.time()))
        self._execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)", *values)
        return number

    def last(self) -> int:
        return int(self._one("SELECT COALESCE(MAX(number), 0) FROM records"))

    def items_version(self) -> int:
        """Of the newest record; 0 without any."""
        return int(self._one("SELECT COALESCE(MAX(items_version), 0) FROM records"))

    def model(self) -> int:
        """The version of the run that answered last."""
        found = self._one("SELECT version FROM records WHERE kind = 'model' ORDER BY number DESC LIMIT 1")
        return 0 if found is None else int(found)

    def last_message(self) -> int:
        """The publisher's number of the newest message; 0 without any."""
        return int(self._one("SELECT COALESCE(MAX(version), 0) FROM records WHERE kind = 'items'"))

    def is_known(self, version: int, body: Mapping[str, Any]) -> bool:
        """True for a message that was applied already. Conflict where it says other things, or comes too late."""
        found = self._one("SELECT content FROM records WHERE kind = 'items' AND version = ?", version)
        if found == digest(body):
            return True
        if found is not None:
            raise Conflict(f"message {version} was applied with other content", fix="give a new change a new version")
        if version <= (last := self.last_message()):
            raise Conflict(f"message {version} comes behind message {last}", allowed=f"a version above {last}")
        return False

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _one(self, query: str, *values: Any) -> Any:
        with self._lock:
            row = next(iter(self._execute(query, *values)), None)
        return None if row is None else row[0]

    def _execute(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:  # a full disk, a lock that another process keeps
            raise OSError(f"{self.path}: {error}") from None
        except sqlite3.DatabaseError as error:
            raise ArtifactError(f"{self.path} is damaged: {error}", fix="restore it from a backup") from None
