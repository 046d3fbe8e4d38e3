"""The verbs that train and measure: ``run``, its stages alone, ``compare``, ``scale`` and ``align``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidera import console
from sidera.cli.parsing import Arguments, Verbs, add_recipe_flags, add_threads_flag, add_verb, read_recipe
from sidera.core import InputError

if TYPE_CHECKING:
    from sidera.eval.evaluation import Evaluation
    from sidera.eval.ranker_evaluation import RankerEvaluation

Answer = dict[str, Any]


def run_verb(arguments: Arguments) -> Answer:
    """Catalog, training, evaluation and report; finished stages are reused."""
    from sidera.eval.evaluation import Evaluation
    from sidera.eval.lines import evaluation_lines
    from sidera.fit import distributed
    from sidera.pages.run import write_report
    from sidera.train.stages import run

    with distributed.group(arguments.device) as device:
        result = run(read_recipe(arguments), arguments.data, arguments.out, device=device)
    if result is None:
        return {"out": arguments.out, "finished": False}
    console.result(evaluation_lines(result))
    page = write_report(Path(arguments.out), Path(arguments.out) / "report.html")
    answers = isinstance(result, Evaluation)  # a ranker needs somebody to find its candidates
    console.say(f"report: {page}" + (f"\nnext:   sidera serve {arguments.out} --port 8000" if answers else ""))
    return {"out": arguments.out, "finished": True, "report": page, **measured(result)}


def catalog_verb(arguments: Arguments) -> Answer:
    """Only the Catalog."""
    from sidera.train.run_lock import run_lock
    from sidera.train.stages import catalog_stage, prepare

    recipe = read_recipe(arguments)
    with run_lock(arguments.out):
        prepared = prepare(recipe, arguments.data)
        recipe.save(Path(arguments.out))
        catalog = catalog_stage(recipe, prepared, Path(arguments.out))
    console.result(report_table(catalog.report))
    return {"out": arguments.out, "items": catalog.num_items, "levels": catalog.level_sizes, "report": catalog.report}


def train_verb(arguments: Arguments) -> Answer:
    """Catalog and model."""
    from sidera.fit import distributed
    from sidera.train.stages import train

    with distributed.group(arguments.device) as device:
        _, recommender = train(read_recipe(arguments), arguments.data, arguments.out, device=device)
    return {"out": arguments.out, "finished": recommender is not None}


def evaluate_verb(arguments: Arguments) -> Answer:
    """Measure a trained run again, on test or validation rows."""
    from sidera.eval.lines import evaluation_lines
    from sidera.eval.naming import derived_name, evaluation_path
    from sidera.train.recipe import Recipe
    from sidera.train.stages import evaluate_stage, open_trained, prepare

    recipe = Recipe.of_run(arguments.run, arguments.set)
    name = arguments.name
    if name is None:
        name = derived_name(Recipe.of_run(arguments.run).sections(), recipe.sections())
        if name and arguments.rows != "test":
            name = f"{arguments.rows}+{name}"
    path = evaluation_path(arguments.run, name)
    prepared = prepare(recipe, arguments.data)
    trained = open_trained(recipe, arguments.run, arguments.device)
    result = evaluate_stage(recipe, prepared, trained, Path(arguments.run), arguments.rows, name=name)
    console.result(evaluation_lines(result))
    if name:
        console.say(f"kept as: {path} (sidera compare {arguments.run} OTHER --name {name})")
    return {"run": arguments.run, "evaluation": path, **measured(result)}


def compare_verb(arguments: Arguments) -> Answer:
    """Paired differences between two evaluated runs."""
    from sidera.eval.compare import compare
    from sidera.eval.evaluation import load_evaluation
    from sidera.eval.naming import existing_evaluation

    runs = (arguments.a, arguments.b)
    first, second = (load_evaluation(existing_evaluation(run, arguments.name)) for run in runs)
    comparison = compare(first, second)
    console.result(comparison.to_text())
    tests = [{"seen": seen, "metric": metric, **asdict(test)} for (seen, metric), test in comparison.tests.items()]
    return {
        "a": arguments.a,
        "b": arguments.b,
        "protocol": comparison.protocol,
        "tests": tests,
        "verdicts": [{**asdict(one), "words": one.to_text()} for one in comparison.verdicts],
        "notes": comparison.notes,
    }


def scale_verb(arguments: Arguments) -> Answer:
    """One recipe in several sizes, trained once over the same rows, and the law that their losses follow."""
    from sidera.eval.scaling_record import JSON, read_record
    from sidera.pages.scaling import write_scaling_page
    from sidera.train.scale import SIZES, ScaleOptions, scale

    options = ScaleOptions(
        sizes=tuple(arguments.sizes or SIZES),
        seeds=arguments.seeds,
        repeated=arguments.repeated,
        rows=arguments.rows,
        lr_factors=tuple(arguments.lr_factors),
        cpu_hours=arguments.cpu_hours,
    )
    result = scale(read_recipe(arguments), arguments.data, arguments.out, options, device=arguments.device)
    page = write_scaling_page(read_record(Path(arguments.out) / JSON), Path(arguments.out))
    console.result(f"report: {page}")
    return {"out": arguments.out, "report": str(page), "summary": result.prediction.summary(), **result.to_json()}


def align_verb(arguments: Arguments) -> Answer:
    """Pretrained policy, reward, controls and arms, the online test where the log is simulated, and the page."""
    from sidera.align.recipe import AlignRecipe
    from sidera.align.run import ALIGN, align_recipe
    from sidera.engine.snapshot import check_device
    from sidera.fit import distributed
    from sidera.lab.alignment import is_simulated, serve_policies, usual_arms
    from sidera.lab.online import to_text
    from sidera.pages.alignment import write_alignment_page

    check_device(arguments.device)
    if arguments.users < 2 or arguments.days < 1:
        raise InputError(f"--users {arguments.users} --days {arguments.days}", allowed="2 users or more, 1 day or more")
    recipe = AlignRecipe.read(arguments.recipe, arguments.set)
    with distributed.group(arguments.device) as device:
        alignment = align_recipe(
            recipe, arguments.data, arguments.out, start=arguments.start, exposures=arguments.exposures, device=device
        )
        leads = distributed.rank() == 0
    record, out, online = alignment.record, Path(arguments.out), None
    if not leads:  # the first process of a torchrun serves the policies and writes the page
        return {"out": arguments.out, "recommended": record["recommended"], "runs": dict(alignment.runs)}
    if is_simulated(arguments.data) and not arguments.no_online:
        reranked = [name for name in ("pretrained", record["recommended"]) if name in alignment.runs]
        online = serve_policies(
            usual_arms(alignment.runs, reranked), alignment.audience, arguments.data, record["reference"],
            users=arguments.users, days=arguments.days, device=arguments.device, say=console.say,
        )  # fmt: skip
        online.save(out / ALIGN / "online.json")
        console.result(f"\n{to_text(online)}")
    page = write_alignment_page(record, online, out / ALIGN / "alignment.html")
    best = record["recommended"]
    console.say(f"\nreport: {page}\nnext:   sidera serve {alignment.runs[best]} --port 8000")
    return {"out": arguments.out, "recommended": best, "runs": dict(alignment.runs), "report": page}


def measured(result: Evaluation | RankerEvaluation) -> Answer:
    """An evaluation as ``--json`` gives it: what was measured on which rows, every figure with its interval."""
    figures = {
        seen: {name: {"value": one.value, "low": one.low, "high": one.high} for name, one in metrics.items()}
        for seen, metrics in result.metrics.items()
    }
    return {"model": result.name, "protocol": dict(result.protocol), "metrics": figures}


def report_table(report: Mapping[str, Any]) -> str:
    """The quality report of a catalogue: one figure a row, lists on one line."""
    rows = []
    for name, value in report.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for below, one in inner:
            text = ", ".join(map(console.cell, one)) if isinstance(one, list | tuple) else console.cell(one)
            rows.append((f"{name}.{below}" if below else name, text if len(text) <= 60 else f"{text[:57]}..."))
    return console.table(("catalogue", ""), rows)


def add_run(verbs: Verbs) -> None:
    add_recipe_flags(add_verb(verbs, "run", run_verb, "catalog, train, evaluate, report; finished stages are reused"))


def add_stages(verbs: Verbs) -> None:
    add_recipe_flags(add_verb(verbs, "catalog", catalog_verb, "semantic IDs for the items, and their quality report"))
    add_recipe_flags(add_verb(verbs, "train", train_verb, "catalog and model, without the evaluation"))
    parser = add_verb(verbs, "evaluate", evaluate_verb, "measure a trained run: recall, NDCG, slices, latency")
    parser.add_argument("run", help="run folder")
    parser.add_argument("--data", required=True, help="the data folder it was trained on")
    parser.add_argument("--rows", choices=("test", "valid"), default="test", help="rows of the split to measure on")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override, e.g. eval.beam=100"
    )
    named = "keep it as evaluation-NAME (else: the official one, or named by the keys that differ from the recipe)"
    parser.add_argument("--name", help=named)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    add_threads_flag(parser)
    parser = add_verb(verbs, "compare", compare_verb, "paired differences between two evaluated runs")
    parser.add_argument("a", help="run folder")
    parser.add_argument("b", help="run folder")
    parser.add_argument("--name", default="", help="compare evaluation-NAME of both (else the official ones)")


def add_scale(verbs: Verbs) -> None:
    parser = add_verb(verbs, "scale", scale_verb, "train one recipe in several sizes and fit the scaling law")
    parser.add_argument("recipe", help="name or TOML file, e.g. world/scaling")
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
    add_threads_flag(parser)


def add_align(verbs: Verbs) -> None:
    parser = add_verb(verbs, "align", align_verb, "align a pretrained generator with rewards, beside its controls")
    parser.add_argument("recipe", help="name or TOML file with [align], e.g. world/align")
    parser.add_argument("--data", required=True, help="data folder with feedback, e.g. a simulated log")
    parser.add_argument("--out", required=True, help="run folder to write; a pretrained model in it is reused")
    parser.add_argument("--start", metavar="RUN", help="run folder of the policy to start from; else one is pretrained")
    parser.add_argument("--exposures", metavar="LOG", help="exposure log that the reward learns from too")
    parser.add_argument("--users", type=int, default=1000, help="users served in the online test, at most")
    parser.add_argument("--days", type=int, default=3, help="days of the online test")
    parser.add_argument("--no-online", action="store_true", help="no online test, though the log is simulated")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a recipe key")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    add_threads_flag(parser)
