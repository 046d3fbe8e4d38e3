"""A P-Score and its judge: taught by other users, chosen on held-out ones, better than chance."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "models"))
from labelled_log import labelled_view

from sidera.core import InputError
from sidera.data.split import user_groups
from sidera.models.rankers.pscore import PScore
from sidera.train.ranker import FIT, RANKER_SHARES, exposures, fit_ranker

SMALL = PScore.Config(max_history=16, width=16, hidden=32, tower_width=8, dropout=0.0, outcomes=("stays",))
QUICK = replace(FIT, epochs=12, batch_size=48, lr=1e-2, warmup_steps=5, eval_every_steps=20)


def test_it_ranks_what_its_users_did(tmp_path: Path) -> None:
    view, catalog = labelled_view()
    groups = user_groups(view.dataset.user_keys, RANKER_SHARES)
    fitted = fit_ranker(view, catalog, groups == 0, tmp_path, config=SMALL, fit_config=QUICK)
    assert fitted.aucs["like"] > 0.8
    assert fitted.aucs["p:like"] > 0.7
    assert fitted.mfu is not None
    assert 0 < fitted.mfu < 1
    assert fitted.model.tasks[-1] == "stays"
    assert fitted.model.items.numbers.abs().sum() > 0
    again = fit_ranker(view, catalog, groups == 0, tmp_path, config=SMALL, fit_config=QUICK)  # resumed: it is finished
    for name, tensor in fitted.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], tensor)


def test_scorer_and_judge_share_no_user() -> None:
    view, _ = labelled_view()
    groups = user_groups(view.dataset.user_keys, RANKER_SHARES)
    users = [set(exposures(view, groups == group, 16, 32).user_ids.tolist()) for group in range(3)]
    assert all(users)
    assert not users[0] & users[1]
    assert not (users[0] | users[1]) & users[2]


def test_too_few_users_are_refused(tmp_path: Path) -> None:
    view, catalog = labelled_view()
    nobody = np.arange(view.dataset.num_users) < 1
    with pytest.raises(InputError, match="1 users are too few"):
        fit_ranker(view, catalog, nobody, tmp_path, config=SMALL, fit_config=QUICK)
