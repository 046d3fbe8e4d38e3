"""Train a ranker on the exposures of some users, choose its best weights on others, and say how well it ranks.

    groups = user_groups(dataset.user_keys, RANKER_SHARES)          # scorer, judge, online test
    fitted = fit_ranker(view, catalog, groups == 0, out)
    judge = fit_ranker(view, catalog, groups == 1, out_judge)

A reward that is judged by itself only goes up. So a second network of the same family learns from other users: the
*judge*. Trap: it shares the first one's blind spots (what neither can see, both get wrong alike), so a policy that the
judge likes may still be hollow; only outcomes of real exposures tell.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidera.catalog.catalog import Catalog
from sidera.core import Batch, InputError
from sidera.data.batches import RequestRows
from sidera.data.config import View
from sidera.data.outcomes import session_outcomes
from sidera.data.split import user_groups
from sidera.eval.metrics import auc
from sidera.fit.config import FitConfig
from sidera.fit.log import mean_mfu
from sidera.fit.loop import fit
from sidera.models import build_model
from sidera.models.rankers.pscore import PScore

RANKER_SHARES = (0.5, 0.25, 0.25)  # users who teach the P-Score, the judge, and nobody (kept for online tests)
VALID_SHARE = 0.1  # of a ranker's users choose its best weights
FIT = FitConfig(
    epochs=4, batch_size=64, lr=3e-3, weight_decay=0.01, decay_embeddings=True, eval_every_epochs=0,
    eval_every_steps=100, patience=4, monitor="valid_loss", warmup_steps=50, checkpoint_minutes=60.0,
)  # fmt: skip


@dataclass(frozen=True)
class FittedRanker:
    model: PScore
    aucs: Mapping[str, float]  # on held-out users: of every tower for its label, "p:LABEL" of p for each
    steps: int
    cpu_seconds: float
    mfu: float | None = None  # mean of the training; None where it was too short to be measured


def fit_ranker(
    view: View,
    catalog: Catalog,
    user_mask: np.ndarray,
    out: str | Path,
    *,
    config: PScore.Config | None = None,
    fit_config: FitConfig = FIT,
    seed: int = 0,
) -> FittedRanker:
    """A P-Score of the users in ``user_mask`` (U,), with checkpoints in ``out``; a tenth of them chooses weights."""
    start = time.process_time()
    dataset = view.dataset
    config = config or PScore.Config()
    model = build_model("pscore", config, catalog, seed)
    assert isinstance(model, PScore)
    model.fit_once(replace(view, split=view.split.of_users(dataset, user_mask)))
    asked = user_groups(dataset.user_keys, (1 - VALID_SHARE, VALID_SHARE), salt="valid") == 1
    if not (user_mask & asked).any() or not (user_mask & ~asked).any():
        raise InputError(f"{int(user_mask.sum())} users are too few to train and choose a ranker", allowed="20 or more")
    outcomes = session_outcomes(dataset, config.outcomes)
    source = exposures(view, user_mask & ~asked, config.max_history, fit_config.batch_size, seed, outcomes)
    held_out = list(exposures(view, user_mask & asked, config.max_history, 512, seed, outcomes).batches(0))
    result = fit(
        model, source, replace(fit_config, seed=seed), out, evaluate=lambda network: valid_loss(network, held_out)
    )
    aucs = task_aucs(model, *scored(model, held_out))
    return FittedRanker(model.eval(), aucs, result.steps, time.process_time() - start, mean_mfu(Path(out)))


def exposures(
    view: View,
    user_mask: np.ndarray,
    max_history: int,
    batch_size: int,
    seed: int = 0,
    outcomes: Mapping[str, np.ndarray] | None = None,
) -> RequestRows:
    """Every training exposure of these users as a target of its request."""
    split = view.split.of_users(view.dataset, user_mask)
    return RequestRows(
        view.dataset, split, view.schema, max_history, batch_size, seed, targets="all", outcomes=outcomes
    )


@torch.inference_mode()
def valid_loss(model: Any, batches: list[Batch]) -> dict[str, float]:
    """The mean BCE of p: what chooses the best weights."""
    model.eval()
    found = [model.loss(batch) for batch in batches]
    model.train()
    count = sum(loss.count for loss in found)
    return {"valid_loss": sum(loss.parts["p"] * loss.count for loss in found) / count}


@torch.inference_mode()
def scored(model: PScore, batches: list[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """What the model says of every exposure of the batches (n, tasks), and what came of it (n, objectives)."""
    model.eval()
    scores, labels = [], []
    for batch in batches:
        assert batch.target_ids is not None
        assert batch.target_offsets is not None
        lengths = batch.target_offsets.diff()
        rows = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        columns = torch.arange(len(rows)) - batch.target_offsets[:-1][rows]
        candidates = torch.zeros(len(lengths), int(lengths.max()), dtype=torch.int64)
        candidates[rows, columns] = batch.target_ids
        scores.append(model.score(model.context(batch), candidates)[rows, columns])
        labels.append(model.label_table(batch.target_feedback))
    return torch.cat(scores).numpy(), torch.cat(labels).numpy()


def task_aucs(model: PScore, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Each tower's AUC for its own label, and p's for every label ("p:LABEL"); shares count from one half up."""
    found = {}
    for place, name in enumerate(model.objectives):
        known = np.isfinite(labels[:, place])
        met = labels[known, place] > 0.5
        found[name] = auc(scores[known, 1 + place], met)
        found[f"p:{name}"] = auc(scores[known, 0], met)
    return found
