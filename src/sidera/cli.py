"""The ``sidera`` command: one verb a function.

Heavy libraries are imported inside the verbs, so that ``sidera --help`` answers at once. What is wrong with the input
is one line on standard error and exit code 2; Ctrl-C is exit code 130 and leaves whole artifacts or none.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sidera import __version__
from sidera.core import InputError
from sidera.ops.allocator import keep_memory

if TYPE_CHECKING:
    from sidera.engine.histories import Behaviour
    from sidera.engine.recommender import Recommender
    from sidera.train.recipe import Recipe

Arguments = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    keep_memory()
    try:
        arguments.verb_function(arguments)
    except InputError as error:
        print(f"sidera {arguments.verb}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, no permission: the artifact that was there is still there
        place = f": {error.filename}" if error.filename else ""
        fix = "free space or choose another folder, and give the same command again; what was saved before is kept"
        print(f"sidera {arguments.verb}: {error.strerror or error}{place}; fix: {fix}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"sidera {arguments.verb}: stopped; finished stages are kept, the same command goes on", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other message does."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; fix: see `{self.prog} --help`\n")


def build_parser() -> argparse.ArgumentParser:
    """Every verb with its flags, units and defaults."""
    parser = _Parser(
        prog="sidera", description="Generative recommendation: from behaviour logs to a served list of items."
    )
    parser.add_argument("--version", action="version", version=f"sidera {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_import(verbs)
    _add_run(verbs)
    _add_stages(verbs)
    _add_scale(verbs)
    _add_align(verbs)
    _add_recommend(verbs)
    _add_serve(verbs)
    _add_simulate(verbs)
    _add_ab(verbs)
    _add_demo(verbs)
    return parser


# -- the verbs ---------------------------------------------------------------------------------------------------


def import_verb(arguments: Arguments) -> None:
    """Read a log and write it as a canonical data folder."""
    from dataclasses import replace

    from sidera.data.importing import ImportMapping, import_log, read_mapping

    mapping = read_mapping(arguments.mapping) if arguments.mapping else ImportMapping()
    given = {ours: getattr(arguments, ours) for ours in ("user", "item", "time") if getattr(arguments, ours)}
    mapping = replace(mapping, columns={**mapping.columns, **given})
    if arguments.time_unit:
        mapping = replace(mapping, time_unit=arguments.time_unit)
    if arguments.strict:
        mapping = replace(mapping, strict_items=True)
    dataset = import_log(arguments.events, arguments.out, arguments.items, arguments.users, mapping)
    print(
        f"{arguments.out}: {dataset.num_events:,} events of {dataset.num_users:,} users on {dataset.num_items:,} items"
    )


def run_verb(arguments: Arguments) -> None:
    """Catalog, training, evaluation and report; finished stages are reused."""
    from sidera.eval.report import write_report
    from sidera.fit import distributed
    from sidera.train.stages import run

    with distributed.group(arguments.device) as device:
        result = run(_recipe(arguments), arguments.data, arguments.out, device=device)
    if result is not None:
        page = write_report(Path(arguments.out), Path(arguments.out) / "report.html")
        print(f"report: {page}\nnext:   sidera serve {arguments.out} --port 8000")


def catalog_verb(arguments: Arguments) -> None:
    """Only the Catalog."""
    from sidera.train.stages import catalog_stage, prepare

    recipe = _recipe(arguments)
    prepared = prepare(recipe, arguments.data)
    recipe.save(Path(arguments.out))
    catalog = catalog_stage(recipe, prepared, Path(arguments.out))
    print(json.dumps(catalog.report, indent=2, default=str))


def train_verb(arguments: Arguments) -> None:
    """Catalog and model."""
    from sidera.fit import distributed
    from sidera.train.stages import train

    with distributed.group(arguments.device) as device:
        train(_recipe(arguments), arguments.data, arguments.out, device=device)


def evaluate_verb(arguments: Arguments) -> None:
    """Measure a trained run again, on test or validation rows."""
    from sidera.engine.recommender import Recommender
    from sidera.train.recipe import Recipe
    from sidera.train.stages import evaluate_stage, prepare

    recipe = Recipe.of_run(arguments.run, arguments.set)
    prepared = prepare(recipe, arguments.data)
    recommender = Recommender.load(arguments.run, device=arguments.device)
    evaluate_stage(recipe, prepared, recommender, Path(arguments.run), arguments.rows)


def compare_verb(arguments: Arguments) -> None:
    """Paired differences between two evaluated runs."""
    from sidera.eval.compare import compare
    from sidera.eval.evaluation import load_evaluation

    first, second = (load_evaluation(Path(run) / "evaluation") for run in (arguments.a, arguments.b))
    print(compare(first, second).to_text())


def scale_verb(arguments: Arguments) -> None:
    """One recipe in several sizes, trained once over the same rows, and the law that their losses follow."""
    from sidera.train.scale import SIZES, ScaleOptions, scale

    options = ScaleOptions(
        sizes=tuple(arguments.sizes or SIZES),
        seeds=arguments.seeds,
        repeated=arguments.repeated,
        rows=arguments.rows,
        lr_factors=tuple(arguments.lr_factors),
        cpu_hours=arguments.cpu_hours,
    )
    scale(_recipe(arguments), arguments.data, arguments.out, options, device=arguments.device)


def align_verb(arguments: Arguments) -> None:
    """Pretrained policy, reward, controls and arms, the online test where the log is simulated, and the page."""
    from sidera.align.recipe import AlignRecipe
    from sidera.align.run import ALIGN, align_recipe
    from sidera.engine.recommender import check_device
    from sidera.eval.alignment_online import is_simulated, serve_policies, usual_arms
    from sidera.eval.alignment_page import write_alignment_page
    from sidera.eval.online import to_text

    check_device(arguments.device)
    if arguments.users < 2 or arguments.days < 1:
        raise InputError(f"--users {arguments.users} --days {arguments.days}", allowed="2 users or more, 1 day or more")
    recipe = AlignRecipe.read(arguments.recipe, arguments.set)
    found = align_recipe(
        recipe, arguments.data, arguments.out, start=arguments.start, exposures=arguments.exposures,
        device=arguments.device,
    )  # fmt: skip
    record, out, online = found.record, Path(arguments.out), None
    if is_simulated(arguments.data) and not arguments.no_online:
        reranked = [name for name in ("pretrained", record["recommended"]) if name in found.runs]
        online = serve_policies(
            usual_arms(found.runs, reranked), found.audience, arguments.data, record["reference"],
            users=arguments.users, days=arguments.days, device=arguments.device, say=print,
        )  # fmt: skip
        online.save(out / ALIGN / "online.json")
        print(f"\n{to_text(online)}")
    page = write_alignment_page(record, online, out / ALIGN / "alignment.html")
    print(f"\nreport: {page}\nnext:   sidera serve {found.runs[record['recommended']]} --port 8000")


def recommend_verb(arguments: Arguments) -> None:
    """Answer one history on the command line."""
    from sidera.engine.recommender import Recommender

    recommender = Recommender.load(arguments.run)
    history = [key.strip() for key in arguments.history.split(",") if key.strip()]
    (answer,) = recommender.recommend(
        [history], arguments.k, filter_seen=arguments.filter_seen, unknown=arguments.unknown
    )
    if answer.unknown:
        print(f"not in the catalogue, left out: {', '.join(answer.unknown)}", file=sys.stderr)
    if answer.cold_start:
        print("nothing of the history is known: the most popular items follow", file=sys.stderr)
    if len(answer.item_keys) < arguments.k:
        print(f"only {len(answer.item_keys)} items can be answered (k = {arguments.k})", file=sys.stderr)
    for key, score, title in zip(answer.item_keys, answer.scores, answer.titles, strict=True):
        print(f"{key}\t{score:.4f}\t{title or ''}")


def serve_verb(arguments: Arguments) -> None:
    """Answer over HTTP until interrupted."""
    from sidera.engine.exposures import ExposureWriter
    from sidera.engine.serving import Serving
    from sidera.serve.app import check_port, serve
    from sidera.store.exposures import ExposureLog

    if arguments.fill and not arguments.store:
        raise InputError(f"--fill {arguments.fill} without a store", fix="name its folder with --store")
    if arguments.exposures and not arguments.store:
        raise InputError(
            f"--exposures {arguments.exposures} without a store: logged answers are of requests that name a user",
            fix="name the store's folder with --store",
        )
    check_port(arguments.host, arguments.port)
    plan = Serving(Path(arguments.run), arguments.rerank, arguments.rerank_from, cold_share=arguments.cold_share)
    recommender = plan.open(arguments.device)
    with contextlib.ExitStack() as opened:
        if arguments.store:
            opened.enter_context(_open_store(recommender, arguments))
        if arguments.exposures:
            catalog = recommender.catalog
            log = ExposureLog.open(arguments.exposures, codebook_id=catalog.codebook_id, num_levels=catalog.num_levels)
            recommender.exposures = opened.enter_context(ExposureWriter(log))
        print(
            f"serving {arguments.run} on http://{arguments.host}:{arguments.port} (POST /v1/recommend, page /docs);"
            " Ctrl-C stops",
            flush=True,
        )
        with contextlib.suppress(KeyboardInterrupt):  # the way to stop it, no failure
            serve(recommender, arguments.host, arguments.port)
        if recommender.behaviour is not None:
            recommender.behaviour.store.snapshot()  # the next start reads it instead of all events


def _open_store(recommender: Recommender, arguments: Arguments) -> Behaviour:
    """The behaviour store of ``--store``, with the events of ``--fill`` where it is new."""
    from sidera.data.config import load_dataset
    from sidera.engine.histories import open_behaviour
    from sidera.train.recipe import Recipe

    behaviour = open_behaviour(arguments.store, recommender.catalog, recommender.lifelong)
    recommender.behaviour = behaviour
    try:
        if arguments.fill and not behaviour.store.num_users:
            behaviour.fill(load_dataset(arguments.fill, Recipe.of_run(arguments.run).data))
    except BaseException:
        behaviour.close()
        raise
    print(f"store: {arguments.store}, {behaviour.store.num_users:,} users", flush=True)
    return behaviour


def simulate_verb(arguments: Arguments) -> None:
    """Let users live in a simulated world and write its log."""
    from sidera.sim.simulate import simulate
    from sidera.sim.source import world_source

    source = world_source(arguments.config, arguments.set)
    seed = arguments.seed if arguments.seed is not None else source.seed or 0
    counts = simulate(source.config, arguments.users, arguments.days, arguments.out, seed)
    print(
        f"{arguments.out}: {counts['num_events']:,} exposures of {counts['num_users']:,} users on"
        f" {counts['num_items']:,} items, {counts['num_searches']:,} searches\n"
        f"next:   sidera run recipes/world/sasrec.toml --data {arguments.out} --out runs/sasrec"
    )


def ab_verb(arguments: Arguments) -> None:
    """Online test of two or more arms in a simulated world."""
    from sidera.eval.online import online_test, read_arms, to_text
    from sidera.eval.online_page import write_online_page
    from sidera.sim.source import world_source
    from sidera.sim.world import World

    source = world_source(arguments.config, arguments.set)
    if source.seed is not None and arguments.seed not in (None, source.seed):
        raise InputError(f"--seed {arguments.seed}, but {arguments.config!r} is a log of seed {source.seed}")
    seed = source.seed if source.seed is not None else arguments.seed or 0
    log_days = arguments.log_days or source.days or 10
    world = World.build(source.config, seed)
    arms = read_arms([arguments.a, arguments.b, *arguments.more], world, arguments.device)
    page = Path(arguments.out)
    if page.suffix != ".html":
        raise InputError(f"--out {arguments.out!r} is no page", allowed="a path that ends in .html")
    result = online_test(
        arms, world, users=arguments.users, days=arguments.days, log_days=log_days, timeout=arguments.timeout,
        brackets=not arguments.no_brackets, say=lambda line: print(line, flush=True),
    )  # fmt: skip
    result.save(page.with_suffix(".json"))
    write_online_page(result, page, title=f"Online test: {', '.join(arms)}")
    print(f"\n{to_text(result)}\n\nreport: {page}\nnumbers: {page.with_suffix('.json')}")


def demo_verb(arguments: Arguments) -> None:
    """The whole way on a small simulated app, or on a data folder."""
    from sidera.demo import demo

    demo(arguments.data, Path(arguments.out))


# -- their flags ---------------------------------------------------------------------------------------------------


def _recipe(arguments: Arguments) -> Recipe:
    from sidera.engine.recommender import check_device
    from sidera.train.recipe import Recipe

    check_device(arguments.device)
    overrides = list(arguments.set)
    for flag, key in (("max_minutes", "fit.max_minutes"), ("piece_minutes", "fit.piece_minutes"), ("seed", "fit.seed")):
        value = getattr(arguments, flag, None)
        if value is not None:
            overrides.append(f"{key}={value}")
    return Recipe.read(arguments.recipe, overrides)


def _verb(verbs: argparse._SubParsersAction, name: str, function: object, text: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.set_defaults(verb_function=function)
    return parser


def _add_import(verbs: argparse._SubParsersAction) -> None:
    parser = _verb(verbs, "import", import_verb, "read a log (Parquet, CSV, TSV, JSON Lines) into a data folder")
    parser.add_argument("events", help="file with one event a row")
    parser.add_argument("--items", help="file with one item a row: key, title, categories, ...")
    parser.add_argument("--users", help="file with one user a row")
    parser.add_argument("--out", required=True, help="data folder to write")
    parser.add_argument("--user", help="column of the log with the user id (else: user, user_id)")
    parser.add_argument("--item", help="column of the log with the item id (else: item, item_id)")
    parser.add_argument("--time", help="column of the log with the time (else: time, timestamp)")
    parser.add_argument("--time-unit", choices=("s", "ms"), help="unit of the time column (else the mapping's, or s)")
    parser.add_argument("--mapping", help="TOML file that maps columns: docs/data.md")
    parser.add_argument("--strict", action="store_true", help="refuse events whose item is not in --items")


def _add_run(verbs: argparse._SubParsersAction) -> None:
    _add_recipe_flags(_verb(verbs, "run", run_verb, "catalog, train, evaluate, report; finished stages are reused"))


def _add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="TOML file, e.g. recipes/beauty/generator.toml")
    parser.add_argument("--data", required=True, help="data folder: an imported one or a known public set")
    parser.add_argument("--out", required=True, help="run folder to write")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a recipe key")
    parser.add_argument("--max-minutes", type=float, help="budget of the whole training, minutes (else the recipe's)")
    parser.add_argument("--piece-minutes", type=float, help="stop this call after so many minutes, to be continued")
    parser.add_argument("--seed", type=int, help="seed of weights, order and dropout (else the recipe's)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")


def _add_stages(verbs: argparse._SubParsersAction) -> None:
    _add_recipe_flags(_verb(verbs, "catalog", catalog_verb, "semantic IDs for the items, and their quality report"))
    _add_recipe_flags(_verb(verbs, "train", train_verb, "catalog and model, without the evaluation"))
    parser = _verb(verbs, "evaluate", evaluate_verb, "measure a trained run: recall, NDCG, slices, latency")
    parser.add_argument("run", help="run folder")
    parser.add_argument("--data", required=True, help="the data folder it was trained on")
    parser.add_argument("--rows", choices=("test", "valid"), default="test", help="rows of the split to measure on")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override, e.g. eval.beam=100"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser = _verb(verbs, "compare", compare_verb, "paired differences between two evaluated runs")
    parser.add_argument("a", help="run folder")
    parser.add_argument("b", help="run folder")


def _add_scale(verbs: argparse._SubParsersAction) -> None:
    parser = _verb(verbs, "scale", scale_verb, "train one recipe in several sizes and fit the scaling law")
    parser.add_argument("recipe", help="TOML file, e.g. recipes/world/scaling.toml")
    parser.add_argument("--data", required=True, help="data folder with times and requests, e.g. a simulated log")
    parser.add_argument("--out", required=True, help="folder to write; finished sizes in it are reused")
    parser.add_argument("--sizes", nargs="+", metavar="WIDTHxLAYERS", help="5 or more (else 16x2 to 128x6, seven)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of every size")
    parser.add_argument("--repeated", type=int, help="only so many of the smallest sizes get several seeds (else all)")
    parser.add_argument("--rows", type=int, help="newest training rows that are used (else all)")
    factors = [0.5, 1.0, 2.0, 4.0]
    parser.add_argument("--lr-factors", type=float, nargs="+", default=factors, help="tried on the rate's rule")
    parser.add_argument("--cpu-hours", type=float, default=6.0, help="a longer plan is refused; hours of the device")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a recipe key")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")


def _add_align(verbs: argparse._SubParsersAction) -> None:
    parser = _verb(verbs, "align", align_verb, "align a pretrained generator with rewards, beside its controls")
    parser.add_argument("recipe", help="TOML file with [align], e.g. recipes/world/align.toml")
    parser.add_argument("--data", required=True, help="data folder with feedback, e.g. a simulated log")
    parser.add_argument("--out", required=True, help="run folder to write; a pretrained model in it is reused")
    parser.add_argument("--start", metavar="RUN", help="run folder of the policy to start from; else one is pretrained")
    parser.add_argument("--exposures", metavar="LOG", help="exposure log that the reward learns from too")
    parser.add_argument("--users", type=int, default=1000, help="users served in the online test, at most")
    parser.add_argument("--days", type=int, default=3, help="days of the online test")
    parser.add_argument("--no-online", action="store_true", help="no online test, though the log is simulated")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a recipe key")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")


def _add_recommend(verbs: argparse._SubParsersAction) -> None:
    parser = _verb(verbs, "recommend", recommend_verb, "answer one history: item id, score, title")
    parser.add_argument("run", help="run folder")
    parser.add_argument("--history", required=True, help="item ids, oldest first, separated by commas")
    parser.add_argument("-k", type=int, default=10, help="items wanted")
    parser.add_argument("--filter-seen", action="store_true", help="leave out items of the history")
    parser.add_argument(
        "--unknown", choices=("report", "refuse"), default="refuse", help="unknown ids: leave out and name, or refuse"
    )


def _add_serve(verbs: argparse._SubParsersAction) -> None:
    text = "answer over HTTP: POST /v1/recommend, POST /v1/events, GET /healthz, page /docs"
    parser = _verb(verbs, "serve", serve_verb, text)
    parser.add_argument("run", help="run folder")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="TCP port")
    parser.add_argument("--store", help="folder of the behaviour store: users' events, sent to POST /v1/events")
    parser.add_argument(
        "--exposures", metavar="LOG", help="folder of the exposure log: answers to users, what followed"
    )
    parser.add_argument("--fill", metavar="DATA", help="data folder whose events a new store begins with")
    parser.add_argument(
        "--rerank", type=int, default=0, metavar="N", help="candidates that the run's reward chooses among; 0: none"
    )
    parser.add_argument(
        "--rerank-from", choices=("sample", "beam"), default="sample", help="candidates are drawn, or the search's best"
    )
    parser.add_argument("--cold-share", type=float, default=0.0, help="share of slots for items that no log showed")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")


def _add_simulate(verbs: argparse._SubParsersAction) -> None:
    parser = _verb(verbs, "simulate", simulate_verb, "write the log of a simulated short-video app as a data folder")
    _add_world_flags(parser)
    parser.add_argument("--users", type=int, required=True, help="how many users live in it")
    parser.add_argument("--days", type=int, required=True, help="how many days are logged")
    parser.add_argument("--out", required=True, help="data folder to write")


def _add_ab(verbs: argparse._SubParsersAction) -> None:
    parser = _verb(verbs, "ab", ab_verb, "online test in a simulated world: paired differences and a report page")
    arm = "run folder, or random, popularity, logger, oracle[:utility|watch_time|click[:strength]]"
    parser.add_argument("a", help=f"the reference arm: a {arm}")
    parser.add_argument("b", help="an arm that is compared with it")
    parser.add_argument("more", nargs="*", help="further arms")
    _add_world_flags(parser)
    parser.add_argument("--users", type=int, default=1000, help="users of each arm, the same for all")
    parser.add_argument("--days", type=int, default=3, help="days of the test")
    parser.add_argument("--log-days", type=int, help="days that the users live through before (else the log's, or 10)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds that one answer may take")
    parser.add_argument("--no-brackets", action="store_true", help="only the arms named, no bracketing policies beside")
    parser.add_argument("--out", required=True, help="page to write (.html); its numbers go beside it as .json")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")


def _add_world_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", default="easy", help="world: easy, hard, a TOML file with [world], or a folder of `sidera simulate`"
    )
    parser.add_argument("--set", action="append", default=[], metavar="world.KEY=VALUE", help="override a world's key")
    parser.add_argument("--seed", type=int, help="seed of items, users and luck (else the log's, or 0)")


def _add_demo(verbs: argparse._SubParsersAction) -> None:
    parser = _verb(verbs, "demo", demo_verb, "the whole way: log, catalog, models, evaluation, online test, pages")
    parser.add_argument("--data", help="data folder (else a small simulated app is logged)")
    parser.add_argument("--out", default="runs/demo", help="folder to write")


if __name__ == "__main__":
    sys.exit(main())
