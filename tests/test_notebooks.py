"""The notebooks' code runs as it stands, and what they show is what running them gives."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "docs" / "use" / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"-?\d+\.\d+")


def execute(path: Path) -> list[tuple[dict[str, Any], str]]:
    """Every code cell and what it prints."""
    space: dict[str, Any] = {}
    found = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            heard = io.StringIO()
            with contextlib.redirect_stdout(heard):
                exec(compile("".join(cell["source"]), path.name, "exec"), space)
            found.append((cell, heard.getvalue()))
    return found


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_runs_and_prints_what_is_shown(path: Path) -> None:
    """Line for line, but for the figures and titles that a training gives: other processors round otherwise."""
    for cell, heard in execute(path):
        shown = "".join(line for output in cell["outputs"] for line in output["text"])
        assert len(shown.splitlines()) == len(heard.splitlines()), "".join(cell["source"])
        if "recommend" not in "".join(cell["source"]):
            assert NUMBER.sub("0", shown) == NUMBER.sub("0", heard)


if __name__ == "__main__":  # write what the cells print into the notebooks
    for notebook in NOTEBOOKS:
        content = json.loads(notebook.read_text(encoding="utf-8"))
        heard_of = iter([heard for _, heard in execute(notebook)])
        for number, cell in enumerate((cell for cell in content["cells"] if cell["cell_type"] == "code"), start=1):
            heard, cell["execution_count"] = next(heard_of), number
            stream = {"name": "stdout", "output_type": "stream", "text": heard.splitlines(keepends=True)}
            cell["outputs"] = [stream] if heard else []
        notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
