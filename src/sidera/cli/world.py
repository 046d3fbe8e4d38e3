"""The verbs of the simulated app: ``simulate``, ``ab`` and ``demo``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sidera import console
from sidera.cli.parsing import Arguments, Verbs, add_verb
from sidera.core import InputError


def simulate_verb(arguments: Arguments) -> dict[str, Any]:
    """Let users live in a simulated world and write its log."""
    from sidera.sim.simulate import simulate
    from sidera.sim.source import world_source

    source = world_source(arguments.config, arguments.set)
    seed = arguments.seed if arguments.seed is not None else source.seed or 0
    counts = simulate(source.config, arguments.users, arguments.days, arguments.out, seed)
    console.say(
        f"{arguments.out}: {counts['num_events']:,} exposures of {counts['num_users']:,} users on"
        f" {counts['num_items']:,} items, {counts['num_searches']:,} searches\n"
        f"next:   sidera run world/sasrec --data {arguments.out} --out runs/sasrec"
    )
    return {"out": arguments.out, "seed": seed, **counts}


def ab_verb(arguments: Arguments) -> dict[str, Any]:
    """Online test of arms in a simulated world."""
    from sidera.lab.online import online_test, read_arms, to_text
    from sidera.pages.online import write_online_page
    from sidera.sim.source import world_source
    from sidera.sim.world import World

    source = world_source(arguments.config, arguments.set)
    if source.seed is not None and arguments.seed not in (None, source.seed):
        raise InputError(f"--seed {arguments.seed}, but {arguments.config!r} is a log of seed {source.seed}")
    seed = source.seed if source.seed is not None else arguments.seed or 0
    log_days = arguments.log_days or source.days or 10
    world = World.build(source.config, seed)
    arms = read_arms(arguments.arms, world, arguments.device, arguments.reranked)
    if len(arms) < 2 and arguments.no_brackets:
        raise InputError(f"nothing to compare {arguments.arms[0]!r} with", fix="name another arm")
    page = Path(arguments.out)
    if page.suffix != ".html":
        raise InputError(f"--out {arguments.out!r} is no page", allowed="a path that ends in .html")
    result = online_test(
        arms, world, users=arguments.users, days=arguments.days, log_days=log_days, timeout=arguments.timeout,
        brackets=not arguments.no_brackets, say=console.say,
    )  # fmt: skip
    result.save(page.with_suffix(".json"))
    write_online_page(result, page, title=f"Online test: {', '.join(arms)}")
    console.result(f"\n{to_text(result)}")
    console.say(f"\nreport: {page}\nnumbers: {page.with_suffix('.json')}")
    return {"report": page, "numbers": page.with_suffix(".json"), "arms": list(arms)}


def demo_verb(arguments: Arguments) -> dict[str, Any]:
    """The whole way on a small simulated app, or on a data folder."""
    from sidera.demo import demo

    pages = demo(arguments.data, Path(arguments.out))
    return {"out": arguments.out, "pages": pages}


def _add_world_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", default="easy", help="world: easy, hard, a TOML file with [world], or a folder of `sidera simulate`"
    )
    parser.add_argument("--set", action="append", default=[], metavar="world.KEY=VALUE", help="override a world's key")
    parser.add_argument("--seed", type=int, help="seed of items, users and luck (else the log's, or 0)")


def add_simulate(verbs: Verbs) -> None:
    parser = add_verb(verbs, "simulate", simulate_verb, "write the log of a simulated short-video app as a data folder")
    _add_world_flags(parser)
    parser.add_argument("--users", type=int, required=True, help="how many users live in it")
    parser.add_argument("--days", type=int, required=True, help="how many days are logged")
    parser.add_argument("--out", required=True, help="data folder to write")


def add_ab(verbs: Verbs) -> None:
    parser = add_verb(verbs, "ab", ab_verb, "online test in a simulated world: paired differences and a report page")
    policies = "random, popularity, logger, oracle[:utility|watch_time|click[:strength]]"
    text = f"run folders or policies ({policies}); the first is what the others are compared with"
    parser.add_argument("arms", nargs="+", metavar="ARM", help=text)
    text = "one more arm: a run folder whose reward chooses among its candidates"
    parser.add_argument("--reranked", action="append", default=[], metavar="RUN", help=text)
    _add_world_flags(parser)
    parser.add_argument("--users", type=int, default=1000, help="users of each arm, the same for all")
    parser.add_argument("--days", type=int, default=3, help="days of the test")
    parser.add_argument("--log-days", type=int, help="days that the users live through before (else the log's, or 10)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds that one answer may take")
    parser.add_argument("--no-brackets", action="store_true", help="only the arms named, no bracketing policies beside")
    parser.add_argument("--out", required=True, help="page to write (.html); its numbers go beside it as .json")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")


def add_demo(verbs: Verbs) -> None:
    parser = add_verb(verbs, "demo", demo_verb, "the whole way: log, catalog, models, evaluation, online test, pages")
    parser.add_argument("--data", help="data folder (else a small simulated app is logged)")
    parser.add_argument("--out", default="runs/demo", help="folder to write")
