"""What must not drift: floors, the shell's flags, the HTTP fields, the recipes' shape."""

from __future__ import annotations

import argparse
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from sidera.align.recipe import AlignRecipe
from sidera.cli import build_parser
from sidera.config import SECTIONS
from sidera.train.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.toml"))
RECIPE_FLAGS = ["--data", "--out", "--set", "--max-minutes", "--piece-minutes", "--seed", "--device", "--threads"]
AB_FLAGS = ["--config", "--set", "--seed", "--users", "--days", "--log-days", "--timeout", "--no-brackets", "--out"]
AB_FLAGS += ["--device"]

# Somebody's scripts stand on these: a flag may be added here, not renamed or taken away without a word in CHANGELOG.
FLAGS = {
    "import": [
        "events",
        "--items",
        "--users",
        "--out",
        "--append",
        "--lacks",
        "--user",
        "--item",
        "--time",
        "--position",
        "--order",
        "--rating",
        "--min-rating",
        "--event-column",
        "--keep",
        "--time-unit",
        "--time-format",
        "--format",
        "--delimiter",
        "--encoding",
        "--no-header",
        "--columns",
        "--drop-duplicates",
        "--max-bad",
        "--max-bytes",
        "--mapping",
        "--strict",
    ],
    "fetch": ["name", "--list", "--out", "--accept-licence", "--from", "--lock", "--repin"],
    "convert": [
        "format",
        "files",
        "--out",
        "--core",
        "--min-rating",
        "--dedupe",
        "--since",
        "--until",
        "--rare",
        "--max-bad",
    ],
    "run": ["recipe", *RECIPE_FLAGS],
    "catalog": ["recipe", *RECIPE_FLAGS],
    "catalog compare": [
        *("recipe", "--data", "--out", "--quantizers", "--runs", "--steps", "--no-churn", "--set", "--threads"),
    ],
    "catalog add": ["run", "items", "--vectors", "--version"],
    "catalog remove": ["run", "keys", "--file", "--absent-ok", "--version"],
    "catalog diff": ["a", "b"],
    "catalog audit": ["run"],
    "save-pretrained": ["run", "folder", "--t5"],
    "from-pretrained": ["folder", "run", "--t5", "--items", "--max-history"],
    "train": ["recipe", *RECIPE_FLAGS],
    "evaluate": ["run", "--data", "--rows", "--set", "--name", "--device", "--threads"],
    "compare": ["a", "b", "--name"],
    "report": ["runs", "--out"],
    "cold": [
        "run",
        "--data",
        "--item-share",
        "--user-share",
        "--quota",
        "--rows",
        "--seed",
        "--set",
        "--device",
        "--threads",
    ],
    "scale": [
        "recipe",
        "--data",
        "--out",
        "--sizes",
        "--seeds",
        "--repeated",
        "--rows",
        "--lr-factors",
        "--cpu-hours",
        "--set",
        "--device",
        "--threads",
    ],
    "align": [
        "recipe",
        "--data",
        "--out",
        "--start",
        "--exposures",
        "--users",
        "--days",
        "--no-online",
        "--set",
        "--device",
        "--threads",
    ],
    "recommend": [
        "run",
        "--history",
        "--user",
        "--data",
        "--store",
        "-k",
        "--filter-seen",
        "--filter",
        "--unknown",
        "--threads",
    ],
    "score": ["run", "--history", "--items", "--threads"],
    "similar": ["run", "--items", "-k", "--threads"],
    "popular": ["run", "-k", "--category", "--data", "--store", "--days", "--event", "--threads"],
    "recommend-all": ["run", "--data", "--out", "-k", "--filter-seen", "--as-of", "--threads"],
    "export-events": ["store", "--exposures", "--out", "--since", "--until"],
    "refresh": [
        "run",
        "--data",
        "--epochs",
        "--lr-ratio",
        "--replay",
        "--gate-share",
        "--since",
        "--max-loss",
        "--min-overlap",
        "--max-growth",
        "--rows",
        "--device",
        "--threads",
    ],
    "versions": ["run", "--add"],
    "rollback": ["run", "version"],
    "store": ["store", "--compact", "--max-age-days", "--copy"],
    "erase": ["store", "--user", "--exposures", "--exports"],
    "export": ["run", "--beam", "--minutes", "--requests", "--key"],
    "serve": [
        "run",
        "--host",
        "--port",
        "--workers",
        "--store",
        "--exposures",
        "--fill",
        "--category-index",
        "--exposures-days",
        "--exposures-mb",
        "--rerank",
        "--rerank-from",
        "--cold-share",
        "--index",
        "--index-recall",
        "--watch",
        "--keys",
        "--no-keys",
        "--deadline-ms",
        "--adapt-beam",
        "--no-compiled",
        "--export-key",
        "--max-body-mb",
        "--max-connections",
        "--grace-seconds",
        "--access-log",
        "--otel",
        "--device",
        "--threads",
    ],
    "api-keys": ["what", "name", "--keys", "--scopes", "--days", "--rate"],
    "load": [
        "target",
        "--clients",
        "--rate",
        "--find",
        "--slo",
        "--seconds",
        "--warmup",
        "--data",
        "--ask",
        "--length",
        "-k",
        "--events",
        "--get",
        "--header",
        "--connections",
        "--timeout",
        "--serve",
        "--seed",
    ],
    "simulate": ["--config", "--set", "--seed", "--users", "--days", "--out"],
    "ab": ["arms", "--reranked", *AB_FLAGS],
    "demo": ["--data", "--out"],
    "recipes": ["--show", "--write", "--commented"],
    "keys": ["what", "--toml"],
    "completion": ["shell"],
}
EVERY_VERB = ["-q", "-v", "--json"]


def verbs() -> dict[str, argparse.ArgumentParser]:
    (action,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(action.choices)


def test_public_flags_are_frozen() -> None:
    found = {
        name: [
            action.option_strings[0] if action.option_strings else action.dest
            for action in parser._actions
            if action.dest != "help"
        ]
        for name, parser in verbs().items()
    }
    assert found == {name: [*EVERY_VERB, *flags] for name, flags in FLAGS.items()}


def test_http_fields_are_frozen() -> None:
    from sidera.serve.schemas import EventsRequest, EventsResponse, RecommendRequest, RecommendResponse

    asked = ["history", "user", "k", "filter_seen", "exclude", "filter", "feedback", "times", "profile"]
    assert list(RecommendRequest.model_fields) == [*asked, "as_of", "unknown"]
    said = [
        "items",
        "cold_start",
        "unknown",
        "unread",
        "unseen",
        "filtered_seen",
        "unknown_user",
        "policy_version",
        "shadow_version",
        "expert_version",
        "reranker_version",
    ]
    said += ["codebook_id", "items_version", "eligible", "request", "beam", "milliseconds"]
    assert list(RecommendResponse.model_fields) == said
    assert list(EventsRequest.model_fields) == ["user", "items", "times", "feedback", "unknown", "request", "slots"]
    assert list(EventsResponse.model_fields) == ["new", "known", "unknown"]


def test_recipe_sections_are_frozen() -> None:
    assert SECTIONS == ("data", "catalog", "model", "fit", "expert", "eval", "align", "rewards")


def test_rooms_are_on_a_floor() -> None:
    """Every room stands in pyproject's list of floors, where `lint-imports` (make lint) holds it to them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (floors,) = (contract for contract in contracts if contract["type"] == "layers")
    named = {room for floor in floors["layers"] for room in re.split(r"\s*[|:]\s*", floor)}
    rooms = {path.stem for path in (ROOT / "src" / "sidera").iterdir() if path.is_dir() or path.suffix == ".py"}
    assert rooms - {"__init__", "__main__", "__pycache__", "py"} == named


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 12


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_recipes_parse_and_begin_with_their_command(path: Path) -> None:
    Recipe.read(path)
    lines = path.read_text().splitlines()
    if "[align]" in lines:
        assert AlignRecipe.read(path).tuned
    assert 10 <= len(lines) <= 40
    assert lines[0].startswith(("# sidera run ", "# sidera scale ", "# sidera align "))
    arguments = build_parser().parse_args(shlex.split(lines[0].removeprefix("# sidera ")))
    assert ROOT / arguments.recipe == path
    assert arguments.out.startswith("runs/")
    data = Path(arguments.data)
    assert data.parts[0] in ("data", "..")
    if data.parts[0] == ".." and (ROOT.parent / "shared").is_dir():
        assert (ROOT / data).is_dir()
