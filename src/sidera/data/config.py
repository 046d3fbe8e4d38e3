"""Section [data] of a recipe, and the two calls that every stage makes: ``load_dataset`` and ``make_split``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sidera.core import InputError
from sidera.data.adapters import ADAPTERS, detect
from sidera.data.dataset import Dataset
from sidera.data.split import Split, check_leaks, leave_one_out, temporal


@dataclass(frozen=True)
class DataConfig:
    adapter: str = "auto"  # auto, or a name of ADAPTERS
    split: Literal["leave_one_out", "temporal"] = "leave_one_out"
    valid_share: float = 0.1  # temporal: share of all events in the validation window
    test_share: float = 0.1  # temporal: share of all events in the test window
    min_rating: float | None = None  # keep events rated at least this; None: the adapter's custom (MovieLens 4)
    text_fields: tuple[str, ...] = ()  # item columns that make up the text; empty: the adapter's custom
    # Columns that others generated (idgenrec_text_id, gram_keywords) are read only when text_fields names them.


def load_dataset(path: str | Path, config: DataConfig | None = None) -> Dataset:
    """Read a folder through the adapter that the config names, or that its files call for."""
    config = config or DataConfig()
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"no data folder at {str(path)!r}", fix="check the path, or make one with `sidera import`")
    adapter = detect(folder) if config.adapter == "auto" else config.adapter
    if adapter not in ADAPTERS:
        raise InputError(f"[data] adapter = {adapter!r} is not known", allowed=", ".join(["auto", *ADAPTERS]))
    return ADAPTERS[adapter](folder, config.min_rating, config.text_fields)


def make_split(dataset: Dataset, config: DataConfig | None = None) -> Split:
    """Split as the config says; LeakError if anything asked for could be seen."""
    config = config or DataConfig()
    if config.split == "temporal":
        split = temporal(dataset, config.valid_share, config.test_share)
    elif config.split == "leave_one_out":
        split = leave_one_out(dataset)
    else:
        raise InputError(f"[data] split = {config.split!r} is not known", allowed="leave_one_out, temporal")
    check_leaks(dataset, split)
    return split
