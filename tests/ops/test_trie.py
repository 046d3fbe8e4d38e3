"""CodeTrie against a nested dictionary of the same items."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidera.core import InputError
from sidera.ops.trie import CodeTrie


def reference(codes, order, alive):
    """Prefix -> its next codes, and sid -> item ids in serving order."""
    children, items = {}, {}
    for item in order:
        if alive[item]:
            sid = tuple(int(code) for code in codes[item])
            items.setdefault(sid, []).append(int(item))
            for level, code in enumerate(sid):
                children.setdefault(sid[:level], set()).add(code)
    return children, items


def prefixes_of(trie):
    """Per level the prefix of every node, read from tokens and ptr."""
    levels = [[(int(code),) for code in trie.tokens[0]]]
    for level, ptr in enumerate(trie.ptr):
        parents = np.repeat(np.arange(len(ptr) - 1), np.diff(ptr))
        levels.append(
            [(*levels[-1][parent], int(code)) for parent, code in zip(parents, trie.tokens[level + 1], strict=True)]
        )
    return levels


@st.composite
def catalogues(draw):
    sizes = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 5, 40]), min_size=1, max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_items = draw(st.integers(1, 60))
    codes = np.stack([rng.integers(0, size, num_items) for size in sizes], axis=1).astype(np.int32)
    order = rng.permutation(num_items) if draw(st.booleans()) else None
    alive = rng.random(num_items) < 0.7 if draw(st.booleans()) else None
    if alive is not None and not alive.any():
        alive[0] = True
    return codes, sizes, order, alive


@given(catalogues())
@settings(max_examples=120, deadline=None)
def test_trie_holds_what_a_nested_dictionary_holds(catalogue):
    codes, sizes, order, alive = catalogue
    num_items = len(codes)
    trie = CodeTrie.build(codes, sizes, order=order, alive=alive)
    alive = np.ones(num_items, dtype=bool) if alive is None else alive
    children, items = reference(codes, np.arange(num_items) if order is None else order, alive)

    levels = prefixes_of(trie)
    for level, prefixes in enumerate(levels):
        assert prefixes == sorted((*prefix, c) for prefix in children if len(prefix) == level for c in children[prefix])
    leaf_ptr = trie.leaf_ptr
    for leaf, sid in enumerate(levels[-1]):
        assert trie.leaf_items[leaf_ptr[leaf] : leaf_ptr[leaf + 1]].tolist() == items[sid] == trie.lookup(sid).tolist()
    assert trie.leaf_codes(np.arange(trie.num_leaves)).tolist() == [list(sid) for sid in levels[-1]]
    leaves = trie.leaf_of_item()
    assert [leaf >= 0 for leaf in leaves] == alive.tolist()
    assert (trie.leaf_codes(leaves[alive]) == codes[alive]).all()


@given(catalogues(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_find_answers_any_integers(catalogue, seed):
    codes, sizes, order, alive = catalogue
    trie = CodeTrie.build(codes, sizes, order=order, alive=alive)
    known = {tuple(sid): leaf for leaf, sid in enumerate(trie.leaf_codes(np.arange(trie.num_leaves)).tolist())}
    asked = np.random.default_rng(seed).integers(-2, max(sizes) + 2, (5, 40, len(sizes)))
    asked[0, : min(40, len(codes))] = codes[:40]
    expected = np.array([[known.get(tuple(sid), -1) for sid in row] for row in asked.tolist()])
    assert (trie.find(asked) == expected).all()
    assert (trie.legal(asked) == (expected >= 0)).all()


@given(catalogues())
@settings(max_examples=30, deadline=None)
def test_tensors_answer_as_the_arrays_do(catalogue):
    trie = CodeTrie.build(*catalogue)
    tables, leaves = trie.tensors("cpu"), np.arange(trie.num_leaves)
    assert tables is trie.tensors("cpu")
    assert (tables.leaf_codes(torch.from_numpy(leaves)).numpy() == trie.leaf_codes(leaves)).all()
    assert (tables.leaf_starts(torch.from_numpy(leaves)).numpy() == trie.leaf_starts(leaves)).all()


def test_codes_too_wide_for_one_integer_build_the_same_trie():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, (200, 8))
    narrow, wide = CodeTrie.build(codes, (3,) * 8), CodeTrie.build(codes, (2048,) * 8)
    for small, large in zip((*narrow.ptr, *narrow.tokens), (*wide.ptr, *wide.tokens), strict=True):
        assert (small == large).all()
    assert (narrow.leaf_items == wide.leaf_items).all()


def test_codes_beyond_int16():
    codes = np.array([[0, 40_000], [39_999, 32_768], [39_999, 5]])
    trie = CodeTrie.build(codes, (40_000, 50_000))
    assert trie.tokens[0].dtype == np.int32
    assert trie.find(codes).tolist() == [0, 2, 1]


def test_memory_of_unique_semantic_ids():
    """2 bytes a node, 4 bytes of offset above the last level, 4 bytes an item."""
    codes = np.stack(np.divmod(np.arange(10_000), 100), axis=1)
    trie = CodeTrie.build(codes, (100, 100))
    assert trie.nbytes == 2 * (100 + 10_000) + 4 * 101 + 4 * 10_000 + 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"codes": np.array([[0, 3]])}, "item 0 has code 3 at level 1; allowed: 0 to 2"),
        ({"codes": np.array([[0, 1], [-1, 1]])}, "item 1 has code -1 at level 0"),
        ({"codes": np.array([0, 1])}, "shape (2,)"),
        ({"codes": np.array([[0.5, 1.0]])}, "float64"),
        ({"level_sizes": (2, 3, 4)}, "codes have 2 levels and level_sizes has 3"),
        ({"order": np.array([0, 0])}, "order does not list every item id once"),
        ({"order": np.array([0])}, "order has shape (1,)"),
        ({"alive": np.array([True])}, "alive has shape (1,)"),
        ({"alive": np.array([False, False])}, "no item is left"),
        ({"codes": np.zeros((0, 2), dtype=int)}, "no item is left"),
    ],
)
def test_bad_input_is_named(change, words):
    arguments = {"codes": np.array([[0, 1], [1, 2]]), "level_sizes": (2, 3), **change}
    with pytest.raises(InputError) as error:
        CodeTrie.build(**arguments)
    assert words in str(error.value)


def test_find_names_the_wrong_shape():
    with pytest.raises(InputError, match=r"semantic IDs of shape \(1, 3\)"):
        CodeTrie.build(np.array([[0, 1]]), (2, 3)).find(np.zeros((1, 3), dtype=int))


def test_runs_of_items_below_every_node() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, (40, 3))  # 27 semantic IDs at most: many items share one
    alive = rng.random(40) < 0.8
    trie = CodeTrie.build(codes, (3, 3, 3), alive=alive)
    places = trie.place_of_item
    assert (places[~alive] == alive.sum()).all()
    assert trie.leaf_items[places[alive]].tolist() == np.flatnonzero(alive).tolist()
    for level in range(3):
        prefixes = {tuple(codes[item, : level + 1]) for item in np.flatnonzero(alive)}
        number = {prefix: node for node, prefix in enumerate(sorted(prefixes))}  # nodes stand in this order
        starts = trie.item_starts[level]
        for item in np.flatnonzero(alive):
            node = number[tuple(codes[item, : level + 1])]
            assert starts[node] <= places[item] < starts[node + 1]
        assert starts.size == len(number) + 1
        assert trie.ranges().fewest[level] == np.diff(starts).min()


def test_the_most_candidates_of_a_search_are_those_of_the_largest_nodes() -> None:
    rng = np.random.default_rng(0)
    trie = CodeTrie.build(rng.integers(0, 4, (60, 3)) ** 2 % 7, (7, 7, 7))
    children = [sorted(np.diff(ptr), reverse=True) for ptr in trie.ptr]
    first, second, third, items = trie.most_children(2)
    assert (first, second, third) == (trie.num_nodes[0], sum(children[0][:2]), sum(children[1][:2]))
    assert items == sum(sorted(np.diff(trie.item_starts[1]), reverse=True)[:2])
    assert trie.most_children(1000) == (*trie.num_nodes, 60)
