"""Rank the rows of a split with a Recommender and measure the answers. The protocol is in docs/understand/protocol.md.

Evaluation asks through the same ``rank`` that serves: the whole history goes in (the recommender reads its newest
events, and with ``filter_seen`` drops every item of the history, also those too old for the model), the target never
does. ``evaluate`` measures everything, ``quick_metrics`` the few numbers that training watches.

R rows · k list length · N items.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from sidera.catalog.catalog import Catalog
from sidera.data.dataset import Dataset
from sidera.data.split import EvalRows, Fit, Split, item_popularity
from sidera.eval.bootstrap import intervals
from sidera.eval.config import EvalConfig
from sidera.eval.evaluation import Evaluation, Slice
from sidera.eval.metrics import (
    PopularitySlices,
    TargetRanks,
    coverage,
    gini,
    length_slices,
    row_metrics,
    target_ranks,
)
from sidera.eval.ranking import (
    Clock,
    Lists,
    Progress,
    Ranker,
    RankFn,
    check_items,
    num_lists,
    questions,
    rank_lists,
    ranking_threads,
    sample_rows,
    to_numpy,
)
from sidera.ops.threads import given_threads, num_threads

Which = Literal["valid", "test"]


def evaluate(
    recommender: Ranker,
    dataset: Dataset,
    split: Split,
    which: Which = "test",
    config: EvalConfig | None = None,
    *,
    name: str = "",
    info: dict[str, Any] | None = None,
    fit: Fit = "train",
    progress: Progress | None = None,
) -> Evaluation:
    """Measure ``recommender`` on the validation or test rows. ``name`` is what tables call it, ``fit`` what it learned
    from."""
    config = config or EvalConfig()
    check_items(recommender.catalog, dataset)
    all_rows = split.valid if which == "valid" else split.test
    rows = sample_rows(all_rows, config.max_rows, config.seed)
    reads_all = recommender.reads.feedback  # then the log holds more than the positive events
    popularity = recommender.catalog.popularity[: dataset.num_items] if reads_all else item_popularity(dataset, split)
    head = PopularitySlices.of(popularity)
    by_mode: dict[str, dict[int, Lists]] = {}
    clock = Clock(total=len(rows) * len(config.seen) * num_lists(recommender, config), progress=progress)
    choice = ranking_threads(recommender, dataset, rows, config)
    with num_threads(choice.threads):
        for seen in config.seen:
            by_mode[seen] = rank_lists(recommender, dataset, rows, config, seen, clock)
        legality = _legality(recommender, dataset, rows, config)
    measured = {seen: _all_metrics(lists, config) for seen, lists in by_mode.items()}
    flat = {f"{seen}/{key}": values for seen, part in measured.items() for key, values in part.items()}
    estimates = intervals(flat, rows.user_ids, resamples=config.bootstrap, seed=config.seed)
    return Evaluation(
        name=name or recommender.kind,
        protocol=_protocol(recommender, dataset, split, which, rows, len(all_rows), config, head) | {"fit": fit},
        metrics={seen: {key: estimates[f"{seen}/{key}"] for key in part} for seen, part in measured.items()},
        lists={
            seen: _list_metrics(lists, config, recommender.catalog, head, popularity) for seen, lists in by_mode.items()
        },
        slices={seen: _slices(part, rows, popularity, head, config) for seen, part in measured.items()},
        latency={
            **clock.throughput(),
            "ranking": choice.describe("batch"),
            **_latency(recommender, dataset, rows, config),
        },
        legality=legality,
        samples=_samples(by_mode[config.seen[0]], dataset, rows, config),
        ranks=_rank_table(by_mode, dataset, rows),
        info=dict(info or {}),
    )


def quick_metrics(
    recommender: Ranker | RankFn,
    dataset: Dataset,
    rows: EvalRows,
    *,
    k: int = 10,
    beam: int = 50,
    max_rows: int | None = 2000,
    batch_size: int = 256,
    filter_too: bool = True,
    seed: int = 0,
) -> dict[str, float]:
    """Means for validation during training: ``ndcg@10 recall@10`` (seen=keep); ``filter_too``: ``filter_ndcg@10
    filter_recall@10`` and the means of the two modes, ``mean_ndcg@10 mean_recall@10``.

    ``recommender`` may be a bare ``rank(batch, k, *, beam, filter_seen)``. The row sample depends on ``seed`` alone,
    so the values of different epochs and runs are paired.
    """
    rank: RankFn = getattr(recommender, "rank", recommender)  # type: ignore[arg-type]
    rows = sample_rows(rows, max_rows, seed)
    values: dict[str, float] = {}
    for prefix, filter_seen in (("", False), ("filter_", True))[: 2 if filter_too else 1]:
        positions = np.zeros(len(rows), dtype=np.int32)
        for index, batch in questions(recommender, dataset, rows, batch_size):
            ranked = rank(batch, k, beam=beam, filter_seen=filter_seen)
            positions[index] = target_ranks(to_numpy(ranked.item_ids), rows.target_ids[index]).rank
        means = row_metrics(TargetRanks(positions, positions, np.ones_like(positions), k), [k])
        values |= {f"{prefix}{name}": float(means[name].mean()) for name in (f"ndcg@{k}", f"recall@{k}")}
    for name in (f"ndcg@{k}", f"recall@{k}") if filter_too else ():
        values[f"mean_{name}"] = (values[name] + values[f"filter_{name}"]) / 2
    return values


def _all_metrics(lists: dict[int, Lists], config: EvalConfig) -> dict[str, np.ndarray]:
    metrics: dict[str, np.ndarray] = {}
    for ks, _ in config.lists:
        metrics |= row_metrics(lists[ks[-1]].ranks, ks)
    return metrics


def _list_metrics(
    lists: dict[int, Lists], config: EvalConfig, catalog: Catalog, head: PopularitySlices, popularity: np.ndarray
) -> dict[str, float]:
    """Of the first main_k positions, over the items that are not removed."""
    k, exposure = config.main_k, next(iter(lists.values())).exposure
    alive = ~catalog.removed
    grown = np.zeros(catalog.num_items, dtype=np.int64)  # items that came after the data set were never trained on
    grown[: popularity.size] = popularity
    head_mask = head.assign(grown)["head"]
    return {
        f"coverage@{k}": coverage(exposure[alive]),
        f"gini@{k}": gini(exposure[alive]),
        f"head_share@{k}": float(exposure[head_mask].sum() / max(1, exposure.sum())),
    }


def _slices(
    metrics: dict[str, np.ndarray], rows: EvalRows, popularity: np.ndarray, head: PopularitySlices, config: EvalConfig
) -> dict[str, dict[str, Slice]]:
    names = (f"recall@{config.main_k}", f"ndcg@{config.main_k}")
    kinds = {
        "popularity": head.assign(popularity[rows.target_ids]),
        "history": length_slices(rows.ends - rows.starts),
    }
    return {
        kind: {
            name: Slice(
                rows=int(mask.sum()),
                metrics=intervals(
                    {metric: metrics[metric][mask] for metric in names},
                    rows.user_ids[mask],
                    resamples=config.bootstrap,
                    seed=config.seed,
                ),
            )
            for name, mask in masks.items()
            if mask.any()
        }
        for kind, masks in kinds.items()
    }


def _latency(recommender: Ranker, dataset: Dataset, rows: EvalRows, config: EvalConfig) -> dict[str, Any]:
    """Single requests, one after the other: CPU and wall milliseconds each."""
    if config.latency_rows == 0:
        return {}
    timed = sample_rows(rows, config.latency_rows, config.seed)
    requests = [batch for _, batch in questions(recommender, dataset, timed, 1)]
    for batch in requests[:3]:  # first calls allocate buffers and compile kernels
        recommender.rank(batch, config.main_k, beam=config.beam, filter_seen=False)
    cpu_ms, wall_ms = [], []
    threads = given_threads(1)  # as the server answers
    with num_threads(threads):
        for batch in requests:
            cpu, wall = time.process_time(), time.perf_counter()
            to_numpy(recommender.rank(batch, config.main_k, beam=config.beam, filter_seen=False).item_ids)
            cpu_ms.append(1000 * (time.process_time() - cpu))
            wall_ms.append(1000 * (time.perf_counter() - wall))
    return {
        "requests": len(requests),
        "threads": threads,
        **{
            f"{name}_p{q}": float(np.percentile(ms, q))
            for name, ms in (("cpu_ms", cpu_ms), ("wall_ms", wall_ms))
            for q in (50, 95)
        },
        "cpu_ms": [round(ms, 3) for ms in cpu_ms],
        "wall_ms": [round(ms, 3) for ms in wall_ms],
    }


def _legality(recommender: Ranker, dataset: Dataset, rows: EvalRows, config: EvalConfig) -> dict[str, float]:
    """Share of results that are items when a generator writes without the trie: best beam, best ten, all."""
    if recommender.kind != "generator" or config.free_rows == 0:
        return {}
    asked = sample_rows(rows, config.free_rows, config.seed)
    legal = np.concatenate(
        [
            to_numpy(recommender.free_generation(batch, config.beam))
            for _, batch in questions(recommender, dataset, asked, config.batch_size)
        ]
    )  # (rows, beam)
    cuts = sorted({1, min(10, legal.shape[1]), legal.shape[1]})
    return {"rows": float(len(asked)), **{f"legal@{cut}": float(np.nanmean(legal[:, :cut])) for cut in cuts}}


def _samples(lists: dict[int, Lists], dataset: Dataset, rows: EvalRows, config: EvalConfig) -> list[dict[str, Any]]:
    """A few rows with titles: what was read, what came next, what was answered."""
    keys = dataset.item_keys
    titles = dataset.items["title"].to_pylist() if "title" in dataset.items.column_names else [None] * len(keys)
    shown_lists = next(iter(lists.values()))

    def shown(ids: np.ndarray) -> list[dict[str, Any]]:
        return [{"key": str(keys[i]), "title": titles[i]} for i in ids.tolist() if 0 <= i < len(keys)]

    picked = np.random.default_rng(config.seed).permutation(len(rows))[: config.samples]
    return [
        {
            "user": str(dataset.user_keys[rows.user_ids[row]]),
            "history": shown(dataset.item_ids[max(rows.starts[row], rows.ends[row] - 5) : rows.ends[row]]),
            "target": shown(rows.target_ids[row : row + 1])[0],
            "answer": shown(shown_lists.top_ids[row][:5]),
            "rank": int(shown_lists.ranks.rank[row]),
        }
        for row in picked.tolist()
    ]


def _rank_table(by_mode: dict[str, dict[int, Lists]], dataset: Dataset, rows: EvalRows) -> pa.Table:
    columns: dict[str, Any] = {
        "user": pa.array(dataset.user_keys[rows.user_ids], type=pa.string()),
        "target": pa.array(dataset.item_keys[rows.target_ids], type=pa.string()),
        "history": pa.array(rows.ends - rows.starts),
    }
    for seen, lists in by_mode.items():
        for length, part in lists.items():
            for name in ("rank", "tie_start", "tie_size"):
                columns[f"{name}_{seen}_{length}"] = pa.array(getattr(part.ranks, name))
    return pa.table(columns)


def _protocol(
    recommender: Ranker,
    dataset: Dataset,
    split: Split,
    which: str,
    rows: EvalRows,
    num_rows: int,
    config: EvalConfig,
    head: PopularitySlices,
) -> dict[str, Any]:
    # by moment, not by position: views of one log that hold other events ask the same questions
    asked = np.stack([rows.user_ids, dataset.times[rows.ends], rows.target_ids])
    row_digest = hashlib.sha256(asked.astype("<i8").tobytes())
    generator = recommender.kind == "generator"
    return {
        "dataset": dataset.name,
        "dataset_digest": dataset.source_digest,
        "split": split.name,
        "which": which,
        "rows": len(rows),
        "rows_in_split": num_rows,
        "row_digest": row_digest.hexdigest()[:16],
        "hits": "item",
        "ranking": "full",
        "num_items": int((~recommender.catalog.removed).sum()),
        "seen": list(config.seen),
        "lists": [{"ks": list(ks), "beam": beam if generator else None} for ks, beam in config.lists],
        "kind": recommender.kind,
        "max_history": recommender.reads.max_events,
        "codebook_id": recommender.catalog.codebook_id,
        "items_version": recommender.catalog.items_version,
        "head_min_events": head.head_min,
        "tail_max_events": head.tail_max,
        "seed": config.seed,
        "bootstrap": config.bootstrap,
    }
