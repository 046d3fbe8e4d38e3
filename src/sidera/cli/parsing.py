"""What the verbs share: the parser that says what is wrong in one line, and the flags of a recipe."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sidera.train.recipe import Recipe

MAX_THREADS = 1024
Arguments = argparse.Namespace
Verbs = argparse._SubParsersAction  # argparse has no public name for it


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other message does."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; fix: see `{self.prog} --help`\n")


def add_verb(verbs: Verbs, name: str, function: object, text: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.set_defaults(verb_function=function)
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="only what was asked for, and what is wrong")
    loudness.add_argument("-v", "--verbose", action="store_true", help="more detail, and a line for every logged step")
    parser.add_argument("--json", action="store_true", help="last line of output: one JSON object (docs/use/cli.md)")
    return parser


def add_threads_flag(parser: argparse.ArgumentParser, default: int = 0) -> None:
    """``--threads``: the verb runs on so many; 0 leaves it to the cores and, where work is long, to what is timed."""
    text = "all cores" if default else "found by timing, within cores and CPU quota"
    parser.add_argument("--threads", type=_threads, default=default, metavar="N", help=f"on the CPU; 0: {text}")


def _threads(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of threads; allowed: 0 to {MAX_THREADS}")
    return int(text)


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="name (see `sidera recipes`) or TOML file, e.g. generator")
    parser.add_argument("--data", required=True, help="data folder: an imported one or a known public set")
    parser.add_argument("--out", required=True, help="run folder to write")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a recipe key")
    parser.add_argument("--max-minutes", type=float, help="budget of the whole training, minutes (else the recipe's)")
    parser.add_argument("--piece-minutes", type=float, help="stop this call after so many minutes, to be continued")
    parser.add_argument("--seed", type=int, help="seed of weights, order and dropout (else the recipe's)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    add_threads_flag(parser)


def read_recipe(arguments: Arguments) -> Recipe:
    from sidera.engine.snapshot import check_device
    from sidera.train.recipe import Recipe

    check_device(arguments.device)
    overrides = list(arguments.set)
    for flag, key in (("max_minutes", "fit.max_minutes"), ("piece_minutes", "fit.piece_minutes"), ("seed", "fit.seed")):
        value = getattr(arguments, flag, None)
        if value is not None:
            overrides.append(f"{key}={value}")
    return Recipe.read(arguments.recipe, overrides)
