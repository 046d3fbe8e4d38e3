"""Folders in the layout of Hugging Face: the same answers, a card, and one line for everything that is wrong."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sidera
from sidera import artifacts
from sidera.catalog.catalog import Catalog
from sidera.cli import main
from sidera.core import ArtifactError, InputError
from sidera.data.tiny import tiny_log
from sidera.engine.recommender import Recommender
from sidera.models import build_model, parse_model
from sidera.train.recipe import Recipe
from sidera.train.stages import run

HISTORIES = [["item0003", "item0007"], ["item0011"]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, and what was saved of it."""
    folder = tmp_path_factory.mktemp("pretrained")
    tiny_log(60, 40).save(folder / "log")
    sections: dict[str, Any] = {
        "data": {}, "catalog": {"vectors": ["tfidf"], "quantizer": {"num_levels": 2, "codebook_size": 8}},
        "model": {"name": "sidera", "width": 16, "num_layers": 1, "num_heads": 1, "max_history": 12},
        "fit": {"max_steps": 4, "batch_size": 16, "eval_every_epochs": 0}, "expert": {"enabled": True},
        "eval": {"bootstrap": 10, "latency_rows": 0, "free_rows": 0, "baselines": [], "beam": 13, "wide_beam": 60},
    }  # fmt: skip
    run(Recipe.parse(sections), folder / "log", folder / "run", say=lambda _: None)
    sidera.save_pretrained(folder / "run", folder / "saved")
    return folder


def test_a_saved_folder_answers_as_its_run(place: Path) -> None:
    ours, theirs = sidera.load(str(place / "run")), sidera.from_pretrained(place / "saved")
    assert theirs.recommend(HISTORIES, k=7) == ours.recommend(HISTORIES, k=7)
    assert (theirs.beam, theirs.version, theirs.num_known) == (13, ours.version, ours.num_known)
    assert theirs.serving.expert is not None  # its counts are part of what the run answers
    assert theirs.search == ours.search
    assert {path.name for path in (place / "saved").iterdir()} == {
        "README.md", "catalog", "config.json", "expert", "manifest.json", "model.safetensors",
    }  # fmt: skip
    late = theirs.catalog.with_items(["new"], torch.randn(1, theirs.catalog.quantizer.dim))
    theirs.use_catalog(late)
    assert not theirs.recommend([["new"]], k=3)[0].cold_start


def test_at_the_shell(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Out and in again: a run folder that answers as the first."""
    assert main(["save-pretrained", str(place / "run"), str(tmp_path / "out")]) == 0
    assert "sidera.from_pretrained opens it" in capsys.readouterr().out
    assert main(["from-pretrained", str(tmp_path / "out"), str(tmp_path / "again"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_items"] == 40
    ours, theirs = sidera.load(str(place / "run")), sidera.load(str(tmp_path / "again"))
    assert theirs.recommend(HISTORIES, k=7) == ours.recommend(HISTORIES, k=7)
    for words, problem in (
        ([str(tmp_path / "out"), str(tmp_path / "again")], "is there already"),
        ([str(tmp_path / "out"), str(tmp_path / "new"), "--items", str(place / "run")], "--items without --t5"),
        ([str(tmp_path / "out"), str(tmp_path / "new"), "--t5"], "a T5 holds no items"),
        ([str(tmp_path / "nowhere"), str(tmp_path / "new")], "no pretrained at"),
    ):
        assert main(["from-pretrained", *words]) == 2
        assert problem in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main(["save-pretrained", str(place / "run"), str(tmp_path / "t5"), "--t5"]) == 2
    assert "SideraGenerator is no T5; allowed: a Tiger" in capsys.readouterr().err


def test_a_tiger_goes_out_as_a_t5_and_comes_in_again(place: Path, tmp_path: Path) -> None:
    catalog = Catalog.load(place / "run" / "catalog")
    sizes = {"width": 16, "num_layers": 1, "num_heads": 2, "head_width": 8, "ff_width": 32, "normalize": "vocabulary"}
    section = {"name": "tiger", **sizes, "max_history": 9}
    tiger = Recommender(build_model(*parse_model(section), catalog).eval(), catalog, model_section=section)
    catalog.save(tmp_path / "run" / "catalog")
    tiger.save_model(tmp_path / "run" / "model", digest="d", parents={})
    (tmp_path / "run" / "recipe.json").write_text('{"eval": {"beam": 50}}')
    assert main(["save-pretrained", str(tmp_path / "run"), str(tmp_path / "t5"), "--t5"]) == 0
    words = ["from-pretrained", str(tmp_path / "t5"), str(tmp_path / "again"), "--t5", "--items", str(tmp_path / "run")]
    assert main([*words, "--max-history", "9"]) == 0
    again = sidera.load(str(tmp_path / "again"))
    assert again.reads.max_events == 9
    for one, other in zip(again.recommend(HISTORIES, k=5), tiger.recommend(HISTORIES, k=5), strict=True):
        assert one.item_keys == other.item_keys
        assert one.scores == other.scores


def test_other_libraries_read_the_files(place: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(place / "saved" / "model.safetensors")
    own = sidera.load(str(place / "run")).model.state_dict()
    assert {name: tensor.shape for name, tensor in tensors.items()} == {name: one.shape for name, one in own.items()}
    config = json.loads((place / "saved" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("sidera", ["SideraGenerator"])


def test_the_card_says_what_the_run_knows(place: Path) -> None:
    card = (place / "saved" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: sidera\n")
    manifest = artifacts.read_manifest(place / "run" / "model", "model")
    for part in ("| steps | 4 |", "| recall@10 |", "history kept", manifest.digest, "`width` | `16`", "60 rows"):
        assert part in card, part
    bare = shutil.copytree(place / "run", place / "bare")
    shutil.rmtree(bare / "evaluation")
    assert "Not measured." in sidera.save_pretrained(bare, place / "bare_saved").joinpath("README.md").read_text()


def test_a_new_version_takes_the_place_and_a_longer_card_changes_nothing(place: Path) -> None:
    other = Path(shutil.copytree(place / "saved", place / "again"))
    (other / "README.md").write_text("# mine\n")
    sidera.from_pretrained(other)
    sidera.save_pretrained(place / "run", other)
    assert (other / "README.md").read_text() == (place / "saved" / "README.md").read_text()
    (place / "full").mkdir()
    (place / "full" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="would be replaced"):
        sidera.save_pretrained(place / "run", place / "full")
    assert (place / "full" / "notes.txt").read_text() == "mine"


def sealed(folder: Path) -> None:
    """Write the manifest again over changed files, as somebody would who means it."""
    kept = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors", "README.md")}
    catalog = shutil.move(folder / "catalog", folder.with_name("kept_catalog"))
    manifest = artifacts.read_manifest(folder, "pretrained")
    shutil.rmtree(folder)
    with artifacts.writing(folder, artifacts.Manifest("pretrained", manifest.digest)) as staging:
        for name, content in kept.items():
            (staging / name).write_bytes(content)
        shutil.move(catalog, staging / "catalog")


def change_config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return change


def change_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return changed


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut off": (cut, "is damaged: ValueError: "),
    "no header": (lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40)), "the header"),
    "a tensor is missing": (change_weights(lambda t: t.pop("item.weight")), "lack 'item.weight'"),
    "an unknown tensor": (change_weights(lambda t: t.update(more=torch.zeros(2))), "unknown 'more'"),
    "another shape": (
        change_weights(lambda t: t.update({"item.weight": torch.zeros(40, 8)})), r"'item.weight' of shape \(40, 8\)",
    ),
    "not finite": (change_weights(lambda t: t["item.weight"].fill_(float("nan"))), "not finite"),
    "another width": (change_config(model={"name": "sidera", "width": 32}), "it does not fit its recipe"),
    "an unknown model": (change_config(model={"name": "sidra"}), "is not known"),
    "a model that is no section": (change_config(model=7), "model = 7 is no dict"),
    "more items": (change_config(num_items=41), "it knows 41 items, the catalogue holds 40"),
    "another codebook": (change_config(codebook_id="0" * 16), "was trained on codebook 0000"),
    "no object": (lambda folder: (folder / "config.json").write_text("[1]"), "holds no dict"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_what_is_wrong_is_one_line(case: str, place: Path, tmp_path: Path) -> None:
    damage, words = DAMAGES[case]
    folder = Path(shutil.copytree(place / "saved", tmp_path / "saved"))
    damage(folder)
    with pytest.raises(ArtifactError, match="truncated or was edited"):
        sidera.from_pretrained(folder)
    sealed(folder)
    with pytest.raises(InputError, match=words) as caught:
        sidera.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_named(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no pretrained at"):
        sidera.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="holds a model, not a pretrained"):
        sidera.from_pretrained(place / "run" / "model")
    folder = Path(shutil.copytree(place / "saved", tmp_path / "saved"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"lacks its file model\.safetensors"):
        sidera.from_pretrained(folder)
    with pytest.raises(ArtifactError):
        sidera.save_pretrained(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
