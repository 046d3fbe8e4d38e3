"""Every model of MODELS, trained for seconds on the checkerboard, where the right answer is known.

A model that joins MODELS needs no line here: its batches are those that `sidera run` would make for it. Where its
default configuration is too large for a test, a small one stands in SMALL.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from hand_made import hand_made
from sidera.batch import Batch
from sidera.catalog.build import build_catalog
from sidera.catalog.catalog import Catalog
from sidera.catalog.config import CatalogConfig
from sidera.data.config import View
from sidera.data.dataset import Dataset
from sidera.data.features import FeatureSchema
from sidera.data.split import Split, leave_one_out
from sidera.data.tiny import checkerboard, checkerboard_next
from sidera.engine.recommender import Recommender
from sidera.fit.config import FitConfig
from sidera.fit.loop import BatchSource
from sidera.models import MODELS, RANKING, build_model, fit_once, parse_model, role_of
from sidera.roles import Generator
from sidera.train.recipe import Recipe
from sidera.train.stages import Prepared, batch_source

TIGER: dict[str, Any] = {
    "max_history": 8,
    "width": 32,
    "num_layers": 1,
    "num_heads": 2,
    "head_width": 16,
    "ff_width": 64,
    "dropout": 0.0,
}
SMALL: dict[str, dict[str, Any]] = {
    "popularity": {},
    "item_knn": {"neighbours": 8},
    "transitions": {"neighbours": 8},
    "transitions_text": {"neighbours": 8, "alike": 3},
    "content_knn": {},
    "als": {"factors": 8, "iterations": 4, "choose": False},
    "bpr": {"factors": 8, "iterations": 4, "choose": False},
    "sasrec": {"max_history": 8, "width": 16, "num_layers": 1, "num_heads": 1, "dropout": 0.0, "loss": "full"},
    "hstu": {"max_history": 8, "width": 16, "num_layers": 1, "dropout": 0.0, "loss": "full"},
    "kuaiformer": {
        "recent": 4,
        "middle_groups": 1,
        "middle_size": 2,
        "early_groups": 1,
        "early_size": 2,
        "width": 16,
        "num_layers": 1,
        "num_heads": 1,
        "num_queries": 2,
        "dropout": 0.0,
        "loss": "full",
        "smoothing": 0.0,
    },
    "tiger": TIGER,
    "tiger_mlp": {**TIGER, "inside": 32, "num_queries": 2},
    "tiger_mtp": TIGER,
    "liger": {**TIGER, "num_proposed": 5},
    "decoder_only": {"max_history": 8, "width": 32, "num_layers": 2, "num_heads": 2, "ff_multiple": 2, "dropout": 0.0},
    "cobra": {
        "max_history": 8,
        "width": 32,
        "num_layers": 1,
        "num_heads": 2,
        "ff_multiple": 2,
        "dropout": 0.0,
        "num_proposed": 5,
        "log_q": False,
    },
    "onerec_v1": {
        "max_history": 8,
        "width": 32,
        "num_layers": 1,
        "ff_width": 64,
        "dropout": 0.0,
        "num_experts": 3,
        "expert_width": 32,
        "session_length": 3,
        "session_gap": 10**9,
        "min_watched": 1,
    },
    "onerec": {
        "max_history": 8,
        "short_term": 4,
        "num_lifelong_queries": 2,
        "lifelong_layers": 1,
        "width": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "ff_width": 64,
        "dropout": 0.0,
    },
    "onerec_v2": {"max_history": 8, "width": 32, "num_layers": 2, "ff_width": 64, "dropout": 0.0},
    "sidera": {"max_history": 8, "width": 16, "num_layers": 1, "num_heads": 1, "dropout": 0.0},
    "masked_codes": {
        "max_history": 8,
        "width": 32,
        "num_layers": 1,
        "decoder_layers": 1,
        "num_heads": 2,
        "dropout": 0.0,
    },
    "rpg": {"max_history": 8, "width": 16, "num_layers": 1, "num_heads": 1, "dropout": 0.0, "num_negatives": 99},
}
NUM_STEPS, WARMUP, PEAK_LR = 400, 20, 3e-3
CATALOG = CatalogConfig(
    vectors=("behaviour",),
    quantizer={"num_levels": 1, "codebook_size": 5, "balanced": True},
    vector_dim=8,
    collision="extra_digit",
)


@dataclass(frozen=True)
class World:
    """The checkerboard, split, with a catalogue."""

    dataset: Dataset
    split: Split
    catalog: Catalog

    @property
    def prepared(self) -> Prepared:
        schema = FeatureSchema()
        return Prepared(self.dataset, self.split, schema, View(self.dataset, self.split, schema))

    @property
    def following(self) -> np.ndarray:
        """(N,) the item that always comes next."""
        return checkerboard_next()

    def questions(self) -> tuple[Batch, np.ndarray]:
        """Histories of test rows and their answers; of a length that training knew, as relative positions demand."""
        rows = self.split.test
        histories = [self.dataset.item_ids[end - 4 : end] for end in rows.ends[:60]]
        return batch_of(histories), rows.target_ids[:60]


@cache
def world() -> World:
    dataset = checkerboard()
    split = leave_one_out(dataset)
    return World(dataset, split, build_catalog(dataset, split, CATALOG)[0])


def foreign_catalog() -> Catalog:
    """The same items under other codes."""
    here = world()
    config = CatalogConfig(**{**CATALOG.__dict__, "quantizer": {**CATALOG.quantizer, "codebook_size": 4}})
    return build_catalog(here.dataset, here.split, config)[0]


def section(name: str) -> dict[str, Any]:
    return {"name": name, **SMALL.get(name, {})}


def build(name: str, seed: int = 0) -> torch.nn.Module:
    """A small untrained model."""
    return build_model(*parse_model(section(name)), world().catalog, seed)


@dataclass(frozen=True)
class Trained:
    model: torch.nn.Module
    losses: tuple[float, ...]  # of every step; empty for models that take none
    recommender: Recommender


@cache
def trained(name: str) -> Trained:
    """Trained for a few hundred steps, or counted."""
    model = build(name)
    source = batches(name, model)
    losses: list[float] = []
    fit_once(model, world().prepared.view)
    if source is not None:
        losses = take_steps(model, source, NUM_STEPS)
    model.eval()
    return Trained(model, tuple(losses), recommender(name, model))


def take_steps(model: torch.nn.Module, source: Any, num_steps: int) -> list[float]:
    """Plain AdamW: the contract is with the model, not with the training loop."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR)
    losses: list[float] = []
    model.train()
    while len(losses) < num_steps:
        for batch in source.batches(epoch=len(losses)):
            loss = model.loss(batch)
            mean = loss.total / loss.count
            optimizer.zero_grad()
            mean.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            step = len(losses)
            optimizer.param_groups[0]["lr"] = PEAK_LR * min(1, (step + 1) / WARMUP, max(0.05, 1 - step / num_steps))
            optimizer.step()
            losses.append(mean.item())
    return losses


def batches(name: str, model: torch.nn.Module, batch_size: int = 64) -> BatchSource | None:
    """What the model trains on, as the training stage makes it; None where it takes no steps."""
    recipe: Any = SimpleNamespace(model_config=model.config, fit=FitConfig(batch_size=batch_size))
    view = View(world().dataset, world().split, FeatureSchema())
    prepared = Prepared(view.dataset, view.split, view.schema, view)
    return batch_source(recipe, prepared, model, recommender(name, model).read_log(view.dataset))


def recommender(name: str, model: torch.nn.Module, catalog: Catalog | None = None) -> Recommender:
    return Recommender(model, catalog or world().catalog, model_section=full_section(name), beam=10)


def full_section(name: str) -> dict[str, Any]:
    """Every key, as a run folder keeps it."""
    rest: dict[str, dict[str, Any]] = {part: {} for part in ("data", "catalog", "fit", "eval")}
    return Recipe.parse({**rest, "model": section(name)}).model_section


def batch_of(histories: list[np.ndarray] | list[list[int]]) -> Batch:
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])])
    items = torch.as_tensor(np.concatenate(histories)).long()
    return hand_made(items, torch.as_tensor(offsets).long(), items=world().catalog.items)


# The checkerboard has no feedback, without which rankers and rewards have nothing to learn: test_every_ranker.py.
# Models that are fitted with an optional library are left out where it is not installed.
HERE = [name for name, kind in MODELS.items() if find_spec(getattr(kind, "needs", "sidera")) is not None]
ALL = sorted(name for name in HERE if role_of(name) not in RANKING)
GENERATORS = [name for name in ALL if isinstance(build(name), Generator)]
SCORERS = [name for name in ALL if name not in GENERATORS]
