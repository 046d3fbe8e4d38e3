"""NDCG@10 on validation rows, for models that choose their own settings while they are counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sidera.data.config import View
from sidera.data.features import FeatureSchema
from sidera.data.items import ItemTable
from sidera.data.reading import Reading, Wanted

MOST_ROWS = 1024  # validation rows of a trial
SEED = 0  # of their sample


@torch.inference_mode()
def validation_ndcg(scorer: Any, view: View) -> float:
    """On a sample of the validation rows, seen items kept. Of equal scores the target's stands last."""
    rows, total = view.split.valid, 0.0
    if len(rows) > MOST_ROWS:
        rows = rows.take(np.sort(np.random.default_rng(SEED).choice(len(rows), MOST_ROWS, replace=False)))
    log = Reading(FeatureSchema(), ItemTable.plain(view.dataset.num_items), scorer.reads).over(view.dataset)
    for start in range(0, len(rows), 128):
        part = rows.take(np.arange(start, min(start + 128, len(rows))))
        batch = log.rows(part.user_ids, part.ends, Wanted("history", part.target_ids))
        scores, targets = scorer.item_scores(batch), torch.from_numpy(part.target_ids)
        above = (scores >= scores.gather(1, targets[:, None])).sum(1) - 1
        total += float((1 / (above + 2.0).log2())[above < 10].sum())
    return total / len(rows)
