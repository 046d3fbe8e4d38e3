"""Every method by name. The three without a step of their own are controls: they differ in the next-token batches.

A gain of reinforcement learning that is not measured against ``sft`` for the same number of steps, and against
``long_view_sft`` and ``rsft``, is none (docs/understand/alignment.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from sidera.align.group import group_policy_gradient
from sidera.align.logged import logged_policy_gradient
from sidera.align.preference import self_hard_dpo, self_play, softmax_dpo
from sidera.align.step import AlignStep, Outcome
from sidera.config import closest
from sidera.core import InputError

Targets = Literal["positive", "long_view", "rsft"]


@dataclass(frozen=True)
class Method:
    """What a method does in a step beside the next-token loss, and what it needs."""

    source: str  # where it was published
    step: Callable[[AlignStep], Outcome] | None = None  # None: the next-token loss alone
    needs_reward: bool = False
    needs_log: bool = False  # its requests hold every exposure with its feedback (sources.exposures)
    targets: Targets = "positive"  # which exposures the next-token loss learns (sources.next_tokens)


METHODS: dict[str, Method] = {
    "sft": Method("continued pretraining: the control of every gain"),
    "long_view_sft": Method("next tokens of long views only", targets="long_view"),
    "rsft": Method("2506.13695, 4.1: next tokens of the better half by play time", targets="rsft"),
    "dpo": Method("2502.18965, 3.4 (IPA): best against worst of the own rollouts", self_hard_dpo, needs_reward=True),
    "s_dpo": Method("2406.09215: a logged positive against random items", softmax_dpo),
    "sprec": Method("2412.09243: a logged positive against the own recommendations", self_play),
    "grpo": Method("2402.03300", partial(group_policy_gradient, name="grpo"), needs_reward=True),
    "ecpo": Method("2506.13695, 4.2", partial(group_policy_gradient, name="ecpo"), needs_reward=True),
    "gbpo": Method("2508.20900, on rollouts", partial(group_policy_gradient, name="gbpo"), needs_reward=True),
    "gbpo_log": Method("2508.20900, 4.2", partial(logged_policy_gradient, name="gbpo"), needs_log=True),
    "pg_log": Method("REINFORCE on the log: diverges", partial(logged_policy_gradient, name="pg"), needs_log=True),
}


def method_of(name: str) -> Method:
    if name not in METHODS:
        raise InputError(f"[align] method = {name!r} is not known{closest(name, METHODS)}", allowed=", ".join(METHODS))
    return METHODS[name]
