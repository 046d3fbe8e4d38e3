"""What is looked at while a policy is aligned, because a reward that rises says nothing about what was lost.

| figure | what it tells |
|---|---|
| ``legality_sample``, ``legality_beam`` | share of free samples (T = 1), and of a free beam, that are items. Both: a policy stuck on three legal items samples legally, and a beam shows what lies beside them |
| ``entropy`` | nats, mean of -log p(item) over own samples inside the trie |
| ``coverage`` | share of the catalogue that these samples reach |
| ``top1_share`` | share of these samples that falls on the most popular 1 % of the items |
| ``recall@50_<label>`` | of held-out events with the label: long views and likes. Clicks may fall, they are baited |

All of it is measured through the engine, on a fixed set of held-out histories with fixed seeds: two looks differ by the
weights alone.

Shape legend: B histories · G samples of each · N items.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sidera.align.step import read_requests
from sidera.batch import Batch, Reads
from sidera.core import InputError
from sidera.data.batches import eval_batches
from sidera.data.config import View
from sidera.data.items import ItemTable
from sidera.data.reading import Reading
from sidera.engine.recommender import Recommender

LABELS = ("long_view", "like")
TOP_SHARE = 0.01  # of the items count as the head


@dataclass(frozen=True)
class Probe:
    """Held-out histories with what came next."""

    batches: Sequence[Batch]  # without targets
    targets: Sequence[Tensor]  # (B,) of each batch
    labels: Mapping[str, Sequence[Tensor]]  # label -> (B,) bool of each batch
    samples: int = 16  # of each history
    beam: int = 10  # of the free beam
    recall_at: int = 50
    seed: int = 0

    @property
    def num_histories(self) -> int:
        return sum(batch.num_histories for batch in self.batches)

    def measure(self, engine: Recommender) -> dict[str, float]:
        """Every figure of the table above, for the weights that answer now."""
        return self.sample_figures(engine) | self._recalls(engine)

    def sample_figures(self, engine: Recommender) -> dict[str, float]:
        """What the policy writes of its own: legality, entropy, coverage, the share of the head."""
        legal, log_p, items = [], [], []
        for place, batch in enumerate(self.batches):
            seed, batch = self.seed + 2 * place, read_requests(engine, batch)
            legal.append(engine.rollout(batch, self.samples, "free", seed=seed).legal_mask)
            drawn = engine.rollout(batch, self.samples, "masked", seed=seed + 1)
            items.append(drawn.item_ids[drawn.legal_mask])
            log_p.append(drawn.log_probs[drawn.legal_mask].sum(-1))
        item_ids = torch.cat(items).cpu()
        catalog = engine.catalog
        head = torch.from_numpy(catalog.serving_order[: max(1, round(TOP_SHARE * catalog.num_items))].copy())
        read = [read_requests(engine, batch) for batch in self.batches]
        beams = torch.cat([engine.free_generation(batch, self.beam).flatten() for batch in read])
        return {
            "legality_sample": float(torch.cat(legal).float().mean()),
            "legality_beam": float(beams[~beams.isnan()].mean()),
            "entropy": -float(torch.cat(log_p).double().mean()),
            "coverage": float(item_ids.unique().numel() / (~catalog.removed).sum()),
            "top1_share": float(torch.isin(item_ids, head).float().mean()),
        }

    def hits(self, engine: Recommender) -> Tensor:
        """(rows,) bool: was what came next among the ``recall_at`` best?"""
        k = min(self.recall_at, engine.catalog.num_items)
        found = [engine.rank(read_requests(engine, batch), k).item_ids.cpu() for batch in self.batches]
        return torch.cat([(ids == target[:, None]).any(1) for ids, target in zip(found, self.targets, strict=True)])

    def _recalls(self, engine: Recommender) -> dict[str, float]:
        hit = self.hits(engine).double()
        figures = {}
        for name, parts in self.labels.items():
            mask = torch.cat(list(parts))
            figures[f"rows_{name}"] = float(mask.sum())
            if mask.any():
                figures[f"recall@{self.recall_at}_{name}"] = float(hit[mask].mean())
        return figures


def make_probe(
    view: View,
    items: ItemTable,
    max_history: int,
    *,
    labels: Sequence[str] = LABELS,
    which: Literal["valid", "test"] = "valid",
    max_rows: int | None = 512,
    batch_size: int = 128,
    samples: int = 16,
    seed: int = 0,
) -> Probe:
    """A probe of at most ``max_rows`` validation rows (or test rows); ``view`` holds every exposure.

    Rows in whose history nothing is positive are left out.
    """
    rows = view.split.valid if which == "valid" else view.split.test
    if view.schema.positive:
        positive = np.concatenate([[0], np.cumsum(view.dataset.feedback[view.schema.positive].astype(np.int64))])
        starts = np.maximum(rows.starts, rows.ends - max_history)
        rows = rows.take(np.flatnonzero(positive[rows.ends] > positive[starts]))
    if not len(rows):
        raise InputError(f"the split has no {which} rows to look at", fix="use a longer log")
    if max_rows is not None and len(rows) > max_rows:
        chosen = np.random.default_rng(seed).choice(len(rows), max_rows, replace=False)
        rows = rows.take(np.sort(chosen))
    reads = Reads(max_history, "all" if view.schema.columns else "positive")
    reading = Reading(view.schema, items, reads).over(view.dataset)
    batches, targets = [], []
    found: dict[str, list[Tensor]] = {name: [] for name in labels if name in view.dataset.feedback}
    everything: list[Tensor] = []
    for index, batch in eval_batches(reading, rows, batch_size):
        batches.append(replace(batch, targets=None))
        targets.append(batch.target_ids)
        everything.append(torch.ones(len(index), dtype=torch.bool))
        for name, parts in found.items():
            parts.append(torch.from_numpy(view.dataset.feedback[name][rows.ends[index]].astype(bool)))
    return Probe(batches, targets, found or {"next": everything}, samples=samples, seed=seed)
