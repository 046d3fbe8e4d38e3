"""Claim `sports`: the same recipes on Amazon Sports, where items have no titles. Reported, no bar.

python benchmarks/sports.py [--quick] [--seeds N]
"""

from __future__ import annotations

from accuracy import Claim, Contestant, run_claim

CLAIM = Claim(
    name="sports",
    title="Amazon Sports: sidera's generator and the retrievers",
    data="amazon2014_sports",
    contestants=(
        Contestant("sidera generator", "sports/generator.toml", seeds=(0,)),
        Contestant("SASRec sampled softmax, tied", "sports/sasrec.toml", seeds=(0,)),
        Contestant("item-kNN", "any/item_knn.toml", seeds=(0,)),
        Contestant("popularity", "any/popularity.toml", seeds=(0,)),
    ),
    claimed="sidera generator",
)

if __name__ == "__main__":
    run_claim(CLAIM, __doc__)
