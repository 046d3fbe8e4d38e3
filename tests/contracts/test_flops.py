"""Every model's counted FLOPs against those that torch's counter sees in a training step, forward and backward.

What is counted and what not (``nn/counters.py``): matrix products alone, and of these none that only pads a batch. So
the rows here have one length. Two things make a count smaller than what is seen, and none makes it larger: attention to
the future is done and thrown away (a square where a triangle is needed), and lists of three items stand beside four.

torch counts no product that oneDNN does, and no attention that is written out without products: it is shown plain ones.
"""

from __future__ import annotations

from typing import Any

import pytest
import test_every_ranker as rankers
from checkerboard_world import HERE, batches, section, world
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sidera.batch import Batch
from sidera.models import MODELS, RANKING, build_model, parse_model, role_of
from sidera.ops import attention, processor

TRAINED = sorted(name for name in HERE if hasattr(MODELS[name], "loss"))
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("kuaiformer", {"loss": "in_batch"}),
    ("liger", {"num_negatives": 7}),
    ("tiger_mlp", {"teacher": "runs/any-tiger"}),
]
LEAST, MOST = 0.94, 1.005  # of what torch sees


def of_one_length(name: str, model: Any) -> Batch:
    """The longest histories of the model's own training batches."""
    if role_of(name) in RANKING:
        return rankers.batch(name)
    source = batches(name, model)
    assert source is not None
    even = [batch.cut(0, int((batch.lengths == batch.lengths[0]).sum())) for batch in source.batches(0)]
    return max(even, key=lambda batch: batch.events.num_values)


@pytest.mark.parametrize(("name", "changes"), [*((name, {}) for name in TRAINED), *VARIANTS])
def test_counted_flops_are_those_done(name: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "FEW_POSITIONS", 0)
    monkeypatch.setattr(processor, "runs", lambda *_: False)
    ranks, model_section = role_of(name) in RANKING, {**section(name), **changes}
    model: Any = rankers.ranking(name).model if ranks else build_model(*parse_model(model_section), world().catalog, 0)
    batch = of_one_length(name, model)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.train().loss(batch).total.backward()
    share = model.flops_per_batch(batch) / counter.get_total_flops()
    assert LEAST <= share <= MOST
