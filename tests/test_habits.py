"""What surrounds the code: CI files, citation, the two commands. They are read here because nothing else runs them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import sidera

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
yaml = pytest.importorskip("yaml", reason="comes with pre-commit")


@pytest.mark.parametrize("file", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda file: file.name)
def test_hosted_files_are_yaml(file: Path) -> None:
    assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict)


def test_the_hosted_matrix_covers_the_ranges_that_the_package_promises() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    matrix = jobs["matrix"]["strategy"]["matrix"]
    lowest_python = re.match(r">=(3\.\d+)", PROJECT["requires-python"])
    torch = next(line for line in PROJECT["dependencies"] if line.startswith("torch"))
    lowest_torch, limit = re.match(r"torch>=([\d.]+),(<[\d.]+)", torch).groups()
    assert lowest_python.group(1) == matrix["python"][0]
    assert matrix["torch"] == [f"=={lowest_torch}.*", limit]
    assert {job["os"].split("-")[0] for job in matrix["include"]} >= {"ubuntu", "macos", "windows"}
    assert [step for step in jobs["readme"]["steps"] if step.get("run") == "bash .ci/run"]


def test_ci_runs_the_command_that_the_readme_gives() -> None:
    commands = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert commands[-1] == "make test"
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == sidera.__version__ == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
