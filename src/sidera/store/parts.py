"""Tables that are appended part by part, durable when an append returns, each part with a checksum.

    parts = TableParts(Path("log"), parts_plan("exposure-log", 2, older="..."))
    parts.append("shown", table)
    tables = parts.tables("shown")                 # in the order of writing

A part is what was appended at once, as compressed Arrow in a row of a SQLite database (``database.py``). ``compact``
joins small ones. A part that is missing or damaged is refused when the files are opened or when it is read.

The files are opened for each call, or held open by :meth:`TableParts.hold` where many calls append.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sidera.core import ArtifactError
from sidera.store.database import Database, Ledger
from sidera.store.folder import Durability, Plan

FULL = 10_000  # rows of a part that is not joined with others
_SUMS = "SELECT number, checksum FROM parts WHERE kind = ? ORDER BY number"
_PARTS = (
    "SELECT number, kind, rows, checksum, content FROM parts WHERE kind = ? AND number >= ? ORDER BY number LIMIT ?"
)
_SPAN = "WHERE kind = ? AND number BETWEEN ? AND ?"
Part = tuple[int, str, int, int, bytes]  # number, kind, rows, checksum, content
Work = Callable[[sqlite3.Connection, Ledger], None]


def parts_plan(kind: str, format_: int, older: str) -> Plan:
    tables = """
    CREATE TABLE IF NOT EXISTS parts (
        number INTEGER PRIMARY KEY, kind TEXT NOT NULL, rows INTEGER NOT NULL, checksum INTEGER NOT NULL,
        content BLOB NOT NULL
    );
    """
    return Plan(kind, format_, tables, older, page_cache=1 << 10)  # written at its end, and read part by part


class TableParts:
    """Tables of several kinds in one folder. Any number of threads and processes."""

    def __init__(self, path: Path, plan: Plan, durability: Durability = "disk") -> None:
        self.path, self._plan, self._durability = path, plan, durability
        self._held: Database | None = None

    def hold(self) -> None:
        """Keep the files open until :meth:`close`."""
        self._held = self._held or self._database()

    def close(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None

    def settled(self, name: str, value: str | None = None) -> str | None:
        with self._opened() as database:
            return database.settled(name, value)

    def append(self, kind: str, table: pa.Table) -> None:
        """Durable when this returns; OSError, and nothing written, when the disk does not take it."""
        if table.num_rows:
            with self._opened() as database:
                database.write(_appending(kind, table))

    def tables(self, kind: str) -> list[pa.Table]:
        """All parts of one moment, in the order of writing; ArtifactError for a damaged one."""
        with self._opened() as database, database.reading() as connection:
            return [self._table(part) for part in connection.execute(_PARTS, (kind, 0, -1))]

    def compact(
        self, kinds: Sequence[str], together: Callable[[Sequence[pa.Table]], pa.Table], rest: float = 0.0
    ) -> None:
        """Join small parts of a kind that stand side by side. Others may append and read meanwhile; ``rest`` seconds
        between two parts leave them the interpreter."""
        with self._opened() as database:
            for kind in kinds:
                rows = database.rows("SELECT number, rows FROM parts WHERE kind = ? ORDER BY number", (kind,))
                for numbers in _runs(rows):
                    parts, tables = database.rows(_PARTS, (kind, numbers[0], len(numbers))), list[pa.Table]()
                    for part in parts:
                        tables.append(self._table(part))
                        if rest:
                            time.sleep(rest)
                    database.write(_replacing(parts, kind, together(tables)))

    def sizes(self, kind: str) -> list[tuple[int, int]]:
        """Number and bytes of every part of a kind, in the order of writing."""
        with self._opened() as database:
            statement = "SELECT number, length(content) FROM parts WHERE kind = ? ORDER BY number"
            return [(number, size) for number, size in database.rows(statement, (kind,))]

    def table(self, kind: str, number: int) -> pa.Table | None:
        """One part; None where it is gone."""
        with self._opened() as database:
            parts = database.rows(_PARTS, (kind, number, 1))
            return self._table(parts[0]) if parts and parts[0][0] == number else None

    def replace(self, kind: str, number: int, where: Callable[[pa.Table], pa.ChunkedArray]) -> None:
        """Take rows out of one part; a part without rows goes. Its room is used again."""
        with self._opened() as database:
            parts = database.rows(_PARTS, (kind, number, 1))
            if parts and parts[0][0] == number:
                table = self._table(parts[0])
                database.write(_replacing(parts, kind, table.filter(pc.invert(where(table)))))

    def remove(self, kinds: Sequence[str], where: Callable[[str, pa.Table], pa.ChunkedArray]) -> dict[str, int]:
        """Take rows out, of one kind after the other -> how many of each. They are in no file when this returns.

        ``where(kind, table)`` -> (rows,) true for those that go. Writers wait only while the parts that hold such rows
        are written again, and not while all parts are looked through.
        """
        with self._opened() as database:
            clean = {kind: set(self._clean(database, kind, where)) for kind in kinds}

            def work(connection: sqlite3.Connection, ledger: Ledger) -> dict[str, int]:
                removed = dict.fromkeys(kinds, 0)
                for kind in kinds:
                    for place in connection.execute(_SUMS, (kind,)).fetchall():
                        if place not in clean[kind]:  # it holds such rows, or it came meanwhile
                            (part,) = connection.execute(_PARTS, (kind, place[0], 1)).fetchall()
                            table = self._table(part)
                            kept = table.filter(pc.invert(where(kind, table)))
                            removed[kind] += table.num_rows - kept.num_rows
                            if kept.num_rows < table.num_rows:
                                _replacing([part], kind, kept)(connection, ledger)
                return removed

            removed = database.write(work)
            database.empty_log()
            return removed

    def _clean(
        self, database: Database, kind: str, where: Callable[[str, pa.Table], pa.ChunkedArray]
    ) -> Iterator[tuple[int, int]]:
        """Number and checksum of the parts without such rows."""
        for number, checksum in database.rows(_SUMS, (kind,)):
            parts = database.rows(_PARTS, (kind, number, 1))
            if parts and parts[0][0] == number and not pc.any(where(kind, self._table(parts[0]))).as_py():
                yield number, checksum

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Database]:
        if self._held is not None:
            yield self._held
            return
        with contextlib.closing(self._database()) as database:
            yield database

    def _database(self) -> Database:
        database = Database(self.path, self._plan, self._durability)
        try:
            with database.reading() as connection:
                number, total = connection.execute("SELECT count(*), coalesce(sum(checksum), 0) FROM parts").fetchone()
                row = connection.execute("SELECT number, checksum FROM ledger WHERE name = 'parts'").fetchone()
            database.check("parts", number, total, row)
        except BaseException:
            database.close()
            raise
        return database

    def _table(self, part: Sequence[Any]) -> pa.Table:
        number, kind, rows, checksum, content = part
        try:
            if checksum != _checksum(number, kind, rows, content):
                raise ValueError("its checksum is wrong")
            table = _unpacked(content)
            if table.num_rows != rows:
                raise ValueError(f"it holds {table.num_rows} rows, not {rows}")
        except (ValueError, OSError, TypeError, pa.ArrowException) as error:
            raise ArtifactError(f"part {number} of {self.path} is damaged ({error})", fix="restore a copy") from error
        return table


def _appending(kind: str, table: pa.Table) -> Work:
    content, rows = _packed(table), table.num_rows

    def work(connection: sqlite3.Connection, ledger: Ledger) -> None:
        (number,) = connection.execute("SELECT coalesce(max(number), -1) + 1 FROM parts").fetchone()
        _insert(connection, ledger, (number, kind, rows, _checksum(number, kind, rows, content), content))

    return work


def _replacing(parts: Sequence[Sequence[Any]], kind: str, table: pa.Table) -> Work:
    """One part with the rows of ``table`` (none: no part) instead of ``parts``, where these are there still."""
    content, rows, first = _packed(table), table.num_rows, parts[0][0]
    span, held = (kind, first, parts[-1][0]), [(number, checksum) for number, _, _, checksum, _ in parts]

    def work(connection: sqlite3.Connection, ledger: Ledger) -> None:
        if connection.execute(f"SELECT number, checksum FROM parts {_SPAN} ORDER BY number", span).fetchall() != held:
            return  # somebody else compacted or removed rows meanwhile
        connection.execute(f"DELETE FROM parts {_SPAN}", span)
        ledger.remove("parts", sum(checksum for _, checksum in held), len(held))
        if rows:
            _insert(connection, ledger, (first, kind, rows, _checksum(first, kind, rows, content), content))

    return work


def _insert(connection: sqlite3.Connection, ledger: Ledger, part: Part) -> None:
    connection.execute("INSERT INTO parts VALUES (?, ?, ?, ?, ?)", part)
    ledger.add("parts", part[3])


def _runs(parts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Numbers of parts that stand side by side and are joined: small ones, until they fill a part."""
    run, rows = list[int](), 0
    for number, size in [*parts, (0, FULL)]:
        if size < FULL:
            run, rows = [*run, number], rows + size
        if rows >= FULL or size >= FULL:
            if len(run) > 1:
                yield run
            run, rows = [], 0


def _packed(table: pa.Table) -> bytes:
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table.combine_chunks() if table.num_columns and table[0].num_chunks > 1 else table)
    plain = stream.getvalue()
    return len(plain).to_bytes(8, "little") + pa.compress(plain, codec="zstd", asbytes=True)


def _unpacked(content: bytes) -> pa.Table:
    plain = pa.decompress(content[8:], int.from_bytes(content[:8], "little"), codec="zstd")
    return pa.ipc.open_stream(plain).read_all()


def _checksum(number: int, kind: str, rows: int, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(f"{number} {kind} {rows}".encode()))
