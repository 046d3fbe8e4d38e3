"""Claim `decoder_shapes`: encoder-decoder, decoder-only and lazy decoder at equal training FLOPs. Reported, no bar.

    python benchmarks/decoder_shapes.py [--quick] [--tflop 6] [--seeds N] [--data NAME]

Three shapes write the same semantic IDs from the same histories: TIGER (an encoder over the history's codes, a decoder
for each target), one causal stream of codes (``decoder_only``: every event is a target of one pass) and OneRec-V2's
lazy decoder (no layer runs over the history). Width, heads, feed-forward, codes, dropout, schedule and learning rate
are the same; each has four layers in all. Each trains for the number of steps whose counted FLOPs (``flops_per_batch``,
forward and backward, padding not counted) are the budget, with its learning rate decayed to 0 at the end, and chooses
nothing on validation. How many targets a FLOP buys is part of what a shape is, and stands in the context.

Data: a small public set below ``shared/data`` (quick: a written log, on which the figures mean nothing). Value: keep
N@10 and R@10 of each shape, and the paired difference of every two with its 95 % interval, seed by seed.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from harness import arguments, finish, single_thread, tuned_allocator

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SEED, COUNTED = 0, 30  # batches whose FLOPs are counted
COMMON = {"width": 64, "num_heads": 4, "dropout": 0.1, "max_history": 20}
SHAPES: dict[str, tuple[dict[str, Any], int]] = {  # [model], and histories of a batch
    "encoder-decoder": ({"name": "tiger", "num_layers": 2, "head_width": 16, "ff_width": 256, **COMMON}, 256),
    "decoder-only": ({"name": "decoder_only", "num_layers": 4, "ff_multiple": 4, **COMMON}, 64),
    "lazy decoder": ({"name": "onerec_v2", "num_layers": 4, "ff_width": 170, "short_term": 20, "code_std": 1.0,
                      "num_kv_groups": 4, **COMMON}, 256),
}  # fmt: skip


def recipe_of(shape: str, seed: int, steps: int | None, options: Any) -> Any:
    from sidera.train.recipe import Recipe

    model, batch_size = SHAPES[shape]
    return Recipe.parse(
        {
            "data": {},
            "catalog": {
                "vectors": ["behaviour" if options.quick else "tfidf"], "collision": "extra_digit",
                "quantizer": {"num_levels": 2 if options.quick else 3, "codebook_size": 8 if options.quick else 64},
            },
            "model": dict(model),
            "fit": {
                "batch_size": batch_size, "lr": 2e-3, "betas": [0.9, 0.98], "weight_decay": 0.01, "schedule": "cosine",
                "warmup_steps": min(100, (steps or 1) // 4), "epochs": 10_000, "max_steps": steps, "patience": 0,
                "eval_every_epochs": 0, "eval_every_steps": 0, "seed": seed, "num_threads": 1, "peak_tflops": 1.0,
            },
            "eval": {"max_rows": 300 if options.quick else 4000, "valid_rows": 50, "bootstrap": 200, "beam": 50,
                     "latency_rows": 2, "free_rows": 10, "samples": 2},
        }
    )  # fmt: skip


def mean_flops(shape: str, data: Path, out: Path, options: Any) -> tuple[float, float]:
    """Of a training step, and targets of a step; the catalogue of ``out`` is built where it is not."""
    from sidera.engine.recommender import Recommender
    from sidera.models import build_model
    from sidera.train.stages import batch_source, catalog_stage, prepare

    recipe = recipe_of(shape, SEED, 1, options)
    prepared = prepare(recipe, data, say=lambda _: None)
    catalog = catalog_stage(recipe, prepared, out, say=lambda _: None)
    model: Any = build_model(recipe.model_name, recipe.model_config, catalog)
    trained = Recommender(model, catalog, model_section=recipe.model_section)
    source = batch_source(recipe, prepared, model, trained.read_log(prepared.dataset))
    assert source is not None
    counted = [(model.flops_per_batch(batch), batch.targets.num_values) for batch in islice(source.batches(0), COUNTED)]
    return sum(flops for flops, _ in counted) / len(counted), sum(number for _, number in counted) / len(counted)


def written_log(folder: Path) -> Path:
    from sidera.data.tiny import tiny_log

    tiny_log(seed=0).save(folder)
    return folder


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__, extend=lambda parser: [
        parser.add_argument("--tflop", type=float, default=6.0, help="budget of each training"),
        parser.add_argument("--seeds", type=int, default=1, help="trainings of each shape"),
        parser.add_argument("--data", default="amazon2018_scientific", help="a folder below shared/data"),
    ])  # fmt: skip
    single_thread()
    from sidera.eval.compare import compare
    from sidera.eval.evaluation import Evaluation
    from sidera.train.stages import run

    budget = 1e12 * (0.004 if options.quick else options.tflop)
    value: dict[str, Any] = {}
    judged: dict[tuple[str, int], Evaluation] = {}
    context: dict[str, Any] = {"seed": SEED, "seeds": options.seeds, "budget_tflop": budget / 1e12, "shapes": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = written_log(folder / "data") if options.quick else SHARED / options.data
        context["data"] = "a written log" if options.quick else options.data
        for shape in SHAPES:
            flops, targets = mean_flops(shape, data, folder / shape / "0", options)
            steps = max(1, round(budget / flops))
            begun = time.process_time()
            for seed in range(options.seeds):
                out = folder / shape / str(seed)
                if seed:  # the catalogue that was counted on
                    shutil.copytree(folder / shape / "0" / "catalog", out / "catalog")
                found = run(recipe_of(shape, seed, steps, options), data, out, say=lambda _: None)
                assert isinstance(found, Evaluation)
                judged[shape, seed] = found
                value[f"{shape}, seed {seed}"] = {
                    name: round(found.value(name), 4) for name in ("ndcg@10", "recall@10")
                }
            context["shapes"][shape] = {
                "steps": steps, "targets": round(steps * targets), "gflop_a_target": round(flops / targets / 1e9, 5),
                "cpu_s": round((time.process_time() - begun) / options.seeds, 1),
            }  # fmt: skip
        for first, second in combinations(SHAPES, 2):
            for seed in range(options.seeds):
                test = compare(judged[first, seed], judged[second, seed]).tests["keep", "ndcg@10"]
                value[f"{first} - {second}, seed {seed}"] = {
                    "ndcg@10": round(test.difference, 4), "interval": [round(test.low, 4), round(test.high, 4)],
                }  # fmt: skip
    finish("decoder_shapes", value, None, True, context, quick=options.quick)


if __name__ == "__main__":
    main()
