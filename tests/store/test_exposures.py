"""The exposure log: what was acknowledged is read back, versions are refused by name, nothing half written counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidera.core import ArtifactError, CatalogMismatch, InputError
from sidera.data.schema import build_dataset
from sidera.store.exposures import ExposureLog, as_dataset_events


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


def test_a_crash_while_writing_leaves_what_was_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log(tmp_path / "log")
    log.append(shown(0))

    def torn(table: pa.Table, where: Path, **_: Any) -> None:
        Path(where).write_bytes(b"PAR1 half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", torn)
    with pytest.raises(KeyboardInterrupt):
        log.append(shown(2))
    monkeypatch.undo()
    again = open_log(tmp_path / "log")
    assert again.read().num_rows == 4
    assert not list((tmp_path / "log").glob(".*.parquet"))
    again.append(shown(2))
    assert again.read().num_rows == 8


def test_a_killed_writers_part_is_not_read(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log")
    log.append(shown(0))
    (tmp_path / "log" / ".shown-1-abcd.parquet").write_bytes(b"PAR1")
    assert open_log(tmp_path / "log").read().num_rows == 4


def test_two_writers_keep_both_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = open_log(tmp_path / "log"), open_log(tmp_path / "log")
    monkeypatch.setattr(second, "_parts", lambda kind: [])  # it looked before the other one wrote
    first.append(shown(0))
    second.append(shown(2))
    assert open_log(tmp_path / "log").read().num_rows == 8


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log")
    log.append(shown(0))
    (part,) = (tmp_path / "log").glob("shown-*.parquet")
    part.write_bytes(part.read_bytes()[:40])
    with pytest.raises(ArtifactError, match=r"shown-00000000\.parquet is damaged"):
        log.read()


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
    open_log(tmp_path / "log")
    header = tmp_path / "log" / "exposures.json"
    header.write_text(header.read_text().replace('"format": 1', '"format": 7'))
    with pytest.raises(ArtifactError, match=r"format 7.*format 1"):
        open_log(tmp_path / "log")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no exposure log"):
        open_log(tmp_path / "other")


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
