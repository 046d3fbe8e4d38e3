"""Recipes: every key is checked by name and type before any work starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from sidera.config import digest, load_recipe, parse_section, read_toml
from sidera.core import InputError
from sidera.train.recipe import Recipe

RECIPE = {"data": {}, "catalog": {}, "model": {"name": "sasrec"}, "fit": {}, "eval": {}}


@dataclass(frozen=True)
class Sample:
    """A section with every kind of key."""

    needed: int
    rate: float = 0.5
    flag: bool = False
    name: str = "x"
    kind: Literal["full", "sampled"] = "full"
    limit: float | None = None
    sizes: tuple[int, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)


def test_values_take_the_types_of_their_keys() -> None:
    values = {"needed": 3, "rate": 1, "flag": True, "limit": 2, "sizes": [1, 2], "columns": {"user": "uid"}}
    section = parse_section(Sample, values, "[sample]")
    assert section == Sample(3, 1.0, True, limit=2.0, sizes=(1, 2), columns={"user": "uid"})
    assert isinstance(section.rate, float)
    assert isinstance(section.limit, float)
    assert parse_section(Sample, {"needed": 3, "limit": None}, "[sample]").limit is None


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, r"\[sample\] lacks needed; fix: add the key"),
        ({"needed": 1, "rte": 2.0}, r"\[sample\] has no key 'rte' \(did you mean 'rate'\?\); allowed: needed, rate"),
        ({"needed": "3"}, r"\[sample\] needed = '3' is a str; allowed: int"),
        ({"needed": 3.5}, r"\[sample\] needed = 3.5 is a float; allowed: int"),
        ({"needed": True}, r"\[sample\] needed = True is a bool; allowed: int"),
        ({"needed": 1, "rate": True}, r"\[sample\] rate = True is a bool; allowed: float"),
        ({"needed": 1, "flag": 1}, r"\[sample\] flag = 1 is a int; allowed: bool"),
        ({"needed": 1, "name": 1}, r"\[sample\] name = 1 is a int; allowed: str"),
        ({"needed": 1, "kind": "ful"}, r"kind = 'ful' is not known \(did you mean 'full'\?\); allowed: 'full', 'sam"),
        ({"needed": 1, "limit": "no"}, r"\[sample\] limit = 'no' is a str; allowed: float \| None"),
        ({"needed": 1, "sizes": 3}, r"\[sample\] sizes = 3 is a int; allowed: tuple\[int"),
        ({"needed": 1, "sizes": [1, "a"]}, r"\[sample\] sizes\[1\] = 'a' is a str; allowed: int"),
        ({"needed": 1, "columns": []}, r"\[sample\] columns = \[\] is a list; allowed: dict"),
        ({"needed": 1, "columns": {"user": 2}}, r"\[sample\] columns.user = 2 is a int; allowed: str"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        parse_section(Sample, values, "[sample]")
    assert "\n" not in str(caught.value)


def test_unknown_sections_are_named() -> None:
    with pytest.raises(InputError, match=r"unknown section \[modell\] \(did you mean 'model'\?\); allowed: data, cat"):
        load_recipe({"modell": {}})
    with pytest.raises(InputError, match="'fit' must be a section; fix: write it as "):
        load_recipe({"fit": 3})


def test_a_section_written_as_a_key(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("fit = 3\n")
    with pytest.raises(InputError, match="'fit' must be a section"):
        load_recipe(tmp_path / "r.toml")


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("fit.lr=3e-4", "fit", "lr", 3e-4),
        ("fit.epochs = 7", "fit", "epochs", 7),
        ("catalog.quantizer.balanced=true", "catalog", "quantizer", {"balanced": True}),
        ("catalog.vectors=['text', 'behaviour']", "catalog", "vectors", ["text", "behaviour"]),
        ("model.loss=full", "model", "loss", "full"),
        ('model.loss="full"', "model", "loss", "full"),
        ("data.adapter=a=b", "data", "adapter", "a=b"),
    ],
)
def test_overrides(override: str, section: str, key: str, value: Any) -> None:
    assert load_recipe(RECIPE, [override])[section][key] == value


def test_the_last_override_wins_and_the_source_stays() -> None:
    source = {"fit": {"lr": 1.0}}
    assert load_recipe(source, ["fit.lr=2.0", "fit.lr=3.0"])["fit"]["lr"] == 3.0
    assert source == {"fit": {"lr": 1.0}}


@pytest.mark.parametrize("override", ["lr=3", "fit.lr", "fit=3", "ft.lr=3", "", ".=1", "fit.=3"])
def test_what_is_no_override_is_named(override: str) -> None:
    with pytest.raises(InputError, match=r"is not an override; allowed: SECTION\.KEY=VALUE") as caught:
        load_recipe(RECIPE, [override])
    assert repr(override) in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no recipe at .*absent.toml"):
        read_toml(tmp_path / "absent.toml")
    with pytest.raises(InputError, match=r"cannot read recipe .*: Is a directory"):
        read_toml(tmp_path)
    (tmp_path / "bad.toml").write_text("[fit\nlr = 1")
    with pytest.raises(InputError, match=r"bad.toml is not valid TOML: .*line 1"):
        read_toml(tmp_path / "bad.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary.toml is not valid TOML"):
        read_toml(tmp_path / "binary.toml")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        (
            "model.name=sasrek",
            r"\[model\] name = 'sasrek' is not known \(did you mean 'sasrec'\?\); allowed: popularity",
        ),
        ("model.with=3", r"\[model\] has no key 'with' \(did you mean 'width'\?\)"),
        ("model.width=wide", r"\[model\] width = 'wide' is a str; allowed: int"),
        ("fit.lr=-1.0", r"\[fit\] lr = -1.0 is out of range"),
        ("fit.lr=nan", r"\[fit\] lr = nan is out of range"),
        ("fit.epoch=3", r"\[fit\] has no key 'epoch' \(did you mean 'epochs'\?\)"),
        (
            "catalog.quantizer.codebook_size=100000",
            r"\[catalog.quantizer\] codebook_size = 100000 is out of range; allowed: 0..32767",
        ),
        ("catalog.vectors=['txt']", r"\[catalog\] vectors names 'txt'; allowed: text"),
        ("data.split=random", r"\[data\] split = 'random' is not known; allowed: 'leave_one_out', 'temporal'"),
        ("eval.ks=[10, 5]", r"\[eval\] ks = \[10, 5\]"),
        ("eval.beam=2", r"\[eval\] beam = 2 cannot fill a list of 10"),
    ],
)
def test_a_recipes_values_are_checked_before_any_work(override: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        Recipe.parse(load_recipe(RECIPE, [override]))


def test_a_recipe_needs_a_model() -> None:
    with pytest.raises(InputError, match=r"\[model\] lacks name; allowed: popularity, item_knn"):
        Recipe.parse(load_recipe({}))


def test_a_recipe_comes_back_from_its_run_folder(tmp_path: Path) -> None:
    recipe = Recipe.parse(load_recipe(RECIPE, ["fit.lr=0.01", "eval.ks=[1, 10]", "model.width=32"]))
    recipe.save(tmp_path)
    assert Recipe.of_run(tmp_path) == recipe
    assert Recipe.of_run(tmp_path, ["eval.beam=77"]).eval.beam == 77
    for damage in ("{", "[1]", "3"):
        (tmp_path / "recipe.json").write_text(damage)
        with pytest.raises(InputError, match=r"recipe.json is damaged"):
            Recipe.of_run(tmp_path)


def test_digests_name_values() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": (1, 2), "a": 1})
    assert digest(Sample(3)) == digest(Sample(3, 0.5))
    assert digest(Sample(3)) != digest(Sample(4))
    assert len(digest(1)) == 16
    with pytest.raises(TypeError, match="cannot digest a set"):
        digest({1, 2})


def test_a_section_inside_a_section_is_set_by_its_path() -> None:
    source = {"catalog": {"contrastive": {"steps": 5}}}
    recipe = load_recipe(source, ["catalog.contrastive.lr=1e-3", "catalog.seed=2"])
    assert recipe["catalog"] == {"contrastive": {"steps": 5, "lr": 1e-3}, "seed": 2}
    assert source == {"catalog": {"contrastive": {"steps": 5}}}
