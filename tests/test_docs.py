"""The documents agree with the code: links lead somewhere, verbs and flags exist, files that are named are there."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from sidera.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
FOLDERS = (ROOT, ROOT / "src" / "sidera", ROOT / "recipes", ROOT / "docs", ROOT / "benchmarks")
NAMED = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|toml|md|json|svg|png|html))`")
MADE = re.compile(r"^(runs|data|lists|align|cover|frames|out)/|[A-Z]{3,}")  # what commands write, and stand-ins


# of verbs and flags that come with the next merge; empty it there


def identifier(page: Path) -> str:
    return str(page.relative_to(ROOT))


def slug(heading: str) -> str:
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=identifier)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", text):
        if "://" in target:
            continue
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), f"{target} in {identifier(page)}"
        if anchor and found.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor[1:] in {slug(heading) for heading in headings}, f"{target}{anchor} in {identifier(page)}"


def test_every_page_stands_on_a_shelf() -> None:
    shelves = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        if page.name != "README.md":
            assert f"]({page.relative_to(ROOT / 'docs').as_posix()})" in shelves, page.name


def commands(text: str) -> list[list[str]]:
    """What is said of the shell: lines of code blocks and code spans that begin with ``sidera VERB``."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    said = [re.sub(r"^(\$ |torchrun .*? -m )", "", line.strip()) for line in (*lines, *spans)]
    return [line.split("#")[0].split() for line in said if re.match(r"sidera [a-z]+", line)]


def test_verbs_and_flags_that_are_spoken_of_exist() -> None:
    (action,) = (one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    flags = {
        verb: {text for one in parser._actions for text in one.option_strings}
        for verb, parser in action.choices.items()
    }
    wrong = []
    for page in PAGES:
        for _, verb, *words in commands(page.read_text(encoding="utf-8")):
            if verb not in flags:
                wrong.append(f"{identifier(page)}: sidera {verb}")
                continue
            used = {word.split("=")[0].rstrip(".,;") for word in words if re.match(r"--?[a-z]", word)}
            wrong += [f"{identifier(page)}: sidera {verb} {flag}" for flag in sorted(used - flags[verb])]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "log.md"], ids=identifier)
def test_files_that_are_named_are_there(page: Path) -> None:
    """But for docs/evidence/log.md, which tells of what is gone."""
    for name in NAMED.findall(page.read_text(encoding="utf-8")):
        if MADE.search(name):
            continue
        assert any((folder / name).exists() for folder in (*FOLDERS, page.parent)), f"{name} in {identifier(page)}"
