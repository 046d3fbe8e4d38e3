"""Dataset as an artifact: what is saved is what is loaded, and damage is noticed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidera.core import ArtifactError
from sidera.data.dataset import Dataset
from sidera.data.schema import build_dataset


@pytest.fixture
def dataset() -> Dataset:
    events = pa.table(
        {
            "user": ["v", "u", "u", "v", "u"],
            "item": ["b", "a", "c", "b", "a"],
            "time": [5, 9, 9, 9, 2],
            "rating": [4.0, None, 1.5, 2.0, 3.0],
            "liked": [True, False, True, True, False],
        }
    )
    items = pa.table({"key": ["a", "b", "x"], "title": ["A", None, "X"], "categories": [["p", "q"], [], None]})
    return build_dataset("shop", events, items, pa.table({"key": ["u", "v"], "age": [1, 2]}))


def test_save_and_load_give_the_same(dataset: Dataset, tmp_path: Path) -> None:
    dataset.save(tmp_path / "lr=3" / "shop")  # a folder name that Parquet readers like to turn into a column
    loaded = Dataset.load(tmp_path / "lr=3" / "shop")
    assert loaded.digest == dataset.digest
    for name in ("item_keys", "user_keys", "offsets", "item_ids", "times"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(dataset, name), err_msg=name)
        assert getattr(loaded, name).dtype == getattr(dataset, name).dtype, name
    assert loaded.feedback.keys() == dataset.feedback.keys() == {"rating", "liked"}
    for name, values in dataset.feedback.items():
        np.testing.assert_array_equal(loaded.feedback[name], values)
    assert loaded.items.equals(dataset.items)
    assert loaded.users.equals(dataset.users)
    assert (loaded.name, loaded.time_kind, loaded.notes) == (dataset.name, dataset.time_kind, dataset.notes)
    assert pq.read_schema(tmp_path / "lr=3" / "shop" / "events.parquet").names[:3] == ["user", "item", "time"]


def test_order_only_survives_saving(tmp_path: Path) -> None:
    made = build_dataset("x", pa.table({"user": ["u", "u"], "item": ["a", "b"], "position": [1, 0]}))
    made.save(tmp_path / "x")
    assert Dataset.load(tmp_path / "x").time_kind == "order"


def test_digest_names_the_content(dataset: Dataset) -> None:
    same = dataclasses.replace(
        dataset,
        name="other",
        notes={"a": 1},
        items=pa.concat_tables([dataset.items.slice(0, 1), dataset.items.slice(1)]),
    )
    assert same.digest == dataset.digest
    wide = dataset.items.cast(
        pa.schema([(f.name, pa.large_string() if f.type == pa.string() else f.type) for f in dataset.items.schema])
    )
    assert dataclasses.replace(dataset, items=wide).digest == dataset.digest

    title = dataset.items.column_names.index("title")
    changed = {
        "event": {"item_ids": dataset.item_ids[::-1].copy()},
        "time": {"times": dataset.times + 1},
        "kind": {"time_kind": "order"},
        "feedback": {"feedback": {**dataset.feedback, "liked": ~dataset.feedback["liked"]}},
        "null becomes empty": {"items": dataset.items.set_column(title, "title", pa.array(["A", "", "X", None]))},
        "letters move": {"items": dataset.items.set_column(title, "title", pa.array(["AX", None, "", None]))},
        "users": {"users": dataset.users.drop_columns(["age"])},
    }
    digests = {name: dataclasses.replace(dataset, **change).digest for name, change in changed.items()}
    assert len({*digests.values(), dataset.digest}) == len(changed) + 1, digests


@pytest.mark.parametrize("damage", ["truncate", "edit", "remove", "kind"])
def test_damage_is_noticed(dataset: Dataset, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "shop"
    dataset.save(folder)
    events = folder / "events.parquet"
    if damage == "truncate":
        events.write_bytes(events.read_bytes()[:-20])
    elif damage == "edit":
        pq.write_table(pq.read_table(events).slice(1), events)
    elif damage == "remove":
        events.unlink()
    else:
        manifest = folder / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"kind": "dataset"', '"kind": "model"'))
    with pytest.raises(ArtifactError):
        Dataset.load(folder)


def test_a_failed_save_leaves_the_old_one(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset.save(tmp_path / "shop")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk)
    with pytest.raises(OSError, match="No space"):
        dataclasses.replace(dataset, times=dataset.times + 1).save(tmp_path / "shop")
    assert Dataset.load(tmp_path / "shop").digest == dataset.digest
    assert [path.name for path in tmp_path.iterdir()] == ["shop"]
