"""The online test as people meet it: result, JSON, page, the verbs `simulate` and `ab`, bad input in one line each."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidera.cli import main
from sidera.core import ArtifactError, InputError
from sidera.lab.brackets import OraclePolicy, RandomPolicy
from sidera.lab.online import BRACKETS, OnlineTest, online_test, read_arms, to_text
from sidera.lab.policy import Requests
from sidera.lab.trial import METRICS
from sidera.pages.online import SHOWN, write_online_page
from small_world import SMALL, small_world

SETS = [text for key, value in SMALL.items() for text in ("--set", f"world.{key}={value}")]


@pytest.fixture(scope="module")
def result() -> OnlineTest:
    def shaky(requests: Requests) -> Any:
        if 7 in requests.user_ids:
            raise RuntimeError("out of <memory>")
        return RandomPolicy(300)(requests)

    def short(requests: Requests) -> Any:
        return RandomPolicy(300)(requests)[:, :4]

    arms = {"best": "oracle:utility:0.9", "click": OraclePolicy("click"), "shaky & slow": shaky, "short": short}
    return online_test(arms, small_world(), users=120, days=3, log_days=3, pairs=[("random", "click")])


def test_a_result_holds_arms_brackets_and_paired_intervals(result: OnlineTest) -> None:
    assert result.arms == ["best", "click", "shaky & slow", "short", *BRACKETS]
    assert result.reference == "best"
    assert set(result.differences) == set(result.arms) - {"best"}
    for arm in result.arms:
        assert set(result.levels[arm]) == set(METRICS)
    pair = result.pairs["click less random"]["utility"]
    assert pair.value == pytest.approx(result.levels["click"]["utility"][0] - result.levels["random"]["utility"][0])
    found = result.differences["random"]["utility"]
    assert found.value == pytest.approx(result.levels["random"]["utility"][0] - result.levels["best"]["utility"][0])
    assert found.clear
    assert result.faults["short"]["missing"] > 0
    assert result.lost["shaky & slow"] == 1.0  # one batch of 120 holds them all
    assert result.problems["shaky & slow"] == ["raised RuntimeError: out of <memory>"]
    assert "100.0 % of the users lost" in to_text(result)


def test_json_and_back(result: OnlineTest, tmp_path: Path) -> None:
    result.save(tmp_path / "test.json")
    again = OnlineTest.load(tmp_path / "test.json")
    assert again.pairs == result.pairs
    assert to_text(again) == to_text(result)
    assert again.differences["random"] == result.differences["random"]
    (tmp_path / "test.json").write_text("[]")
    with pytest.raises(ArtifactError, match="cannot be read"):
        OnlineTest.load(tmp_path / "test.json")


def test_the_page_shows_every_metric_and_arm_and_names_the_troubles(result: OnlineTest, tmp_path: Path) -> None:
    page = write_online_page(result, tmp_path / "page.html", title="A <test>").read_text()
    for heading, unit in SHOWN.values():
        assert f'aria-label="{heading}"' in page
        assert unit in page
    assert page.count("<svg") == len(SHOWN)
    for arm in ("best", "shaky &amp; slow", *BRACKETS):
        assert arm in page
    assert "out of &lt;memory&gt;" in page
    assert "A &lt;test&gt;" in page
    assert "<script" not in page
    assert not re.search(r'(src|href)="http', page)
    assert 'class="headline">oracle' not in page  # what knows the truth is no arm to be proud of


def test_a_hanging_arm_ends_in_time_and_the_others_are_measured() -> None:
    release = threading.Event()

    def hanging(requests: Requests) -> Any:
        release.wait(600)

    begun = time.perf_counter()
    found = online_test({"logger": "logger", "hangs": hanging}, small_world(), users=20, days=1, log_days=1,
                        brackets=False, timeout=1.0)  # fmt: skip
    release.set()
    assert time.perf_counter() - begun < 300  # one call that is waited for lasts 600
    assert (found.lost["hangs"], found.lost["logger"]) == (1.0, 0.0)
    assert math.isnan(found.levels["logger"]["returned_1"][0])
    assert "no answer within 1 s" in to_text(found)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"users": 1}, "users = 1"), ({"days": 0}, "days = 0"), ({"log_days": 0}, "log_days = 0"),
     ({"reference": "b"}, "reference 'b' is no arm"), ({"timeout": 0.0}, "timeout = 0")],
)  # fmt: skip
def test_impossible_tests_are_named(changes: dict[str, Any], words: str) -> None:
    setting = {"users": 10, "days": 1, "log_days": 1, **changes}
    with pytest.raises(InputError, match=words):
        online_test({"a": "random"}, small_world(), brackets=False, **setting)


def test_a_run_that_knows_other_items_is_refused(trained_run: Path) -> None:
    with pytest.raises(InputError, match="not the 300 of this world"):
        read_arms([str(trained_run)], small_world())


# -- the verbs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verbs")
    (folder / "mine.toml").write_text('base = "hard"\n[world]\nnum_items = 300\nnum_candidates = 20\n')
    arguments = ["simulate", "--config", "easy", *SETS, "--users", "40", "--days", "3", "--seed", "5"]
    assert main([*arguments, "--out", str(folder / "log")]) == 0
    return folder / "log"


def test_simulate_and_ab_from_the_shell(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "ab.html"
    arguments = ["ab", "logger", "oracle:click:0.5", "random", "--config", str(log), "--users", "40", "--days", "2"]
    assert main([*arguments, "--no-brackets", "--out", str(page)]) == 0
    text = capsys.readouterr().out
    assert "40 users, 2 days after 3 of log" in text  # the log's days
    record = json.loads(page.with_suffix(".json").read_text())
    assert record["setting"]["seed"] == 5
    assert list(record["levels"]) == ["logger", "oracle:click:0.5", "random"]
    assert "oracle:click:0.5" in page.read_text()
    same = ["ab", "logger", "random", *SETS, "--seed", "5", "--log-days", "3", "--users", "40", "--days", "2"]
    assert main([*same, "--no-brackets", "--out", str(tmp_path / "same.html")]) == 0
    named = json.loads((tmp_path / "same.json").read_text())
    assert np.allclose(named["levels"]["random"]["utility"], record["levels"]["random"]["utility"])


def test_a_world_from_a_file(log: Path, tmp_path: Path) -> None:
    arguments = ["simulate", "--config", str(log.parent / "mine.toml"), "--set", "world.num_topics=4", "--users", "5"]
    assert main([*arguments, "--days", "1", "--out", str(tmp_path / "log")]) == 0
    world = json.loads((tmp_path / "log" / "manifest.json").read_text())["recipe"]["world"]
    assert (world["num_items"], world["num_topics"], world["taste_weight"]) == (300, 4, 2.5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("simulate --users 0 --days 1 --out {}/o", "users = 0 is out of range; allowed: whole numbers from 1"),
        ("simulate --users 5 --days -2 --out {}/o", "days = -2 is out of range"),
        ("simulate --users many --days 1 --out {}/o", "argument --users: invalid int value: 'many'"),
        ("simulate --users 5 --days 1", "the following arguments are required: --out"),
        ("simulate --config eazy --users 5 --days 1 --out {}/o", "no world 'eazy' .did you mean 'easy'.*; allowed"),
        ("simulate --config {}/no.toml --users 5 --days 1 --out {}/o", "no world file at .*no.toml"),
        ("simulate --config {} --users 5 --days 1 --out {}/o", "no dataset at"),
        ("simulate --config {}/bad.toml --users 5 --days 1 --out {}/o", "bad.toml is not valid TOML"),
        ("simulate --config {}/fit.toml --users 5 --days 1 --out {}/o", "unknown key 'fit'; allowed: base, .world"),
        ("simulate --config {}/base.toml --users 5 --days 1 --out {}/o", "no world 'harder' .did you mean 'hard'"),
        ("simulate --set world.num_items=0 --users 5 --days 1 --out {}/o", "num_items = 0 is out of range"),
        ("simulate --set world.num_topics=4000 --users 5 --days 1 --out {}/o", "num_topics = 4000 .*no more than"),
        ("simulate --set world.uniform_share=-1 --users 5 --days 1 --out {}/o", "uniform_share = -1.0 .*0 or more"),
        ("simulate --set world.satiation=1 --users 5 --days 1 --out {}/o", "no key 'satiation' .did you mean"),
        ("simulate --set fit.lr=1 --users 5 --days 1 --out {}/o", "'fit.lr=1' is not an override; allowed: world.KEY"),
        ("simulate --config {log} --set world.num_items=9 --users 5 --days 1 --out {}/o", "cannot change the world of"),
        ("ab random randm --out {}/p.html", "no arm 'randm' .did you mean 'random'.*; allowed: a run folder"),
        ("ab random random --out {}/p.html", "the arm 'random' is named twice"),
        ("ab random oracle:fame --out {}/p.html", "oracle goal 'fame' is not known"),
        ("ab random oracle:click:2 --out {}/p.html", "strength = 2.0 is out of range"),
        ("ab random oracle:click:much --out {}/p.html", "oracle strength 'much' is no number"),
        ("ab random popularity:2 --out {}/p.html", "no policy 'popularity:2'; allowed: random"),
        ("ab random {} --out {}/p.html", "no catalog at"),
        ("ab random logger --users 1 --out {}/p.html", "users = 1 gives no interval"),
        ("ab random logger --days 0 --out {}/p.html", "days = 0; allowed: 1 or more"),
        ("ab random logger --log-days -1 --out {}/p.html", "log_days = -1; allowed: 1 or more"),
        ("ab random logger --timeout 0 --out {}/p.html", "timeout = 0.0; allowed: seconds above 0"),
        ("ab random logger --out {}/page", "is no page; allowed: a path that ends in .html"),
        ("ab random logger --config {log} --seed 4 --out {}/p.html", "--seed 4, but .* is a log of seed 5"),
        ("ab --out {}/p.html", "the following arguments are required: ARM"),
        ("ab random --no-brackets --out {}/p.html", "nothing to compare 'random' with; fix: name another arm"),
        ("ab random --reranked oracle --out {}/p.html", "no arm 'oracle'.*; allowed: a run folder"),
        ("ab random --reranked {} --out {}/p.html", "no catalog at"),
    ],
)  # fmt: skip
def test_every_bad_input_is_one_line(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, words: str
) -> None:
    (tmp_path / "bad.toml").write_text("[world\n")
    (tmp_path / "fit.toml").write_text("[fit]\nlr = 1\n")
    (tmp_path / "base.toml").write_text('base = "harder"\n')
    filled = [text.replace("{log}", str(log)).replace("{}", str(tmp_path)) for text in arguments.split()]
    capsys.readouterr()
    run: Callable[[], int] = lambda: main(filled)  # noqa: E731
    try:
        code = run()
    except SystemExit as stop:  # argparse ends the process
        code = int(stop.code or 0)
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1, lines
    assert re.search(words, lines[0]), lines[0]
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "p.html").exists()
