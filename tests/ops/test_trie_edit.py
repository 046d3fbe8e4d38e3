"""A changed trie is, array for array, the one that is built from the items that are left."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidera.ops import trie_edit
from sidera.ops.trie import CodeTrie
from sidera.ops.trie_edit import with_items, without_items

SIZES = (3, 4, 2)


def arrays(trie: CodeTrie) -> list[list[int]]:
    tables = (*trie.tokens, *trie.ptr, trie.leaf_items, trie.shared_leaves, trie.shared_extra)
    return [table.tolist() for table in tables]


def assert_same(trie: CodeTrie, expected: CodeTrie) -> None:
    assert arrays(trie) == arrays(expected)
    assert [token.dtype for token in trie.tokens] == [token.dtype for token in expected.tokens]
    assert {table.dtype for table in (*trie.ptr, trie.leaf_items, trie.shared_leaves, trie.shared_extra)} == {
        np.dtype(np.int32)
    }
    assert (trie.num_items, trie.level_sizes) == (expected.num_items, expected.level_sizes)


@settings(max_examples=300, deadline=None)
@given(
    levels=st.integers(1, 3),
    codes=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 1)), min_size=2, max_size=30),
    num_first=st.integers(1, 29),
    gone=st.sets(st.integers(0, 29)),
)
def test_it_equals_a_build_of_what_is_left(
    levels: int, codes: list[tuple[int, int, int]], num_first: int, gone: set[int]
) -> None:
    sizes, table = SIZES[:levels], np.array(codes, dtype=np.int32)[:, :levels]
    first = table[: min(num_first, len(table) - 1)]
    new = np.arange(len(first), len(table))
    order = np.random.default_rng(0).permutation(len(first))
    trie = CodeTrie.build(first, sizes, order=order)
    grown = with_items(trie, new, table[new], len(table))
    whole_order = np.concatenate([order, new])  # a new item is served last of its leaf
    assert_same(grown, CodeTrie.build(table, sizes, order=whole_order))
    lost = np.array(sorted(item for item in gone if item < len(table)), dtype=np.int64)
    alive = np.ones(len(table), dtype=bool)
    alive[lost] = False
    left = without_items(grown, lost, table[lost])
    if not alive.any():
        assert left is None
        return
    assert left is not None
    assert_same(left, CodeTrie.build(table, sizes, order=whole_order, alive=alive))
    assert left.item_starts[0][-1] == alive.sum()


def test_nothing_to_do_gives_the_same_tables() -> None:
    table = np.array([[0, 1], [2, 0]], dtype=np.int32)
    trie, nothing = CodeTrie.build(table, (3, 2)), np.empty(0, dtype=np.int64)
    assert without_items(trie, nothing, table[:0]) is trie
    grown = with_items(trie, nothing, table[:0], 5)
    assert (arrays(grown), grown.num_items) == (arrays(trie), 5)


@pytest.mark.parametrize("few_parents", [1, 10**6])
@settings(max_examples=150, deadline=None)
@given(
    levels=st.integers(1, 3),
    codes=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 1)), min_size=2, max_size=30),
    kept=st.sets(st.integers(0, 29), min_size=1),
)
def test_a_part_equals_a_build_of_its_items(
    few_parents: int, levels: int, codes: list[tuple[int, int, int]], kept: set[int]
) -> None:
    """By a search for the parents' first children, and by a look at each node's parent."""
    sizes, table = SIZES[:levels], np.array(codes, dtype=np.int32)[:, :levels]
    trie = CodeTrie.build(table, sizes)
    places = np.array(sorted({place % len(table) for place in kept}))
    alive = np.zeros(len(table), dtype=bool)
    alive[trie.leaf_items[places]] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trie_edit, "FEW_PARENTS", few_parents)
        part, leaves = trie_edit.only_places(trie, places)
    assert_same(part, CodeTrie.build(table, sizes, order=trie.leaf_items, alive=alive))
    assert leaves.tolist() == sorted(set(trie.leaf_of_place[places].tolist()))
    for level, nodes in enumerate(part.part_nodes):
        assert part.tokens[level].tolist() == trie.tokens[level][nodes].tolist()
