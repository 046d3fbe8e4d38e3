"""The exposure log: what was acknowledged is read back, versions are refused by name, nothing half written counts."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from sidera.core import ArtifactError, CatalogMismatch, InputError
from sidera.data.schema import build_dataset
from sidera.store.exposures import ExposureLog, as_dataset_events
from sidera.store.folder import COMMITS, DATA, MANIFEST


def shown(first: int = 0, policy: str = "sft", items_version: int = 1, **changes: Any) -> dict[str, list[Any]]:
    """Two requests of two slots."""
    return {
        "request": [f"r{first}", f"r{first}", f"r{first + 1}", f"r{first + 1}"],
        "slot": [0, 1, 0, 1],
        "user": ["ann", "ann", "bob", "bob"],
        "item": ["i1", "i2", "i3", "i1"],
        "time": [first * 100 + place for place in range(4)],
        "policy": [policy] * 4,
        "items_version": [items_version] * 4,
        "propensity": [0.1, 0.2, None, 0.4],
        "log_prob_0": [-1.0, -2.0, -3.0, None],
        "log_prob_1": [-0.5, -0.5, -0.5, None],
        **changes,
    }


def open_log(path: Path, codebook_id: str = "abc", num_levels: int = 2) -> ExposureLog:
    return ExposureLog.open(path, codebook_id=codebook_id, num_levels=num_levels)


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log")
    assert log.append(shown(0)) == 4
    assert open_log(tmp_path / "log").append(shown(2, policy="ecpo-300")) == 4
    table = open_log(tmp_path / "log").read()
    assert table["request"].to_pylist() == ["r0", "r0", "r1", "r1", "r2", "r2", "r3", "r3"]
    assert table["propensity"].to_pylist()[2:4] == [None, pytest.approx(0.4)]
    assert table["log_prob_0"].to_pylist()[:4] == [-1.0, -2.0, -3.0, None]
    assert table["policy"].to_pylist()[3:5] == ["sft", "ecpo-300"]


def test_outcomes_join_their_exposure_and_the_last_one_counts(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log")
    log.append(shown(0))
    log.follow({"request": ["r0", "r1"], "slot": [1, 0], "click": [False, True], "watch_time": [1.0, 9.0]})
    log.follow({"request": ["r0"], "slot": [1], "click": [True], "watch_time": [3.0]})
    table = log.read()
    assert table["click"].to_pylist() == [None, True, True, None]
    assert table["watch_time"].to_pylist() == [None, 3.0, 9.0, None]


def test_other_versions_are_refused_naming_both(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log")
    log.append(shown(0))
    log.append(shown(2, policy="ecpo-300", items_version=2))
    with pytest.raises(InputError, match=r"policy 'ecpo-300' .* asked for 'sft'"):
        log.read(policies=["sft"])
    with pytest.raises(InputError, match=r"items_version 1 .* asked for 2"):
        log.read(items_version=2)
    with pytest.raises(CatalogMismatch, match="codebook abc, asked for xyz"):
        log.read(codebook_id="xyz")
    with pytest.raises(CatalogMismatch, match="codebook_id abc, this catalogue has xyz"):
        open_log(tmp_path / "log", codebook_id="xyz")
    assert log.only(["sft"]).num_rows == 4
    assert log.only(["sft", "ecpo-300"], items_version=2)["policy"].to_pylist() == ["ecpo-300"] * 4


def test_what_was_appended_is_there_after_a_crash(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log").hold()
    for number in range(5):
        log.append(shown(2 * number))
        shutil.copytree(tmp_path / "log", tmp_path / f"after-{number}")  # what a process finds that starts now
        assert open_log(tmp_path / f"after-{number}").read().num_rows == 4 * (number + 1)
    log.close()


def test_two_writers_keep_both_parts(tmp_path: Path) -> None:
    first, second = open_log(tmp_path / "log").hold(), open_log(tmp_path / "log").hold()
    for number in range(10):
        (first, second)[number % 2].append(shown(2 * number))
    assert open_log(tmp_path / "log").read()["time"].to_pylist()[::4] == list(range(0, 2000, 200))
    first.close()
    second.close()


def change(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path / DATA)
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE parts SET content = zeroblob(length(content)) WHERE number = 1",
        "UPDATE parts SET content = substr(content, 1, 40) WHERE number = 1",
        "UPDATE parts SET rows = 3 WHERE number = 1", "UPDATE parts SET kind = 'followed' WHERE number = 1",
        "UPDATE parts SET number = 7 WHERE number = 1", "UPDATE parts SET checksum = 0 WHERE number = 1",
        "DELETE FROM parts WHERE number = 1", "DELETE FROM parts", "UPDATE parts SET checksum = 1.5",
    ],
)  # fmt: skip
def test_a_damaged_or_missing_part_is_never_no_word(tmp_path: Path, statement: str) -> None:
    log = open_log(tmp_path / "log")
    log.append(shown(0))
    log.append(shown(2))
    log.follow({"request": ["r0"], "slot": [0], "click": [True]})
    change(tmp_path / "log", statement)
    with pytest.raises(ArtifactError, match=r"part \d+ of .* is damaged|of 3 parts"):
        open_log(tmp_path / "log").read()


def test_a_log_without_its_files_is_refused(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log").hold()
    log.append(shown(0))
    for name in (DATA, f"{DATA}-wal", COMMITS, MANIFEST):
        shutil.rmtree(tmp_path / "after", ignore_errors=True)
        shutil.copytree(tmp_path / "log", tmp_path / "after")
        (tmp_path / "after" / name).unlink()
        with pytest.raises(ArtifactError, match=r"is missing|lacks \d"):
            open_log(tmp_path / "after")
    log.close()


def test_compacted_it_reads_the_same_and_is_small(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log").hold()
    for number in range(300):
        log.append(shown(2 * number))
        if number % 3 == 0:
            log.follow({"request": [f"r{2 * number}"], "slot": [1], "click": [number % 2 == 0]})
    before, size = log.read(), stored(tmp_path / "log")
    log.compact()
    assert log.read().equals(before)
    connection = sqlite3.connect(tmp_path / "log" / DATA)
    kinds = connection.execute("SELECT kind, rows FROM parts ORDER BY number").fetchall()
    connection.close()
    assert kinds == [("shown", 1200), ("followed", 100)]
    assert stored(tmp_path / "log") < size / 5
    log.append(shown(600))
    log.compact()
    assert log.read().num_rows == 1204
    log.close()


def stored(path: Path) -> int:
    connection = sqlite3.connect(path / DATA)
    ((size,),) = connection.execute("SELECT sum(length(content)) FROM parts").fetchall()
    connection.close()
    return int(size)


@pytest.mark.parametrize("compacted", [False, True])
def test_an_erased_user_is_on_no_file(tmp_path: Path, compacted: bool) -> None:
    log = open_log(tmp_path / "log").hold()
    for number in range(30):
        log.append(shown(2 * number))
        outcomes = {"request": [f"r{2 * number}", f"r{2 * number + 1}"], "slot": [0, 0], "watch_time": [7.5, 2.0]}
        log.follow(outcomes)
    if compacted:
        log.compact()
    assert log.erase("nobody") == 0
    assert log.erase("ann") == 60
    table = log.read()
    assert set(table["user"].to_pylist()) == {"bob"}
    assert table["watch_time"].to_pylist() == [2.0, None] * 30
    followed = log._all("followed")
    assert set(followed["request"].to_pylist()) == {f"r{n}" for n in range(1, 60, 2)}
    log.append(shown(60))
    assert log.erase("bob") == 62
    assert log.read()["user"].to_pylist() == ["ann", "ann"]
    log.close()
    assert ExposureLog.at(tmp_path / "log").erase("ann") == 2
    assert open_log(tmp_path / "log").read().num_rows == 0


def test_what_came_during_an_erasure_is_erased_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log(tmp_path / "log").hold()
    log.append(shown(0))
    parts, really = log._parts, log._parts._clean

    def late(*arguments: Any) -> Any:
        found = list(really(*arguments))
        if arguments[1] == "followed":  # everything was looked through; then an answer leaves, and a click comes
            log.append(shown(2))
            log.follow({"request": ["r2", "r3"], "slot": [0, 0], "click": [True, True]})
        return found

    monkeypatch.setattr(parts, "_clean", late)
    assert log.erase("ann") == 4
    assert set(log.read()["user"].to_pylist()) == {"bob"}
    assert log._all("followed")["request"].to_pylist() == ["r3"]
    log.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"propensity": [0.0, 0.1, 0.1, 0.1]}, "propensity 0.0"),
        ({"propensity": [1.5, 0.1, 0.1, 0.1]}, "propensity 1.5"),
        ({"log_prob_0": [0.5, -1.0, -1.0, -1.0]}, "log_prob_0 holds"),
        ({"user": ["ann", None, "bob", "bob"]}, "lack 'user' in 1 rows"),
        ({"score": [1.0] * 4}, "the column 'score'"),
    ],
)
def test_refusals(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    log = open_log(tmp_path / "log")
    with pytest.raises(InputError, match=message):
        log.append(shown(0, **changes))
    assert log.read().num_rows == 0


def test_a_log_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "exposures.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match=r"holds exposures\.json and no store\.json.*how an older log's Parquet parts"):
        open_log(tmp_path / "old")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds notes\.txt"):
        open_log(tmp_path / "other")
    for missing in ("none", "empty"):
        with pytest.raises(InputError, match="no exposure log at"):
            ExposureLog.open(tmp_path / missing, codebook_id="abc", num_levels=2, must_exist=True)
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="no exposure log at"):
            ExposureLog.at(tmp_path / missing)
    assert not (tmp_path / "none").exists()


def test_its_exposures_are_a_data_set(tmp_path: Path) -> None:
    """What the aligned policy showed teaches the next P-Score, per-token probabilities included."""
    log = open_log(tmp_path / "log")
    log.append(shown(0, log_prob_0=[-1.0, -2.0, -3.0, -4.0], log_prob_1=[-0.5] * 4, propensity=[0.5] * 4))
    with pytest.raises(InputError, match="nothing followed"):
        as_dataset_events(log.read())
    log.follow({"request": ["r0", "r0", "r1"], "slot": [0, 1, 0], "click": [True, False, True]})
    dataset = build_dataset("own", as_dataset_events(log.read()))
    assert dataset.num_events == 3  # the fourth exposure's outcome is not known
    assert dataset.feedback["click"].tolist() == [True, False, True]
    assert dataset.feedback["log_prob_0"].tolist() == [-1.0, -2.0, -3.0]
    assert dataset.feedback["request"].tolist() == [0, 0, 1]


def test_the_oldest_exposures_are_let_go_by_age_and_by_bytes(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log")
    for day in range(6):
        log.append(shown(2 * day, time=[100 * day] * 4))
        log.follow({"request": [f"r{2 * day}"], "slot": [0], "click": [day % 2 == 0]})
    whole = log.read()
    assert log.retain() == log.retain(since=0) == log.retain(most_bytes=10**9) == 0
    log.compact()  # one part with rows of all days
    assert log.retain(since=200) == 8
    assert log.read().equals(whole.slice(8))
    assert sum(map(len, log._parts.tables("followed"))) == 4  # what followed on the others is in no file
    assert log.retain(since=200) == 0
    for day in range(6, 40):
        log.append(shown(2 * day, time=[100 * day] * 4))
    size = sum(size for kind in ("shown", "followed") for _, size in log._parts.sizes(kind))
    assert log.retain(most_bytes=size // 2) > 0
    table = log.read()
    left = sum(size for kind in ("shown", "followed") for _, size in log._parts.sizes(kind))
    assert 0 < left <= size // 2
    assert table["time"].to_pylist() == sorted(table["time"].to_pylist())
    assert max(table["time"].to_pylist()) == 3900
    log.retain(since=10**6)
    assert log.read().num_rows == 0
