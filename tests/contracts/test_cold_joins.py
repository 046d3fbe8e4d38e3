"""LIGER while serving: an item that came later is compared at once, whatever the beam wrote, until it is removed."""

from __future__ import annotations

import numpy as np
import torch
from checkerboard_world import build, recommender, world

from sidera.core import Filter, Request
from sidera.engine.questions import Questions
from sidera.engine.recommender import Recommender

HISTORY = ("item0003", "item0007")


def answered(one: Recommender, **asked: object) -> tuple[str, ...]:
    (answer,) = one.recommend([Request(HISTORY, k=1, filter_seen=False, **asked)])  # type: ignore[arg-type]
    return answer.item_keys


def test_late_items_are_answered_where_their_score_is_the_best() -> None:
    one = recommender("liger", build("liger").eval())
    keys = [f"late{number}" for number in range(12)]
    vectors = torch.randn(12, world().catalog.quantizer.dim, generator=torch.Generator().manual_seed(0))
    one.use_catalog(one.catalog.with_items(keys, vectors))
    snapshot = one.snapshot
    never_shown = set(np.flatnonzero(np.asarray(world().catalog.popularity) == 0).tolist())
    assert set(snapshot.cold_ids.tolist()) == never_shown | set(range(snapshot.num_known, snapshot.catalog.num_items))
    scored = {each.item: each.score for each in Questions(one).score(HISTORY, keys)}
    best = max(scored, key=lambda key: scored[key])
    (answer,) = one.recommend([Request(HISTORY, k=1, filter_seen=False)])
    assert answer.scores[0] >= scored[best] - 1e-4
    old = tuple(key for key in snapshot.catalog.item_keys.tolist() if key not in keys)
    only_late = answered(one, exclude=old)
    assert only_late == (best,)
    others = answered(one, exclude=old, filter=Filter.of({"item": {"not": best}}))
    assert others == (sorted(set(keys) - {best}, key=lambda key: -scored[key])[0],)
    one.use_catalog(one.catalog.without([best]))
    gone = one.catalog.ids_by_key[best]
    assert one.snapshot.cold_ids.tolist() == [item for item in snapshot.cold_ids.tolist() if item != gone]
    assert answered(one, exclude=old) == others
