"""v1's session reward: towers over lists, learned from the lists that were shown."""

from __future__ import annotations

import pytest
import torch
from labelled_log import labelled_view

from hand_made import read_log
from sidera.core import InputError
from sidera.data.batches import ExposureRows
from sidera.models.rankers.pscore import PScore
from sidera.models.rankers.session_reward import SessionReward

ITEM = PScore.Config(max_history=24, width=16, hidden=32, tower_width=8, dropout=0.0)


def make(**changes: object) -> SessionReward:
    torch.manual_seed(0)
    return SessionReward(SessionReward.Config(item=ITEM, **changes), labelled_view()[1])  # type: ignore[arg-type]


def rows() -> ExposureRows:
    view, _ = labelled_view()
    return ExposureRows(read_log(view.dataset, 24, view.schema), view.split, 64)


def test_its_labels_are_those_of_the_list() -> None:
    model, batch = make(), next(rows().batches(0))
    assert model.tasks == ("swt", "vtr", "ltr")  # nobody can follow in this log
    labels = model.labels(batch)
    assert batch.targets.offsets is not None
    for row in range(5):
        low, high = batch.targets.offsets[row : row + 2].tolist()
        shown = {name: values[low:high] for name, values in batch.targets.feedback.items()}
        assert float(labels["vtr"][row]) == pytest.approx(float(shown["long_view"].mean()))
        assert float(labels["ltr"][row]) == float(shown["like"].max())


def test_it_learns_and_lists_of_liked_items_are_worth_more() -> None:
    model = make().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for epoch in range(2):
        for batch in rows().batches(epoch):
            loss = model.loss(batch)
            optimizer.zero_grad()
            (loss.total / loss.count).backward()
            optimizer.step()
            losses.append(float(loss.total.detach()) / loss.count)
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    model.eval()
    view, _ = labelled_view()
    batch = next(rows().batches(9))
    assert batch.requests.user_ids is not None
    number = torch.tensor([int(str(view.dataset.user_keys[user])[1:]) for user in batch.requests.user_ids])
    item = torch.tensor([int(str(key)[1:]) for key in view.dataset.item_keys])
    liked = torch.stack([torch.nonzero(item % 4 == topic).flatten()[:4] for topic in (number // 2) % 4])
    others = torch.stack([torch.nonzero(item % 4 == (topic + 1) % 4).flatten()[:4] for topic in (number // 2) % 4])
    scores = model.session_scores(batch, torch.stack([liked, others], dim=1))
    assert scores.shape == (batch.num_histories, 2)
    assert (scores[:, 0] > scores[:, 1]).float().mean() > 0.75  # chance: 0.5


def test_a_place_that_is_empty_counts_for_nothing() -> None:
    model, batch = make().eval(), next(rows().batches(0)).cut(0, 3)
    short = torch.tensor([[[1, 2, 3]]]).expand(3, -1, -1)
    longer = torch.tensor([[[1, 2, 3, -1, -1]]]).expand(3, -1, -1)
    torch.testing.assert_close(model.session_scores(batch, short), model.session_scores(batch, longer))
    assert model.session_scores(batch, torch.full((3, 1, 2), -1)).isfinite().all()


def test_weights_are_of_towers() -> None:
    with pytest.raises(InputError, match="weights names 'vrt'"):
        make(weights={"vrt": 1.0})
