"""The systems a recipe can name. A new one is a file under this room, a line here, a recipe and a docs page.

Every class is built as ``Model(config, catalog)`` with its frozen dataclass ``Model.Config``, and states

* ``role``: "generator" or "scorer" (they answer lists), "ranker" (it scores candidates), "reward" (it scores lists).
  The role chooses the evaluator;
* ``feed``: the class that makes the batches of its ``loss`` (``RequestRows``, ...), or a partial of it set by
  ``__init__``; called as ``feed(reading, split, batch_size, seed)``, and with ``target_mask=`` to choose targets;
* ``flops_per_batch(batch)`` beside a ``loss``: what a step of it costs (``nn/counters.py``);
* and/or a method ``fit_once(view)`` that learns from the training part without steps, before the first of them, and
  ``count_again(view)`` where it chooses settings by validation rows: these stay when a refit learns more events;
* ``Config.reads``, and as ``model.reads``: which events it reads, and of these how many (``sidera.batch.Reads``);
* ``reads_codes = False`` where it reads no semantic IDs: its catalogue needs none;
* ``reads_titles = True`` where nothing but titles makes it more than another model;
* ``needs``: the optional module that it is fitted with, where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from sidera.bounds import shown, total_memory
from sidera.catalog.catalog import Catalog
from sidera.config import closest, parse_section
from sidera.core import InputError
from sidera.data.config import View
from sidera.data.split import Fit, fitted_split
from sidera.models.generators.cobra import Cobra
from sidera.models.generators.decoder_only import DecoderOnly
from sidera.models.generators.liger import Liger
from sidera.models.generators.masked_codes import MaskedCodes
from sidera.models.generators.mtp import TigerMTP
from sidera.models.generators.onerec import OneRec
from sidera.models.generators.onerec_v1 import OneRecV1
from sidera.models.generators.onerec_v2 import OneRecV2
from sidera.models.generators.rpg import Rpg
from sidera.models.generators.sidera import SideraGenerator
from sidera.models.generators.tiger import Tiger
from sidera.models.generators.tiger_mlp import TigerMLP
from sidera.models.rankers.pscore import PScore
from sidera.models.rankers.session_reward import SessionReward
from sidera.models.retrievers.als import ALS
from sidera.models.retrievers.bpr import BPR
from sidera.models.retrievers.content_knn import ContentKNN
from sidera.models.retrievers.hstu import HSTU
from sidera.models.retrievers.item_knn import ItemKNN
from sidera.models.retrievers.kuaiformer import KuaiFormer
from sidera.models.retrievers.popularity import Popularity
from sidera.models.retrievers.sasrec import SASRec
from sidera.models.retrievers.transitions import Transitions
from sidera.models.retrievers.transitions_text import TransitionsText
from sidera.ops.budget import Budget, TooLarge

MODELS: dict[str, Any] = {
    "popularity": Popularity,
    "item_knn": ItemKNN,
    "transitions": Transitions,
    "transitions_text": TransitionsText,
    "content_knn": ContentKNN,
    "als": ALS,
    "bpr": BPR,
    "sasrec": SASRec,
    "hstu": HSTU,
    "kuaiformer": KuaiFormer,
    "tiger": Tiger,
    "liger": Liger,
    "decoder_only": DecoderOnly,
    "cobra": Cobra,
    "sidera": SideraGenerator,
    "rpg": Rpg,
    "tiger_mtp": TigerMTP,
    "masked_codes": MaskedCodes,
    "tiger_mlp": TigerMLP,
    "onerec": OneRec,
    "onerec_v1": OneRecV1,
    "onerec_v2": OneRecV2,
    "pscore": PScore,
    "session_reward": SessionReward,
}
RANKING = ("ranker", "reward")  # roles that score what is given; the others find it
SIZES = {"width", "num_layers", "ff_width", "ff_multiple", "num_experts", "neighbours", "factors"}  # of weights


def parse_model(section: Mapping[str, Any]) -> tuple[str, Any]:
    """A recipe's [model] section -> (name, the model's Config)."""
    values = dict(section)
    name = values.pop("name", None)
    if not isinstance(name, str) or name not in MODELS:
        close = closest(name, MODELS) if isinstance(name, str) else ""
        problem = "[model] lacks name" if name is None else f"[model] name = {shown(name)} is not known{close}"
        raise InputError(problem, allowed=", ".join(MODELS))
    return name, parse_section(MODELS[name].Config, values, "[model]")


def role_of(name: str) -> str:
    """generator | scorer | ranker | reward"""
    return str(MODELS[name].role)


def ways_of(name: str) -> tuple[str, ...]:
    """How a generator can be searched, the usual way first; a model that says nothing, by a beam."""
    return tuple(getattr(MODELS[name], "ways", ("beam",)))


def fit_once(model: torch.nn.Module, view: View, fit: Fit = "train") -> None:
    """What a model learns from the events of ``fit`` without steps; most models learn nothing in this way.

    What it chooses by validation rows (``count_again`` keeps that) it chooses before it has learned their events.
    """
    learn: Any = getattr(model, "fit_once", None)
    if learn is not None:
        learn(view)
        if fit != "train":
            again: Any = getattr(model, "count_again", learn)
            again(replace(view, split=fitted_split(view.dataset, view.split, fit)))


def reads_codes(name: str) -> bool:
    """Whether this model needs a catalogue with semantic IDs."""
    return bool(getattr(MODELS[name], "reads_codes", True))


def takes_expert(name: str) -> bool:
    """Whether counts of item pairs can stand beside it: a generator whose scores are log-probabilities of items, not of
    lists (``SessionGenerator``) and not fused with something (``HybridGenerator``)."""
    other = ("log_probs_lists", "fused")
    return role_of(name) == "generator" and not any(hasattr(MODELS[name], method) for method in other)


def build_model(
    name: str, config: Any, catalog: Catalog, seed: int = 0, budget: Budget | None = None
) -> torch.nn.Module:
    """A freshly initialised model; the same seed gives the same weights.

    InputError when the model reads semantic IDs and the catalogue has none, and, before the memory is touched, when it
    would take more than ``budget``, by default all of this machine's memory.
    """
    if reads_codes(name) and not catalog.level_sizes:
        catalog.check_codes(f"[model] name = {name!r}")
    budget = budget or Budget(total_memory() or 2**63 - 1)
    with torch.random.fork_rng(), budget:
        torch.manual_seed(seed)
        try:
            return MODELS[name](config, catalog)
        except TooLarge as error:
            numbers = {key: value for key, value in asdict(config).items() if type(value) is int}
            key = max(numbers, key=lambda key: numbers[key])
            raise InputError(
                f"[model] {name} with {key} = {numbers[key]:,} over {catalog.num_items:,} items takes {error.needed}",
                allowed=error.limit,
                fix=f"--set model.{key}=SMALLER, and less of {', '.join(sorted(set(numbers) & SIZES - {key})) or key}",
            ) from None
