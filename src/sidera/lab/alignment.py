"""The online test of aligned policies: they serve users of the world that their log came from.

Only users of whom neither the reward nor its judge learnt are served. Beside each policy stands its *reranked* self
(``NAME+rerank``): the reward's network choosing among the policy's own candidates at serving, which costs more CPU time
an answer and is the comparison that a gain from training has to be seen beside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidera import artifacts
from sidera.engine.recommender import Recommender
from sidera.engine.serving import ServeConfig
from sidera.lab.online import CANDIDATES, RERANKED, Arm, OnlineTest, online_test
from sidera.lab.policy import Requests
from sidera.lab.recommender_policy import RecommenderPolicy
from sidera.sim.source import logged_world


class Timed:
    """A policy that counts what its answers cost."""

    def __init__(self, policy: RecommenderPolicy) -> None:
        self.policy, self.seconds, self.answers = policy, 0.0, 0

    def __call__(self, requests: Requests) -> NDArray[np.int64]:
        begun = time.process_time()
        answers = self.policy(requests)
        self.seconds += time.process_time() - begun
        self.answers += requests.num_requests
        return answers

    @property
    def milliseconds(self) -> float:
        """CPU time of one answer, batched as the app asks."""
        return 1000 * self.seconds / max(1, self.answers)


def is_simulated(data: str | Path) -> bool:
    """True for a log that ``sidera simulate`` wrote: only its users can be served."""
    folder = Path(data)
    return (folder / artifacts.MANIFEST).is_file() and "world" in artifacts.read_manifest(folder, "dataset").recipe


def usual_arms(runs: Mapping[str, Path], reranked: Sequence[str]) -> dict[str, tuple[Path, ServeConfig]]:
    """Every policy, and the reranked selves of those named: run folders and how they serve."""
    arms = {name: (run, ServeConfig()) for name, run in runs.items()}
    return arms | {f"{name}{RERANKED}": (runs[name], ServeConfig(rerank=CANDIDATES)) for name in reranked}


def serve_policies(
    arms: Mapping[str, tuple[Path, ServeConfig]],
    audience: Sequence[str],
    data: str | Path,
    reference: str,
    *,
    users: int | None = None,
    days: int = 3,
    brackets: Sequence[str] = ("popularity", "oracle"),
    pairs: Sequence[tuple[str, str]] = (),
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> OnlineTest:
    """Let every arm serve (the first ``users`` of) the audience in the world of the log ``data``.

    The test's ``setting`` holds the CPU time of an answer of each arm (``ms_per_answer``).
    """
    world, numbers, log_days = logged_world(data, sorted(audience)[:users])
    timed = {
        name: Timed(RecommenderPolicy(Recommender.load(run, device=device, serve=config), world))
        for name, (run, config) in arms.items()
    }
    every: dict[str, Arm | str] = {**timed, **{name: name for name in brackets}}
    result = online_test(
        every, world, days=days, log_days=log_days, user_ids=numbers, brackets=False, reference=reference,
        pairs=pairs, timeout=600, say=say,
    )  # fmt: skip
    costs: dict[str, Any] = {name: round(policy.milliseconds, 3) for name, policy in timed.items()}
    return replace(result, setting={**result.setting, "ms_per_answer": costs})


def gap_closed(result: OnlineTest, arm: str, oracle: str = "oracle", metric: str = "utility") -> float:
    """Share of what the oracle has over the reference that ``arm`` has over it."""
    level = {name: values[metric][0] for name, values in result.levels.items()}
    return (level[arm] - level[result.reference]) / (level[oracle] - level[result.reference])
