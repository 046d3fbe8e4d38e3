"""Measure a ranker or a list reward on everything that was shown in a part of the split; kept as an artifact.

Requests of the validation (test) part are asked as they were: the history ends where the request begins, the
candidates are what it showed. Nothing of the part was trained on (``data.split.window``), and outcomes of a session
are known as far as the part reaches (``data.outcomes``).

``metrics.json`` has the figures of every task, ``judgements.parquet`` every prediction with what came of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sidera import artifacts
from sidera.batch import Batch
from sidera.core import InputError
from sidera.data.batches import request_starts
from sidera.data.config import View
from sidera.data.split import window
from sidera.engine.ranking import Ranking
from sidera.eval.bootstrap import Estimate
from sidera.eval.config import EvalConfig
from sidera.eval.metrics import auc
from sidera.eval.ranker_metrics import Bin, Judgements, reliability, task_metrics
from sidera.loading import open_artifact
from sidera.ops.jagged import Jagged

KIND = "ranker-evaluation"
FILE, TABLE = "metrics.json", "judgements.parquet"
ESTIMATE = ("value", "low", "high")


@dataclass(frozen=True)
class RankerEvaluation:
    """Figures by task, and the judgements that they come from."""

    name: str  # of the model, for tables
    protocol: dict[str, Any]
    metrics: dict[str, dict[str, Estimate]]  # task, or "MAIN:TASK" -> metric -> estimate
    reliability: dict[str, list[Bin]]  # task -> tenths of its judgements by prediction
    judgements: pa.Table  # user, request, and of each task "said TASK" and, where it has a label, "came TASK"
    info: dict[str, Any] = field(default_factory=dict)  # seeds of training, minutes, ...

    def save(self, path: str | Path, *, digest: str, parents: Mapping[str, str] | None = None) -> None:
        record = {key: getattr(self, key) for key in ("name", "protocol", "metrics", "reliability", "info")}
        info = {"name": self.name, "which": self.protocol["which"], "rows": self.judgements.num_rows}
        manifest = artifacts.Manifest(KIND, digest, parents=dict(parents or {}), info=info)
        with artifacts.writing(path, manifest) as folder:
            (folder / FILE).write_text(json.dumps(record, indent=1, default=asdict) + "\n", encoding="utf-8")
            pq.write_table(self.judgements, folder / TABLE, compression="zstd")

    @classmethod
    def load(cls, path: str | Path) -> RankerEvaluation:
        opened = open_artifact(path, KIND)
        with opened.believed():
            record = opened.json(FILE, dict)
            metrics = {
                task: {name: Estimate(*(float(one[key]) for key in ESTIMATE)) for name, one in part.items()}
                for task, part in record["metrics"].items()
            }
            bins = {task: [Bin(**one) for one in part] for task, part in record["reliability"].items()}
            table = opened.table(TABLE, opened.info("rows", int))
            return cls(record["name"], record["protocol"], metrics, bins, table, record["info"])


def evaluate_ranker(
    ranking: Ranking,
    view: View,
    which: Literal["valid", "test"] = "test",
    config: EvalConfig | None = None,
    *,
    name: str = "",
    info: dict[str, Any] | None = None,
) -> RankerEvaluation:
    """Every task's figures on the exposures of a part; ``[eval] max_rows`` limits the requests."""
    config = config or EvalConfig()
    batches = list(part_batches(ranking, view, which, config.batch_size, config.max_rows, config.seed))
    return evaluation_of(ranking, view, batches, which, config, name=name, info=info)


def part_batches(
    ranking: Ranking, view: View, which: Literal["valid", "test"], batch_size: int, max_rows: int | None, seed: int
) -> Iterator[Batch]:
    """The requests of a part, or a seeded sample of ``max_rows`` of them, as the network's own feed makes them."""
    dataset = view.dataset
    split, mask = window(dataset, view.split, which)
    if max_rows is not None:
        begins = request_starts(dataset)
        requests = np.unique(begins[mask])
        if max_rows < len(requests):
            chosen = np.random.default_rng(seed).choice(requests, max_rows, replace=False)
            mask = mask & np.isin(begins, chosen)
    if not mask.any():
        raise InputError(f"the split left no {which} exposures", fix="use a longer log")
    source = ranking.model.feed(ranking.read_log(dataset), split, batch_size, seed, target_mask=mask)
    yield from source.batches(0)


def evaluation_of(
    ranking: Ranking,
    view: View,
    batches: Iterable[Batch],
    which: str,
    config: EvalConfig,
    *,
    name: str = "",
    info: dict[str, Any] | None = None,
) -> RankerEvaluation:
    """The figures of these batches. ``which`` names the part that they are of."""
    clock = time.process_time()
    found = judged(ranking, batches)
    seconds = time.process_time() - clock
    protocol = {
        "dataset": view.dataset.name,
        "dataset_digest": view.dataset.source_digest,
        "split": view.split.name,
        "which": which,
        "role": ranking.role,
        "rows": len(found),
        "requests": len(np.unique(found.request_ids)),
        "users": len(np.unique(found.user_ids)),
        "max_history": ranking.model.reads.max_events,
        "codebook_id": ranking.catalog.codebook_id,
        "items_version": ranking.catalog.items_version,
        "seed": config.seed,
        "bootstrap": config.bootstrap,
        "rows_per_cpu_s": round(len(found) / max(seconds, 1e-9), 1),
    }
    columns: dict[str, Any] = {
        "user": pa.array(view.dataset.user_keys[found.user_ids], type=pa.string()),
        "request": pa.array(found.request_ids),
    }
    columns |= {f"said {task}": pa.array(found.predicted[:, place]) for place, task in enumerate(found.tasks)}
    columns |= {f"came {task}": pa.array(values) for task, values in found.labels.items()}
    return RankerEvaluation(
        name=name or type(ranking.model).__name__,
        protocol=protocol,
        metrics=task_metrics(found, resamples=config.bootstrap, seed=config.seed),
        reliability={
            task: reliability(found.predicted[:, found.tasks.index(task)], values)
            for task, values in found.labels.items()
        },
        judgements=pa.table(columns),
        info=dict(info or {}),
    )


@torch.inference_mode()
def judged(ranking: Ranking, batches: Iterable[Batch]) -> Judgements:
    """What the network says of everything that the batches show, and what came of it."""
    model = ranking.model
    training = model.training
    model.eval()
    said, users, requests, count = [], [], [], 0
    came: dict[str, list[Tensor]] = {}
    for batch in batches:
        moved = batch.to(ranking.device)
        shown, mask = Jagged(moved.target_ids, moved.targets_of("exposure").offsets).pad()  # (B, C)
        rows = torch.arange(len(shown), device=shown.device)
        if ranking.role == "reward":  # each request's list is one thing that was shown
            scores = model.score(model.context(moved), shown.masked_fill(~mask, -1)[:, None])[:, 0]
        else:
            scores = model.score(model.context(moved), shown)[mask]
            rows = rows[:, None].expand_as(mask)[mask]
        said.append(scores.double().cpu())
        assert batch.requests.user_ids is not None
        users.append(batch.requests.user_ids[rows.cpu()])
        requests.append(rows.cpu() + count)
        count += batch.num_histories
        for task, values in model.labels(moved).items():
            came.setdefault(task, []).append(values.double().cpu())
    model.train(training)
    if not said:
        raise InputError("no exposures to measure on", fix="check the split: it left none")
    labels = {task: torch.cat(parts).numpy() for task, parts in came.items()}
    predicted, user_ids, request_ids = (torch.cat(parts).numpy() for parts in (said, users, requests))
    return Judgements(tuple(model.tasks), predicted, labels, user_ids, request_ids)


def quick_figures(ranking: Ranking, batches: Iterable[Batch]) -> dict[str, float]:
    """For validation during training: ``valid_loss``, the main task's mean loss where the model says it, else all of
    the loss; and ``auc_TASK`` of every task."""
    batches, model = list(batches), ranking.model
    training = model.training
    model.eval()
    with torch.inference_mode():
        losses = [model.loss(batch.to(ranking.device)) for batch in batches]
    model.train(training)
    count, main = sum(loss.count for loss in losses), model.tasks[0]
    parts = [loss.parts[main] * loss.count if main in loss.parts else float(loss.total) for loss in losses]
    found = {"valid_loss": sum(parts) / count}
    seen = judged(ranking, batches)
    for task, labels in seen.labels.items():
        known = np.isfinite(labels)
        value = auc(seen.predicted[known, seen.tasks.index(task)], labels[known] >= 0.5)
        found |= {f"auc_{task}": value} if np.isfinite(value) else {}
    return found
