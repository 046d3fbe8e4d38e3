"""Claim `beauty_sasrec`: a SASRec trained well is the bar that generative recommenders have to clear on Beauty.

    python benchmarks/beauty_sasrec.py [--quick] [--seeds N]

Its losses (sampled softmax, full cross-entropy, the paper's BCE) and its output tables (tied, untied) side by side,
seen items kept and filtered. The claimed one is the best by validation.
"""

from __future__ import annotations

from accuracy import Claim, Contestant, run_claim

RECIPE = "beauty/sasrec.toml"
CLAIM = Claim(
    name="beauty_sasrec",
    title="Amazon Beauty: SASRec, losses and outputs",
    data="amazon2014_beauty",
    contestants=(
        Contestant("SASRec sampled softmax, tied", RECIPE),
        Contestant("SASRec sampled softmax, untied", RECIPE, ('model.output="untied"',), seeds=(0,)),
        Contestant("SASRec full softmax, tied, 10 epochs", RECIPE, ('model.loss="full"', "fit.epochs=10"), seeds=(0,)),
        Contestant("SASRec BCE, tied", RECIPE, ('model.loss="bce"',), seeds=(0,)),
    ),
    claimed="SASRec sampled softmax, tied",
    bars={"keep/recall@10": 0.080, "keep/ndcg@10": 0.040, "filter/recall@10": 0.088, "filter/ndcg@10": 0.051},
)

if __name__ == "__main__":
    run_claim(CLAIM, __doc__)
