"""Columns that versions share read like the arrays that they stand for, and copy nothing of their base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidera.ops.columns import FOLD, Column, Marks, Texts


@settings(max_examples=60, deadline=None)
@given(size=st.integers(0, 5), steps=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 9)), max_size=6))
def test_every_version_keeps_its_rows(size: int, steps: list[tuple[int, int]]) -> None:
    """A step extends any of the versions so far: some share a tail, some have to copy it."""
    numbers, texts = np.arange(2 * size).reshape(size, 2), [f"t{row}" for row in range(size)]
    versions = [(Column.of(numbers), Texts.of(texts), numbers, texts)]
    for count, which in steps:
        column, words, numbers, texts = versions[which % len(versions)]
        rows = np.full((count, 2), len(versions))
        new = [None if row % 2 else f"v{len(versions)}-{row}" for row in range(count)]
        versions.append((column.extended(rows), words.extended(new), np.concatenate([numbers, rows]), [*texts, *new]))
    for column, words, numbers, texts in versions:
        assert np.array_equal(np.asarray(column), numbers)
        assert words.tolist() == texts == list(words) == words.arrow().to_pylist()
        assert column.shape == numbers.shape
        ids = np.arange(len(texts))[::-2]
        assert np.array_equal(column[ids], numbers[ids])
        assert words[ids].tolist() == [texts[item] for item in ids]
        assert np.array_equal(column[:, 0] > 1, numbers[:, 0] > 1)
        for count in {0, size, len(texts) // 2, len(texts)} - {len(texts) + 1}:
            assert np.array_equal(np.asarray(column.head(count)), numbers[:count])
            assert words.head(count).tolist() == texts[:count]
        if texts:
            assert words[-1] == texts[-1]
            assert column[-1].tolist() == numbers[-1].tolist()
        for broken in (len(texts), -len(texts) - 1):
            with pytest.raises(IndexError):
                column[broken]


def test_a_mapped_base_stays_where_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "codes.npy", np.arange(3000, dtype=np.int32).reshape(1000, 3))
    mapped = np.load(tmp_path / "codes.npy", mmap_mode="r")
    column = Column.of(mapped)
    for row in range(1000):
        column = column.extended(np.full((1, 3), row))
    assert np.shares_memory(column.base, mapped)
    assert column[np.array([999, 1000, 1999])].tolist() == [[2997, 2998, 2999], [0, 0, 0], [999, 999, 999]]
    with pa.OSFile(str(tmp_path / "keys.arrow"), "wb") as file:
        batch = pa.record_batch({"key": pa.array([f"k{row}" for row in range(1000)], pa.large_string())})
        with pa.ipc.new_file(file, batch.schema) as writer:
            writer.write(batch)
    before = pa.total_allocated_bytes()
    keys = Texts.of(pa.ipc.open_file(pa.memory_map(str(tmp_path / "keys.arrow"))).get_batch(0)["key"])
    keys = keys.extended(["late"])
    assert [keys[0], keys[999], keys[1000]] == ["k0", "k999", "late"]
    assert pa.total_allocated_bytes() - before < 1000  # nothing of it was copied


def test_marks() -> None:
    marks = Marks.of(np.array([True, False, False]))
    more = marks.extended(2).marked(np.array([4, 1]))
    assert np.asarray(more).tolist() == [True, True, False, False, True]
    assert (~more)[2:].tolist() == [True, True, False]
    assert more[np.array([4, 3, 0])].tolist() == [True, False, True]
    assert (more.sum(), more.any(), marks.sum(), Marks.none(3).any()) == (3, True, 1, False)
    many = Marks.none(3 * FOLD)
    for start in range(0, 3 * FOLD, 64):
        many = many.marked(np.arange(start, start + 32))
        assert len(many.since) <= FOLD + 3 * FOLD // 8 + 32
    assert np.array_equal(np.asarray(many), np.arange(3 * FOLD) % 64 < 32)
    assert many.sum() == 3 * FOLD // 2
