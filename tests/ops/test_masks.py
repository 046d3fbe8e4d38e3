"""Masks by the flip of one token: it shows in what may read it, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from sidera.ops.masks import added, causal


@pytest.mark.parametrize(("queries", "keys", "newest"), [(5, 5, None), (5, 5, 1), (5, 5, 3), (3, 7, None), (3, 7, 2)])
def test_a_flipped_key_shows_where_it_may_be_read(queries: int, keys: int, newest: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(queries, keys, generator=generator)
    values = torch.randn(keys, 4, generator=generator)
    padding = torch.arange(keys) != 1  # a key that nobody reads
    mask = causal(queries, keys, newest) & padding
    if newest is not None:
        mask[:, keys - queries] = True  # so that every row reads something
    read = (scores + added(mask, scores)).softmax(1) @ values
    for key in range(keys):
        flipped = values.index_fill(0, torch.tensor(key), 9.0)
        changed = ((scores + added(mask, scores)).softmax(1) @ flipped != read).any(1)
        assert changed.tolist() == mask[:, key].tolist()


def test_whom_a_query_reads() -> None:
    assert causal(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert causal(2, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert causal(2, 4, newest=2).int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
    half = added(torch.tensor([True, False]), torch.zeros(1, dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert half.tolist() == [0.0, float("-inf")]
