"""Claim `beauty_tiger`: TIGER on Beauty. On a GPU 3 seeds against the paper's level; on a CPU one seed, time-limited.

    python benchmarks/beauty_tiger.py [--quick] [--minutes 120]

On the CPU the budget is processor time of one thread and there is no bar: the figure says how far it got. It is read
from 4,000 test rows there (a beam search costs TIGER about 12 CPU-ms a row), without @50.
"""

from __future__ import annotations

import sys

from accuracy import Claim, Contestant, run_claim

BARS = {"keep/recall@10": 0.058, "keep/ndcg@10": 0.031}


def main() -> None:
    import torch

    minutes = 120.0
    if "--minutes" in sys.argv:
        place = sys.argv.index("--minutes")
        minutes = float(sys.argv[place + 1])
        del sys.argv[place : place + 2]
    on_gpu = torch.cuda.is_available()
    limits = (f"fit.max_minutes={minutes}", 'fit.clock="cpu"', "eval.max_rows=4000", "eval.ks=[5, 10]")
    label = "TIGER" if on_gpu else f"TIGER, {minutes:g} CPU-minutes"
    claim = Claim(
        name="beauty_tiger",
        title="Amazon Beauty: TIGER",
        data="amazon2014_beauty",
        contestants=(
            Contestant(label, "beauty/tiger.toml", () if on_gpu else limits, seeds=(0, 1, 2) if on_gpu else (0,)),
        ),
        claimed=label,
        bars=BARS if on_gpu else {},
    )
    run_claim(claim, __doc__)


if __name__ == "__main__":
    main()
