"""A recorded search answers what the search answers, whatever sizes it was rounded up to and whoever was asked before.

Here a recording is a function that is called again: it reads and writes the memory of a plan as a CUDA graph does.
``benchmarks/gpu.py`` and ``test_every_model_on_cuda.py`` ask a device.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from checkerboard_world import GENERATORS, batch_of, build, world

from sidera.decode import graph
from sidera.decode.beam import beam_search
from sidera.decode.eligible import Allowed
from sidera.decode.graph import GraphedSearch
from sidera.models import fit_once

FIELDS = ("item_ids", "leaf_ids", "sids", "valid_mask")


def again(call: Callable[[], None]) -> Callable[[], None]:
    call()
    return call


def ready(name: str) -> torch.nn.Module:
    model = build(name)
    fit_once(model, world().prepared.view)
    return model.eval()


def histories(number: int, longest: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 20, rng.integers(1, longest + 1)) for _ in range(number)]


@pytest.mark.parametrize("name", GENERATORS)
def test_a_recorded_search_is_the_search(name: str) -> None:
    model, trie = ready(name), world().catalog.trie
    search, rng = GraphedSearch(model, trie, again), np.random.default_rng(0)
    for number, longest, seed in ((1, 3, 0), (3, 5, 1), (4, 2, 2), (1, 6, 3), (3, 6, 4)):
        batch = batch_of(histories(number, longest, seed))
        masks = Allowed.of_items(trie, rng.random((number, trie.num_items)) < 0.5) if seed % 2 else None
        exclude = (batch.item_ids, batch.events.offsets) if seed < 3 else None
        settings = {"width": 4, "num_results": 6, "exclude": exclude, "allowed": masks}
        with torch.inference_mode():
            context = model.context(batch)
            expected = beam_search(model, context, trie, **settings)
            for _ in range(2):  # recorded, and played
                found = search(context, **settings)
                for field in FIELDS:
                    assert torch.equal(getattr(found, field), getattr(expected, field)), (field, seed)
                torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-5)
    assert search.reasons == {}
    assert len(search._plans) < 10


def test_plans_are_shared_by_like_sizes_and_dropped_with_their_weights() -> None:
    model, trie = ready("onerec_v2"), world().catalog.trie
    search = GraphedSearch(model, trie, again)
    settings = {"width": 4, "num_results": 3}
    with torch.inference_mode():
        for longest in (2, 4, 6):
            search(model.context(batch_of(histories(3, longest, longest))), **settings)
    assert len(search._plans) == 1
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    batch = batch_of(histories(3, 4, 0))
    with torch.inference_mode():
        found = search(model.context(batch), **settings)
        expected = beam_search(model, model.context(batch), trie, **settings)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_recorded_is_answered_step_by_step_and_says_why() -> None:
    model, trie = ready("tiger"), world().catalog.trie
    settings, batch = {"width": 4, "num_results": 3}, batch_of(histories(2, 4, 0))

    def refused(call: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    with torch.inference_mode():
        context = model.context(batch)
        expected = beam_search(model, context, trie, **settings)
        broken, elsewhere = GraphedSearch(model, trie, refused), GraphedSearch(model, trie)
        with pytest.warns(RuntimeWarning, match="runs step by step"):
            answers = [broken(context, **settings)]
        answers += [broken(context, **settings), elsewhere(context, **settings)]
    assert all(torch.equal(answer.item_ids, expected.item_ids) for answer in answers)
    assert broken.reasons == {"RuntimeError: operation not permitted when stream is capturing": 2}
    if not torch.cuda.is_available():
        assert elsewhere.reasons == {"device cpu has no graphs": 1}


def test_sizes_are_few() -> None:
    sizes = [graph._rounded(number) for number in range(1, 257)]
    assert all(size >= number for number, size in enumerate(sizes, 1))
    assert sorted(set(sizes)) == [1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256]
    assert graph._rounded(3, 16) == 16
