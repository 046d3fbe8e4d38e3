"""The documents, the messages of the code and its comments agree with the code: what they name is there.

Checked are links and their anchors, verbs and flags, keys of recipes, files, and names of the code. The pages of
CHANGELOG and docs/evidence/log.md tell of what is gone, so names of files and of code are not looked up there.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from sidera.catalog.quantizers import QUANTIZERS
from sidera.cli import build_parser, joined
from sidera.cli.keys import section_classes
from sidera.config import SECTIONS
from sidera.keys import keys_of

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
OF_THE_PAST = ("CHANGELOG.md", "log.md")
PRESENT = [page for page in PAGES if page.name not in OF_THE_PAST]
CODE = sorted((ROOT / "src" / "sidera").rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").rglob("*.toml"))
FOLDERS = (ROOT, ROOT / "src" / "sidera", ROOT / "recipes", DOCS, ROOT / "benchmarks")
SUFFIXES = r"(?:py|toml|md|json|svg|png|html|ipynb)"
NAMED = re.compile(rf"`((?:[\w.-]+/)+[\w.-]+\.{SUFFIXES})`")
MADE = re.compile(r"^(runs|data|lists|align|cover|frames|out)/|[A-Z]{3,}")  # what commands write, and stand-ins
OPTIONS = "src/sidera/data/intake/options.py"  # of a --mapping file: its sections are no recipe's


def identifier(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@cache
def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def texts(path: Path) -> str:
    """What a file of code says to people: its strings (the gaps of f-strings as {}), docstrings and comments."""
    source = read(path)
    said = [
        token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    inside: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            inside.update(id(part) for part in node.values)
            said.append("".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            said.append(node.value)
    return "\n".join(said)


def spans(text: str) -> list[str]:
    """Code spans outside of code blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


# --- links --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=identifier)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", read(page), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", text):
        if "://" in target:
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{target} in {identifier(page)}"
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", read(file), flags=re.MULTILINE)
            assert anchor[1:] in {slug(heading) for heading in headings}, f"{target}{anchor} in {identifier(page)}"


def test_every_page_stands_on_a_shelf() -> None:
    shelves = read(DOCS / "README.md")
    for page in DOCS.rglob("*.md"):
        if page.name != "README.md":
            name = page.relative_to(DOCS).as_posix()
            assert name.split("/")[0] in ("use", "understand", "evidence"), name
            assert f"]({name})" in shelves, name


# --- the shell ----------------------------------------------------------------------------------------------------


def commands(text: str) -> list[list[str]]:
    """Words of the lines of code blocks and of the code spans that begin with ``sidera VERB``."""
    fenced = re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in fenced for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    said = [re.sub(r"^(\$ |torchrun .*? -m )", "", line.strip()) for line in (*lines, *spans(text))]
    return [_words(line.split("#")[0]) for line in said if re.match(r"sidera [a-z]+", line)]


def _words(line: str) -> list[str]:
    """``sidera``, the verb (of two words: as one), and the rest."""
    program, *words = line.split()
    return [program, *joined(words)]


def commands_in_code(path: Path) -> list[list[str]]:
    """``sidera VERB ...`` in quotation marks of any kind or after "# ", and texts that are nothing but a command."""
    said = re.findall(r"(?:`|'|^|# )(sidera [a-z]+[^`'\n]*)", texts(path), flags=re.MULTILINE)
    return [words for words in map(_words, said) if words[1] in verbs()]


@cache
def verbs() -> dict[str, set[str]]:
    (action,) = (one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    return {
        verb: {text for one in parser._actions for text in one.option_strings}
        for verb, parser in action.choices.items()
    }


def wrong_words(verb: str, words: list[str]) -> list[str]:
    used = {re.split(r"[=.,;:)\]}]", word)[0] for word in words if re.match(r"--?[a-z]", word)}
    return [f"sidera {verb} {flag}" for flag in sorted(used - verbs()[verb])]


def test_verbs_and_flags_of_the_pages_exist() -> None:
    wrong = []
    for page in PAGES:
        for _, verb, *words in commands(read(page)):
            said = wrong_words(verb, words) if verb in verbs() else [f"sidera {verb}"]
            wrong += [f"{identifier(page)}: {one}" for one in said]
    assert not wrong, "\n".join(wrong)


def test_verbs_and_flags_that_the_code_and_recipes_name_exist() -> None:
    wrong = []
    for path in CODE:
        for _, verb, *words in commands_in_code(path):
            wrong += [f"{identifier(path)}: {one}" for one in wrong_words(verb, words)]
    for path in RECIPES:
        first = read(path).splitlines()[0].removeprefix("# ").split()
        wrong += [f"{identifier(path)}: {one}" for one in wrong_words(first[1], first[2:])]
    assert not wrong, "\n".join(wrong)


FLAG = re.compile(r"(?<![\w-])(--[a-z][a-z-]+)")
OTHER_PROGRAMS = ("pip ", "git ", "curl ", "torchrun ", "python ", "pytest ")
OF_OTHERS = {
    "--version",
    "--flag",
    "--always",
    "--dirty",
    "--exclude",
    "--nproc-per-node",
}  # sidera's, git's, torchrun's


def test_every_flag_that_is_named_belongs_to_a_verb() -> None:
    """Also without the verb in front: "or --strict-items" names a flag as well."""
    known = set().union(*verbs().values()) | OF_OTHERS | declared_flags()
    said = {path: [texts(path)] for path in CODE} | {
        page: [span for span in spans(read(page)) if not span.startswith(OTHER_PROGRAMS)] for page in PRESENT
    }
    flags = {(identifier(path), flag) for path, found in said.items() for one in found for flag in FLAG.findall(one)}
    wrong = [f"{path}: {flag}" for path, flag in sorted(flags) if flag not in known]
    assert not wrong, "\n".join(wrong)


@cache
def declared_flags() -> set[str]:
    """Flags of the scripts under benchmarks/ and tests/."""
    scripts = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tests").rglob("*.py")]
    return {flag for path in scripts for flag in re.findall(r'add_argument\(\s*"(--[a-z-]+)"', read(path))}


# --- recipes ------------------------------------------------------------------------------------------------------


@cache
def keys() -> dict[str, set[str]]:
    """Section -> its keys; "model" has those of every model, and a section inside a section is a key as well."""
    known = {name: {key.name for key in keys_of(cls)} for name, cls in section_classes().items()}
    sections = {*SECTIONS, "align", "rewards", *(name for name in known if "." in name)}
    of_models = set().union(*(found for name, found in known.items() if name not in sections))
    known["catalog.quantizer"] = {"name"}.union(*(known[name] for name in QUANTIZERS))
    known["model"] = of_models | known.get("model", set()) | {"name"}
    known["align"] |= {"controls", "arms"}  # read by the recipe itself
    return known


def wrong_key(section: str, key: str) -> bool:
    """Whether ``[section] key`` is none; arms of an alignment have the keys of [align], features one set of keys."""
    section = re.sub(r"^data\.features\.\w+$", "data.features", section)
    if re.match(r"align\.arms\.", section):
        section = "align"
    if section not in keys():
        return not any(name.startswith(section + ".") for name in keys())
    return key not in keys()[section] and f"{section}.{key}" not in keys()


SAID_KEY = re.compile(r"\[([a-z]+(?:\.[a-z_]+)*)\] (\w+_\w+|[a-z]\w*(?= =)|[a-z]\w*$)")


def said_keys(text: str) -> Iterator[tuple[str, str]]:
    """``[section] key`` and ``--set section.key=...``."""
    yield from SAID_KEY.findall(text)
    for name in re.findall(r"--set ([a-z_.]+)=", text):
        section, _, key = name.rpartition(".")
        yield section, key


def recipe_sections() -> set[str]:
    return {name.split(".")[0] for name in keys()} | set(SECTIONS)


def keys_in_toml(block: str) -> Iterator[tuple[str, str]]:
    section = ""
    for line in block.splitlines():
        if header := re.match(r"\[+([\w.]+)\]+", line):
            section = header[1]
        elif assigned := re.match(r"(\w+) *=", line):
            yield section, assigned[1]


def test_keys_of_recipes_that_the_pages_name_exist() -> None:
    of_mappings = set(re.findall(r"^\[(\w+)\]", texts(ROOT / OPTIONS), flags=re.MULTILINE))
    wrong = []
    for page in PRESENT:
        text = read(page)
        found = [pair for span in spans(text) for pair in said_keys(span) if pair[0].split(".")[0] in recipe_sections()]
        found += [pair for block in blocks(text, "") for pair in re.findall(r"--set ([a-z_.]+)\.(\w+)=", block)]
        found += [pair for block in blocks(text, "toml") for pair in keys_in_toml(block) if pair[0]]
        wrong += [
            f"{identifier(page)}: [{section}] {key}"
            for section, key in found
            if section not in of_mappings and wrong_key(section, key)
        ]
    assert not wrong, "\n".join(wrong)


def test_keys_of_recipes_that_the_code_names_exist() -> None:
    wrong = [
        f"{identifier(path)}: [{section}] {key}"
        for path in CODE
        for section, key in said_keys(texts(path))
        if section in keys() and wrong_key(section, key)
    ]
    assert not wrong, "\n".join(wrong)


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PRESENT, ids=identifier)
def test_files_that_are_named_are_there(page: Path) -> None:
    for name in NAMED.findall(read(page)):
        if MADE.search(name):
            continue
        assert any((folder / name).exists() for folder in (*FOLDERS, page.parent)), f"{name} in {identifier(page)}"
    for name in spans(read(page)):
        if re.fullmatch(rf"[\w-]+\.{SUFFIXES}", name) and not MADE.search(name):
            assert name in file_names() or written(name), f"{name} in {identifier(page)}"


@cache
def file_names() -> set[str]:
    """Of every file in the repository."""
    tops = ("src", "docs", "recipes", "benchmarks", "tests", "examples")
    return {path.name for top in tops for path in (ROOT / top).rglob("*.*")} | {path.name for path in ROOT.glob("*.*")}


@cache
def written(name: str) -> bool:
    """Whether a string of the code holds the name: a file that commands write."""
    return any(re.search(rf"\b{re.escape(name)}\b", texts(path)) for path in CODE)


def test_files_that_code_and_recipes_name_are_there() -> None:
    mentioned = re.compile(rf"(?<![\w/.-])((?:docs|tests|benchmarks|recipes|examples)/[\w./-]+\.{SUFFIXES})")
    settings = [ROOT / "pyproject.toml", ROOT / "CITATION.cff", ROOT / "Makefile"]
    said = {path: texts(path) if path.suffix == ".py" else read(path) for path in (*CODE, *RECIPES, *settings)}
    wrong = [
        f"{identifier(path)}: {name}"
        for path, text in said.items()
        for name in mentioned.findall(text)
        if not (ROOT / name).exists()
    ]
    assert not wrong, "\n".join(wrong)


# --- names of the code --------------------------------------------------------------------------------------------


@cache
def code_words() -> frozenset[str]:
    """Every name that the code defines or uses: identifiers, and words of its strings (columns, keys, modes)."""
    scripts = [*CODE, *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tests").rglob("*.py")]
    return frozenset(word for path in scripts if path != Path(__file__) for word in re.findall(r"\w+", read(path)))


@cache
def members() -> dict[str, set[str]]:
    """Class -> attributes of every class of that name in src, inherited ones not included."""
    known: dict[str, set[str]] = {}
    for path in CODE:
        for node in ast.walk(ast.parse(read(path))):
            if isinstance(node, ast.ClassDef):
                inside = known.setdefault(node.name, set())
                for part in ast.walk(node):
                    if isinstance(part, ast.FunctionDef | ast.ClassDef):
                        inside.add(part.name)
                    elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                        inside.add(part.target.id)
                    elif isinstance(part, ast.Assign):
                        inside.update(one.id for one in part.targets if isinstance(one, ast.Name))
                    elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
                        inside.add(part.attr)
                for base in node.bases:
                    inside.add(f"<{ast.unparse(base).split('[')[0].split('.')[-1]}")
    return known


def has_member(cls: str, name: str) -> bool:
    inside = members()[cls]
    return name in inside or any(
        has_member(base[1:], name)
        for base in inside
        if base.startswith("<") and base[1:] in members() and base[1:] != cls
    )


def importable(name: str) -> bool:
    """Whether ``sidera.x.y`` is a module, or something in one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


PACKAGE_NAME = re.compile(r"(?<![\w/.-])(sidera(?:\.[A-Za-z_]\w*)+)(?![\w/])")


def package_names(text: str) -> set[str]:
    imported = re.findall(r"^\s*from (sidera[\w.]*) import ([\w, ]+)$", text, flags=re.MULTILINE)
    names = {f"{module}.{name.split(' as ')[0].strip()}" for module, found in imported for name in found.split(",")}
    return names | set(PACKAGE_NAME.findall(text))


@pytest.mark.parametrize("page", PRESENT, ids=identifier)
def test_names_of_the_package_exist(page: Path) -> None:
    made = re.compile(r"sidera\.(org|dev|toml|json)$")
    for name in package_names(read(page)):
        assert made.search(name) or importable(name), f"{name} in {identifier(page)}"


def test_names_of_the_package_that_the_code_speaks_of_exist() -> None:
    wrong = [
        f"{identifier(path)}: {name}"
        for path in CODE
        for name in sorted(package_names(texts(path)))
        if not importable(name)
    ]
    assert not wrong, "\n".join(wrong)


EXAMPLES = {"x_BLD", "is_cart", "is_view"}  # a suffix of shapes; columns of somebody's log


@pytest.mark.parametrize("page", PRESENT, ids=identifier)
def test_names_in_code_spans_are_in_the_code(page: Path) -> None:
    """`ClassName`, `function_name(...)`, `Class.member`, `module.name`: renamed code is renamed in the pages too."""
    wrong = []
    for span in spans(read(page)):
        name = re.sub(r"\(.*\)$", "", span)
        if re.fullmatch(r"[A-Z][a-z0-9]+[A-Z]\w*|[a-z]+_\w+", name) and name not in EXAMPLES:
            wrong += [span] * (name not in code_words())
        elif dotted := re.fullmatch(r"([A-Z]\w+)\.([a-z]\w*)", name):
            wrong += [span] * (dotted[1] not in members() or not has_member(dotted[1], dotted[2]))
    assert not wrong, f"{identifier(page)}: {', '.join(sorted(set(wrong)))}"


def test_the_floors_of_the_architecture_are_those_that_are_held() -> None:
    text = re.sub(r"\s+", " ", read(DOCS / "understand" / "architecture.md"))
    (said,) = re.findall(r"Floors, lowest first .*?holds them\): (.*?)\. ", text)
    contracts = tomllib.loads(read(ROOT / "pyproject.toml"))["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    floors = [set(floor.split()) for floor in re.findall(r"`([^`]+)`", said)]
    assert floors == [set(layer.split(" | ")) for layer in reversed(layers)]


def test_every_room_is_in_the_pages_that_list_them() -> None:
    package = ROOT / "src" / "sidera"
    rooms = {path.name for path in package.iterdir() if (path / "__init__.py").exists()}
    architecture, life = (read(DOCS / "understand" / name) for name in ("architecture.md", "life_of_a_request.md"))
    listed = set(re.findall(r"^  (\w+)/ ", architecture, flags=re.MULTILINE)) | {"recipes"}
    assert rooms | {"recipes"} == listed
    assert set(re.findall(r"^\| `(\w+)/` \|", life, flags=re.MULTILINE)) == rooms - {"recipes"}


def test_the_checks_find_what_is_wrong() -> None:
    assert wrong_words("run", ["recipe.toml", "--nowhere"]) == ["sidera run --nowhere"]
    assert wrong_key("fit", "no_such_key")
    assert not wrong_key("fit", "lr")
    assert not wrong_key("align.arms.safe", "method")
    assert list(said_keys("[fit] lr = 1 and --set catalog.quantizer=none")) == [("fit", "lr"), ("catalog", "quantizer")]
    assert importable("sidera.fit.loop.fit")
    assert not importable("sidera.fit.loop.no_such_function")
    names = package_names("from sidera.core import Batch, Request\n")
    assert names == {"sidera.core.Batch", "sidera.core.Request", "sidera.core"}
    assert has_member("Recommender", "recommend")
    assert not has_member("Recommender", "no_such_method")
    assert list(keys_in_toml("[fit]\nlr = 1\n")) == [("fit", "lr")]
