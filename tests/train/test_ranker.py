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
from sidera.engine.ranking import Ranking
from sidera.models import build_model, parse_model
from sidera.train.ranker import FIT, RANKER_SHARES, teach

SMALL = {"max_history": 16, "width": 16, "hidden": 32, "tower_width": 8, "dropout": 0.0, "outcomes": ("stays",)}
QUICK = replace(FIT, epochs=12, batch_size=48, lr=1e-2, warmup_steps=5, eval_every_steps=20)


def ranking() -> Ranking:
    section = {"name": "pscore", **SMALL}
    return Ranking(build_model(*parse_model(section), labelled_view()[1]), labelled_view()[1], section)


def test_it_ranks_what_its_users_did(tmp_path: Path) -> None:
    view, _ = labelled_view()
    mine = user_groups(view.dataset.user_keys, RANKER_SHARES) == 0
    one = ranking()
    taught = teach(one, view, mine, QUICK, tmp_path)
    figures = taught.evaluation.metrics
    assert figures["like"]["auc"].low > 0.7
    assert figures["p:like"]["gauc"].value > 0.6
    assert one.model.tasks[-1] == "stays"
    judged = set(taught.evaluation.judgements["user"].to_pylist())
    assert judged < set(view.dataset.user_keys[mine])
    again = ranking()
    teach(again, view, mine, QUICK, tmp_path)  # resumed: it is finished
    for name, tensor in one.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], tensor)


def test_scorer_and_judge_share_no_user() -> None:
    view, _ = labelled_view()
    groups = user_groups(view.dataset.user_keys, RANKER_SHARES)
    one = ranking()
    reading = one.read_log(view.dataset)
    splits = [view.split.of_users(view.dataset, groups == group) for group in range(3)]
    users = [set(one.model.feed(reading, split, 32).user_ids.tolist()) for split in splits]
    assert all(users)
    assert not users[0] & users[1]
    assert not (users[0] | users[1]) & users[2]


def test_too_few_users_are_refused(tmp_path: Path) -> None:
    view, _ = labelled_view()
    nobody = np.arange(view.dataset.num_users) < 1
    with pytest.raises(InputError, match="1 users are too few"):
        teach(ranking(), view, nobody, QUICK, tmp_path)
