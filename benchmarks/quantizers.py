"""Claims `quantizers`: residual k-means against faiss, its size, and how RQ-VAE compares with it on real vectors.

    python benchmarks/quantizers.py [--quick]

* **Against faiss**, in one run on one thread: 200,000 points of 64 numbers, 3 levels of 256 codes, 25 iterations; faiss
  clusters every level's residuals with `faiss.Kmeans`, all points counted. Compared are CPU time, squared error and the
  share of items that are not the first of their semantic ID.
* **At size**: a million points, 3 levels of 4,096 codes: minutes and peak memory of a process of its own, all cores.
* **The published ordering** (OneRec technical report, 2506.13695: RQ-k-means rebuilds better, uses more codes, and its
  codes have more entropy than those of RQ-VAE): 3 seeds of both on the vectors of Amazon Beauty (TF-IDF and behaviour),
  3 levels of 256 codes. Every other quantizer stands beside them, with one seed.

`--quick`: 100,000 points, no million, RQ-VAE with 150 steps and one seed on 3,000 items.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness import arguments, finish, single_thread, tuned_allocator

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
DIM, LEVELS, CODES, ITERATIONS = 64, 3, 256, 25
TIME_BAR, ERROR_BAR, MINUTES, GIB = 1.2, 1.005, 15.0, 6.0
CHILD = "--million"


def points(num_points: int) -> Any:
    """(N, 64) float32: 2,000 groups, numbers of falling variance, as item vectors are."""
    import numpy as np

    rng = np.random.default_rng(0)
    scale = 1 / np.arange(1, DIM + 1) ** 0.4
    centres = rng.standard_normal((2000, DIM), dtype=np.float32) * scale
    noise = rng.standard_normal((num_points, DIM), dtype=np.float32) * scale
    return (centres[rng.integers(0, 2000, num_points)] + 0.6 * noise).astype(np.float32)


def colliding(codes: Any) -> float:
    """Share of items that are not the first of their codes (N, L)."""
    import numpy as np

    return 1 - len(np.unique(codes, axis=0)) / len(codes)


def by_faiss(vectors: Any) -> tuple[Any, float]:
    """Codes and squared error."""
    import faiss
    import numpy as np

    faiss.omp_set_num_threads(1)
    residual, codes = vectors.copy(), []
    for level in range(LEVELS):
        settings = {"niter": ITERATIONS, "seed": level + 1, "max_points_per_centroid": len(vectors)}
        clustering = faiss.Kmeans(DIM, CODES, **settings)
        clustering.train(residual)
        code = clustering.index.search(residual, 1)[1][:, 0]
        codes.append(code)
        residual = residual - np.asarray(clustering.centroids)[code]
    return np.stack(codes, axis=1), float((residual.astype(np.float64) ** 2).sum())


def by_sidera(vectors: Any) -> tuple[Any, float]:
    import torch

    from sidera.catalog.rq_kmeans import fit_rq_kmeans

    points = torch.from_numpy(vectors)
    quantizer, codes = fit_rq_kmeans(points, LEVELS, CODES, iterations=ITERATIONS)
    return codes.numpy(), float((points - quantizer.decode(codes)).square().sum(dtype=torch.float64))


def against_faiss(num_points: int, rounds: int) -> dict[str, Any]:
    """Rounds of both, one after the other."""
    import statistics

    vectors = points(num_points)
    seconds: dict[str, list[float]] = {"faiss": [], "sidera": []}
    found: dict[str, tuple[Any, float]] = {}
    for _ in range(rounds):
        for name, fit in (("faiss", by_faiss), ("sidera", by_sidera)):
            begun = time.process_time()
            found[name] = fit(vectors)
            seconds[name].append(time.process_time() - begun)
    ratios = [ours / theirs for ours, theirs in zip(seconds["sidera"], seconds["faiss"], strict=True)]
    return {
        "points": num_points,
        "time / faiss": round(statistics.median(ratios), 3),
        "error / faiss": round(found["sidera"][1] / found["faiss"][1], 4),
        "collisions": {name: round(colliding(codes), 5) for name, (codes, _) in found.items()},
        "cpu_seconds": {name: [round(one, 2) for one in times] for name, times in seconds.items()},
    }


def million() -> None:
    """In a process of its own: prints seconds and peak memory."""
    import torch

    from sidera.catalog.rq_kmeans import fit_rq_kmeans

    vectors = torch.from_numpy(points(1_000_000))
    begun = time.perf_counter(), time.process_time()
    quantizer, codes = fit_rq_kmeans(vectors, LEVELS, 4096, iterations=ITERATIONS)
    passed = time.perf_counter() - begun[0], time.process_time() - begun[1]
    error = float((vectors - quantizer.decode(codes)).square().sum() / vectors.square().sum())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({
        "minutes": round(passed[0] / 60, 2), "cpu_minutes": round(passed[1] / 60, 2), "peak_gib": round(peak, 2),
        "relative_error": round(error, 4), "collisions": round(colliding(codes.numpy()), 6),
        "threads": torch.get_num_threads(),
    }))  # fmt: skip


def beauty_vectors(num_items: int | None) -> Any:
    from sidera.catalog.build import item_vectors
    from sidera.catalog.config import CatalogConfig
    from sidera.data.config import DataConfig, load_dataset, make_views

    _, view = make_views(load_dataset(DATA / "amazon2014_beauty", DataConfig()), DataConfig())
    vectors, _ = item_vectors(view.dataset, view.split, CatalogConfig(vectors=("tfidf", "behaviour")))
    return vectors[:num_items]


def quantized(vectors: Any, name: str, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """What one quantizer makes of the vectors."""
    from sidera.catalog.collisions import bucket_ids
    from sidera.catalog.quantizers import quantizer_class
    from sidera.catalog.report import level_use, neighbour_overlap
    from sidera.config import parse_section

    kind = quantizer_class(name)
    begun = time.process_time()
    quantizer, codes = kind.fit(vectors, parse_section(kind.Config, settings, "[catalog.quantizer]"), seed)
    seconds, rows = time.process_time() - begun, codes.numpy()
    rebuilt = quantizer.decode(codes)
    use = [level_use(rows[:, level], size) for level, size in enumerate(quantizer.level_sizes)]
    return {
        "error": round(float((vectors - rebuilt).square().sum() / vectors.square().sum()), 4),
        "used": [round(one["used"] / one["size"], 4) for one in use],
        "entropy_bits": [round(one["entropy_bits"], 3) for one in use],
        "collisions": round(colliding(rows), 4),
        "largest_bucket": int(bucket_ids(rows)[1].max()),
        "neighbour_overlap": round(neighbour_overlap(vectors, rebuilt), 4),
        "cpu_seconds": round(seconds, 1),
    }


def ordering(quick: bool) -> dict[str, Any]:
    """RQ-k-means and RQ-VAE on several seeds, the others on one; and which of the three published orderings hold."""
    vectors = beauty_vectors(3000 if quick else None)
    short: dict[str, Any] = {"steps": 150} if quick else {}
    seeds = range(1 if quick else 3)
    found = {
        name: [quantized(vectors, name, settings, seed) for seed in seeds]
        for name, settings in (("rq_kmeans", {}), ("rq_vae", short))
    }
    if not quick:
        others = {"rq_kmeans, balanced": ("rq_kmeans", {"balanced": True}), "pq": ("pq", {}), "opq": ("opq", {})}
        others |= {name: (name, {}) for name in ("fsq", "rq_fsq", "lfq")}
        found |= {label: [quantized(vectors, name, settings, 0)] for label, (name, settings) in others.items()}

    def every(better: Any) -> bool:
        return all(better(one, other) for one, other in zip(found["rq_kmeans"], found["rq_vae"], strict=True))

    return {
        "rq_kmeans rebuilds better": every(lambda one, other: one["error"] < other["error"]),
        "rq_kmeans uses as many codes or more": every(lambda one, other: sum(one["used"]) >= sum(other["used"])),
        "rq_kmeans has more entropy": every(lambda one, other: sum(one["entropy_bits"]) > sum(other["entropy_bits"])),
        "quantizers": found,
    }


def main() -> None:
    tuned_allocator()
    if CHILD in sys.argv:
        million()
        return
    options = arguments(__doc__)
    single_thread()
    faiss_run = against_faiss(100_000 if options.quick else 200_000, 1 if options.quick else 3)
    print(json.dumps(faiss_run), flush=True)
    published = ordering(options.quick)
    print(json.dumps(published), flush=True)
    value: dict[str, Any] = {"against faiss": faiss_run, "published ordering": published}
    passed = faiss_run["time / faiss"] <= TIME_BAR and faiss_run["error / faiss"] <= ERROR_BAR
    passed = passed and faiss_run["collisions"]["sidera"] < faiss_run["collisions"]["faiss"]
    if not options.quick:
        child = subprocess.run([sys.executable, __file__, CHILD], capture_output=True, text=True, check=True)
        value["million"] = json.loads(child.stdout.splitlines()[-1])
        passed = passed and value["million"]["minutes"] <= MINUTES and value["million"]["peak_gib"] <= GIB
    bar = {"time / faiss": TIME_BAR, "error / faiss": ERROR_BAR, "minutes": MINUTES, "peak_gib": GIB}
    context = {"dim": DIM, "levels": LEVELS, "codes": CODES, "iterations": ITERATIONS, "seconds": "CPU, one thread"}
    finish("quantizers", value, bar, passed, context, quick=options.quick)


if __name__ == "__main__":
    main()
