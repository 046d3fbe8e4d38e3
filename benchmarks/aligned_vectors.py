"""Claim `aligned_vectors`: aligned item vectors against raw ones, by co-clicks of neighbours and a generator's recall.

    python benchmarks/aligned_vectors.py [--quick]

Simulated world `easy` with pictures, several world seeds; training is what was clicked in the first four fifths of each
log, judged is the last tenth. All vectors have 256 dims. *Raw* puts unimodal vectors side by side (TF-IDF of the texts,
principal components of the covers' pixels, the content numbers); *aligned* is ``[catalog.align]`` over the same items:
words, categories, numbers, cover, frames. Three measures, all paired by user over the users of all worlds:

* co-click@10: of the 10 nearest items of a clicked item, the share that the same user clicked too in the window;
* recall@10 and @50 of a small OneRec-V2 that knows items by their codes alone (``item_input = "sid"``), 2 x 64 codes;
* retrieved@10 and @50: recall of the items nearest to the mean of a user's newest 10 clicks, items of the history left
  out. Nothing is trained on the vectors there: it is retrieval by them alone. Shown beside the claim, not part of it.

Also shown: text alone, pictures alone, aligned without pictures, and behaviour vectors (which have no answer for items
that nobody clicked yet). Worlds, encoders and generators are kept under ``runs/bench`` and reused, so a stopped run
goes on. Settings were chosen on another world (seed 7; docs/log.md).
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from harness import arguments, finish, single_thread, tuned_allocator

ROOT = Path(__file__).resolve().parents[1]
RUNS = Path(os.environ.get("SIDERA_BENCH_RUNS", ROOT / "runs" / "bench")) / "aligned_vectors"
WORLD_SEEDS = (0, 1, 2)
DATA = {"positive": "click", "split": "temporal"}
DIM = 256
INPUTS = {
    "inputs": ("words", "categories", "numbers", "cover", "frames"),
    "category_fields": ("creator", "tags"),
    "number_fields": ("duration", "content"),
}
NO_PICTURES = ("words", "categories", "numbers")
CODES = {"num_levels": 2, "codebook_size": 64, "balanced": True, "collision": "greedy"}
MODEL = {
    "name": "onerec_v2", "max_history": 32, "short_term": 32, "width": 32, "num_layers": 2, "num_heads": 2,
    "num_kv_groups": 2, "ff_width": 64, "dropout": 0.1, "item_input": "sid",
}  # fmt: skip
FIT = {"epochs": 4, "batch_size": 256, "lr": 3e-3, "patience": 0, "eval_every_epochs": 0, "eval_every_steps": 0}
EVAL = {"ks": [10, 50], "beam": 50, "wide_beam": 64, "seen": ["keep"], "max_rows": 4000, "latency_rows": 0,
        "free_rows": 0, "samples": 0, "valid_rows": 1, "bootstrap": 10}  # fmt: skip
TRAINED = ("raw", "text", "aligned", "aligned without pictures")  # on these the generator is trained
RETRIEVER_CLICKS = 10
BAR = {f"aligned - raw, {measure}": "interval above 0" for measure in ("co-click@10", "recall@10", "recall@50")}


def vectors_of(view: Any, images: Path, align: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Every contestant's vectors (N, D), and the CPU-minutes that the learned ones were trained."""
    import torch

    from sidera.artifacts import read_manifest
    from sidera.catalog.align import aligned_vectors
    from sidera.catalog.behaviour import behaviour_vectors
    from sidera.catalog.config import AlignConfig, CatalogConfig
    from sidera.catalog.content import fuse, item_texts, tfidf_vectors
    from sidera.catalog.pictures import read_pictures

    items, keys = view.dataset.items, view.dataset.item_keys
    pixels = read_pictures(images, "cover", keys, 16).pixels[:, 0].flatten(1).float() / 255
    pixels = pixels - pixels.mean(0)
    directions = torch.linalg.eigh(pixels.T @ pixels)[1].flip(1)  # (768, 768), the largest first
    content = torch.tensor(np.stack(items["content"].to_pylist()), dtype=torch.float32)
    text = tfidf_vectors(item_texts(items), 128)
    widths = text.shape[1], content.shape[1]
    raw = fuse([text, pixels @ directions[:, : DIM - sum(widths)], content], [1.0, 1.0, 1.0])
    found = {"raw": raw, "text": text, "pictures": pixels @ directions[:, :DIM]}
    found["behaviour"] = behaviour_vectors(view.dataset, view.split, CatalogConfig(vector_dim=DIM))
    minutes = {}
    for name, inputs in (("aligned", INPUTS["inputs"]), ("aligned without pictures", NO_PICTURES)):
        pictured = str(images) if inputs is not NO_PICTURES else None
        section = AlignConfig(**{**INPUTS, **align, "inputs": inputs, "image_folder": pictured})
        config, place = CatalogConfig(vectors=("aligned",), align=section), folder / f"encoder-{len(inputs)}"
        found[name] = aligned_vectors(view.dataset, view.split, config, place)[0]
        minutes[name] = read_manifest(place, "item_encoder").info["report"]["cpu_minutes"]
    return found, minutes


def co_clicks(vectors: Any, rows: Any, num_neighbours: int = 10) -> np.ndarray:
    """(R,) for each clicked item of the window: of its nearest items the share that its user clicked there too."""
    import torch

    unit = torch.nn.functional.normalize(vectors.float(), dim=1)
    similarity = unit @ unit.T
    similarity.fill_diagonal_(-2)
    nearest = similarity.topk(num_neighbours).indices.numpy()  # (N, 10)
    users, numbers = np.unique(rows.user_ids, return_inverse=True)
    clicked = np.zeros((len(users), len(vectors)), dtype=bool)
    clicked[numbers, rows.target_ids] = True
    return clicked[numbers[:, None], nearest[rows.target_ids]].mean(1)


def retriever_hits(vectors: Any, dataset: Any, rows: Any) -> dict[str, np.ndarray]:
    """retrieved@k -> (R,) 1 where the target is among the k items nearest to the mean of the newest clicks."""
    import torch

    unit = torch.nn.functional.normalize(vectors.float(), dim=1)
    ranks = np.empty(len(rows), dtype=np.int64)
    for row, (start, end, target) in enumerate(zip(rows.starts, rows.ends, rows.target_ids, strict=True)):
        history = torch.from_numpy(dataset.item_ids[start:end].astype(np.int64))
        scores = unit @ unit[history[-RETRIEVER_CLICKS:]].mean(0)
        wanted = scores[target].clone()
        scores[history] = -torch.inf
        ranks[row] = int((scores > wanted).sum()) if target not in history else len(unit)
    return {f"retrieved@{k}": (ranks < k).astype(np.float64) for k in EVAL["ks"]}


def generator_hits(vectors: Any, view: Any, data: Path, out: Path, fit: dict[str, Any], evaluation: dict[str, Any]):
    """recall@k -> (R,) 1 where the target is in the generator's list of k, and (R,) the user of each row."""
    from sidera.catalog.vectors_file import save_vectors
    from sidera.train.recipe import Recipe
    from sidera.train.stages import run

    out.mkdir(exist_ok=True)
    save_vectors(out / "vectors.safetensors", view.dataset.item_keys, vectors)
    catalog = {**CODES, "vectors": ["file"], "vectors_file": str(out / "vectors.safetensors")}
    sections = {"data": DATA, "catalog": catalog, "model": MODEL, "fit": fit, "eval": evaluation}
    result = run(Recipe.parse(sections), data, out / "run", say=lambda _: None)
    assert result is not None, "nothing here limits a piece"
    hits = {}
    for k in EVAL["ks"]:
        places = result.target_ranks("keep", k).rank  # from 1; 0: not in the list
        hits[f"recall@{k}"] = (places > 0).astype(np.float64)
    return hits, result.user_numbers


def measure_world(seed: int, quick: bool, folder: Path) -> dict[str, Any]:
    """Rates and hits by contestant, with the user of each row, for one world; what is in ``folder`` is reused."""
    from sidera.data.config import DataConfig, load_dataset, make_views
    from sidera.sim.config import world_config
    from sidera.sim.images import cover, write_images
    from sidera.sim.simulate import simulate
    from sidera.sim.world import World

    config = world_config("easy", {"num_items": 900, "num_creators": 60} if quick else {})
    data, images = folder / "data", folder / "images"
    folder.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    world = World.build(config, seed)
    cover(world, np.arange(world.items.num_items))
    speed = world.items.num_items / (time.process_time() - start)
    if not data.exists():
        simulate(config, 800 if quick else 4000, 6 if quick else 10, data, seed=seed)
        write_images(world, images)
    view = make_views(load_dataset(data, DataConfig(**DATA)), DataConfig(**DATA))[1]
    align = {"batch_size": 128, "steps": 50} if quick else {}
    vectors, minutes = vectors_of(view, images, align, folder)
    rows = view.split.test
    result: dict[str, Any] = {
        "seed": seed,
        "clicks": view.dataset.num_events,
        "rows": len(rows),
        "users": rows.user_ids,
    }
    result["co-click@10"] = {name: co_clicks(values, rows) for name, values in vectors.items()}
    for name, values in vectors.items():
        for measure, hits in retriever_hits(values, view.dataset, rows).items():
            result.setdefault(measure, {})[name] = hits
    result["dims"] = {name: values.shape[1] for name, values in vectors.items()}
    fit = {**FIT, "epochs": 1} if quick else FIT
    evaluation = {**EVAL, "max_rows": 300} if quick else EVAL
    for place, name in enumerate(("raw", "aligned") if quick else TRAINED):
        out = folder / f"generator-{place}"
        hits, result["ranked_users"] = generator_hits(vectors[name], view, data, out, fit, evaluation)
        for measure, values in hits.items():
            result.setdefault(measure, {})[name] = values
    result |= {"align_cpu_minutes": minutes, "covers_per_second": round(speed)}
    return result


def paired(worlds: list[dict[str, Any]], measure: str, first: str, second: str) -> dict[str, Any]:
    """First minus second over the users of all worlds, and world by world."""
    from sidera.eval.bootstrap import paired_test

    who = "ranked_users" if measure.startswith("recall") else "users"
    ours, theirs = (np.concatenate([world[measure][name] for world in worlds]) for name in (first, second))
    shift = np.cumsum([0, *(int(world[who].max()) + 1 for world in worlds)])
    users = np.concatenate([world[who] + more for world, more in zip(worlds, shift, strict=False)])
    test = paired_test(ours, theirs, users, seed=0)
    figures = dataclasses.asdict(test)
    kept = {name: round(figures[name], 5) for name in ("first", "second", "difference", "low", "high")}
    by_world = [round(float(world[measure][first].mean() - world[measure][second].mean()), 5) for world in worlds]
    return {**kept, "by_world": by_world, "rows": len(ours), "users": len(np.unique(users))}


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__)
    single_thread()
    worlds = []
    for seed in WORLD_SEEDS[:1] if options.quick else WORLD_SEEDS:
        worlds.append(measure_world(seed, options.quick, RUNS / ("quick" if options.quick else "full") / str(seed)))
    measures = ("co-click@10", "recall@10", "recall@50", "retrieved@10", "retrieved@50")
    means = {
        measure: {
            name: round(float(np.mean([world[measure][name].mean() for world in worlds])), 5)
            for name in worlds[0][measure]
        }
        for measure in measures
    }
    tests = {
        f"{first} - {second}, {measure}": paired(worlds, measure, first, second)
        for measure in measures
        for first, second in (("aligned", "raw"), ("aligned", "aligned without pictures"), ("aligned", "text"))
        if {first, second} <= worlds[0][measure].keys()
    }
    value = {name: [tests[name][part] for part in ("difference", "low", "high")] for name in BAR}
    passed = all(low > 0 for _, low, _ in value.values())
    context = {"world": "easy", "world_seeds": [world["seed"] for world in worlds], "means": means}
    details = {
        "tests": tests,
        "worlds": [
            {name: world[name] for name in ("seed", "clicks", "rows", "dims", "align_cpu_minutes", "covers_per_second")}
            for world in worlds
        ],
        "settings": {"align": INPUTS, "codes": CODES, "model": MODEL, "fit": FIT, "eval": EVAL},
    }
    finish("aligned_vectors", value, BAR, passed, context, quick=options.quick, details=details)


if __name__ == "__main__":
    main()
