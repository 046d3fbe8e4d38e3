"""Claim `aligned_vectors`: aligned item vectors against raw ones, by co-clicks of neighbours and a generator's recall.

    python benchmarks/aligned_vectors.py [--quick]

Two places, three measures, paired by user; the claim wants all six intervals above 0:

* *Amazon Beauty* (leave-one-out, test rows). Raw: MiniLM vectors of title, brand and categories. Aligned:
  ``[catalog.contrastive]`` over the same texts, their words, brands and categories.
* *Simulated world* `easy` with pictures, three worlds; training is what was clicked in the first four fifths of each
  log, judged is the last tenth. Raw: unimodal vectors side by side (TF-IDF of the texts, principal components of the
  covers' pixels, the content numbers); aligned: words, categories, numbers, cover, frames. All of 256 dims. *True
  topics*, which no log tells, show as vectors what any content could gain there.

* co-click@10: of the 10 nearest items of a judged item, the share that the same user clicked too (world: in the
  window; Beauty: ever before);
* recall@10 and @50 of a small OneRec-V2 that knows items by their codes alone (``item_input = "sid"``), mean over three
  training seeds.

Shown beside the claim, not part of it:

* retrieved@10 and @50: recall of the items nearest to the mean of a user's newest 10 clicks, items of the history left
  out. Nothing is trained on the vectors there: it is retrieval by them alone;
* in the world, text alone, pictures alone, aligned without pictures, and behaviour vectors (which have no answer for
  items that nobody clicked yet);
* in the world, the online test: OneRec-V2 by its recipe, which knows items by their ids too, with codes from either
  kind of vectors and with its own (text and behaviour); true utility, one training seed a world.

Worlds, encoders and generators are kept under ``runs/bench`` and reused, so a stopped run goes on. Settings were chosen
on Beauty's validation rows and on another world (seed 7; docs/evidence/log.md).
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from harness import arguments, finish, single_thread, tuned_allocator
from online_arms import DAYS, USERS, Arm, differences, online, train_arm, world_log

ROOT = Path(__file__).resolve().parents[1]
RUNS = Path(os.environ.get("SIDERA_BENCH_RUNS", ROOT / "runs" / "bench")) / "aligned_vectors"
WORLD_SEEDS, TRAINING_SEEDS = (0, 1, 2), (0, 1, 2)
BEAUTY = ROOT.parent / "shared" / "data" / "amazon2014_beauty"
DATA: dict[str, Any] = {"positive": "click", "split": "temporal"}
DIM = 256
INPUTS: dict[str, Any] = {
    "inputs": ("words", "categories", "numbers", "cover", "frames"),
    "category_fields": ("creator", "tags"),
    "number_fields": ("duration", "content"),
}
BEAUTY_ALIGN: dict[str, Any] = {
    "inputs": ("text", "words", "categories"), "category_fields": ("brand", "categories"),
}  # fmt: skip
NO_PICTURES = ("words", "categories", "numbers")
ITEMS_BY_CODES = {"name": "onerec_v2", "max_history": 32, "short_term": 32, "dropout": 0.1, "item_input": "sid"}
FIT: dict[str, Any] = {"batch_size": 256, "lr": 3e-3, "patience": 0, "eval_every_epochs": 0, "eval_every_steps": 0}
EVAL: dict[str, Any] = {
    "ks": [10, 50], "beam": 50, "wide_beam": 64, "seen": ["keep"], "latency_rows": 0, "free_rows": 0, "samples": 0,
    "valid_rows": 1, "bootstrap": 10,
}  # fmt: skip
IN_WORLD: dict[str, Any] = {
    "data": DATA,
    "catalog": {"quantizer": {"num_levels": 2, "codebook_size": 64, "balanced": True}, "collision": "greedy"},
    "model": {**ITEMS_BY_CODES, "width": 32, "num_layers": 2, "num_heads": 2, "num_kv_groups": 2, "ff_width": 64},
    "fit": {**FIT, "epochs": 4},
    "eval": EVAL,
}
ON_BEAUTY: dict[str, Any] = {
    "data": {},
    "catalog": {"quantizer": {"num_levels": 3, "codebook_size": 256, "balanced": True}, "collision": "greedy"},
    "model": {**ITEMS_BY_CODES, "width": 64, "num_layers": 3, "num_heads": 4, "num_kv_groups": 4, "ff_width": 128,
              "dropout": 0.2, "code_std": 1.0},
    "fit": {**FIT, "epochs": 6, "lr": 2e-3, "betas": [0.9, 0.98], "weight_decay": 0.01},
    "eval": EVAL,
}  # fmt: skip
TRUTH = "true topics"
TRAINED = ("raw", "text", "aligned", "aligned without pictures", TRUTH)  # on these the world's generator is trained
RETRIEVER_CLICKS = 10
MEASURES = ("co-click@10", "recall@10", "recall@50")
BAR = {
    f"{place}: aligned - raw, {measure}": "interval above 0" for place in ("Beauty", "world") for measure in MEASURES
}
ONLINE = {"raw": "raw", "aligned": "aligned", "text and behaviour (the recipe's)": None}  # arm -> vectors of its codes


def vectors_of(view: Any, images: Path, align: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Every contestant's vectors (N, D), and the CPU-minutes that the learned ones were trained."""
    import torch

    from sidera.artifacts import read_manifest
    from sidera.catalog.config import CatalogConfig, ContrastiveConfig
    from sidera.catalog.content import fuse, item_texts, tfidf_vectors
    from sidera.catalog.contrastive import aligned_vectors
    from sidera.catalog.cooccurrence import behaviour_vectors
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
    minutes: dict[str, float] = {}
    for name, inputs in (("aligned", INPUTS["inputs"]), ("aligned without pictures", NO_PICTURES)):
        pictured = str(images) if inputs is not NO_PICTURES else None
        section = ContrastiveConfig(**{**INPUTS, **align, "inputs": inputs, "image_folder": pictured})
        config, place = CatalogConfig(vectors=("aligned",), contrastive=section), folder / f"encoder-{len(inputs)}"
        found[name] = aligned_vectors(view.dataset, view.split, config, place)[0]
        minutes[name] = read_manifest(place, "item_encoder").info["report"]["cpu_minutes"]
    return found, minutes


def true_topics(world: Any, item_keys: Any) -> Any:
    """(N, topics + sub-topics) what the world mixes an item from: weights of its topics, and its sub-topic."""
    import torch

    items, config = world.items, world.config
    ids = np.array([int(key[1:]) for key in item_keys])  # "v0000012" is item 12
    topics = np.zeros((len(ids), config.num_topics), dtype=np.float32)
    np.add.at(topics, (np.arange(len(ids)), items.topic[ids]), items.main_weight[ids])
    np.add.at(topics, (np.arange(len(ids)), items.second_topic[ids]), items.second_weight[ids])
    details = np.zeros((len(ids), config.num_topics * config.num_subtopics), dtype=np.float32)
    details[np.arange(len(ids)), items.subtopic[ids]] = items.main_weight[ids] / 2
    return torch.from_numpy(np.concatenate([topics, details], 1))


def co_clicks(vectors: Any, rows: Any, clicked: np.ndarray, num_neighbours: int = 10) -> np.ndarray:
    """(R,) of the items nearest to each row's target the share that its user clicked: ``clicked`` (U, N) by user."""
    import torch

    unit = torch.nn.functional.normalize(vectors.float(), dim=1)
    nearest = np.empty((len(unit), num_neighbours), dtype=np.int64)
    for ids in torch.arange(len(unit)).split(2048):
        similarity = unit[ids] @ unit.T
        similarity[torch.arange(len(ids)), ids] = -2
        nearest[ids] = similarity.topk(num_neighbours).indices
    numbers = np.unique(rows.user_ids, return_inverse=True)[1]
    return clicked[numbers[:, None], nearest[rows.target_ids]].mean(1)


def clicked_in_window(rows: Any, num_items: int) -> np.ndarray:
    """(U, N) what each user of the rows clicked in them."""
    users, numbers = np.unique(rows.user_ids, return_inverse=True)
    clicked = np.zeros((len(users), num_items), dtype=bool)
    clicked[numbers, rows.target_ids] = True
    return clicked


def clicked_before(rows: Any, dataset: Any) -> np.ndarray:
    """(U, N) what is in the histories of each user of the rows."""
    users, numbers = np.unique(rows.user_ids, return_inverse=True)
    clicked = np.zeros((len(users), dataset.num_items), dtype=bool)
    for number, start, end in zip(numbers, rows.starts, rows.ends, strict=True):
        clicked[number, dataset.item_ids[start:end]] = True
    return clicked


def retriever_hits(vectors: Any, dataset: Any, rows: Any) -> dict[str, np.ndarray]:
    """retrieved@k -> (R,) 1 where the target is among the k items nearest to the mean of the newest clicks."""
    import torch

    unit = torch.nn.functional.normalize(vectors.float(), dim=1)
    targets = torch.from_numpy(rows.target_ids.astype(np.int64))
    ranks = np.empty(len(rows), dtype=np.int64)
    for part in np.array_split(np.arange(len(rows)), 1 + len(rows) // 512):
        histories = [dataset.item_ids[rows.starts[row] : rows.ends[row]].astype(np.int64) for row in part]
        scores = torch.stack([unit[torch.from_numpy(one[-RETRIEVER_CLICKS:])].mean(0) for one in histories]) @ unit.T
        wanted = scores.gather(1, targets[part][:, None])
        places = np.repeat(np.arange(len(part)), [len(one) for one in histories])
        scores[places, np.concatenate(histories)] = -torch.inf
        known = scores.gather(1, targets[part][:, None]).isneginf()[:, 0]  # a target of the history is never found
        ranks[part] = (scores > wanted).sum(1).where(~known, len(unit)).numpy()
    return {f"retrieved@{k}": (ranks < k).astype(np.float64) for k in EVAL["ks"]}


def generator_hits(
    vectors: Any, view: Any, data: Path, out: Path, sections: dict[str, Any]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """recall@k -> (R,) 1 where the target is in the generator's list of k, and (R,) the user of each row."""
    from sidera.catalog.vectors_file import save_vectors
    from sidera.eval.evaluation import Evaluation
    from sidera.train.recipe import Recipe
    from sidera.train.stages import run

    out.mkdir(exist_ok=True, parents=True)
    save_vectors(out / "vectors.safetensors", view.dataset.item_keys, vectors)
    catalog = {**sections["catalog"], "vectors": ["file"], "vectors_file": str(out / "vectors.safetensors")}
    result = run(Recipe.parse({**sections, "catalog": catalog}), data, out / "run", say=lambda _: None)
    assert isinstance(result, Evaluation), "nothing here limits a piece, and the model is a generator"
    hits = {}
    for k in EVAL["ks"]:
        places = result.target_ranks("keep", k).rank  # from 1; 0: not in the list
        hits[f"recall@{k}"] = (places > 0).astype(np.float64)
    return hits, result.user_numbers


def hits_of_seeds(
    result: dict[str, Any],
    vectors: dict[str, Any],
    view: Any,
    data: Path,
    folder: Path,
    sections: dict[str, Any],
    seeds: tuple[int, ...],
) -> None:
    """Adds what :func:`generator_hits` gives for each contestant, as means over the generator's training seeds."""
    found: dict[str, dict[str, list[np.ndarray]]] = {f"recall@{k}": {} for k in EVAL["ks"]}
    for seed in seeds:
        for name, values in vectors.items():
            out = folder / f"generator-{name.replace(' ', '_')}-{seed}"
            hits, result["ranked_users"] = generator_hits(
                values, view, data, out, changed(sections, fit={"seed": seed})
            )
            for measure, one in hits.items():
                found[measure].setdefault(name, []).append(one)
    for measure, by_name in found.items():
        result[measure] = {name: np.mean(hits, axis=0) for name, hits in by_name.items()}
        result[f"{measure} by seed"] = {
            name: [round(float(one.mean()), 5) for one in hits] for name, hits in by_name.items()
        }


def changed(sections: dict[str, Any], **changes: dict[str, Any]) -> dict[str, Any]:
    return {name: {**section, **changes.get(name, {})} for name, section in sections.items()}


def measure_world(seed: int, seeds: tuple[int, ...], quick: bool, folder: Path) -> dict[str, Any]:
    """Rates and hits by contestant, with the user of each row, for one world; hits are means over the generator's
    training ``seeds``; what is in ``folder`` is reused."""
    from sidera.data.config import DataConfig, load_dataset, make_views
    from sidera.sim.config import world_config
    from sidera.sim.simulate import simulate
    from sidera.sim.world import World
    from world_images import cover, write_images

    config = world_config("easy", {"num_items": 900, "num_creators": 60} if quick else {})
    images = folder / "images"
    folder.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    world = World.build(config, seed)
    cover(world, np.arange(world.items.num_items))
    speed = world.items.num_items / (time.process_time() - start)
    data = folder / "data" if quick else world_log("easy", seed, USERS, DAYS)
    if quick and not data.exists():
        simulate(config, 800, 6, data, seed=seed)
    if not images.exists():
        write_images(world, images)
    view = make_views(load_dataset(data, DataConfig(**DATA)), DataConfig(**DATA))[1]
    vectors, minutes = vectors_of(view, images, {"batch_size": 128, "steps": 30} if quick else {}, folder)
    vectors[TRUTH] = true_topics(world, view.dataset.item_keys)
    result = untrained_measures(view, vectors, clicked_in_window(view.split.test, view.dataset.num_items))
    sections = changed(IN_WORLD, fit={"epochs": 1}, eval={"max_rows": 300}) if quick else IN_WORLD
    trained = {name: vectors[name] for name in (("raw", "aligned") if quick else TRAINED)}
    hits_of_seeds(result, trained, view, data, folder, sections, seeds)
    if not quick:
        result["online"] = online_differences(vectors, view.dataset.item_keys, data, seed, folder)
    return result | {"seed": seed, "align_cpu_minutes": minutes, "covers_per_second": round(speed)}


def online_differences(
    vectors: dict[str, Any], item_keys: Any, data: Path, seed: int, folder: Path
) -> dict[str, dict[str, list[float]]]:
    """arm -> metric -> difference to codes of raw vectors in the online test, and half of its interval (both in %)."""
    from sidera.catalog.vectors_file import save_vectors
    from sidera.engine.recommender import Recommender
    from sidera.lab.online import RecommenderPolicy

    opened: dict[str, Any] = {}
    for label, of in ONLINE.items():
        overrides: tuple[str, ...] = ()
        if of is not None:
            file = folder / f"vectors-{of}.safetensors"
            save_vectors(file, item_keys, vectors[of])
            overrides = ('catalog.vectors=["file"]', f'catalog.vectors_file="{file}"')
        run = train_arm(f"onerec_v2, codes of {of or 'the recipe'}", Arm("world/onerec_v2.toml", overrides), data, seed)
        opened[label] = Recommender.load(run)
    policies = {label: lambda world, one=one: RecommenderPolicy(one, world) for label, one in opened.items()}
    return differences(online("easy", seed, policies), "raw")


def measure_beauty(seeds: tuple[int, ...], quick: bool, folder: Path) -> dict[str, Any]:
    """As :func:`measure_world`."""
    from sidera.artifacts import read_manifest
    from sidera.catalog.config import CatalogConfig, ContrastiveConfig
    from sidera.catalog.content import item_texts, text_vectors, tfidf_vectors
    from sidera.catalog.contrastive import aligned_vectors
    from sidera.data.config import DataConfig, load_dataset, make_views

    if not BEAUTY.is_dir():
        raise SystemExit(f"{BEAUTY} is absent: this claim needs the public data folder beside the checkout")
    view = make_views(load_dataset(BEAUTY, DataConfig()), DataConfig())[1]
    folder.mkdir(parents=True, exist_ok=True)
    texts = item_texts(view.dataset.items)
    hurried: dict[str, Any] = {"inputs": ("words", "categories"), "steps": 30, "batch_size": 128, "caption_weight": 0.0}
    section = ContrastiveConfig(**{**BEAUTY_ALIGN, **(hurried if quick else {})})
    config = CatalogConfig(vectors=("aligned",), contrastive=section)
    vectors = {
        "raw": tfidf_vectors(texts, 128) if quick else text_vectors(texts),
        "aligned": aligned_vectors(view.dataset, view.split, config, folder / "encoder")[0],
    }
    minutes = {"aligned": read_manifest(folder / "encoder", "item_encoder").info["report"]["cpu_minutes"]}
    result = untrained_measures(view, vectors, clicked_before(view.split.test, view.dataset))
    few: dict[str, Any] = {
        "catalog": {"quantizer": {"balanced": False, "codebook_size": 64}},
        "fit": {"max_steps": 30},
        "eval": {"max_rows": 300},
    }
    hits_of_seeds(result, vectors, view, BEAUTY, folder, changed(ON_BEAUTY, **(few if quick else {})), seeds)
    return result | {"seed": None, "align_cpu_minutes": minutes, "covers_per_second": None}


def untrained_measures(view: Any, vectors: dict[str, Any], clicked: np.ndarray) -> dict[str, Any]:
    """co-click@10 and retrieved@k of every contestant, by row of the test."""
    rows = view.split.test
    result: dict[str, Any] = {"clicks": view.dataset.num_events, "rows": len(rows), "users": rows.user_ids}
    result["co-click@10"] = {name: co_clicks(values, rows, clicked) for name, values in vectors.items()}
    for name, values in vectors.items():
        for measure, hits in retriever_hits(values, view.dataset, rows).items():
            result.setdefault(measure, {})[name] = hits
    result["dims"] = {name: values.shape[1] for name, values in vectors.items()}
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


def all_of(places: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Means, paired tests and what else there is to know of some worlds, or of Beauty."""
    measures = (*MEASURES, "retrieved@10", "retrieved@50")
    means = {
        measure: {
            name: round(float(np.mean([place[measure][name].mean() for place in places])), 5)
            for name in places[0][measure]
        }
        for measure in measures
    }
    pairs = (("aligned", "raw"), ("aligned", "aligned without pictures"), ("aligned", "text"), (TRUTH, "raw"))
    tests = {
        f"{first} - {second}, {measure}": paired(places, measure, first, second)
        for measure in measures
        for first, second in pairs
        if {first, second} <= places[0][measure].keys()
    }
    known = ("seed", "online", "clicks", "rows", "dims", "align_cpu_minutes", "covers_per_second")
    seeds = ("recall@10 by seed", "recall@50 by seed")
    return means, tests, [{name: place[name] for name in (*known, *seeds) if name in place} for place in places]


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__)
    single_thread()
    runs, count = RUNS / ("quick" if options.quick else "full"), 1 if options.quick else None
    seeds = TRAINING_SEEDS[:count]
    beauty = measure_beauty(seeds, options.quick, runs / "beauty")
    worlds = [measure_world(seed, seeds, options.quick, runs / str(seed)) for seed in WORLD_SEEDS[:count]]
    value: dict[str, Any] = {}
    details: dict[str, Any] = {}
    context: dict[str, Any] = {
        "world": "easy", "world_seeds": list(WORLD_SEEDS[:count]), "training_seeds": list(seeds),
    }  # fmt: skip
    for place, measured in (("Beauty", [beauty]), ("world", worlds)):
        means, tests, known = all_of(measured)
        for name, test in tests.items():
            if name.startswith("aligned - raw") and "retrieved" not in name:
                value[f"{place}: {name}"] = [test[part] for part in ("difference", "low", "high")]
        context[f"means, {place}"] = means
        details[place] = {"tests": tests, "of": known}
    passed = all(value[name][1] > 0 for name in BAR)
    details["settings"] = {
        "align": {"Beauty": BEAUTY_ALIGN, "world": INPUTS}, "generator": {"Beauty": ON_BEAUTY, "world": IN_WORLD}
    }  # fmt: skip
    finish("aligned_vectors", value, BAR, passed, context, quick=options.quick, details=details)


if __name__ == "__main__":
    main()
