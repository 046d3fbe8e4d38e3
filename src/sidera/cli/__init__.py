"""The ``sidera`` command: one verb a function, a file for each group of verbs.

Heavy libraries are imported inside the verbs, so that ``sidera --help`` answers at once. What is wrong with the input
is one line on standard error and exit code 2; Ctrl-C is exit code 130 and leaves whole artifacts or none.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from sidera.cli import (
    answering,
    catalogs,
    cold,
    completion,
    exporting,
    keys,
    load,
    logs,
    loop,
    pretrained,
    reference,
    reporting,
    serving,
    stores,
    training,
    world,
)  # fmt: skip
from sidera.cli.parsing import Parser
from sidera.cli.running import run_verb
from sidera.cli.versions import ShowVersion

TWO_WORDS = {("catalog", name) for name in ("compare", "add", "remove", "diff", "audit")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    show_all_letters()
    return run_verb(build_parser().parse_args(joined(sys.argv[1:] if argv is None else argv)))


def joined(words: Sequence[str]) -> list[str]:
    """The words of a command, with a verb of two words ("catalog add") as one."""
    words = list(words)
    return [" ".join(words[:2]), *words[2:]] if tuple(words[:2]) in TWO_WORDS else words


def show_all_letters() -> None:
    """Letters that the terminal's encoding lacks are printed escaped: a title must not end an answer."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def build_parser() -> argparse.ArgumentParser:
    """Every verb with its flags, units and defaults."""
    parser = Parser(
        prog="sidera", description="Generative recommendation: from behaviour logs to a served list of items."
    )
    parser.add_argument("--version", action=ShowVersion, help="versions of sidera, Python and torch; -v: all of them")
    parser.add_argument("-v", action="store_true", dest="all_versions", help="with --version: every dependency too")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    logs.add_import(verbs)
    logs.add_fetch(verbs)
    logs.add_convert(verbs)
    reference.add_recipes(verbs)
    keys.add_keys(verbs)
    completion.add_completion(verbs)
    training.add_run(verbs)
    training.add_stages(verbs)
    catalogs.add_catalogs(verbs)
    cold.add_cold(verbs)
    reporting.add_report(verbs)
    training.add_scale(verbs)
    training.add_align(verbs)
    answering.add_recommend(verbs)
    answering.add_questions(verbs)
    serving.add_serve(verbs)
    exporting.add_export(verbs)
    pretrained.add_pretrained(verbs)
    serving.add_api_keys(verbs)
    loop.add_export(verbs)
    loop.add_refresh(verbs)
    loop.add_versions(verbs)
    stores.add_store(verbs)
    stores.add_erase(verbs)
    load.add_load(verbs)
    world.add_simulate(verbs)
    world.add_ab(verbs)
    world.add_demo(verbs)
    return parser
