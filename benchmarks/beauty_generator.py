"""Claim `beauty_generator`: sidera's generator beats the TIGER paper on Beauty, trained within 15 minutes on one core.

    python benchmarks/beauty_generator.py [--quick] [--seeds N]

Beside it SASRec with tied and untied output, item-kNN and popularity, seen items kept and filtered. The aim beyond the
bar is to be above both SASRecs in both modes.
"""

from __future__ import annotations

from accuracy import Claim, Contestant, run_claim

CLAIM = Claim(
    name="beauty_generator",
    title="Amazon Beauty: sidera's generator and the retrievers",
    data="amazon2014_beauty",
    contestants=(
        Contestant("sidera generator", "beauty/generator.toml"),
        Contestant("SASRec sampled softmax, tied", "beauty/sasrec.toml"),
        Contestant("SASRec sampled softmax, untied", "beauty/sasrec.toml", ('model.output="untied"',), seeds=(0,)),
        Contestant("item-kNN", "any/item_knn.toml", seeds=(0,)),
        Contestant("popularity", "any/popularity.toml", seeds=(0,)),
    ),
    claimed="sidera generator",
    bars={"keep/recall@10": 0.070, "keep/ndcg@10": 0.042},
)

if __name__ == "__main__":
    run_claim(CLAIM, __doc__)
