"""Claim `beauty_onerec`: the OneRec models on Beauty, beside SASRec in the same run. Reported, no bar.

    python benchmarks/beauty_onerec.py [--quick] [--seeds N]

The log has no feedback, no profiles and no requests: every event is a request of its own and positive, so what
makes OneRec what it is has nothing to read. TIGER's figures on these rows are in `beauty_tiger.json`.
"""

from __future__ import annotations

from accuracy import Claim, Contestant, run_claim

CLAIM = Claim(
    name="beauty_onerec",
    title="Amazon Beauty: the OneRec models",
    data="amazon2014_beauty",
    contestants=(
        Contestant("OneRec-V2", "beauty/onerec_v2.toml", seeds=(0,)),
        Contestant("OneRec, technical report", "beauty/onerec.toml", seeds=(0,)),
        Contestant("SASRec sampled softmax, tied", "beauty/sasrec.toml", seeds=(0,)),
    ),
    claimed="OneRec-V2",
    quick_overrides=(
        "fit.max_minutes=0.2",
        "eval.max_rows=200",
        "eval.valid_rows=200",
        "catalog.quantizer.balanced=false",
    ),
)

if __name__ == "__main__":
    run_claim(CLAIM, __doc__)
