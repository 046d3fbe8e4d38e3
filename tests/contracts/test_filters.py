"""Filters of a request: exact against a slow filter, for generators, list writers and scorers, alone and in batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from checkerboard_world import ALL, build, recommender, world

from sidera.catalog.catalog import Catalog
from sidera.cli.filtering import filter_of
from sidera.core import Clause, Filter, InputError, Request
from sidera.data.feature import Feature
from sidera.decode.exact import score_all_items
from sidera.engine import filters
from sidera.engine.filters import filter_table
from sidera.engine.recommender import Recommender
from sidera.models import fit_once
from sidera.ops.columns import Column

BRANDS, KINDS = ("acme", "globex", "initech"), ("a", "b")
MODELS = ("sidera", "tiger", "liger", "cobra", "onerec_v2", "onerec_v1", "sasrec", "item_knn")
OLD = ("item0003", "item0007")


def furnished(catalog: Catalog) -> Catalog:
    """The catalogue with two columns of categories; 0 is unknown."""
    rng = np.random.default_rng(0)
    columns = {"brand": rng.integers(0, 4, catalog.num_items), "kind": rng.integers(0, 3, catalog.num_items)}
    vocabularies = {"brand": BRANDS, "kind": KINDS}
    features = tuple(Feature(name, "category", "item", name, values) for name, values in vocabularies.items())
    schema = replace(catalog.schema, features=features)
    return replace(
        catalog, schema=schema, features={name: Column.of(values) for name, values in columns.items()},
        popularity=Column.of(rng.integers(0, 20, catalog.num_items)),
    )  # fmt: skip


def passes(catalog: Catalog, conditions: dict[str, Any]) -> set[str]:
    """Keys of the items that pass, one item at a time."""
    vocabularies = {"brand": BRANDS, "kind": KINDS}
    found = set()
    for item, key in enumerate(catalog.item_keys.tolist()):
        good = not catalog.removed[np.array([item])][0]
        for column, condition in conditions.items():
            if column == "popularity":
                number = int(catalog.popularity[np.array([item])][0])
                good &= condition.get("min", 0) <= number <= condition.get("max", 99)
                continue
            value = key if column == "item" else (None, *vocabularies[column])[int(catalog.features[column][item])]
            negated = isinstance(condition, dict)
            values = condition["not"] if negated else condition
            good &= (value in ([values] if isinstance(values, str) else values)) != negated
        if good:
            found.add(key)
    return found


CONDITIONS: list[dict[str, Any]] = [
    {"brand": "acme"},
    {"brand": ["acme", "globex"], "popularity": {"min": 5}},
    {"brand": {"not": "acme"}, "kind": ["a", "b"], "popularity": {"min": 3, "max": 9}},
    {"item": ["item0001", "item0002", "nothing"]},
    {"item": {"not": ["item0001", "item0002"]}, "kind": {"not": ["b"]}},
    {"popularity": {"max": 0}},
    {"brand": "nobody"},
    {"brand": []},
]


def filterable(name: str) -> Recommender:
    model = build(name)
    fit_once(model, world().prepared.view)
    one = recommender(name, model.eval())
    one.snapshot = replace(one.snapshot, catalog=furnished(one.catalog))
    return one


@pytest.mark.parametrize("name", [name for name in MODELS if name in ALL])
def test_every_answer_passes_and_there_are_k_where_k_pass(name: str) -> None:
    """Alone and together with neighbours that have another filter, or none; a generator's scores are the exact ones."""
    one = filterable(name)
    catalog, filters = one.catalog, [Filter.of(conditions) for conditions in CONDITIONS]
    questions = [Request(OLD, k=5, filter_seen=False, filter=given) for given in filters]
    questions.append(Request(OLD, k=5, filter_seen=False))
    together = one.recommend(questions)
    for question, conditions, answer in zip(questions, CONDITIONS, together, strict=False):
        eligible = passes(catalog, conditions)
        assert answer.eligible == len(eligible)
        assert set(answer.item_keys) <= eligible
        assert len(answer.item_keys) == min(5, len(eligible))
        (alone,) = one.recommend([question])
        assert alone.item_keys == answer.item_keys
    assert together[-1].eligible is None
    assert together[-1].item_keys == one.recommend([OLD], k=5, filter_seen=False)[0].item_keys


def test_a_narrow_beam_is_not_starved_by_dead_prefixes() -> None:
    """One beam, and items of which the search alone would write none: the best eligible one is answered."""
    one = filterable("tiger")
    snapshot = one.snapshot
    with torch.inference_mode():
        batch = one.reading.batch(snapshot.catalog.ids_of(OLD), np.array([0, 2]))
        exact = score_all_items(snapshot.generator, snapshot.readable(batch), snapshot.catalog.trie)[0]
    worst = exact.masked_fill(exact == -torch.inf, torch.inf).argsort()[:3].tolist()
    keys = [str(snapshot.catalog.item_keys[item]) for item in worst]
    one.beam = 1
    (answer,) = one.recommend([Request(OLD, k=3, filter_seen=False, filter=Filter.of({"item": keys}))])
    assert sorted(answer.item_keys) == sorted(keys)
    assert answer.scores == pytest.approx([float(exact[item]) for item in answer.item_ids], abs=1e-4)


def test_filters_hold_for_who_is_not_known_and_beside_exclusions() -> None:
    one = filterable("tiger")
    eligible = passes(one.catalog, {"brand": "acme"})
    chosen = Filter.of({"brand": "acme"})
    (cold,) = one.recommend([Request((), k=500, filter=chosen)])
    assert cold.cold_start
    assert set(cold.item_keys) == eligible
    gone = sorted(eligible)[:-2]
    (answer,) = one.recommend([Request(OLD, k=10, filter_seen=False, filter=chosen, exclude=tuple(gone))])
    assert set(answer.item_keys) == eligible - set(gone)


def test_removed_items_and_new_ones_have_their_own_masks() -> None:
    one = filterable("tiger")
    chosen = Filter.of({"brand": "acme"})
    (before,) = one.recommend([Request(OLD, k=3, filter_seen=False, filter=chosen)])
    one.use_catalog(one.catalog.without(before.item_keys))
    (after,) = one.recommend([Request(OLD, k=3, filter_seen=False, filter=chosen)])
    assert not set(before.item_keys) & set(after.item_keys)
    assert after.eligible == before.eligible - 3


def test_columns_that_are_named_together_are_indexed_together_and_leave_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second question of a pair makes its index."""
    monkeypatch.setattr(filters, "PAIRED", 1)
    monkeypatch.setattr(filters, "LEAST_RUN", 0)
    catalog = furnished(world().catalog).without(["item0005"])
    table = filter_table(catalog)
    for number in range(4):  # masks are kept by filter: each turn asks for another one
        low = {"popularity": {"min": number}}
        for conditions in (
            {"brand": ["acme", "globex"], "kind": {"not": "a"}}, {"kind": "a"}, {"brand": "acme"}, {"kind": "nobody"},
            {"brand": {"not": "acme"}, "kind": ["a", "b"], "item": {"not": "item0001"}},
        ):  # fmt: skip
            mask = table.item_mask(Filter.of(conditions | low))
            assert set(catalog.item_keys.take(np.flatnonzero(mask))) == passes(catalog, conditions | low)
    assert any(pair is not None for pair in table._pairs.values())


@pytest.mark.parametrize("paired", [1, 10**9])
def test_what_is_left_is_what_a_look_at_every_item_leaves(monkeypatch: pytest.MonkeyPatch, paired: int) -> None:
    """Ranges, single values, many values and their negations, of three columns, in every order of their sizes."""
    monkeypatch.setattr(filters, "PAIRED", paired)
    monkeypatch.setattr(filters, "LEAST_RUN", 0)
    rng, catalog, sizes = np.random.default_rng(0), world().catalog, {"brand": 9, "kind": 3}
    columns = {name: rng.integers(0, size + 1, catalog.num_items) for name, size in sizes.items()}
    vocabularies = {name: tuple(f"{name}{value}" for value in range(1, size + 1)) for name, size in sizes.items()}
    features = tuple(Feature(name, "category", "item", name, values) for name, values in vocabularies.items())
    popularity = rng.integers(0, 300, catalog.num_items)
    catalog = replace(
        catalog, schema=replace(catalog.schema, features=features), popularity=Column.of(popularity),
        features={name: Column.of(values) for name, values in columns.items()},
    )  # fmt: skip
    table = filter_table(catalog)
    for _ in range(300):
        conditions, expected = dict[str, Any](), np.ones(catalog.num_items, dtype=bool)
        for name in rng.permutation(["brand", "kind", "popularity"])[: rng.integers(1, 4)].tolist():
            if name == "popularity":
                low, high = sorted(rng.integers(-5, 310, 2).tolist())
                conditions[name] = {"min": low, "max": high}
                expected &= (popularity >= low) & (popularity <= high)
                continue
            numbers = rng.choice(sizes[name], rng.integers(1, sizes[name] + 1), replace=False) + 1
            values, negated = [f"{name}{number}" for number in numbers], bool(rng.integers(2))
            conditions[name] = {"not": values} if negated else values
            expected &= np.isin(columns[name], numbers) != negated
        assert table.item_mask(Filter.of(conditions)).tolist() == expected.tolist()


def test_masks_are_kept_by_filter_and_are_the_same_in_another_order() -> None:
    catalog = furnished(world().catalog)
    table = filter_table(catalog)
    assert filter_table(catalog) is table
    first = table.prefix_mask(Filter.of({"brand": ["acme", "globex"], "kind": "a"}))
    assert table.prefix_mask(Filter.of({"kind": ["a"], "brand": ["globex", "acme"]})) is first
    assert table.item_mask(Filter.of({"kind": "a", "brand": ["acme", "globex"]})).sum() == first.num_items


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({"colour": "red"}, "the filter names column 'colour'; allowed: item, popularity, brand, kind"),
        ({"brand": {"min": 3}}, "the filter's column 'brand' is given a range (3 to None); allowed: texts"),
        ({"popularity": "many"}, "the filter's column 'popularity' is given values (many); allowed: a range"),
        ({"brand": {"above": 3}}, "the filter's condition on 'brand' is {'above': 3}; allowed: a value"),
        ({"brand": {}}, "the filter's condition on 'brand' is {}"),
        ({"popularity": {"min": float("nan")}}, "the filter's condition on 'popularity'"),
        ({"brand": [["acme"]]}, "the filter's condition on 'brand'"),
        ({"brand": True}, "the filter's condition on 'brand'"),
    ],
)
def test_what_no_item_can_be_asked_is_refused(conditions: dict[str, Any], words: str) -> None:
    one = filterable("item_knn")
    with pytest.raises(InputError) as error:
        one.recommend([Request(OLD, filter=Filter.of(conditions))])
    assert words in str(error.value)


def test_conditions_as_they_are_typed() -> None:
    assert filter_of([]) is None
    assert filter_of(["brand=acme, globex", "popularity>=2", "popularity<=7.5", "kind!=a"]) == Filter(
        (
            Clause("brand", ("acme", "globex")),
            Clause("kind", ("a",), negated=True),
            Clause("popularity", low=2.0, high=7.5),
        )
    )
    for texts in (["brand"], ["popularity>=x"], ["brand=a", "brand=b"], ["brand=a", "brand>=1"], ["=a"]):
        with pytest.raises(InputError, match="--filter"):
            filter_of(texts)


def test_of_several_values_of_an_item_one_is_enough() -> None:
    catalog = world().catalog
    tags = np.stack([np.arange(catalog.num_items) % 3, np.arange(catalog.num_items) % 2 * 3], axis=1)  # 0: none
    feature = Feature("tags", "categories", "item", "tags", ("x", "y", "z"))
    schema = replace(catalog.schema, features=(feature,))
    table = filter_table(replace(catalog, schema=schema, features={"tags": Column.of(tags)}))
    for conditions, numbers, negated in (
        ({"tags": ["x", "z"]}, [1, 3], False), ({"tags": {"not": "z"}}, [3], True), ({"tags": "w"}, [], False),
    ):  # fmt: skip
        expected = np.isin(tags, numbers).any(1) != negated
        assert table.item_mask(Filter.of(conditions)).tolist() == expected.tolist()
    both = table.item_mask(Filter.of({"tags": "x", "item": ["item0001", "item0002"]}))
    assert np.flatnonzero(both).tolist() == [1]
