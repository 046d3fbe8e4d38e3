"""Whether the committed results still speak of the code that is here: ``python benchmarks/claims.py [NAME ...]``.

Every result file names the commit that it was measured at and a digest of every file that its script can reach: the
script itself, the benchmark files and ``sidera`` modules that it imports, one behind another, and the recipes that it
names. A digest is of the code without comments, docstrings and layout, so a reworded comment changes nothing. The check
fails (exit code 1) for each claim whose code has changed since, and says which files.

A change that leaves every result as it was is *confirmed* instead of measured again:

    python benchmarks/claims.py --confirm beauty_generator --why "renamed a module; golden losses are identical"

The confirmation (digests, commit, reason) is written to ``results/confirmed.json``; the figures stay those of their own
commit. Files without a ``name`` (lists of trials) are no claims and are skipped.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
CONFIRMED = "confirmed.json"
OWN = "benchmarks/claims.py"  # writes and compares digests; no figure depends on it

ReadSource = Callable[[str], str | None]  # path below the root -> its text, None where there is no such file


def code_digests(script: str, read: ReadSource) -> dict[str, str]:
    """Path -> 12 hex digits, for the script (``benchmarks/NAME.py``) and every module and recipe that it can reach."""
    digests: dict[str, str] = {}
    waiting = [script]
    while waiting:
        path = waiting.pop()
        text = read(path) if path not in digests and path != OWN else None
        if text is None:
            continue
        digests[path], mentioned = _digest(path, text)
        waiting += mentioned
    return dict(sorted(digests.items()))


@lru_cache(maxsize=4096)
def _digest(path: str, text: str) -> tuple[str, tuple[str, ...]]:
    """The digest of one file, and the files that it may read."""
    if path.endswith(".toml"):
        code, mentioned = json.dumps(tomllib.loads(text), sort_keys=True, default=str), []
    else:
        tree = ast.parse(text)
        mentioned, code = _mentioned_files(tree), _bare(tree)
    return hashlib.sha256(code.encode()).hexdigest()[:12], tuple(mentioned)


def from_disk(path: str) -> str | None:
    file = ROOT / path
    return file.read_text(encoding="utf-8") if file.is_file() else None


def at_commit(commit: str) -> ReadSource:
    """Reads files as they were at ``commit``."""

    @cache
    def names() -> frozenset[str]:
        return frozenset(_git("ls-tree", "-r", "--name-only", commit, "src", "benchmarks", "recipes").splitlines())

    return lambda path: _git("show", f"{commit}:{path}") if path in names() else None


def provenance(script: Path) -> dict[str, Any]:
    """What a result file says of the code behind it: commit, whether files differed from it, digests."""
    commit = _git("rev-parse", "HEAD").strip()
    changed = _git("status", "--porcelain", "--", "src", "benchmarks/*.py", "recipes", "pyproject.toml").strip()
    digests = code_digests(f"{script.parent.name}/{script.name}", from_disk)
    return {"commit": commit or None, "uncommitted_changes": bool(changed), "code": digests}


def changed_since(measured: Mapping[str, str], today: Mapping[str, str]) -> list[str]:
    """Files whose code differs between two sets of digests, those that came or went among them."""
    return sorted(path for path in {*measured, *today} if measured.get(path) != today.get(path))


def check(name: str, results: Path = RESULTS, read: ReadSource = from_disk) -> tuple[str, list[str]]:
    """(what to print of the claim, files that changed since it was measured or last confirmed)."""
    record = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
    made = record.get("provenance")
    if not made:
        return f"{name}: names no commit", ["(unknown)"]
    confirmed = _confirmed(results).get(name)
    base = confirmed or made
    today = code_digests(_script(record), read)
    changed = changed_since(base["code"], today)
    place = f"measured at {made['commit'][:10]}" + (
        f", confirmed at {confirmed['commit'][:10]} ({confirmed['why']})" if confirmed else ""
    )
    if not changed:
        return f"{name}: {place}; its code is unchanged", []
    shown = ", ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
    return f"{name}: {place}; {len(changed)} of {len(today)} files changed since: {shown}", changed


def claim_names(results: Path = RESULTS) -> Iterator[str]:
    """Results that a script wrote and can write again: those with ``name``, ``value`` and a command."""
    for file in sorted(results.glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(record, dict) and {"name", "value", "pass"} <= set(record):
            yield file.stem


def confirm(name: str, why: str, results: Path = RESULTS, read: ReadSource = from_disk) -> None:
    """Note that the claim's figures hold for today's code, and why."""
    record = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
    entry = {"commit": _git("rev-parse", "HEAD").strip(), "why": why, "code": code_digests(_script(record), read)}
    everything = {**_confirmed(results), name: entry}
    text = json.dumps(everything, indent=1, sort_keys=True)
    (results / CONFIRMED).write_text(text + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="claims to check (else all)")
    parser.add_argument("--confirm", metavar="NAME", help="the figures of NAME hold for the code as it is now")
    parser.add_argument("--why", help="how that is known; needed with --confirm")
    options = parser.parse_args(argv)
    known = list(claim_names())
    wanted = [options.confirm] if options.confirm else options.names or known
    for name in wanted:
        if name not in known:
            parser.error(f"no claim {name!r}; there are {', '.join(known)}")
    if options.confirm:
        if not (options.why or "").strip():
            parser.error("--confirm needs --why: how is it known that the figures hold?")
        confirm(options.confirm, options.why.strip())
    stale = 0
    for name in wanted:
        line, changed = check(name)
        stale += bool(changed)
        print(("STALE  " if changed else "ok     ") + line)
    print(f"{len(wanted) - stale} passed, {stale} failed")
    return 1 if stale else 0


def _script(record: Mapping[str, Any]) -> str:
    """``benchmarks/NAME.py`` out of the command that the result keeps."""
    return next(word for word in record["context"]["command"].split() if word.endswith(".py"))


def _confirmed(results: Path) -> dict[str, Any]:
    file = results / CONFIRMED
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _mentioned_files(tree: ast.AST) -> list[str]:
    """Every file that the code may read: modules and packages that it imports, also in programs that it holds as text,
    and recipes that it names."""
    paths: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            paths += [path for alias in node.names for path in _module_files(alias.name)]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            paths += [path for name in names for path in _module_files(name)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.endswith(".toml"):
                paths.append(f"recipes/{node.value.removeprefix('recipes/')}")
            elif "\nimport " in node.value or "\nfrom " in node.value:
                with contextlib.suppress(SyntaxError, ValueError):
                    paths += _mentioned_files(ast.parse(node.value))
    return paths


def _module_files(module: str) -> list[str]:
    parts = module.split(".")
    if parts[0] != "sidera":
        return [f"benchmarks/{module}.py"] if len(parts) == 1 else []
    packages = [f"src/{'/'.join(parts[: n + 1])}/__init__.py" for n in range(len(parts))]  # they run as well
    return [*packages, f"src/{'/'.join(parts)}.py"]


def _bare(tree: ast.Module) -> str:
    """The tree as text, without docstrings (comments and layout are not in a tree)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return ast.unparse(tree)  # not ast.dump: its text differs between Python versions


def _git(*arguments: str) -> str:
    """What git prints; nothing where there is no git or no repository."""
    try:
        run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    except OSError:
        return ""
    return run.stdout if run.returncode == 0 else ""


if __name__ == "__main__":
    sys.exit(main())
