"""Recipes by name: found, listed, copied, and found before anything heavy is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sidera.align.recipe import AlignRecipe
from sidera.cli import main
from sidera.config import load_recipe
from sidera.core import InputError
from sidera.recipes import find_recipe, read_card, recipe_names, recipe_text, recipes_folder
from sidera.train.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]


def test_names_are_the_files_of_the_checkout() -> None:
    files = {path.relative_to(ROOT / "recipes").with_suffix("").as_posix() for path in ROOT.glob("recipes/*/*.toml")}
    assert set(recipe_names()) == files
    assert recipe_names()[0].startswith("any/")


@pytest.mark.parametrize("name", ["generator", "any/generator", "recipes/any/generator.toml"])
def test_a_recipe_is_found_by_each_of_its_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no checkout here
    assert find_recipe(name) == recipes_folder() / "any" / "generator.toml"
    assert Recipe.read(name).model_name == "sidera"


def test_a_file_is_taken_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "generator").write_text('[model]\nname = "popularity"\n')
    assert Recipe.read("generator").model_name == "popularity"
    assert Recipe.read("any/generator").model_name == "sidera"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("generatr", r"no recipe is called 'generatr' \(did you mean 'generator'\?\).*sidera recipes"),
        ("beuty/tiger", r"did you mean 'beauty/tiger'"),
        ("mine.toml", r"no recipe at 'mine.toml'"),
        ("recipes/any/nothing.toml", r"no recipe is called"),
        ("../recipes", r"no recipe|is a folder"),
    ],
)
def test_a_wrong_name_is_said_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_recipe(name)


@pytest.mark.parametrize("verb", ["run", "catalog", "train", "scale", "align"])
def test_a_wrong_name_is_answered_before_torch_is_imported(verb: str) -> None:
    code = f"""
import sys
from sidera.cli import main
code = main(["{verb}", "generatr", "--data", "nowhere", "--out", "nowhere"])
print(code, any(name in sys.modules for name in ("torch", "numpy", "pyarrow")))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["2", "False"]
    assert "did you mean 'generator'?" in found.stderr


@pytest.mark.parametrize("name", recipe_names())
def test_a_copy_stands_alone_and_says_the_same(name: str, tmp_path: Path) -> None:
    assert main(["recipes", "--write", name, str(tmp_path / "copy.toml")]) == 0
    assert load_recipe(tmp_path / "copy.toml") == load_recipe(find_recipe(name))
    reader = AlignRecipe if read_card(name).verb == "align" else Recipe
    assert reader.read(tmp_path / "copy.toml") == reader.read(name)


def test_a_copy_replaces_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").write_text("precious")
    assert main(["recipes", "--write", "generator", str(tmp_path / "mine.toml")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "mine.toml").read_text() == "precious"
    assert main(["recipes", "--write", "generator", str(tmp_path / "mine.txt")]) == 2
    assert not (tmp_path / "mine.txt").exists()


def test_the_list_names_data_and_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json", "-q"]) == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])["recipes"]
    assert [one["name"] for one in listed] == recipe_names()
    assert all(one["data"] and one["text"] and one["model"] for one in listed)
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert all(card["text"][:30] in out for card in listed)


def test_show_prints_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--show", "popularity", "-q"]) == 0
    assert capsys.readouterr().out == recipe_text("any/popularity")
