"""How a run folder serves: alone, reranked by the network that it was rewarded by, with slots kept for new items."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sidera.engine.quota import Quota
from sidera.engine.recommender import Recommender
from sidera.engine.reranker import FOLDER, Reranker, Source


@dataclass(frozen=True)
class Serving:
    """What ``sidera serve`` and an arm of an online test are told."""

    run: Path
    candidates: int = 0  # that its reward's network chooses among; 0: none does
    source: Source = "sample"
    beam: int | None = None  # else the run's
    cold_share: float = 0.0  # of the slots kept for items that the log never showed

    def open(self, device: str = "cpu") -> Recommender:
        """ArtifactError when there is no such run, or no ``reward/`` in it to rerank with."""
        recommender = Recommender.load(self.run, device=device, beam=self.beam)
        if self.candidates:
            recommender.reranker = Reranker.load(self.run / FOLDER, recommender.catalog, self.candidates, self.source)
            recommender.reranker.network.to(device)
        if self.cold_share:
            recommender.quota = Quota.cold(recommender.catalog, self.cold_share)
        return recommender
