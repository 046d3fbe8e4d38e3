"""``make demo``: the whole way in minutes: a log, a catalogue, its models, their evaluation, one report page.

Without data it writes a small generated log first; with a data folder it runs the same small recipes on that. The
recipes here are the shop-window ones: few epochs, sampled evaluation rows on large data. Those behind the published
numbers are under recipes/.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from sidera.data.config import load_dataset
from sidera.data.tiny import tiny_log
from sidera.eval.compare import compare
from sidera.eval.evaluation import Evaluation
from sidera.eval.report import write_report
from sidera.train.recipe import Recipe
from sidera.train.stages import run

SMALL = 2000  # items
TREE = {
    "vectors": ["behaviour"],
    "num_levels": 1,
    "codebook_size": 0,
    "balanced": True,
    "collision": "extra_digit",
}


def demo(data: str | None, out: Path) -> None:
    """Run every demo recipe and say how to serve the generator."""
    begun = time.perf_counter()
    if data is None:
        data = str(out / "data")
        tiny_log().save(data)
        print(f"no data given: a small generated log is in {data}")
    torch.set_num_threads(1)  # steps of milliseconds: more threads mostly wait for each other, badly on a busy machine
    num_items = load_dataset(data).num_items
    results: dict[str, Evaluation] = {}
    for name, sections in demo_recipes(num_items).items():
        print(f"\n== {name}")
        result = run(Recipe.parse(sections), data, out / name)
        assert result is not None, "demo recipes have no piece limit"
        results[name] = result
    print(f"\n== generator against sasrec, paired\n{compare(results['generator'], results['sasrec']).to_text()}")
    page = write_report(out, out / "report.html")
    history = ",".join(example_history(data))
    print(f"\n{results_lines(results)}\n")
    print(f"done in {time.perf_counter() - begun:.0f} s; report: {page}")
    print(f"ask:    sidera recommend {out / 'generator'} --history {history} -k 5")
    print(f"serve:  sidera serve {out / 'generator'} --port 8000")


def demo_recipes(num_items: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Sections of the demo's recipes, sized by the catalogue. TIGER joins on small data only: it wants time."""
    small = num_items <= SMALL
    fit = {"epochs": 30 if small else 10, "batch_size": 64 if small else 128, "lr": 2e-3, "betas": [0.9, 0.98]}
    fit |= {"eval_every_epochs": 3 if small else 5, "weight_decay": 0.0}
    evaluation = {"max_rows": None if small else 5000, "valid_rows": 2000}
    sasrec = {"name": "sasrec", "max_history": 50, "dropout": 0.3, "num_negatives": min(1024, num_items)}
    models: dict[str, dict[str, Any]] = {
        "popularity": {"name": "popularity"},
        "item_knn": {"name": "item_knn"},
        "sasrec": sasrec,
        "generator": {"name": "sidera", "max_history": 50, "dropout": 0.3 if small else 0.5},
    }
    recipes = {
        name: {"data": {}, "catalog": TREE, "model": model, "fit": fit, "eval": evaluation}
        for name, model in models.items()
    }
    if small:
        recipes["tiger"] = {
            "data": {},
            "catalog": {"vectors": ["tfidf"], "num_levels": 2, "codebook_size": 0, "collision": "extra_digit"},
            "model": {"name": "tiger", "width": 64, "num_layers": 2, "num_heads": 4, "head_width": 16, "ff_width": 256},
            "fit": {"epochs": 8, "batch_size": 128, "lr": 2e-3, "warmup_steps": 50, "eval_every_epochs": 2},
            "eval": evaluation,
        }
    return recipes


def results_lines(results: dict[str, Evaluation]) -> str:
    """A table for the terminal, protocol first."""
    protocol = next(iter(results.values())).protocol
    lines = [
        f"{protocol['dataset']}, {protocol['split']}, {protocol['rows']:,} test rows, full ranking, item-level hits",
        f"{'':12s} {'keep R@10':>18s} {'keep N@10':>18s} {'filter R@10':>18s} {'filter N@10':>18s}",
    ]
    for name, result in results.items():
        cells = [
            f"{estimate.value:.4f} [{estimate.low:.3f},{estimate.high:.3f}]"
            for seen in ("keep", "filter")
            for estimate in (result.metrics[seen]["recall@10"], result.metrics[seen]["ndcg@10"])
        ]
        lines.append(f"{name:12s} " + " ".join(f"{cell:>18s}" for cell in cells))
    return "\n".join(lines)


def example_history(data: str) -> list[str]:
    """The first events of the first user, as keys."""
    dataset = load_dataset(data)
    ids = dataset.item_ids[dataset.offsets[0] : min(dataset.offsets[1], dataset.offsets[0] + 3)]
    return [str(dataset.item_keys[item_id]) for item_id in ids]
