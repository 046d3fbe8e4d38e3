"""Reranking at serving: the generator writes candidates, a ranker reads them and puts the best first.

    sidera.load("runs/x", serve=ServeConfig(rerank=64))      # runs/x/reward orders 64 candidates of every answer

This is the reward model's *selection* (2502.18965, 3.4 trains by it; here it answers): the same P-Score that alignment
is rewarded by, asked at the last moment about candidates of the policy. It costs a wider search and a second network
on every request, and it can only choose among what was written.

Candidates are the search's (``beam``), or draws of the policy beside the k most likely (``sample``): a beam holds many
versions of one favourite, draws hold more of what a user might also like. The ranker grows with the catalogue that it
is asked about: it scores an item that came later by its content. Where it cannot grow, such items keep the generator's
order behind all others.

Shape legend: B histories · C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sidera.batch import Batch
from sidera.catalog.catalog import Catalog
from sidera.config import check_value
from sidera.core import ArtifactError
from sidera.data.reading import Reading
from sidera.decode.eligible import NEG_INF, Jagged
from sidera.engine.pipeline import Candidates, Query
from sidera.engine.ranking import Ranking
from sidera.engine.rollouts import roll_out
from sidera.nn.item_embedding import grown

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
    _grown: tuple[Catalog, Any] | None = field(default=None, repr=False)  # the network over the catalogue asked last

    def __post_init__(self) -> None:
        check_value("rerank", "candidates", self.num_candidates, 1 <= self.num_candidates <= 512, "1 to 512")
        self.network.eval()

    @property
    def reads_feedback(self) -> bool:
        return bool(self.network.reads.feedback)

    def needs(self, k: int, beam: int) -> int:
        return max(k, self.num_candidates) if self.source == "beam" else k

    def __call__(self, query: Query, candidates: Candidates, number: int) -> Candidates:
        """The ``number`` best candidates, in the ranker's order and with its scores."""
        snapshot, ids = query.snapshot, candidates.item_ids
        if self.source == "sample":
            with snapshot.answering():
                drawn = roll_out(
                    snapshot.generator, query.context, snapshot.catalog, self.num_candidates, "masked", 1.0, 0,
                    snapshot.version,
                )  # fmt: skip
            ids = without_repeats(torch.cat((ids, drawn.item_ids), dim=1), query.left_out)
            if query.allowed is not None:
                ids = ids.masked_fill(~query.allowed.holds(ids), -1)
        reading = Reading(snapshot.catalog.schema, snapshot.catalog.items, self.network.reads)
        ids, scores = self.over(snapshot.catalog).order(reading.cut(query.batch), ids, number)
        signed = candidates.version, candidates.items_version, self.version, candidates.expert
        return Candidates(
            ids, scores, *signed, followed_events=candidates.followed_events, searched=candidates.searched
        )

    def over(self, catalog: Catalog) -> Reranker:
        """This reranker, with its network grown to the items of the catalogue."""
        last = self._grown
        if last is None or last[0] is not catalog:
            last = self._grown = catalog, grown(self.network, catalog.items)
        return self if last[1] is self.network else replace(self, network=last[1], num_known=None, _grown=None)

    @torch.inference_mode()
    def order(self, batch: Batch, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(B, C) candidates, -1 where none, for histories as the ranker reads them -> the k best of each (B, k) with
        their scores, -1 and -inf behind.

        A candidate without a row carries the lowest score that the ranker gave in its history, 0 where it gave none:
        it stands there by rule, not by score.
        """
        none_mask, known_mask = candidates < 0, candidates >= 0
        if self.num_known is not None:
            known_mask = known_mask & (candidates < self.num_known)
        asked = candidates.masked_fill(~known_mask, 0)
        context = self.network.context(batch)
        scores = self.network.score(context, asked)[..., 0].float()
        by_score = scores.masked_fill(~known_mask, NEG_INF).sort(dim=1, descending=True, stable=True).indices
        groups = (~known_mask).long() + none_mask  # 0: scored, 1: without a row, 2: none
        order = by_score.gather(1, groups.gather(1, by_score).sort(dim=1, stable=True).indices)[:, :k]
        lowest = scores.masked_fill(~known_mask, float("inf")).amin(1, keepdim=True)  # (B, 1)
        lowest = lowest.masked_fill(~known_mask.any(1, keepdim=True), 0.0)
        scores = torch.where(known_mask, scores, lowest).masked_fill(none_mask, NEG_INF)
        return candidates.gather(1, order), scores.gather(1, order)

    @classmethod
    def load(cls, path: str | Path, catalog: Catalog, num_candidates: int = 64, source: Source = "beam") -> Reranker:
        """Open a ranker's run folder, whose catalogue must be of the same codebook."""
        ranking = Ranking.load(path, catalog)
        if ranking.role != "ranker":
            raise ArtifactError(f"{str(path)!r} holds a {ranking.role}", allowed="a ranker: it scores single items")
        return cls(ranking.model, ranking.version, num_candidates, source, ranking.num_known)


def without_repeats(candidates: Tensor, left_out: Jagged | None) -> Tensor:
    """(B, C) candidates with -1 where an item stands further to the left already, or is left out."""
    earlier_mask = torch.ones(candidates.shape[1:] * 2, dtype=torch.bool, device=candidates.device).tril(-1)
    repeats = ((candidates[:, :, None] == candidates[:, None]) & earlier_mask).any(2)
    if left_out is not None:
        values, offsets = left_out[0].to(candidates.device), left_out[1].to(candidates.device)
        for row in range(len(candidates)):
            repeats[row] |= torch.isin(candidates[row], values[offsets[row] : offsets[row + 1]])
    return candidates.masked_fill(repeats, -1)
