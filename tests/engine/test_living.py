"""Items that come, change and go: all of a message or nothing, twice is once, and every model answers them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sidera.catalog.build import build_catalog
from sidera.catalog.catalog import Catalog
from sidera.catalog.config import CatalogConfig
from sidera.config import digest
from sidera.core import InputError
from sidera.data.feature import Feature
from sidera.data.features import fit_schema
from sidera.data.split import leave_one_out
from sidera.data.tiny import tiny_log
from sidera.engine.items_log import Conflict, ItemsLog
from sidera.engine.living import Changes, Delta, ItemChange, applied, replayed
from sidera.ops.columns import Column
from sidera.ops.trie import CodeTrie


def world(collision: str = "extra_digit") -> Catalog:
    log = tiny_log(60, 40, 0)
    split = leave_one_out(log)
    config = CatalogConfig(
        vectors=("behaviour",), quantizer={"num_levels": 2, "codebook_size": 16}, vector_dim=8, collision=collision
    )
    return build_catalog(log, split, config, fit_schema(log, "", np.ones(log.num_events, bool)))[0]


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return world()


def same_tries(one: Catalog) -> None:
    built = CodeTrie.build(
        np.asarray(one.codes), one.level_sizes, order=one.serving_order, alive=~np.asarray(one.removed)
    )
    for mine, theirs in zip((*one.trie.tokens, *one.trie.ptr), (*built.tokens, *built.ptr), strict=True):
        assert np.array_equal(mine, theirs)
    assert np.array_equal(one.trie.leaf_items, built.leaf_items)


def test_a_message_adds_changes_and_removes_at_once(catalog: Catalog) -> None:
    keys = catalog.item_keys.tolist()
    delta = Delta((ItemChange("new", str(catalog.titles[3])), ItemChange(keys[1], "another name")), (keys[0], "nobody"))
    after, changes, _ = applied(catalog, delta)
    assert changes == Changes(added=("new",), changed=(keys[1],), removed=(keys[0],), absent=("nobody",))
    assert after.items_version == catalog.items_version + 1
    assert after.titles[1] == "another name"
    assert catalog.titles[1] != "another name", "the version before stays what it was"
    assert after.codes[1].tolist() == catalog.codes[1].tolist()
    assert bool(after.removed[0])
    assert int(after.find_ids(["new"])[0]) == catalog.num_items
    assert after.codes[catalog.num_items][0] == catalog.codes[3][0], "an item that is called alike lies near"
    same_tries(after)
    again, nothing, _ = applied(after, delta)
    assert not nothing
    assert again is after


def test_a_removed_item_comes_back_under_its_code(catalog: Catalog) -> None:
    key = str(catalog.item_keys[5])
    gone = applied(catalog, Delta(removed=(key,)))[0]
    back, changes, _ = applied(gone, Delta((ItemChange(key),)))
    assert changes.restored == (key,)
    assert back.codes[5].tolist() == catalog.codes[5].tolist()
    assert not back.removed.any()
    same_tries(back)


@pytest.mark.parametrize("collision", ["extra_digit", "greedy", "share"])
def test_the_trie_after_any_changes_is_the_trie_of_what_is_there(collision: str) -> None:
    now, rng = world(collision), np.random.default_rng(0)
    for step in range(60):
        keys, removed = np.array(now.item_keys.tolist(), dtype=object), np.asarray(now.removed)
        some = rng.permutation(np.flatnonzero(~removed))[:3]
        backs = rng.permutation(np.flatnonzero(removed))[: rng.integers(3)]
        new = [ItemChange(f"new {step} {n}", f"tea {step}") for n in range(rng.integers(2))]
        upserts = (*new, *(ItemChange(str(key)) for key in keys[backs]))
        now, _, _ = applied(now, Delta(upserts, tuple(map(str, keys[some[: rng.integers(4)]]))))
        if rng.random() < 0.6:
            same_tries(now)


def test_a_message_that_cannot_be_applied_changes_nothing(catalog: Catalog) -> None:
    key = str(catalog.item_keys[0])
    for delta, words in (
        (Delta((ItemChange(key, "x"),), (key,)), "named twice"),
        (Delta((ItemChange("a", vector=[1.0]), ItemChange("b", "c"))), "has 1 numbers; allowed: 8"),
        (Delta((ItemChange(key, vector=[0.0] * 8),)), "keeps its code"),
        (Delta((ItemChange("a", vector=[float("nan")] * 8),)), "NaN or inf"),
        (Delta(removed=tuple(catalog.item_keys.tolist())), "removes the last items"),
        (Delta((ItemChange("a", fields={"brand": "x"}), ItemChange("b", fields={"brand": 3}))), "field 'brand'"),
    ):
        with pytest.raises(InputError, match=words):
            applied(catalog, delta)


def test_the_log_gives_the_same_items_on_the_same_codes(catalog: Catalog) -> None:
    log, now = ItemsLog(None), catalog
    for number in range(1, 6):
        delta = Delta(
            (ItemChange(f"n{number}", f"{catalog.titles[number]} of {number}"),), (str(now.item_keys[number]),)
        )
        after, _, body = applied(now, delta)
        with log.writing():
            assert not log.is_known(number, delta.content())
            log.append("items", number, after.items_version, body, digest(delta.content()))
        now = after
    assert log.is_known(5, delta.content())
    again = replayed(catalog, log.after(0))
    assert again.content_digest() == now.content_digest()
    other = world("greedy")
    foreign = replayed(other, log.after(0))
    assert foreign.num_items == other.num_items + 5, "another codebook takes in the same items"
    apart = catalog.with_items(["apart"], None, ["apart"], None, now.codes[np.array([catalog.num_items])])
    both = replayed(apart, log.after(0))
    assert len({*map(tuple, both.codes.tolist())}) == both.num_items, "no code means two items"
    with pytest.raises(Conflict, match="was applied with other content"):
        log.is_known(5, Delta().content())
    with pytest.raises(Conflict, match="comes behind message 5"):
        log.is_known(0, Delta().content())


VALUES = ("x", "7", 7, 7.5, True, None, ["x", "y"], [7], [7, 1.5], ["x", None], [], "x|y", 2**60, -1)


@pytest.mark.parametrize("seed", range(8))
def test_messages_that_are_accepted_one_by_one_are_accepted_again_at_a_start(seed: int) -> None:
    """Whatever kinds of values they hold in one field, one after the other, of new items and of old ones."""
    rng, log = np.random.default_rng(seed), ItemsLog(None)
    now = first = furnished(world())
    taken = 0
    for number in range(1, 60):
        keys = rng.choice(["a", "b", "c", "d", "e", *first.item_keys.tolist()[:3]], 2, replace=False).tolist()
        upserts = [
            ItemChange(key, None if rng.random() < 0.5 else f"tea {number}", {
                name: VALUES[rng.integers(len(VALUES))]
                for name in ("brand", "tags", "price", "other", "") if rng.random() < 0.4
            })
            for key in keys
        ]  # fmt: skip
        delta = Delta((upserts[0],), (keys[1],)) if rng.random() < 0.3 else Delta(tuple(upserts))
        try:
            after, _, body = applied(now, delta)
        except InputError:
            continue
        with log.writing():
            log.append("items", number, after.items_version, body, digest(delta.content()))
        now, taken = after, taken + 1
    again = replayed(first, log.after(0))
    assert taken > 10
    assert again.content_digest() == now.content_digest()


def furnished(catalog: Catalog) -> Catalog:
    """With a category, several categories and a number of each item."""
    features = (
        Feature("brand", "category", "item", "brand", ("x", "y", "7")),
        Feature("tags", "categories", "item", "tags", ("x", "y", "7"), length=4),
        Feature("price", "number", "item", "price", log=(False,), mean=(0.0,), spread=(1.0,)),
    )  # fmt: skip
    schema = replace(catalog.schema, features=features)
    columns = {name: Column.of(values) for name, values in schema.of_items(pa.table({
        name: pa.nulls(catalog.num_items) for name in ("brand", "tags", "price")
    })).items()}  # fmt: skip
    return replace(catalog, schema=schema, features=columns)


def test_an_error_inside_a_transaction_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    log = ItemsLog(tmp_path / "items.sqlite")

    def fail() -> None:
        with log.writing():
            log.append("items", 1, 2, {}, "x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert log.after(0) == []
