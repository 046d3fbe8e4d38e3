"""Claim `new_items`: an item that came after the training is recommended by what it is, 3 times as often as at random.

    python benchmarks/new_items.py [--quick]

A generated shop of 1,000 items and 1,500 users. A tenth of the items, drawn by the seed, is withheld: the training
catalogue and log do not hold them. Vectors are TF-IDF of all items' texts, so that those of new items lie in the same
space. A fifth of the users is asked and never trained on. Trained models get the withheld items by ``with_items`` and
answer every place of an asked user's log where the next item is a withheld one, from all events before it (withheld
ones among them). Counted is Recall@50 among all items, against 50/N of a uniform choice; ± is 1.96 standard errors
over users. The list holds old items too, which the question does not forbid.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness import arguments, finish, single_thread, tuned_allocator

SEED, K, BAR = 0, 50, 3.0
SMALL = {"max_history": 20, "width": 32, "dropout": 0.1}
ONEREC = {**SMALL, "ff_width": 64}
MODELS: dict[str, dict[str, Any]] = {
    "sidera": {**SMALL, "num_layers": 1, "num_heads": 2},
    "sasrec": {**SMALL, "num_layers": 1, "num_heads": 2, "loss": "full"},
    "tiger": {**SMALL, "num_layers": 1, "num_heads": 2, "head_width": 16, "ff_width": 64},
    "onerec_v2": {**ONEREC, "num_layers": 2, "code_std": 1.0},
    "onerec": {**ONEREC, "short_term": 20, "encoder_layers": 1, "decoder_layers": 1, "num_lifelong_queries": 2,
               "lifelong_layers": 1},
    "onerec_v1": {**ONEREC, "num_layers": 1, "num_heads": 2, "code_std": 1.0, "list_beam": 1, "session_gap": 86_400,
                  "min_watched": 1},
}  # fmt: skip


def without(shop: Any, withheld: Any, asked_users: Any) -> Any:
    """The log without the withheld items and the asked users."""
    import numpy as np
    import pyarrow as pa

    from sidera.data.schema import build_dataset

    kept = ~withheld[shop.item_ids] & ~asked_users[shop.event_users]
    users = np.array([f"user{user:04d}" for user in range(shop.num_users)])
    keys = np.asarray(shop.item_keys)
    events = {"user": users[shop.event_users[kept]], "item": keys[shop.item_ids[kept]], "time": shop.times[kept]}
    return build_dataset("known", pa.table(events), shop.items.filter(pa.array(~withheld)))


def trained(name: str, catalog: Any, view: Any, steps: int) -> Any:
    """A recommender whose model took ``steps`` steps of AdamW."""
    import torch

    from sidera.engine.recommender import Recommender
    from sidera.fit.config import FitConfig
    from sidera.models import build_model, parse_model
    from sidera.train.recipe import Recipe
    from sidera.train.stages import Prepared, batch_source

    section = {"name": name, **MODELS[name]}
    parts: dict[str, Any] = {part: {} for part in ("data", "catalog", "fit", "eval")}
    section = Recipe.parse({**parts, "model": section}).model_section
    model: Any = build_model(*parse_model(section), catalog, SEED)
    one = Recommender(model, catalog, model_section=section, beam=K)
    recipe: Any = SimpleNamespace(model_config=model.config, fit=FitConfig(batch_size=64))
    prepared = Prepared(view.dataset, view.split, view.schema, view)
    source: Any = batch_source(recipe, prepared, model, one.read_log(view.dataset))
    torch.manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    step, epoch = 0, 0
    while step < steps:
        for batch in source.batches(epoch=epoch):
            optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, (step + 1) / 30, max(0.05, 1 - step / steps))
            loss = model.loss(batch)
            optimizer.zero_grad()
            (loss.total / loss.count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step == steps:
                break
        epoch += 1
    model.eval()
    return one


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__)
    single_thread()
    import numpy as np

    from sidera.catalog.build import build_catalog
    from sidera.catalog.config import CatalogConfig
    from sidera.catalog.tfidf import reduced_tfidf
    from sidera.catalog.vectors_file import save_vectors
    from sidera.data.config import View
    from sidera.data.features import FeatureSchema
    from sidera.data.split import leave_one_out
    from sidera.data.tiny import tiny_log

    num_users, num_items, steps = (400, 300, 60) if options.quick else (1500, 1000, 500)
    shop = tiny_log(num_users, num_items, SEED)
    rng = np.random.default_rng(SEED)
    number = shop.num_items
    withheld = np.zeros(number, dtype=bool)
    withheld[rng.choice(number, number // 10, replace=False)] = True
    asked_users = rng.random(shop.num_users) < 0.2
    keys, texts = np.asarray(shop.item_keys), [str(text) for text in shop.items["text"].to_pylist()]
    vectors: Any = reduced_tfidf(texts, 64, SEED)
    known = without(shop, withheld, asked_users)
    with tempfile.TemporaryDirectory() as name:
        save_vectors(Path(name) / "item.safetensors", keys, vectors)
        config = CatalogConfig(
            vectors=("file",), vectors_file=str(Path(name) / "item.safetensors"), collision="extra_digit",
            quantizer={"num_levels": 2, "codebook_size": 16},
        )  # fmt: skip
        split = leave_one_out(known)
        catalog, _ = build_catalog(known, split, config)
    view = View(known, split, FeatureSchema())
    late = catalog.with_items(keys[withheld].tolist(), vectors[withheld])
    at = np.flatnonzero(withheld[shop.item_ids] & asked_users[shop.event_users])
    at = at[at > shop.offsets[shop.event_users[at]]]  # something came before
    users, answers = shop.event_users[at], keys[shop.item_ids[at]]
    histories = [keys[shop.item_ids[shop.offsets[user] : end]].tolist() for user, end in zip(users, at, strict=True)]
    chance = K / late.num_items
    value: dict[str, Any] = {}
    details: dict[str, Any] = {}
    for model in MODELS:
        start = time.process_time()
        one = trained(model, catalog, view, steps)
        one.use_catalog(late)
        found = one.recommend(histories, k=K)
        hits = np.array([answer in one.item_keys for answer, one in zip(answers, found, strict=True)], dtype=float)
        recall, count = hits.mean(), np.bincount(users)
        sums = np.bincount(users, hits - recall * np.ones(len(hits)))
        margin = 1.96 * float(np.sqrt((sums[count > 0] ** 2).sum())) / len(hits)
        value[model] = round(float(recall / chance), 2)
        seconds = round(time.process_time() - start, 1)
        details[model] = {"recall@50": round(float(recall), 4), "margin": round(margin, 4), "cpu_seconds": seconds}
        print(
            f"{model:<10} recall@{K} {recall:.4f} ± {margin:.4f}, {value[model]} x chance, {seconds} s",
            flush=True,
        )
    context = {
        "seed": SEED, "users": num_users, "asked_users": len(np.unique(users)), "items": late.num_items,
        "withheld": int(withheld.sum()), "questions": len(at), "steps": steps, "beam": K, "chance": round(chance, 4),
        "unit": "recall@50 on withheld items / (50 / items)", "passed when": "every model reaches the bar",
    }  # fmt: skip
    passed = min(value.values()) >= BAR
    finish("new_items", value, {"times_chance": BAR}, passed, context, quick=options.quick, details=details)


if __name__ == "__main__":
    main()
