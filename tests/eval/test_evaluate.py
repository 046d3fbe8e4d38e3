from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ring_world import fake, make_dataset

from sidera import artifacts
from sidera.config import parse_section
from sidera.core import ArtifactError, InputError
from sidera.data.dataset import Dataset
from sidera.data.split import EvalRows, Split, leave_one_out, temporal
from sidera.eval import ranking
from sidera.eval.config import EvalConfig
from sidera.eval.evaluate import evaluate, quick_metrics
from sidera.eval.evaluation import load_evaluation, save_evaluation
from sidera.eval.ranking import check_items
from sidera.ops.threads import Choice

CONFIG = EvalConfig(ks=(2, 10, 20), beam=16, wide_beam=24, batch_size=7, bootstrap=50, latency_rows=4, free_rows=9)


def test_every_row_equals_its_own_slow_ranking(dataset: Dataset, split: Split) -> None:
    """Lists, ranks and means from the score table, one user at a time, in both modes."""
    recommender = fake(dataset, hint=0.3)
    found = evaluate(recommender, dataset, split, "test", CONFIG)
    for seen in ("keep", "filter"):
        places = []
        for user, start, end, target in zip(
            split.test.user_ids, split.test.starts, split.test.ends, split.test.target_ids, strict=True
        ):
            scores = recommender.table[user].copy()
            if seen == "filter":
                scores[dataset.item_ids[start:end]] = -np.inf
            ahead = int((scores > scores[target]).sum())
            served = np.isfinite(scores[target]) and ahead < 20
            places.append(ahead + 1 if served else 0)
        expected = np.array(places)
        assert found.ranks[f"rank_{seen}_20"].to_pylist() == expected.tolist()
        assert found.ranks[f"rank_{seen}_10"].to_pylist() == np.where(expected <= 10, expected, 0).tolist()
        assert found.value("recall@10", seen) == pytest.approx(((expected > 0) & (expected <= 10)).mean())
        assert found.value("mrr@20", seen) == pytest.approx(np.mean([1 / p if p else 0 for p in places]))
    assert found.value("recall@10", "keep") != found.value("recall@10", "filter")


@pytest.mark.parametrize(("many", "faster"), [(1, 1), (1, 2), (1000, 1)])
def test_threads_are_timed_where_there_are_many_batches(
    many: int, faster: int, dataset: Dataset, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures are those of an evaluation that was told its threads, and the process has its own again."""
    told = evaluate(fake(dataset, hint=0.3), dataset, split, "test", CONFIG)
    before, used = torch.get_num_threads(), list[int]()
    monkeypatch.setattr(ranking, "MANY_BATCHES", many)
    monkeypatch.setattr(ranking, "usable_threads", lambda: 2)

    def choose(call: Any, limit: int, rounds: int) -> Choice:
        for number in range(rounds + 1):
            call(number)
        return Choice(faster, limit, {1: 0.02, 2: 0.02 / faster})

    monkeypatch.setattr(ranking, "choose_threads", choose)
    recommender = fake(dataset, hint=0.3)
    rank = recommender.rank
    monkeypatch.setattr(recommender, "rank", lambda *a, **k: (used.append(torch.get_num_threads()), rank(*a, **k))[1])
    found = evaluate(recommender, dataset, split, "test", CONFIG)
    assert found.ranks.equals(told.ranks)
    assert torch.get_num_threads() == before
    timed = "(1 thread" in found.latency["ranking"]
    assert timed == (many == 1)
    assert found.latency["ranking"].startswith(f"threads: {faster} of 2")
    assert max(used) == max(faster, before)
    assert found.latency["threads"] == used[-1] == 1  # single requests are timed as the server answers them


def test_the_recommender_never_sees_a_target(dataset: Dataset, split: Split) -> None:
    recommender = fake(dataset)
    evaluate(recommender, dataset, split, "valid", CONFIG)
    quick_metrics(recommender, dataset, split.valid)
    assert recommender.calls
    assert all(call["targets"] is None for call in recommender.calls)


def test_filter_drops_events_that_the_model_is_too_short_to_read(dataset: Dataset, split: Split) -> None:
    recommender = fake(dataset)
    recommender.max_history = 1
    found = evaluate(recommender, dataset, split, "test", replace(CONFIG, ks=(39,), wide_beam=39, seen=("filter",)))
    seen_before = np.array(
        [
            target in dataset.item_ids[s:e]
            for s, e, target in zip(split.test.starts, split.test.ends, split.test.target_ids, strict=True)
        ]
    )
    assert seen_before.any()
    assert (found.ranks["rank_filter_39"].to_numpy()[seen_before] == 0).all()


def test_generators_get_their_beams_and_shared_ids_their_expectation(dataset: Dataset, split: Split) -> None:
    recommender = fake(dataset, kind="generator", share=3, hint=1.0)
    found = evaluate(recommender, dataset, split, "test", CONFIG, name="tiny")
    assert {(call["k"], call["beam"]) for call in recommender.calls} == {(10, 16), (20, 24)}
    assert found.protocol["lists"] == [{"ks": [2, 10], "beam": 16}, {"ks": [20], "beam": 24}]
    ranks = found.target_ranks("keep", 20)
    assert set(ranks.tie_size[ranks.rank > 0]) <= {1, 2, 3}
    assert (ranks.tie_size == 3).sum() > 30
    assert (ranks.tie_start <= ranks.rank).all() or (ranks.rank[ranks.tie_start > ranks.rank] == 0).all()
    tied = found.value("expected_recall@2") - found.value("recall@2")
    assert abs(tied) > 1e-6  # the served order inside an ID is one of several, and the twin metric says so
    assert found.legality == pytest.approx({"rows": 9, "legal@1": 1.0, "legal@10": 0.8, "legal@16": 0.75})


def test_tie_sizes_count_what_could_have_been_served(dataset: Dataset, split: Split) -> None:
    """Removed items and, in mode filter, items of the history do not share the ID any more."""
    recommender = fake(dataset, kind="generator", share=3, removed=(0,))
    found = evaluate(recommender, dataset, split, "test", CONFIG)
    for seen in ("keep", "filter"):
        for row, size in enumerate(found.target_ranks(seen, 10).tie_size.tolist()):
            target = int(split.test.target_ids[row])
            same = {item for item in range(dataset.num_items) if item // 3 == target // 3} - {0}
            if seen == "filter":
                same -= set(dataset.item_ids[split.test.starts[row] : split.test.ends[row]].tolist())
            assert size == (len(same) if target in same else 0)


def test_lists_longer_than_the_catalogue_are_padded(split: Split, dataset: Dataset) -> None:
    found = evaluate(fake(dataset), dataset, split, "test", replace(CONFIG, ks=(10, 100), wide_beam=100))
    assert found.value("recall@100", "keep") == 1
    assert 0 < found.value("mrr@100", "keep") < 1
    assert found.lists["keep"]["coverage@10"] == 1


def test_slices_add_up_to_the_whole(dataset: Dataset, split: Split) -> None:
    found = evaluate(fake(dataset), dataset, split, "test", CONFIG)
    for kind in ("popularity", "history"):
        parts = found.slices["keep"][kind].values()
        assert sum(part.rows for part in parts) == len(split.test)
        total = sum(part.rows * part.metrics["recall@10"].value for part in parts)
        assert total / len(split.test) == pytest.approx(found.value("recall@10"))


def test_cold_targets_have_their_own_slice() -> None:
    dataset = make_dataset()
    item_ids = dataset.item_ids.copy()
    item_ids[dataset.offsets[1] - 1] = dataset.num_items - 1  # only ever the test target of user 0
    dataset = replace(dataset, item_ids=item_ids)
    found = evaluate(fake(dataset), dataset, leave_one_out(dataset), "test", CONFIG)
    assert found.slices["keep"]["popularity"]["cold"].rows >= 1


def test_a_sample_is_seeded_and_said(dataset: Dataset, split: Split) -> None:
    sampled = replace(CONFIG, max_rows=11, seed=4)
    first, again = (evaluate(fake(dataset), dataset, split, "test", sampled) for _ in range(2))
    other = evaluate(fake(dataset), dataset, split, "test", replace(sampled, seed=5))
    assert (first.protocol["rows"], first.protocol["rows_in_split"]) == (11, 60)
    assert first.ranks.equals(again.ranks)
    assert first.metrics == again.metrics
    assert first.protocol["row_digest"] != other.protocol["row_digest"]


def test_zero_rows_are_refused(dataset: Dataset, split: Split) -> None:
    none = EvalRows(*(np.zeros(0, dtype=np.int64) for _ in range(4)))
    with pytest.raises(InputError, match="no rows to evaluate"):
        evaluate(fake(dataset), dataset, replace(split, test=none), "test", CONFIG)
    with pytest.raises(InputError, match="no rows to evaluate"):
        quick_metrics(fake(dataset), dataset, none)


def test_a_foreign_catalogue_is_refused_by_the_first_item_that_differs(dataset: Dataset) -> None:
    catalog = fake(dataset).catalog
    keys = catalog.item_keys.copy()
    keys[3] = "zz"
    catalog.item_keys = keys
    with pytest.raises(InputError, match=r"'zz' as item 3.*'i03'"):
        check_items(catalog, dataset)
    catalog.item_keys = dataset.item_keys[:5].astype(str)
    with pytest.raises(InputError, match=r"nothing as item 5.*'i05'"):
        check_items(catalog, dataset)
    catalog.item_keys = np.concatenate([dataset.item_keys.astype(str), ["new"]])  # items that came later are welcome
    check_items(catalog, dataset)


def test_quick_metrics_are_those_of_evaluate(dataset: Dataset, split: Split) -> None:
    recommender = fake(dataset, hint=0.2)
    quick = quick_metrics(recommender, dataset, split.valid, batch_size=9)
    full = evaluate(recommender, dataset, split, "valid", CONFIG)
    for name in ("ndcg@10", "recall@10"):
        assert quick[name] == pytest.approx(full.value(name, "keep"))
        assert quick[f"filter_{name}"] == pytest.approx(full.value(name, "filter"))
    assert quick_metrics(recommender.rank, dataset, split.valid) == pytest.approx(quick)
    assert set(quick_metrics(recommender, dataset, split.valid, filter_too=False)) == {"ndcg@10", "recall@10"}


def test_a_temporal_split_has_several_rows_of_a_user(dataset: Dataset) -> None:
    split = temporal(dataset, valid_share=0.2, test_share=0.3)
    found = evaluate(fake(dataset, hint=0.3), dataset, split, "test", CONFIG)
    assert found.protocol["split"] == "temporal"
    assert len(np.unique(found.user_numbers)) < len(found.ranks) == len(split.test)


def test_nothing_heavy_is_needed_to_measure() -> None:
    """A bare training machine has torch, numpy, pyarrow and safetensors only."""
    code = (
        "import sys\n"
        "for name in ('matplotlib', 'sklearn', 'scipy', 'fastapi', 'tensorboard', 'sentence_transformers'):\n"
        "    sys.modules[name] = None\n"
        "import sidera.eval.evaluate, sidera.eval.compare, sidera.pages.run\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_progress_reaches_the_end(dataset: Dataset, split: Split) -> None:
    said: list[tuple[int, int]] = []
    evaluate(fake(dataset, kind="generator"), dataset, split, "test", CONFIG, progress=lambda *at: said.append(at))
    assert said[-1] == (240, 240)  # 60 rows, 2 modes, 2 lists


def test_saved_and_loaded_is_the_same(dataset: Dataset, split: Split, tmp_path: Path) -> None:
    found = evaluate(fake(dataset), dataset, split, "test", CONFIG, name="random", info={"seed": 3})
    save_evaluation(found, tmp_path / "e", digest="d1", parents={"model": "m1"})
    loaded = load_evaluation(tmp_path / "e")
    assert loaded.ranks.equals(found.ranks)
    assert loaded.summary() == found.summary()
    assert artifacts.is_current(tmp_path / "e", "evaluation", "d1")
    assert json.loads((tmp_path / "e" / "manifest.json").read_text())["parents"] == {"model": "m1"}
    (tmp_path / "e" / "metrics.json").write_text("{}")
    with pytest.raises(ArtifactError, match="truncated or was edited"):
        load_evaluation(tmp_path / "e")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ks": []}, "ks = "),
        ({"ks": [10, 5]}, "ascending"),
        ({"ks": [0]}, "1 or more"),
        ({"seen": []}, '"keep", "filter" or both'),
        ({"seen": ["skip"]}, "'skip'"),
        ({"beam": 8}, "beam = 8 cannot fill a list of 10"),
        ({"wide_beam": 20}, "wide_beam = 20 cannot fill a list of 50"),
        ({"max_rows": 0}, "max_rows = 0"),
        ({"valid_rows": 0}, "valid_rows = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"free_rows": -1}, "free_rows = -1"),
        ({"beams": 3}, "did you mean 'beam'"),
    ],
)
def test_a_wrong_eval_section_is_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_section(EvalConfig, values, "[eval]")


def test_a_recipe_can_name_the_modes() -> None:
    config = parse_section(EvalConfig, {"seen": ["filter"], "ks": [5]}, "[eval]")
    assert (config.seen, config.main_k, config.lists) == (("filter",), 5, (((5,), 50),))
