"""A log in which declared features, and nothing else, say what happens.

Items are red or blue, two of each in every request. Which colour is clicked depends on the user's region and on the
side of the request together. A label of each other feature says whether its value is high: of the target item, of the
user, of the request, or of the newest event of the history. Each user has two requests, and in the first one no label
of a user is true, so that no history gives these away.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sidera.data.schema import build_dataset

NUM_ITEMS, NUM_USERS, NUM_REQUESTS, SHOWN = 64, 960, 2, 4
ITEM = {"colour": "category", "tags": "categories", "price": "number", "look": "vector"}
USER = {"region": "category", "hobbies": "categories", "age": "number", "face": "vector"}
REQUEST = {"side": "category", "hour": "number"}
EVENT = {"mood": "category", "effort": "number"}
OWNED: dict[str, dict[str, str]] = {"item": ITEM, "user": USER, "request": REQUEST, "event": EVENT}
FEATURES = {
    name: {"kind": kind, "owner": owner} for owner, kinds in OWNED.items() for name, kind in kinds.items()
}  # a recipe's [data.features]
WORDS = {"colour": ("blue", "red"), "region": ("south", "north"), "side": (0, 7), "mood": (0, 1)}


def value(kind: str, name: str, high: bool, rng: np.random.Generator) -> Any:
    """One that says high or low."""
    if kind == "category":
        return WORDS[name][int(high)]
    if kind == "categories":
        return ["common", f"{name}-{'high' if high else 'low'}"]
    number = float((60 if high else 20) + rng.integers(0, 20))
    return [0.5, number] if kind == "vector" else number


def columns(kinds: dict[str, str], highs: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, list[Any]]:
    return {name: [value(kind, name, bool(high), rng) for high in highs[name]] for name, kind in kinds.items()}


def planted(seed: int = 0) -> Any:
    """The log as a Dataset."""
    rng = np.random.default_rng(seed)

    def bits(kinds: dict[str, str], count: int) -> dict[str, np.ndarray]:
        return {name: rng.integers(0, 2, count).astype(bool) for name in kinds}

    requests, events = NUM_USERS * NUM_REQUESTS, NUM_USERS * NUM_REQUESTS * SHOWN
    of_items, of_users, of_requests, of_events = (
        bits(kinds, count)
        for kinds, count in ((ITEM, NUM_ITEMS), (USER, NUM_USERS), (REQUEST, requests), (EVENT, events))
    )
    of_items["colour"] = np.arange(NUM_ITEMS) % 2 == 1
    shown = np.stack(
        [2 * rng.permutation(NUM_ITEMS // 2)[:SHOWN] + np.arange(SHOWN) % 2 for _ in range(requests)]
    ).ravel()
    user = np.repeat(np.arange(NUM_USERS), NUM_REQUESTS * SHOWN)
    request = np.repeat(np.arange(requests), SHOWN)
    before = np.maximum(request * SHOWN - 1, 0)  # the newest event before the request
    second = request % NUM_REQUESTS == 1
    chosen = of_users["region"][user] ^ of_requests["side"][request]
    labels = {"click": of_items["colour"][shown] == chosen}
    labels |= {f"is_{name}": of_items[name][shown] for name in ITEM}
    labels |= {f"is_{name}": of_users[name][user] & second for name in USER}
    labels |= {f"is_{name}": of_requests[name][request] for name in REQUEST}
    labels |= {f"is_{name}": of_events[name][before] for name in EVENT}
    log = {
        "user": [f"u{number}" for number in user],
        "item": [f"i{number}" for number in shown],
        "time": 1_700_000_000 + 60 * user + request % NUM_REQUESTS,
        "request": request,
        **labels,
        **{name: np.repeat(entries, SHOWN) for name, entries in columns(REQUEST, of_requests, rng).items()},
        **columns(EVENT, of_events, rng),
    }
    names = [f"i{number}" for number in range(NUM_ITEMS)]
    items = {
        "key": names,
        "title": [f"{'red' if number % 2 else 'blue'} thing {number}" for number in range(NUM_ITEMS)],
    }
    users = {"key": [f"u{number}" for number in range(NUM_USERS)], **columns(USER, of_users, rng)}
    tables = (pa.table(log), pa.table(items | columns(ITEM, of_items, rng)), pa.table(users))
    return build_dataset("planted", *tables)


def recipe(model: dict[str, Any], steps: int, lr: float = 1e-2) -> dict[str, Any]:
    return {
        "data": {"positive": "click", "split": "temporal", "features": FEATURES},
        "catalog": {"vectors": ["tfidf"], "quantizer": {"num_levels": 2, "codebook_size": 8}},
        "model": model,
        "fit": {
            "max_steps": steps, "batch_size": 96, "lr": lr, "warmup_steps": 5, "eval_every_epochs": 0, "epochs": 99,
            "weight_decay": 0.0,
        },
        "eval": {"max_rows": 100, "valid_rows": 50, "baselines": [], "beam": 24},
    }  # fmt: skip


PSCORE = {"name": "pscore", "max_history": 12, "width": 16, "hidden": 48, "tower_width": 8, "dropout": 0.0}
ONEREC = {
    "name": "onerec_v2", "max_history": 16, "short_term": 16, "width": 32, "num_layers": 2, "num_heads": 2,
    "num_kv_groups": 2, "ff_width": 64, "dropout": 0.0, "item_input": "sid",
}  # fmt: skip


def written(folder: Path) -> Path:
    planted().save(folder)
    return folder
