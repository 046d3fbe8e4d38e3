"""The listing of all items is the beam search that prunes nothing, with what it says of every code."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from worlds import World, worlds

from sidera.decode import listing
from sidera.decode.beam import beam_search
from sidera.decode.eligible import NEG_INF, Eligible
from sidera.decode.listing import list_items, lists_whole


@settings(max_examples=60, deadline=None)
@given(worlds())
@torch.inference_mode()
def test_a_listing_is_the_search_that_prunes_nothing(world: World) -> None:
    trie, device = world.trie, torch.device("cpu")
    context = world.generator.context(world.batch)
    number = trie.leaf_items.size
    found = beam_search(
        world.generator, context, trie, width=max(trie.num_nodes), num_results=number, exclude=world.exclude,
        log_probs=True,
    )  # fmt: skip
    listed = list_items(world.generator, context, trie, log_probs=True)
    of_codes = listed.of_codes(torch.arange(number).expand(world.num_histories, -1))
    Eligible(trie, world.num_histories, device, world.exclude).close_all(listed.scores)
    for row in range(world.num_histories):
        valid = found.valid_mask[row]
        places = trie.places_of(found.item_ids[row][valid])
        torch.testing.assert_close(listed.scores[row][places], found.scores[row][valid])
        torch.testing.assert_close(of_codes[row][places], found.log_probs[row][valid])
        assert int((listed.scores[row] > NEG_INF).sum()) == int(valid.sum())
    assert torch.equal(list_items(world.generator, context, trie).item_ids, torch.from_numpy(trie.leaf_items).long())


@settings(max_examples=20, deadline=None)
@given(worlds())
def test_what_is_listed_has_few_prefixes_and_few_items(world: World) -> None:
    prefixes, items = max(world.trie.num_nodes[:-1], default=1), world.trie.leaf_items.size
    for most_prefixes, most_items, lists in (
        (prefixes, items, True), (prefixes - 1, items, False), (prefixes, items - 1, False),
    ):  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(listing, "MOST_PREFIXES", most_prefixes)
            patch.setattr(listing, "MOST_LISTED", most_items)
            assert lists_whole(world.trie) is lists
