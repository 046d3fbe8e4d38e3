"""The how-to pages: commands between the markers and every Python block run as written, after the README's commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sidera.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "use" / "howto").glob("*.md"))
BLOCKS = re.compile(r"<!-- commands:begin -->\s*```\n(.*?)```\s*<!-- commands:end -->|```python\n(.*?)```", re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """("commands" or "python", text) in the order of the page."""
    found = BLOCKS.finditer(page.read_text(encoding="utf-8"))
    return [("commands", one[1]) if one[1] is not None else ("python", one[2]) for one in found]


def run_commands(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in text.strip().splitlines():
        program, *arguments = shlex.split(command)
        assert program == "sidera"
        assert main(arguments) == 0, f"{command}\n{capsys.readouterr().err}"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("howto")
    for name in ("recipes", "examples"):
        (folder / name).symlink_to(ROOT / name)
    return folder


LONG = {"add-items-and-retrain"}  # trains three times
RUN = [
    pytest.param(page, marks=[pytest.mark.slow] * (page.stem in LONG), id=page.stem) for page in PAGES if blocks(page)
]


@pytest.mark.parametrize("page", RUN)
def test_the_page_runs_as_written(
    page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    if not (workplace / "runs" / "mine").is_dir():  # the README comes first
        run_commands(blocks(ROOT / "README.md")[0][1], capsys)
    for kind, text in blocks(page):
        if kind == "commands":
            run_commands(text, capsys)
        else:
            exec(compile(text, str(page), "exec"), {})
    if any(kind == "commands" or "print(" in text for kind, text in blocks(page)):
        assert capsys.readouterr().out


def test_most_pages_have_something_to_run() -> None:
    assert len(PAGES) >= 12
    assert sum(bool(blocks(page)) for page in PAGES) >= 7
