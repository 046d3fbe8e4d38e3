"""Rankers and list rewards of *some users*: what alignment is rewarded by, and the judge that checks it.

    groups = user_groups(dataset.user_keys, RANKER_SHARES)          # reward, judge, online test
    taught = teach(ranking, view, groups == 0, FIT, out)

``sidera run`` trains a ranker on the training part of all users and measures it on what came later
(``train/stages.py``). Here half of the users teach, a tenth of them chooses the best weights, and the network is
measured on that tenth.

A reward that is judged by itself only goes up. So a second network of the same family learns from other users: the
*judge*. Trap: it shares the first one's blind spots (what neither can see, both get wrong alike), so a policy that the
judge likes may still be hollow; only outcomes of real exposures tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sidera.batch import Batch
from sidera.core import InputError
from sidera.data.config import View
from sidera.data.split import user_groups
from sidera.engine.ranking import Ranking
from sidera.eval.config import EvalConfig
from sidera.eval.ranker_evaluation import RankerEvaluation, evaluation_of, part_batches, quick_figures
from sidera.fit.config import FitConfig
from sidera.fit.loop import FitResult, fit
from sidera.models import fit_once

RANKER_SHARES = (0.5, 0.25, 0.25)  # users who teach the reward, the judge, and nobody (kept for online tests)
VALID_SHARE = 0.1  # of a ranker's users choose its best weights
FIT = FitConfig(
    epochs=4, batch_size=64, lr=3e-3, weight_decay=0.01, decay_embeddings=True, eval_every_epochs=0,
    eval_every_steps=100, patience=4, monitor="valid_loss", warmup_steps=50, checkpoint_minutes=60.0,
)  # fmt: skip


@dataclass(frozen=True)
class Taught:
    result: FitResult
    evaluation: RankerEvaluation  # on the users who chose the weights: of exposures that were not learned from


def teach(
    ranking: Ranking, view: View, user_mask: np.ndarray, config: FitConfig, out: str | Path, name: str = ""
) -> Taught:
    """Train the network on the training exposures of the users in ``user_mask`` (U,), with checkpoints in ``out``."""
    dataset, model = view.dataset, ranking.model
    asked = user_groups(dataset.user_keys, (1 - VALID_SHARE, VALID_SHARE), salt="valid") == 1
    if not (user_mask & asked).any() or not (user_mask & ~asked).any():
        raise InputError(f"{int(user_mask.sum())} users are too few to train and choose a ranker", allowed="20 or more")
    fit_once(model, replace(view, split=view.split.of_users(dataset, user_mask)))
    reading = ranking.read_log(dataset)
    learned, held_out = (view.split.of_users(dataset, mask) for mask in (user_mask & ~asked, user_mask & asked))
    source = model.feed(reading, learned, config.batch_size, config.seed)
    batches = list(model.feed(reading, held_out, 512, config.seed).batches(0))
    result = fit(model, source, config, out, evaluate=lambda _: quick_figures(ranking, batches), device=ranking.device)
    model.eval()
    measured = evaluation_of(ranking, view, batches, "held-out users", EvalConfig(seed=config.seed), name=name)
    return Taught(result, measured)


def validation(ranking: Ranking, view: View, config: EvalConfig) -> Callable[[object], Mapping[str, float]]:
    """Figures of a seeded sample of the validation part's requests: what chooses a training's best weights."""
    number = config.valid_rows if isinstance(config.valid_rows, int) else None
    batches: list[Batch] = list(part_batches(ranking, view, "valid", config.batch_size, number, config.seed))
    return lambda _: quick_figures(ranking, batches)
