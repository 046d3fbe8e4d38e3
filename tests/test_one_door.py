"""One door: outside models/ nothing asks which system it has before it, so a new system changes no other file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from sidera.models import MODELS

SRC = Path(__file__).resolve().parents[1] / "src" / "sidera"
OUTSIDE = sorted(path for path in SRC.rglob("*.py") if path.relative_to(SRC).parts[0] != "models")
# Words that are more than a model's name: a slice and a column are called popularity, the program is called sidera.
OTHER_WORDS = {"popularity", "sidera"}


@cache
def classes_of_models() -> set[str]:
    """Names of all classes that files below models/ define."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (SRC / "models").rglob("*.py")]
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def named(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def switches(source: str, classes: set[str], names: set[str]) -> Iterator[tuple[int, str]]:
    """(line, what) of every type check against a model class and every comparison with a model's name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and named(node.func) in ("isinstance", "issubclass"):
            found = {named(part) for one in node.args[1:] for part in ast.walk(one)} & classes
            if found:
                yield node.lineno, f"{named(node.func)} of {', '.join(found)}"
        if isinstance(node, ast.Compare):
            parts = [part for one in (node.left, *node.comparators) for part in ast.walk(one)]
            found = {named(part) for part in parts} & classes
            found |= {str(part.value) for part in parts if isinstance(part, ast.Constant)} & names
            if found:
                yield node.lineno, f"comparison with {', '.join(found)}"
        if isinstance(node, ast.MatchClass) and named(node.cls) in classes:
            yield node.lineno, "match of a model class"
        if isinstance(node, ast.MatchValue) and isinstance(node.value, ast.Constant) and node.value.value in names:
            yield node.lineno, "match of a model's name"


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(SRC)))
def test_no_switch_on_a_system(path: Path) -> None:
    names = set(MODELS) - OTHER_WORDS
    found = list(switches(path.read_text(encoding="utf-8"), classes_of_models(), names))
    assert not found, f"{path.relative_to(SRC)}: {found}"


def test_switches_are_found() -> None:
    source = (
        'if isinstance(x, (int, ItemKNN)) or name == "tiger" or name in ("sasrec", "b") or type(x) is m.PScore: pass'
    )
    found = [what for _, what in switches(source, {"ItemKNN", "PScore"}, {"tiger", "sasrec"})]
    assert sorted(found) == [
        "comparison with PScore", "comparison with sasrec", "comparison with tiger", "isinstance of ItemKNN",
    ]  # fmt: skip


def calls(source: str, name: str) -> list[int]:
    """Lines that call this name."""
    nodes = ast.walk(ast.parse(source))
    return [node.lineno for node in nodes if isinstance(node, ast.Call) and named(node.func) == name]


def test_batches_are_built_in_one_place() -> None:
    found = {str(path.relative_to(SRC)) for path in SRC.rglob("*.py") if calls(path.read_text("utf-8"), "Batch")}
    assert found == {"batch.py", "data/reading.py"}  # a Batch picks its own rows, the Reading builds it


@pytest.mark.parametrize("room", ["models", "nn"])
def test_no_model_cuts_a_history(room: str) -> None:
    """What a model reads of a history its ``Reads`` say. A pathway chooses among events that were read."""
    cuts = re.compile(r"\.newest\(|\.cut\(|max_events|clamp\([^)]*max_history|\[-self\.config\.max_history")
    found = [
        f"{path.name}:{number}"
        for path in (SRC / room).rglob("*.py")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if cuts.search(line)
    ]
    assert found == []


def test_no_file_is_long_and_no_function_either() -> None:
    long = []
    for path in SRC.rglob("*.py"):
        text = path.read_text("utf-8")
        if text.count("\n") > 400:
            long.append(path.name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 80:
                long.append(f"{path.name}: {node.name}")
    assert long == []


def test_no_two_files_need_each_other() -> None:
    """Imports inside functions and for type checkers count."""
    files = {".".join(path.relative_to(SRC.parent).with_suffix("").parts): path for path in SRC.rglob("*.py")}
    graph = {
        name: {
            target
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module
            for target in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
            if target in files and target != name
        }
        for name, path in files.items()
    }
    assert [(one, other) for one in graph for other in graph[one] if one < other and one in graph[other]] == []
