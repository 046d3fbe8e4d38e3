"""Features that a recipe declares: what a column and what a request becomes, and what is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pytest

from sidera.config import load_recipe, parse_section
from sidera.core import InputError
from sidera.data.config import DataConfig, make_views
from sidera.data.dataset import Dataset
from sidera.data.feature import FeatureConfig
from sidera.data.features import FeatureSchema, fit_schema
from sidera.data.schema import build_dataset

TABLE = {
    "category": ["red", "blue", None, "red"],
    "categories": [["a", "b"], ["b"], [], None],
    "tokens": ["Old red car", "car, car!", None, ""],
    "number": [1.0, 3.0, None, 5.0],
    "vector": [[1.0, 0.0], [3.0, 0.0], None, [2.0, 6.0]],
}


def log(**changes: Any) -> Dataset:
    """Two users with ten events each on four items; ``changes`` are columns of ``events``, ``items`` or ``users``."""
    events = {
        "user": ["u0"] * 10 + ["u1"] * 10,
        "item": [f"i{number % 4}" for number in range(20)],
        "time": list(range(10)) * 2,
        "click": [number % 2 == 0 for number in range(20)],
    }
    items, users = {"key": [f"i{number}" for number in range(4)]}, {"key": ["u0", "u1"]}
    tables = {"events": events, "items": items, "users": users}
    for name, columns in tables.items():
        columns |= changes.get(name, {})
    return build_dataset("log", *(pa.table(table) for table in tables.values()))


def fitted(dataset: Dataset, **declared: FeatureConfig) -> FeatureSchema:
    return fit_schema(dataset, "", np.ones(dataset.num_events, bool), declared=declared)


def of_items(kind: Any, values: list[Any] | None = None, **keys: Any) -> tuple[FeatureSchema, np.ndarray]:
    dataset = log(items={"x": TABLE[kind] if values is None else values})
    schema = fitted(dataset, x=FeatureConfig(kind, "item", **keys))
    return schema, schema.of_items(dataset.items)["x"]


def test_a_category_is_a_place_in_its_vocabulary() -> None:
    schema, column = of_items("category")
    assert schema.features[0].vocabulary == ("blue", "red")
    assert column.tolist() == [2, 1, 0, 2]
    assert of_items("category", vocabulary=("red",))[1].tolist() == [1, 0, 0, 1]
    assert of_items("category", [3, 7, None, 3])[1].tolist() == [1, 2, 0, 1]  # 3.0 and 7.0 with a gap are 3 and 7


def test_a_hashed_category_keeps_no_vocabulary() -> None:
    schema, column = of_items("category", hash_size=100)
    assert schema.features[0].vocabulary == ()
    assert column.tolist() == [1 + crc32(b"red") % 100, 1 + crc32(b"blue") % 100, 0, 1 + crc32(b"red") % 100]
    number, unseen = schema.features[0].encode_values(["red", "nobody saw this", None])
    assert number[[0, 2]].tolist() == [column[0], 0]
    assert unseen == []


def test_lists_keep_their_first_known_values() -> None:
    schema, column = of_items("categories", [["a", "b"], ["b", "c", "a"], [], None], length=2, vocabulary=("a", "c"))
    assert column.tolist() == [[1, 0], [2, 1], [0, 0], [0, 0]]
    assert schema.features[0].encode_values([["zzz", "c"], None])[0].tolist() == [[2, 0], [0, 0]]
    assert of_items("tokens")[1][:2, :4].tolist() == [[2, 3, 1, 0], [1, 1, 0, 0]]  # car old red


def test_numbers_are_standard_and_know_what_is_missing() -> None:
    schema, column = of_items("number", scale="standard")
    assert column[[0, 1, 3]] == pytest.approx(np.array([-2, 0, 2]) / np.std([1, 3, 5]))
    assert np.isnan(column[2])
    assert schema.features[0].has_missing
    plain = of_items("number", [2, 4, 6, 8], scale="none")
    assert plain[1].tolist() == [2, 4, 6, 8]
    assert not plain[0].features[0].has_missing
    far = of_items("number", [0.0, 1.0, 1.0, 1e6])[0].features[0]
    assert far.log == (True,)
    vector = of_items("vector")[1]
    assert vector[:, 0] == pytest.approx([-1.2247449, 1.2247449, np.nan, 0], nan_ok=True)


@pytest.mark.parametrize("kind", ["category", "categories", "tokens", "number", "vector"])
def test_a_request_is_read_as_the_table_was(kind: str) -> None:
    schema, column = of_items(kind)
    values, unseen = schema.features[0].encode_values(TABLE[kind])
    np.testing.assert_array_equal(values, column)
    assert unseen == []
    assert FeatureSchema.from_json(schema.to_json()) == schema


@pytest.mark.parametrize("number", [10**400, 10**5000], ids=["no float holds it", "nor prints Python it"])
@pytest.mark.parametrize("kind", ["category", "categories", "number", "vector"])
def test_a_whole_number_without_end_is_refused(kind: str, number: int) -> None:
    feature = of_items(kind)[0].features[0]
    value = [number] * feature.width if kind == "vector" else number
    with pytest.raises(InputError, match=rf"feature 'x' \({kind} of the item\)"):
        feature.encode_values([value])


def test_features_of_requests_and_events_come_from_the_log() -> None:
    dataset = log(events={"surface": [number % 3 for number in range(20)], "fresh": [True, False] * 10})
    declared = {
        "surface": FeatureConfig("category", "request"),
        "fresh": FeatureConfig("category", "event"),
    }
    schema = fitted(dataset, **declared)
    assert schema.labels == ("click",)  # what is declared is no label
    assert schema.of_log(dataset, "request")["surface"][:4].tolist() == [1, 2, 3, 1]
    assert schema.owned("event")[0].vocabulary == ("false", "true")
    early = fit_schema(dataset, "", np.arange(20) < 2, declared=declared)
    assert early.owned("request")[0].vocabulary == ("0", "1")  # of training events alone


def test_the_digest_names_every_setting() -> None:
    dataset = log(items={"x": ["a", "b", "c", "d"]})
    entries = [
        FeatureConfig("category", "item", source="x"),
        FeatureConfig("category", "item", source="x", hash_size=8),
        FeatureConfig("category", "item", source="x", hash_size=9),
        FeatureConfig("category", "item", source="x", vocabulary=("a",)),
        FeatureConfig("category", "item", source="x", required=False),
        FeatureConfig("categories", "item", source="x"),
        FeatureConfig("categories", "item", source="x", length=3),
    ]
    assert len({fitted(dataset, y=entry).digest for entry in entries}) == len(entries)
    other = log(items={"x": ["a", "b", "c", "e"]})
    assert fitted(other, y=entries[0]).digest != fitted(dataset, y=entries[0]).digest


def refused(text: str, match: str) -> None:
    import tomllib

    with pytest.raises(InputError, match=match) as error:
        parse_section(DataConfig, tomllib.loads(text), "[data]")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ('kind = "colour"\nowner = "item"', r"\[data.features.x\] kind = 'colour' is not known; allowed: 'category'"),
        ('kind = "number"', r"\[data.features.x\] lacks owner"),
        ('kind = "number"\nowner = "shop"', r"owner = 'shop' is not known"),
        ('kind = "number"\nowner = "item"\nhash_size = 9', r"kind = 'number' has no hash_size; allowed: with category"),
        ('kind = "category"\nowner = "item"\nscale = "log"', "kind = 'category' has no scale"),
        ('kind = "category"\nowner = "item"\nlength = 3', "kind = 'category' has no length"),
        (
            'kind = "category"\nowner = "item"\nhash_size = 0',
            r"hash_size = 0 is out of range; allowed: 1 to 16,777,216",
        ),
        ('kind = "category"\nowner = "item"\nvocabulary = ["a", "a"]', "vocabulary holds 'a' twice"),
        ('kind = "category"\nowner = "item"\nvocabulary = [""]', "vocabulary holds ''"),
        ('kind = "category"\nowner = "item"\nvocabulary = ["a"]\nhash_size = 3', "a vocabulary and a hash_size"),
        ('kind = "text"\nowner = "user"', 'is a text of the user; allowed: owner = "item"'),
        ('kind = "tokens"\nowner = "item"\nvocab = ["a"]', r"has no key 'vocab' \(did you mean 'vocabulary'\?\)"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(table: str, match: str) -> None:
    refused(f"[features.x]\n{table}\n", match)


def test_a_feature_declared_twice_is_refused(tmp_path: Any) -> None:
    one = 'kind = "category"\nowner = "item"\nsource = "brand"\n'
    refused(
        f"[features.a]\n{one}[features.b]\n{one}", r"'brand' is declared twice as category: \[data.features.a\] and"
    )
    recipe = tmp_path / "twice.toml"
    recipe.write_text(f"[data.features.a]\n{one}[data.features.a]\n{one}")
    with pytest.raises(InputError, match="not valid TOML: Cannot declare"):
        load_recipe(recipe)


@pytest.mark.parametrize(
    ("kind", "values", "match"),
    [
        ("number", ["a", "b", "c", "d"], r"feature 'x' \(number of the item\) is read from a column of string"),
        ("category", [0.5, 1.0, 2.0, 3.0], 'read from fractions; allowed: .*fix: declare it as a number'),
        ("vector", [1.0, 2.0, 3.0, 4.0], "column of double; allowed: lists of numbers"),
        ("vector", [[1.0], [1.0, 2.0], [1.0], [1.0]], "has 2 numbers in row 1; allowed: 1, as in the others"),
        ("categories", [[0.5]] * 4, "read from fractions"),
        ("number", [None] * 4, "has no value in any row"),
        ("vector", [[], None, [], []], "has no value in any row"),
        ("category", ["", None, "", ""], "has no value in any row"),
    ],
)  # fmt: skip
def test_a_column_of_another_kind_is_refused(kind: str, values: list[Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        of_items(kind, values)


def test_a_column_that_is_not_there_is_refused() -> None:
    for owner, allowed in (("item", "size"), ("user", "nothing: it has no column"), ("event", "click")):
        with pytest.raises(InputError, match=f"read from 'x', which the {owner}'s table has not; allowed: {allowed}"):
            fitted(log(items={"size": [1.0] * 4}), x=FeatureConfig("number", owner))  # type: ignore[arg-type]


def test_what_came_of_a_request_is_no_feature_of_it() -> None:
    with pytest.raises(InputError, match="of the request and read from 'click', which is known only afterwards"):
        fitted(log(), click=FeatureConfig("category", "request"))


def test_a_million_values_ask_for_a_hash_size() -> None:
    names = [str(number) for number in range(10**6)]
    dataset = replace(log(), items=pa.table({"key": names, "sku": names}))
    with pytest.raises(InputError, match=r"has 1,000,000 values; allowed: .* 262,144; fix: hash_size = 524288"):
        fitted(dataset, sku=FeatureConfig("category", "item"))
    schema = fitted(dataset, sku=FeatureConfig("category", "item", hash_size=2**19))
    assert schema.of_items(dataset.items)["sku"].max() <= 2**19


def test_new_items_bring_the_columns_that_are_required() -> None:
    schema, _ = of_items("category")
    new = pa.table({"key": ["i9"], "title": ["x"]})
    with pytest.raises(InputError, match=r"the items have no column 'x', which feature 'x' .* fix: add the column"):
        schema.of_items(new)
    assert schema.of_items(new.append_column("x", pa.array(["green"])))["x"].tolist() == [0]
    assert of_items("category", required=False)[0].of_items(new)["x"].tolist() == [0]


def test_texts_go_to_the_catalogue() -> None:
    declared = {"blurb": FeatureConfig("text", "item", source="story"), "size": FeatureConfig("number", "item")}
    assert DataConfig(features=declared).text_columns == ("story",)
    dataset = log(items={"story": ["a", "b", "c", "d"], "size": [1, 2, 3, 4]})
    assert [feature.name for feature in make_views(dataset, DataConfig(features=declared))[0].schema.features] == [
        "size"
    ]
    with pytest.raises(InputError, match="text_fields and features of kind text"):
        DataConfig(features=declared, text_fields=("title",))
