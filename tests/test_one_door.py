"""One door: outside models/ nothing asks which system it has before it, so a new system changes no other file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidera.models import MODELS

SRC = Path(__file__).resolve().parents[1] / "src" / "sidera"
OUTSIDE = sorted(path for path in SRC.rglob("*.py") if path.relative_to(SRC).parts[0] != "models")


def classes_of_models() -> set[str]:
    """Names of all classes that files below models/ define."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (SRC / "models").rglob("*.py")]
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def switches(source: str, classes: set[str], names: set[str]) -> Iterator[tuple[int, str]]:
    """(line, what) of every type check against one of ``classes`` and every string that is one of ``names``."""
    tree = ast.parse(source)
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("isinstance", "issubclass") or (node.func.id == "type" and len(node.args) == 1):
                for part in ast.walk(ast.Module(body=[ast.Expr(one) for one in node.args[1:]], type_ignores=[])):
                    named = part.id if isinstance(part, ast.Name) else getattr(part, "attr", "")
                    if named in classes:
                        yield node.lineno, f"isinstance of {named}"
        if isinstance(node, ast.Compare):
            for part in (node.left, *node.comparators):
                named = part.id if isinstance(part, ast.Name) else getattr(part, "attr", "")
                if named in classes:
                    yield node.lineno, f"comparison with {named}"
        if isinstance(node, ast.MatchClass) and getattr(node.cls, "id", "") in classes:
            yield node.lineno, "match of a model class"
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names:
            if id(node) not in docs:
                yield node.lineno, f"the name {node.value!r}"


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(SRC)))
def test_no_switch_on_a_system(path: Path) -> None:
    found = list(switches(path.read_text(encoding="utf-8"), classes_of_models(), set(MODELS)))
    assert not found, f"{path.relative_to(SRC)}: {found}"
