"""A folder with one SQLite database that many threads and processes append to, durable when a call returns.

    database = Database(Path("store"), Plan("behaviour-store", 4, TABLES), durability="disk")
    database.write(lambda connection, ledger: ...)         # -> what it returned, once it is durable
    database.rows("SELECT ...", (key,))                    # never waits for a writer

SQLite (its documentation: wal.html, atomiccommit.html) keeps the pages, the log and the locks. Here are the things that
it does not do:

* **Group commit.** Calls that come while another one is being synced wait in a queue and share the next sync. A call
  that fails is undone alone (a savepoint), the others go on.
* **Nothing is lost in silence.** SQLite ends its log at the first frame whose checksum is wrong, and opens without a
  log that somebody took away. Both would give back an older state as if it was the newest. So the folder knows the
  last commit (``folder.py``), and an older database is refused. The *ledger*, a table, holds number and checksum sum of
  the rows that must exist; opening compares.
* **Nothing erased stays.** Deleted bytes are overwritten (``secure_delete``), and the log is emptied after an erasure.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from sidera.core import ArtifactError, InputError
from sidera.disk import sync, wait_for_lock
from sidera.store.folder import DATA, LOCK, Durability, Plan, StoreFolder

LOG_PAGES = 4000  # of 4,096 bytes: a longer log is moved into the database
PATIENCE = 60.0  # seconds that another process may hold the database
MOST_TOGETHER = 1024  # calls in one commit
SUM = 2**62 - 1  # checksum sums are kept below
_DAMAGE = {11, 26}  # SQLITE_CORRUPT, SQLITE_NOTADB
_COUNT = (
    "INSERT INTO ledger VALUES (?1, ?2, ?3 & ?4) ON CONFLICT (name) DO UPDATE"
    " SET number = number + ?2, checksum = (checksum + ?3) & ?4 RETURNING number"
)
T = TypeVar("T")
Row = tuple[Any, ...]
_LEDGER = """
CREATE TABLE IF NOT EXISTS ledger (name TEXT PRIMARY KEY, number INTEGER NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS settled (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass
class Ledger:
    """What the calls of one commit change about the rows that must exist."""

    changes: dict[str, list[int]] = field(default_factory=dict)

    def add(self, name: str, checksum: int, number: int = 1) -> None:
        """``number`` rows came (negative: went) whose checksums sum to ``checksum``."""
        change = self.changes.setdefault(name, [0, 0])
        change[0] += number
        change[1] += checksum

    def remove(self, name: str, checksum: int, number: int = 1) -> None:
        self.add(name, -checksum, -number)


Work = Callable[[sqlite3.Connection, Ledger], T]


class _Call:
    """A call that waits for its commit."""

    def __init__(self, work: Work[Any]) -> None:
        self.work, self.done = work, False
        self.result: Any = None
        self.error: BaseException | None = None


class Database:
    """Open it with a folder; :meth:`close` it. Any number of threads, any number of processes."""

    def __init__(self, folder: Path, plan: Plan, durability: Durability = "disk") -> None:
        """ArtifactError when a file is missing, damaged or older than it was; InputError for another kind of folder."""
        self.folder, self.durability = folder, durability
        self.lost_commits = 0  # that a power cut took; only where durability is "kernel"
        self._queue: deque[_Call] = deque()
        self._turn = threading.Lock()  # of who commits
        self._idle: list[sqlite3.Connection] = []
        self._writer: sqlite3.Connection | None = None
        self._files = StoreFolder(folder, plan)
        self._lock_file: IO[Any] = (folder / LOCK).open("a", encoding="utf-8")
        try:
            with self._alone():
                self._open()
        except BaseException:
            self.close()
            raise

    # -- reading ---------------------------------------------------------------------------------------------------

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Row]:
        """All rows of one statement, of one moment."""
        connection = self._reader()
        try:
            return connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._named(error) from error
        finally:
            self._idle.append(connection)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection whose statements all see one moment."""
        connection = self._reader()
        try:
            connection.execute("BEGIN")
            yield connection
        except sqlite3.Error as error:
            raise self._named(error) from error
        finally:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            self._idle.append(connection)

    def expected(self, name: str) -> tuple[int, int]:
        """Number and checksum sum of the rows that must exist under a name of the ledger."""
        rows = self.rows("SELECT number, checksum FROM ledger WHERE name = ?", (name,))
        if not all(isinstance(value, int) for row in rows for value in row):
            raise ArtifactError(f"{self.folder / DATA} is damaged: no ledger of its {name}", fix="restore a copy")
        return (rows[0][0], rows[0][1]) if rows else (0, 0)

    def check(self, name: str, number: int, checksum: int, expected: tuple[int, int] | None = None) -> None:
        """ArtifactError when other rows are there than must be; ``expected``: as the ledger said at the same moment."""
        expected = expected or (0, 0)
        if not isinstance(checksum, int) or (number, checksum & SUM) != tuple(expected):
            raise ArtifactError(
                f"{self.folder / DATA} is damaged: of {expected[0]} {name} {number} are there, or others",
                fix="restore it from a copy",
            )

    # -- writing ---------------------------------------------------------------------------------------------------

    def write(self, work: Work[T]) -> T:
        """Do ``work`` inside a transaction -> what it returned, durable.

        What ``work`` raises undoes it and is raised. OSError when the disk takes nothing: then nothing has changed.
        """
        call = _Call(work)
        self._queue.append(call)
        with self._turn:
            if not call.done:
                self._connection()  # InputError where it is closed
                self._commit()
        if call.error is not None:
            raise call.error
        return call.result

    def settled(self, name: str, value: str | None = None) -> str | None:
        """The value that was given first under this name, in whichever process; None where none was."""
        rows = self.rows("SELECT value FROM settled WHERE name = ?", (name,))
        if rows or value is None:
            return rows[0][0] if rows else None

        def settle(connection: sqlite3.Connection, ledger: Ledger) -> str:
            if connection.execute("INSERT OR IGNORE INTO settled VALUES (?, ?)", (name, value)).rowcount == 1:
                ledger.add("settled", _checksum(name, value))
            return str(connection.execute("SELECT value FROM settled WHERE name = ?", (name,)).fetchone()[0])

        return self.write(settle)

    def empty_log(self) -> None:
        """Move the log into the database, so that no file holds what is not in it any more. OSError while a reader
        of another process holds an older state."""
        with self._turn, self._alone():
            self._checkpoint()

    def shrink(self) -> None:
        """Write the database without the room of deleted rows; writers wait."""
        with self._turn, self._alone():
            try:
                self._connection().execute("VACUUM")
            except sqlite3.Error as error:
                raise self._named(error) from error
            self._checkpoint()

    def copy_to(self, folder: Path) -> None:
        """A copy of this moment that opens like the original; readers and writers go on meanwhile."""
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{str(folder)!r} is not empty", fix="give another folder for the copy")
        connection = self._reader()
        try:
            connection.execute("VACUUM INTO ?", (str(folder / DATA),))
        except sqlite3.Error as error:
            raise self._named(error) from error
        finally:
            self._idle.append(connection)
        sync(folder / DATA)
        copy = StoreFolder(folder, self._files.plan)
        copy.make(0)

    @property
    def num_bytes(self) -> int:
        """On the disk."""
        return sum(file.stat().st_size for file in self.folder.glob(f"{DATA}*"))

    def close(self) -> None:
        with self._turn:
            for connection in [*self._idle, *([self._writer] if self._writer else [])]:
                with contextlib.suppress(sqlite3.Error):  # the last one empties the log; on a full disk it stays
                    connection.close()
            self._idle, self._writer = [], None
            self._files.close()
            self._lock_file.close()

    # -- commits ---------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """Everything that waits, in one transaction."""
        calls: list[_Call] = []
        while self._queue and len(calls) < MOST_TOGETHER:
            calls.append(self._queue.popleft())
        try:
            with self._alone():
                self._transaction(calls)
        except BaseException as error:
            named = self._named(error) if isinstance(error, sqlite3.Error) else error
            for call in calls:
                call.error = call.error or named
        for call in calls:
            call.done = True

    def _transaction(self, calls: Sequence[_Call]) -> None:
        connection = self._connection()
        try:
            connection.execute("BEGIN IMMEDIATE")
            ledger = Ledger()
            for call in calls:
                self._try(connection, ledger, call)
            if all(call.error is not None for call in calls):
                connection.execute("ROLLBACK")
                return
            ledger.add("commits", 0)
            for name, (number, checksum) in ledger.changes.items():
                (total,) = connection.execute(_COUNT, (name, number, checksum, SUM)).fetchone()
                if name == "commits":
                    commit = total
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            raise
        self._files.note(commit)

    def _try(self, connection: sqlite3.Connection, ledger: Ledger, call: _Call) -> None:
        """One call; alone undone when it fails."""
        own = Ledger()
        connection.execute("SAVEPOINT call")
        try:
            call.result = call.work(connection, own)
        except sqlite3.Error:
            raise
        except Exception as error:
            call.error = error
            connection.execute("ROLLBACK TO call")
        else:
            for name, (number, checksum) in own.changes.items():
                ledger.add(name, checksum, number)
        connection.execute("RELEASE call")

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """Other processes wait."""
        return wait_for_lock(self._lock_file)

    def _checkpoint(self) -> None:
        try:
            busy, *_ = self._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            raise self._named(error) from error
        if busy:
            raise OSError(f"{self.folder / DATA} is being read in an older state; its log stays until the next time")

    # -- opening ---------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._files.check_files()
        try:
            self._writer = self._connected()
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._writer.executescript(_LEDGER + self._files.plan.tables)
        except sqlite3.Error as error:
            raise self._named(error) from error
        with self.reading() as connection:
            rows = connection.execute("SELECT name, value FROM settled").fetchall()
            expected = connection.execute("SELECT number, checksum FROM ledger WHERE name = 'settled'").fetchone()
            (whole,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if whole != "ok":
            raise ArtifactError(f"{self.folder / DATA} is damaged: {whole}", fix="restore it from a copy")
        self.check("settled", len(rows), sum(_checksum(*row) for row in rows), expected)
        self.lost_commits = self._files.open(self.expected("commits")[0], self.durability)

    def _connected(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.folder / DATA, timeout=PATIENCE, isolation_level=None, check_same_thread=False
        )
        connection.execute(f"PRAGMA synchronous = {'FULL' if self.durability == 'disk' else 'NORMAL'}")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute(f"PRAGMA cache_size = -{self._files.plan.page_cache}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
        return connection

    def _connection(self) -> sqlite3.Connection:
        if self._writer is None:
            raise InputError(f"store {str(self.folder)!r} is closed", fix="open it again")
        return self._writer

    def _reader(self) -> sqlite3.Connection:
        self._connection()
        try:
            return self._idle.pop()
        except IndexError:
            pass
        try:
            return self._connected()
        except sqlite3.Error as error:
            raise self._named(error) from error

    def _named(self, error: sqlite3.Error) -> Exception:
        """ArtifactError for a damaged file, OSError for a disk or a lock that does not do what it should."""
        code = getattr(error, "sqlite_errorcode", None)
        if code is None and not isinstance(error, sqlite3.OperationalError):  # misuse of the module, not of the file
            return error
        if code is None or code & 0xFF in _DAMAGE:  # without a code: a text that is none
            return ArtifactError(f"{self.folder / DATA} is damaged ({error})", fix="restore it from a copy")
        return OSError(f"{self.folder / DATA}: {error}")


def _checksum(name: object, value: object) -> int:
    return zlib.crc32(f"{name}\0{value}".encode(errors="replace"))
