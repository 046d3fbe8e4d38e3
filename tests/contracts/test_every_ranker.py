"""What every ranker and list reward of MODELS promises, on a log where it is known who likes what."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "models"))
from labelled_log import NUM_ITEMS, labelled_view

from sidera.batch import Batch
from sidera.core import ArtifactError
from sidera.engine.ranking import Ranking
from sidera.eval.ranker_evaluation import judged, quick_figures
from sidera.models import MODELS, RANKING, build_model, fit_once, parse_model, role_of
from sidera.roles import Ranker

NAMES = sorted(name for name in MODELS if role_of(name) in RANKING)
RANKERS = [name for name in NAMES if role_of(name) == "ranker"]
REWARDS = [name for name in NAMES if role_of(name) == "reward"]


@cache
def ranking(name: str) -> Ranking:
    """Untrained but fitted to the log, with defaults: small enough for a test."""
    view, catalog = labelled_view()
    one, config = parse_model({"name": name})
    model = build_model(one, config, catalog, seed=0)
    fit_once(model, view)
    return Ranking(model, catalog, {"name": name})


def batch(name: str, size: int = 12) -> Batch:
    view, _ = labelled_view()
    one = ranking(name)
    return next(one.model.feed(one.read_log(view.dataset), view.split, size).batches(0))


def score(name: str, asked: Batch, shown: torch.Tensor) -> torch.Tensor:
    model: Any = ranking(name).model.eval()
    with torch.inference_mode():
        return model.score(model.context(asked), shown)


def lists(rows: int, seed: int = 0) -> torch.Tensor:
    """(B, G, m) distinct items."""
    drawn = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(NUM_ITEMS, generator=drawn)[:15].view(3, 5) for _ in range(rows)])


@pytest.mark.parametrize("name", NAMES)
def test_it_plays_its_role_and_finds_nothing_alone(name: str) -> None:
    model = ranking(name).model
    assert isinstance(model, Ranker)
    assert model.reads.feedback
    assert len(set(model.tasks)) == len(model.tasks)
    with pytest.raises(ArtifactError, match="no ranker at"):
        Ranking.load(Path("nowhere"))


@pytest.mark.parametrize("name", RANKERS)
def test_candidates_do_not_see_each_other(name: str) -> None:
    """In another order, alone and in chunks every candidate has the same numbers."""
    asked = batch(name)
    shown = torch.arange(NUM_ITEMS).expand(asked.num_histories, -1)
    whole = score(name, asked, shown)
    assert whole.shape == (*shown.shape, len(ranking(name).model.tasks))
    order = torch.randperm(NUM_ITEMS, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(score(name, asked, shown[:, order]), whole[:, order], rtol=1e-4, atol=1e-5)
    chunks = torch.cat([score(name, asked, part) for part in shown.split(7, dim=1)], dim=1)
    torch.testing.assert_close(chunks, whole, rtol=1e-4, atol=1e-5)
    other = shown.clone()
    other[:, 1:] = 3
    torch.testing.assert_close(score(name, asked, other)[:, 0], whole[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", REWARDS)
def test_lists_do_not_see_each_other(name: str) -> None:
    asked = batch(name)
    shown = lists(asked.num_histories)
    whole = score(name, asked, shown)
    assert whole.shape == (*shown.shape[:2], len(ranking(name).model.tasks))
    torch.testing.assert_close(score(name, asked, shown.flip(1)), whole.flip(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(score(name, asked, shown[:, :1]), whole[:, :1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_request_has_the_same_numbers_alone_and_among_others(name: str) -> None:
    asked = batch(name)
    rows = asked.num_histories
    shown = lists(rows) if name in REWARDS else lists(rows)[:, 0]
    whole = score(name, asked, shown)
    alone = torch.cat([score(name, asked.cut(row, row + 1), shown[row : row + 1]) for row in range(rows)])
    torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_its_labels_are_between_0_and_1_and_of_its_tasks(name: str) -> None:
    asked, model = batch(name), ranking(name).model
    labels = model.labels(asked)
    assert labels
    assert set(labels) <= set(model.tasks)
    count = asked.num_histories if name in REWARDS else len(asked.target_ids)
    for values in labels.values():
        assert values.shape == (count,)
        assert ((values >= 0) & (values <= 1) | values.isnan()).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_came_of_the_targets_is_known_to_the_loss_alone(name: str) -> None:
    """Label flip: other labels, another loss and gradient; the same scores."""
    asked, model = batch(name), ranking(name).model.eval()
    assert asked.targets is not None
    given = asked.targets.feedback
    flipped = {key: 1 - values if key in ("click", "like", "dislike") else values for key, values in given.items()}
    other = replace(asked, targets=replace(asked.targets, feedback=flipped))
    losses = [float(model.loss(each).total.detach()) for each in (asked, other)]
    assert abs(losses[0] - losses[1]) > 1e-3
    assert all(loss > 0 for loss in losses)
    shown = lists(asked.num_histories) if name in REWARDS else lists(asked.num_histories)[:, 0]
    assert torch.equal(score(name, asked, shown), score(name, other, shown))


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_a_sum_over_targets(name: str) -> None:
    """Two halves of a batch add up, where no weight is drawn from the batch itself."""
    asked, model = batch(name), ranking(name).model.eval()
    middle = asked.num_histories // 2
    whole = model.loss(asked)
    parts = [model.loss(half) for half in (asked.cut(0, middle), asked.cut(middle, asked.num_histories))]
    assert whole.count == sum(part.count for part in parts)
    for task, mean in whole.parts.items():
        halves = sum(part.parts[task] * part.count for part in parts)
        assert mean * whole.count == pytest.approx(halves, rel=1e-4), task


@pytest.mark.parametrize("name", NAMES)
def test_steps_make_it_better_and_saving_keeps_it(name: str, tmp_path: Path) -> None:
    view, catalog = labelled_view()
    one, config = parse_model({"name": name})
    model: Any = build_model(one, config, catalog, seed=0)
    fit_once(model, view)
    trained = Ranking(model, catalog, {"name": name})
    source = model.feed(trained.read_log(view.dataset), view.split, 48)
    batches = list(source.batches(9))
    before = quick_figures(trained, batches)
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=5e-3)
    for each in (batch for epoch in range(3) for batch in source.batches(epoch)):
        loss = model.loss(each)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    model.eval()
    assert quick_figures(trained, batches)["valid_loss"] < before["valid_loss"]
    trained.save_model(tmp_path / "model", digest="d", parents={})
    loaded = Ranking.load(tmp_path, catalog)
    assert (loaded.version, loaded.role) == ("d", role_of(name))
    assert (judged(loaded, batches).predicted == judged(trained, batches).predicted).all()
