"""Claim `sports_onerec`: the OneRec models on Amazon Sports with Beauty's recipes, beside SASRec. Reported, no bar.

    python benchmarks/sports_onerec.py [--quick] [--seeds N]

As on Beauty (`beauty_onerec`) there is no feedback to read.
"""

from __future__ import annotations

from accuracy import Claim, Contestant, run_claim

CLAIM = Claim(
    name="sports_onerec",
    title="Amazon Sports: the OneRec models",
    data="amazon2014_sports",
    contestants=(
        Contestant("OneRec-V2", "beauty/onerec_v2.toml", seeds=(0,)),
        Contestant("OneRec, technical report", "beauty/onerec.toml", seeds=(0,)),
        Contestant("SASRec sampled softmax, tied", "sports/sasrec.toml", seeds=(0,)),
    ),
    claimed="OneRec-V2",
    quick_overrides=(
        "fit.max_minutes=0.15",
        "eval.max_rows=150",
        "eval.valid_rows=150",
        "catalog.quantizer.balanced=false",
    ),
)

if __name__ == "__main__":
    run_claim(CLAIM, __doc__)
