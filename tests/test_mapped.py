"""Artifacts as memory: what is loaded lies in its file, whoever writes into it leaves the file alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sidera import artifacts
from sidera.catalog.catalog import Catalog
from sidera.disk import WINDOWS
from sidera.loading import open_artifact

pytestmark = pytest.mark.skipif(
    WINDOWS or not Path("/proc/self/maps").exists(), reason="needs Linux's list of mappings"
)


class Tied(nn.Module):
    """Two names of one table, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.item = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.item.weight
        self.register_buffer("count", torch.zeros(3, dtype=torch.int64))


def saved(path: Path, model: nn.Module) -> Path:
    with artifacts.writing(path, artifacts.Manifest("model", "d")) as folder:
        artifacts.save_tensors(folder, model.state_dict())
    return path


def mappings(file: Path) -> Iterator[range]:
    """The addresses at which this process has mapped the file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(os.path.realpath(file)):
            begin, end = line.split()[0].split("-")
            yield range(int(begin, 16), int(end, 16))


def lies_in(file: Path, address: int) -> bool:
    return any(address in place for place in mappings(file))


def test_weights_lie_in_their_file_and_tied_ones_stay_tied(tmp_path: Path) -> None:
    model = Tied()
    path = saved(tmp_path / "model", model)
    loaded = open_artifact(path, "model").network(lambda tensors: Tied())
    assert torch.equal(loaded.item.weight, model.item.weight)
    assert loaded.head.weight is loaded.item.weight
    assert loaded.item.weight.requires_grad
    assert lies_in(path / "weights-00000.safetensors", loaded.item.weight.data_ptr())
    assert lies_in(path / "weights-00000.safetensors", loaded.count.data_ptr())


def test_training_what_was_loaded_leaves_the_file_alone(tmp_path: Path) -> None:
    path = saved(tmp_path / "model", Tied())
    content = (path / "weights-00000.safetensors").read_bytes()
    loaded = open_artifact(path, "model").network(lambda tensors: Tied())
    before = loaded.item.weight.detach().clone()
    loaded.head(loaded.item(torch.arange(5))).sum().backward()
    torch.optim.SGD(loaded.parameters(), lr=1.0).step()
    assert not torch.equal(loaded.item.weight, before)
    assert (path / "weights-00000.safetensors").read_bytes() == content
    again = open_artifact(path, "model").network(lambda tensors: Tied())
    assert torch.equal(again.item.weight, before)


def test_a_catalogue_lies_in_its_files_and_outlives_their_names(tmp_path: Path) -> None:
    from catalog.test_catalog import make_catalog

    path = tmp_path / "catalog"
    make_catalog().save(path)
    loaded = Catalog.load(path)
    assert lies_in(path / "codes.safetensors", loaded.codes.base.ctypes.data)
    assert lies_in(path / "items.arrow", loaded.popularity.base.ctypes.data)
    assert lies_in(path / "items.arrow", loaded.titles.base.buffers()[2].address)
    assert lies_in(path / "index.safetensors", loaded.ids_by_key.hashes.ctypes.data)
    with pytest.raises(ValueError, match="read-only"):
        loaded.codes.base[0] = 0
    expected = loaded.content_digest(), np.array(loaded.serving_order)
    make_catalog(12, seed=1).save(path)  # another takes the name
    assert Catalog.load(path).num_items == 12
    assert loaded.content_digest() == expected[0]
    assert np.array_equal(loaded.serving_order, expected[1])


def test_tensors_of_all_kinds_lie_aligned(tmp_path: Path) -> None:
    """Products round differently elsewhere: the same weights would give other scores. Other programs read the file."""
    kinds = [*artifacts.TENSOR_KINDS]
    tensors = {f"{kind} {size}": torch.arange(size).to(kind) for kind in kinds for size in (0, 1, 3, 64, 257)}
    tensors |= {"none": torch.zeros(4, 0), "one": torch.tensor(2.5), "turned": torch.randn(6, 64).T}
    with artifacts.writing(tmp_path / "a", artifacts.Manifest("note", "d")) as folder:
        artifacts.write_tensors(tensors, folder / "all.safetensors")
    opened = open_artifact(tmp_path / "a", "note").tensor_file("all.safetensors")
    theirs = load_file(tmp_path / "a" / "all.safetensors")
    assert opened.keys() == theirs.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert opened[name].dtype == theirs[name].dtype == tensor.dtype
        assert torch.equal(opened[name], tensor), name
        assert torch.equal(theirs[name], tensor), name
        assert opened[name].data_ptr() % artifacts.ALIGNED == 0
    assert lies_in(tmp_path / "a" / "all.safetensors", opened["turned"].data_ptr())


def test_files_of_an_artifact_can_be_read_by_all(tmp_path: Path) -> None:
    """Worker processes may run as another user than the one who trained."""
    path = saved(tmp_path / "model", Tied())
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o644}
