"""One verb with its parsed arguments: what goes wrong becomes a line on standard error and an exit code."""

from __future__ import annotations

import argparse
import os
import sys

from sidera import console
from sidera.core import InputError
from sidera.ops.allocator import keep_memory
from sidera.ops.cores import library_threads
from sidera.recipes import find_recipe


def run_verb(arguments: argparse.Namespace) -> int:
    """The exit code."""
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
