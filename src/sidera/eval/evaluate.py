"""Rank the rows of a split with a Recommender and measure the answers. The protocol is in docs/protocol.md.

Evaluation asks through the same ``rank`` that serves: the whole history goes in (the recommender reads its newest
events, and with ``filter_seen`` drops every item of the history, also those too old for the model), the target never
does. The file reads in order: what is asked of a recommender, :func:`evaluate`, :func:`quick_metrics`, the parts.

R rows · B histories of a batch · k list length · N items.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sidera.catalog.catalog import Catalog
from sidera.core import Batch, InputError
from sidera.data.batches import eval_batches
from sidera.data.dataset import Dataset
from sidera.data.split import EvalRows, Split, item_popularity
from sidera.eval.bootstrap import intervals
from sidera.eval.config import EvalConfig
from sidera.eval.evaluation import Evaluation, Slice
from sidera.eval.metrics import (
    PopularitySlices,
    TargetRanks,
    coverage,
    exposure_counts,
    gini,
    length_slices,
    row_metrics,
    target_ranks,
)

Which = Literal["valid", "test"]
Progress = Callable[[int, int], None]  # rows ranked so far, rows in all


class RankedLists(Protocol):
    """What ``rank`` answers: best first; -1 where fewer than k items exist."""

    item_ids: Tensor  # (B, k) int64
    leaf_ids: Tensor | None  # (B, k); None: the list was not ordered by semantic ID, so nothing ties


RankFn = Callable[..., Any]  # rank(batch, k, *, beam, filter_seen) -> RankedLists


class Ranker(Protocol):
    """What evaluation needs of ``sidera.engine.recommender.Recommender``."""

    catalog: Catalog
    kind: str  # "generator" | "scorer"
    max_history: int | None  # events that the model reads; None: all

    def rank(self, batch: Batch, k: int, *, beam: int, filter_seen: bool) -> Any: ...

    def free_generation(self, batch: Batch, beam: int) -> Tensor:
        """(B, beam) bool: is this result of a search without the trie an item? Generators only."""


def evaluate(
    recommender: Ranker,
    dataset: Dataset,
    split: Split,
    which: Which = "test",
    config: EvalConfig | None = None,
    *,
    name: str = "",
    info: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure ``recommender`` on the validation or test rows. ``name`` is what tables call it."""
    config = config or EvalConfig()
    check_items(recommender.catalog, dataset)
    all_rows = split.valid if which == "valid" else split.test
    rows = sample_rows(all_rows, config.max_rows, config.seed)
    popularity = item_popularity(dataset, split)
    head = PopularitySlices.of(popularity)
    found: dict[str, dict[int, _Lists]] = {}
    clock = _Clock(total=len(rows) * len(config.seen) * _num_lists(recommender, config), progress=progress)
    for seen in config.seen:
        found[seen] = _rank_lists(recommender, dataset, rows, config, seen, clock)
    measured = {seen: _all_metrics(lists, config) for seen, lists in found.items()}
    flat = {f"{seen}/{key}": values for seen, part in measured.items() for key, values in part.items()}
    estimates = intervals(flat, rows.user_ids, resamples=config.bootstrap, seed=config.seed)
    return Evaluation(
        name=name or recommender.kind,
        protocol=_protocol(recommender, dataset, split, which, rows, len(all_rows), config, head),
        metrics={seen: {key: estimates[f"{seen}/{key}"] for key in part} for seen, part in measured.items()},
        lists={
            seen: _list_metrics(lists, config, recommender.catalog, head, popularity) for seen, lists in found.items()
        },
        slices={seen: _slices(part, rows, popularity, head, config) for seen, part in measured.items()},
        latency={**clock.throughput(), **_latency(recommender, dataset, rows, config)},
        legality=_legality(recommender, dataset, rows, config),
        samples=_samples(found[config.seen[0]], dataset, rows, config),
        ranks=_rank_table(found, dataset, rows),
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
    """Means for validation during training: ``ndcg@10 recall@10`` (seen=keep), ``filter_ndcg@10 filter_recall@10``.

    ``recommender`` may be a bare ``rank(batch, k, *, beam, filter_seen)``. The row sample depends on ``seed`` alone,
    so the values of different epochs and runs are paired.
    """
    rank: RankFn = getattr(recommender, "rank", recommender)  # type: ignore[arg-type]
    rows = sample_rows(rows, max_rows, seed)
    values: dict[str, float] = {}
    for prefix, filter_seen in (("", False), ("filter_", True))[: 2 if filter_too else 1]:
        places = np.zeros(len(rows), dtype=np.int32)
        for index, batch in _questions(dataset, rows, batch_size):
            ranked = rank(batch, k, beam=beam, filter_seen=filter_seen)
            places[index] = target_ranks(_numpy(ranked.item_ids), rows.target_ids[index]).rank
        means = row_metrics(TargetRanks(places, places, np.ones_like(places), k), [k])
        values |= {f"{prefix}{name}": float(means[name].mean()) for name in (f"ndcg@{k}", f"recall@{k}")}
    return values


def sample_rows(rows: EvalRows, max_rows: int | None, seed: int) -> EvalRows:
    """All rows, or a seeded sample of ``max_rows``, in their order; InputError when there are none."""
    if len(rows) == 0:
        raise InputError("the split left no rows to evaluate", fix="users need at least 3 events for leave-one-out")
    if max_rows is None or max_rows >= len(rows):
        return rows
    return rows.take(np.sort(np.random.default_rng(seed).choice(len(rows), max_rows, replace=False)))


def check_items(catalog: Catalog, dataset: Dataset) -> None:
    """InputError unless the catalogue's first items are the data set's, in its order: ids must mean the same."""
    num = dataset.num_items
    ours, theirs = catalog.item_keys[:num].astype(str), dataset.item_keys.astype(str)
    if len(ours) == num and (ours == theirs).all():
        return
    at = (
        len(ours)
        if len(ours) < num and (ours == theirs[: len(ours)]).all()
        else int((ours != theirs[: len(ours)]).argmax())
    )
    mine = repr(str(ours[at])) if at < len(ours) else "nothing"
    raise InputError(
        f"the catalogue holds {mine} as item {at}, data set {dataset.name!r} holds {str(theirs[at])!r}",
        fix="evaluate on the data set that the catalogue was built from",
    )


@dataclass
class _Lists:
    """The served lists of one mode and length, boiled down."""

    ranks: TargetRanks
    exposure: np.ndarray  # (N,) places in the first main_k
    top_ids: np.ndarray  # (R, main_k)


@dataclass
class _Clock:
    """Counts rows and CPU seconds spent in ``rank``."""

    total: int
    progress: Progress | None
    rows: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    first: dict[str, float] = field(default_factory=dict)  # throughput of the first list

    def add(self, rows: int, cpu_s: float, wall_s: float) -> None:
        self.rows, self.cpu_s, self.wall_s = self.rows + rows, self.cpu_s + cpu_s, self.wall_s + wall_s
        if self.progress is not None:
            self.progress(self.rows, self.total)

    def end_of_list(self) -> None:
        if not self.first:
            self.first = {
                "rows_per_cpu_s": self.rows / max(self.cpu_s, 1e-9),
                "rows_per_s": self.rows / max(self.wall_s, 1e-9),
            }

    def throughput(self) -> dict[str, float]:
        return self.first


def _num_lists(recommender: Ranker, config: EvalConfig) -> int:
    return len(config.lists) if recommender.kind == "generator" else 1


def _questions(dataset: Dataset, rows: EvalRows, batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
    """Batches with whole histories and without targets."""
    longest = max(1, int((rows.ends - rows.starts).max()))
    for index, batch in eval_batches(dataset, rows, longest, batch_size):
        yield index, replace(batch, target_ids=None)


def _rank_lists(
    recommender: Ranker, dataset: Dataset, rows: EvalRows, config: EvalConfig, seen: str, clock: _Clock
) -> dict[int, _Lists]:
    """List length -> lists. A scorer orders all items, so its short list is the start of its long one."""
    if recommender.kind != "generator":
        longest = _rank_list(recommender, dataset, rows, config, seen, config.ks[-1], config.beam, clock)
        return {ks[-1]: replace(longest, ranks=longest.ranks.cut(ks[-1])) for ks, _ in config.lists}
    return {
        ks[-1]: _rank_list(recommender, dataset, rows, config, seen, ks[-1], beam, clock) for ks, beam in config.lists
    }


def _rank_list(
    recommender: Ranker,
    dataset: Dataset,
    rows: EvalRows,
    config: EvalConfig,
    seen: str,
    k: int,
    beam: int,
    clock: _Clock,
) -> _Lists:
    sids = _SharedIds.of(recommender.catalog)
    top = min(k, config.main_k)
    lists = _Lists(
        ranks=TargetRanks.empty(len(rows), k),
        exposure=np.zeros(recommender.catalog.num_items, dtype=np.int64),
        top_ids=np.full((len(rows), top), -1, dtype=np.int64),
    )
    for index, batch in _questions(dataset, rows, config.batch_size):
        cpu, wall = time.process_time(), time.perf_counter()
        ranked = recommender.rank(batch, k, beam=beam, filter_seen=seen == "filter")
        item_ids = _numpy(ranked.item_ids)  # (B, k)
        clock.add(len(index), time.process_time() - cpu, time.perf_counter() - wall)
        targets = rows.target_ids[index]
        if ranked.leaf_ids is None:
            part = target_ranks(item_ids, targets)
        else:
            sizes = sids.servable(targets, batch if seen == "filter" else None)
            part = target_ranks(item_ids, targets, sids.group[item_ids], sids.group[targets], sizes)
        lists.ranks.put(index, part)
        lists.exposure += exposure_counts(item_ids[:, :top], recommender.catalog.num_items)
        lists.top_ids[index] = item_ids[:, :top]
    clock.end_of_list()
    return lists


@dataclass(frozen=True)
class _SharedIds:
    """Which items share a semantic ID."""

    group: np.ndarray  # (N,) equal for items of one ID
    alive: np.ndarray  # (N,) bool
    group_sizes: np.ndarray  # (groups,) items that are not removed

    @staticmethod
    def of(catalog: Catalog) -> _SharedIds:
        group = np.unique(catalog.codes, axis=0, return_inverse=True)[1].reshape(-1)
        alive = ~catalog.removed
        return _SharedIds(group, alive, np.bincount(group[alive], minlength=int(group.max(initial=-1)) + 1))

    def servable(self, target_ids: np.ndarray, filtered: Batch | None) -> np.ndarray:
        """(B,) items behind each target's ID that could be served; 0 when the target itself could not.

        ``filtered``: the histories whose items are not answered; None in mode keep.
        """
        sizes = np.where(self.alive[target_ids], self.group_sizes[self.group[target_ids]], 0)
        if filtered is None:
            return sizes
        rows = np.repeat(np.arange(len(target_ids)), _numpy(filtered.lengths))
        seen = np.unique(np.stack([rows, _numpy(filtered.item_ids)]), axis=1)  # (2, pairs) each pair once
        rows, items = seen[0], seen[1]
        same = (self.group[items] == self.group[target_ids[rows]]) & self.alive[items]
        left = sizes - np.bincount(rows[same], minlength=len(target_ids))
        is_target = np.bincount(rows[items == target_ids[rows]], minlength=len(target_ids)) > 0
        return np.where(is_target, 0, np.maximum(left, 0))


def _all_metrics(lists: dict[int, _Lists], config: EvalConfig) -> dict[str, np.ndarray]:
    metrics: dict[str, np.ndarray] = {}
    for ks, _ in config.lists:
        metrics |= row_metrics(lists[ks[-1]].ranks, ks)
    return metrics


def _list_metrics(
    lists: dict[int, _Lists], config: EvalConfig, catalog: Catalog, head: PopularitySlices, popularity: np.ndarray
) -> dict[str, float]:
    """Of the first main_k places, over the items that are not removed."""
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
    requests = [batch for _, batch in _questions(dataset, timed, 1)]
    for batch in requests[:3]:  # first calls allocate buffers and compile kernels
        recommender.rank(batch, config.main_k, beam=config.beam, filter_seen=False)
    cpu_ms, wall_ms = [], []
    for batch in requests:
        cpu, wall = time.process_time(), time.perf_counter()
        _numpy(recommender.rank(batch, config.main_k, beam=config.beam, filter_seen=False).item_ids)
        cpu_ms.append(1000 * (time.process_time() - cpu))
        wall_ms.append(1000 * (time.perf_counter() - wall))
    return {
        "requests": len(requests),
        "threads": torch.get_num_threads(),
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
            _numpy(recommender.free_generation(batch, config.beam))
            for _, batch in _questions(dataset, asked, config.batch_size)
        ]
    )  # (rows, beam)
    cuts = sorted({1, min(10, legal.shape[1]), legal.shape[1]})
    return {"rows": float(len(asked)), **{f"legal@{cut}": float(legal[:, :cut].mean()) for cut in cuts}}


def _samples(lists: dict[int, _Lists], dataset: Dataset, rows: EvalRows, config: EvalConfig) -> list[dict[str, Any]]:
    """A few rows with titles: what was read, what came next, what was answered."""
    keys = dataset.item_keys
    titles = dataset.items["title"].to_pylist() if "title" in dataset.items.column_names else [None] * len(keys)
    found = next(iter(lists.values()))

    def shown(ids: np.ndarray) -> list[dict[str, Any]]:
        return [{"key": str(keys[i]), "title": titles[i]} for i in ids.tolist() if 0 <= i < len(keys)]

    picked = np.random.default_rng(config.seed).permutation(len(rows))[: config.samples]
    return [
        {
            "user": str(dataset.user_keys[rows.user_ids[row]]),
            "history": shown(dataset.item_ids[max(rows.starts[row], rows.ends[row] - 5) : rows.ends[row]]),
            "target": shown(rows.target_ids[row : row + 1])[0],
            "answer": shown(found.top_ids[row][:5]),
            "rank": int(found.ranks.rank[row]),
        }
        for row in picked.tolist()
    ]


def _rank_table(found: dict[str, dict[int, _Lists]], dataset: Dataset, rows: EvalRows) -> pa.Table:
    columns: dict[str, Any] = {
        "user": pa.array(dataset.user_keys[rows.user_ids], type=pa.string()),
        "target": pa.array(dataset.item_keys[rows.target_ids], type=pa.string()),
        "history": pa.array(rows.ends - rows.starts),
    }
    for seen, lists in found.items():
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
    row_digest = hashlib.sha256(np.stack([rows.user_ids, rows.ends, rows.target_ids]).astype("<i8").tobytes())
    generator = recommender.kind == "generator"
    return {
        "dataset": dataset.name,
        "dataset_digest": dataset.digest,
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
        "max_history": recommender.max_history,
        "codebook_id": recommender.catalog.codebook_id,
        "items_version": recommender.catalog.items_version,
        "head_min_events": head.head_min,
        "tail_max_events": head.tail_max,
        "seed": config.seed,
        "bootstrap": config.bootstrap,
    }


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
