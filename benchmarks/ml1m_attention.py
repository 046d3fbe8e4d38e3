"""Claim `ml1m_attention`: what each kind of attention costs in accuracy on long histories, MovieLens-1M.

    python benchmarks/ml1m_attention.py [--quick] [--one-seed N]

One recipe (SASRec, 200 events) with softmax attention over all events, and with the three kinds made for long
histories. Everything else is equal, one seed. There is no bar.
"""

from __future__ import annotations

from accuracy import Claim, Contestant, run_claim

FULL = "SASRec sampled softmax, tied"  # the label of `ml1m`, which trains the same run
CLAIM = Claim(
    name="ml1m_attention",
    title="MovieLens-1M, ratings of 4 and more: SASRec by its kind of attention",
    data="ml-1m",
    contestants=(
        Contestant(FULL, "ml-1m/sasrec.toml", seeds=(0,)),
        *(
            Contestant(f"SASRec, {kind} attention", "ml-1m/sasrec.toml", (f'model.attention="{kind}"',), seeds=(0,))
            for kind in ("linear", "mla", "sparse")
        ),
    ),
    claimed=FULL,
)

if __name__ == "__main__":
    run_claim(CLAIM, __doc__)
