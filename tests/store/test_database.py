"""The database under the stores: who shares a commit, what a failed one leaves, what is noticed when it is opened."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidera.core import ArtifactError, InputError
from sidera.store import folder as module
from sidera.store.database import Database, Ledger
from sidera.store.folder import COMMITS, DATA, MANIFEST, Plan

PLAN = Plan("test-store", 2, "CREATE TABLE IF NOT EXISTS words (word TEXT NOT NULL);", older="fill a new one")


def opened(path: Path, **changes: object) -> Database:
    return Database(path, PLAN, **{"durability": "kernel", **changes})  # type: ignore[arg-type]


def say(database: Database, word: str) -> None:
    def work(connection: sqlite3.Connection, ledger: Ledger) -> None:
        connection.execute("INSERT INTO words VALUES (?)", (word,))
        ledger.add("words", 7)
        if word == "bad":
            raise InputError("a bad word")

    database.write(work)


def words(database: Database) -> list[str]:
    return [word for (word,) in database.rows("SELECT word FROM words ORDER BY rowid")]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = opened(tmp_path / "d")
    yield database
    database.close()


def test_calls_that_come_during_a_commit_share_the_next_and_fail_alone(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen writers cost two syncs. One of them is refused: its change is undone, the others' stay."""
    really, sizes, began, go_on = database._transaction, [], threading.Event(), threading.Event()

    def slow(calls: list) -> None:
        sizes.append(len(calls))
        began.set()
        go_on.wait(60)
        really(calls)

    monkeypatch.setattr(database, "_transaction", slow)
    failures: list[str] = []

    def work(word: str) -> None:
        try:
            say(database, word)
        except InputError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=work, args=("bad" if n == 5 else f"w{n}",)) for n in range(16)]
    threads[0].start()
    began.wait(60)
    for thread in threads[1:]:
        thread.start()
    while len(database._queue) < 15:
        pass
    go_on.set()
    for thread in threads:
        thread.join()
    assert sizes == [1, 15]
    assert failures == ["a bad word"]
    assert sorted(words(database)) == sorted(f"w{n}" for n in range(16) if n != 5)
    assert database.expected("words") == (15, 15 * 7)
    assert database.expected("commits")[0] == 2


def test_a_full_disk_changes_nothing_and_is_no_end(database: Database) -> None:
    say(database, "one")
    writer = database._connection()
    (pages,) = writer.execute("PRAGMA page_count").fetchone()
    writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OSError, match="full"):
        say(database, "x" * 100_000)
    assert (words(database), database.expected("words")) == (["one"], (1, 7))
    writer.execute("PRAGMA max_page_count = 1000000")
    say(database, "two")
    assert words(database) == ["one", "two"]


def test_an_error_inside_the_database_fails_every_call_of_the_commit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database._files, "note", lambda commit: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        say(database, "one")
    monkeypatch.undo()
    say(database, "two")
    assert "two" in words(database)


def test_readers_see_one_moment_and_do_not_wait(database: Database) -> None:
    say(database, "one")
    with database.reading() as connection:
        assert connection.execute("SELECT count(*) FROM words").fetchone() == (1,)
        say(database, "two")
        assert connection.execute("SELECT count(*) FROM words").fetchone() == (1,)
    assert words(database) == ["one", "two"]


def crashed(database: Database, to: Path) -> Path:
    """What a process finds that starts after this one was killed."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(database.folder, to)
    return to


def test_what_was_acknowledged_is_there_after_a_crash(database: Database, tmp_path: Path) -> None:
    for number in range(5):
        say(database, str(number))
        with_log = opened(crashed(database, tmp_path / "after"))
        assert words(with_log) == [str(n) for n in range(number + 1)]
        with_log.close()


@pytest.mark.parametrize("name", [DATA, COMMITS, MANIFEST, f"{DATA}-wal"])
def test_a_missing_file_is_noticed(database: Database, tmp_path: Path, name: str) -> None:
    for number in range(5):
        say(database, str(number))
    (crashed(database, tmp_path / "after") / name).unlink()
    with pytest.raises(ArtifactError, match=r"is missing|lacks 5 of 5 commits"):
        opened(tmp_path / "after")


@pytest.mark.parametrize("name", [DATA, COMMITS, MANIFEST, f"{DATA}-wal"])
def test_no_damage_gives_an_older_state(database: Database, tmp_path: Path, name: str) -> None:
    """A byte changed, or a tail cut off, anywhere: refused, or everything is there."""
    for number in range(40):
        say(database, str(number))
        if number == 20:
            database.empty_log()
    expected, refused = words(database), 0
    size = (database.folder / name).stat().st_size
    for place in sorted({*range(0, size, max(1, size // 60)), size - 1}):
        for damage in ("flip", "cut"):
            file = crashed(database, tmp_path / "after") / name
            content = bytearray(file.read_bytes())
            if damage == "cut":
                del content[place:]
            else:
                content[place] ^= 0x41
            file.write_bytes(content)
            try:
                after = opened(tmp_path / "after")
            except (ArtifactError, InputError):
                refused += 1
                continue
            try:
                assert words(after) == expected or after.expected("words")[0] != len(words(after))
            except ArtifactError:
                refused += 1
            after.close()
    assert refused > 10 or name in (COMMITS, MANIFEST)


def test_a_power_cut_is_counted_where_it_may_take_commits(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        say(database, str(number))
    after = crashed(database, tmp_path / "after")
    (after / f"{DATA}-wal").unlink()  # as if the kernel had not written it
    with pytest.raises(ArtifactError, match="lacks 3 of 3 commits"):
        opened(after)
    monkeypatch.setattr(module, "_boot", lambda: 5)
    with pytest.raises(ArtifactError, match="lacks 3 of 3 commits"):
        opened(after, durability="disk")
    again = opened(after)
    assert (again.lost_commits, words(again)) == (3, [])
    say(again, "on")
    again.close()
    again = opened(after, durability="disk")
    assert (again.lost_commits, words(again)) == (0, ["on"])
    again.close()


def test_another_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds notes\.txt and no store\.json.*fill a new one"):
        opened(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"format": 1}))  # what an older sidera wrote
    with pytest.raises(InputError, match=r"is of format 1 .*fill a new one"):
        opened(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"format": 2, "kind": "other"}))
    with pytest.raises(InputError, match=r"kind 'other'.*another store"):
        opened(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        opened(tmp_path)


def test_a_store_that_was_half_made_is_made(tmp_path: Path) -> None:
    """A crash between the files: whatever prefix of them is there, nothing was acknowledged yet."""
    whole = opened(tmp_path / "d")
    whole.close()
    for missing in ((MANIFEST,), (MANIFEST, COMMITS), (MANIFEST, COMMITS, DATA)):
        shutil.copytree(tmp_path / "d", tmp_path / missing[-1])
        for name in missing:
            (tmp_path / missing[-1] / name).unlink()
        database = opened(tmp_path / missing[-1])
        say(database, "one")
        database.close()
    (tmp_path / MANIFEST / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match=r"store\.json is missing"):
        opened(tmp_path / MANIFEST)


def test_what_is_settled_is_settled_for_every_process(tmp_path: Path) -> None:
    one, two = opened(tmp_path / "d"), opened(tmp_path / "d")
    assert one.settled("name", "a") == two.settled("name", "b") == two.settled("name") == "a"
    one.close()
    two.close()
