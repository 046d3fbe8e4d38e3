"""The pages about alignment, scaling laws and online tests, from records made by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from page_checks import check_page

from sidera.lab.differences import Difference
from sidera.lab.online import OnlineTest
from sidera.pages.alignment import write_alignment_page
from sidera.pages.online import REST, SHOWN, write_online_page
from sidera.pages.scaling import write_scaling_page

ROOT = Path(__file__).resolve().parents[2]
NUMBER = re.compile(r"(?<![a-zA-Z#0-9])\d+(?:\.\d+)?")
ARMS = ("sasrec", "onerec_v2 <b>", "oracle")


def online(days: int = 3) -> OnlineTest:
    metrics = (*SHOWN, *REST)
    gap = {metric: Difference(metric, 5.0, 5.5, 0.5, 0.2, 0.1, 0.04, 100) for metric in metrics}
    gap["cold_share"] = replace(gap["cold_share"], relative=float("nan"), relative_half_width=float("nan"))
    levels = {arm: dict.fromkeys(metrics, (1.0 + place, 0.1)) for place, arm in enumerate(ARMS)}
    levels["sasrec"]["returned_7"] = (float("nan"), float("nan"))
    return OnlineTest(
        setting={"days": days, "users": 100, "world": "easy", "ms_per_answer": {"sasrec": 1.5}},
        reference="sasrec",
        levels=levels,
        differences={arm: dict(gap) for arm in ARMS[1:]},
        lost=dict.fromkeys(ARMS, 0.0),
        faults={arm: {"unknown": 0, "duplicate": 0, "missing": 0} for arm in ARMS},
        problems={arm: [] for arm in ARMS},
        cpu_seconds=dict.fromkeys(ARMS, 1.0),
    )


def test_online_page(tmp_path: Path) -> None:
    text = write_online_page(online(), tmp_path / "online.html", title="Ours <i>").read_text()
    check_page(text)
    assert "gives its users 10.0 % [6.0, 14.0] more true utility than SASRec." in text
    assert "onerec_v2 &lt;b&gt;" in text
    assert "Returns reach as far as the test does: 2 day(s)." in text


def test_alignment_page(tmp_path: Path) -> None:
    figures = {"reward": 0.5, "judge": 0.4, "recall@50_long_view": 0.3, "coverage": 0.9, "rows_long_view": 100}
    training = {
        "start": {"reward": 0.1}, "checks": [{"step": 10, "reward": 0.4}, {"step": 20, "reward": 0.5}],
        "cpu_seconds": 12.0, "steps": 20,
    }  # fmt: skip
    arm = {"role": "arm", "figures": {**figures, "coverage": 0.5}, "recall_differences": {"long_view": (-0.02, 0.01)}}
    record = {
        "reference": "sft",
        "policies": {
            "sft": {"role": "control", "figures": figures, "recall_differences": {}, "training": training,
                    "config": {"steps": 20, "lr": 0.1}},
            ARMS[1]: {**arm, "training": {**training, "stopped": "a gate closed"}, "config": {"method": "grpo"}},
        },
        "rankers": {"p_score": {"users": 1000, "steps": 20, "cpu_seconds": 5, "aucs": {"like": 0.7}}},
        "users": {"reward": 10, "audience": 90},
    }  # fmt: skip
    for test in (None, online()):
        text = write_alignment_page(record, test, tmp_path / "alignment.html").read_text()
        check_page(text)
        assert "given up: recall@50 on long view: -0.0200 ± 0.0100; coverage, t = 1: 0.900 to 0.500" in text
        assert "a gate closed" in text
        judges = text[text.index("<h2>Every judge") : text.index("<h2>Frontier")]
        assert judges.count('class="best"') == 1  # the one difference whose interval leaves 0 out
        assert ("Served users" in text) == (test is not None)


def test_scaling_page_of_the_committed_runs(tmp_path: Path) -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "scaling.json").read_text())["details"]
    text = write_scaling_page(record, tmp_path).read_text()
    check_page(text)
    assert "128x6 (N = 1,371,593) was left out" in text
    drawn, committed = (path.read_text() for path in (tmp_path / "scaling.svg", ROOT / "docs/pictures/scaling.svg"))
    assert NUMBER.sub("#", drawn) == NUMBER.sub("#", committed)
    assert np.allclose([*map(float, NUMBER.findall(drawn))], [*map(float, NUMBER.findall(committed))], atol=0.11)
