"""Claim `gpu`: what runs on a CUDA device gives what the CPU gives, and how fast it is there.

    PYTHONPATH=src python benchmarks/gpu.py [--quick] [--out FOLDER] [--minutes 7.5]

It needs Python 3.11 or later with torch, numpy, pyarrow and safetensors, nothing else, and a source tree. Every section
has its own share of the time and stands by itself (an error in one is written down and the next begins):

* bodies: every body that a CUDA device runs, held equal to its reference (``gpu_bodies.py``), f32 and bf16;
* training: every generator takes the same steps on the CPU and on the device, f32 and bf16;
* answers: the same weights give the same ten items on both;
* pipeline: a recipe runs there (catalogue, training in two pieces, evaluation), and its run is opened on the CPU;
* training_speed (tokens a second, MFU), decoding_speed (ms a batch of 1 and of 64), large (a million items);
* graph: beam searches recorded as CUDA graphs give what they give step by step; ms of both, for 1 and 64 histories.

The last line is one JSON object: ``pass`` is true when nothing is out of bounds, false otherwise, and null without a
GPU: then the sections run on the CPU at tiny sizes, which checks this script and nothing else. ``could_not`` lists what
was not done, and why. ``--out`` receives the same with every figure.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from harness import arguments, finish, plain

SHARES = {
    "bodies": 0.12,
    "training": 0.16,
    "answers": 0.08,
    "pipeline": 0.14,
    "training_speed": 0.2,
    "decoding_speed": 0.12,
    "graph": 0.1,
    "large": 0.08,
}  # of --minutes; what a section does not use the next ones may


@dataclass
class Run:
    """Where the sections run, how long they may, and what they found."""

    device: str
    tiny: bool
    seconds: float  # of all sections together
    begun: float = field(default_factory=time.perf_counter)
    section: str = ""
    ends: float = 0.0  # of the running section, since ``begun``
    could_not: list[dict[str, str]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def spent(self) -> float:
        return time.perf_counter() - self.begun

    def out_of_time(self, what: str) -> bool:
        """Whether ``what`` has to be left out; noted if so."""
        if self.spent() < self.ends:
            return False
        self.could_not.append({"section": self.section, "what": what, "why": "its share of the time was up"})
        return True

    def fail(self, what: str, why: str) -> None:
        self.failures.append({"section": self.section, "what": what, "why": why})

    def attempt(self, what: str, call: Callable[[], Any]) -> Any:
        """``call()``, its figures noted; None when there is no time left or it failed, which hides nothing else."""
        if self.out_of_time(what):
            return None
        try:
            found = call()
        except Exception as error:  # a section must not hide the others
            place = traceback.extract_tb(error.__traceback__)[-1]
            self.fail(what, f"{type(error).__name__}: {str(error)[:300]} ({Path(place.filename).name}:{place.lineno})")
            return None
        self.figures.setdefault(self.section, {})[what] = found
        for problem in found.get("problems", []) if isinstance(found, dict) else []:
            self.fail(what, problem)
        return found


def bodies(run: Run) -> None:
    import torch

    from gpu_bodies import CHECKS, LIMITS
    from gpu_searches import EXACT

    for name, check in CHECKS.items():
        for dtype in (torch.float32,) if name in EXACT else (torch.float32, torch.bfloat16):
            what = f"{name} {'f32' if dtype == torch.float32 else 'bf16'}"
            worst = run.attempt(what, partial(check, run.device, dtype))
            if worst is not None and not worst <= LIMITS[dtype]:
                run.fail(what, f"error {worst:.2e}, allowed {LIMITS[dtype]:g}")


def training(run: Run) -> None:
    from gpu_models import GENERATORS, RETRIEVERS, train

    for name in (*GENERATORS, *RETRIEVERS):
        run.attempt(name, partial(train, name, run.device, 6 if run.tiny else 40))


def answers(run: Run) -> None:
    from gpu_models import GENERATORS, answer

    for name in GENERATORS:
        run.attempt(name, partial(answer, name, run.device))


def pipeline(run: Run) -> None:
    for name, precision in (("sidera", "f32"), ("onerec_v2", "bf16"), ("tiger", "bf16")):
        run.attempt(f"{name} {precision}", partial(one_recipe, run, name, precision))


def one_recipe(run: Run, name: str, precision: str) -> dict[str, Any]:
    """A recipe on the checkerboard, where the right answer is known, trained in two calls."""
    import numpy as np

    from gpu_models import SMALL
    from sidera.data.split import leave_one_out
    from sidera.data.tiny import checkerboard
    from sidera.engine.recommender import Recommender
    from sidera.train.recipe import Recipe
    from sidera.train.stages import run as run_recipe

    world = checkerboard()
    sections: dict[str, Any] = {
        "data": {},
        "catalog": {
            "vectors": ["behaviour"],
            "quantizer": {"num_levels": 1, "codebook_size": 5, "balanced": True},
            "vector_dim": 8,
        },
        "model": {"name": name, "max_history": 8, **SMALL[name]},
        "fit": {"batch_size": 32, "lr": 5e-3, "warmup_steps": 5, "patience": 0, "precision": precision},
        "eval": {"bootstrap": 20, "latency_rows": 2, "free_rows": 10, "samples": 2, "beam": 24},
    }
    sections["fit"] |= {"epochs": 2 if run.tiny else 12, "eval_every_epochs": 12}
    calls = 0
    with tempfile.TemporaryDirectory() as folder:
        world.save(Path(folder) / "data")
        result = None
        for piece in (0.0005, None):
            sections["fit"]["piece_minutes"] = piece
            paths = (Path(folder) / "data", Path(folder) / "run")
            result = run_recipe(Recipe.parse(sections), *paths, device=run.device, say=lambda _: None)
            calls += 1
        rows = leave_one_out(world).test
        histories = [world.item_ids[end - 4 : end] for end in rows.ends[:60]]
        recommender = Recommender.load(Path(folder) / "run")
        batch = recommender.reading.batch(np.concatenate(histories), np.arange(61) * 4, whole=True)
        answered = recommender.rank(batch, 1).item_ids[:, 0].numpy()
        right = float((answered == rows.target_ids[:60]).mean())
    problems = [] if result is not None else ["the training is unfinished after two calls"]
    if right <= 0.9 and not run.tiny:
        problems.append(f"{right:.2f} of the answers are right")
    return {"right": right, "calls": calls, "problems": problems}


def training_speed(run: Run) -> None:
    import torch

    from gpu_models import GENERATORS, training_speed
    from sidera.fit.peak import measured_tflops

    seconds = 0.05 if run.tiny else 4.0
    for precision in ("bf16", "f32"):
        peak = run.attempt(f"peak TFLOP/s {precision}", partial(measured_tflops, torch.device(run.device), precision))
        for name in GENERATORS:
            timed = partial(training_speed, name, run.device, precision, run.tiny, seconds, peak or 0.0)
            run.attempt(f"{name} {precision}", timed)


def decoding_speed(run: Run) -> None:
    from gpu_models import GENERATORS, decoding_speed

    seconds = 0.05 if run.tiny else 2.5
    for size in (1, 64):
        for name in GENERATORS:
            run.attempt(f"{name} B={size}", partial(decoding_speed, name, run.device, size, run.tiny, seconds))


def large(run: Run) -> None:
    from gpu_models import large_catalogue

    run.attempt("a million items", partial(large_catalogue, run.device, run.tiny, 0.05 if run.tiny else 8.0))


def graph(run: Run) -> None:
    from gpu_graph import recorded
    from gpu_models import GENERATORS

    seconds = 0.05 if run.tiny else 1.5
    for size in (1, 64):
        for name in GENERATORS:
            run.attempt(f"{name} B={size}", partial(recorded, name, run.device, size, run.tiny, seconds))


SECTIONS: tuple[Callable[[Run], None], ...] = (
    bodies, training, answers, pipeline, training_speed, decoding_speed, graph, large,
)  # fmt: skip


def go(run: Run, only: Sequence[str] = ()) -> None:
    """Every section, or those named; a section that cannot even begin is a failure of its own."""
    share, sections = 0.0, [section for section in SECTIONS if not only or section.__name__ in only]
    whole = sum(SHARES[section.__name__] for section in sections)
    for section in sections:
        share += SHARES[section.__name__] / whole
        run.section, run.ends = section.__name__, share * run.seconds
        begun = run.spent()
        try:
            section(run)
        except Exception as error:  # an import that fails here must not hide the other sections
            run.fail("the section", f"{type(error).__name__}: {str(error)[:300]}")
        print(f"{run.section:15s} {run.spent() - begun:6.1f} s, {len(run.failures)} failures so far", flush=True)


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="folder for gpu.json with every figure")
    parser.add_argument("--only", nargs="*", default=[], metavar="SECTION", help="sections to run; default: all")
    parser.add_argument("--minutes", type=float, default=7.5, help="of all sections together")


def main() -> None:
    options = arguments(__doc__, flags)
    import torch

    gpu = torch.cuda.is_available()
    run = Run("cuda" if gpu else "cpu", tiny=options.quick or not gpu, seconds=60 * options.minutes)
    if run.tiny:
        torch.set_num_threads(1)
    if not gpu:
        why = "this machine or this build of torch has no CUDA device"
        print(f"no GPU: {why}; the sections run on the CPU at tiny sizes, which checks this script and nothing else")
        run.could_not.append({"section": "all", "what": "everything on a CUDA device", "why": why})
    go(run, options.only)
    value = {"failures": len(run.failures), "checks": sum(len(found) for found in run.figures.values())}
    context = {"device": run.device, "seconds": round(run.spent(), 1), "could_not": run.could_not}
    context |= {"failures": run.failures, "figures": plain(run.figures)}
    passed = (not run.failures) if gpu else None
    record = finish("gpu", value, {"failures": 0}, passed, context, quick=run.tiny)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "gpu.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if run.failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
