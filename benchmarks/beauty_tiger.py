"""Claim `beauty_tiger`: TIGER on Beauty. On a GPU 3 seeds against the paper's level; on a CPU one seed, time-limited.

    python benchmarks/beauty_tiger.py [--quick] [--minutes 120] [--epochs N]

On the CPU the budget is processor time of one thread and there is no bar: the figure says how far it got.
``--epochs`` lets the schedule end inside of the budget instead of cutting the recipe's 200 epochs. The figure is read
from 4,000 test rows there (a beam search costs TIGER about 12 CPU-ms a row), without @50. `sports_tiger` is the same on
Amazon Sports.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from accuracy import Claim, Contestant, run_claim

BARS = {"keep/recall@10": 0.058, "keep/ndcg@10": 0.031}


def run_tiger(name: str, title: str, data: str, recipe: str, bars: Mapping[str, float], doc: str | None) -> None:
    """The paper's recipe on one data set; ``--minutes`` of the command line limit it on a CPU."""
    import torch

    def flags(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--minutes", type=float, default=120.0, help="processor time of the training on a CPU")
        parser.add_argument("--epochs", type=int, help="of the training on a CPU, else as many as the minutes hold")

    parser = argparse.ArgumentParser(add_help=False)
    flags(parser)
    given = parser.parse_known_args()[0]
    on_gpu = torch.cuda.is_available()
    limits: tuple[str, ...] = (
        f"fit.max_minutes={given.minutes}",
        'fit.clock="cpu"',
        "eval.max_rows=4000",
        "eval.ks=[5, 10]",
    )
    if given.epochs:
        limits += (f"fit.epochs={given.epochs}",)
    budget = f"{given.epochs} epochs" if given.epochs else f"{given.minutes:g} CPU-minutes"
    label = "TIGER" if on_gpu else f"TIGER, {budget}"
    contestant = Contestant(label, recipe, () if on_gpu else limits, seeds=(0, 1, 2) if on_gpu else (0,))
    quick = ("fit.max_minutes=0.3", "eval.max_rows=300", "eval.valid_rows=300")
    bars = bars if on_gpu else {}
    run_claim(Claim(name, title, data, (contestant,), claimed=label, bars=bars, quick_overrides=quick), doc, flags)


if __name__ == "__main__":
    run_tiger("beauty_tiger", "Amazon Beauty: TIGER", "amazon2014_beauty", "beauty/tiger.toml", BARS, __doc__)
