"""The ``sidera`` command: one verb a function, a file for each group of verbs.

Heavy libraries are imported inside the verbs, so that ``sidera --help`` answers at once. What is wrong with the input
is one line on standard error and exit code 2; Ctrl-C is exit code 130 and leaves whole artifacts or none.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from sidera import console
from sidera.cli import (
    answering,
    completion,
    exporting,
    keys,
    load,
    logs,
    loop,
    reference,
    reporting,
    serving,
    stores,
    training,
    world,
)  # fmt: skip
from sidera.cli.parsing import Parser
from sidera.cli.versions import ShowVersion
from sidera.core import InputError
from sidera.ops.allocator import keep_memory
from sidera.ops.cores import library_threads
from sidera.recipes import find_recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    show_all_letters()
    arguments = build_parser().parse_args(argv)
    keep_memory()
    level = console.QUIET if arguments.quiet else console.VERBOSE if arguments.verbose else console.NORMAL
    console.configure(level, arguments.json)
    try:
        if getattr(arguments, "recipe", None):  # before torch is imported: a wrong name is answered at once
            arguments.recipe = find_recipe(arguments.recipe)
        with library_threads(getattr(arguments, "threads", 0)):  # before a verb loads them
            console.finish(arguments.verb, arguments.verb_function(arguments))
    except InputError as error:
        print(f"sidera {arguments.verb}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, no permission: the artifact that was there is still there
        where = f": {error.filename}" if error.filename else ""
        fix = "free space or choose another folder, and give the same command again; what was saved before is kept"
        print(f"sidera {arguments.verb}: {error.strerror or error}{where}; fix: {fix}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"sidera {arguments.verb}: stopped; finished stages are kept, the same command goes on", file=sys.stderr)
        return 130
    return 0


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
    reporting.add_report(verbs)
    training.add_scale(verbs)
    training.add_align(verbs)
    answering.add_recommend(verbs)
    answering.add_questions(verbs)
    serving.add_serve(verbs)
    exporting.add_export(verbs)
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
