"""Python's front door: frames of every kind in, a trained run, answers as a table, integers as ids."""

from __future__ import annotations

import datetime
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import sidera
from sidera.core import InputError, Request
from sidera.data.dataset import Dataset
from sidera.data.tiny import tiny_log
from sidera.engine.recommender import Recommender
from sidera.frame import Answers, to_table
from sidera.front import Run
from sidera.recipes import find_recipe

QUICK: dict[str, dict[str, Any]] = {
    "fit": {"max_steps": 20, "eval_every_steps": 0, "num_threads": 1},
    "model": {"width": 8, "num_layers": 1, "num_heads": 1, "max_history": 8},
    "eval": {"bootstrap": 10, "latency_rows": 2, "free_rows": 5, "samples": 1},
}


def log_columns(number_ids: bool = True) -> dict[str, list[Any]]:
    """The tiny log with whole numbers for ids, as many have them."""
    log = tiny_log(num_users=60, num_items=30)
    users, items = log.event_users.tolist(), log.item_ids.tolist()
    if not number_ids:
        users, items = [str(log.user_keys[user]) for user in users], [str(log.item_keys[item]) for item in items]
    return {
        "uid": users,
        "sku": items,
        "when": log.times.tolist(),
        "stars": [1 + place % 5 for place in range(len(users))],
    }


class Stream:
    """A frame of a library that speaks the Arrow stream protocol and nothing else."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


class Interchange:
    """A frame of a library that speaks the dataframe interchange protocol and nothing else."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __dataframe__(self, **options: Any) -> object:
        return self._table.__dataframe__(**options)


def from_columns(frame: Any, **options: Any) -> Dataset:
    return sidera.from_frame(frame, user="uid", item="sku", time="when", rating="stars", **options)


@pytest.mark.parametrize("kind", ["table", "batches", "stream", "interchange", "mapping", "arrays", "rows"])
def test_every_kind_of_frame_gives_the_same_data(kind: str) -> None:
    columns = log_columns()
    table = pa.table(columns)
    frames: dict[str, Any] = {
        "table": table,
        "batches": table.combine_chunks().to_batches()[0],
        "stream": Stream(table),
        "interchange": Interchange(table),
        "mapping": columns,
        "arrays": {name: np.array(values) for name, values in columns.items()},
        "rows": table.to_pylist(),
    }
    found = from_columns(frames[kind])
    assert found.digest == from_columns(table).digest
    assert (found.num_users, found.num_items) == (60, 30)
    assert set(found.item_keys) == {str(number) for number in range(30)}
    assert "rating" in found.feedback


def test_pandas_and_polars_frames() -> None:
    columns = log_columns()
    expected = from_columns(columns).digest
    for library in ("pandas", "polars"):
        frames = pytest.importorskip(library)
        assert from_columns(frames.DataFrame(columns)).digest == expected


def test_names_are_recognised_and_items_described() -> None:
    columns = log_columns()
    renamed = {"user_id": columns["uid"], "item_id": columns["sku"], "timestamp": columns["when"]}
    items = {"item_id": list(range(30)), "title": [f"cup no. {number}" for number in range(30)]}
    found = sidera.from_frame(renamed, items=items)
    assert found.items["title"][0].as_py().startswith("cup no.")
    assert found.num_events == len(columns["uid"])


def test_datetimes_are_times() -> None:
    columns = log_columns()
    moments = [datetime.datetime.fromtimestamp(when, datetime.UTC) for when in columns["when"]]
    found = sidera.from_frame({**columns, "when": moments}, user="uid", item="sku", time="when")
    assert np.array_equal(found.times, from_columns(columns).times)


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        ({"uid": [1], "sku": [2], "when": [3]}, {"user": "usr", "item": "sku", "time": "when"}, "no column 'usr'"),
        ({"uid": [1], "sku": [2]}, {"user": "uid", "item": "sku"}, "time"),
        ("events.csv", {}, "is a str.*sidera import"),
        (3, {}, "is a int; allowed: a frame of pandas, polars or pyarrow"),
        ({"user": [1, 2], "item": [2], "time": [3]}, {}, "cannot be read as a table"),
    ],
)
def test_what_is_wrong_with_a_frame_is_said_in_pythons_words(frame: Any, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        sidera.from_frame(frame, **options)
    assert "--" not in str(caught.value)
    assert "/tmp" not in str(caught.value)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("front") / "run"
    return sidera.fit(from_columns(log_columns()), "generator", out, quiet=True, **QUICK)


def test_fit_leaves_a_run_that_the_others_open(run: Run, tmp_path: Path) -> None:
    assert sidera.load(str(run.path)).kind == "generator"
    copy = run.save(tmp_path / "copy")
    history = [["3", "4"]]
    assert Recommender.load(copy).recommend(history, k=5)[0].item_ids == run.recommend(history, k=5)[0].item_ids
    with pytest.raises(InputError, match="is there already"):
        run.save(copy)


def test_whole_numbers_are_ids_and_nothing_else_is_taken_silently(run: Run) -> None:
    """A number looked up among texts is never found, and an unknown history is answered by popularity."""
    expected = run.recommender.recommend([["3", "4"]], k=5)
    for history in ([3, 4], np.array([3, 4]), (np.int32(3), "4")):
        assert run.recommender.recommend([history], k=5) == expected
        assert list(run.recommend([history], k=5)) == expected
    assert not expected[0].cold_start
    request = Request(history=(3, 4), k=5, exclude=(7,))  # type: ignore[arg-type]
    answer = run.recommender.recommend([request])[0]
    assert not answer.cold_start
    assert "7" not in answer.item_keys
    for wrong in ([3.0, 4.0], [None], [b"3"], [True], [[3]]):
        with pytest.raises(InputError, match=r"item .* of the history is a"):
            run.recommender.recommend([wrong], k=5)  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"the history 3 is a int.*fix: \[\[3\]\]"):
        run.recommender.recommend([3, 4], k=5)  # type: ignore[list-item]


def test_users_are_asked_for_by_their_keys(run: Run) -> None:
    answers = run.recommend([0, "1"], k=4)
    log = from_columns(log_columns())
    row = list(log.user_keys).index("0")
    history = [str(log.item_keys[item]) for item in log.item_ids[log.offsets[row] : log.offsets[row + 1]]]
    assert answers[0].item_ids == run.recommend([history], k=4)[0].item_ids
    assert answers.users == ["0", "1"]
    with pytest.raises(InputError, match="the data knows no user '999'"):
        run.recommend([999])
    with pytest.raises(InputError, match="mixed"):
        run.recommend([0, ["3"]])
    with pytest.raises(InputError, match="is one text"):
        run.recommend("0")
    assert "0" in run.users


def test_an_unknown_history_is_said(run: Run) -> None:
    with pytest.warns(
        UserWarning, match=r"1 of 2 histories hold no item that the model knows \(the first: 'nothing'\)"
    ):
        answers = run.recommend([["3"], ["nothing"]], k=3)
    assert [answer.cold_start for answer in answers] == [False, True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.recommend([["3", "nothing"]], k=3)
    with pytest.raises(InputError, match="holds no item 'nothing'"):
        run.recommend([["nothing"]], unknown="refuse")


def test_answers_become_a_table(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    table = run.to_frame([0, 1, 2], k=4)
    assert isinstance(table, pa.Table)
    assert table.column_names == ["query", "user", "rank", "item", "score", "title", "cold_start"]
    assert table["user"].to_pylist() == ["0"] * 4 + ["1"] * 4 + ["2"] * 4
    assert table["rank"].to_pylist() == [1, 2, 3, 4] * 3
    assert run.recommend([["3"]], k=2).to_table().column_names == [
        "query",
        "rank",
        "item",
        "score",
        "title",
        "cold_start",
    ]
    assert Answers([]).to_table().num_rows == 0


def test_evaluation_is_that_of_the_shell(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    result = run.evaluate()
    assert result.protocol["rows"] == 60
    assert (run.path / "evaluation").is_dir()
    assert run.evaluate("valid").protocol["which"] == "valid"
    assert capsys.readouterr().out == ""  # quiet


def test_recipes_and_their_keys_are_checked(tmp_path: Path) -> None:
    data = from_columns(log_columns())
    with pytest.raises(InputError, match="did you mean 'generator'"):
        sidera.fit(data, "generatr", tmp_path / "a")
    with pytest.raises(InputError, match=r"no argument or section 'fitt' \(did you mean 'fit'"):
        sidera.fit(data, "generator", tmp_path / "a", fitt={"lr": 1})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\[fit\] has no key 'epoch'"):
        sidera.fit(data, "generator", tmp_path / "a", fit={"epoch": 1})
    assert not (tmp_path / "a").exists()


def test_a_run_without_a_folder_lives_as_long_as_it_is_held() -> None:
    run = sidera.fit(from_columns(log_columns()), "item_knn", quiet=True)
    path = run.path
    assert not run.recommend([[3, 4]], k=3)[0].cold_start
    assert path.is_dir()
    del run
    import gc

    gc.collect()
    assert not path.exists()


def test_import_stays_cheap_and_the_room_can_be_called() -> None:
    code = "import sys, sidera; print('torch' in sys.modules); import sidera.fit.config; print(callable(sidera.fit))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "True"]
    assert find_recipe("generator").is_file()


def test_frames_are_told_from_files() -> None:
    with pytest.raises(InputError, match=r"is a (Posix|Windows)Path"):
        to_table(Path("events.csv"))
