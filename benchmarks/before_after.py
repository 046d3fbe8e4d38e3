"""Claim `before_after`: the working tree is no slower than another commit.

    python benchmarks/before_after.py --ref COMMIT [--quick] [--only NAME ...] [--pairs N]

The other commit is checked out in a temporary git worktree. Two worker processes, one for each tree, stay alive for the
whole run; each imports its own tree's package, benchmark scripts and golden helpers, so that each speaks its own tree's
API. For every measurement the two are asked in turn (A B B A), one thread each, while the other waits. A pair is the
CPU time of both for the same work over one or more such rounds (half a round of slow work with --quick). The value is
the median over pairs of CPU time at the commit over CPU time of the working tree (above 1: the working tree is faster),
with a 95 % interval of that median from the order statistics. The bar holds for every median.

Each worker also says what it computed (scores, losses, digests of batches). Where the two trees compute something else
the measurement fails, because their times cannot be compared.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BAR, SEED = 0.95, 0
PAIRS, QUICK_PAIRS = 15, 5
LEAST_SECONDS, QUICK_LEAST_SECONDS = 0.4, 0.1  # CPU time of one side of a pair
VISIT_SECONDS = 0.05  # of one turn: so often the two alternate inside a pair that neighbours on the machine hit both
PREPARED_BATCHES = 124  # of a training measurement, each used once
LIMITED = ("training", "lazy")
ORDER = ("before", "after", "after", "before")

Work = tuple[Callable[[], Any], Callable[[], Any]]  # what is timed, and what says what it computes


class FoundContestants(Exception):
    """Carries what a benchmark script was about to time out of that script."""

    def __init__(self, value: Any) -> None:
        super().__init__("found")
        self.value = value


def intercept(module: Any, name: str, run: Callable[[], Any]) -> tuple[Any, ...]:
    """The arguments with which ``run()`` would first call ``module.name``; the call itself does not happen."""
    before = getattr(module, name)

    def stop(*arguments: Any, **named: Any) -> None:
        raise FoundContestants((*arguments, *named.values()))

    setattr(module, name, stop)
    try:
        run()
    except FoundContestants as found:
        return found.value
    finally:
        setattr(module, name, before)
    raise RuntimeError(f"{module.__name__} did not call {name}")


# --- what is measured; every function runs inside a worker, against the tree that the worker was started in -----------


def tiger_world() -> Any:
    import decode

    return decode.World(decode.Case("before_after", *decode.SMALL, 50, "vocabulary", 0.0, 0, True))


def first_scores(found: Any) -> list[float]:
    return [float(score) for score in found.scores[0].tolist()]


def decode_tiger() -> Work:
    """Beam search of TIGER: 12 k items, 50 beams, 80 encoder tokens, one request."""
    import decode

    world = tiger_world()
    return decode.next_history(world.batches, world.ours), lambda: first_scores(world.ours(world.batches[0]))


def decode_generator() -> Work:
    """Beam search of sidera's generator: 12 k items, 50 beams, seen items left out, one request."""
    import decode

    contestants = intercept(decode, "interleaved", decode.run_sidera)[0]
    call = contestants["ours"]
    return call, lambda: first_scores(call())


def training_step() -> Work:
    """A step of TIGER: 128 rows of Beauty's lengths, bf16 where the processor has it; dropout 0."""
    import torch

    import training
    from harness import has_bf16

    training.BEAUTY, training.BATCH_SIZE = Path("/nonexistent"), 128  # both trees draw the same lengths
    world = tiger_world()
    model = world.model
    codes_asked = "codes" in inspect.signature(training.make_batches).parameters  # older commits ask for their number
    items = world.codes if codes_asked else len(world.codes)
    few, _ = training.make_batches(4, items, bucketed=False)  # of like size, so that every step costs the same
    batches = few * (PREPARED_BATCHES // len(few))

    def loss(model: Any, batch: Any) -> Any:
        return model.loss(batch).total / training.BATCH_SIZE

    with torch.no_grad():
        computed = float(loss(model, batches[0]))
    return training.stepper(model, loss, batches, bf16=has_bf16()), lambda: computed


def lazy_step() -> Work:
    """A step of OneRec-V2: 32 histories of 512 events, f32."""
    import torch

    import lazy

    lazy.USERS, lazy.STEPS = 60, PREPARED_BATCHES
    with tempfile.TemporaryDirectory() as folder:
        catalog, batches, _ = lazy.long_histories(Path(folder), SEED)
    model = lazy.build(lazy.lazy_decoder(256), catalog, SEED)
    with torch.no_grad():
        loss = model.eval().loss(batches[0])
    trainer, remaining = lazy.Trainer(model, PREPARED_BATCHES), iter(batches)
    return lambda: trainer.step(next(remaining)), lambda: float(loss.total) / loss.count


def rollouts(mode: str) -> Work:
    """128 sampled semantic IDs of one request, TIGER of 12 k items."""
    script: Any = importlib.import_module("rollouts")

    script.as_t5 = lambda model: SimpleNamespace(eval=lambda: None)  # the peer is not needed here
    samplers = script.Samplers()
    call = script.next_history(samplers.world.batches, lambda batch: samplers.ours(batch, mode, 128))

    def computed() -> list[float]:
        samplers.seed = SEED
        return [float(value) for value in samplers.ours(samplers.world.batches[0], mode, 128).sids[0].flatten()]

    return call, computed


def world() -> Work:
    """Three days of 1,024 users of the `easy` world, Parquet included."""
    from sidera.sim.config import world_config
    from sidera.sim.simulate import simulate

    folder = tempfile.mkdtemp(prefix="before-after-world-")  # the controller removes the folder above it
    config = world_config("easy", {"num_candidates": 20})
    call = lambda: simulate(config, 1024, 3, Path(folder) / "log", SEED)  # noqa: E731
    return call, lambda: call()["num_events"]


def log_columns(num_users: int, num_items: int, length: int) -> dict[str, Any]:
    """Columns of a log in which a user moves on to an item near the last one; seeded, the same for both trees."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    lengths = rng.integers(5, 2 * length - 5, num_users)
    users = np.repeat(np.arange(num_users), lengths)
    starts = np.repeat(rng.integers(num_items, size=num_users), lengths)
    items = (starts + rng.integers(0, 40, len(users))) % num_items
    return {
        "user": [f"u{user}" for user in users],
        "item": [f"i{item}" for item in items],
        "time": (1_700_000_000 + 60 * np.arange(len(users))).tolist(),
    }


def epoch(recipe: str) -> Work:
    """An epoch of a recipe's batches, no model: PackedSequences of any/sasrec, RequestRows of world/onerec_v2."""
    golden_runs: Any = importlib.import_module("golden_runs")  # of the worker's tree
    import sidera
    from sidera.sim.simulate import simulate

    known: list[Any] = []
    write = golden_runs.written_catalog

    def remember(*arguments: Any) -> Any:
        known.append(write(*arguments))
        return known[-1]

    golden_runs.SMALLER = {}
    golden_runs.FIT = {key: value for key, value in golden_runs.FIT.items() if key != "batch_size"}  # the recipe's own
    golden_runs.tiny_log = lambda **sizes: sidera.from_frame(log_columns(8_000, 2_000, 20))
    golden_runs.simulate = lambda config, users, days, *rest: simulate(config, 600, 8, *rest)
    golden_runs._log.cache_clear()
    golden_runs.written_catalog = remember
    try:
        source = intercept(golden_runs, "fit", lambda: golden_runs.golden_run(recipe))[1]
    finally:
        golden_runs.written_catalog = write
    said = [
        row for batch in islice(source.batches(epoch=0), 2) for row in islice(golden_runs.rows_said(batch, known[0]), 8)
    ]
    number = iter(range(1_000_000))
    return lambda: sum(1 for _ in source.batches(epoch=next(number))), lambda: said


def recommender(state: dict[str, Any]) -> Any:
    """sidera's generator after two steps, from its run folder; and histories of its log."""
    if not state:
        import sidera

        columns = log_columns(3_000, 3_000, 15)
        folder = tempfile.mkdtemp(prefix="before-after-run-")
        changes = {"max_steps": 2, "warmup_steps": 1, "num_threads": 1, "min_steps": 0}
        sidera.fit(sidera.from_frame(columns), "generator", out=folder, quiet=True, fit=changes)
        state["opened"] = sidera.load(folder)
        items = columns["item"]
        state["histories"] = [items[start : start + 20] for start in range(0, 64 * 20, 20)]
    return state["opened"], state["histories"]


def recommend(count: int, state: dict[str, Any]) -> Work:
    """``recommend(histories, k=10)`` of sidera's generator, 3 k items, from item keys to answers."""
    opened, histories = recommender(state)
    asked = histories[:count]
    return (
        lambda: opened.recommend(asked, k=10),
        lambda: [float(score) for answer in opened.recommend(asked, k=10) for score in answer.scores],
    )


def measurements() -> dict[str, Callable[[], Work]]:
    """Name -> what builds the work; some share one trained run."""
    run: dict[str, Any] = {}
    return {
        "decode_tiger": decode_tiger,
        "decode_generator": decode_generator,
        "training": training_step,
        "lazy": lazy_step,
        "rollouts_masked": lambda: rollouts("masked"),
        "rollouts_free": lambda: rollouts("free"),
        "world": world,
        "epoch_packed": lambda: epoch("any/sasrec"),
        "epoch_requests": lambda: epoch("world/onerec_v2"),
        "recommend_1": lambda: recommend(1, run),
        "recommend_64": lambda: recommend(64, run),
    }


# --- the worker: reads one command a line, answers with one JSON object a line ----------------------------------------


def serve_measurements() -> None:
    """Commands: ``prepare NAME`` -> what it computes; ``time COUNT`` -> CPU seconds of COUNT calls."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the scripts print goes to standard error
    import torch

    torch.set_num_threads(1)
    with contextlib.suppress(ImportError):
        import pyarrow

        pyarrow.set_cpu_count(1)
    builders, call = measurements(), None
    for line in sys.stdin:
        verb, argument = line.split()
        try:
            if verb == "prepare":
                call, computed = builders[argument]()
                answer: dict[str, Any] = {"computed": computed()}
                call()  # warms up
            else:
                assert call is not None, "time comes after prepare"
                start = time.process_time()
                for _ in range(int(argument)):
                    call()
                answer = {"seconds": time.process_time() - start}
        except Exception as error:  # reported as this measurement's failure; the others go on
            import traceback

            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


# --- the controller ---------------------------------------------------------------------------------------------------


class Worker:
    """A process that runs one tree's code."""

    def __init__(self, tree: Path, scratch: Path, log: Any) -> None:
        from harness import ALLOCATOR

        paths = [tree / "src", tree / "benchmarks", tree / "tests" / "golden"]
        environment = {
            **os.environ,
            **ALLOCATOR,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONSAFEPATH": "1",  # this script's folder stays out of the path: the tree's own scripts are imported
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(scratch),
        }
        self.tree = tree
        command = [sys.executable, str(Path(__file__).resolve()), "--worker"]
        self.process = subprocess.Popen(
            command, cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker of {self.tree} ended with code {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def other_tree(ref: str, scratch: Path) -> Iterator[tuple[Path, str]]:
    """(files of commit ``ref`` in a git worktree that lasts as long as the block, the commit's full name)."""
    path = scratch / "other"
    named = ["git", "rev-parse", "--verify", f"{ref}^{{commit}}"]
    commit = subprocess.run(named, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(path), commit], cwd=ROOT, check=True)
    try:
        yield path, commit
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(path)], cwd=ROOT, check=False)


def interval_of_median(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The narrowest pair of order statistics that covers the median with probability ``level``, or the whole range.

    Source: the sign test; P(rank_k < median < rank_{n-k+1}) = 1 - 2 P(Binomial(n, 1/2) < k).
    """
    ordered, n = sorted(values), len(values)
    best, tail = 1, 0.0
    for k in range(1, n // 2 + 1):
        tail += math.comb(n, k - 1) / 2**n
        if 1 - 2 * tail >= level:
            best = k
    return ordered[best - 1], ordered[n - best]


def differs(before: Any, after: Any) -> bool:
    """Whether two computed values are not the same: numbers to 1e-4 of their size, everything else exactly."""
    if isinstance(before, list) and isinstance(after, list):
        return len(before) != len(after) or any(map(differs, before, after))
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() != after.keys() or any(differs(before[key], after[key]) for key in before)
    if isinstance(before, float | int) and isinstance(after, float | int):
        return abs(before - after) > 1e-4 * max(1.0, abs(before))
    return bool(before != after)


def measure(name: str, workers: dict[str, Worker], pairs: int, quick: bool) -> dict[str, Any]:
    """{"ratio", "interval", "before_ms", "after_ms", ...}, or {"error"}; ``workers``: before, after."""
    computed = {}
    for side, worker in workers.items():
        answer = worker.ask(f"prepare {name}")
        if "error" in answer:
            return {"error": f"{side}: {answer['error']}"}
        computed[side] = answer["computed"]
    if differs(computed["before"], computed["after"]):
        shown = " and ".join(f"{value!s:.200}" for value in computed.values())
        return {"error": f"the trees compute something else: {shown}"}
    once = workers["before"].ask("time 1")["seconds"]
    workers["after"].ask("time 1")
    calls = max(1, math.ceil(VISIT_SECONDS / max(once, 1e-6)))
    rounds = max(1, round((QUICK_LEAST_SECONDS if quick else LEAST_SECONDS) / (2 * calls * once)))
    if name in LIMITED and 2 * calls * rounds * pairs + 3 > PREPARED_BATCHES:
        calls = rounds = 1
    turns = [ORDER * rounds] * pairs
    if quick and once > QUICK_LEAST_SECONDS:  # half a round is enough work
        turns = [ORDER[:2], ORDER[2:]] * pairs
    per_side = calls * len(turns[0]) // 2
    seconds: dict[str, list[float]] = {side: [] for side in workers}
    for order in turns[:pairs]:
        spent = dict.fromkeys(workers, 0.0)
        for side in order:
            answer = workers[side].ask(f"time {calls}")
            if "error" in answer:
                return {"error": f"{side}: {answer['error']}"}
            spent[side] += answer["seconds"]
        for side, total in spent.items():
            seconds[side].append(total / per_side)
    ratios = [a / b for a, b in zip(seconds["before"], seconds["after"], strict=True)]
    low, high = interval_of_median(ratios)
    return {
        "ratio": round(statistics.median(ratios), 3),
        "interval": [round(low, 3), round(high, 3)],
        **{f"{side}_ms": round(1e3 * statistics.median(spent), 3) for side, spent in seconds.items()},
        "pairs": pairs,
        "calls_per_side": per_side,
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ref", required=True, help="the commit to compare with")
    parser.add_argument("--only", nargs="+", choices=list(measurements()), help="these measurements; no result is kept")
    parser.add_argument("--pairs", type=int, help=f"interleaved pairs (else {PAIRS}, {QUICK_PAIRS} with --quick)")


def main() -> None:
    from harness import arguments, finish

    options = arguments(__doc__, flags)
    pairs = options.pairs or (QUICK_PAIRS if options.quick else PAIRS)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="before-after-") as name:
        scratch = Path(name)
        with other_tree(options.ref, scratch) as (tree, commit), (scratch / "log").open("w+", encoding="utf-8") as log:
            workers = {"before": Worker(tree, scratch, log), "after": Worker(ROOT, scratch, log)}
            for measured in options.only or measurements():
                rows[measured] = measure(measured, workers, pairs, options.quick)
                print(f"{measured:18s} {rows[measured]}", flush=True)
            for worker in workers.values():
                worker.close()
            if any("error" in row for row in rows.values()):
                log.seek(0)
                sys.stderr.write(log.read())
    value = {name: row.get("ratio") for name, row in rows.items()}
    passed = all(ratio is not None and ratio >= BAR for ratio in value.values())
    details = {"ratios": {name: row.pop("ratios", None) for name, row in rows.items()}}
    context = {"seed": SEED, "ref": commit, "rows": rows}
    finish("before_after", value, BAR, passed, context, options.quick or bool(options.only), details)


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        serve_measurements()
    else:
        main()
