"""Run folders for the benchmarks of serving, made in seconds: latency needs a recipe's shapes and no trained weights.

    python benchmarks/servers.py NAME FOLDER

writes ``FOLDER/run`` (``sidera serve`` opens it) and ``FOLDER/data`` (the log whose users ask). A process of each tree
that is compared makes its own, with its own code, from the same seed.

`demo_onerec_v2` is trained for a few steps on a simulated log. The others are recipes of Beauty with fresh, sharpened
weights over a catalogue of drawn semantic IDs. `million` is Beauty's generator over a million items, 1,024 clusters.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

SEED = 0
USERS, HISTORY = 2000, 30  # of a drawn log: each user has 1 to 2 x HISTORY - 1 events
WORLD = {"num_items": 1000, "num_creators": 100}  # the demo's
WORLD_USERS, WORLD_DAYS = 600, 5


@dataclass(frozen=True)
class Shape:
    """A recipe over drawn codes."""

    recipe: str
    num_items: int
    level_sizes: tuple[int, ...]  # (): the model scores items


SHAPES = {
    "generator": Shape("beauty/generator", 12_000, (110, 110)),  # sqrt(N) clusters, as the recipe chooses them
    "million": Shape("beauty/generator", 1_000_000, (1024, 1024)),
    "tiger": Shape("beauty/tiger", 12_000, (256, 256, 256, 8)),
    "sasrec": Shape("beauty/sasrec", 12_000, ()),
    "tiny": Shape("beauty/sasrec", 200, ()),
}
NAMES = ("demo_onerec_v2", *SHAPES)


def make(name: str, folder: Path) -> None:
    """Write ``run`` and ``data`` below ``folder``, unless they are there."""
    if (folder / "run" / "recipe.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if name in SHAPES:
        draw(SHAPES[name], folder)
    else:
        train_demo(folder)


def train_demo(folder: Path) -> None:
    from sidera.sim.config import world_config
    from sidera.sim.simulate import simulate

    simulate(world_config("easy", WORLD), WORLD_USERS, WORLD_DAYS, folder / "data", SEED)
    words = ["train", "demo/onerec_v2", "--data", folder / "data", "--out", folder / "run", "-q", "--threads", 1]
    words += ["--set", "fit.max_steps=10", "--set", "fit.warmup_steps=1"]
    subprocess.run([sys.executable, "-m", "sidera", *map(str, words)], check=True)


def draw(shape: Shape, folder: Path) -> None:
    """A catalogue of distinct drawn codes, the recipe's model over it, and a log of drawn events."""
    import numpy as np
    import torch

    from sidera.catalog.catalog import Catalog, codebook_identity
    from sidera.catalog.rq_kmeans import RQKMeans
    from sidera.engine.recommender import Recommender
    from sidera.models import build_model
    from sidera.train.recipe import Recipe

    rng, recipe = np.random.default_rng(SEED), Recipe.read(shape.recipe)
    sizes, number = shape.level_sizes, shape.num_items
    popularity = np.sort(rng.zipf(1.3, number).clip(max=10_000))[::-1].astype(np.int64)
    codes = np.empty((number, 0), np.int32)
    quantizer, identity = None, "none"
    if sizes:
        flat = rng.permutation(int(np.prod(sizes)))[:number]
        codes = np.stack(np.unravel_index(flat, sizes), axis=1).astype(np.int32)
        codebooks = [torch.from_numpy(rng.standard_normal((size, 16)).astype(np.float32)) for size in sizes]
        quantizer = RQKMeans(tuple(codebooks))
        identity = codebook_identity("benchmark", quantizer, "greedy", codes)
    keys = [f"item{item:07d}" for item in range(number)]
    columns: dict[str, Any] = {"item_keys": np.array(keys), "titles": [f"Item {item}" for item in range(number)]}
    columns |= {"codes": codes, "popularity": popularity, "removed": np.zeros(number, bool)}
    collision = "greedy" if sizes else "none"
    catalog = Catalog(
        **columns, level_sizes=sizes, quantizer=quantizer, collision=collision, codebook_id=identity, items_version=1
    )
    model = build_model(recipe.model_name, recipe.model_config, catalog, seed=SEED)
    sharpen(model)
    catalog.save(folder / "run" / "catalog")
    section = recipe.model_section
    recommender = Recommender(model, catalog, model_section=section)
    recommender.save_model(folder / "run" / "model", digest=f"{recipe.model_name}-benchmark", parents={})
    write_log(keys, popularity, folder / "data")
    recipe.save(folder / "run")


def sharpen(model: Any) -> None:
    """Fresh weights score all codes nearly alike; a search among ties says nothing of one among likely codes."""
    import torch

    torch.manual_seed(SEED)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.mul_(2.0)
            elif "norm" in name:
                weight.uniform_(0.5, 1.5)


def write_log(keys: list[str], popularity: Any, path: Path) -> None:
    """Users who chose popular items more often."""
    import numpy as np
    import pyarrow as pa

    from sidera.data.schema import build_dataset

    rng = np.random.default_rng(SEED + 1)
    lengths = rng.integers(1, 2 * HISTORY, USERS)
    chosen = rng.choice(len(keys), int(lengths.sum()), p=popularity / popularity.sum())
    users = np.repeat([f"user{user}" for user in range(USERS)], lengths)
    times = 1_600_000_000 + 60 * np.arange(len(users))
    items = pa.array([keys[item] for item in chosen])
    build_dataset("drawn", pa.table({"user": users, "item": items, "time": times})).save(path)


# --- servers of these runs, from any tree ---------------------------------------------------------------------------


def environment(tree: Path) -> dict[str, str]:
    """Of a process that runs the code of a tree."""
    return {**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def served(name: str, folder: Path, tree: Path = ROOT, *, log: bool = True) -> Iterator[Any]:
    """A server of one run, made where it is missing below ``folder``. With ``log`` its store holds the users of the
    log, and the exposure log is on."""
    from sidera.traffic.server import serving

    script = Path(__file__).resolve()
    subprocess.run([sys.executable, str(script), name, str(folder)], check=True, env=environment(tree))
    flags = ["--store", folder / "store", "--exposures", folder / "exposures", "--fill", folder / "data"] if log else []
    with serving(folder / "run", [str(flag) for flag in flags], environment=environment(tree)) as server:
        yield server


def users_of(folder: Path, **asked: Any) -> Any:
    """Requests that name the users of the run's log: call(address) -> prepared requests."""
    from sidera.traffic.requests import Asked, histories_of, questions

    histories = histories_of(folder / "data")
    ask = Asked(ask="user", fields={"filter_seen": False}, **asked)
    return lambda address: questions(address, histories, ask, SEED)


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
