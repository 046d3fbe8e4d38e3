"""Reranking at serving: the generator writes candidates, a ranker reads them and puts the best first.

    reranker = Reranker.load("runs/x/reward", recommender.catalog)
    recommender.reranker = reranker              # every answer goes through it from now on

This is the reward model's *selection* (2502.18965, 3.4 trains by it; here it answers): the same P-Score that alignment
is rewarded by, asked at the last moment about candidates of the policy. It costs a wider search and a second network
on every request, and it can only choose among what was written.

Candidates are the search's (``beam``), or draws of the policy beside the k most likely (``sample``): a beam holds many
versions of one favourite, draws hold more of what a user might also like. Items that the ranker has no row for (they
came later) keep the generator's order behind all others.

Shape legend: B histories · C candidates.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sidera import artifacts
from sidera.batch import Batch
from sidera.catalog.catalog import Catalog
from sidera.config import check_value
from sidera.core import ArtifactError
from sidera.loading import open_artifact
from sidera.models.rankers.pscore import PScore
from sidera.models.saved import saved_model

KIND = "ranker"
FOLDER = "reward"  # of a run folder: the network that rewards, and that reranks when asked to
Source = Literal["beam", "sample"]


@dataclass
class Reranker:
    """A ranker and how many candidates it is asked about."""

    network: PScore
    version: str
    num_candidates: int = 64
    source: Source = "beam"

    def __post_init__(self) -> None:
        check_value("rerank", "candidates", self.num_candidates, 1 <= self.num_candidates <= 512, "1 to 512")
        self.network.eval()

    @torch.inference_mode()
    def order(self, batch: Batch, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(B, C) candidates, -1 where none -> the k best of each (B, k) with their scores, -1 and -inf behind."""
        known_mask = (candidates >= 0) & (candidates < self.network.items.num_items)
        asked = candidates.masked_fill(~known_mask, 0)
        scores = self.network.score(self.network.context(batch.newest(self.network.reads.max_events)), asked)[..., 0].float()
        places = torch.arange(candidates.shape[1], device=candidates.device)
        scores = torch.where(known_mask, scores, -1.0 - places)  # p is above 0: items without a row keep their order
        scores = scores.masked_fill(candidates < 0, float("-inf"))
        best, order = scores.topk(min(k, candidates.shape[1]), dim=1)
        return candidates.gather(1, order), best

    @classmethod
    def load(cls, path: str | Path, catalog: Catalog, num_candidates: int = 64, source: Source = "beam") -> Reranker:
        """Open what :func:`save_ranker` wrote."""
        network, version = load_ranker(path, catalog)
        return cls(network, version, num_candidates, source)


def save_ranker(
    network: PScore, path: str | Path, catalog: Catalog, *, digest: str, parents: dict[str, str], info: dict[str, Any]
) -> None:
    """Write a ranker's artifact; ``info`` is kept beside it (on whom it learned, how well it ranks)."""
    section = {"name": "pscore", **asdict(network.config)}
    kept = {"codebook_id": catalog.codebook_id, "num_items": network.items.num_items, **info}
    manifest = artifacts.Manifest(KIND, digest, parents=parents, recipe={"model": section}, info=kept)
    with artifacts.writing(path, manifest) as folder:
        artifacts.save_tensors(folder, network.state_dict())


def load_ranker(path: str | Path, catalog: Catalog) -> tuple[PScore, str]:
    """-> (network, version); the catalogue may have grown since."""
    path = Path(path)
    if not path.is_dir():
        raise ArtifactError(f"no ranker at {str(path)!r}", fix="make one with `sidera align`")
    opened = open_artifact(path, KIND)
    network, section, _ = saved_model(opened, catalog)
    if not isinstance(network, PScore):
        raise opened.damaged(f"it holds {section['name']!r}, which ranks no candidates")
    return network.eval(), opened.manifest.digest
