"""A Catalog that lived answers like one that is loaded with the rows that survived."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_catalog import make_catalog

from sidera.catalog import placing
from sidera.catalog.catalog import Catalog
from sidera.catalog.key_index import KeyIndex, hash_keys
from sidera.core import InputError
from sidera.decode.beam import beam_search
from sidera.ops.columns import Texts
from sidera.ops.trie import CodeTrie
from sidera.roles import StepOutput

CHANGES = st.lists(st.tuples(st.sampled_from(["add", "remove", "search", "fork"]), st.integers(0, 10**6)), max_size=25)


class Drawn:
    """A generator whose scores of the next code depend on the codes before it, and on nothing else."""

    codebook_id = "drawn"

    def __init__(self, level_sizes: tuple[int, ...]) -> None:
        self.level_sizes, self.paths = level_sizes, torch.zeros(1, 1, dtype=torch.int64)

    def new_cache(self, context: Any, width: int) -> None:
        self.paths = torch.zeros(1, 1, dtype=torch.int64)

    def step(self, context: Any, cache: Any, level: int, codes: Any, parents: Any) -> StepOutput:
        if codes is not None:
            self.paths = self.paths.gather(1, parents) * 1009 + codes + 1
        phases = (self.paths[..., None] % 9973).double() + torch.arange(self.level_sizes[level]).double() * 1.7
        return StepOutput((3 * torch.sin(phases)).float())


def answers(catalog: Catalog, width: int) -> list[tuple[str, float]]:
    generator: Any = Drawn(catalog.level_sizes)
    context: Any = SimpleNamespace(num_histories=1)
    found = beam_search(generator, context, catalog.trie, width=width, num_results=12)
    kept = found.item_ids[0][found.valid_mask[0]].numpy()
    return list(zip(catalog.item_keys[kept].tolist(), found.scores[0].tolist(), strict=False))


def survivors(catalog: Catalog) -> Catalog:
    """The rows that are not removed, as a catalogue of its own."""
    alive = np.flatnonzero(~catalog.removed)
    rows = {name: getattr(catalog, name)[alive] for name in ("item_keys", "codes", "popularity", "titles")}
    return dataclasses.replace(catalog, **rows, removed=np.zeros(len(alive), bool), ids_by_key=None)


@settings(max_examples=60, deadline=None)
@given(
    collision=st.sampled_from(["greedy", "extra_digit", "share"]),
    changes=CHANGES,
    merge=st.sampled_from([0, 2, 1000]),
)
def test_it_answers_like_one_loaded_with_the_survivors(
    tmp_path_factory: pytest.TempPathFactory, collision: str, changes: list[tuple[str, int]], merge: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placing, "MERGE", merge)
        catalog, other, owners = make_catalog(24, collision, size=4), None, dict[tuple[int, ...], str]()
        for number, (what, choice) in enumerate(changes):
            alive = catalog.item_keys[~catalog.removed]
            if what == "add":
                keys = [f"n{number}-{item}" for item in range(1 + choice % 3)]
                vectors = torch.randn(len(keys), 5, generator=torch.Generator().manual_seed(choice))
                catalog = catalog.with_items(keys, vectors)
            elif what == "remove" and len(alive) > 2:
                catalog = catalog.without([alive[choice % len(alive)]])
            elif what == "search":
                answers(catalog, 5)
            elif what == "fork":  # two versions grow from one
                catalog, other = (other, catalog) if other is not None and choice % 2 else (catalog, catalog)
                owners = {}
            for key, codes in zip(catalog.item_keys, np.asarray(catalog.codes).tolist(), strict=True):
                assert collision == "share" or owners.setdefault(tuple(codes), key) == key  # for ever its own
    folder = tmp_path_factory.mktemp("life") / "catalog"
    survivors(catalog).save(folder)
    loaded = Catalog.load(folder)
    for width in (1, 3, 50):
        assert answers(catalog, width) == answers(loaded, width)
    assert catalog.ids_of(list(catalog.item_keys)).tolist() == list(range(catalog.num_items))
    order = -np.asarray(catalog.popularity)
    assert np.array_equal(catalog.serving_order, np.argsort(order, kind="stable"))


def test_what_is_saved_is_what_lives(tmp_path: Path) -> None:
    catalog = make_catalog(30, "greedy")
    catalog = catalog.with_items(["a", "b"], torch.randn(2, 5), ["A", None]).without(["i4", "a"])
    catalog.save(tmp_path / "catalog")
    loaded = Catalog.load(tmp_path / "catalog")
    assert loaded.content_digest() == catalog.content_digest()
    assert answers(loaded, 9) == answers(catalog, 9)
    assert loaded.titles[30:].tolist() == ["A", None]
    assert np.array_equal(loaded.item_vectors[np.array([30, 2])], np.asarray(catalog.item_vectors)[[30, 2]])


def test_a_change_neither_builds_nor_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = make_catalog(40, "greedy")
    catalog = catalog.with_items(["first"], torch.zeros(1, 5))
    assert catalog.trie.num_leaves == 41
    monkeypatch.setattr(CodeTrie, "build", lambda *_, **__: pytest.fail("a trie was built"))
    monkeypatch.setattr(KeyIndex, "build", lambda *_, **__: pytest.fail("an index was built"))
    after = catalog
    for number in range(5):
        after = after.with_items([f"n{number}"], torch.randn(1, 5)).without([f"i{number}"])
        assert after.trie.num_leaves == 41
    for name in ("codes", "popularity"):
        assert np.shares_memory(getattr(after, name).base, getattr(catalog, name).base)
    assert after.item_keys.base is catalog.item_keys.base
    assert catalog.trie.num_leaves == 41
    assert catalog.num_items == 41


def test_an_item_that_came_and_went_before_any_search() -> None:
    catalog = make_catalog(20, "greedy")
    assert catalog.trie.num_leaves == 20
    after = catalog.with_items(["late"], torch.zeros(1, 5)).without(["late", "i1"])
    assert after.trie.num_leaves == 19
    assert after.trie.num_items == 21
    nothing = after.without([key for key in after.item_keys if not after.removed[after.ids_by_key[key]]])
    with pytest.raises(InputError, match="no item is left"):
        _ = nothing.trie


@pytest.mark.parametrize("width", [1, 2])
def test_keys_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Hashes of only one or two values: nearly every look-up has to compare keys."""
    monkeypatch.setattr("sidera.catalog.key_index.hash_keys", lambda keys: hash_keys(keys) % np.uint64(width))
    keys = [f"k{number}" for number in range(9)]
    index = KeyIndex.build(Texts.of(keys))
    assert index.find([*keys, "k9", "", "k1"]).tolist() == [*range(9), -1, -1, 1]
    with pytest.raises(InputError, match="item id 'k3' occurs 2 times"):
        KeyIndex.build(Texts.of([*keys, "k3"]))


def test_hashes_differ_and_do_not_depend_on_where_a_key_stands() -> None:
    keys = ["", "a", "ab", "a" * 8, "a" * 9, "ü", "a\0", "\0", "x" * 100, *(str(number) for number in range(3000))]
    hashes = hash_keys(pa.array(keys, pa.large_string()))
    assert len(set(hashes.tolist())) == len(keys)
    backwards = hash_keys(pa.array(keys[::-1], pa.large_string()))
    assert np.array_equal(hashes, backwards[::-1])
    assert np.array_equal(hashes[5:9], hash_keys(pa.array(keys, pa.large_string()).slice(5, 4)))
    assert hashes[1] == 6142113039828344369  # files of hashes are read by other processes, years later
