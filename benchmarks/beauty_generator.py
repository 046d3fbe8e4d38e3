"""Claim `beauty_generator`: sidera's generator on Beauty, trained within 15 minutes on one core, is above counting.

    python benchmarks/beauty_generator.py [--quick] [--seeds N]
    python benchmarks/beauty_generator.py --one-seed 1        one seed's runs, beside another process with another one

Beside it SASRec, transitions, item-kNN and popularity, seen items kept and filtered, fitted
without the validation events and refitted with them. Beside the bars, the paired intervals of NDCG@10 have to be above
0 in both modes and both fits.
"""

from __future__ import annotations

from accuracy import Claim, Contestant, run_claim

BOTH = ("train", "train+valid")
ALL_ROWS = ("eval.max_rows=1000000",)  # recipes for any log take a sample
TIED = "SASRec sampled softmax, tied"  # untied is weaker: results/beauty_sasrec.json
# A busy neighbour does not shorten a training, and encoding texts leaves time for the teacher.
GENERATOR = (*ALL_ROWS, 'fit.clock="cpu"', "fit.max_minutes=25")
CLAIM = Claim(
    name="beauty_generator",
    title="Amazon Beauty: sidera's generator and the retrievers",
    data="amazon2014_beauty",
    contestants=(
        Contestant("sidera generator", "beauty/generator.toml", GENERATOR, fits=BOTH),
        Contestant(TIED, "beauty/sasrec.toml", seeds=(0,), fits=BOTH),
        Contestant("transitions", "any/transitions.toml", ALL_ROWS, seeds=(0,), fits=BOTH),
        Contestant("item-kNN", "any/item_knn.toml", ALL_ROWS, seeds=(0,), fits=BOTH),
        Contestant("popularity", "any/popularity.toml", ALL_ROWS, seeds=(0,), fits=BOTH),
    ),
    claimed="sidera generator",
    bars={
        "filter/recall@10": 0.102,
        "filter/ndcg@10": 0.063,
        "refit/filter/recall@10": 0.108,
        "refit/filter/ndcg@10": 0.068,
    },
    above=(TIED, "transitions", "item-kNN"),
    max_cpu_minutes=15.0,
)

if __name__ == "__main__":
    run_claim(CLAIM, __doc__)
