"""Claim `beauty_temporal`: Beauty split by time instead of leave-one-out, cold targets apart. Reported, no bar.

    python benchmarks/beauty_temporal.py [--quick] [--seeds N]

Nothing after the cut is trained on; every later event is a row. Items that appear only after the cut are "cold" rows:
models with a row per item cannot find them, and the result file shows them by themselves.
"""

from __future__ import annotations

from accuracy import Claim, Contestant, run_claim

TEMPORAL = ('data.split="temporal"',)
CLAIM = Claim(
    name="beauty_temporal",
    title="Amazon Beauty, global temporal split",
    data="amazon2014_beauty",
    contestants=(
        Contestant("sidera generator", "beauty/generator.toml", TEMPORAL, seeds=(0,)),
        Contestant("OneRec-V2", "beauty/onerec_v2.toml", TEMPORAL, seeds=(0,)),
        Contestant("OneRec, technical report", "beauty/onerec.toml", TEMPORAL, seeds=(0,)),
        Contestant("SASRec sampled softmax, tied", "beauty/sasrec.toml", TEMPORAL, seeds=(0,)),
        Contestant("item-kNN", "any/item_knn.toml", TEMPORAL, seeds=(0,)),
        Contestant("popularity", "any/popularity.toml", TEMPORAL, seeds=(0,)),
    ),
    claimed="sidera generator",
)

if __name__ == "__main__":
    run_claim(CLAIM, __doc__)
