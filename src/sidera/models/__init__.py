"""The systems a recipe can name. A new one is a file under this room, a line here, a recipe and a docs page.

Every class is built as ``Model(config, catalog)`` with its frozen dataclass ``Model.Config``, and says in ``trains_on``
which batches its ``loss`` takes: "positions" (packed, a target per event), "prefixes" (a target per history),
"requests" (a request's targets per history; such a class also says ``reads_feedback = True``), "sessions" (likewise,
the targets being a list in order), "exposures" (all that a request showed: rankers), "counts" (filled once from the
training sequences) or "nothing". A class that reads no semantic IDs says ``reads_codes = False``: its catalogue needs
none, and none are made unless the recipe asks for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sidera.catalog.catalog import Catalog
from sidera.config import closest, parse_section
from sidera.core import InputError
from sidera.models.generators.onerec import OneRec
from sidera.models.generators.onerec_v1 import OneRecV1
from sidera.models.generators.onerec_v2 import OneRecV2
from sidera.models.generators.sidera import SideraGenerator
from sidera.models.generators.tiger import Tiger
from sidera.models.rankers.pscore import PScore
from sidera.models.retrievers.item_knn import ItemKNN
from sidera.models.retrievers.popularity import Popularity
from sidera.models.retrievers.sasrec import SASRec

MODELS: dict[str, Any] = {
    "popularity": Popularity,
    "item_knn": ItemKNN,
    "sasrec": SASRec,
    "tiger": Tiger,
    "sidera": SideraGenerator,
    "onerec": OneRec,
    "onerec_v1": OneRecV1,
    "onerec_v2": OneRecV2,
    "pscore": PScore,
}


def parse_model(section: Mapping[str, Any]) -> tuple[str, Any]:
    """A recipe's [model] section -> (name, the model's Config)."""
    values = dict(section)
    name = values.pop("name", None)
    if name not in MODELS:
        problem = (
            "[model] lacks name" if name is None else f"[model] name = {name!r} is not known{closest(name, MODELS)}"
        )
        raise InputError(problem, allowed=", ".join(MODELS))
    return name, parse_section(MODELS[name].Config, values, "[model]")


def reads_codes(name: str) -> bool:
    """Whether this model needs a catalogue with semantic IDs."""
    return bool(getattr(MODELS[name], "reads_codes", True))


def build_model(name: str, config: Any, catalog: Catalog, seed: int = 0) -> torch.nn.Module:
    """A freshly initialised model; the same seed gives the same weights.

    InputError when the model reads semantic IDs and the catalogue has none.
    """
    if reads_codes(name) and not catalog.level_sizes:
        catalog.check_codes(f"[model] name = {name!r}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MODELS[name](config, catalog)
