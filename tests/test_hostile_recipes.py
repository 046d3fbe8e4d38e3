"""Recipes that ask for what no machine has, or are no recipes: one line, at once, before anything is allocated."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sidera import config
from sidera.align.recipe import AlignRecipe
from sidera.catalog.catalog import Catalog
from sidera.config import parse_toml, read_toml
from sidera.core import InputError
from sidera.fit.memory import check_fits
from sidera.models import MODELS, build_model, parse_model
from sidera.ops.budget import Budget, TooLarge
from sidera.sim.source import world_source
from sidera.train.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.toml"))
BASE = ROOT / "recipes" / "any" / "generator.toml"


def refused(*overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        Recipe.read(BASE, overrides)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 600
    return said


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.width=10_000_000", "[model] width = 10000000 is out of range; allowed: whole numbers from 1 to 65,536"),
        ("model.num_layers=100_000", "[model] num_layers = 100000 is out of range"),
        ("model.max_history=0", "[model] max_history = 0 is out of range"),
        ("fit.batch_size=1_000_000_000", "[fit] batch_size = 1000000000 is out of range; allowed: whole numbers"),
        ("fit.epochs=0", "[fit] epochs = 0 is out of range"),
        ("fit.lr=nan", "[fit] lr = nan is out of range; allowed: a finite number"),
        ("fit.lr=inf", "[fit] lr = inf is out of range"),
        ("fit.lr=true", "[fit] lr = True is a bool; allowed: float"),
        ("fit.lr=0x" + "f" * 20_000, "[fit] lr = a int too large to be shown is out of range"),
        ("fit.seed=-1", "[fit] seed = -1 is out of range"),
        ("fit.seed=99999999999999999999", "[fit] seed = 99999999999999999999 is out of range"),
        ("catalog.quantizer.num_levels=0", "[catalog.quantizer] num_levels = 0 is out of range; allowed: 1..16"),
        ("catalog.quantizer.num_levels=1_000", "[catalog.quantizer] num_levels = 1000 is out of range"),
        ("catalog.quantizer.codebook_size=1_000_000_000_000", "codebook_size = 1000000000000 is out of range"),
        ("catalog.seed=-1", "[catalog] seed = -1 is out of range"),
        ("eval.beam=1_000_000_000", "[eval] beam = 1000000000 is out of range"),
        ("eval.bootstrap=1e9", "[eval] bootstrap = 1000000000.0 is a float; allowed: int"),
        ("eval.ks=[[[[1]]]]", "is a list"),
        ("model.name=[1]", "[model] name = [1] is not known; allowed: popularity"),
        ("model.name=" + "x" * 100_000, "is not known"),
        ("model." + "y" * 100_000 + "=1", "has no key"),
        ("data.split=" + "z" * 100_000, "is not known"),
        ("fit.lr=" + "[" * 100_000 + "]" * 100_000, "[fit] lr"),
    ],
)  # fmt: skip
def test_a_key_out_of_range_is_named_with_its_limit(override: str, named: str) -> None:
    assert named in refused(override)


@pytest.mark.parametrize(
    "text",
    [
        "[fit]\nlr = " + "[" * 100_000 + "]" * 100_000,
        "[fit]\nlr = " + "{a=" * 10_000 + "1" + "}" * 10_000,
        "[fit]\nlr = " + "9" * 10_000,
        "[" + ".".join(["a"] * 5_000) + "]\nb = 1",
        "\x00",
        "[fit",
        "fit = 1",
        "#" * (config.MAX_RECIPE_BYTES + 1),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str) -> None:
    for name in ("recipe.toml", "world.toml"):
        (tmp_path / name).write_text(text)
    for load in (
        lambda: Recipe.read(tmp_path / "recipe.toml"),
        lambda: AlignRecipe.read(tmp_path / "recipe.toml"),
        lambda: world_source(str(tmp_path / "world.toml")),
    ):
        with pytest.raises(InputError) as caught:
            load()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


def test_toml_as_deep_as_recipes_are_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[align.arms.safe]\nntp = 'safe'\n")
    assert read_toml(tmp_path / "a.toml") == {"align": {"arms": {"safe": {"ntp": "safe"}}}}
    with pytest.raises(ValueError, match="nested deeper than 32 levels"):
        parse_toml("a = " + "[" * 40 + "]" * 40)


VALUE = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(), st.text(max_size=4),
    st.sampled_from([10**7, 10**9, 10**12, 10**30, 2**63]), st.lists(st.integers(0, 3), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(RECIPES), data=st.data(), value=VALUE)
def test_any_value_of_any_key(path: Path, data: st.DataObject, value: Any) -> None:
    sections = Recipe.read(path).sections() | {"align": {}, "rewards": {}}
    section = data.draw(st.sampled_from([name for name, keys in sections.items() if keys]))
    key = data.draw(st.sampled_from(sorted(sections[section])))
    changed = sections | {section: {**sections[section], key: value}}
    said = ""
    try:
        Recipe.parse(changed)
    except InputError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 900


# -- what fits the keys and not the machine ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, kind in MODELS.items() if "width" in kind.Config.__dataclass_fields__])
def test_models_beyond_the_memory_are_refused_before_it_is_taken(
    name: str, trained_catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, settings_ = parse_model({"name": name})
    monkeypatch.setattr("sidera.models.total_memory", lambda: 1000)
    with pytest.raises(
        InputError, match=rf"\[model\] {name} with \w+ = [\d,]+ over 24 items takes .* or more; allowed: 0"
    ):
        build_model(name, settings_, trained_catalog)


@pytest.fixture
def trained_catalog(trained_run: Path) -> Catalog:
    from dataclasses import replace

    catalog = Catalog.load(trained_run / "catalog")
    return replace(catalog, schema=replace(catalog.schema, labels=("click",), positive="click"))


def test_a_budget_counts_what_torch_is_asked_for() -> None:
    with Budget(10_000) as budget:
        nn.Linear(10, 10)
        torch.zeros(5, dtype=torch.int64)
    assert budget.used == 4 * 110 + 40
    for build in (
        lambda: nn.Embedding(10**7, 10**7),
        lambda: nn.Linear(10**10, 10**10),
        lambda: torch.empty(10**12, dtype=torch.uint8),
        lambda: torch.arange(10**12),
        lambda: torch.full((10**6, 10**6), 1.0),
        lambda: nn.Sequential(*(nn.Linear(2, 2) for _ in range(10**9))),
    ):
        with pytest.raises(TooLarge, match=r"it takes .* allowed"), Budget(2**20, most_tensors=100):
            build()
    torch.manual_seed(3)
    plain = nn.Linear(7, 5).weight
    torch.manual_seed(3)
    with Budget(2**20):
        assert torch.equal(nn.Linear(7, 5).weight, plain)  # the same random numbers


def test_training_beyond_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(100, 100, bias=False)  # 40,000 bytes
    monkeypatch.setattr("sidera.fit.memory.total_memory", lambda: 160_000)
    check_fits(model, "cpu")
    monkeypatch.setattr("sidera.fit.memory.total_memory", lambda: 159_999)
    with pytest.raises(InputError, match=r"the weights take 0.0 MiB, training them 0.2 MiB or more; allowed: 0.2 MiB"):
        check_fits(model, "cpu")
    check_fits(model, "cuda")
    check_fits(model.requires_grad_(False), "cpu")


def test_tomllib_is_what_reads(tmp_path: Path) -> None:
    text = BASE.read_text()
    assert parse_toml(text) == tomllib.loads(text)
