"""Evaluations under names: the official one stands, whatever is tried beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidera.cli import main
from sidera.core import InputError
from sidera.data.tiny import tiny_log
from sidera.eval.evaluation import load_evaluation
from sidera.eval.naming import NAME, derived_name, evaluation_path, evaluations_of

RECIPE = """
[model]
name = "item_knn"
[eval]
ks = [5, 10]
bootstrap = 10
latency_rows = 0
"""


def sidera(*words: object) -> int:
    return main([str(word) for word in words])


def test_other_settings_never_overwrite_the_official_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run, recipe = tmp_path / "data", tmp_path / "run", tmp_path / "recipe.toml"
    tiny_log(60, 48).save(data)
    recipe.write_text(RECIPE)
    assert sidera("run", recipe, "--data", data, "--out", run) == 0
    official = (run / "evaluation" / "manifest.json").read_bytes()
    assert sidera("evaluate", run, "--data", data) == 0
    assert "evaluate: reused" in capsys.readouterr().out
    assert sidera("evaluate", run, "--data", data, "--set", "eval.max_rows=20") == 0
    assert "evaluation-max_rows-20" in capsys.readouterr().out
    for more in (["--set", "eval.max_rows=30"], ["--set", "eval.max_rows=25"]):
        assert sidera("evaluate", run, "--data", data, "--name", "short", *more) == 0
    assert "is made again" in capsys.readouterr().out
    assert sidera("evaluate", run, "--data", data, "--rows", "valid") == 0
    assert sidera("evaluate", run, "--data", data, "--rows", "valid", "--set", "eval.max_rows=20") == 0
    assert (run / "evaluation" / "manifest.json").read_bytes() == official
    names = ["", "max_rows-20", "short", "valid", "valid+max_rows-20"]
    assert evaluations_of(run) == names
    assert [load_evaluation(evaluation_path(run, name)).protocol["rows"] for name in names] == [60, 20, 25, 60, 20]
    assert sidera("evaluate", run, "--data", data, "--name", "valid") == 2
    assert sidera("evaluate", run, "--data", data, "--name", "../x") == 2
    assert sidera("compare", run, run, "--name", "short") == 0
    assert "25 rows" in capsys.readouterr().out
    assert sidera("compare", run, run, "--name", "nothing") == 2
    said = capsys.readouterr().err
    assert "holds no evaluation 'nothing'" in said
    assert "max_rows-20" in said
    assert "--name nothing" in said


def test_a_name_says_what_differs() -> None:
    own = {"eval": {"beam": 50, "ks": [5, 10], "seen": ["keep"]}, "data": {"split": "leave_one_out"}}
    assert derived_name(own, own) == ""
    other = {"eval": {**own["eval"], "beam": 20, "ks": [5]}, "data": own["data"]}
    assert derived_name(own, other) == "beam-20+ks-5"
    elsewhere = {**own, "data": {"split": "temporal"}}
    assert derived_name(own, elsewhere) == "data.split-temporal"
    long = {"eval": {"ks": list(range(1, 90))}}
    assert NAME.fullmatch(derived_name(own, long))


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "x" * 81, "a b", "a=b", "-x"])
def test_a_name_that_is_no_folder_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="allowed: 1 to 80"):
        evaluation_path("run", name)
