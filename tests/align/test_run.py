"""``sidera align``: from a log to aligned run folders, an online test and a page; what is there already is reused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_world import SECTION, SMALL

from sidera import artifacts, cli
from sidera.align.recipe import AlignRecipe
from sidera.align.run import align_recipe
from sidera.artifacts import read_manifest
from sidera.core import InputError
from sidera.data.config import DataConfig, load_dataset, make_views
from sidera.data.split import user_groups
from sidera.engine.quota import Quota
from sidera.engine.recommender import Recommender
from sidera.engine.reranker import Reranker
from sidera.engine.serving import ServeConfig
from sidera.lab.alignment import gap_closed
from sidera.lab.online import OnlineTest
from sidera.lab.own_exposures import expose
from sidera.sim.config import world_config
from sidera.sim.simulate import simulate
from sidera.store.exposures import ExposureLog
from sidera.train.ranker import RANKER_SHARES
from sidera.train.recipe import Recipe
from sidera.train.stages import train

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
[data]
positive = "click"
[catalog]
vectors = ["behaviour"]
vector_dim = 16
collision = "greedy"

[catalog.quantizer]
num_levels = 3
codebook_size = 16
balanced = true
[model]
{model}
[fit]
epochs = 2
batch_size = 64
lr = 5e-3
warmup_steps = 10
[eval]
beam = 64
valid_rows = 100
[align]
steps = 6
lr = 1e-5
check_every = 3
requests = 8
group = 8
ntp_batch = 32
controls = ["sft", "long_view_sft"]
[align.arms.safe]
ntp = "safe"
[align.arms.logged]
method = "gbpo_log"
ntp_weight = 0.5
[rewards]
epochs = 1
rules = [{{rule = "diversity", field = "creator", weight = 0.05}}]
"""


def write_recipe(folder: Path, model: dict[str, Any]) -> Path:
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in model.items())
    path = folder / "align.toml"
    path.write_text(RECIPE.format(model=lines))
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("align") / "log"
    simulate(world_config("easy", SMALL), 240, 3, folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def aligned(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("aligned") / "run"
    recipe = write_recipe(log.parent, SECTION)
    arguments = ["align", str(recipe), "--data", str(log), "--out", str(out), "--users", "40", "--days", "1"]
    assert cli.main(arguments) == 0
    return out


def test_it_leaves_run_folders_a_record_and_a_page(aligned: Path) -> None:
    record = json.loads((aligned / "align" / "alignment.json").read_text())
    assert record["reference"] == "sft"
    assert record["recommended"] == "safe"
    assert list(record["policies"]) == ["pretrained", "sft", "long_view_sft", "safe", "logged"]
    assert sum(record["users"].values()) == 240
    for name, policy in record["policies"].items():
        assert 0 < policy["figures"]["coverage"] <= 1
        assert 0 < policy["figures"]["judge"] < 1
        assert (name == "sft") == (not policy["recall_differences"])
        if name == "pretrained":
            continue
        assert policy["training"]["steps"] == 6
        assert len(policy["training"]["checks"]) == 2
        served = Recommender.load(aligned / "align" / name)  # a folder of its own
        assert served.beam == 64
        key = str(served.catalog.item_keys[0])
        assert len(served.recommend([[key]], k=5)[0].item_keys) == 5
    safe = record["policies"]["safe"]["training"]["checks"][0]
    assert {"reward", "reward_p_score", "reward_diversity creator"} <= set(safe)  # every part of it
    text = (aligned / "align" / "alignment.html").read_text()
    for words in ("What came of it", "Served users", "Frontier", "pretrained+rerank", "Recall@50, likes"):
        assert words in text


@pytest.mark.slow
def test_two_processes_leave_the_folders_of_one(log: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, SECTION)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sidera"]
    arguments = ["align", str(recipe), "--data", str(log), "--out", str(tmp_path / "two"), "--no-online"]
    for word in ("pretrained: ", "logged: reused"):
        two = subprocess.run(
            [*launcher, *arguments],
            capture_output=True,
            text=True,
            timeout=500,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert two.returncode == 0, two.stderr[-3000:]
        assert two.stdout.count(word) == 1  # one process speaks
    record = json.loads((tmp_path / "two" / "align" / "alignment.json").read_text())
    assert list(record["policies"]) == ["pretrained", "sft", "long_view_sft", "safe", "logged"]
    for name in ("safe", "logged"):
        assert record["policies"][name]["training"]["steps"] == 6
        served = Recommender.load(tmp_path / "two" / "align" / name)
        assert len(served.recommend([[str(served.catalog.item_keys[0])]], k=5)[0].item_keys) == 5
    assert (tmp_path / "two" / "align" / "alignment.html").exists()


def test_the_online_test_serves_those_who_taught_nobody(aligned: Path) -> None:
    online = OnlineTest.load(aligned / "align" / "online.json")
    assert online.setting["users"] == 40
    assert online.reference == "sft"
    assert set(online.setting["ms_per_answer"]) == set(online.arms) - {"popularity", "oracle"}
    assert gap_closed(online, "oracle") == pytest.approx(1)
    assert gap_closed(online, "sft") == 0
    assert not any(online.lost.values())


def test_the_leak_guard_holds_for_aligned_policies(
    aligned: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another split than the pretraining's may ask what the policy has seen; so may data that nobody names."""
    run = tmp_path / "safe"
    shutil.copytree(aligned / "align" / "safe", run)
    parents = read_manifest(run / "model", "model").parents
    pretrained = read_manifest(aligned / "model", "model")
    assert parents == {**pretrained.parents, "pretrained": pretrained.digest}
    asked = ["evaluate", str(run), "--data", str(log), "--rows", "valid", "--set", "eval.max_rows=20"]
    assert cli.main(asked) == 0
    assert cli.main([*asked, "--set", "data.split=temporal"]) == 2
    assert "was trained on other data or another split" in capsys.readouterr().err
    record = json.loads((run / "model" / "manifest.json").read_text())
    del record["seal"], record["parents"]["data"]
    (run / "model" / "manifest.json").write_text(json.dumps({**record, "seal": artifacts._seal(record)}))
    assert cli.main(asked) == 2
    assert "does not say which data it was trained on" in capsys.readouterr().err


def test_a_second_call_reuses_everything(aligned: Path, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in aligned.rglob("weights*")}
    recipe = write_recipe(log.parent, SECTION)
    arguments = ["align", str(recipe), "--data", str(log), "--out", str(aligned), "--no-online"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert said.count("reused") == 8  # catalog, model, reward, judge, four arms
    assert {path: path.stat().st_mtime_ns for path in aligned.rglob("weights*")} == before


def test_a_policy_that_reads_items_alone_is_rewarded_by_what_reads_everything(log: Path, tmp_path: Path) -> None:
    model = {"name": "sidera", "max_history": 16, "width": 16, "num_layers": 1, "num_heads": 1, "dropout": 0.0}
    recipe = write_recipe(tmp_path, model)
    flags = ["--set", "align.controls=[]", "--set", "align.arms.logged.method=sprec", "--no-online"]
    assert cli.main(["align", str(recipe), "--data", str(log), "--out", str(tmp_path / "run"), *flags]) == 0
    record = json.loads((tmp_path / "run" / "align" / "alignment.json").read_text())
    assert record["reference"] == "pretrained"
    assert record["policies"]["safe"]["training"]["checks"][-1]["zero_advantage"] < 0.5


def test_a_second_round_learns_from_what_the_first_one_showed(aligned: Path, log: Path, tmp_path: Path) -> None:
    """The aligned policy serves those who teach; its exposures teach the next reward, and arms start there."""
    policy = Recommender.load(aligned / "align" / "safe")
    view, _ = make_views(load_dataset(log), DataConfig(positive="click"))
    groups = user_groups(view.dataset.user_keys, RANKER_SHARES)
    teachers = [str(key) for key in view.dataset.user_keys[groups < 2]]
    number = expose(policy, log, teachers, tmp_path / "exposures", days=1)
    table = ExposureLog.open(tmp_path / "exposures", codebook_id=policy.catalog.codebook_id, num_levels=3).read()
    assert number == table.num_rows > 5 * len(teachers)
    assert set(table["policy"].to_pylist()) == {policy.version}
    assert set(table["user"].to_pylist()) == set(teachers)
    assert 0 < table["log_prob_2"].null_count < 0.2 * number  # who did nothing in the log is answered by popularity
    followed = table["click"].is_valid().to_numpy(zero_copy_only=False)
    assert 0.5 < followed.mean() < 1  # who leaves sees no more of a slate
    assert followed[table["slot"].to_numpy() == 0].all()

    recipe, out = write_recipe(log.parent, SECTION), tmp_path / "second"
    flags = ["--start", str(aligned / "align" / "safe"), "--exposures", str(tmp_path / "exposures"), "--no-online",
             "--set", "align.controls=[]"]  # fmt: skip
    assert cli.main(["align", str(recipe), "--data", str(log), "--out", str(out), *flags]) == 0
    assert Recommender.load(out).version == policy.version
    first, second = (json.loads((run / "align" / "alignment.json").read_text())["rankers"] for run in (aligned, out))
    for name in ("reward", "judge"):
        assert second[name]["digest"] != first[name]["digest"]
        assert second[name]["steps"] > first[name]["steps"]
    told = AlignRecipe.read(recipe)
    with pytest.raises(InputError, match="holds the policy"):
        align_recipe(told, log, out, start=aligned / "align" / "logged")
    with pytest.raises(InputError, match=r"no exposure log at .*nowhere"):
        align_recipe(told, log, out, start=aligned / "align" / "safe", exposures=tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_start_that_cannot_be_is_refused_before_anything_is_trained(aligned: Path, log: Path, tmp_path: Path) -> None:
    recipe, out = AlignRecipe.read(write_recipe(tmp_path, SECTION)), tmp_path / "run"
    simulate(world_config("easy", {**SMALL, "num_items": 200}), 60, 3, tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=r"answers 300 items that are not the 200 of 'world-.*trained on this log"):
        align_recipe(recipe, tmp_path / "other", out, start=aligned / "align" / "safe")
    later = AlignRecipe.read(write_recipe(tmp_path, SECTION), ['data.split="temporal"'])
    with pytest.raises(InputError, match=r"was trained on other data or another split than .*it may know the answers"):
        align_recipe(later, log, out, start=aligned / "align" / "safe")
    scorer = Recipe.read(ROOT / "recipes" / "any" / "item_knn.toml", ['data.positive="click"'])
    train(scorer, log, tmp_path / "scorer")
    with pytest.raises(InputError, match=r"'item_knn', a scorer: it writes nothing.*align a generator"):
        align_recipe(recipe, log, out, start=tmp_path / "scorer")
    assert not out.exists()


def test_a_reranked_arm_opens_with_its_reward(aligned: Path) -> None:
    serve = ServeConfig(rerank=16, rerank_from="beam", beam=16, cold_share=0.1)
    recommender = Recommender.load(aligned / "align" / "safe", serve=serve)
    reranker, quota = recommender.parts.steps
    assert isinstance(reranker, Reranker)
    assert isinstance(quota, Quota)
    assert (recommender.beam, reranker.num_candidates, quota.share) == (16, 16, 0.1)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({}, r"the recipe has no section \[align\]"),
        ({"methd": "ecpo"}, r"\[align\] has no key 'methd' \(did you mean 'method'\?\)"),
        ({"controls": ["ecpo"]}, r"\[align\] controls names 'ecpo'"),
        ({"arms": {"sft": {}}}, r"\[align.arms.sft\] has the name of a control"),
        ({"arms": {"../x": {}}}, r"\[align.arms.../x\]: no name; allowed: letters"),
        ({"arms": {"a": {"group": 1}}}, r"\[align\] group = 1 is out of range"),
        ({"arms": {"a": {"method": "ppo"}}}, r"\[align\] method = 'ppo' is not known"),
        ({"arms": "a"}, r"\[align\] arms = 'a'"),
    ],
)
def test_what_is_wrong_with_the_section_is_named(section: dict[str, Any], problem: str) -> None:
    sections: dict[str, Any] = {name: {} for name in ("data", "catalog", "fit", "eval", "rewards")}
    sections |= {"model": {"name": "onerec_v2"}, "align": section}
    with pytest.raises(InputError, match=problem):
        AlignRecipe.parse(sections)


def test_a_rule_that_names_an_unknown_field_is_refused_before_any_training_of_arms(log: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, SECTION)
    rule = 'rewards.rules=[{rule = "diversity", field = "creater", weight = 1.0}]'
    arguments = ["align", str(recipe), "--data", str(log), "--out", str(tmp_path / "run"), "--set", rule]
    assert cli.main(arguments) == 2
    assert not (tmp_path / "run" / "align").exists()
