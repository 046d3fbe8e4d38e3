"""What every recipe does in twenty steps: its losses, its first answers, what its batches say.

    python tests/golden/golden_runs.py                     compare with the committed file
    python tests/golden/golden_runs.py --write             record anew (``make golden``), and print what changed
    python tests/golden/golden_runs.py --out FILE          record elsewhere
    python tests/golden/golden_runs.py --against FILE      compare with that recording, to 1e-6

A change of structure must change nothing here. On one machine two commits agree to 1e-6 (record at the parent with
``--out``, compare at the change with ``--against``); the committed file holds across processors to 1e-3. A change that
alters a golden run on purpose says so in its commit.

A run is a recipe cut to a tiny log: narrow layers, no dropout, one thread, float32, and semantic IDs written down
instead of clustered, because a clustering may fall either way on another processor. What batches *say* is digested
(item keys, times, feedback, targets of each row), not how they are laid out.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidera.batch import Batch
from sidera.catalog.catalog import Catalog, codebook_identity
from sidera.catalog.rq_kmeans import RQKMeans
from sidera.config import load_recipe
from sidera.data.config import View, load_dataset, make_views
from sidera.data.dataset import Dataset
from sidera.data.split import item_popularity
from sidera.data.tiny import tiny_log
from sidera.engine.ranking import Ranking
from sidera.engine.recommender import Recommender
from sidera.eval.ranker_evaluation import judged, part_batches
from sidera.fit.loop import fit
from sidera.models import MODELS, RANKING, build_model, fit_once, role_of
from sidera.sim.config import world_config
from sidera.sim.simulate import simulate
from sidera.train.recipe import Recipe
from sidera.train.stages import Prepared, batch_source

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = Path(__file__).with_name("golden.json")
STEPS, ACROSS_PROCESSORS, ON_ONE_MACHINE = 20, 1e-3, 1e-6
NOT_RUNS = {"world/align", "world/scaling"}  # they train what other recipes here train
NOT_RUNS |= {"any/als", "any/bpr"}  # an optional library trains them, with random numbers of its own
SMALLER = {  # a model's keys, and the most they may be here
    "width": 32, "num_layers": 2, "encoder_layers": 1, "decoder_layers": 2, "ff_width": 64,
    "head_width": 16, "max_history": 12, "short_term": 6, "positive_length": 8, "num_lifelong_queries": 2,
    "num_negatives": 32, "expert_width": 32, "num_experts": 3, "neighbours": 20, "dropout": 0.0,
}  # fmt: skip
FIT = {"batch_size": 16, "max_steps": STEPS, "epochs": 50, "warmup_steps": 5, "precision": "f32", "num_threads": 1,
       "log_every": 1, "eval_every_epochs": 0, "eval_every_steps": 0, "min_steps": 0, "peak_tflops": 1.0}  # fmt: skip


def recipes() -> list[str]:
    """Names below ``recipes/``, such as ``any/generator``."""
    files = sorted((ROOT / "recipes").rglob("*.toml"))
    names = [str(file.relative_to(ROOT / "recipes").with_suffix("")).replace("\\", "/") for file in files]
    return [name for name in names if name not in NOT_RUNS]


def golden_run(name: str) -> dict[str, Any]:
    """{"losses": [...], "answers": [[[key, score], ...], ...], "batches": hex digest} of one recipe."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        recipe = small_recipe(name)
        prepared = prepared_log(recipe, feedback=name.startswith("world/") or recipe.data.positive not in ("", "auto"))
        catalog = written_catalog(prepared, recipe)
        return _run(recipe, prepared, catalog)
    finally:
        torch.set_num_threads(threads)


def _run(recipe: Recipe, prepared: Prepared, catalog: Catalog) -> dict[str, Any]:
    model = build_model(recipe.model_name, recipe.model_config, catalog, seed=0)
    if role_of(recipe.model_name) in RANKING:
        trained: Any = Ranking(model, catalog, recipe.model_section)
    else:
        trained = Recommender(model, catalog, model_section=recipe.model_section, beam=16)
    source = batch_source(recipe, prepared, model, trained.read_log(prepared.dataset))
    losses: list[float] = []
    said = hashlib.sha256()
    fit_once(model, prepared.view)
    if source is not None:
        for batch in islice(source.batches(epoch=0), 3):
            for row in rows_said(batch, catalog):
                said.update(json.dumps(row, sort_keys=True).encode())

        def keep(line: Any) -> None:
            if line["event"] == "train":
                losses.append(line["loss"])

        with tempfile.TemporaryDirectory() as folder:
            fit(model, source, recipe.fit, folder, on_progress=keep)
    model.eval()
    return {
        "losses": [round(loss, 8) for loss in losses],
        "answers": orders(trained, prepared) if isinstance(trained, Ranking) else lists(trained, prepared.dataset),
        "batches": said.hexdigest()[:16],
    }


def lists(recommender: Recommender, dataset: Dataset) -> list[list[list[Any]]]:
    """What nobody and the users with the longest histories are recommended: [[key, score], ...] for each."""
    longest = np.argsort(-np.diff(dataset.offsets), kind="stable")[:4]
    histories = [
        [str(dataset.item_keys[item]) for item in dataset.item_ids[dataset.offsets[user] : dataset.offsets[user + 1]]]
        for user in longest
    ]
    return [
        [[key, round(float(score), 8)] for key, score in zip(answer.item_keys, answer.scores, strict=True)]
        for answer in recommender.recommend([[], *histories], k=5)
    ]


def orders(ranking: Ranking, prepared: Prepared) -> list[list[list[Any]]]:
    """What validation requests showed, as the network ranks it: [[task and place, score], ...] for each exposure."""
    found = judged(ranking, part_batches(ranking, prepared.view, "valid", 64, None, 0))
    return [
        [[f"{task} {place}", round(float(score), 8)] for task, score in zip(found.tasks, scores, strict=True)]
        for place, scores in enumerate(found.predicted[:12])
    ]


def small_recipe(name: str) -> Recipe:
    sections = load_recipe(ROOT / "recipes" / f"{name}.toml")
    model = sections["model"]
    fields = {field.name: field for field in dataclasses.fields(MODELS[model["name"]].Config)}
    for key, most in SMALLER.items():
        if key in fields:
            given = model.get(key, fields[key].default)
            if given is not None:
                model[key] = min(given, most)
    if "item" in model:  # a list reward's own ranker
        model["item"] |= {"max_history": 12, "dropout": 0.0}
    sections["fit"] |= FIT
    sections["fit"].pop("max_minutes", None)
    return Recipe.parse(sections)


@cache
def _log(feedback: bool) -> Dataset:
    if not feedback:
        return tiny_log(num_users=120, num_items=60)
    with tempfile.TemporaryDirectory() as folder:
        config = world_config("easy", {"num_items": 200, "num_creators": 20})
        simulate(config, 60, 3, Path(folder) / "log", 0)
        return load_dataset(Path(folder) / "log", small_recipe("world/onerec_v2").data)


def prepared_log(recipe: Recipe, feedback: bool) -> Prepared:
    everything, positives = make_views(_log(feedback), recipe.data)
    view: View = everything if recipe.model_config.reads.feedback else positives
    return Prepared(view.dataset, view.split, view.schema, positives)


def written_catalog(prepared: Prepared, recipe: Recipe) -> Catalog:
    """Codes by arithmetic: item i of N on L levels of 8 codes, shuffled once; the code vectors are drawn by numpy."""
    dataset = prepared.dataset
    num_items, size, num_levels = dataset.num_items, 8, max(2, recipe.catalog.quantizer.get("num_levels", 3))
    while size**num_levels < num_items:
        num_levels += 1
    rng = np.random.default_rng(0)
    flat = rng.permutation(size**num_levels)[:num_items]
    codes = np.stack(np.unravel_index(flat, (size,) * num_levels), axis=1).astype(np.int32)
    drawn = rng.standard_normal((num_levels, size, 16)).astype(np.float32)
    codebooks = RQKMeans(tuple(torch.from_numpy(level) for level in drawn))
    categories = tuple(each for each in prepared.schema.features if each.kind == "category")
    schema = dataclasses.replace(prepared.schema, features=categories)
    titles = dataset.items["title"].to_pylist() if "title" in dataset.items.column_names else [None] * num_items
    return Catalog(
        item_keys=dataset.item_keys.astype(str),
        codes=codes,
        level_sizes=(size,) * num_levels,
        quantizer=codebooks,
        collision="greedy",
        codebook_id=codebook_identity("golden", codebooks, "greedy", codes),
        items_version=1,
        removed=np.zeros(num_items, bool),
        popularity=item_popularity(prepared.positives.dataset, prepared.positives.split),
        titles=titles,
        schema=schema,
        features=schema.of_items(dataset.items),
    )


def rows_said(batch: Batch, catalog: Catalog) -> Iterator[dict[str, Any]]:
    """A batch in words: for each history its item keys, times and feedback, and what should follow."""
    keys, events, targets = catalog.item_keys, batch.events, batch.targets
    as_of = batch.requests.as_of
    for row, (start, end) in enumerate(pairwise(events.offsets.tolist())):
        said: dict[str, Any] = {"items": [str(keys[item]) for item in batch.item_ids[start:end].tolist()]}
        if events.times is not None:
            said["times"] = events.times[start:end].tolist()
        if as_of is not None:
            said["as_of"] = as_of[row].item()
        if events.feedback:
            said["feedback"] = {name: _numbers(values[start:end]) for name, values in sorted(events.feedback.items())}
        if targets is not None:
            first, last = targets.offsets[row : row + 2].tolist()
            said["targets"] = [str(keys[item]) for item in batch.target_ids[first:last].tolist()]
        yield said


def _numbers(values: torch.Tensor) -> list[float | None]:
    return [None if value != value else round(float(value), 4) for value in values.tolist()]


def differences(recorded: dict[str, Any], found: dict[str, Any], bound: float) -> list[str]:
    """What is not the same, in words; scores and losses may differ by ``bound`` of their size (or of 1)."""
    told = []
    if recorded["batches"] != found["batches"]:
        told.append("the batches say something else")
    if len(recorded["losses"]) != len(found["losses"]):
        told.append(f"{len(found['losses'])} steps instead of {len(recorded['losses'])}")
    for step, (old, new) in enumerate(zip(recorded["losses"], found["losses"], strict=False)):
        if abs(old - new) > bound * max(1, abs(old)):
            told.append(f"the loss of step {step + 1} is {new} instead of {old}")
            break
    for place, (old_list, new_list) in enumerate(zip(recorded["answers"], found["answers"], strict=True)):
        told += _answer_differences(place, old_list, new_list, bound)
    return told


def _answer_differences(place: int, old: list[Any], new: list[Any], bound: float) -> list[str]:
    """Scores are compared by rank, keys as sets of those clearly above the last score: near ties may change places."""
    if len(old) != len(new):
        return [f"answer {place} has {len(new)} items instead of {len(old)}"]
    for rank, ((_, old_score), (_, new_score)) in enumerate(zip(old, new, strict=True)):
        if abs(old_score - new_score) > bound * max(1, abs(old_score)):
            return [f"answer {place}, rank {rank + 1}: score {new_score} instead of {old_score}"]
    if not old:
        return []
    clear = old[-1][1] + 4 * bound * max(1, abs(old[-1][1]))
    missing = {key for key, score in old if score > clear} - {key for key, _ in new}
    return [f"answer {place} lacks {', '.join(sorted(missing))}"] if missing else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="recipes such as any/generator (else all)")
    parser.add_argument("--write", action="store_true", help="record into the committed file")
    parser.add_argument("--out", type=Path, help="record into this file")
    parser.add_argument("--against", type=Path, help="compare with this recording of the same machine, to 1e-6")
    options = parser.parse_args()
    against = options.against or COMMITTED
    recorded = json.loads(against.read_text(encoding="utf-8")) if against.is_file() else {}
    bound = ON_ONE_MACHINE if options.against else ACROSS_PROCESSORS
    found, changed = {}, 0
    for name in options.names or recipes():
        found[name] = golden_run(name)
        told = differences(recorded[name], found[name], bound) if name in recorded else ["not recorded yet"]
        changed += bool(told)
        print(f"{name}: {'; '.join(told) or 'the same'}", flush=True)
    out = COMMITTED if options.write else options.out
    if out is not None:
        kept = {name: run for name, run in recorded.items() if name in recipes()} if options.names else {}
        text = json.dumps({**kept, **found}, indent=0, sort_keys=True)
        out.write_text(text + "\n", encoding="utf-8")
        return 0
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
