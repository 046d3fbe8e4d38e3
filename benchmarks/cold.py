"""Claim `cold`: an item that came after the training is found by what it is, at least 5 times as often as at random.

    python benchmarks/cold.py [--quick]

What `sidera cold` does, for every model that reads what items are: a tenth of the items and a fifth of the users are
taken out of the log, a small model is trained on the rest, the items join the catalogue by their titles, and the
users who were taken out are asked where an item that came later is the answer. Counted is Recall@50 among all items,
without a quota, against a uniform choice (50/N); it is paired with content-kNN, which reads titles alone. With a quota
of a tenth of the slots: how much more of the new items is found, and what known items lose.

Two logs: a generated shop (1,500 users, 1,000 items; 500 steps), and Amazon Scientific 2018 (8,317 users, 4,344 items;
up to 6,000 steps, until validation gains no more). One seed of the models, a few CPU-minutes each. `--quick` takes a
smaller shop alone.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from harness import arguments, finish, single_thread, tuned_allocator

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
BAR, SEED = 5.0, 0
WATCHED = {"schedule": "wsd", "eval_every_steps": 250, "patience": 3}
SMALL = {"max_history": 20, "width": 64, "dropout": 0.1}
ONEREC = {**SMALL, "ff_width": 128}
MODELS: dict[str, dict[str, Any]] = {
    "sidera": {**SMALL, "num_layers": 1, "num_heads": 2},
    "sidera, titles": {**SMALL, "num_layers": 1, "num_heads": 2, "content": "titles"},
    "tiger": {**SMALL, "num_layers": 1, "num_heads": 2, "head_width": 32, "ff_width": 128},
    "liger": {**SMALL, "num_layers": 1, "num_heads": 2, "head_width": 32, "ff_width": 128},
    "decoder_only": {**SMALL, "num_layers": 2, "num_heads": 2},
    "cobra": {**SMALL, "num_layers": 2, "num_heads": 2},
    "onerec": {**ONEREC, "short_term": 20, "encoder_layers": 1, "decoder_layers": 1, "num_lifelong_queries": 2,
               "lifelong_layers": 1},
    "onerec_v2": {**ONEREC, "num_layers": 2, "code_std": 1.0},
}  # fmt: skip


def recipe_of(model: str, steps: int, codes: int, watched: bool, extra: dict[str, Any] | None = None) -> Any:
    """The model over codes of titles, trained for ``steps``, or until validation gains no more."""
    from sidera.train.recipe import Recipe

    quantizer = {"name": "rq_kmeans", "num_levels": 2, "codebook_size": codes}
    return Recipe.parse({
        "data": {},
        "catalog": {"vectors": ["tfidf"], "vector_dim": 64, "quantizer": quantizer, "collision": "extra_digit"},
        "model": {"name": model.partition(",")[0], **MODELS[model], **(extra or {})},
        "fit": {"max_steps": steps, "epochs": 1000, "batch_size": 64, "lr": 3e-3, "warmup_steps": 30, "seed": SEED,
                "eval_every_epochs": 0, "num_threads": 1, **(WATCHED if watched else {})},
        "eval": {"bootstrap": 500},
    })  # fmt: skip


def figures(record: dict[str, Any], name: str) -> dict[str, Any]:
    """What is kept of one model."""
    row, k = record["models"][name], record["k"]
    cold = row["groups"]["cold"]
    found = {
        f"recall@{k}": {key: round(cold[f"recall@{k}"][key], 4) for key in ("value", "low", "high")},
        "times_chance": round(row["times_chance"], 2),
        f"new_share@{k}": round(row[f"new_share@{k}"], 4),
        "known, recall@10 by history": {
            group: round(each["recall@10"]["value"], 4) for group, each in row["groups"].items() if group != "cold"
        },
    }
    if "against" in row:
        paired = {key: round(row["against"][key], 4) for key in ("difference", "low", "high")}
        found[f"less {record['against']}, paired"] = paired
    return found


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__)
    single_thread()
    from sidera.data.tiny import tiny_log
    from sidera.train.cold_start import WITH_QUOTA, ColdConfig, cold_start

    value: dict[str, Any] = {}
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        shop = Path(name) / "shop"
        tiny_log(*((400, 300) if options.quick else (1500, 1000)), SEED).save(shop)
        logs = {"shop": (shop, 80 if options.quick else 500, 16)}
        if not options.quick:
            logs["scientific"] = (DATA / "amazon2018_scientific", 6000, 64)
        for log, (data, steps, codes) in logs.items():
            for model in MODELS:
                begun = time.process_time()
                config = ColdConfig(max_rows=200 if options.quick else 1000, seed=SEED)
                recipe, folder = recipe_of(model, steps, codes, log != "shop"), Path(name) / log / model
                record = cold_start(recipe, data, folder, config, say=lambda text: None)
                assert record is not None
                own = model.partition(",")[0]
                rows = [own, f"{own}{WITH_QUOTA}", *(() if f"{log}/content_knn" in measured else ("content_knn",))]
                for row in rows:
                    measured[f"{log}/{row.replace(own, model)}"] = figures(record, row)
                seconds = round(time.process_time() - begun, 1)
                measured[f"{log}/{model}"] |= {
                    "quota, recall@50": record["quota"],
                    "cpu_seconds": seconds,
                    "questions": record["questions"]["cold"],
                }
                times = value[f"{log}/{model}"] = measured[f"{log}/{model}"]["times_chance"]
                print(f"{log:<11} {model:<10} {times} x chance, {seconds} CPU-s", flush=True)
            times = measured[f"{log}/content_knn"]["times_chance"]
            print(f"{log:<11} content_knn {times} x chance", flush=True)
    context = {
        "seed": SEED, "steps, at most": {log: steps for log, (_, steps, _) in logs.items()}, "measured": measured,
        "unit": "recall@50 on withheld items / (50 / items)", "passed when": "every model reaches the bar",
    }  # fmt: skip
    finish("cold", value, {"times_chance": BAR}, min(value.values()) >= BAR, context, quick=options.quick)


if __name__ == "__main__":
    main()
