"""Ask a recommender for the lists of many rows and reduce them: positions of the targets, exposure, the top items.

A generator makes a short list (beam) and a long one (wide_beam); a scorer orders the whole catalogue, so its short list
is the start of its long one. Ties of a generator are found by the catalogue's codes, those of a scorer by equal scores
(popularity gives many items one score, and the order among them is the catalogue's, which means nothing), see
``metrics.py``.

R rows · B histories of a batch · k list length · N items.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog
from sidera.core import InputError
from sidera.data.batches import eval_batches
from sidera.data.dataset import Dataset
from sidera.data.features import FeatureSchema
from sidera.data.items import ItemTable
from sidera.data.reading import Reading
from sidera.data.split import EvalRows
from sidera.eval.config import EvalConfig
from sidera.eval.metrics import TargetRanks, exposure_counts, target_ranks
from sidera.ops.cores import fixed_threads
from sidera.ops.threads import Choice, choose_threads, given_threads, usable_threads

MOST_SCORES = 2**23  # held at once: 32 MiB, and a few copies of it
MANY_BATCHES = 20  # of questions, from which it pays to time threads
Progress = Callable[[int, int], None]  # rows ranked so far, rows in all


# rank(batch, k, *, beam, filter_seen) -> best first: ``item_ids`` (B, k), -1 where fewer exist, and ``leaf_ids`` (B, k)
# or None where the list was not ordered by semantic ID, so that nothing ties
RankFn = Callable[..., Any]


class Ranker(Protocol):
    """What evaluation needs of ``sidera.engine.recommender.Recommender``."""

    @property
    def catalog(self) -> Catalog: ...

    @property
    def kind(self) -> str:
        """generator or scorer."""

    @property
    def reads(self) -> Reads: ...

    def rank(self, batch: Batch, k: int, *, beam: int, filter_seen: bool) -> Any: ...

    def free_generation(self, batch: Batch, beam: int) -> Tensor:
        """(B, beam) bool: is this result of a search without the trie an item? Generators only."""


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
    catalog_keys, dataset_keys = (
        catalog.item_keys[:num].astype(object),
        dataset.item_keys,
    )  # fixed width would cost the longest key
    if len(catalog_keys) == num and (catalog_keys == dataset_keys).all():
        return
    at = (
        len(catalog_keys)
        if len(catalog_keys) < num and (catalog_keys == dataset_keys[: len(catalog_keys)]).all()
        else int((catalog_keys != dataset_keys[: len(catalog_keys)]).argmax())
    )
    catalog_key = repr(str(catalog_keys[at])) if at < len(catalog_keys) else "nothing"
    raise InputError(
        f"the catalogue holds {catalog_key} as item {at}, data set {dataset.name!r} holds {str(dataset_keys[at])!r}",
        fix="evaluate on the data set that the catalogue was built from",
    )


@dataclass
class Lists:
    """The served lists of one mode and length, boiled down."""

    ranks: TargetRanks
    exposure: np.ndarray  # (N,) appearances in the first main_k
    top_ids: np.ndarray  # (R, main_k)
    searched: Lists | None = None  # what the search alone would have answered, where an expert joined its counts

    @classmethod
    def empty(cls, num_rows: int, k: int, top: int, num_items: int) -> Lists:
        ids = np.full((num_rows, top), -1, dtype=np.int64)
        return cls(TargetRanks.empty(num_rows, k), np.zeros(num_items, dtype=np.int64), ids)

    def put(self, index: np.ndarray, ranks: TargetRanks, item_ids: np.ndarray) -> None:
        """Lists (B, k) of the rows ``index`` (B,)."""
        self.ranks.put(index, ranks)
        top = self.top_ids.shape[1]
        self.exposure += exposure_counts(item_ids[:, :top], len(self.exposure))
        self.top_ids[index] = item_ids[:, :top]


@dataclass
class Clock:
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


def num_lists(recommender: Ranker, config: EvalConfig) -> int:
    return len(config.lists) if recommender.kind == "generator" else 1


def questions(
    recommender: Any, dataset: Dataset, rows: EvalRows, batch_size: int
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Batches with whole histories and without targets; with feedback where the recommender reads it.

    A scorer gives every history a score for every item, so over a large catalogue its batches are smaller.
    """
    if getattr(recommender, "kind", "") == "scorer":
        batch_size = max(1, min(batch_size, MOST_SCORES // max(1, recommender.catalog.num_items)))
    if hasattr(recommender, "read_log"):
        reading = recommender.read_log(dataset)
    else:  # it reads item ids alone
        reading = Reading(FeatureSchema(), ItemTable.plain(dataset.num_items), Reads(1)).over(dataset)
    for index, batch in eval_batches(reading, rows, batch_size, whole=True):
        yield index, replace(batch, targets=None)


def rank_lists(
    recommender: Ranker, dataset: Dataset, rows: EvalRows, config: EvalConfig, seen: str, clock: Clock
) -> dict[int, Lists]:
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
    clock: Clock,
) -> Lists:
    sids = SharedIds.of(recommender.catalog)
    takes = inspect.signature(recommender.rank).parameters
    scores_all = recommender.kind == "scorer" and "target_ids" in takes
    more = {"alone": True} if "alone" in takes else {}
    shape = len(rows), k, min(k, config.main_k), recommender.catalog.num_items
    lists = Lists.empty(*shape)
    for index, batch in questions(recommender, dataset, rows, config.batch_size):
        cpu, wall = time.process_time(), time.perf_counter()
        targets = rows.target_ids[index]
        named: dict[str, Any] = {"target_ids": torch.from_numpy(targets)} if scores_all else {}
        ranked = recommender.rank(batch, k, beam=beam, filter_seen=seen == "filter", **named, **more)
        item_ids = to_numpy(ranked.item_ids)  # (B, k)
        clock.add(len(index), time.process_time() - cpu, time.perf_counter() - wall)
        filtered = batch if seen == "filter" else None
        if ranked.leaf_ids is None:
            part = target_ranks(item_ids, targets)
            if named and ranked.ties is not None:  # items of equal score, wherever they stand in the whole catalogue
                start, size = (to_numpy(part_of).astype(np.int32) for part_of in ranked.ties)
                part = replace(part, tie_start=np.where(start <= k, start, 0), tie_size=size)
        else:
            part = _coded_ranks(item_ids, targets, sids, filtered)
        lists.put(index, part, item_ids)
        if (searched := getattr(ranked, "searched", None)) is not None:
            lists.searched = lists.searched or Lists.empty(*shape)
            alone = to_numpy(searched.item_ids[:, :k])
            lists.searched.put(index, _coded_ranks(alone, targets, sids, filtered), alone)
    clock.end_of_list()
    return lists


def _coded_ranks(item_ids: np.ndarray, targets: np.ndarray, sids: SharedIds, filtered: Batch | None) -> TargetRanks:
    """Of lists (B, k) whose equal semantic IDs have equal scores."""
    sizes = sids.servable(targets, filtered)
    return target_ranks(item_ids, targets, sids.group[item_ids], sids.group[targets], sizes)


def ranking_threads(recommender: Any, dataset: Dataset, rows: EvalRows, config: EvalConfig) -> Choice:
    """Threads to rank all rows with: two batches are timed where there are many, else an answer has one thread."""
    limit, lists = usable_threads(), num_lists(recommender, config) * len(config.seen)
    few = len(rows) * lists < MANY_BATCHES * config.batch_size
    if fixed_threads() or few or limit == 1 or getattr(recommender, "device", "cpu") != "cpu":
        return Choice(given_threads(1), limit)
    batches = [batch for _, batch in islice(questions(recommender, dataset, rows, config.batch_size), 2)]

    def rank(number: int) -> None:
        recommender.rank(batches[number % 2], config.ks[-1], beam=config.beam, filter_seen=False)

    return choose_threads(rank, limit, rounds=2)


@dataclass(frozen=True)
class SharedIds:
    """Which items share a semantic ID."""

    group: np.ndarray  # (N,) equal for items of one ID
    alive: np.ndarray  # (N,) bool
    group_sizes: np.ndarray  # (groups,) items that are not removed

    @staticmethod
    def of(catalog: Catalog) -> SharedIds:
        if catalog.codes.shape[1]:
            group = np.unique(catalog.codes, axis=0, return_inverse=True)[1].reshape(-1)
        else:  # every item is its own
            group = np.arange(catalog.num_items)
        alive = ~catalog.removed
        return SharedIds(group, alive, np.bincount(group[alive], minlength=int(group.max(initial=-1)) + 1))

    def servable(self, target_ids: np.ndarray, filtered: Batch | None) -> np.ndarray:
        """(B,) items behind each target's ID that could be served; 0 when the target itself could not.

        ``filtered``: the histories whose items are not answered; None in mode keep.
        """
        sizes = np.where(self.alive[target_ids], self.group_sizes[self.group[target_ids]], 0)
        if filtered is None:
            return sizes
        rows = np.repeat(np.arange(len(target_ids)), to_numpy(filtered.lengths))
        seen = np.unique(np.stack([rows, to_numpy(filtered.item_ids)]), axis=1)  # (2, pairs) each pair once
        rows, items = seen[0], seen[1]
        same = (self.group[items] == self.group[target_ids[rows]]) & self.alive[items]
        left = sizes - np.bincount(rows[same], minlength=len(target_ids))
        is_target = np.bincount(rows[items == target_ids[rows]], minlength=len(target_ids)) > 0
        return np.where(is_target, 0, np.maximum(left, 0))


def to_numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
