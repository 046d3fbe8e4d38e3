"""What every model that scores the whole catalogue promises."""

from __future__ import annotations

import pytest
import torch
from checkerboard_world import SCORERS, batch_of, trained, world

from sidera.roles import Retriever

HISTORIES = [[3, 7], [1], [0, 4, 8, 12]]


@pytest.mark.parametrize("name", SCORERS)
def test_one_score_per_item_and_history(name: str) -> None:
    scores = trained(name).model.item_scores(batch_of(HISTORIES))
    assert scores.shape == (3, world().catalog.num_items)
    assert scores.isfinite().all()


@pytest.mark.parametrize("name", SCORERS)
def test_batch_equals_single(name: str) -> None:
    model = trained(name).model
    with torch.no_grad():
        together = model.item_scores(batch_of(HISTORIES))
        alone = torch.cat([model.item_scores(batch_of([history])) for history in HISTORIES])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in SCORERS if isinstance(trained(name).model, Retriever)])
def test_a_retrievers_score_is_the_best_dot_product(name: str) -> None:
    model = trained(name).model
    with torch.no_grad():
        users, items = model.user_vectors(batch_of(HISTORIES)), model.item_vectors()
        scores = model.item_scores(batch_of(HISTORIES))
    assert users.ndim == 3
    torch.testing.assert_close((users @ items.T).amax(1), scores, rtol=1e-4, atol=1e-4)
