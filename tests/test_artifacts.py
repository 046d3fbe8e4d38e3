"""Artifacts are whole or not there, notice every change, and replace nothing that is not theirs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from sidera import artifacts
from sidera.artifacts import (
    Manifest,
    is_current,
    read_manifest,
    save_tensors,
    verify,
    write_text,
    writing,
)
from sidera.core import ArtifactError, InputError
from sidera.loading import open_artifact

NOTE = Manifest("note", "d1", parents={"data": "p"}, recipe={"a": [1, 2]}, info={"n": 3, "by_size": {10: 1, 9: 2}})


def save(path: Path, text: str = "one", manifest: Manifest = NOTE) -> None:
    with writing(path, manifest) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "text.txt").write_text(text)


def stop_half_way(path: Path, error: BaseException) -> None:
    with writing(path, NOTE) as folder:
        (folder / "text.txt").write_text("half")
        raise error


def text_of(path: Path) -> str:
    verify(path, "note")
    return (path / "inner" / "text.txt").read_text()


def test_round_trip(tmp_path: Path) -> None:
    save(tmp_path / "a" / "note")
    manifest = verify(tmp_path / "a" / "note", "note")
    assert (manifest.kind, manifest.digest, manifest.parents) == ("note", "d1", {"data": "p"})
    assert list(manifest.files) == ["inner/text.txt"]
    assert is_current(tmp_path / "a" / "note", "note", "d1")
    assert not is_current(tmp_path / "a" / "note", "note", "d2")
    assert not is_current(tmp_path / "a" / "other", "note", "d1")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["note"]
    assert (tmp_path / "a" / "note").stat().st_mode & 0o777 == 0o755


def test_replacing(tmp_path: Path) -> None:
    save(tmp_path / "note", "one")
    save(tmp_path / "note", "two")
    assert text_of(tmp_path / "note") == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("truncate", "text.txt is truncated or was edited"),
        ("edit", "text.txt is truncated or was edited"),
        ("remove", "lacks its file inner/text.txt; fix: make the note again"),
        ("version", "has artifact format 99; allowed: 1; fix: make the note again"),
        ("future", "has artifact format 2; allowed: 1"),
        ("kind", "holds a model, not a note; fix: give the path of a note"),
        ("digest", "manifest.json was edited"),
        ("info", "manifest.json was edited"),
        ("seal gone", "manifest.json was edited"),
        ("manifest cut", "manifest.json is damaged"),
        ("manifest list", "manifest.json is damaged"),
        ("manifest keys", "manifest.json was edited"),
        ("manifest gone", "no note at .*; fix: check the path"),
    ],
)
def test_every_damage_is_named(tmp_path: Path, damage: str, named: str) -> None:
    path = tmp_path / "note"
    save(path)
    text, manifest = path / "inner" / "text.txt", path / "manifest.json"
    record = json.loads(manifest.read_text())
    if damage == "truncate":
        text.write_text("on")
    elif damage == "edit":
        text.write_text("two")
    elif damage == "remove":
        text.unlink()
    elif damage == "manifest cut":
        manifest.write_bytes(manifest.read_bytes()[:30])
    elif damage == "manifest list":
        manifest.write_text("[]")
    elif damage == "manifest gone":
        manifest.unlink()
    else:
        if damage == "seal gone":
            del record["seal"]
        if damage == "manifest keys":
            record = {key: value for key, value in record.items() if key in ("kind", "format_version")}
        changes = {
            "version": {"format_version": 99},
            "future": {"format_version": 2, "a_key_of_later": 1},
            "kind": {"kind": "model"},
            "digest": {"digest": "d2"},
            "info": {"info": {"n": 4}},
        }
        manifest.write_text(json.dumps({**record, **changes.get(damage, {})}))
    with pytest.raises(ArtifactError, match=named) as caught:
        verify(path, "note")
    assert "\n" not in str(caught.value)
    assert not is_current(path, "note", "d1")


def test_a_full_disk_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "note", "one")
    with pytest.raises(OSError, match="No space left"):
        stop_half_way(tmp_path / "note", OSError(28, "No space left on device"))

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)  # now the manifest cannot be written
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "note", "two")
    assert text_of(tmp_path / "note") == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_whatever_stops_the_writing_leaves_the_old_one(tmp_path: Path, error: type[BaseException]) -> None:
    save(tmp_path / "note", "one")
    with pytest.raises(error):
        stop_half_way(tmp_path / "note", error())
    assert text_of(tmp_path / "note") == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_a_crash_between_the_two_renames_is_mended(tmp_path: Path) -> None:
    save(tmp_path / "note", "one")
    (tmp_path / "note").rename(tmp_path / ".note.old")
    assert text_of(tmp_path / "note") == "one"
    (tmp_path / "note").rename(tmp_path / ".note.old")
    save(tmp_path / "note", "two")
    assert text_of(tmp_path / "note") == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_a_reader_between_the_two_renames_stops_no_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "note", "one")
    rename, looked = os.replace, []

    def replace_and_look(source: Path, target: Path) -> None:
        rename(source, target)
        if Path(target).name == ".note.old" and not looked:
            looked.append(text_of(tmp_path / "note"))  # finds no folder, and mends what looks like a crash

    monkeypatch.setattr(os, "replace", replace_and_look)
    save(tmp_path / "note", "two")
    assert looked == ["one"]
    assert text_of(tmp_path / "note") == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_every_file_is_on_the_disk_before_its_folder_takes_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    rename, to_disk = os.replace, artifacts.sync

    def noted(place: Path) -> None:
        steps.append(place.name)
        to_disk(place)

    def renamed(source: Path, target: Path) -> None:
        if Path(target).name == "note":
            steps.append("renamed")
        rename(source, target)

    monkeypatch.setattr(artifacts, "sync", noted)
    monkeypatch.setattr(os, "replace", renamed)
    save(tmp_path / "note")
    folder = steps[steps.index("renamed") - 1]
    assert steps == ["inner", "text.txt", folder, "renamed", tmp_path.name]
    assert folder.startswith(".note.new-")


def test_a_crash_after_both_renames_is_swept_up(tmp_path: Path) -> None:
    save(tmp_path / "note", "new")
    (tmp_path / ".note.old").mkdir()
    (tmp_path / ".note.old" / "x").write_text("old")
    assert text_of(tmp_path / "note") == "new"
    save(tmp_path / "note", "newer")
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_nothing_foreign_is_replaced(tmp_path: Path) -> None:
    """Taking a place removes what stands there: the home directory of somebody, say."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match=r"home' is no artifact of sidera's and would be replaced; allowed: a new or"):
        save(tmp_path / "home")
    (tmp_path / "file").write_text("years")
    with pytest.raises(InputError, match=r"file' is a file and would be replaced"):
        save(tmp_path / "file")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(InputError, match=r"web' is no artifact of sidera's"):
        save(tmp_path / "web")
    save(tmp_path / "note", "one")
    (tmp_path / "note" / "vectors.parquet").write_text("added by hand")
    with pytest.raises(InputError, match=r"note' would be replaced, and 'vectors.parquet' in it is not of its making"):
        save(tmp_path / "note", "two")
    assert text_of(tmp_path / "note") == "one"
    assert (tmp_path / "home" / "thesis.tex").read_text() == (tmp_path / "file").read_text() == "years"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "home", "note", "web"]


def test_empty_and_damaged_places_may_be_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty")
    save(tmp_path / "cut")
    (tmp_path / "cut" / "manifest.json").write_text('{"digest": "d')
    save(tmp_path / "cut", "two")
    assert text_of(tmp_path / "cut") == "two"


def test_behind_a_link_the_folder_is_replaced(tmp_path: Path) -> None:
    save(tmp_path / "disk" / "note", "one")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "note")
    for text in ("two", "three"):
        save(tmp_path / "link", text)
        assert text_of(tmp_path / "disk" / "note") == text_of(tmp_path / "link") == text
    assert (tmp_path / "link").is_symlink()


def test_text_files_appear_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a" / "b.txt", "one")
    assert (tmp_path / "a" / "b.txt").read_text() == "one"

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a" / "b.txt", "two")
    assert (tmp_path / "a" / "b.txt").read_text() == "one"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(100, 7, generator=generator)
    return {
        "table": table,
        "half": table.to(torch.bfloat16),
        "ints": torch.arange(300).view(100, 3),
        "small": torch.tensor([1, 2], dtype=torch.int32),
        "mask": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "slice": table[:, 2],
        "transposed": table.T,
    }


@pytest.mark.parametrize("limit", [15 * 2**20, 2**10])
def test_tensors_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Also when nearly every tensor is cut or has a shard of its own."""
    monkeypatch.setattr(artifacts, "SHARD_BYTES", limit + artifacts.HEADER_BYTES)
    with writing(tmp_path / "a", NOTE) as folder:
        save_tensors(folder, tensors())
    found = open_artifact(tmp_path / "a", "note").tensors()
    assert found.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_no_shard_is_larger_than_promised(tmp_path: Path) -> None:
    """With its header: just under and just over the limit, and many small ones beside."""
    many = {f"layer.{index}.weight": torch.zeros(40_000) for index in range(100)}
    save_tensors(tmp_path, {"large": torch.zeros(2**22, 2), "full": torch.zeros(artifacts.SHARD_BYTES // 4), **many})
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert len(sizes) >= 5
    assert max(sizes) <= artifacts.SHARD_BYTES


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    save(tmp_path / "note")
    with pytest.raises(ArtifactError, match="lists no weights files"):
        open_artifact(tmp_path / "note", "note").tensors()
    with writing(tmp_path / "note", NOTE) as folder:
        save_tensors(folder, tensors())
    file = tmp_path / "note" / "weights-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match=r"weights-00000.safetensors is truncated or was edited"):
        open_artifact(tmp_path / "note", "note").tensors()


def test_no_pickle_is_read() -> None:
    """What serves must not run code from a file: neither torch.load nor pickle is anywhere in the package."""
    source = Path(artifacts.__file__).parent
    for file in source.rglob("*.py"):
        text = file.read_text()
        assert "torch.load(" not in text, file
        assert "import pickle" not in text, file


def test_manifest_of_another_machine(tmp_path: Path) -> None:
    """Nothing in a manifest depends on where or when it was made, so a folder can be moved."""
    save(tmp_path / "first" / "note")
    save(tmp_path / "second" / "note")
    first, second = ((tmp_path / name / "note" / "manifest.json").read_text() for name in ("first", "second"))
    assert first == second
    (tmp_path / "first" / "note").rename(tmp_path / "moved")
    assert read_manifest(tmp_path / "moved", "note").digest == "d1"
