"""Artifacts that somebody wrote by hand, with digests that fit: loaded as they were, or refused in one line, at once.

A digest finds damage. Here every file is changed *and* its digest with it, as a program would that writes artifacts of
its own, so that what is left to hold are the checks of names, kinds, ranges and shapes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hand_made import finder
from sidera import artifacts, bounds
from sidera.align.measure import Measured
from sidera.artifacts import Manifest, writing
from sidera.core import ArtifactError, InputError
from sidera.data.dataset import Dataset
from sidera.engine.recommender import Recommender
from sidera.eval.evaluation import load_evaluation
from sidera.fit.checkpoint import load_checkpoint, save_checkpoint
from sidera.loading import open_artifact
from sidera.sim.source import world_source
from sidera.store.embedded import EmbeddedStore
from sidera.store.events import Events
from sidera.store.history_store import CatalogIds
from sidera.store.lifelong import LifelongConfig
from sidera.store.store_representatives import CatalogItems, StoreRepresentatives
from sidera.store.user_events import HEAD, checked

HISTORIES = [["item0003", "item0007"], ["item0011"]]
AT_ONCE = 10.0  # seconds of this process: a busy machine still takes far less, an allocation of gigabytes far more
Change = Callable[[dict[str, Any]], object]


def reseal(folder: Path, change: Change = lambda record: None) -> None:
    """Change the manifest, and make its digests fit what lies there now."""
    path = folder / "manifest.json"
    record = json.loads(path.read_text())
    record.pop("seal", None)
    for name in record["files"]:
        if (folder / name).is_file():
            record["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    change(record)
    path.write_text(json.dumps({**record, "seal": artifacts._seal(record)}))


def put(*keys_and_value: Any) -> Change:
    """A change that sets ``record[key]...`` to the last argument."""
    *keys, last, value = keys_and_value

    def change(record: dict[str, Any]) -> None:
        for key in keys:
            record = record[key]
        record[last] = value

    return change


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def refused(load: Callable[[], object]) -> str:
    began = time.process_time()
    with pytest.raises(ArtifactError) as caught:
        load()
    assert time.process_time() - began < AT_ONCE
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


def answers(run: Path) -> list[Any]:
    return Recommender.load(run).recommend(HISTORIES, k=5)


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


# -- what is not listed is not read ------------------------------------------------------------------------------------


BESIDE = ["weights-99999.safetensors", "weights-00001.safetensors", "weights-000000.safetensors",
          "sub/weights-00000.safetensors", "recipe.json", "notes.txt"]  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_a_file_beside_the_listed_ones_changes_nothing(run: Path, name: str) -> None:
    expected = answers(run)
    weights = load_file(run / "model" / "weights-00000.safetensors")
    (run / "model" / name).parent.mkdir(exist_ok=True)
    save_file({key: tensor + 1 for key, tensor in weights.items()}, run / "model" / name)
    assert answers(run) == expected
    for place in ("catalog", "evaluation"):
        shutil.copyfile(run / "model" / name, run / place / Path(name).name)
    assert answers(run) == expected
    load_evaluation(run / "evaluation")


def test_nor_beside_a_data_set_a_checkpoint_or_a_history(trained_run: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(trained_run.parent / "data", data)
    digest = Dataset.load(data).digest
    shutil.copyfile(data / "users.parquet", data / "events-2.parquet")
    assert Dataset.load(data).digest == digest
    save_checkpoint(tmp_path / "c", {"a": torch.ones(3)}, {"step": 1}, {"x": 1})
    save_file({"a#1": torch.ones(3), "b#0": torch.ones(1)}, tmp_path / "c" / "weights-00001.safetensors")
    tensors, _ = load_checkpoint(tmp_path / "c", {"x": 1})
    assert list(tensors) == ["a"]
    assert tensors["a"].tolist() == [1, 1, 1]


def test_what_was_hashed_is_what_is_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file under the same name, put there while loading, is refused or not seen; never used unchecked."""
    expected, file = answers(run), run / "model" / "weights-00000.safetensors"
    others = {key: tensor + 1 for key, tensor in load_file(file).items()}
    compare = open_artifact(run / "model", "model").__class__._compare

    def swapped(self: Any, name: str, content: Any) -> None:
        compare(self, name, content)
        if name == file.name:
            save_file(others, tmp := file.with_name(".other"))
            os.replace(tmp, file)

    monkeypatch.setattr("sidera.loading.Opened._compare", swapped)
    assert answers(run) == expected
    monkeypatch.undo()
    assert "was edited" in refused(lambda: answers(run))


# -- manifests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "change", "named"),
    [
        ("model", put("files", None), "files = None is no dict"),
        ("model", put("files", []), "files = [] is no dict"),
        ("model", put("files", {"/etc/passwd": "0" * 64}), "the file name '/etc/passwd' is not allowed"),
        ("model", put("files", {"../recipe.json": "0" * 64}), "the file name '../recipe.json' is not allowed"),
        ("model", put("files", {"a\\b": "0" * 64}), "is not allowed"),
        ("model", put("files", {"nul.txt": "0" * 64}), "is not allowed"),
        ("model", put("files", {"\ud800": "0" * 64}), "is not allowed"),
        ("model", put("files", {"manifest.json": "0" * 64}), "is not allowed"),
        ("model", put("files", "weights-00000.safetensors", None), "the digest None of file"),
        ("model", put("files", "weights-00000.safetensors", "0" * 63), "is none"),
        ("model", put("files", "weights-00001.safetensors", "0" * 64), "lacks its file weights-00001.safetensors"),
        ("model", put("kind", None), "holds a None, not a model"),
        ("model", put("digest", 5), "digest = 5 is no str"),
        ("model", put("parents", [1]), "parents = [1] is no dict"),
        ("model", put("parents", {"data": 1}), "parent data = 1 is no digest"),
        ("model", put("another", 1), "unknown field 'another'"),
        ("model", put("info", "x", nested(100)), "is damaged"),
        ("model", put("info", "num_items", -5), "num_items = -5"),
        ("model", put("info", "num_items", 10**12), "it knows 1,000,000,000,000 items, the catalogue holds 24"),
        ("model", put("info", "num_items", 10**40), "num_items = 1000"),
        ("model", put("info", "num_items", True), "num_items = True is no int"),
        ("model", put("info", "num_items", 23), "does not fit its recipe"),
        ("model", put("info", "codebook_id", None), "codebook_id = None is no str"),
        ("model", put("recipe", "model", None), "model = None is no dict"),
        ("model", put("recipe", "model", "width", 10**7), "width = 10000000 is out of range, allowed: whole numbers"),
        ("model", put("recipe", "model", "width", 2**16), "takes 16.0 GiB or more, allowed: 64.0 MiB"),
        ("model", put("recipe", "model", "width", 32), "weights have 'bias.0'|has shape|of shape"),
        ("model", put("recipe", "model", "num_layers", 10**7), "num_layers = 10000000 is out of range"),
        ("model", put("recipe", "model", "num_layers", 1000), "tensors, allowed:"),
        ("model", put("recipe", "model", "max_history", 10**9), "max_history = 1000000000 is out of range"),
        ("model", put("recipe", "model", "max_history", 2**20), "64.0 MiB"),
        ("model", put("recipe", "model", "num_heads", 0), "num_heads = 0 is out of range"),
        ("model", put("recipe", "model", "dropout", float("nan")), "dropout = nan is out of range"),
        ("model", put("recipe", "model", "name", ["sidera"]), "name = ['sidera'] is not known"),
        ("catalog", put("info", "num_items", 7), "items.arrow has 24 rows, the manifest says 7"),
        ("catalog", put("info", "level_sizes", [10**9, 5]), "level_sizes"),
        ("catalog", put("info", "level_sizes", [-1, 5]), "level_sizes"),
        ("catalog", put("info", "level_sizes", [1, 1]), "a code is not one of its level's|codebook 0"),
        ("catalog", put("info", "level_sizes", [5]), "codes are torch.int32 of shape"),
        ("catalog", put("info", "level_sizes", None), "level_sizes = None is no list"),
        ("catalog", put("info", "collision", "chance"), "collision = 'chance', allowed: extra_digit"),
        ("catalog", put("info", "items_version", -1), "items_version = -1"),
    ],
)
def test_what_a_manifest_says_is_not_believed(run: Path, part: str, change: Change, named: str) -> None:
    reseal(run / part, change)
    said = refused(lambda: answers(run))
    assert any(words in said for words in named.split("|")), said


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 50_000, "null", "7", '"x"', "", "\x00", '{"format_version": 1}', "9" * 10_000],
)
def test_manifests_that_are_none(run: Path, text: str) -> None:
    (run / "model" / "manifest.json").write_text(text)
    refused(lambda: answers(run))


def test_places_that_are_no_files(run: Path, tmp_path: Path) -> None:
    weights = run / "model" / "weights-00000.safetensors"
    kept = weights.rename(tmp_path / "elsewhere.safetensors")
    weights.symlink_to(kept)
    assert "is a link to a place outside its folder; fix: put the file itself there" in refused(lambda: answers(run))
    weights.unlink()
    weights.mkdir()
    assert "lacks its file" in refused(lambda: answers(run))
    weights.rmdir()
    os.mkfifo(weights)  # opening a pipe waits for a writer, for ever
    assert "lacks its file" in refused(lambda: answers(run))
    for name in ("model/manifest.json", "recipe.json"):
        (run / name).unlink()
        os.mkfifo(run / name)
        refused(lambda: answers(run))
        if name == "recipe.json":
            break
        shutil.copyfile(run / "catalog" / "manifest.json", tmp_path / "m")
        (run / name).unlink()
        shutil.rmtree(run / "model")


def test_a_file_larger_than_the_memory_is_not_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidera.loading.total_memory", lambda: 1000)
    assert "holds" in refused(lambda: answers(run))


def test_a_link_inside_the_folder_is_followed(run: Path) -> None:
    expected, weights = answers(run), run / "model" / "weights-00000.safetensors"
    weights.rename(run / "model" / "w")
    weights.symlink_to("w")
    assert answers(run) == expected


# -- tables and tensors ------------------------------------------------------------------------------------------------


def rewrite(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    if file.suffix == ".parquet":
        pq.write_table(change(pq.ParquetFile(file).read()), file)
        reseal(file.parent)
        return
    with pa.ipc.open_file(pa.BufferReader(file.read_bytes())) as opened:
        table = change(opened.read_all()).combine_chunks()
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    reseal(file.parent)


TABLES: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "one row less": (lambda table: table.slice(1), "items.arrow has 23 rows, the manifest says 24"),
    "no key": (lambda table: table.drop_columns("key"), "has 0 columns 'key'"),
    "two keys": (lambda table: table.append_column("key", table["key"]), "has 2 columns 'key'"),
    "numbers as keys": (
        lambda table: table.set_column(0, "key", pa.array(range(24))),
        "column 'key' holds int64, allowed: large_string",
    ),
    "null keys": (lambda table: table.set_column(0, "key", pa.nulls(24, pa.large_string())), "an item has no id"),
    "one key twice": (
        lambda table: table.set_column(0, "key", pa.array(["x"] * 24, pa.large_string())),
        "the index is one of other keys",
    ),
    "floats as popularity": (
        lambda table: table.set_column(2, "popularity", table["popularity"].cast(pa.float64())),
        "column 'popularity' holds double",
    ),
    "null popularity": (lambda table: table.set_column(2, "popularity", pa.nulls(24, pa.int64())), "is damaged"),
    "negative categories": (
        lambda table: table.append_column("category:creator", pa.array([-1] * 24)),
        "does not hold whole numbers from 0",
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_have_their_columns(run: Path, case: str) -> None:
    change, named = TABLES[case]
    rewrite(run / "catalog" / "items.arrow", change)
    assert named in refused(lambda: answers(run))


def test_a_table_of_many_equal_rows_is_not_unfolded(run: Path) -> None:
    """A Parquet file of some hundred kilobytes can hold a billion rows."""
    file, number = run / "evaluation" / "ranks.parquet", 2 * 10**6
    table = pq.ParquetFile(file).read()
    chunk = pa.concat_tables([table.slice(0, 1)] * 1000).combine_chunks()
    with pq.ParquetWriter(file, table.schema, compression="zstd") as writer:
        for _ in range(number // 100_000):
            writer.write_table(pa.concat_tables([chunk] * 100).combine_chunks(), row_group_size=10**6)
    reseal(file.parent)
    assert "has 2,000,000 rows, the manifest says" in refused(lambda: load_evaluation(run / "evaluation"))


def test_rows_beyond_the_memory_are_refused_before_they_are_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = pq.ParquetFile(run / "evaluation" / "ranks.parquet").metadata
    least = 8 * metadata.num_rows * metadata.num_columns
    opened = open_artifact(run / "evaluation", "evaluation")
    monkeypatch.setattr("sidera.loading.total_memory", lambda: least)
    assert opened.table("ranks.parquet").num_rows == metadata.num_rows
    monkeypatch.setattr("sidera.loading.total_memory", lambda: least - 1)
    assert f"ranks.parquet has {metadata.num_rows} rows" in refused(lambda: opened.table("ranks.parquet"))


def test_offsets_of_texts_stay_inside_their_file(run: Path) -> None:
    """Texts of an Arrow file are cut where its offsets say: outside the file they would be other memory."""
    file = run / "catalog" / "items.arrow"
    content = file.read_bytes()
    with pa.ipc.open_file(pa.BufferReader(content)) as opened:
        offsets = opened.read_all()["key"].chunk(0).buffers()[1].to_pybytes()
    wrong = np.frombuffer(offsets, np.int64).copy()
    wrong[3] = 2**40
    assert content.count(offsets[:200]) == 1
    file.write_bytes(content.replace(offsets[:200], wrong.tobytes()[:200]))
    reseal(file.parent)
    assert "is damaged" in refused(lambda: answers(run))


INDEX: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor], str]] = {
    "of other keys": ("hashes", lambda hashes: hashes.flip(0), "the index is one of other keys"),
    "out of the table": ("numbers", lambda numbers: numbers + 1, "the index names items that are not here"),
    "fewer": ("numbers", lambda numbers: numbers[1:], "hashes of"),
    "floats": ("numbers", lambda numbers: numbers.float(), "hashes of"),
    "no order": ("order", torch.zeros_like, "does not list every item once"),
    "negative order": ("order", torch.neg, "is damaged"),
}


@pytest.mark.parametrize("case", INDEX)
def test_the_index_is_that_of_the_items(run: Path, case: str) -> None:
    name, change, named = INDEX[case]
    file = run / "catalog" / "index.safetensors"
    state = load_file(file)
    state[name] = change(state[name]).contiguous()
    save_file(state, file)
    reseal(file.parent)
    assert named in refused(lambda: answers(run))


HEADERS: dict[str, bytes] = {
    "none": b"abc",
    "longer than the file": (2**40).to_bytes(8, "little") + b"{}",
    "a list": (2).to_bytes(8, "little") + b"[]",
    **{
        name: len(text).to_bytes(8, "little") + text + bytes(64)
        for name, text in {
            "behind the end": b'{"codes": {"dtype": "I32", "shape": [24], "data_offsets": [0, 96]}}',
            "before the begin": b'{"codes": {"dtype": "I32", "shape": [2], "data_offsets": [-8, 0]}}',
            "another shape": b'{"codes": {"dtype": "I32", "shape": [3], "data_offsets": [0, 8]}}',
            "a negative shape": b'{"codes": {"dtype": "I32", "shape": [-1, -2], "data_offsets": [0, 8]}}',
            "more than memory": b'{"codes": {"dtype": "I32", "shape": [4294967296, 4294967], "data_offsets": [0, 0]}}',
            "an unknown kind": b'{"codes": {"dtype": "I3", "shape": [2], "data_offsets": [0, 8]}}',
            "no shape": b'{"codes": {"dtype": "I32", "data_offsets": [0, 8]}}',
            "a number": b'{"codes": 3}',
        }.items()
    },
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_of_tensors_fit_their_file(run: Path, case: str) -> None:
    file = run / "catalog" / "codes.safetensors"
    file.write_bytes(HEADERS[case])
    reseal(file.parent)
    assert "is damaged" in refused(lambda: answers(run))


TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "shape": (lambda state: state.update({"item.weight": torch.zeros(24, 5)}), "of shape (24, 5)"),
    "kind": (lambda state: state.update({"item.weight": torch.zeros(24, 16, dtype=torch.int64)}), "as torch.int64"),
    "missing": (lambda state: state.pop("item.weight"), "lack 'item.weight'"),
    "more": (lambda state: state.update(other=torch.zeros(2)), "have unknown 'other'"),
    "not finite": (lambda state: state["item.weight"].fill_(float("nan")), "that are not finite"),
    "parts": (lambda state: state.update({"item.weight#7": state.pop("item.weight")}), "a part of 'item.weight'"),
    "part names": (lambda state: state.update({"item.weight#x": state.pop("item.weight")}), "'item.weight#x'"),
    "cut shape": (
        lambda state: state.update(
            {"item.weight#shape": torch.tensor([25, 16]), "item.weight#0": state.pop("item.weight")}
        ),
        "shape '[25, 16]' is invalid",
    ),
    "shape alone": (lambda state: state.update({"other#shape": torch.tensor([2])}), "'other' has a shape and no part"),
    "twice": (lambda state: state.update({"item.weight#0": state["item.weight"].clone()}), "once more"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_weights_are_those_of_the_recipe(run: Path, case: str) -> None:
    change, named = TENSORS[case]
    file = run / "model" / "weights-00000.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file)
    reseal(run / "model")
    assert named in refused(lambda: answers(run))


@pytest.mark.parametrize("codes", [-1, 10**6])
def test_codes_are_of_their_levels(run: Path, codes: int) -> None:
    file = run / "catalog" / "codes.safetensors"
    state = load_file(file)
    state["codes"][3, 0] = codes
    save_file(state, file)
    reseal(run / "catalog")
    assert "a code is not one of its level's" in refused(lambda: answers(run))


# -- other kinds -------------------------------------------------------------------------------------------------------


def test_data_sets(trained_run: Path, tmp_path: Path) -> None:
    for name, change, named in (
        ("events", lambda table: table.slice(1), "rows, the manifest says"),
        ("events", lambda table: table.take(pa.array(range(table.num_rows)[::-1])), "do not stand user by user"),
        ("events", lambda table: table.drop_columns("time"), "has 0 columns 'time'"),
        ("users", lambda table: table.set_column(0, "key", pa.array(["x"] * table.num_rows)), "not in its table"),
        ("items", lambda table: table.set_column(0, "key", pa.array(range(table.num_rows))), "holds int64"),
    ):  # fmt: skip
        data = Path(shutil.copytree(trained_run.parent / "data", tmp_path / "data"))
        rewrite(data / f"{name}.parquet", change)
        assert named in refused(lambda data=data: Dataset.load(data))
        shutil.rmtree(data)
    data = Path(shutil.copytree(trained_run.parent / "data", tmp_path / "data"))
    reseal(data, put("info", "time_kind", "weeks"))
    assert "time_kind = 'weeks', allowed: seconds, order" in refused(lambda: Dataset.load(data))
    reseal(data, put("recipe", {"world": {"num_items": 10**12}, "seed": 0, "days": 1}))
    refused(lambda: world_source(str(data)))
    reseal(data, put("recipe", {"world": {}, "seed": 0, "days": 10**9}))
    refused(lambda: world_source(str(data)))


def test_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    for file, change in (
        ("state.json", {"state": 1, "identity": {}}),
        ("state.json", []),
        ("state.json", {"identity": {"x": 1}}),
    ):
        save_checkpoint(path, {"a": torch.ones(3)}, {"step": 1}, {"x": 1})
        (path / file).write_text(json.dumps(change))
        reseal(path)
        assert f"remove {path} to train anew" in refused(lambda: load_checkpoint(path, {"x": 1}))


def test_histories(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    keys = [f"i{number}" for number in range(30)]
    items = CatalogItems.of(keys, finder({key: number for number, key in enumerate(keys)}), rng.normal(size=(30, 4)))
    store = EmbeddedStore(tmp_path / "s")
    store.append("u", Events.of(store.numbers_of(keys)[rng.integers(0, 30, 60)], np.arange(60)))
    config = LifelongConfig(max_representatives=8, leaf_size=2, chunk=2)
    view = StoreRepresentatives(store, items, config, tmp_path / "h")
    view.of("u")
    file = tmp_path / "h" / "representatives-00000.safetensors"
    for name, value in (
        ("0/item_ids", torch.full((58,), 99, dtype=torch.int32)),
        ("0/item_ids", torch.zeros(58, dtype=torch.int64)),
        ("0/times", torch.zeros(57, dtype=torch.int64)),
        ("0/tree", torch.tensor([1])),
        ("0/counters", torch.zeros(2, dtype=torch.int64)),
        ("0/nodes", None),
        ("0/children", torch.full((10,), 2**40)),
        ("counters", torch.zeros((0, 2), dtype=torch.int64)),
        ("user_ends", torch.zeros(0, dtype=torch.int64)),
        ("users", torch.full((1,), 255, dtype=torch.uint8)),
    ):
        view.save()
        state = load_file(file)
        if value is None:
            del state[name]
        else:
            state[name] = value if name != "0/children" else torch.full_like(state[name], 2**40)
        save_file(state, file)
        reseal(tmp_path / "h")
        assert "made again from the events" in refused(
            lambda: StoreRepresentatives(store, items, config, tmp_path / "h")
        )
    store.close()


def test_records_of_a_store(tmp_path: Path) -> None:
    """Behind right checksums, too, counters and sizes that contradict each other are refused."""
    with EmbeddedStore(tmp_path / "s") as store:
        numbers = store.numbers_of(["a", "b"])
        store.append("u", Events.of(np.resize(numbers, 100), np.arange(100)))
        ((whole,),) = store.database.rows("SELECT record FROM records WHERE id = ?", (HEAD,))
        ((block,),) = store.database.rows("SELECT record FROM records WHERE id = 0")

        def read() -> None:
            CatalogIds(store, finder({"a": 0, "b": 1})).of(store.history("u").item_ids)

        for place, content in (
            *((HEAD, whole[4:size]) for size in (5, 40, 47, 60)),
            (HEAD, struct.pack("<qqqqqI", 101, 100, 99, 79, 0, 20) + whole[48:]),
            (HEAD, struct.pack("<qqqqqI", -1, 100, 99, 79, 0, 20) + whole[48:]),
            (HEAD, struct.pack("<qqqqqI", 0, 99, 99, 79, 0, 20) + whole[48:]),
            (HEAD, struct.pack("<qqqqqI", 0, 100, 99, 79, 0, 2**31) + whole[48:]),
            (0, block[4:11]), (0, block[4:100]), (0, block[4:] + b"x"),
            (0, block[4:12] + np.full(80 * 6, -2, np.int32).tobytes()),
        ):  # fmt: skip
            for where, record in ((HEAD, whole), (0, block), (place, checked(b"u", place, content))):
                store.database.write(
                    lambda connection, _, row=(where, record): connection.execute(
                        "INSERT OR REPLACE INTO records VALUES (?, ?)", row
                    )
                )
            refused(read)


def test_evaluations_and_measures(run: Path, tmp_path: Path) -> None:
    file = run / "evaluation" / "metrics.json"
    record = json.loads(file.read_text())
    for change in ({"metrics": None}, {"metrics": {"keep": {"recall@10": {"value": "x", "low": 0, "high": 0}}}},
                   {"slices": []}, {"slices": {"keep": {"history": {"a": {}}}}}):  # fmt: skip
        file.write_text(json.dumps({**record, **change}))
        reseal(run / "evaluation")
        refused(lambda: load_evaluation(run / "evaluation"))
    Measured({"a": 0.5}, np.array([True, False]), {"like": np.array([True, True])}).save(tmp_path / "m", "d")
    for change in (put("info", "figures", "a", "x"), put("info", "figures", None)):
        reseal(tmp_path / "m", change)
        refused(lambda: Measured.load(tmp_path / "m"))


# -- by chance ---------------------------------------------------------------------------------------------------------

LEAF = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([10**6, 10**12, 10**30, -(10**30)]),
    st.floats(), st.text(max_size=3), st.sampled_from(["\ud800", "../x", "0" * 64, "a" * 10**5]),
    st.lists(st.integers(0, 3), max_size=3), st.just({}), st.just({"a": [1]}),
)  # fmt: skip
JSON_FILES = ["model/manifest.json", "catalog/manifest.json", "catalog/schema.json", "catalog/report.json",
              "recipe.json", "evaluation/manifest.json", "evaluation/metrics.json"]  # fmt: skip


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a JSON value can be changed."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value[:4]) if isinstance(value, list) else ()
    return [here, *(place for key, inner in pairs for place in places(inner, (*here, key)))] if here or value else []


def loads_or_is_refused(load: Callable[[], object]) -> object | None:
    """What was loaded; None where one line said why not."""
    said = ""
    try:
        return load()
    except InputError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 700
    return None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(JSON_FILES), data=st.data(), value=LEAF, gone=st.booleans())
def test_any_value_anywhere_in_json(
    trained_run: Path, tmp_path: Path, name: str, data: st.DataObject, value: Any, gone: bool
) -> None:
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(trained_run, run)
    file = run / name
    record = json.loads(file.read_text())
    place = data.draw(st.sampled_from([place for place in places(record) if place]))
    holder = record
    for key in place[:-1]:
        holder = holder[key]
    if gone:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    file.write_text(json.dumps(record))
    if file.name == "manifest.json":
        record.pop("seal", None)
        file.write_text(json.dumps({**record, "seal": artifacts._seal(record)}))
    elif file.name != "recipe.json":
        reseal(file.parent)
    found = loads_or_is_refused(lambda: answers(run))
    if found is not None and name.startswith("model") and place[0] not in ("digest", "recipe"):
        assert found == answers(trained_run)
    loads_or_is_refused(lambda: load_evaluation(run / "evaluation"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["model/weights-00000.safetensors", "catalog/codes.safetensors", "catalog/items.arrow"]),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    header=st.booleans(),
    length=st.one_of(st.none(), st.floats(0, 1)),
)
def test_any_bytes_in_tensors_and_tables(
    trained_run: Path, tmp_path: Path, name: str, edits: list[tuple[float, int]], header: bool, length: float | None
) -> None:
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(trained_run, run)
    content = bytearray((run / name).read_bytes())
    for where, byte in edits:  # at the end of a Parquet file, and at the start of the others, stands what is there
        reach = min(len(content), 600) if header else len(content)
        place = int(where * reach)
        content[-1 - place if header and name.endswith("parquet") else place] = byte
    if length is not None:
        content = content[: int(length * len(content))]
    (run / name).write_bytes(content)
    assert loads_or_is_refused(lambda: answers(run)) is None or content == (trained_run / name).read_bytes()
    reseal((run / name).parent)
    loads_or_is_refused(lambda: answers(run))


def test_depth_and_size_are_bounded(tmp_path: Path) -> None:
    assert bounds.parse_json(json.dumps(nested(bounds.MAX_DEPTH - 1))) == nested(bounds.MAX_DEPTH - 1)
    for depth in (bounds.MAX_DEPTH + 1, 10**5):
        with pytest.raises(ValueError, match="nested deeper than 32 levels"):
            bounds.parse_json("[" * depth + "]" * depth)
    (tmp_path / "large").write_bytes(b" " * 1001)
    with pytest.raises(ValueError, match="it holds 1,001 bytes, allowed: up to 1,000"):
        bounds.read_regular(tmp_path / "large", 1000)
    assert bounds.shown(10**5000) == "a int too large to be shown"
    assert len(bounds.shown("x" * 10**6)) == bounds.SHOWN
    with (
        pytest.raises(InputError, match=r"the manifest of .* takes"),
        writing(tmp_path / "n", Manifest("note", "d", info={"users": ["x" * 1000] * 70_000})),
    ):
        pass
