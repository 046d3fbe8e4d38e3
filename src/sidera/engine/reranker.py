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

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sidera.batch import Batch
from sidera.catalog.catalog import Catalog
from sidera.config import check_value
from sidera.core import ArtifactError
from sidera.engine.ranking import Ranking

FOLDER = "reward"  # of a run folder: the network that rewards, and that reranks when asked to
Source = Literal["beam", "sample"]


@dataclass
class Reranker:
    """A ranker and how many candidates it is asked about."""

    network: Any  # of role "ranker"
    version: str
    num_candidates: int = 64
    source: Source = "beam"
    num_known: int | None = None  # items that the network has rows for; None: all

    def __post_init__(self) -> None:
        check_value("rerank", "candidates", self.num_candidates, 1 <= self.num_candidates <= 512, "1 to 512")
        self.network.eval()

    @torch.inference_mode()
    def order(self, batch: Batch, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(B, C) candidates, -1 where none -> the k best of each (B, k) with their scores, -1 and -inf behind."""
        known_mask = candidates >= 0
        if self.num_known is not None:
            known_mask = known_mask & (candidates < self.num_known)
        asked = candidates.masked_fill(~known_mask, 0)
        context = self.network.context(batch.newest(self.network.reads.max_events))
        scores = self.network.score(context, asked)[..., 0].float()
        places = torch.arange(candidates.shape[1], device=candidates.device)
        scores = torch.where(known_mask, scores, -1.0 - places)  # p is above 0: items without a row keep their order
        scores = scores.masked_fill(candidates < 0, float("-inf"))
        best, order = scores.topk(min(k, candidates.shape[1]), dim=1)
        return candidates.gather(1, order), best

    @classmethod
    def load(cls, path: str | Path, catalog: Catalog, num_candidates: int = 64, source: Source = "beam") -> Reranker:
        """Open a ranker's run folder, whose catalogue must be of the same codebook."""
        ranking = Ranking.load(path, catalog)
        if ranking.role != "ranker":
            raise ArtifactError(f"{str(path)!r} holds a {ranking.role}", allowed="a ranker: it scores single items")
        return cls(ranking.model, ranking.version, num_candidates, source, ranking.num_known)
