"""A log whose answers lie far back: the newest events that the model reads do not hold them, representatives do.

Early on, every user watches items of one group and nothing else; then come visits of unspecific items, each of which
ends with the one film of the user's group, which is liked. Only likes are asked for.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from sidera.core import InputError, Request
from sidera.data.batches import eval_batches
from sidera.data.config import make_views
from sidera.data.dataset import Dataset
from sidera.data.reading import LogReading
from sidera.data.schema import build_dataset
from sidera.engine.histories import open_behaviour
from sidera.engine.recommender import Recommender
from sidera.engine.serving import Parts
from sidera.train.recipe import Recipe
from sidera.train.stages import prepare, run

GROUPS, PER_GROUP, NOISE = 4, 4, 8
EARLY, VISIT, VISITS, USERS = 24, 10, 6, 48
READ = 8  # newest events that a model reads: the last film is ten back
SECTIONS: dict[str, Any] = {
    "data": {"positive": "like"},
    "catalog": {"vectors": ["tfidf"], "num_levels": 2, "codebook_size": 6, "collision": "greedy", "vector_dim": 8},
    "model": {
        "name": "onerec", "max_history": READ, "short_term": 4, "positive_length": 4, "num_lifelong_queries": 2,
        "lifelong_layers": 1, "width": 32, "encoder_layers": 1, "decoder_layers": 1, "ff_width": 64, "dropout": 0.0,
    },
    "fit": {
        "epochs": 30, "batch_size": 32, "lr": 5e-3, "warmup_steps": 10, "patience": 0, "eval_every_epochs": 30,
        "monitor": "ndcg@10",
    },
    "eval": {"bootstrap": 10, "latency_rows": 2, "free_rows": 2, "samples": 1, "seen": ["keep"], "ks": [1], "beam": 10},
}  # fmt: skip
REPRESENTATIVES = {"lifelong": "representatives", "max_representatives": 16, "lifelong_chunk": 4}


def forgetful_log() -> Dataset:
    rng = np.random.default_rng(0)
    num_specific = GROUPS * PER_GROUP
    items, likes = [], []
    for user in range(USERS):
        group = user % GROUPS
        early = group * PER_GROUP + 1 + rng.integers(0, PER_GROUP - 1, EARLY)  # all but the film
        visits = num_specific + rng.integers(0, NOISE, (VISITS, VISIT))
        visits[:, -1] = group * PER_GROUP
        items.append(np.concatenate([early, visits.ravel()]))
        likes.append(np.isin(items[-1], np.arange(GROUPS) * PER_GROUP))
    each = EARLY + VISITS * VISIT
    names = [f"group {'abcd'[number // PER_GROUP]} title{number}" for number in range(num_specific)]
    names += [f"plain title{number}" for number in range(num_specific, num_specific + NOISE)]
    events = pa.table(
        {
            "user": np.repeat([f"u{user:02d}" for user in range(USERS)], each),
            "item": [f"i{item:02d}" for item in np.concatenate(items)],
            "time": np.tile(1_000_000 + 100 * np.arange(each), USERS),
            "like": np.concatenate(likes),
        }
    )
    table = pa.table({"key": [f"i{number:02d}" for number in range(len(names))], "text": names})
    return build_dataset("forgetful", events, table)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lifelong")
    forgetful_log().save(folder / "data")
    return folder / "data"


def recipe(**model: Any) -> Recipe:
    return Recipe.parse({**SECTIONS, "model": {**SECTIONS["model"], **model}})


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    """A run whose model reads representatives."""
    result = run(recipe(**REPRESENTATIVES), data, data.parent / "run", say=lambda _: None)
    assert result is not None
    assert result.value("recall@1") >= 0.75  # over 20 seeds .92 to 1
    return data.parent / "run"


def test_representatives_hold_what_the_newest_events_do_not(data: Path, trained: Path) -> None:
    blind = run(recipe(), data, data.parent / "blind", say=lambda _: None)
    assert blind is not None
    assert blind.value("recall@1") <= 0.5  # chance: one group of four; over 20 seeds .17 to .35


def test_training_evaluation_and_store_read_the_same(data: Path, trained: Path, tmp_path: Path) -> None:
    recommender = Recommender.load(trained)
    assert recommender.reads.lifelong == recipe(**REPRESENTATIVES).model_config.lifelong_config()
    prepared = prepare(recipe(**REPRESENTATIVES), data, lambda _: None)
    dataset, rows = prepared.dataset, prepared.split.test.take(np.arange(12))
    ((index, batch),) = eval_batches(recommender.read_log(dataset), rows, 10**6, whole=True)
    assert batch.lifelong is not None
    assert int(batch.lifelong.counts.max()) > 1
    # whole histories without representatives: found on the way
    plain = replace(batch, lifelong=None, targets=None)
    assert recommender.reads.lifelong is not None
    again = recommender.reading.cut(plain).lifelong
    for name in ("items", "offsets", "counts", "times"):
        assert torch.equal(getattr(again, name), getattr(batch.lifelong, name))
    expected = recommender.rank(replace(batch, targets=None), 3)
    assert torch.equal(recommender.rank(plain, 3).item_ids, expected.item_ids)
    # a store that was told the whole log, what is asked for included
    with open_behaviour(tmp_path / "store", recommender.catalog) as behaviour:
        assert behaviour.fill(dataset) == dataset.num_events
        recommender.parts = Parts(behaviour=behaviour)
        moments = dataset.times[rows.ends[index]].tolist()
        keys = [str(dataset.user_keys[user]) for user in rows.user_ids[index]]
        asked = [Request(user=key, as_of=moment, k=3) for key, moment in zip(keys, moments, strict=True)]
        from_store = recommender.recommend(asked)
    told = [
        Request(
            tuple(str(key) for key in dataset.item_keys[dataset.item_ids[start:end]]),
            k=3,
            feedback={"like": dataset.feedback["like"][start:end].astype(float).tolist()},
            times=dataset.times[start:end].tolist(),
            as_of=moment,
        )
        for start, end, moment in zip(rows.starts[index], rows.ends[index], moments, strict=True)
    ]
    from_history = recommender.recommend(told)
    for place in range(len(index)):
        for answer in (from_store[place], from_history[place]):
            assert list(answer.item_ids) == expected.item_ids[place].tolist()
            np.testing.assert_allclose(answer.scores, expected.scores[place].tolist(), rtol=1e-4)
            assert not answer.cold_start


def test_a_model_without_them_is_told_what_is_missing(data: Path, trained: Path) -> None:
    recommender = Recommender.load(trained)
    view = make_views(Dataset.load(data), recipe().data)[0]
    reading = recommender.read_log(view.dataset)
    assert reading is recommender.read_log(view.dataset)  # long histories are clustered once
    bare = LogReading(replace(reading.reading, representatives=None), view.dataset)
    ((_, batch),) = eval_batches(bare, view.split.test, 10**6)
    with pytest.raises(InputError, match="no representatives"):
        recommender.model.context(batch)
    event = np.array([1]), np.array([0, 1])
    empty = recommender.reading.batch(*event, feedback={"like": np.zeros(1, np.float32)}, whole=True)
    assert recommender.rank(empty, 3).item_ids.shape == (1, 3)
