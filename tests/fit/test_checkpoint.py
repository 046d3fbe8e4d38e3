from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sidera import artifacts
from sidera.artifacts import Manifest, save_tensors, writing
from sidera.core import ArtifactError
from sidera.fit import checkpoint
from sidera.fit.checkpoint import (
    KIND,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    tidy,
)
from sidera.loading import open_artifact

IDENTITY = {"fit": {"lr": 0.001, "betas": (0.9, 0.99)}, "model": {"name": "Toy"}}
TENSORS = {"weights": torch.arange(6.0).view(2, 3)}


Tensors = dict[str, torch.Tensor]


def written_and_read(folder: Path, tensors: Tensors) -> Tensors:
    with writing(folder / "shards", Manifest(KIND, "d")) as place:
        save_tensors(place, tensors)
    return open_artifact(folder / "shards", KIND).tensors()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=3), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8]),
    data_bytes=st.integers(600, 5000),
)
def test_tensors_come_back_however_they_are_cut(
    tmp_path: Path, shapes: list[list[int]], dtype: torch.dtype, data_bytes: int
) -> None:
    tensors = {f"t#{n}": torch.randint(0, 100, shape).to(dtype) for n, shape in enumerate(shapes)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifacts, "SHARD_BYTES", artifacts.HEADER_BYTES + data_bytes)
        back = written_and_read(tmp_path, tensors)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_no_file_passes_the_limit(tmp_path: Path) -> None:
    tensors: dict[str, torch.Tensor] = {f"small.{n}": torch.zeros(3) for n in range(2000)}
    tensors["large"] = torch.randn(5_000_000)  # 20 MB
    back = written_and_read(tmp_path, tensors)
    sizes = [file.stat().st_size for file in (tmp_path / "shards").iterdir() if file.name != "manifest.json"]
    assert len(sizes) == 3
    assert max(sizes) <= artifacts.SHARD_BYTES
    assert torch.equal(back["large"], tensors["large"])


def test_transposed_and_shared_tensors(tmp_path: Path) -> None:
    weight = torch.randn(4, 7)
    back = written_and_read(tmp_path, {"a": weight.T, "b": weight})
    assert torch.equal(back["a"], weight.T)
    assert torch.equal(back["b"], weight)


def test_adamw_continues_bit_for_bit(tmp_path: Path) -> None:
    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            x = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    straight, resumed = nn.Linear(5, 3), nn.Linear(5, 3)
    first = torch.optim.AdamW(straight.parameters(), fused=True)
    steps(straight, first, range(3))
    kept = written_and_read(tmp_path, dict(optimizer_tensors(first)))
    resumed.load_state_dict(straight.state_dict())
    second = torch.optim.AdamW(resumed.parameters(), fused=True)
    restore_optimizer(second, kept)
    steps(straight, first, range(3, 6))
    steps(resumed, second, range(3, 6))
    assert torch.equal(straight.weight, resumed.weight)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint"
    save_checkpoint(path, TENSORS, {"step": 3}, IDENTITY)

    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts, "write_tensors", full_disk)
    with pytest.raises(ArtifactError, match=r"No space left on device.*; the one of step 3 is still whole") as caught:
        save_checkpoint(path, {"weights": torch.zeros(9)}, {"step": 4}, IDENTITY)
    assert "free space" in str(caught.value)
    monkeypatch.undo()
    tensors, state = load_checkpoint(path, IDENTITY)
    assert state["step"] == 3
    assert torch.equal(tensors["weights"], TENSORS["weights"])
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


def test_a_crash_between_the_two_renames_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    save_checkpoint(path, TENSORS, {"step": 3}, IDENTITY)
    path.rename(tmp_path / ".checkpoint.old")
    (tmp_path / ".checkpoint.new-x1").mkdir()
    tidy(path)
    assert load_checkpoint(path, IDENTITY)[1]["step"] == 3
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("damage", ["truncate", "edit", "remove", "manifest"])
def test_damage_is_refused_with_the_way_out(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "checkpoint"
    save_checkpoint(path, TENSORS, {"step": 3}, IDENTITY)
    part = path / "weights-00000.safetensors"
    if damage == "truncate":
        part.write_bytes(part.read_bytes()[:-4])
    elif damage == "edit":
        state = path / "state.json"
        state.write_text(state.read_text().replace("3", "4"))
    elif damage == "remove":
        part.unlink()
    else:
        (path / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"remove .*checkpoint to train anew"):
        load_checkpoint(path, IDENTITY)


def test_another_training_is_refused_naming_both(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    save_checkpoint(path, TENSORS, {"step": 3}, IDENTITY)
    other = {"fit": {"lr": 0.002, "betas": (0.9, 0.99)}, "model": {"name": "Toy"}}
    with pytest.raises(ArtifactError, match=r"fit\.lr = 0\.001 there and 0\.002 here"):
        load_checkpoint(path, other)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", TENSORS, {"step": 3}, IDENTITY)
    files = {file.name for file in (tmp_path / "checkpoint").iterdir()}
    assert files == {"weights-00000.safetensors", "state.json", "manifest.json"}
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["state"] == {"step": 3}
    assert checkpoint.KIND == "checkpoint"
