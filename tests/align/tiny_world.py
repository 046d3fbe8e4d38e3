"""A tiny short-video world with a policy that learned its log: what the regression tests start from.

Settings after the prototype's: 300 items on 3 x 16 codes, 300 users; 200 next-token steps.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hand_made import hand_made
from sidera.align.diagnostics import Probe, make_probe
from sidera.align.rewards import RewardBatch, Rewards
from sidera.align.sources import next_tokens
from sidera.align.training import engine_for
from sidera.catalog.build import build_catalog
from sidera.catalog.catalog import Catalog
from sidera.catalog.config import CatalogConfig
from sidera.data.config import DataConfig, View, load_dataset, make_views
from sidera.engine.recommender import Recommender
from sidera.lab.policy import Requests
from sidera.models import build_model, parse_model
from sidera.sim.config import world_config
from sidera.sim.simulate import simulate

SMALL = {"num_items": 300, "num_topics": 8, "num_creators": 40, "num_candidates": 20, "arrival_days": 5.0}
SECTION = {
    "name": "onerec_v2", "max_history": 24, "short_term": 24, "width": 32, "num_layers": 1, "num_heads": 2,
    "num_kv_groups": 2, "ff_width": 64, "dropout": 0.0,
}  # fmt: skip
NUM_USERS, LOG_DAYS, NTP_STEPS = 300, 4, 200


@dataclass(frozen=True)
class Tiny:
    view: View  # every exposure
    catalog: Catalog
    pretrained: torch.nn.Module
    recommender: Recommender

    def policy(self) -> tuple[torch.nn.Module, Recommender]:
        """A copy to align and an engine that rolls out."""
        policy = copy.deepcopy(self.pretrained)
        return policy, engine_for(policy, self.recommender)

    def probe(self, rows: int = 128) -> Probe:
        return make_probe(self.view, self.catalog.items, SECTION["max_history"], max_rows=rows)


@cache
def tiny(seed: int = 0, ntp_steps: int = NTP_STEPS) -> Tiny:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        simulate(world_config("easy", SMALL), NUM_USERS, LOG_DAYS, log, seed=seed)
        dataset = load_dataset(log)
    view, positives = make_views(dataset, DataConfig(split="temporal", positive="click"))
    config = CatalogConfig(
        vectors=("behaviour",), num_levels=3, codebook_size=16, balanced=True, vector_dim=16, collision="greedy"
    )
    catalog, _ = build_catalog(positives.dataset, positives.split, config, positives.schema)
    model = build_model(*parse_model(SECTION), catalog, seed)
    pretrain(model, next_tokens(model, view, catalog.items, 64, seed), ntp_steps, 5e-3)
    section: dict[str, Any] = dict(SECTION)
    return Tiny(view, catalog, model, Recommender(model, catalog, model_section=section, beam=64))


def pretrain(model: torch.nn.Module, source: Any, steps: int, lr: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    torch.manual_seed(0)
    done, epoch = 0, 0
    model.train()
    while done < steps:
        for batch in source.batches(epoch):
            optimizer.param_groups[0]["lr"] = lr * min(1.0, (done + 1) / 20, 1.1 - done / steps)
            loss = model.loss(batch)
            optimizer.zero_grad()
            (loss.total / loss.count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            done += 1
            if done == steps:
                break
        epoch += 1
    model.eval()


@dataclass(frozen=True)
class TableReward:
    """A learned scorer of the simplest kind: an item's smoothed mean of weighted labels in the log."""

    table: torch.Tensor  # (N,)

    @classmethod
    def of(cls, view: View, weights: dict[str, float], smoothing: float = 5.0) -> TableReward:
        dataset = view.dataset
        worth = sum(weight * dataset.feedback[name].astype(float) for name, weight in weights.items())
        assert isinstance(worth, np.ndarray)
        sums = np.bincount(dataset.item_ids, worth, dataset.num_items)
        counts = np.bincount(dataset.item_ids, minlength=dataset.num_items)
        return cls(torch.tensor((sums + worth.mean() * smoothing) / (counts + smoothing)).float())

    def __call__(self, asked: RewardBatch) -> Rewards:
        total = self.table[asked.item_ids.clamp(min=0)]
        return Rewards(total, {"table": total})


FUSED = {"long_view": 1.0, "like": 2.0, "follow": 2.0, "dislike": -2.0, "click": 0.5}


class Served:
    """The aligned engine as a policy of the simulated app: 64 beams less what was seen."""

    def __init__(self, world: Tiny, engine: Recommender) -> None:
        self.world, self.engine = world, engine
        self.number_of = np.array([int(key[1:]) for key in world.catalog.item_keys])  # dense id -> the world's number
        self.id_of = np.argsort(self.number_of)

    def __call__(self, requests: Requests) -> list[list[int]]:
        schema, total = self.world.catalog.schema, len(requests.item_ids)
        feedback = schema.complete(dict(requests.feedback), total)
        batch = hand_made(
            torch.from_numpy(self.id_of[requests.item_ids]),
            torch.from_numpy(requests.offsets),
            times=torch.from_numpy(requests.times),
            as_of=torch.from_numpy(requests.as_of),
            feedback={name: torch.from_numpy(values) for name, values in feedback.items()},
        )
        asked = np.flatnonzero(np.diff(requests.offsets) > 0)
        assert len(asked) == requests.num_requests, "the tiny world's users all have a history"
        found = self.engine.rank(batch, requests.k, filter_seen=True).item_ids.numpy()
        return [[int(self.number_of[item]) for item in row if item >= 0] for row in found]
