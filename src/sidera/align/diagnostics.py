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

import numpy as np
import torch
from torch import Tensor

from sidera.core import Batch, InputError
from sidera.data.batches import Reader, eval_batches
from sidera.data.config import View
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
        figures = self._samples(engine)
        beams = torch.cat([engine.free_generation(batch, self.beam).flatten() for batch in self.batches])
        figures["legality_beam"] = float(beams[~beams.isnan()].mean())
        return figures | self._recalls(engine)

    def _samples(self, engine: Recommender) -> dict[str, float]:
        legal, log_p, items = [], [], []
        for place, batch in enumerate(self.batches):
            seed = self.seed + 2 * place
            legal.append(engine.rollout(batch, self.samples, "free", seed=seed).legal_mask)
            drawn = engine.rollout(batch, self.samples, "masked", seed=seed + 1)
            items.append(drawn.item_ids[drawn.legal_mask])
            log_p.append(drawn.log_probs[drawn.legal_mask].sum(-1))
        item_ids = torch.cat(items).cpu()
        catalog = engine.catalog
        head = torch.from_numpy(catalog.serving_order[: max(1, round(TOP_SHARE * catalog.num_items))].copy())
        return {
            "legality_sample": float(torch.cat(legal).float().mean()),
            "entropy": -float(torch.cat(log_p).double().mean()),
            "coverage": float(item_ids.unique().numel() / (~catalog.removed).sum()),
            "top1_share": float(torch.isin(item_ids, head).float().mean()),
        }

    def _recalls(self, engine: Recommender) -> dict[str, float]:
        hits: list[Tensor] = []
        for batch, target in zip(self.batches, self.targets, strict=True):
            k = min(self.recall_at, engine.catalog.num_items)
            found = engine.rank(batch, k).item_ids.cpu()
            hits.append((found == target[:, None]).any(1))
        hit = torch.cat(hits).double()
        figures = {}
        for name, parts in self.labels.items():
            mask = torch.cat(list(parts))
            figures[f"rows_{name}"] = float(mask.sum())
            if mask.any():
                figures[f"recall@{self.recall_at}_{name}"] = float(hit[mask].mean())
        return figures


def make_probe(
    view: View,
    max_history: int,
    *,
    labels: Sequence[str] = LABELS,
    max_rows: int = 512,
    batch_size: int = 128,
    reads_feedback: bool = True,
    samples: int = 16,
    seed: int = 0,
) -> Probe:
    """A probe of at most ``max_rows`` validation rows; ``view`` holds every exposure (or the items alone)."""
    rows = view.split.valid
    if not len(rows):
        raise InputError("the split has no validation rows to look at", fix="use a longer log")
    if len(rows) > max_rows:
        chosen = np.random.default_rng(seed).choice(len(rows), max_rows, replace=False)
        rows = rows.take(np.sort(chosen))
    reader = Reader(view.dataset, view.schema) if reads_feedback else None
    batches, targets = [], []
    found: dict[str, list[Tensor]] = {name: [] for name in labels if name in view.dataset.feedback}
    everything: list[Tensor] = []
    for index, batch in eval_batches(view.dataset, rows, max_history, batch_size, reader):
        assert batch.target_ids is not None
        batches.append(replace(batch, target_ids=None))
        targets.append(batch.target_ids)
        everything.append(torch.ones(len(index), dtype=torch.bool))
        for name, parts in found.items():
            parts.append(torch.from_numpy(view.dataset.feedback[name][rows.ends[index]].astype(bool)))
    return Probe(batches, targets, found or {"next": everything}, samples=samples, seed=seed)
