"""Every key of every section is documented where it is declared, and a recipe can be written with all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sidera.align.recipe import AlignRecipe
from sidera.cli import main
from sidera.cli.keys import section_classes, whole_recipe
from sidera.config import SECTIONS
from sidera.keys import keys_of, toml, type_text
from sidera.recipes import read_card, recipe_names
from sidera.train.recipe import Recipe

PINNED = Path(__file__).parent / "keys.txt"


def lines() -> list[str]:
    """``section.key type`` of everything."""
    return [f"{name}.{key.name}: {key.kind}" for name, cls in section_classes().items() for key in keys_of(cls)]


@pytest.mark.parametrize("name", section_classes())
def test_every_key_says_what_it_is(name: str) -> None:
    silent = [key.name for key in keys_of(section_classes()[name]) if len(key.comment) < 3 and key.section is None]
    assert not silent, f"{name}: write a comment behind {', '.join(silent)}"


def test_keys_are_frozen() -> None:
    """A recipe of yesterday must be read tomorrow: keys are added here, not renamed or taken away without a word in
    CHANGELOG. When that is meant, write the new list: python tests/test_keys.py"""
    assert lines() == PINNED.read_text(encoding="utf-8").splitlines()


def test_every_section_of_a_recipe_is_listed() -> None:
    assert set(SECTIONS) - {"model"} <= set(section_classes())


@pytest.mark.parametrize("name", recipe_names())
def test_a_whole_recipe_says_the_same_and_so_do_its_comments(name: str, tmp_path: Path) -> None:
    text = whole_recipe(name)
    file, opened = tmp_path / "whole.toml", tmp_path / "opened.toml"
    file.write_text(text, encoding="utf-8")
    opened.write_text(re.sub(r"(?m)^# (\w+ = [^ ].*)$", r"\1", text), encoding="utf-8")
    assert opened.read_text(encoding="utf-8").count("\n# ") < text.count("\n# ")
    reader = AlignRecipe if read_card(name).verb == "align" else Recipe
    assert reader.read(file) == reader.read(name)
    assert reader.read(opened) == reader.read(name)


def test_a_section_a_model_and_a_key_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for what, expected in (
        ("fit", "lr "),
        ("tiger", "head_width"),
        ("[catalog.contrastive]", "swing_alpha"),
        ("fit.lr", "lr"),
    ):
        assert main(["keys", what, "-q"]) == 0
        out = capsys.readouterr().out
        assert re.search(rf"^{expected}", out, re.MULTILINE), out
    assert main(["keys", "lr", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["sections"]
    trained = {"rq_vae", "fsq", "rq_fsq", "lfq"}  # quantizers
    assert {one["section"] for one in found} == {"fit", "align", "catalog.contrastive", *trained}
    assert main(["keys", "pateince"]) == 2
    assert "did you mean 'patience'" in capsys.readouterr().err


def test_a_commented_copy_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--write", "generator", str(tmp_path / "mine.toml"), "--commented"]) == 0
    assert (tmp_path / "mine.toml").read_text(encoding="utf-8") == whole_recipe("generator")
    assert main(["recipes", "--commented"]) == 2


def test_types_and_values_in_words() -> None:
    assert type_text(float | None) == "number or nothing"
    assert type_text(tuple[int, ...]) == "list of whole numbers"
    assert toml({"a": (1, 2.5), "b c": "x"}) == '{a = [1, 2.5], "b c" = "x"}'
    assert toml(True) == "true"


if __name__ == "__main__":
    PINNED.write_text("\n".join(lines()) + "\n", encoding="utf-8")
