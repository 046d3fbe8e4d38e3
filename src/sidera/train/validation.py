"""The figures that choose a training's best weights, over as many validation rows as the training can afford.

``[eval] valid_rows = "auto"`` takes all rows where there are few of them, and else measures: the first evaluation times
a few rows, and so many are taken that evaluating them costs at most a tenth of the training since the evaluation
before. The rows are a seeded sample whose size is a power of two, so that one machine mostly finds the same size
again, and the size is kept in the run folder: every later evaluation, also of a training that is continued, asks the
same rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from sidera.artifacts import write_text
from sidera.data.dataset import Dataset
from sidera.data.split import EvalRows
from sidera.engine.recommender import Recommender
from sidera.eval.config import EvalConfig
from sidera.eval.evaluate import quick_metrics

FILE = "validation.json"
SHARE = 0.1  # of the training's time
FEW = 1024  # rows that are always affordable
PILOT = 256  # rows that are timed


def watches_filter(monitor: str) -> bool:
    """Whether the figure needs lists without seen items: those that filter, and the means of both modes."""
    return monitor.startswith(("filter_", "mean_"))


class Validation:
    """Called with the model; -> the figures by name, of validation rows only."""

    def __init__(
        self,
        recommender: Recommender,
        dataset: Dataset,
        rows: EvalRows,
        config: EvalConfig,
        *,
        filter_too: bool,
        folder: Path,
        identity: str,
        say: Callable[[str], None],
    ) -> None:
        """``folder`` keeps the number of rows, for the training that ``identity`` names."""
        self.recommender, self.dataset, self.rows, self.config = recommender, dataset, rows, config
        self.filter_too, self.path, self.identity, self.say = filter_too, folder / FILE, identity, say
        self.number: int | None = config.valid_rows if config.valid_rows != "auto" else self._kept()
        self.started = time.perf_counter()

    def __call__(self, _: nn.Module | None = None) -> Mapping[str, float]:
        if self.config.valid_rows == "auto" and self.number is None:
            self.number = self._choose(time.perf_counter() - self.started)
            self._keep(self.number)
            if self.number < len(self.rows):
                self.say(
                    f"validation: {self.number:,} of {len(self.rows):,} rows, so that it costs about a tenth of the"
                    " training; --set eval.valid_rows=N takes another number"
                )
        return self._measure(self.number)

    def _measure(self, number: int | None) -> dict[str, float]:
        return quick_metrics(
            self.recommender,
            self.dataset,
            self.rows,
            beam=self.config.beam,
            max_rows=number,
            filter_too=self.filter_too,
            seed=self.config.seed,
        )

    def _choose(self, training_seconds: float) -> int:
        """The number of rows after a first stretch of training that took so long."""
        if len(self.rows) <= FEW:
            return len(self.rows)
        self._measure(PILOT)  # allocates buffers, lays out weights
        started = time.perf_counter()
        self._measure(PILOT)
        return affordable(len(self.rows), training_seconds, (time.perf_counter() - started) / PILOT)

    def _kept(self) -> int | None:
        """What an earlier piece of this training chose."""
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
            number = int(record["rows"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        mine = record.get("identity") == self.identity and record.get("of") == len(self.rows)
        return number if mine and 1 <= number <= len(self.rows) else None

    def _keep(self, number: int) -> None:
        record = {"rows": number, "of": len(self.rows), "identity": self.identity}
        write_text(self.path, json.dumps(record) + "\n")


def affordable(num_rows: int, training_seconds: float, seconds_per_row: float) -> int:
    """FEW doubled as often as a tenth of the training pays for; all rows when that is three quarters of them."""
    wanted = SHARE * training_seconds / max(seconds_per_row, 1e-9)
    if num_rows <= FEW or wanted >= num_rows:
        return num_rows
    number = FEW
    while 2 * number <= wanted:
        number *= 2
    return num_rows if 4 * number >= 3 * num_rows else number
