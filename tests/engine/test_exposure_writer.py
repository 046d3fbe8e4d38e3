"""The engine writes its exposures: probabilities as a rollout would record them, gathered, and never lost."""

from __future__ import annotations

import copy
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "align"))
from tiny_world import tiny

from sidera.batch import Batch
from sidera.core import InputError, Request
from sidera.engine.exposures import ExposureWriter, Retention, exposure_columns
from sidera.engine.histories import KnownHistory
from sidera.engine.pipeline import Query, log_probs_of
from sidera.engine.recommender import Recommender
from sidera.engine.reranker import Reranker
from sidera.engine.serving import Parts
from sidera.models.rankers.pscore import PScore
from sidera.store.exposures import ExposureLog


def recommender(version: str = "one", parts: Parts | None = None) -> Recommender:
    world = tiny()
    return Recommender(
        world.pretrained, world.catalog, model_section=world.recommender.model_section, beam=64, version=version,
        parts=parts,
    )  # fmt: skip


def columns_of(one: Recommender, batch: Batch, item_ids: torch.Tensor) -> dict[str, Any]:
    names = [f"r{row}" for row in range(len(item_ids))]
    users = [f"u{row}" for row in range(len(item_ids))]
    with torch.inference_mode():
        log_probs = log_probs_of(Query(one.snapshot, batch, item_ids.shape[1]), item_ids)
    policies = ["p+q"] * len(names)
    return exposure_columns(
        one.catalog, item_ids, log_probs, requests=names, users=users, times=[5] * len(names), policies=policies
    )


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
    assert found["slot"][:6].tolist() == [0, 1, 3, 4, 5, 0]
    assert found["request"][4:6] == ["r0", "r1"]
    expected = rollout.log_probs[kept]
    logged = torch.tensor([found[f"log_prob_{level}"].to_pylist() for level in range(3)]).T
    torch.testing.assert_close(logged, expected, rtol=1e-4, atol=1e-4)
    assert found["item"][0] == str(one.catalog.item_keys[item_ids[0, 0]])


def test_an_answer_is_encoded_once_and_signed_by_its_own_snapshot(tmp_path: Path) -> None:
    """Weights and catalogue that are swapped while an answer is on its way change nothing of what it logs."""
    catalog, model = tiny().catalog, copy.deepcopy(tiny().pretrained)
    history = KnownHistory(np.array([1, 2, 3]), np.arange(3), catalog.schema.complete({}, 3), None)
    store: Any = SimpleNamespace(read=lambda *_, **__: history, over=lambda _: store)
    other = {name: 0.5 * tensor for name, tensor in model.state_dict().items()}
    encoded: list[threading.Thread] = []
    context = model.context

    def swapped(batch: Batch) -> Any:
        one.use_catalog(catalog.without([str(catalog.item_keys[9])]))
        encoded.append(threading.Thread(target=one.load_weights, args=(other, "two")))
        encoded[-1].start()
        return context(batch)

    tables = []
    for change in (False, True):
        log = ExposureLog.open(tmp_path / str(change), codebook_id=catalog.codebook_id, num_levels=3)
        with ExposureWriter(log) as writer:
            section, parts = tiny().recommender.model_section, Parts(behaviour=store, exposures=writer)
            one = Recommender(model, catalog, model_section=section, beam=64, version="one", parts=parts)
            model.context = swapped if change else context
            (answer,) = one.recommend([Request(user="ann", k=3)])
        assert (answer.policy_version, answer.items_version) == ("one", catalog.items_version)
        tables.append(log.read().drop(["request", "time"]))
    (thread,) = encoded  # the history was encoded once, for the search and for the log
    thread.join()
    assert (one.version, one.catalog.items_version) == ("two", catalog.items_version + 1)
    assert tables[0].equals(tables[1])
    assert tables[0]["log_prob_2"].null_count == 0


@pytest.mark.parametrize("reranked", [False, True])
def test_a_version_may_hold_a_plus(tmp_path: Path, reranked: bool) -> None:
    """Nobody takes the name of a policy apart: "2026-11+hotfix" names weights, and "2+b" a reranker."""
    schema, steps = tiny().catalog.schema, ()
    history = KnownHistory(np.array([1, 2, 3]), np.arange(3), schema.complete({}, 3), None)
    store: Any = SimpleNamespace(read=lambda *_, **__: history)
    if reranked:
        network = PScore(PScore.Config(width=8, hidden=8), tiny().catalog).eval()
        steps = (Reranker(network, "2+b", num_candidates=8),)
    log = ExposureLog.open(tmp_path, codebook_id=tiny().catalog.codebook_id, num_levels=3)
    with ExposureWriter(log) as writer:
        one = recommender("2026-11+hotfix", Parts(steps, store, writer))
        (answer,) = one.recommend([Request(user="ann", k=3)])
    table = log.read()
    assert table.num_rows == len(answer.item_ids) == 3
    assert set(table["policy"].to_pylist()) == {"2026-11+hotfix+2+b" if reranked else "2026-11+hotfix"}
    assert (answer.policy_version, answer.reranker_version) == ("2026-11+hotfix", "2+b" if reranked else "")
    assert table["log_prob_0"].null_count == 0


def test_an_item_out_of_reach_has_no_probability(tmp_path: Path) -> None:
    one, batch = recommender(), tiny().probe(64).batches[0].rows(torch.tensor([0]))
    one.use_catalog(one.catalog.without([str(one.catalog.item_keys[3])]))
    found = columns_of(one, batch, torch.tensor([[3, 4]]))
    assert not found["log_prob_2"][0].is_valid
    assert found["log_prob_2"][1].as_py() <= 0
    log = ExposureLog.open(tmp_path, codebook_id=one.catalog.codebook_id, num_levels=3)
    assert log.append(found) == 2


def test_an_exposure_is_durable_before_its_answer_leaves(tmp_path: Path) -> None:
    """What a process finds that starts after this one was killed, at any moment after an answer."""
    with ExposureWriter(open_log(tmp_path / "log")) as writer:
        writer.shown(rows("r0"))
        shutil.copytree(tmp_path / "log", tmp_path / "one")
        writer.follow({"request": ["r0"], "slot": [1], "click": [True]})
        shutil.copytree(tmp_path / "log", tmp_path / "two")
    assert open_log(tmp_path / "one").read().num_rows == 2
    assert open_log(tmp_path / "two").read()["click"].to_pylist() == [None, True]


def test_many_writes_are_compacted_while_others_come(tmp_path: Path) -> None:
    with ExposureWriter(open_log(tmp_path / "log"), max_parts=8) as writer:

        def work(name: int) -> None:
            for number in range(40):
                writer.shown(rows(f"r{name}-{number}"))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))  # raises what a thread raised
        writer.follow({"request": ["r0-0"], "slot": [0], "click": [True]})
    log = open_log(tmp_path / "log")
    requests = log.read()["request"].to_pylist()
    assert sorted(requests[::2]) == sorted(f"r{name}-{number}" for name in range(4) for number in range(40))
    assert len(log._parts.tables("shown")) == 1
    assert writer.problem == ""


def test_marks_and_numbers_of_one_outcome_meet(tmp_path: Path) -> None:
    with ExposureWriter(open_log(tmp_path / "log")) as writer:
        writer.shown(rows(count=3))
        writer.follow({"request": ["r"], "slot": [0], "click": [True]})
        writer.follow({"request": ["r"], "slot": [1], "click": [0.5]})
        writer.follow({"request": ["r"], "slot": [2], "click": [1]})
    assert open_log(tmp_path / "log").read()["click"].to_pylist() == [1.0, 0.5, 1.0]


def test_what_the_log_refuses_is_not_taken(tmp_path: Path) -> None:
    with ExposureWriter(open_log(tmp_path / "log")) as writer:
        with pytest.raises(InputError, match="propensity 2"):
            writer.shown(rows(propensity=2.0))
        with pytest.raises(InputError, match="outcomes lack the column 'slot'"):
            writer.follow({"request": ["r"]})
    assert open_log(tmp_path / "log").read().num_rows == 0


def test_a_full_disk_lets_no_answer_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExposureWriter(open_log(tmp_path / "log")) as writer:
        database: Any = writer.log._parts._held

        def full(calls: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as broken:
            broken.setattr(database, "_transaction", full)
            with pytest.raises(OSError, match="No space left"):
                writer.shown(rows("r0"))
            with pytest.raises(OSError, match="No space left"):
                writer.follow({"request": ["r0"], "slot": [0], "click": [True]})
            assert "No space left" in writer.problem
        writer.shown(rows("r1"))
        assert writer.problem == ""
    assert open_log(tmp_path / "log").read()["request"].to_pylist() == ["r1", "r1"]


def test_old_exposures_go_while_the_log_is_written(tmp_path: Path) -> None:
    """Once an hour; a log without a limit keeps everything."""
    now = [100 * 86_400.0]
    for days, left in ((0.0, {5, 9_000_000}), (30.0, {9_000_000})):
        log = open_log(tmp_path / f"log-{days:g}")
        with ExposureWriter(log, max_parts=2, retention=Retention(days), now=lambda: now[0]) as writer:
            writer.shown(rows("old", time=5))
            writer.shown(rows("new", time=9_000_000))
        assert set(open_log(tmp_path / f"log-{days:g}").read()["time"].to_pylist()) == left
    with pytest.raises(InputError, match="the log is to keep -1 days"):
        Retention(-1)
