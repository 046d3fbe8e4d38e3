"""Every method moves the policy where it says, leaves its figures behind, and refuses what it cannot use."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import FUSED, TableReward, tiny

from hand_made import changed
from sidera.align.config import AlignConfig
from sidera.align.gates import Gates
from sidera.align.logged import feedback_advantages, logged_policy_gradient
from sidera.align.methods import METHODS, method_of
from sidera.align.preference import logged_positives
from sidera.align.rewards import RewardBatch, Rewards
from sidera.align.sources import exposures, next_tokens, target_mask
from sidera.align.step import AlignStep, RewardFailed, drift_figures
from sidera.align.training import AlignResult, align, engine_for
from sidera.core import ArtifactError, InputError
from sidera.engine.recommender import Recommender
from sidera.models import build_model, parse_model


def run(
    method: str, steps: int = 3, reward: Any = None, probe: Any = None, run_dir: Any = None, **settings: Any
) -> tuple[AlignResult, Any, Any]:
    world = tiny()
    policy, engine = world.policy()
    config = AlignConfig(
        **{"method": method, "steps": steps, "group": 8, "check_every": 2, "snapshot_every": 2, **settings}
    )
    source = exposures if METHODS[method].needs_log else next_tokens
    result = align(
        policy, engine, config,
        ntp=next_tokens(policy, world.view, world.catalog.items, 16, targets=METHODS[method].targets),
        requests=source(policy, world.view, world.catalog.items, 8, seed=1),
        reward=reward or TableReward.of(world.view, FUSED),
        probe=probe,
        gates=Gates.open(),
        run_dir=run_dir,
    )  # fmt: skip
    return result, policy, engine


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_steps_and_reports(method: str) -> None:
    result, policy, engine = run(method)
    assert (result.steps, result.good_step, result.stopped) == (3, 3, "")
    last = result.checks[-1]
    assert all(math.isfinite(value) for name, value in last.items() if name != "event")
    assert last["grad_norm"] > 0
    assert last["ntp_loss"] > 0
    if METHODS[method].needs_reward:
        assert "reward" in last
        assert "zero_advantage" in last
    before = tiny().pretrained.state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    assert engine.version == f"{method}-3"


def test_the_reward_rises_under_every_method_that_follows_it() -> None:
    for method in ("ecpo", "grpo", "gbpo"):
        result, *_ = run(method, steps=20, lr=3e-3, ntp_weight=0.0)
        assert result.checks[-1]["reward"] > 1.3 * result.checks[0]["reward"], method


def test_dpo_pulls_its_pairs_apart() -> None:
    result, *_ = run("dpo", steps=10, lr=1e-3, ntp_weight=0.3, snapshot_every=100)
    last = result.checks[-1]
    assert last["chosen_log_ratio"] > last["rejected_log_ratio"]


def test_beam_and_free_rollouts_can_be_learned_from() -> None:
    for rollout in ("beam", "free"):
        last = run("ecpo", steps=2, **{"rollout": rollout})[0].checks[-1]
        assert last["legal"] == 1.0 if rollout == "beam" else last["legal"] < 1.0
        assert last["ratio_q50"] == pytest.approx(1.0, abs=0.2)


def test_a_run_leaves_its_log_and_is_not_repeated(tmp_path: Path) -> None:
    result, policy, _ = run("ecpo", probe=tiny().probe(32), run_dir=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["eval", "train", "train", "eval", "train", "eval"]
    assert lines[0]["coverage"] == result.start["coverage"]
    again, other, engine = run("ecpo", probe=tiny().probe(32), run_dir=tmp_path)
    assert again == result
    assert engine.version == "ecpo-3"
    for name, tensor in policy.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    with pytest.raises(ArtifactError, match=r"align\.beta = 0\.1 there and 0\.2 here"):
        run("ecpo", probe=tiny().probe(32), run_dir=tmp_path, beta=0.2)


def test_the_same_seed_gives_the_same_run() -> None:
    states = [run("ecpo", seed=4)[1].state_dict() for _ in range(2)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


class Broken:
    def __init__(self, after: int, how: str) -> None:
        self.left, self.how = after, how

    def __call__(self, asked: RewardBatch) -> Rewards:
        self.left -= 1
        total = torch.rand(asked.item_ids.shape)
        if self.left < 0 and self.how == "raises":
            raise ZeroDivisionError("no users")
        if self.left < 0 and self.how == "shape":
            return Rewards(total[:, :1], {})
        if self.left < 0:
            total[2, 1] = float("nan")
        return Rewards(total, {})


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("raises", "the reward raised ZeroDivisionError: no users"),
        ("shape", r"the reward has shape \(\d+, 1\)"),
        ("nan", "the reward of request 2, member 1 is nan"),
    ],
)
def test_a_broken_reward_ends_the_run_at_its_last_good_weights(how: str, text: str) -> None:
    world = tiny()
    policy, engine = world.policy()
    config = AlignConfig(steps=9, group=4, check_every=2, ntp_weight=0.0)
    good: list[dict[str, torch.Tensor]] = []

    def remember(record: dict[str, Any]) -> None:
        if record["event"] == "eval":
            good.append({name: tensor.clone() for name, tensor in policy.state_dict().items()})

    with pytest.raises(InputError, match=text + r".*\(step 5; the weights are those of step 4\)") as error:
        align(
            policy, engine, config, requests=next_tokens(policy, world.view, world.catalog.items, 8),
            reward=Broken(5, how),
            gates=Gates.open(), on_progress=remember,
        )  # fmt: skip
    assert "\n" not in str(error.value)
    assert isinstance(error.value, RewardFailed) == (how != "nan")
    for state in (policy.state_dict(), engine.model.state_dict()):
        assert all(torch.equal(tensor, good[-1][name]) for name, tensor in state.items())


def test_a_constant_reward_teaches_nothing_and_leaves_the_gates() -> None:
    world = tiny()
    policy, engine = world.policy()
    result = align(
        policy, engine, AlignConfig(steps=6, group=4, check_every=2, ntp_weight=0.0, format_weight=0.0),
        requests=next_tokens(policy, world.view, world.catalog.items, 8), reward=TableReward(torch.full((300,), 0.7)),
    )  # fmt: skip
    assert result.stopped == ("stopped at step 2: zero_advantage is 1, above 0.99; the weights are those of step 0")
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, world.pretrained.state_dict()[name])


def test_groups_without_a_legal_rollout_are_passed_over() -> None:
    """A policy that writes nothing real: no group teaches, nothing breaks, the format reward finds nothing either."""
    world = tiny()
    policy, engine = world.policy()
    codes = {tuple(row) for row in world.catalog.codes.tolist()}
    forbidden = next(c for c in ((a, b, c) for a in range(16) for b in range(16) for c in range(16)) if c not in codes)
    with torch.no_grad():
        for head, code in zip(policy.decoder.heads, forbidden, strict=True):
            head.bias[code] += 100
    engine.load_weights(policy.state_dict(), "lost")
    config = AlignConfig(steps=2, group=4, rollout="free", ntp_weight=0.0, check_every=1)
    result = align(
        policy, engine, config, requests=next_tokens(policy, world.view, world.catalog.items, 8),
        reward=TableReward.of(world.view, FUSED),
        gates=Gates.open(),
    )  # fmt: skip
    assert (result.checks[-1]["zero_advantage"], result.checks[-1]["legal"]) == (1.0, 0.0)
    assert result.checks[-1]["grad_norm"] == 0.0


def step_of(batch: Any) -> AlignStep:
    world = tiny()
    policy, engine = world.policy()
    return AlignStep(policy, engine, None, AlignConfig(), batch, 0)  # type: ignore[arg-type]


def test_recorded_propensities_are_used_and_their_absence_is_ratio_one() -> None:
    world = tiny()
    batch = next(iter(exposures(world.pretrained, world.view, world.catalog.items, 32).batches(0)))
    assert batch.target_ids is not None
    without = logged_policy_gradient(step_of(batch), "gbpo").figures
    assert without["ratio_max"] == pytest.approx(1.0)
    recorded = {f"log_prob_{level}": torch.full((len(batch.target_ids),), -0.5) for level in range(3)}
    logged = changed(batch, target_feedback={**batch.targets.feedback, **recorded})
    found = logged_policy_gradient(step_of(logged), "gbpo").figures
    assert found["ratio_max"] != pytest.approx(1.0)
    bad = changed(
        batch, target_feedback={**batch.targets.feedback, **recorded, "log_prob_1": recorded["log_prob_1"] + 1}
    )
    with pytest.raises(InputError, match="recorded log-probabilities hold numbers above 0"):
        logged_policy_gradient(step_of(bad), "gbpo")


def test_feedback_is_worth_one_minus_one_or_nothing() -> None:
    feedback = {"long_view": torch.tensor([1.0, 0, 1, 0]), "dislike": torch.tensor([0.0, 0, 1, 1])}
    assert feedback_advantages(feedback, "long_view", "dislike").tolist() == [1.0, 0.0, -1.0, -1.0]
    assert feedback_advantages(feedback, "long_view", "report").tolist() == [1.0, 0.0, 1.0, 0.0]
    with pytest.raises(InputError, match=r"positive = 'follow' is not in the log; allowed: .*long_view, dislike"):
        feedback_advantages(feedback, "follow", "dislike")


def test_any_of_several_targets_is_chosen_evenly() -> None:
    world = tiny()
    batch = next(iter(next_tokens(world.pretrained, world.view, world.catalog.items, 32).batches(0)))
    assert batch.target_ids is not None
    assert batch.targets.offsets is not None
    policy, engine = world.policy()
    step = AlignStep(policy, engine, None, AlignConfig(), batch, 0)
    drawn = torch.stack([logged_positives(step) for _ in range(200)])
    for row in range(batch.num_histories):
        own = batch.target_ids[batch.targets.offsets[row] : batch.targets.offsets[row + 1]]
        assert set(drawn[:, row].tolist()) == set(own.tolist())


def test_the_controls_learn_other_targets() -> None:
    view = tiny().view
    clicks, long_views, rsft = (target_mask(view, targets) for targets in ("positive", "long_view", "rsft"))
    assert (clicks == view.dataset.feedback["click"]).all()
    assert (long_views == view.dataset.feedback["long_view"]).all()
    assert (rsft <= clicks).all()
    assert 0.4 < rsft.sum() / clicks.sum() < 0.6
    watched = view.dataset.feedback["watch_time"]
    assert watched[rsft].min() >= watched[clicks & ~rsft].max()


def test_drift_is_zero_on_own_samples_and_counts_items() -> None:
    log_p = -torch.rand(4, 5, 3)
    mask = torch.ones(4, 5, dtype=torch.bool)
    same = drift_figures(log_p, log_p, mask)
    assert same == {"ratio_q50": 1.0, "ratio_q99": 1.0, "ratio_max": 1.0, "kl": 0.0}
    moved = drift_figures(log_p + 0.1, log_p, mask)
    assert moved["ratio_q50"] == pytest.approx(math.exp(0.3), rel=1e-5)
    assert drift_figures(log_p, log_p, ~mask) == {}


def test_what_cannot_be_run_is_refused() -> None:
    world = tiny()
    policy, engine = world.policy()
    source = next_tokens(policy, world.view, world.catalog.items, 8)
    with pytest.raises(InputError, match="method = 'ecop' is not known"):
        method_of("ecop")
    with pytest.raises(InputError, match="share one model"):
        align(engine.model, engine, AlignConfig(), ntp=source, requests=source)
    for method, sources, text in (
        ("ecpo", {"requests": source}, "the next-token loss has no batches"),
        ("ecpo", {"ntp": source}, "has no requests to work on"),
        ("ecpo", {"ntp": source, "requests": source}, "needs a reward"),
    ):
        with pytest.raises(InputError, match=text):
            align(policy, engine, AlignConfig(method=method), **sources)
    with pytest.raises(InputError, match="its weight is 0"):
        align(policy, engine, AlignConfig(method="sft", ntp_weight=0.0))
    with pytest.raises(InputError, match=r"\[align\] group = 1"):
        AlignConfig(group=1)


def test_an_engine_for_a_policy_is_a_copy() -> None:
    world = tiny()
    engine = engine_for(world.pretrained, world.recommender)
    assert engine.model is not world.pretrained
    with torch.no_grad():
        next(engine.model.parameters()).add_(1.0)
    first = next(world.pretrained.parameters())
    assert not torch.equal(first, next(engine.model.parameters()))


SECTIONS: dict[str, dict[str, Any]] = {
    "tiger": {"max_history": 8, "width": 32, "num_layers": 1, "num_heads": 2, "head_width": 16, "ff_width": 64},
    "sidera": {"max_history": 8, "width": 16, "num_layers": 1, "num_heads": 1},
}


@pytest.mark.parametrize("name", SECTIONS)
def test_models_that_read_items_alone_are_aligned_too(name: str) -> None:
    """Histories and targets are positives; requests may be packed windows (sidera) or prefixes (TIGER)."""
    world = tiny()
    section = {"name": name, **SECTIONS[name]}
    policy = build_model(*parse_model(section), world.catalog, 0)
    engine = engine_for(policy, Recommender(policy, world.catalog, model_section=section))
    source = next_tokens(policy, world.view, world.catalog.items, 32)
    config = AlignConfig(steps=60, group=8, check_every=10, lr=5e-3)
    result = align(
        policy, engine, config, ntp=source, requests=source, reward=TableReward.of(world.view, FUSED),
        gates=Gates.open(),
    )  # fmt: skip
    assert result.checks[-1]["reward"] > result.checks[0]["reward"]
    assert result.checks[-1]["ntp_loss"] < result.checks[0]["ntp_loss"]
    assert result.checks[-1]["ratio_q50"] == pytest.approx(1.0, abs=0.5)
