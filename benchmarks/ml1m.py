"""Claim `ml1m`: on MovieLens-1M sidera's generator is at least as good as SASRec, HSTU and itself without its expert.

    python benchmarks/ml1m.py [--quick] [--one-seed N]

Long histories of few items, where counting is weak. One seed of each; the paired differences carry the intervals.
"""

from __future__ import annotations

from accuracy import Claim, Contestant, run_claim

ALL_ROWS = ("eval.max_rows=1000000",)  # recipes for any log take a sample
SASREC, HSTU, ALONE = "SASRec sampled softmax, tied", "HSTU", "generator alone"
HSTU_OWN = "HSTU, negatives of its own for each target"  # as published
OWN = ('model.loss="own"', "model.num_negatives=128")
CLAIM = Claim(
    name="ml1m",
    title="MovieLens-1M, ratings of 4 and more: sidera's generator and the retrievers",
    data="ml-1m",
    contestants=(
        Contestant("sidera generator", "ml-1m/generator.toml", seeds=(0,)),
        Contestant(ALONE, "ml-1m/generator.toml", ("expert.enabled=false",), seeds=(0,)),
        Contestant(SASREC, "ml-1m/sasrec.toml", seeds=(0,)),
        Contestant(HSTU, "ml-1m/hstu.toml", seeds=(0,)),
        Contestant(HSTU_OWN, "ml-1m/hstu.toml", OWN, seeds=(0,)),
        Contestant("transitions", "any/transitions.toml", ALL_ROWS, seeds=(0,)),
        Contestant("item-kNN", "any/item_knn.toml", ALL_ROWS, seeds=(0,)),
    ),
    claimed="sidera generator",
    at_least=(SASREC, HSTU, HSTU_OWN, ALONE),
)

if __name__ == "__main__":
    run_claim(CLAIM, __doc__)
