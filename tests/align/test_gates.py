"""Gates and probe: what is compared with what, and that nothing asks for the reward."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_world import tiny

from sidera.align.diagnostics import make_probe
from sidera.align.gates import LEAST, MOST, Gates

START = {"entropy": 4.0, "coverage": 0.8, "legality_beam": 0.9, "recall@50_like": 0.4, "rows_like": 96.0}
FIRST = {"grad_norm": 2.0}


@pytest.mark.parametrize(
    ("now", "text"),
    [
        ({"entropy": 2.1}, ""),
        ({"entropy": 1.9}, "entropy fell from 4 to 1.9, below 2"),
        ({"coverage": 0.5}, "coverage fell from 0.8 to 0.5, below 0.56"),
        ({"legality_beam": float("nan")}, "legality_beam fell from 0.9 to nan, below 0.765"),
        ({"recall@50_like": 0.25}, ""),  # two standard errors of 96 rows are .1
        ({"recall@50_like": 0.2}, "recall@50_like fell from 0.4 to 0.2, below 0.22"),
        ({"ratio_q99": 19.0, "kl": 0.9}, ""),
        ({"ratio_q99": math.inf}, "ratio_q99 is inf, above 20"),
        ({"zero_advantage": 1.0}, "zero_advantage is 1, above 0.99"),
        ({"grad_norm": 19.0}, ""),
        ({"grad_norm": 21.0}, "grad_norm grew from 2 to 21, above 20"),
        ({"reward": -100.0, "reward_click": float("nan")}, ""),
    ],
)
def test_a_gate_is_left_where_its_limit_says(now: dict[str, float], text: str) -> None:
    assert Gates().broken(START, now, FIRST) == text
    assert Gates.open().broken(START, now, FIRST) == ""


def test_no_gate_asks_for_the_reward() -> None:
    assert not [name for name in (*LEAST, *MOST) if "reward" in name]


def test_the_probe_looks_at_the_weights_and_at_nothing_else() -> None:
    world = tiny()
    probe = world.probe(64)
    policy, engine = world.policy()
    first, second = probe.measure(engine), probe.measure(engine)
    assert first == second
    assert 0 < first["legality_sample"] < 1
    assert first["rows_long_view"] <= probe.num_histories == 64
    with torch.no_grad():  # a policy that knows one item
        for head, code in zip(policy.decoder.heads, world.catalog.codes[7].tolist(), strict=True):
            head.bias[code] += 100.0
    engine.load_weights(policy.state_dict(), "stuck")
    stuck = probe.measure(engine)
    assert stuck["entropy"] == pytest.approx(0.0, abs=1e-3)
    assert stuck["coverage"] == pytest.approx(1 / 300)
    assert stuck["legality_sample"] == 1.0  # sampled legality alone would praise it
    assert stuck["legality_beam"] < 0.5


def test_recall_is_that_of_the_ranking() -> None:
    """All items at once: every recall is 1."""
    world = tiny()
    probe = make_probe(world.view, world.catalog.items, 24, max_rows=16)
    everything = type(probe)(probe.batches, probe.targets, probe.labels, recall_at=300)
    figures = everything.measure(world.recommender)
    assert figures["recall@300_long_view"] == 1.0
