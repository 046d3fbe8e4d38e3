"""Claim `beauty_field`: the systems of the field that have no claim of their own, on one log under one protocol.

    python benchmarks/beauty_field.py [--quick] [--one-seed N]

The recipes for any log are used as they are, beside SASRec, transitions and item-kNN by theirs; RPG also with the
loss of the paper, that of the codes alone. One seed: the intervals are over users. There is no bar. What a system was
made for (long histories, several interests, new items) this log does not hold; the pages of the models say what
follows.
"""

from __future__ import annotations

from accuracy import Claim, Contestant, run_claim

SASREC = "SASRec sampled softmax, tied"
CLAIM = Claim(
    name="beauty_field",
    title="Amazon Beauty: systems without a claim of their own, recipes for any log",
    data="amazon2014_beauty",
    contestants=tuple(
        Contestant(label, f"any/{recipe}.toml", overrides, seeds=(0,))
        for label, recipe, overrides in (
            (SASREC, "sasrec", ()),
            ("HSTU", "hstu", ()),
            ("RecFormer, linear attention", "recformer", ()),
            ("KuaiFormer", "kuaiformer", ()),
            ("RPG", "rpg", ()),
            ("RPG, loss of the codes alone", "rpg", ("model.item_weight=0.0",)),
            ("ALS", "als", ()),
            ("BPR", "bpr", ()),
            ("content-kNN", "content_knn", ()),
            ("transitions with titles", "transitions_text", ()),
            ("transitions", "transitions", ()),
            ("item-kNN", "item_knn", ()),
        )
    ),
    claimed=SASREC,
    quick=(SASREC, "content-kNN"),
)

if __name__ == "__main__":
    run_claim(CLAIM, __doc__)
