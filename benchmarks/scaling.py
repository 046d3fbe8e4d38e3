"""Claim `scaling`: the loss of OneRec-V2's largest size is foretold within 2 % by the sizes below it.

    python benchmarks/scaling.py [--quick] [--work FOLDER]

A log of the `easy` world is written and `sidera scale recipes/world/scaling.toml` is run on it: seven sizes, each row
seen once. With ``--work`` a run that was stopped goes on where it was. A quick run fits the committed runs again (fits
and bootstrap are recomputed, nothing is read from the old fit), and trains two tiny sizes on a tiny log.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from harness import RESULTS, arguments, finish, single_thread, tuned_allocator

SEED = 0
BAR = {"error": 0.02}
USERS, DAYS, ROWS = 36_000, 10, 240_000
SIZES = ("16x2", "24x2", "32x3", "48x3", "64x4", "96x5", "128x6")
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "world" / "scaling.toml"
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "scaling.svg"
ONE_THREAD = ["fit.num_threads=1"]


def write_log(folder: Path, users: int, days: int) -> int:
    """The log of the easy world; its events."""
    from sidera.sim.config import world_config
    from sidera.sim.simulate import simulate

    return simulate(world_config("easy"), users, days, folder, SEED)["num_events"]


def full(work: Path) -> tuple[Any, dict[str, Any]]:
    """Log, runs and fits -> the fits, and what is kept of the runs."""
    from sidera.eval.scaling_record import JSON, read_record
    from sidera.pages.scaling import SVG, write_scaling_page
    from sidera.train.recipe import Recipe
    from sidera.train.scale import ScaleOptions, scale

    write_log(work / "log", USERS, DAYS)
    options = ScaleOptions(SIZES, seeds=2, repeated=2, rows=ROWS, lr_factors=(1.0, 2.0, 4.0, 8.0))
    result = scale(Recipe.read(RECIPE, ONE_THREAD), work / "log", work / "run", options)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    record = read_record(work / "run" / JSON)
    write_scaling_page(record, work / "run")
    shutil.copy(work / "run" / SVG, PICTURE)
    return result, record


def published_counts() -> list[dict[str, Any]]:
    """OneRec-V2's cost tables (2508.20900; context 512, 5 targets a context, batch 512) beside what sizes give."""
    from dataclasses import replace

    from sidera.models.counters import Architecture

    rows: list[dict[str, Any]] = []

    def row(what: str, published: float, ours: float) -> None:
        rows.append({"what": what, "published": published, "ours": round(ours, 3)})

    lazy = Architecture("lazy", width=1792, decoder_layers=18, ff_width=4 * 1792, context_width=3 * 90)
    base = sum(lazy.flops(512).values())
    for pairs, separate, published in ((1, True, 19.19), (3, False, 19.49), (9, False, 21.27), (18, False, 23.95)):
        more = sum(replace(lazy, kv_sharing=pairs, separate_values=separate).flops(512).values())
        what = f"K/V sharing ({pairs}, {1 + separate}): GFLOPs above (1, 1)"
        row(what, round(published - 18.89, 2), (more - base) / 1e9)
    for groups, published in ((14, 94), (7, 47), (2, 13), (1, 7)):
        row(f"G_kv = {groups}: keys, millions", published, replace(lazy, kv_groups=groups).kv_numbers(512, 512) / 1e6)
    tables = {"0.1B": (640, 12, 32, 1.98, 63.78, 25.64), "0.5B": (1408, 14, 70, 9.55, 317.68, 142.73)}
    tables["1B"] = (1792, 18, 90, 18.89, 634.83, 296.36)
    kept = {"0.1B": (0.31, 7.52, 4.21), "0.5B": (0.77, 19.28, 10.79), "1B": (1.24, 31.53, 17.63)}
    for size, (width, layers, embed, of_lazy, of_naive, of_both) in tables.items():
        sizes: dict[str, Any] = {"width": width, "decoder_layers": layers, "ff_width": 4 * width}
        small = Architecture("lazy", **sizes, context_width=3 * embed)
        added, named = small.flops(512), float(size[:-1])
        by_name = 18 * named + (added["context"] + added["attention"] * 512 / 515) / 1e9
        row(f"{size} lazy: GFLOPs, 18 x named parameters + shapes", of_lazy, by_name)
        row(f"{size} naive: GFLOPs by the paper's formula", of_naive, named * (1.2 * 512 + 18))
        row(f"{size} enc:dec 1:1: GFLOPs by the paper's formula", of_both, named * (0.66 * 512 + 8.1))
        both = {**sizes, "decoder_layers": layers // 2, "encoder_layers": layers // 2}
        built = {"lazy": small, "naive": Architecture("naive", **sizes)}
        built["enc:dec 1:1"] = Architecture("encoder_decoder", **both)
        for (name, architecture), published in zip(built.items(), kept[size], strict=True):
            row(f"{size} {name}: activations, billions", published, architecture.activations(512, 512) / 1e9)
    return rows


def refit() -> Any:
    """The laws from the runs that were committed."""
    from sidera.eval.scaling import SizeRun, fit_scaling

    runs = json.loads((RESULTS / "scaling.json").read_text(encoding="utf-8"))["details"]["runs"]
    return fit_scaling([SizeRun.from_json(run) for run in runs])


def smoke(folder: Path) -> list[float]:
    """Losses of two tiny sizes trained over a tiny log."""
    from sidera.train.recipe import Recipe
    from sidera.train.scale import one_run, open_stream, sized

    write_log(folder / "log", 800, 5)
    recipe = Recipe.read(
        RECIPE, ["catalog.quantizer.codebook_size=16", "fit.warmup_steps=10", "fit.batch_size=32", *ONE_THREAD]
    )
    stream = open_stream(recipe, folder / "log", folder / "run", None, print)
    names = ("16x1", "32x2")
    runs = [one_run(name, sized(recipe, name), 1e-2, SEED, stream, folder / "run", "cpu", print)[0] for name in names]
    return [run.loss for run in runs]


def main() -> None:
    tuned_allocator()

    def flags(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--work", type=Path, help="folder for log and runs (else a temporary one)")

    options = arguments(__doc__, flags)
    single_thread()
    details: dict[str, Any]
    tiny: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        work = options.work or Path(name)
        if options.quick:
            result, details = refit(), {}
            tiny = smoke(work)
            trained = all(math.isfinite(loss) and loss < math.log(16) for loss in tiny)  # better than a uniform guess
        else:
            result, details = full(work)
            trained = True
    found = result.prediction
    value = {
        "error": round(found.error, 5),
        "error_without_law": round(found.error_without_law, 5),
        "predicted": round(found.predicted.value, 4),
        "observed": round(found.observed, 4),
    }
    context = {"seed": SEED, "users": USERS, "days": DAYS, "rows": ROWS, "smoke_losses": tiny}
    details = {"picture": "docs/pictures/scaling.svg", "counts": published_counts(), **details}
    finish("scaling", value, BAR, trained and found.error <= BAR["error"], context, options.quick, details)


if __name__ == "__main__":
    main()
