"""The engine writes its exposures: probabilities as a rollout would record them, gathered, and never lost."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from align.tiny_world import tiny
from sidera.batch import Batch
from sidera.core import InputError, Request
from sidera.engine.exposures import ExposureWriter, exposure_columns
from sidera.engine.histories import KnownHistory
from sidera.engine.recommender import Recommender
from sidera.engine.reranker import Reranker
from sidera.models.rankers.pscore import PScore
from sidera.store.exposures import ExposureLog


def recommender() -> Recommender:
    world = tiny()
    return Recommender(
        world.pretrained, world.catalog, model_section=world.recommender.model_section, beam=64, version="one"
    )


def columns_of(
    one: Recommender, batch: Batch, item_ids: torch.Tensor, weights: str = "one", items_version: int | None = None
) -> dict[str, list[Any]]:
    names = [f"r{row}" for row in range(len(item_ids))]
    users = [f"u{row}" for row in range(len(item_ids))]
    version = one.catalog.items_version if items_version is None else items_version
    return exposure_columns(
        one, batch, item_ids, requests=names, users=users, times=[5] * len(names), weights=weights, policy="p+q",
        items_version=version,
    )  # fmt: skip


def rows(request: str = "r", count: int = 2, **more: Any) -> dict[str, list[Any]]:
    columns = {"request": request, "user": "ann", "item": "cup", "time": 7, "policy": "p", "items_version": 0, **more}
    return {name: [value] * count for name, value in columns.items()} | {"slot": list(range(count))}


def open_log(path: Path) -> ExposureLog:
    return ExposureLog.open(path, codebook_id="abc", num_levels=2)


def test_probabilities_are_those_of_a_rollout() -> None:
    one, batch = recommender(), tiny().probe(64).batches[0]
    rollout = one.rollout(batch, 6, "beam")
    item_ids = rollout.item_ids.clone()
    item_ids[0, 2] = -1  # an empty slot
    found = columns_of(one, batch, item_ids)
    kept = item_ids >= 0
    assert len(found["request"]) == int(kept.sum()) == item_ids.numel() - 1
    assert found["slot"][:6] == [0, 1, 3, 4, 5, 0]
    assert found["request"][4:6] == ["r0", "r1"]
    expected = rollout.log_probs[kept]
    logged = torch.tensor([found[f"log_prob_{level}"] for level in range(3)]).T
    torch.testing.assert_close(logged, expected, rtol=1e-4, atol=1e-4)
    assert found["item"][0] == str(one.catalog.item_keys[item_ids[0, 0]])


def test_weights_that_did_not_answer_say_nothing() -> None:
    one, batch = recommender(), tiny().probe(64).batches[0]
    item_ids = one.rank(batch, 3).item_ids
    assert set(columns_of(one, batch, item_ids, weights="older")["log_prob_0"]) == {None}
    assert None not in columns_of(one, batch, item_ids)["log_prob_0"]
    assert set(columns_of(one, batch, item_ids, items_version=7)["log_prob_0"]) == {None}


@pytest.mark.parametrize("reranked", [False, True])
def test_a_version_may_hold_a_plus(tmp_path: Path, reranked: bool) -> None:
    """Nobody takes the name of a policy apart: "2026-11+hotfix" names weights, and "2+b" a reranker."""
    one = recommender()
    one.version, schema, times = "2026-11+hotfix", one.catalog.schema, np.arange(3)
    history = KnownHistory(np.array([1, 2, 3]), times, schema.complete({}, 3), None)
    one.behaviour = SimpleNamespace(read=lambda *_, **__: history)  # type: ignore[assignment]
    if reranked:
        network = PScore(PScore.Config(width=8, hidden=8), one.catalog).eval()
        one.reranker = Reranker(network, "2+b", num_candidates=8)
    log = ExposureLog.open(tmp_path, codebook_id=one.catalog.codebook_id, num_levels=3)
    with ExposureWriter(log) as writer:
        one.exposures = writer
        (answer,) = one.recommend([Request(user="ann", k=3)])
    table = log.read()
    assert table.num_rows == len(answer.item_ids) == 3
    assert set(table["policy"].to_pylist()) == {answer.policy_version}
    assert answer.policy_version == ("2026-11+hotfix+2+b" if reranked else "2026-11+hotfix")
    assert table["log_prob_0"].null_count == 0


def test_an_item_out_of_reach_has_no_probability(tmp_path: Path) -> None:
    one, batch = recommender(), tiny().probe(64).batches[0].rows(torch.tensor([0]))
    one.catalog = one.catalog.without([str(one.catalog.item_keys[3])])
    found = columns_of(one, batch, torch.tensor([[3, 4]]))
    assert found["log_prob_2"][0] is None
    assert found["log_prob_2"][1] <= 0
    log = ExposureLog.open(tmp_path, codebook_id=one.catalog.codebook_id, num_levels=3)
    assert log.append(found) == 2


def test_parts_are_gathered_and_outcomes_follow_their_exposures(tmp_path: Path) -> None:
    with ExposureWriter(open_log(tmp_path / "log"), max_rows=5, max_seconds=600) as writer:
        writer.shown(rows("r0"))
        writer.follow({"request": ["r0"], "slot": [1], "click": [True]})
        assert writer.num_waiting == 3
        assert writer.log.read().num_rows == 0
        writer.shown(rows("r1"))
        assert writer.num_waiting == 0
        assert writer.log.read()["click"].to_pylist() == [None, True, None, None]
        writer.shown(rows("r2"))
    assert len(list((tmp_path / "log").glob("shown-*.parquet"))) == 2
    assert open_log(tmp_path / "log").read().num_rows == 6


def test_marks_and_numbers_of_one_outcome_meet(tmp_path: Path) -> None:
    with ExposureWriter(open_log(tmp_path / "log")) as writer:
        writer.shown(rows(count=3))
        writer.follow({"request": ["r"], "slot": [0], "click": [True]})
        writer.follow({"request": ["r"], "slot": [1], "click": [0.5]})
        writer.flush()
        writer.follow({"request": ["r"], "slot": [2], "click": [1]})
    assert open_log(tmp_path / "log").read()["click"].to_pylist() == [1.0, 0.5, 1.0]


def test_an_idle_writer_writes_after_a_while(tmp_path: Path) -> None:
    with ExposureWriter(open_log(tmp_path / "log"), max_seconds=0.1) as writer:
        writer.shown(rows())
        deadline = time.monotonic() + 120
        while writer.num_waiting and time.monotonic() < deadline:
            time.sleep(0.02)
        assert writer.log.read().num_rows == 2


def test_what_the_log_refuses_is_not_taken(tmp_path: Path) -> None:
    with ExposureWriter(open_log(tmp_path / "log")) as writer:
        with pytest.raises(InputError, match="propensity 2"):
            writer.shown(rows(propensity=2.0))
        with pytest.raises(InputError, match="outcomes lack the column 'slot'"):
            writer.follow({"request": ["r"]})
        assert writer.num_waiting == 0


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ExposureWriter(open_log(tmp_path / "log"), max_rows=2, max_seconds=600)

    def full(kind: str, table: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(writer.log, "_write", full)
        writer.shown(rows("r0"))  # an answer goes out all the same
        assert "No space left" in writer.problem
        with pytest.raises(OSError, match="No space left"):
            writer.follow({"request": ["r0"], "slot": [0], "click": [True]})
        with pytest.raises(OSError, match="No space left"):
            writer.flush()
    assert writer.num_waiting == 2  # who was told of the failure sends it again
    writer.follow({"request": ["r0"], "slot": [0], "click": [True]})
    writer.close()
    assert (writer.problem, writer.num_waiting) == ("", 0)
    assert writer.log.read()["click"].to_pylist() == [True, None]
