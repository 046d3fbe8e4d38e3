"""The README's commands run as they stand, its Python too, and its figures are those of the result files."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from sidera.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    block = re.search(r"<!-- commands:begin -->\s*```\n(.*?)```\s*<!-- commands:end -->", README, re.DOTALL)
    assert block is not None
    return block.group(1).strip().splitlines()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a fresh checkout: the recipes and the example log, nothing else."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("recipes", "examples"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_commands_and_python_run_as_written(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    assert len(commands()) == 3  # what the README promises
    for command in commands():
        program, *arguments = shlex.split(command)
        assert program == "sidera"
        assert main(arguments) == 0, f"{command}\n{capsys.readouterr().err}"
    capsys.readouterr()
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    exec(compile(code.group(1), "README.md", "exec"), {})
    assert "cup-" in capsys.readouterr().out


def test_what_is_shown_is_that_of_the_result_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # the list of tables is the script's own
    tables = importlib.import_module("tables")
    put_between, update_document = tables.put_between, tables.update_document
    assert len(tables.result_files()) >= 7
    assert update_document(ROOT / "docs" / "evidence" / "results.md", tables.result_files(), check=True)
    assert put_between(ROOT / "README.md", "costs", tables.costs(), check=True)
    assert put_between(ROOT / "README.md", "size", tables.at_size(), check=True)
    assert tables.draw(tmp_path / "beauty.svg").read_text() == tables.CHART.read_text()


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_every_file_to_read_exists() -> None:
    section = README.split("## Read the code in this order")[1].split("\n## ")[0]
    folder = ROOT / "src" / "sidera"
    named = re.findall(r"`([\w/]+\.py)`", section)
    assert len(named) >= 8
    places = (ROOT, folder, folder / "data", folder / "catalog", folder / "models" / "generators", folder / "sim")
    for name in named:
        assert any((place / name).is_file() for place in places), name
