"""The ``[eval]`` section of a recipe: what is measured, and with which decoding settings.

Decoding settings live here and never in a checkpoint: two models are compared with the same beam.
docs/understand/protocol.md says what every number means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sidera.config import check_counts, check_value, later
from sidera.core import InputError
from sidera.models import MODELS

Seen = Literal["keep", "filter"]
COUNTING = ("popularity", "transitions", "item_knn", "transitions_text")  # seconds on most logs, the cheapest first
WIDE_ABOVE = 10  # @k for k above this is read from lists that `wide_beam` made


@dataclass(frozen=True)
class EvalConfig:
    """What `sidera evaluate` measures."""

    ks: tuple[int, ...] = (5, 10, 50)  # cut-offs of recall@k and ndcg@k
    beam: int = 50  # beams of a generator for k <= 10
    wide_beam: int = 128  # beams of a generator for k > 10
    search: Literal["auto", "beam", "exact", "graph", "draft", "unmask"] = later("auto")
    # how a generator is searched (docs/understand/decode.md); auto: the model's usual way
    seen: tuple[Seen, ...] = ("keep", "filter")  # may items of the history be ranked? keep: yes, filter: no
    batch_size: int = 256  # histories ranked at once
    max_rows: int | None = None  # rank a seeded sample of so many rows; None: all of them
    bootstrap: int = 1000  # resamples of users behind each interval
    valid_rows: int | Literal["auto"] | None = None  # validation rows ranked at each evaluation of a training;
    # None: all; "auto": as many as cost a tenth of the training by the first evaluation's clock, the same from then on
    seed: int = 0  # of the row sample, the resamples and the shown examples
    free_rows: int = 1000  # rows on which a generator also writes without the trie (legality)
    latency_rows: int = 100  # requests timed one at a time; 0: no timing
    samples: int = 6  # example answers kept for the report
    baselines: tuple[str, ...] = later(COUNTING)  # counting models measured on the same rows, beside the run's; [] none
    baseline_minutes: float = later(10.0)  # of CPU time; a baseline whose turn comes behind them is left out

    def __post_init__(self) -> None:
        if not self.ks or list(self.ks) != sorted(set(self.ks)) or self.ks[0] < 1:
            raise InputError(f"[eval] ks = {list(self.ks)}", allowed="ascending whole numbers, 1 or more, at least one")
        if not self.seen or len(set(self.seen)) != len(self.seen) or not set(self.seen) <= {"keep", "filter"}:
            raise InputError(f"[eval] seen = {list(self.seen)}", allowed='"keep", "filter" or both, each once')
        known = [name for name, kind in MODELS.items() if hasattr(kind, "fit_once")]
        if not set(self.baselines) <= {*known} or len(set(self.baselines)) != len(self.baselines):
            raise InputError(f"[eval] baselines = {list(self.baselines)}", allowed=f"each once of {', '.join(known)}")
        check_value("[eval]", "baseline_minutes", self.baseline_minutes, 0 <= self.baseline_minutes < 1e6, "0 or more")
        check_counts("[eval]", self, "batch_size", "bootstrap", "beam", "wide_beam")
        check_counts("[eval]", self, "free_rows", "latency_rows", "samples", "seed", low=0)
        for name in ("max_rows", "valid_rows"):
            value = getattr(self, name)
            if value is not None and value != "auto" and value < 1:
                raise InputError(f"[eval] {name} = {value}", allowed="1 or more", fix="leave it out for all rows")
        for name, ks, beam in (("beam", self.narrow_ks, self.beam), ("wide_beam", self.wide_ks, self.wide_beam)):
            if ks and beam < ks[-1]:
                raise InputError(f"[eval] {name} = {beam} cannot fill a list of {ks[-1]}", allowed=f"{ks[-1]} or more")

    @property
    def narrow_ks(self) -> tuple[int, ...]:
        return tuple(k for k in self.ks if k <= WIDE_ABOVE)

    @property
    def wide_ks(self) -> tuple[int, ...]:
        return tuple(k for k in self.ks if k > WIDE_ABOVE)

    @property
    def lists(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """The lists that are ranked: (cut-offs read from the list, beams of a generator); the list has ks[-1] items."""
        pairs = ((self.narrow_ks, self.beam), (self.wide_ks, self.wide_beam))
        return tuple((ks, beam) for ks, beam in pairs if ks)

    @property
    def main_k(self) -> int:
        """The cut-off of slices and list metrics: 10 where it is measured."""
        return self.narrow_ks[-1] if self.narrow_ks else self.ks[0]
