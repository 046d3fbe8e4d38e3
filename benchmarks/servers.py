"""Run folders for the benchmarks of serving, made in a minute: latency needs a recipe's shapes and no trained weights.

    python benchmarks/servers.py NAME FOLDER [STEPS]

writes ``FOLDER/run`` (``sidera serve`` opens it) and ``FOLDER/data`` (the log whose users ask). A process of each tree
that is compared makes its own, with its own code, from the same seed.

`demo_RECIPE` is a recipe of the demo, trained for a few steps on a simulated log. `generator`, `tiger` and `sasrec` are
recipes of Beauty, trained on its log for a few steps: catalogue, histories and the generator's transition expert are
those of a whole training, and so is what an answer costs. `million` is Beauty's generator with fresh, sharpened weights
over a million drawn semantic IDs, 1,024 clusters, with an expert that counts a drawn log.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
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
    "million": Shape("beauty/generator", 1_000_000, (1024, 1024)),
    "tiny": Shape("beauty/sasrec", 200, ()),
}
BEAUTY = ROOT.parent / "shared" / "data" / "amazon2014_beauty"
SHORT = {"generator": ("beauty/generator", 60), "tiger": ("beauty/tiger", 5), "sasrec": ("beauty/sasrec", 20)}  # steps


def make(name: str, folder: Path, steps: int = 10) -> None:
    """Write ``run`` and ``data`` below ``folder``, unless they are there. ``steps`` of training; 0: the recipe's."""
    if (folder / "run" / "recipe.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if name in SHAPES:
        draw(SHAPES[name], folder)
    elif name in SHORT:
        if not BEAUTY.is_dir():
            raise SystemExit(f"no log of Amazon Beauty at {BEAUTY}: see docs/use/data.md")
        from sidera.data.config import DataConfig, load_dataset

        load_dataset(BEAUTY, DataConfig()).save(folder / "data")
        train(*SHORT[name], folder)
    else:
        from sidera.sim.config import world_config
        from sidera.sim.simulate import simulate

        simulate(world_config("easy", WORLD), WORLD_USERS, WORLD_DAYS, folder / "data", SEED)
        train(f"demo/{name.removeprefix('demo_')}", steps, folder)


def train(recipe: str, steps: int, folder: Path) -> None:
    """``run`` of ``data``, after so many steps (0: the recipe's)."""
    words = ["train", recipe, "--data", folder / "data", "--out", folder / "run", "-q", "--threads", 1]
    if steps:
        wanted = (f"fit.max_steps={steps}", "fit.warmup_steps=1", "fit.min_steps=0", "fit.teachers=0",
                  "fit.refit=false", "fit.eval_every_epochs=0", "fit.eval_every_steps=0", "fit.patience=0",
                  "expert.max_rows=500", "eval.valid_rows=100")  # fmt: skip
        for one in accepted(recipe, wanted):
            words += ["--set", one]
    subprocess.run([sys.executable, "-m", "sidera", *map(str, words)], check=True)


def accepted(recipe: str, overrides: Sequence[str]) -> list[str]:
    """Those that this tree's recipes have: an older one has fewer keys."""
    from sidera.core import InputError
    from sidera.train.recipe import Recipe

    taken: list[str] = []
    for one in overrides:
        with contextlib.suppress(InputError):
            Recipe.read(recipe, [*taken, one])
            taken.append(one)
    return taken


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
    digest = f"{recipe.model_name}-benchmark"
    recommender.save_model(folder / "run" / "model", digest=digest, parents={})
    item_ids, offsets = write_log(keys, popularity, folder / "data")
    if getattr(recipe, "expert", None) is not None and recipe.expert.enabled:  # another tree may have none
        count(recipe.expert, item_ids, offsets, number).save(
            folder / "run" / "expert", digest=f"{digest}-expert", parents={"model": digest}
        )
    recipe.save(folder / "run")


def count(config: Any, item_ids: Any, offsets: Any, num_items: int) -> Any:
    """A transition expert over the counts of a drawn log; its weights are drawn, as only its cost matters."""
    import torch

    from sidera.engine.expert import FEATURES, Expert
    from sidera.models.retrievers.pair_counts import PairCounts

    counts = PairCounts.of(item_ids, offsets, num_items, config.neighbours)
    edges = torch.tensor([5.0, 20.0])
    weights = torch.rand(len(edges) + 1, 1 + len(FEATURES), generator=torch.Generator().manual_seed(SEED))
    return Expert(config, counts, edges, weights, info={"on": True, "why": "drawn for a benchmark"})


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


def write_log(keys: list[str], popularity: Any, path: Path) -> tuple[Any, Any]:
    """Users who chose popular items more often -> their items, and where each user's begin."""
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
    return chosen, np.concatenate([[0], np.cumsum(lengths)])


# --- servers of these runs, from any tree ---------------------------------------------------------------------------


def environment(tree: Path) -> dict[str, str]:
    """Of a process that runs the code of a tree."""
    return {**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}


def made(name: str, folder: Path, tree: Path = ROOT) -> None:
    """:func:`make` in a process of a tree."""
    script = Path(__file__).resolve()
    subprocess.run([sys.executable, str(script), name, str(folder)], check=True, env=environment(tree))


def exported(run: Path) -> str:
    """`sidera export`, unless it was done for this code -> the names of the programs, or why there are none."""
    from sidera.artifacts import read_manifest
    from sidera.engine.compiling import hardware_tag

    made = run / "compiled"
    if not made.is_dir() or read_manifest(made, "compiled").info["tag"] != hardware_tag():
        words = [sys.executable, "-m", "sidera", "export", str(run)]
        done = subprocess.run(words, env=environment(ROOT), capture_output=True, text=True)
        if done.returncode:
            return f"none: {(done.stderr.strip().splitlines() or ['?'])[-1][:300]}".replace(str(run), "RUN")
    return ", ".join(read_manifest(made, "compiled").info["programs"])


@contextlib.contextmanager
def served(
    name: str, folder: Path, tree: Path = ROOT, *, log: bool = True, flags: Sequence[str] = (), store: str = "store"
) -> Iterator[Any]:
    """A server of one run, made where it is missing below ``folder``. With ``log`` its ``store`` holds the users of the
    log, and the exposure log is on. ``flags``: more of `sidera serve`."""
    from sidera.traffic.server import serving

    made(name, folder, tree)
    words = [*flags]
    if log:
        shown = folder / store.replace("store", "exposures")
        words += ["--store", str(folder / store), "--exposures", str(shown), "--fill", str(folder / "data")]
    with serving(folder / "run", words, environment=environment(tree)) as server:
        if "--workers" in words:
            until_all_answer(server.address, int(words[words.index("--workers") + 1]))
        yield server


def until_all_answer(address: Any, number: int) -> None:
    """The first worker answers before the others start."""
    stop = time.monotonic() + 120
    while time.monotonic() < stop:
        with urllib.request.urlopen(f"http://{address.host}:{address.port}/metrics", timeout=30) as answer:
            if f'worker="{number - 1}"' in answer.read().decode():
                return
        time.sleep(0.5)
    raise SystemExit(f"{number} workers did not come up in two minutes")


def users_of(folder: Path, **asked: Any) -> Any:
    """Requests that name the users of the run's log: call(address) -> prepared requests."""
    from sidera.traffic.requests import Asked, histories_of, questions

    histories = histories_of(folder / "data")
    wanted = Asked(ask="user", fields={"filter_seen": False}, **asked)
    return lambda address: questions(address, histories, wanted, SEED)


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
