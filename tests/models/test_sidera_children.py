"""sidera's generator in places of children: the search is the one in codes, also where items were removed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hand_made import hand_made
from sidera.decode.beam import Beams, beam_search
from sidera.decode.eligible import SPARSE, Allowed, PrefixMask
from sidera.models.generators.sidera import SideraGenerator
from sidera.ops.tree_link import TreeLink
from sidera.ops.trie import CodeTrie


class InCodes:
    """The same generator for one that knows codes alone."""

    def __init__(self, model: SideraGenerator) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        if name == "child_log_probs":
            raise AttributeError(name)
        return getattr(self._model, name)


def made(sizes: tuple[int, ...], num_items: int, rng: np.random.Generator) -> tuple[SideraGenerator, np.ndarray]:
    """A model of items with distinct codes, in an order of their own."""
    chosen = rng.permutation(int(np.prod(sizes)))[:num_items]
    codes = np.stack(np.unravel_index(chosen, sizes), axis=1)
    catalog: Any = SimpleNamespace(
        codebook_id="c", level_sizes=sizes, item_keys=np.arange(len(codes)), codes=codes, titles=None
    )
    torch.manual_seed(int(rng.integers(2**31)))
    model = SideraGenerator(SideraGenerator.Config(8, 8, 1, 2, dropout=0.0), catalog)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval(), codes


def as_wide(beams: Beams, number: int) -> Beams:
    """With so many columns: how many stand empty behind the last answer is nobody's business."""
    more = number - beams.scores.shape[1]
    columns = {
        "item_ids": F.pad(beams.item_ids, (0, more), value=-1),
        "scores": F.pad(beams.scores, (0, more), value=float("-inf")),
        "valid_mask": F.pad(beams.valid_mask, (0, more), value=False),
        "log_probs": None if beams.log_probs is None else F.pad(beams.log_probs, (0, 0, 0, more)),
    }
    return replace(beams, **columns)


@given(
    st.lists(st.sampled_from([1, 2, 4, 7]), min_size=1, max_size=3), st.integers(1, 40), st.integers(1, 3),
    st.sampled_from([0.3, 0.8, 1.0]), st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_search_in_children_is_the_search_in_codes(
    sizes: list[int], num_items: int, num_histories: int, alive_share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    model, codes = made(tuple(sizes), min(num_items, int(np.prod(sizes))), rng)
    number = len(codes)
    alive = rng.random(number) < alive_share
    alive[0] = True
    trie = CodeTrie.build(codes, tuple(sizes), order=rng.permutation(number), alive=alive)
    lengths = rng.integers(1, 7, num_histories)
    events = torch.from_numpy(rng.integers(0, number, lengths.sum()))
    offsets = torch.from_numpy(np.append(0, np.cumsum(lengths)))
    seen = torch.from_numpy(rng.permutation(np.flatnonzero(alive))[: int(rng.integers(0, 4))])
    search: dict[str, Any] = {
        "width": int(rng.integers(1, 9)),
        "num_results": int(rng.integers(1, 9)),
        "exclude": (seen, torch.tensor([0, *[len(seen)] * num_histories])),  # of the first history
        "log_probs": True,
    }
    if rng.random() < 0.5:
        search["proposals"] = torch.from_numpy(
            rng.permutation(np.flatnonzero(alive))[None, :3].repeat(num_histories, 0)
        )
    filtered = rng.choice(["no", "each its own", "all one, and little is left"])
    if filtered == "each its own":
        search["allowed"] = Allowed.of_items(trie, rng.random((num_histories, number)) < 0.7)
    elif filtered != "no":
        left = np.sort(rng.permutation(trie.leaf_items.size)[: max(1, trie.leaf_items.size // SPARSE)])
        search["allowed"] = Allowed([PrefixMask(trie, left)] * num_histories)
    table = SimpleNamespace(codes=codes, num_items=number)
    with torch.no_grad():
        context = model.context(hand_made(events, offsets, items=table))
        found, expected = (beam_search(one, context, trie, **search) for one in (model, InCodes(model)))
    assert model._links.get(trie, "not asked") is not None
    found, expected = (
        as_wide(beams, max(found.scores.shape[1], expected.scores.shape[1])) for beams in (found, expected)
    )
    assert torch.equal(found.valid_mask, expected.valid_mask)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-5)
    same = found.item_ids == expected.item_ids  # equal but for scores that rounding ties
    assert bool((same | (found.scores - expected.scores).abs().lt(1e-5)).all())
    assert (found.log_probs is None) == (expected.log_probs is None)  # a filter's own trie gives none
    if found.log_probs is not None and expected.log_probs is not None:
        where = same & found.valid_mask
        torch.testing.assert_close(found.log_probs[where], expected.log_probs[where], rtol=1e-4, atol=1e-4)
    assert all(bool(np.isin(row[mask], np.flatnonzero(alive)).all()) for row, mask in zip(
        found.item_ids.numpy(), found.valid_mask.numpy(), strict=True))  # fmt: skip


def link(model: SideraGenerator, trie: CodeTrie) -> TreeLink | None:
    return TreeLink.of(trie, model._levels("starts"), model.leaf_of_item)


def test_a_whole_trie_has_the_models_numbers_and_a_part_its_own() -> None:
    model, codes = made((4, 3), 12, np.random.default_rng(0))
    whole = link(model, CodeTrie.build(codes, (4, 3)))
    assert whole is not None
    assert whole.levels == (None, None)
    first = codes[:, 0] == 1
    part = link(model, CodeTrie.build(codes, (4, 3), alive=~first))
    assert part is not None
    assert part.levels[0] is not None
    assert part.levels[0].own.tolist() == [0, 2, 3]
    assert part.levels[0].numbers.tolist() == [0, 0, 1, 2]
    assert part.levels[0].missing.tolist() == [False, True, False, False]


@pytest.mark.parametrize("kind", ["another item", "an item elsewhere", "a node apart", "a shared leaf"])
def test_a_trie_that_is_no_part_of_the_tree_is_searched_in_codes(kind: str) -> None:
    model, codes = made((4, 3), 11, np.random.default_rng(0))
    free = next(pair for pair in np.ndindex(4, 3) if not (codes == pair).all(1).any())
    elsewhere = int(np.flatnonzero(codes[:, 0] != free[0])[0])
    apart = codes[:, 0] + (codes[:, 0] > 1) + ((codes[:, 0] == 1) & (codes[:, 1] > 0))  # the second node is two nodes
    others = {
        "another item": np.concatenate([codes, [free]]),
        "an item elsewhere": np.where(np.arange(len(codes))[:, None] == elsewhere, free, codes),
        "a node apart": np.stack([apart, codes[:, 1]], axis=1),
        "a shared leaf": np.concatenate([codes[:-1], codes[:1]]),
    }
    trie = CodeTrie.build(others[kind], (5, 3))
    assert link(model, trie) is None


def test_the_link_goes_when_the_tree_grows() -> None:
    model, codes = made((4, 3), 11, np.random.default_rng(0))
    trie = CodeTrie.build(codes, (4, 3))
    model._links[trie] = link(model, trie)
    free = next(pair for pair in np.ndindex(4, 3) if not (codes == pair).all(1).any())
    more: Any = SimpleNamespace(codes=np.concatenate([codes, [free]]))
    model.grow(more)
    assert not model._links
