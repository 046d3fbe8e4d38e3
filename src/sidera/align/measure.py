"""What every aligned policy is judged by without serving anybody: held-out rows, its own samples, and two rankers.

Recall is measured on test rows, which no step and no gate looks at, and compared row by row: most of what makes recall
differ is which rows were asked. ``reward`` is the network that the policy was rewarded by, ``judge`` one that learned
from other users. Both share what they cannot see: a judge that agrees proves little (docs/understand/alignment.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sidera import artifacts
from sidera.align.diagnostics import Probe
from sidera.align.step import read_requests
from sidera.engine.recommender import Recommender
from sidera.loading import open_artifact
from sidera.roles import Ranker

KIND = "measured"
TOP = 10  # items whose worth the rankers are asked for
WIDTH = 1.96  # standard errors of half a 95 % interval


@dataclass(frozen=True)
class Measured:
    """R test rows."""

    figures: Mapping[str, float]
    hits: np.ndarray  # (R,) bool
    labels: Mapping[str, np.ndarray]  # label of what came next -> (R,) bool

    def save(self, path: Path, digest: str) -> None:
        manifest = artifacts.Manifest(KIND, digest, info={"figures": dict(self.figures)})
        with artifacts.writing(path, manifest) as folder:
            tensors = {"hits": torch.from_numpy(self.hits)}
            tensors |= {f"label.{name}": torch.from_numpy(mask) for name, mask in self.labels.items()}
            artifacts.save_tensors(folder, tensors)

    @classmethod
    def load(cls, path: Path) -> Measured:
        opened = open_artifact(path, KIND)
        figures = opened.info("figures", dict)
        for name in figures:
            opened.typed({name: float(figures[name]) if type(figures[name]) is int else figures[name]}, name, float)
        tensors = opened.tensors()
        if "hits" not in tensors or any(mask.dtype != torch.bool or mask.ndim != 1 for mask in tensors.values()):
            raise opened.damaged("its rows are not marks")
        if len({len(mask) for mask in tensors.values()}) != 1:
            raise opened.damaged("its marks are not of the same rows")
        masks = {name: mask.numpy() for name, mask in tensors.items()}
        labels = {name[6:]: mask for name, mask in masks.items() if name.startswith("label.")}
        return cls(figures, masks["hits"], labels)


def measure(engine: Recommender, probe: Probe, networks: Mapping[str, Ranker]) -> Measured:
    """Everything of one policy; ``networks`` by name, such as reward and judge."""
    labels = {name: torch.cat(list(parts)).numpy() for name, parts in probe.labels.items()}
    hits = probe.hits(engine).numpy()
    figures = probe.sample_figures(engine)
    for name, mask in labels.items():
        figures[f"rows_{name}"] = float(mask.sum())
        figures[f"recall@{probe.recall_at}_{name}"] = float(hits[mask].mean()) if mask.any() else float("nan")
    for name, network in networks.items():
        figures[name] = _mean_score(engine, probe, network)
    return Measured(figures, hits, labels)


def recall_differences(reference: Measured, other: Measured) -> dict[str, tuple[float, float]]:
    """label -> (recall of the other less the reference's, half of the 95 % interval), paired by row."""
    found = {}
    for name, mask in reference.labels.items():
        gaps = other.hits[mask].astype(np.float64) - reference.hits[mask]
        if len(gaps) > 1:
            found[name] = (float(gaps.mean()), float(WIDTH * gaps.std(ddof=1) / np.sqrt(len(gaps))))
    return found


@torch.inference_mode()
def _mean_score(engine: Recommender, probe: Probe, network: Ranker) -> float:
    """Mean p of each row's ten best items."""
    scores: list[Tensor] = []
    for batch in probe.batches:
        items = engine.rank(read_requests(engine, batch), min(TOP, engine.catalog.num_items), filter_seen=True).item_ids
        context = network.context(batch.newest(network.reads.max_events).to(items.device))
        answer = network.score(context, items.clamp(min=0))[..., 0]
        scores.append(answer[items >= 0])
    return float(torch.cat(scores).double().mean())
