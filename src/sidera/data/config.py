"""Section [data] of a recipe, and the two calls that every stage makes: ``load_dataset`` and ``make_split``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from sidera.config import check_value
from sidera.core import InputError
from sidera.data.adapters import ADAPTERS, describe, detect
from sidera.data.dataset import Dataset
from sidera.data.feature import FeatureConfig, check_declared
from sidera.data.features import LONG_VIEW, POSITIVE, FeatureSchema, fit_schema, with_long_view
from sidera.data.split import Split, check_leaks, leave_one_out, temporal

AUTO = "auto"
# What [data] positive = "auto" looks for. A purchase says more than a look, and a look that lasted more than a click.
POSITIVES: tuple[str, ...] = (
    POSITIVE, "purchase", "is_purchase", LONG_VIEW, "is_long_view", "click", "is_click", "clicked", "like", "is_like",
    "liked",
)  # fmt: skip


@dataclass(frozen=True)
class DataConfig:
    adapter: str = "auto"  # auto, or a name of ADAPTERS
    split: Literal["leave_one_out", "temporal"] = "leave_one_out"
    # each user's last two events are asked for, or the log is cut at two moments
    valid_share: float = 0.1  # temporal: share of all events in the validation window
    test_share: float = 0.1  # temporal: share of all events in the test window
    min_rating: float | None = None  # keep events rated at least this; None: the adapter's custom (MovieLens 4)
    text_fields: tuple[str, ...] = ()  # item columns that make up the text; empty: the adapter's custom
    positive: str = ""  # feedback column whose true events are worth recommending ("click", "long_view"); "": all,
    # or those of the log's own mark "positive" (`sidera import --keep view=0,...`); "auto": the mark that says most
    long_view_quantile: float = 0.65  # long_view: watched longer than this share of views of like duration
    features: dict[str, FeatureConfig] = field(default_factory=dict)  # [data.features.NAME]; none: what is found
    # Columns that others generated (idgenrec_text_id, gram_keywords) are read only when text_fields names them.

    def __post_init__(self) -> None:
        check_declared(self.features)
        if self.text_fields and self.text_columns != self.text_fields:
            raise InputError(
                "[data] has text_fields and features of kind text", allowed="one of them: both say what the text is"
            )

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Item columns that the catalogue's encoder reads; empty: the adapter's custom."""
        declared = (entry.source or name for name, entry in self.features.items() if entry.kind == "text")
        return tuple(declared) or self.text_fields


def load_dataset(
    path: str | Path, config: DataConfig | None = None, say: Callable[[str], None] | None = None
) -> Dataset:
    """Read a folder through the adapter that the config names, or that its files call for; ``say`` hears which."""
    config = config or DataConfig()
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"no data folder at {str(path)!r}", fix="check the path, or make one with `sidera import`")
    adapter = detect(folder) if config.adapter == "auto" else config.adapter
    if adapter not in ADAPTERS:
        raise InputError(f"[data] adapter = {adapter!r} is not known", allowed=", ".join(["auto", *ADAPTERS]))
    dataset = ADAPTERS[adapter](folder, config.min_rating, config.text_columns)
    if say is not None:
        say(describe(folder, adapter))
    return dataset


@dataclass(frozen=True)
class View:
    """A log, its questions, and how its features are read."""

    dataset: Dataset
    split: Split
    schema: FeatureSchema


def make_views(dataset: Dataset, config: DataConfig | None = None) -> tuple[View, View]:
    """-> (every event with its feedback, positive events only); both ask the same questions."""
    config = config or DataConfig()
    if config.positive == AUTO:
        config = replace(config, positive=usual_positive(dataset))
    quantile = config.long_view_quantile
    check_value("[data]", "long_view_quantile", quantile, 0 < quantile < 1, "a share inside 0..1")
    positive = config.positive or (POSITIVE if _is_mark(dataset, POSITIVE) else "")
    schema = _fitted(dataset, config, positive)
    dataset = with_long_view(dataset, schema)
    if not positive:
        view = View(dataset, make_split(dataset, config), schema)
        return view, view
    positive_mask = dataset.feedback[positive].astype(bool)
    if not positive_mask.any():
        raise InputError(f"no event of {dataset.name!r} is positive ([data] positive = {positive!r})")
    split = make_split(dataset, config, positive_mask)
    kept, kept_split = dataset.keep(positive_mask), split.keep(positive_mask)
    check_leaks(kept, kept_split)
    return View(dataset, split, schema), View(kept, kept_split, schema)


def usual_positive(dataset: Dataset) -> str:
    """The mark that says best what is worth recommending again: the first of POSITIVES that is true somewhere, "" where
    the log has none of them."""
    can_derive = {"watch_time", "duration"} <= dataset.feedback.keys()
    for name in POSITIVES:
        values = dataset.feedback.get(name)
        if values is None and name == LONG_VIEW and can_derive:
            return name
        if values is not None and values.dtype == bool and values.any():
            return name
    return ""


def _is_mark(dataset: Dataset, name: str) -> bool:
    return name in dataset.feedback and dataset.feedback[name].dtype == bool


def _fitted(dataset: Dataset, config: DataConfig, positive: str) -> FeatureSchema:
    """The schema, its thresholds learned from events of the train part alone.

    Where long views are themselves the positives, the thresholds decide what is asked, so the train part cannot be
    known before them: all but a user's last two events are learned from then.
    """
    if config.split == "temporal" and dataset.time_kind == "seconds":
        split = make_split(dataset, config)  # cut by the times of all events, whatever is positive
    elif positive and _is_mark(dataset, positive):
        split = make_split(dataset, config, dataset.feedback[positive])
    else:
        split = make_split(dataset, replace(config, split="leave_one_out"))
    known_mask = np.arange(dataset.num_events) < split.train_ends[dataset.event_users]
    return fit_schema(dataset, positive, known_mask, config.long_view_quantile, config.features)


def make_split(dataset: Dataset, config: DataConfig | None = None, positive_mask: np.ndarray | None = None) -> Split:
    """Split as the config says; LeakError if anything asked for could be seen. ``positive_mask``: what may be asked."""
    config = config or DataConfig()
    if config.split == "temporal":
        split = temporal(dataset, config.valid_share, config.test_share, positive_mask)
    elif config.split == "leave_one_out":
        split = leave_one_out(dataset, positive_mask)
    else:
        raise InputError(f"[data] split = {config.split!r} is not known", allowed="leave_one_out, temporal")
    check_leaks(dataset, split)
    return split
