"""Claim `expert`: counts beside a generator, joined by learned weights, answer better, and no worse than exhaustively.

    python benchmarks/expert.py [--quick] [--data beauty] [--runs FOLDER] [--run RUN] [--rows N]

A recipe's generator is trained once (or found in FOLDER/NAME, where `sidera train` put it, or in RUN, which the same
recipe made). On its test rows, or N of them: the generator alone; log p and one count (the plain product); all
features; weights by length of history; the design that held-out validation rows chose; the same with the validation
events counted too, the generator unchanged. All weights come from validation rows.

Beside accuracy: in how many top-10s the pool (beam and counted items) equals the whole catalogue, scored exhaustively;
and CPU time of lone requests with and without the expert, interleaved. `--quick`: a small made-up log, few steps.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness import arguments, finish, interleaved, single_thread, tuned_allocator

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NAMES = {"beauty": ("beauty/generator", "amazon2014_beauty"), "sports": ("sports/generator",
         "amazon2014_sports")}  # fmt: skip
EQUAL_BAR, EXHAUSTIVE_ROWS, LONE = 0.999, 2000, 60
QUICK = ("catalog.vectors=['behaviour']", "catalog.quantizer.codebook_size=12", "catalog.vector_dim=8",
         "model.width=16", "model.num_layers=1", "model.num_heads=1", "fit.max_steps=20", "fit.patience=0")  # fmt: skip
Figures = dict[str, dict[str, np.ndarray]]  # variant -> "keep/ndcg@10" -> (R,)


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", choices=NAMES, default="beauty", help="which log")
    parser.add_argument("--runs", metavar="FOLDER", help="where trained runs lie, or are left")
    parser.add_argument("--run", help="a trained run of the recipe, without a refit; its own expert is not read")
    parser.add_argument("--rows", type=int, help="so many test rows for the accuracy; default: all")


def chains(folder: Path) -> Path:
    """A log in which seven of ten events follow a fixed order of 400 items."""
    import pyarrow as pa

    from sidera.data.schema import build_dataset

    rng, after, rows = np.random.default_rng(0), np.random.default_rng(1).permutation(400), []
    for user in range(600):
        item = int(rng.integers(400))
        for place in range(8):
            rows.append((f"u{user}", f"i{item:03d}", place * 86_400 + user))
            item = int(after[item]) if rng.random() < 0.7 else int(rng.integers(400))
    columns = {name: [row[at] for row in rows] for at, name in enumerate(("user", "item", "time"))}
    build_dataset("chains", pa.table(columns)).save(folder / "data")
    return folder / "data"


def questions_of(recommender: Any, prepared: Any, rows: Any, seen: str) -> Any:
    from sidera.engine.pipeline import Query
    from sidera.eval.ranking import questions

    for index, batch in questions(recommender, prepared.dataset, rows, 256):
        left_out = (batch.item_ids, batch.events.offsets) if seen == "filter" else None
        yield index, Query(recommender.snapshot, batch, recommender.beam, left_out, recommender.beam)


def figures(recommender: Any, prepared: Any, rows: Any, variants: dict[str, Any]) -> Figures:
    """What each variant's top 10 is worth on every row."""
    import torch

    from sidera.engine.pipeline import search

    found: Figures = {name: {} for name in variants}
    for seen in ("keep", "filter"):
        ranks = {name: np.full(len(rows), 10) for name in variants}
        for index, query in questions_of(recommender, prepared, rows, seen):
            targets = torch.from_numpy(rows.target_ids[index])[:, None]
            with torch.inference_mode():
                for name, expert in variants.items():
                    if expert is None:
                        ids = search(query, recommender.beam).item_ids
                    else:
                        candidates = expert.searched(query, expert.needs(10, recommender.beam))
                        ids = expert(query, candidates, 10).item_ids
                    hits = ids[:, :10] == targets
                    ranks[name][index] = torch.where(hits.any(1), hits.int().argmax(1), 10).numpy()
        for name, rank in ranks.items():
            found[name][f"{seen}/recall@10"] = (rank < 10).astype(float)
            found[name][f"{seen}/ndcg@10"] = np.where(rank < 10, 1 / np.log2(rank + 2.0), 0.0)
    return found


def equal_share(recommender: Any, expert: Any, prepared: Any) -> dict[str, float]:
    """Top-10s of the pool that equal those of all items; scores that differ by rounding alone are equal."""
    import torch

    from sidera.decode.exact import score_all_items
    from sidera.eval.ranking import sample_rows

    rows = sample_rows(prepared.split.test, EXHAUSTIVE_ROWS, 0)
    equal, places = [], []
    for _, query in questions_of(recommender, prepared, rows, "keep"):
        snapshot = query.snapshot
        with torch.inference_mode():
            exact = score_all_items(snapshot.generator, query.context, snapshot.catalog.trie)
            items = torch.arange(snapshot.catalog.num_items).expand_as(exact)
            best = expert.given(query, items, exact).topk(10, dim=1).values
            found = expert.searched(query, expert.needs(10, recommender.beam))
            mine = expert(query, found, 10).scores
        same = torch.isclose(mine, best, atol=1e-3)
        equal.append(same.all(1))
        places.append(same.float().mean(1))
    return {"top-10s": float(torch.cat(equal).float().mean()), "places": float(torch.cat(places).mean())}


def lone_ms(recommender: Any, expert: Any, prepared: Any) -> dict[str, float]:
    """CPU milliseconds of one request, the median; without and with the expert, interleaved."""
    from sidera.engine.serving import Parts
    from sidera.eval.ranking import questions

    rows = prepared.split.test.take(np.arange(LONE))
    batches = [batch for _, batch in questions(recommender, prepared.dataset, rows, 1)]

    def ask(parts: Any) -> Any:
        def call() -> None:
            recommender.parts = parts
            for batch in batches:
                recommender.rank(batch, 10, beam=recommender.beam)

        return call

    seconds = interleaved({"alone": ask(Parts()), "with expert": ask(Parts((expert,)))}, 5)
    recommender.parts = Parts()
    return {name: round(1000 * float(np.median(values)) / LONE, 3) for name, values in seconds.items()}


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__, flags)
    single_thread()
    from sidera.data.split import fitted_sequences
    from sidera.engine.recommender import Recommender
    from sidera.engine.serving import ServeConfig
    from sidera.eval.bootstrap import paired_test
    from sidera.eval.ranking import sample_rows
    from sidera.train.expert import DESIGNS, fit_expert, learn, lessons_of
    from sidera.train.recipe import Recipe
    from sidera.train.stages import prepare, train

    with tempfile.TemporaryDirectory() as temporary:
        runs = Path(options.runs or temporary)
        recipe_name, data_name = NAMES[options.data]
        data, overrides = DATA / data_name, ["expert.enabled=false", "fit.refit=false"]
        if options.quick:
            data, overrides, runs = chains(Path(temporary)), [*overrides, *QUICK], Path(temporary)
        recipe = Recipe.read(recipe_name, overrides)
        folder = Path(options.run) if options.run else runs / options.data
        if not options.run:
            train(recipe, data, folder)
        prepared = prepare(recipe, data, say=lambda _: None)
        recommender = Recommender.load(folder, serve=ServeConfig(expert=False))
        expert = fit_expert(recommender, prepared.view, prepared.positives, replace(recipe.expert, enabled=True))
        lessons = lessons_of(expert, recommender, prepared.dataset, prepared.split.valid)
        buckets = len(expert.edges) + 1
        variants: dict[str, Any] = {"generator alone": None}
        for name, design in DESIGNS.items():
            variants[name] = replace(expert, weights=learn(lessons, *design, buckets))
        positives = prepared.positives
        sequences = fitted_sequences(positives.dataset, positives.split, "train+valid")
        variants["chosen"] = expert
        variants["chosen, validation events counted"] = expert.recounted(*sequences, recommender.catalog.num_items, "")
        rows = sample_rows(prepared.split.test, options.rows or len(prepared.split.test), 0)
        found = figures(recommender, prepared, rows, variants)
        users, alone = rows.user_ids, found["generator alone"]
        table = {name: {key: round(float(values.mean()), 5) for key, values in one.items()}
                 for name, one in found.items()}  # fmt: skip
        gain = paired_test(found["chosen"]["filter/ndcg@10"], alone["filter/ndcg@10"], users)
        equal = equal_share(recommender, expert, prepared)
        latency = lone_ms(recommender, expert, prepared)
    value = {"filter/ndcg@10": table["chosen"]["filter/ndcg@10"], "gain": round(gain.difference, 5),
             "gain_low": round(gain.low, 5), "equal_top10s": equal["top-10s"]}  # fmt: skip
    bar = {"gain_low": 0.0, "equal_top10s": EQUAL_BAR}
    passed = gain.low > 0 and equal["top-10s"] >= EQUAL_BAR
    context = {
        "data": data_name if not options.quick else "chains",
        "rows": len(users),
        "info": dict(expert.info or {}),
    }
    details = {"test": table, "equal": equal, "lone_request_cpu_ms": latency}
    finish("expert", {**value, **details}, bar, passed, context, options.quick)


if __name__ == "__main__":
    main()
