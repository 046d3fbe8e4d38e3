"""A policy serves users of the world and its exposures are logged by the engine: what the next reward learns from.

    expose(Recommender.load("runs/x/align/safe"), "data/world", keys, "exposures", days=3)
    # sidera align RECIPE --data data/world --exposures exposures --start runs/x/align/safe --out runs/y

What is written is what a platform would have: the answers with versions and per-token log-probabilities, and what came
of them. Nothing of the truth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sidera.core import InputError
from sidera.engine.exposures import ExposureWriter, exposure_columns
from sidera.engine.recommender import Recommender
from sidera.lab.policy import Requests
from sidera.lab.recommender_policy import RecommenderPolicy
from sidera.lab.trial import prepare, run_policy
from sidera.sim.day import Exposures
from sidera.sim.simulate import SIGNALS
from sidera.sim.source import logged_world
from sidera.sim.world import DAY, FIRST_DAY, World, user_keys
from sidera.store.exposures import ExposureLog


class LoggedPolicy:
    """A policy of the app that writes what it answers, and logs what came of it."""

    def __init__(self, policy: RecommenderPolicy, world: World, writer: ExposureWriter) -> None:
        if not policy.with_log_probs:
            raise InputError(
                "the policy keeps no log-probabilities to log", fix="RecommenderPolicy(..., log_probs=True)"
            )
        self.policy, self.world, self.writer = policy, world, writer
        self.asked: Counter[tuple[int, int]] = Counter()  # requests of each (user, day) so far

    def __call__(self, requests: Requests) -> NDArray[np.int64]:
        answers, recommender = self.policy(requests), self.policy.recommender
        days = (requests.as_of - FIRST_DAY) // DAY
        names = []
        for user, day in zip(requests.user_ids.tolist(), days.tolist(), strict=True):
            names.append(request_name(user, day, self.asked[user, day]))
            self.asked[user, day] += 1
        log_probs = self.policy.log_probs
        assert log_probs is not None, "kept with every answer"
        columns = exposure_columns(
            recommender.catalog, torch.from_numpy(answers), log_probs, requests=names,
            users=user_keys(requests.user_ids), times=requests.as_of.tolist(),
            policies=[recommender.version] * len(names),
        )  # fmt: skip
        self.writer.shown(columns)
        return answers

    def follow(self, seen: Exposures, user_ids: NDArray[np.int64]) -> None:
        """One slot as its users met it."""
        columns = {name: getattr(seen.feedback, name).tolist() for name in (*SIGNALS, "watch_time")}
        columns["duration"] = self.world.items.duration[seen.item_ids].tolist()
        columns["request"] = [request_name(user, seen.day, seen.request) for user in user_ids.tolist()]
        columns["slot"] = [seen.slot] * len(user_ids)
        self.writer.follow(columns)


def request_name(user: int, day: int, number: int) -> str:
    return f"u{user}-{day}-{number}"


def expose(recommender: Recommender, data: str | Path, users: Sequence[str], out: str | Path, days: int = 3) -> int:
    """Let the recommender serve these users of the log's world after its days; -> exposures in the log ``out``."""
    world, numbers, log_days = logged_world(data, users)
    catalog = recommender.catalog
    log = ExposureLog.open(
        out, codebook_id=catalog.codebook_id, num_levels=catalog.num_levels, durability="kernel"
    )
    with ExposureWriter(log) as writer:
        policy = LoggedPolicy(RecommenderPolicy(recommender, world, log_probs=True), world, writer)
        audience = prepare(world, numbers, log_days)
        run_policy(world, policy, audience, days, timeout=600, on_exposures=policy.follow)
    return log.read().num_rows
