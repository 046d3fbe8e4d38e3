"""The shell as a user meets it: every verb's help, the whole way, and one line for everything that is wrong."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from sidera.catalog.vectors_file import save_vectors
from sidera.cli import build_parser, main
from sidera.data.dataset import Dataset
from sidera.data.tiny import tiny_log
from sidera.engine.histories import open_behaviour
from sidera.engine.recommender import Recommender
from sidera.models import MODELS
from sidera.store.exposures import ExposureLog
from sidera.train.notes import rows_bar

VERBS = tuple(build_parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr,arg-type]
RECIPE = """
[catalog]
vectors = ["behaviour"]
vector_dim = 8

[catalog.quantizer]
num_levels = 1
codebook_size = 4
[model]
name = "sidera"
max_history = 8
width = 8
num_layers = 1
num_heads = 1
[fit]
epochs = 2
batch_size = 16
warmup_steps = 2
[eval]
bootstrap = 10
latency_rows = 2
free_rows = 5
samples = 1
"""


def sidera(*arguments: object) -> int:
    """The exit code, also where argparse ends the process."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a verb that must fail: exit code 2 and one line on stderr, which is returned."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert sidera(*arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith(f"sidera {arguments[0]}")
        assert "Traceback" not in lines[0]
        return lines[0]

    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log as CSV, its items as JSON Lines, a recipe, and what the verbs made of them."""
    folder = tmp_path_factory.mktemp("cli")
    dataset = tiny_log(num_users=60, num_items=30)
    rows = zip(dataset.event_users, dataset.item_ids, dataset.times, strict=True)
    lines = [f"{dataset.user_keys[user]},{dataset.item_keys[item]},{when}" for user, item, when in rows]
    (folder / "events.csv").write_text("\n".join(["user_id,asin,when", *lines]) + "\n")
    (folder / "items.jsonl").write_text("\n".join(json.dumps(row) for row in dataset.items.to_pylist()) + "\n")
    (folder / "recipe.toml").write_text(RECIPE)
    columns = ("--item", "asin", "--time", "when")
    data = folder / "data"
    assert sidera("import", folder / "events.csv", "--items", folder / "items.jsonl", "--out", data, *columns) == 0
    assert sidera("run", folder / "recipe.toml", "--data", data, "--out", folder / "run") == 0
    return folder


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    shutil.copytree(place / "run", tmp_path / "run")
    return tmp_path / "run"


def import_csv(folder: Path, rows: Sequence[str], header: str = "user,item,time") -> Path:
    (folder / "log.csv").write_text("\n".join([header, *rows]) + ("\n" if rows else ""))
    return folder / "log.csv"


# -- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sidera(verb, "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: sidera {verb}")
    for action in build_parser()._subparsers._group_actions[0].choices[verb]._actions:  # type: ignore[union-attr]
        assert action.help, f"{verb} {action.dest} says nothing"


def test_help_names_units_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    texts = {}
    for verb in VERBS:
        sidera(verb, "--help")
        texts[verb] = " ".join(capsys.readouterr().out.split())
    assert "budget of the whole training, minutes" in texts["run"]
    assert "TCP port (default: 8000)" in texts["serve"]
    assert "address to listen on (default: 127.0.0.1)" in texts["serve"]
    assert "items wanted (default: 10)" in texts["recommend"]
    assert "cpu or cuda (default: cpu)" in texts["train"]
    assert "unit of the time column" in texts["import"]
    assert "folder to write (default: runs/demo)" in texts["demo"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert sidera("--version") == 0
    line = r"sidera \d+\.\d+\.\d+( \([0-9a-f]{7,40}\+?\))?, Python 3\.\d+\.\S+, torch \d+\.\d+\S*\n"
    assert re.fullmatch(line, capsys.readouterr().out)


def test_version_imports_no_torch_unless_asked_for_more() -> None:
    code = (
        "import sys, sidera.cli\ntry: sidera.cli.main(sys.argv[1:])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    for flags, expected in ((["--version"], "False"), (["--version", "-v"], "True")):
        found = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, check=True)
        assert found.stdout.splitlines()[-1] == expected
    assert re.search(r"^pyarrow \d+", found.stdout, re.MULTILINE)
    assert re.search(r"^processor \S+, CUDA \S+", found.stdout, re.MULTILINE)


# -- the whole way -----------------------------------------------------------------------------------------------------


def test_run_leaves_everything(place: Path) -> None:
    assert {path.name for path in (place / "run").iterdir()} == {
        "recipe.json",
        "catalog",
        "fit",
        "model",
        "evaluation",
        "baselines",
        "report.html",
    }
    assert (
        "<svg" in (place / "run" / "report.html").read_text()
        or "data:image" in (place / "run" / "report.html").read_text()
    )


def test_recommend_prints_titles(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sidera("recommend", place / "run", "--history", "item0001,item0003", "-k", 4) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(re.fullmatch(r"item\d{4}\t-\d+\.\d{4}\t.*no\. \d+", line) for line in lines)


def test_recommend_says_what_it_left_out(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        sidera(
            "recommend",
            place / "run",
            "--history",
            "item0001, nothing",
            "--unknown",
            "report",
            "-k",
            99,
            "--no-filter-seen",
        )
        == 0
    )
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 30
    assert "not in the catalogue, left out: nothing" in err
    assert "only 30 items can be answered (k = 99)" in err
    assert sidera("recommend", place / "run", "--history", "nothing", "--unknown", "report", "-k", 2) == 0
    assert "nothing of the history is known: the most popular items follow" in capsys.readouterr().err


def test_a_user_is_answered_from_a_data_folder_or_a_store(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sidera.data.dataset import Dataset
    from sidera.engine.histories import behaviour_of, open_store
    from sidera.engine.recommender import Recommender

    def answer(*words: object) -> tuple[str, str]:
        assert sidera("recommend", place / "run", *words, "-k", 5) == 0
        out, err = capsys.readouterr()
        return out, err

    data = Dataset.load(place / "data")
    events = slice(int(data.offsets[3]), int(data.offsets[4]))
    user, items = str(data.user_keys[3]), data.item_keys[data.item_ids[events]].tolist()
    wanted, _ = answer("--history", ",".join(items))
    assert answer("--user", user, "--data", place / "data") == (wanted, "")
    behaviour = behaviour_of(open_store(tmp_path / "store"), Recommender.load(place / "run").catalog)
    behaviour.keep(user, items, data.times[events].tolist(), {})
    behaviour.close()
    assert answer("--user", user, "--store", tmp_path / "store") == (wanted, "")
    for log in (("--data", place / "data"), ("--store", tmp_path / "store")):
        popular, warned = answer("--user", "nobody", *log)
        assert "knows no user 'nobody'" in warned
        assert "the most popular items follow" in warned
        assert len(popular.splitlines()) == 5


def test_the_current_version_with_the_items_of_now_answers(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sidera.engine import versions
    from sidera.engine.living import Delta, change_run

    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    versions.make_current(run, versions.add_run(run, trained_run), "a test")
    (run / "model").rename(run / "model-of-0")  # whoever opens version 0 fails
    words = ("recommend", run, "--history", "item0001,item0003", "-k", 1)
    assert sidera(*words) == 0
    best = capsys.readouterr().out.split("\t")[0]
    change_run(run, Delta(removed=(best,)))
    assert sidera(*words) == 0
    assert capsys.readouterr().out.split("\t")[0] != best


def test_filter_seen(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sidera("recommend", place / "run", "--history", "item0001,item0003", "-k", 30, "--filter-seen") == 0
    assert not {"item0001", "item0003"} & {line.split("\t")[0] for line in capsys.readouterr().out.splitlines()}


def modified(run: Path) -> dict[str, int]:
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_the_second_run_reuses_every_stage(place: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = modified(run)
    assert sidera("run", place / "recipe.toml", "--data", place / "data", "--out", run) == 0
    out = capsys.readouterr().out
    assert [line.split(":")[0] for line in out.splitlines() if "reused" in line] == ["catalog", "train", "evaluate"]
    after = modified(run)
    assert {name for name in before if after[name] != before[name]} == {"recipe.json", "report.html"}


@pytest.mark.parametrize(
    ("change", "reused"),
    [
        ("eval.seen=['keep']", ["catalog", "train"]),
        ("fit.lr=0.002", ["catalog"]),
        ("model.dropout=0.1", ["catalog"]),
        ("fit.num_threads=1", ["catalog", "train", "evaluate"]),
        ("catalog.seed=1", []),
        ("data.split=temporal", []),
    ],
)
def test_a_change_runs_what_hangs_on_it(
    place: Path, run: Path, change: str, reused: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sidera("run", place / "recipe.toml", "--data", place / "data", "--out", run, "--set", change) == 0
    out = capsys.readouterr().out
    assert [line.split(":")[0] for line in out.splitlines() if "reused" in line] == reused


def test_a_model_is_not_asked_what_it_may_have_learned(
    place: Path, run: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """The last events of its training are test events of other splits and of shorter logs."""
    line = refused("evaluate", run, "--data", place / "data", "--set", "data.split=temporal")
    assert "was trained on other data or another split than data (temporal): it may know the answers; fix: " in line
    rows = (place / "events.csv").read_text().splitlines()[:-1]
    (tmp_path / "events.csv").write_text("\n".join(rows) + "\n")
    flags = ("--item", "asin", "--time", "when", "--items", place / "items.jsonl")
    assert sidera("import", tmp_path / "events.csv", "--out", tmp_path / "data", *flags) == 0
    assert "other data or another split" in refused("evaluate", run, "--data", tmp_path / "data")


def test_another_validation_window_trains_anew(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same training events, but what was tested now chooses the weights: the old choice must not be reused."""
    flags = ("--data", place / "data", "--out", tmp_path / "run", "--set", "data.split=temporal")
    for shares in ((0.1, 0.2), (0.2, 0.1)):
        capsys.readouterr()
        sets = [f"--set=data.{name}_share={share}" for name, share in zip(("valid", "test"), shares, strict=True)]
        assert sidera("run", place / "recipe.toml", *flags, *sets) == 0
    reused = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "reused" in line]
    assert reused == ["catalog"]


@pytest.mark.parametrize("terminal", [False, True])
def test_evaluation_draws_a_bar_on_terminals_only(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with rows_bar("evaluate") as progress:
        progress(3, 4)
        progress(4, 4)
    assert ("evaluate: " in capsys.readouterr().err) == terminal


def test_stages_alone_equal_a_run(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "staged"
    flags = (place / "recipe.toml", "--data", place / "data", "--out", out)
    assert sidera("catalog", *flags) == 0
    assert re.search(r"^collision_rate +0\.\d{4}$", capsys.readouterr().out, re.MULTILINE)
    assert sidera("train", *flags) == 0
    assert "catalog: reused" in capsys.readouterr().out
    assert sidera("evaluate", out, "--data", place / "data") == 0
    assert sidera("evaluate", out, "--data", place / "data", "--rows", "valid", "--set", "eval.ks=[1]") == 0
    assert (out / "evaluation-valid+ks-1").is_dir()
    for name in ("catalog", "model", "evaluation"):
        ours, theirs = (json.loads((folder / name / "manifest.json").read_text()) for folder in (out, place / "run"))
        assert ours["digest"] == theirs["digest"]
    assert (out / "model" / "weights-00000.safetensors").read_bytes() == (
        place / "run" / "model" / "weights-00000.safetensors"
    ).read_bytes()


def test_compare(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--data", place / "data", "--out", tmp_path / "popular")
    (tmp_path / "p.toml").write_text(RECIPE[: RECIPE.index("[model]")] + '[model]\nname = "popularity"\n')
    assert sidera("run", tmp_path / "p.toml", *flags) == 0
    capsys.readouterr()
    assert sidera("compare", place / "run", tmp_path / "popular") == 0
    assert "ndcg@10" in capsys.readouterr().out


# -- what is wrong gets one line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["fly"], "invalid choice: 'fly'"),
        ([], "VERB"),
        (["run"], "the following arguments are required: recipe, --data, --out"),
        (["run", "r.toml", "--data", "d", "--out", "o", "--sed", "3"], "unrecognized arguments: --sed 3"),
        (["run", "r.toml", "--data", "d", "--out", "o", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["import", "e.csv", "--out", "o", "--time-unit", "min"], "argument --time-unit: invalid choice: 'min'"),
        (["recommend", "r", "--history", "a", "-k", "ten"], "argument -k: invalid int value: 'ten'"),
        (["serve", "r", "--threads", "-1"], "argument --threads: '-1' is no number of threads; allowed: 0 to 1024"),
        (["evaluate", "r", "--data", "d", "--threads", "two"], "'two' is no number of threads"),
    ],
)
def test_wrong_flags(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sidera(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert "--help`" in line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("run {}/absent.toml --data {}/data --out {}/o", "absent.toml"),
        ("run {}/recipe.toml --data {}/nowhere --out {}/o", "no data folder at .*nowhere.*fix: check the path"),
        ("run {}/recipe.toml --data {} --out {}/o", "no adapter knows the folder"),
        ("run {}/recipe.toml --data {}/data --out {}/o --set fit.lr=fast", "fit] lr = 'fast' is a str; allowed: float"),
        ("run {}/recipe.toml --data {}/data --out {}/o --set fit.lrr=1", "fit] has no key 'lrr' .did you mean 'lr'"),
        ("run {}/recipe.toml --data {}/data --out {}/o --set lr=1", "'lr=1' is not an override; allowed: SECTION"),
        ("run {}/recipe.toml --data {}/data --out {}/o --max-minutes 0", "fit] max_minutes = 0.0 is out of range"),
        ("run {}/recipe.toml --data {}/data --out {}/o --piece-minutes nan", "fit] piece_minutes = nan"),
        ("run {}/recipe.toml --data {}/data --out {}/o --seed -1", "fit] seed = -1 is out of range"),
        ("run {}/recipe.toml --data {}/data --out {}/o --device gpu", "device 'gpu' is not known; allowed: cpu, cuda"),
        ("train {}/recipe.toml --data {}/data --out {}/o --set model.name=tigr", "'tigr' is not known .*'tiger'"),
        ("train {}/recipe.toml --data {}/data --out {}/o --set data.adapter=csv", "adapter = 'csv' is not known"),
        ("catalog {}/recipe.toml --data {}/data --out {}/o --set catalog.collision=none", "collision = 'none'"),
        ("evaluate {}/nowhere --data {}/data", "nowhere' is no run folder; fix: give a folder that `sidera run`"),
        ("evaluate {}/run --data {}/data --set eval.beam=3", "eval] beam = 3 cannot fill a list of 10"),
        ("compare {}/run {}/nowhere", "no evaluation at .*nowhere"),
        ("recommend {}/nowhere --history a", "no run folder at .*nowhere"),
        ("recommend {}/data --history item0001", "no catalog at"),
        ("recommend {}/run --history nothing", "the catalogue holds no item 'nothing'; allowed: one of its 30"),
        ("recommend {}/run --history item0001 -k 0", "k = 0; allowed: 1 or more"),
        ("recommend {}/run --user ann", "--user 'ann' of no log"),
        ("recommend {}/run --user ann --store {}/nowhere", "nowhere"),
        ("recommend {}/run --history item0001 --data {}/data", "are of a user; fix: name one with --user"),
        ("serve {}/nowhere --port 0", "no run folder at .*nowhere"),
        ("serve {}/run --port 70000", "--port 70000 is no port; allowed: 0 to 65535"),
        ("serve {}/run --fill {}/data", "fill .*data without a store; fix: name the store's folder .store, --store."),
        ("serve {}/run --exposures {}/log", "exposures .*log without a store.*; fix: name the store's folder"),
        ("demo --data {}/nowhere --out {}/demo", "no data folder at .*nowhere"),
        ("import {}/absent.csv --out {}/o", "no file at .*absent.csv"),
        ("import {}/event.csv --out {}/o", "no file at .*event.csv' .did you mean 'events.csv'"),
        ("import {}/events.csv --out {}/o --item sku", "no column 'sku' to read as item; allowed: user_id, asin, when"),
        ("import {}/events.csv --out {}/o", "has no column 'time' .found: user_id, asin, when.; fix: say which"),
        ("import {}/recipe.toml --out {}/o", "unknown ending '.toml'; allowed: .parquet, .csv"),
        ("import {}/events.csv --out {}/o --item asin --mapping {}/recipe.toml", "has no key"),
    ],
)
def test_wrong_paths_keys_and_values(place: Path, refused: Callable[..., str], arguments: str, named: str) -> None:
    line = refused(*(argument.replace("{}", str(place)) for argument in arguments.split()))
    assert re.search(named, line), line


def valid_rows(num_users: int = 20, length: int = 5) -> list[str]:
    return [f"u{user},i{(user + step) % 10},{1000 + step}" for user in range(num_users) for step in range(length)]


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([], "log.csv|empty"),
        (["u1,i1,1", "u1,i2,"], "1 of 2 rows .*line 3 of log.csv has no time; allowed: 1.0% .*--max-bad"),
        (["u1,i1,1", "u1,i2,-5"], "line 3 of log.csv has no readable time .'-5'"),
        (["u1,i1,1", "u1,i2,noon"], "noon"),
        (["u1,i1,1", ",i2,2"], "line 3 of log.csv has no user"),
        (["u1,i1,1", "u1,,2"], "line 3 of log.csv has no item"),
    ],
)
def test_bad_logs(tmp_path: Path, refused: Callable[..., str], rows: list[str], named: str) -> None:
    line = refused("import", import_csv(tmp_path, rows), "--out", tmp_path / "data")
    assert re.search(named, line), line
    assert not (tmp_path / "data").exists()


def test_milliseconds_said_so(tmp_path: Path) -> None:
    rows = [row.replace(",100", ",170000000000") for row in valid_rows()]
    log = import_csv(tmp_path, rows)
    assert sidera("import", log, "--out", tmp_path / "data", "--time-unit", "ms") == 0


def test_milliseconds_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = import_csv(tmp_path, ["u1,i1,1700000000000", "u1,i2,1700000001000"])
    assert sidera("import", log, "--out", tmp_path / "data") == 0
    from sidera.data.dataset import Dataset

    assert Dataset.load(tmp_path / "data").times.tolist() == [1_700_000_000, 1_700_000_001]
    assert "millisecond" in capsys.readouterr().out


def test_unsorted_times_are_sorted(tmp_path: Path) -> None:
    assert sidera("import", import_csv(tmp_path, valid_rows()), "--out", tmp_path / "a") == 0
    assert sidera("import", import_csv(tmp_path, valid_rows()[::-1]), "--out", tmp_path / "b") == 0
    from sidera.data.dataset import Dataset

    sequences = []
    for name in ("a", "b"):
        data = Dataset.load(tmp_path / name)
        sequences.append(
            {
                str(user): data.item_keys[data.item_ids[start:end]].tolist()
                for user, start, end in zip(data.user_keys, data.offsets, data.offsets[1:], strict=False)
            }
        )
    assert sequences[0] == sequences[1]


def test_duplicate_items(tmp_path: Path, refused: Callable[..., str]) -> None:
    log = import_csv(tmp_path, valid_rows())
    (tmp_path / "items.jsonl").write_text('{"key": "i1", "title": "a"}\n{"key": "i1", "title": "b"}\n')
    line = refused("import", log, "--items", tmp_path / "items.jsonl", "--out", tmp_path / "data")
    assert "'i1' 2 times; allowed: one row per key" in line


def test_unknown_items_when_strict(tmp_path: Path, refused: Callable[..., str]) -> None:
    log = import_csv(tmp_path, valid_rows())
    (tmp_path / "items.jsonl").write_text('{"key": "i1", "title": "a"}\n')
    line = refused("import", log, "--items", tmp_path / "items.jsonl", "--out", tmp_path / "data", "--strict")
    assert "9 items of the log are not in the items table, the first is 'i0'" in line


HARDLY_LOGS = {
    "one event each": ([f"u{user},i{user % 3},{user}" for user in range(30)], False),
    "two events each": ([f"u{user},i{(user + step) % 4},{step}" for user in range(9) for step in range(2)], False),
    "one user with one event": (["u0,i0,1"], False),
    "one user with three events": (["u0,i0,1", "u0,i1,2", "u0,i2,3"], False),
    "one user": ([f"u0,i{step % 4},{step}" for step in range(12)], True),
    "one item": ([f"u{user},i0,{step}" for user in range(5) for step in range(5)], True),
}


@pytest.mark.parametrize("case", HARDLY_LOGS)
@pytest.mark.parametrize("model", sorted(name for name, kind in MODELS.items() if kind.role in ("generator", "scorer")))
def test_logs_that_are_hardly_logs(
    tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str], case: str, model: str
) -> None:
    """What can be learned from is; of the rest one line says what it lacks."""
    rows, enough = HARDLY_LOGS[case]
    enough = enough or (case == "one user with three events" and not hasattr(MODELS[model], "loss"))
    if find_spec(needs := getattr(MODELS[model], "needs", "sidera")) is None:
        pytest.skip(f"{needs} is not installed")
    assert sidera("import", import_csv(tmp_path, rows), "--out", tmp_path / "data") == 0
    vectors = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    save_vectors(tmp_path / "v.safetensors", ["i0", "i1", "i2", "i3"], vectors)
    small = {"tiger": "width = 8\nnum_layers = 1\nhead_width = 4\nff_width = 8", "sasrec": "num_negatives = 8"}
    small["onerec_v1"] = "min_watched = 1"  # nobody in such logs likes five items in a row
    (tmp_path / "r.toml").write_text(
        f'[catalog]\nvectors = ["file"]\nvectors_file = "{tmp_path}/v.safetensors"\n'
        "[catalog.quantizer]\nnum_levels = 1\ncodebook_size = 1\n"
        f'[model]\nname = "{model}"\n{small.get(model, "")}\n' + RECIPE[RECIPE.index("[fit]") :]
    )
    data, run = ("--data", tmp_path / "data"), tmp_path / "run"
    if enough:
        assert sidera("train", tmp_path / "r.toml", *data, "--out", run) == 0
        assert sidera("evaluate", run, *data) == 0
        capsys.readouterr()
        assert sidera("recommend", run, "--history", "i0", "-k", 1) == 0
        assert re.fullmatch(r"i\d\t-?\d+\.\d+\t\n", capsys.readouterr().out)
    else:
        line = refused("run", tmp_path / "r.toml", *data, "--out", run)
        assert re.search(r"no user has two training events.*; fix: |left no rows to evaluate; fix: ", line)


def test_not_a_number_in_vectors(place: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    vectors = torch.randn(30, 4)
    vectors[7, 2] = float("nan")
    save_vectors(tmp_path / "v.safetensors", [f"item{item:04d}" for item in range(30)], vectors)
    settings = ("--set", "catalog.vectors=['file']", "--set", f"catalog.vectors_file={tmp_path / 'v.safetensors'}")
    line = refused("catalog", place / "recipe.toml", "--data", place / "data", "--out", tmp_path / "o", *settings)
    assert "the vector of item 'item0007' holds NaN or inf" in line


def test_new_vectors_in_the_same_file_make_a_new_catalogue(place: Path, tmp_path: Path) -> None:
    """A stage is reused by what its inputs hold, not by what they are called."""
    settings = ("--set", "catalog.vectors=['file']", "--set", f"catalog.vectors_file={tmp_path / 'v.safetensors'}")
    digests = []
    for seed in (0, 0, 1):
        vectors = torch.randn(30, 4, generator=torch.Generator().manual_seed(seed))
        save_vectors(tmp_path / "v.safetensors", [f"item{item:04d}" for item in range(30)], vectors)
        flags = ("--data", place / "data", "--out", tmp_path / "o")
        assert sidera("catalog", place / "recipe.toml", *flags, *settings) == 0
        digests.append(json.loads((tmp_path / "o" / "catalog" / "manifest.json").read_text())["digest"])
    assert digests[0] == digests[1] != digests[2]


def test_more_items_than_codes_can_name(place: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    settings = ("--set", "catalog.quantizer.codebook_size=3", "--set", "catalog.collision=greedy")
    line = refused("catalog", place / "recipe.toml", "--data", place / "data", "--out", tmp_path / "o", *settings)
    assert "30" in line
    assert "codebook_size" in line


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("truncated", "weights-00000.safetensors is truncated or was edited"),
        ("edited", "manifest.json was edited"),
        ("version", "has artifact format 7; allowed: 1; fix: make the model again"),
    ],
)
def test_damaged_artifacts(run: Path, refused: Callable[..., str], damage: str, named: str) -> None:
    weights, manifest = run / "model" / "weights-00000.safetensors", run / "model" / "manifest.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "edited":
        manifest.write_text(manifest.read_text().replace('"num_items": 30', '"num_items": 29'))
    else:
        manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 7'))
    assert named in refused("recommend", run, "--history", "item0001")


@pytest.mark.parametrize("damaged", ["catalog", "model", "evaluation"])
def test_a_damaged_stage_is_made_again(
    place: Path, run: Path, damaged: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = next(file for file in sorted((run / damaged).iterdir()) if file.suffix in (".safetensors", ".parquet"))
    file.write_bytes(file.read_bytes()[:-10])
    assert sidera("run", place / "recipe.toml", "--data", place / "data", "--out", run) == 0
    assert (
        f"{damaged.replace('model', 'train').replace('evaluation', 'evaluate')}: reused" not in capsys.readouterr().out
    )
    assert sidera("recommend", run, "--history", "item0001") == 0


def test_a_foreign_catalogue(place: Path, run: Path, refused: Callable[..., str]) -> None:
    flags = ("--data", place / "data", "--out", run, "--set", "catalog.quantizer.codebook_size=3")
    assert sidera("catalog", place / "recipe.toml", *flags) == 0
    identities = [
        json.loads((folder / "catalog" / "manifest.json").read_text())["info"]["codebook_id"]
        for folder in (place / "run", run)
    ]
    line = refused("recommend", run, "--history", "item0001")
    assert (
        f"the model was trained on codebook {identities[0]}, this catalogue has codebook {identities[1]}; fix" in line
    )


def test_a_run_over_something_else(place: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    """A folder that happens to be called `catalog` is not swept away."""
    (tmp_path / "out" / "catalog").mkdir(parents=True)
    (tmp_path / "out" / "catalog" / "spring.pdf").write_text("shop")
    line = refused("run", place / "recipe.toml", "--data", place / "data", "--out", tmp_path / "out")
    assert "no artifact of sidera's and would be replaced" in line
    assert (tmp_path / "out" / "catalog" / "spring.pdf").read_text() == "shop"


def test_a_taken_port(place: Path, refused: Callable[..., str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        line = refused("serve", place / "run", "--port", taken.getsockname()[1])
    assert re.search(r"cannot listen on 127.0.0.1:\d+: .*in use; fix: choose a free port with --port", line)


@pytest.mark.parametrize("model", ["sidera", "popularity"])
def test_a_full_disk_while_saving(place: Path, run: Path, refused: Callable[..., str], model: str) -> None:
    """A limit on file size stands for the disk: checkpoint or model cannot be written, what was saved survives."""
    before = {name: when for name, when in modified(run).items() if name.startswith(("catalog/", "model/"))}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = 6000 if model == "sidera" else 300  # bytes a file: enough for a recipe.json and not for weights; for neither
    recipe = RECIPE.replace("epochs", "seed = 1\nepochs") if model == "sidera" else RECIPE[: RECIPE.index("[model]")]
    (run.parent / "r.toml").write_text(recipe + ("" if model == "sidera" else '[model]\nname = "popularity"\n'))
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        line = refused("train", run.parent / "r.toml", "--data", place / "data", "--out", run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in line
    assert "fix: free space" in line
    assert {name: when for name, when in modified(run).items() if name in before} == before
    assert sidera("recommend", run, "--history", "item0001") == 0
    assert not list(run.rglob(".*"))


# -- in a process of its own -------------------------------------------------------------------------------------------


def process(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sidera", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


def wait_for(condition: Callable[[], bool], running: subprocess.Popen[str], seconds: float = 240.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


def test_ctrl_c_in_mid_training(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing half-written; the same command goes on, to the result of a training that was never stopped."""
    out, settings = tmp_path / "run", ("--set", "fit.epochs=300", "--set", "fit.patience=0", "--set", "fit.log_every=1")
    limit = ("--set", "fit.max_steps=150", "--set", "eval.valid_rows=5")
    flags = (place / "recipe.toml", "--data", place / "data", *settings, *limit)
    running = process("train", *flags, "--out", out, "--set", "fit.checkpoint_minutes=60")
    metrics = out / "fit" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count('"train"') >= 3, running)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=240)
    assert running.returncode == 130
    assert err.splitlines()[-1].startswith("sidera train: stopped; finished stages are kept, the same command goes on")
    assert "Traceback" not in err
    assert {path.name for path in out.iterdir()} == {"recipe.json", "catalog", "fit"}
    assert {path.name for path in (out / "fit").iterdir()} == {"checkpoint", "metrics.jsonl"}
    steps = metrics.read_text().count('"train"')
    assert steps < 150
    assert sidera("train", *flags, "--out", out) == 0
    assert metrics.read_text().count('"train"') == 150
    assert sidera("train", *flags, "--out", tmp_path / "whole") == 0
    weights = [(folder / "model" / "weights-00000.safetensors").read_bytes() for folder in (out, tmp_path / "whole")]
    assert weights[0] == weights[1]


def test_a_piece_at_a_time(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--data", place / "data", "--out", tmp_path / "run", "--piece-minutes", "0.0001")
    calls = 0
    while not (tmp_path / "run" / "model").exists():
        assert sidera("run", place / "recipe.toml", *flags) == 0
        calls += 1
        assert calls < 100
    assert calls > 1
    out = capsys.readouterr().out
    assert out.count("training is unfinished: give the same command again to go on") == calls - 1
    weights = [folder / "run" / "model" / "weights-00000.safetensors" for folder in (place, tmp_path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_an_unfinished_training_is_not_continued_by_another_recipe(
    place: Path, tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Hours of work are neither thrown away nor passed off as another recipe's, nor as another catalogue's."""
    flags = (place / "recipe.toml", "--data", place / "data", "--out", tmp_path / "run")
    assert sidera("train", *flags, "--piece-minutes", "0.0001") == 0
    line = refused("train", *flags, "--set", "fit.lr=0.5")
    assert "fit.lr = 0.001 there and 0.5 here; fix: use another output folder, or remove" in line
    line = refused("train", *flags, "--set", "catalog.seed=3")
    assert "belongs to another training" in line
    assert "catalog = " in line


def test_serve_answers_and_stops_quietly(place: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = ("--store", tmp_path / "store", "--fill", place / "data", "--exposures", tmp_path / "log")
    running = process("serve", place / "run", "--port", port, *store)
    address = f"http://127.0.0.1:{port}"

    def up() -> bool:
        try:
            with urllib.request.urlopen(f"{address}/healthz", timeout=1) as answer:
                return json.loads(answer.read())["status"] == "ok"
        except OSError:
            return False

    def ask(path: str, **body: object) -> dict[str, Any]:
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{address}{path}", data=json.dumps(body).encode(), headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found

    try:
        wait_for(up, running)
        expected = ask("/v1/recommend", history=["item0001", "item0003"], k=3)["items"]
        assert len(expected) == 3
        assert not ask("/v1/recommend", user=str(Dataset.load(place / "data").user_keys[0]))["cold_start"]
        told = ask("/v1/events", user="new", items=["item0001", "item0003"], times=[5, 9])
        assert told == {"new": 2, "known": 0, "unknown": []}
        assert ask("/v1/recommend", user="new", k=3)["items"] == expected
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=240)
    finally:
        running.kill()
    assert running.returncode == 0
    assert err == ""
    assert f"serving {place / 'run'} on {address}" in out
    assert f"store: {tmp_path / 'store'}, 60 users" in out
    with open_behaviour(tmp_path / "store", Recommender.load(place / "run").catalog) as behaviour:
        assert behaviour.store.num_users == 61
        catalog = behaviour.catalog
    log = ExposureLog.open(tmp_path / "log", codebook_id=catalog.codebook_id, num_levels=catalog.num_levels)
    assert log.read()["item"].to_pylist()[-3:] == [item["item"] for item in expected]  # a clean stop writes the last


def test_help_needs_no_torch() -> None:
    """`sidera --help` answers at once: nothing heavy is imported for it."""
    code = "import sys, sidera.cli as c; c.build_parser(); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
