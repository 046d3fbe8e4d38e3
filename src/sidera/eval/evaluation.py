"""What an evaluation found, as a value and as an artifact: ``metrics.json`` and ``ranks.parquet``.

The ranks of every row are kept, so that two runs can be compared later, row by row, without their models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sidera import artifacts
from sidera.core import InputError
from sidera.eval.bootstrap import Estimate
from sidera.eval.metrics import TargetRanks
from sidera.loading import open_artifact

KIND = "evaluation"


@dataclass(frozen=True)
class Slice:
    """Metrics on a part of the rows."""

    rows: int
    metrics: dict[str, Estimate]


@dataclass(frozen=True)
class Evaluation:
    """Numbers, what they mean (protocol), and the ranks that they come from."""

    name: str  # of the model, for tables
    protocol: dict[str, Any]  # two evaluations are comparable when these are equal, but for the recommender's own
    metrics: dict[str, dict[str, Estimate]]  # seen mode -> metric -> estimate
    lists: dict[str, dict[str, float]]  # seen mode -> coverage, Gini, head share
    slices: dict[str, dict[str, dict[str, Slice]]]  # seen mode -> "popularity" | "history" -> slice
    latency: dict[str, Any]
    legality: dict[str, float]  # of generation without the trie; empty for scorers
    samples: list[dict[str, Any]]
    ranks: pa.Table  # user, target, and per list: rank_, tie_start_, tie_size_ + SEEN_LENGTH
    info: dict[str, Any] = field(default_factory=dict)  # seeds of training, minutes, ...

    def value(self, metric: str, seen: str = "keep") -> float:
        return self.metrics[seen][metric].value

    def target_ranks(self, seen: str, length: int) -> TargetRanks:
        """Ranks in the lists of ``length`` items made in mode ``seen``."""
        columns = [f"{part}_{seen}_{length}" for part in ("rank", "tie_start", "tie_size")]
        missing = [name for name in columns if name not in self.ranks.column_names]
        if missing:
            raise InputError(f"evaluation of {self.name!r} has no ranks {missing[0]!r}", fix="evaluate with that list")
        rank, tie_start, tie_size = (self.ranks[name].to_numpy() for name in columns)
        return TargetRanks(rank, tie_start, tie_size, length)

    @property
    def user_numbers(self) -> np.ndarray:
        """(R,) equal numbers for rows of one user."""
        return np.unique(self.ranks["user"].to_numpy(zero_copy_only=False), return_inverse=True)[1]

    def summary(self) -> dict[str, Any]:
        """Everything but the ranks, as plain JSON values."""
        record = {name: getattr(self, name) for name in SUMMARY_FIELDS}
        return json.loads(json.dumps(record, default=asdict))


SUMMARY_FIELDS = ("name", "protocol", "metrics", "lists", "slices", "latency", "legality", "samples", "info")


def save_evaluation(
    evaluation: Evaluation,
    path: str | Path,
    *,
    digest: str,
    parents: Mapping[str, str] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> None:
    """Write the artifact folder. ``digest`` names its inputs: equal digests mean that it need not be made again."""
    manifest = artifacts.Manifest(
        kind=KIND,
        digest=digest,
        parents=dict(parents or {}),
        recipe=dict(recipe or {}),
        info={"name": evaluation.name, "which": evaluation.protocol["which"], "rows": evaluation.protocol["rows"]},
    )
    with artifacts.writing(path, manifest) as folder:
        (folder / "metrics.json").write_text(json.dumps(evaluation.summary(), indent=1) + "\n", encoding="utf-8")
        pq.write_table(evaluation.ranks, folder / "ranks.parquet", compression="zstd")


def load_evaluation(path: str | Path) -> Evaluation:
    """Read the artifact folder, its digests checked."""
    opened = open_artifact(path, KIND)
    with opened.believed():
        record = opened.json("metrics.json", dict)
        ranks = opened.table("ranks.parquet", opened.info("rows", int))
        metrics = {seen: _estimates(estimates) for seen, estimates in record["metrics"].items()}
        slices = {
            seen: {
                kind: {name: Slice(part["rows"], _estimates(part["metrics"])) for name, part in parts.items()}
                for kind, parts in kinds.items()
            }
            for seen, kinds in record["slices"].items()
        }
        rest = {name: record[name] for name in SUMMARY_FIELDS if name not in ("metrics", "slices")}
        return Evaluation(metrics=metrics, slices=slices, ranks=ranks, **rest)


def fit_of(evaluation: Evaluation) -> str:
    """The events that the model has learned from, "train" or "train+valid"."""
    return str(evaluation.protocol.get("fit", "train"))  # a refit is newer than the oldest evaluations


def _estimates(record: Mapping[str, Mapping[str, float]]) -> dict[str, Estimate]:
    for name, values in record.items():
        if not all(type(value) in (int, float) for value in values.values()):
            raise ValueError(f"{name} is no estimate")
    return {name: Estimate(**values) for name, values in record.items()}


def protocol_line(*protocols: Mapping[str, Any]) -> str:
    """What a reader must know beside an accuracy table, in one line; several runs on the same rows share it."""
    first = protocols[0]
    sampled = f" of {first['rows_in_split']:,}" if first["rows"] != first["rows_in_split"] else ""
    events = sorted({protocol["max_history"] for protocol in protocols}, reverse=True)
    decoding = [
        f"beam {made['beam']} for @{'/@'.join(map(str, made['ks']))}" if made["beam"] else "scorers exact"
        for protocol in protocols
        for made in protocol["lists"]
    ]
    return " · ".join(
        [
            first["dataset"],
            f"{first['split'].replace('_', '-')}, {first['which']}",
            f"{first['rows']:,}{sampled} rows",
            f"full ranking over {first['num_items']:,} items",
            "item-level hits",
            f"seen = {' and '.join(first['seen'])}",
            ", ".join(dict.fromkeys(decoding)),
            f"newest {' or '.join(map(str, events))} events read",
        ]
    )
