"""Claim `sports`: the same recipes on Amazon Sports, where items have no titles, without and with a refit.

python benchmarks/sports.py [--quick] [--seeds N] [--one-seed N]
"""

from __future__ import annotations

from accuracy import Claim, Contestant, run_claim

BOTH = ("train", "train+valid")
ALL_ROWS = ("eval.max_rows=1000000",)  # recipes for any log take a sample
TIED = "SASRec sampled softmax, tied"
# A busy neighbour does not shorten a training, and encoding texts leaves time for the teacher.
GENERATOR = (*ALL_ROWS, 'fit.clock="cpu"', "fit.max_minutes=25")
CLAIM = Claim(
    name="sports",
    title="Amazon Sports: sidera's generator and the retrievers",
    data="amazon2014_sports",
    contestants=(
        Contestant("sidera generator", "sports/generator.toml", GENERATOR, seeds=(0,), fits=BOTH),
        Contestant(TIED, "sports/sasrec.toml", seeds=(0,), fits=BOTH),
        Contestant("transitions", "any/transitions.toml", ALL_ROWS, seeds=(0,), fits=BOTH),
        Contestant("item-kNN", "any/item_knn.toml", ALL_ROWS, seeds=(0,), fits=BOTH),
        Contestant("popularity", "any/popularity.toml", ALL_ROWS, seeds=(0,), fits=BOTH),
    ),
    claimed="sidera generator",
    bars={"filter/ndcg@10": 0.034, "refit/filter/ndcg@10": 0.038},
    above=(TIED, "transitions", "item-kNN"),
)

if __name__ == "__main__":
    run_claim(CLAIM, __doc__)
