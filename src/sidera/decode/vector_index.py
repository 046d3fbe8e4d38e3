"""Nearest items by faiss: exact (``flat``) or approximate (``ivf``, ``hnsw``), with exact filters.

For models whose score is an inner product. An index answers from the items that it was built over; what came later is
compared one by one beside it until there is so much of it that the index is built again. Candidates are scored once
more by their vectors, so scores are those of the exact scan and ties go to the lower id. What may not be answered
(removed, filtered, seen) is left out afterwards: more is fetched until there are k answers, and where the index has no
more, or a filter leaves little, the exact scan answers. So an answer is short only where fewer items are eligible.

How far an approximate index looks (lists probed, nodes visited) is doubled until its recall of the exact top 10, on
users of the model itself, reaches what was asked for; the recall that was measured stands beside it (``recall``).

Trap: faiss has threads of its own; it is given as many as torch has.

Shape legend: B histories · Q vectors of a user · C candidates · N items · D dims · k results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sidera.core import InputError
from sidera.decode.dense import dense_search, padded_results
from sidera.decode.eligible import NEG_INF, Jagged
from sidera.decode.select import best_first, check_numbers
from sidera.ops import jagged

IndexKind = Literal["flat", "ivf", "hnsw"]
Users = Callable[[], Tensor]
TRAINED_ON = 64  # vectors of each list that the centres of an ivf are found from
NEIGHBOURS, BUILD_EFFORT = 24, 80  # of a node of hnsw, and nodes visited to find them
FIRST_EFFORT, MOST_EFFORT = 8, 4096  # lists probed or nodes visited by a search
TOP = 10  # of the recall that is measured
LATE_SHARE, FEW_LATE = 4, 1 << 16  # built again when more came than a quarter, and than this
SPARE = 6  # fetched beyond what is needed: whether the last is tied shows at once
SCANNED = 64  # filters that leave a 64th of the items are scanned


@dataclass(frozen=True)
class IndexConfig:
    """Which index, and what share of the exact top 10 it must find."""

    kind: IndexKind
    recall: float = 0.95

    def __post_init__(self) -> None:
        if self.kind not in get_args(IndexKind):
            raise InputError(f"index = {self.kind!r}", allowed=", ".join(get_args(IndexKind)))
        if not 0 < self.recall <= 1:
            raise InputError(f"index_recall = {self.recall}", allowed="above 0, at most 1")


@dataclass(frozen=True, eq=False)
class VectorIndex:
    """An index over the first ``num_built`` rows of ``vectors``, and the rows behind them. Immutable."""

    config: IndexConfig
    built: Any  # faiss.Index
    num_built: int
    vectors: Tensor  # (N, D) float32 on the CPU
    effort: int = 0  # lists probed or nodes visited; 0: it is exact
    recall: float = 1.0  # of the exact top 10, as measured

    @classmethod
    def build(cls, vectors: Tensor, config: IndexConfig, users: Users) -> VectorIndex:
        """``vectors`` (N, D); ``users``: gives queries (S, Q, D) that the recall is measured on."""
        faiss = _faiss()
        rows = np.ascontiguousarray(vectors.detach().float().cpu().numpy())
        number, dims = rows.shape
        vectors, made = torch.from_numpy(rows), None
        if config.kind == "ivf":
            lists = max(1, min(int(4 * number**0.5), number // 32))
            made = faiss.IndexIVFFlat(faiss.IndexFlatIP(dims), dims, lists, faiss.METRIC_INNER_PRODUCT)
            some = np.random.default_rng(0).permutation(number)[: TRAINED_ON * lists]
            made.cp.min_points_per_centroid = 1  # small catalogues have few, and no warning is due
            made.train(rows[some])
        elif config.kind == "hnsw":
            made = faiss.IndexHNSWFlat(dims + 1, NEIGHBOURS)
            made.hnsw.efConstruction = BUILD_EFFORT
        else:
            made = faiss.IndexFlatIP(dims)
        made.add(_of_one_length(rows) if config.kind == "hnsw" else rows)
        found = cls(config, made, number, vectors)
        return found if config.kind == "flat" else found._calibrated(users())

    def describe(self) -> str:
        """A line for whoever starts a server."""
        how = "exact" if not self.effort else f"effort {self.effort}, recall@{TOP} {self.recall:.3f} of the exact scan"
        return f"index: {self.config.kind} over {len(self.vectors):,} items, {how}"

    def _calibrated(self, users: Tensor) -> VectorIndex:
        """With the least effort whose recall is the one asked for; InputError where none has it."""
        exact, _ = dense_search(users.float().cpu(), self.vectors, TOP)
        effort, most = FIRST_EFFORT, MOST_EFFORT
        if self.config.kind == "ivf":
            most = min(most, self.built.nlist)
        while True:
            tried = replace(self, effort=min(effort, most))
            ids, _ = tried.search(users, TOP)
            recall = recall_of(ids, exact)
            if recall >= self.config.recall:
                return replace(tried, recall=recall)
            if effort >= most:
                raise InputError(
                    f"the index {self.config.kind} finds {recall:.3f} of the exact top {TOP}, {most} steps deep",
                    allowed=f"index_recall = {self.config.recall}", fix='ask for less, or take "flat"',
                )  # fmt: skip
            effort *= 2

    def extended(self, vectors: Tensor, users: Users) -> VectorIndex:
        """Over a longer table whose first rows are these; built again where much came."""
        late = len(vectors) - self.num_built
        if late > max(FEW_LATE, self.num_built // LATE_SHARE):
            return VectorIndex.build(vectors, self.config, users)
        return replace(self, vectors=torch.cat((self.vectors, vectors[len(self.vectors) :].detach().float().cpu())))

    @torch.inference_mode()
    def search(
        self, users: Tensor, k: int, *, exclude: Jagged | None = None, alive: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As :func:`sidera.decode.dense.dense_search`: users (B, Q, D) -> ids (B, k), scores (B, k), best first.

        ``alive`` (N,) or (B, N) bool: what may be answered; ``exclude``: jagged item ids per history that may not.
        """
        if k < 1:
            raise InputError(f"k is {k}", allowed="1 or more")
        device, queries = users.device, users.detach().float().cpu().contiguous()
        check_numbers(queries)
        barred = _Barred(len(queries), len(self.vectors), exclude, alive)
        ids = torch.full((len(queries), k), -1)
        scores = torch.full((len(queries), k), NEG_INF)
        scanned_mask = barred.left < max(k, len(self.vectors) // SCANNED)
        rows, fetched = (~scanned_mask).nonzero()[:, 0], k + barred.most_excluded + SPARE
        while rows.numel():
            whole = fetched >= self.num_built
            found, best, done = self._candidates(queries[rows], rows, k, min(fetched, self.num_built), barred)
            if whole and not self.effort:  # nothing was left out, so there is no more
                done = torch.ones_like(done)
            ids[rows[done]], scores[rows[done]] = found[done], best[done]
            rows, fetched = rows[~done], 4 * fetched
            if whole:
                scanned_mask[rows] = True
                break
        for row in scanned_mask.nonzero()[:, 0].tolist():
            ids[row], scores[row] = self._scan(queries[row], k, barred, row)
        return ids.to(device), scores.to(device)

    def _candidates(
        self, queries: Tensor, rows: Tensor, k: int, fetched: int, barred: _Barred
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best of what the index fetches and of late items: ids and scores (b, k), and whether a row is done (b,):
        it has k, and none that was not fetched may tie with the last."""
        found = self._nearest(queries.flatten(0, 1), fetched).view(len(queries), -1)  # (b, Q * fetched)
        if queries.shape[1] > 1:  # an item that several vectors fetched stands once
            found = found.sort(1).values
            found[:, 1:] = found[:, 1:].masked_fill(found[:, 1:] == found[:, :-1], -1)
        if len(self.vectors) > self.num_built:
            late = torch.arange(self.num_built, len(self.vectors)).expand(len(found), -1)
            found = torch.cat((found, late), dim=1)
        found = found.sort(1).values  # ties go to the lower id
        vectors = self.vectors[found.clamp(min=0)]  # (b, C, D)
        scores = (queries @ vectors.transpose(1, 2)).amax(1)  # (b, C)
        lowest = scores.masked_fill((found < 0) | (found >= self.num_built), float("inf")).amin(1)  # (b,) fetched
        scores = scores.masked_fill((found < 0) | barred.holds(rows, found), NEG_INF)
        places = best_first(scores, k)
        found, scores = padded_results(found.gather(1, places), scores.gather(1, places), k)
        return found, scores, scores[:, -1] > lowest

    def _nearest(self, queries: Tensor, number: int) -> Tensor:
        """(n, D) -> (n, number) ids of the nearest, -1 where the index has no more."""
        faiss, parameters = _faiss(), None
        if self.config.kind == "ivf":
            parameters = faiss.SearchParametersIVF(nprobe=self.effort)
        elif self.config.kind == "hnsw":
            parameters = faiss.SearchParametersHNSW(efSearch=max(self.effort, number))
            queries = torch.nn.functional.pad(queries, (0, 1))
        _, found = self.built.search(queries.numpy(), number, params=parameters)
        return torch.from_numpy(found)

    def _scan(self, queries: Tensor, k: int, barred: _Barred, row: int) -> tuple[Tensor, Tensor]:
        """Of one user (Q, D), over what is eligible: ids (k,), scores (k,)."""
        eligible = barred.eligible(row)
        found, scores = dense_search(queries[None], self.vectors[eligible], k)
        return torch.where(found[0] >= 0, eligible[found[0].clamp(min=0)], -1) if len(eligible) else found[0], scores[0]


class _Barred:
    """What may not be answered, by row."""

    def __init__(self, num_rows: int, num_items: int, exclude: Jagged | None, alive: Tensor | None) -> None:
        self.num_items = num_items
        self.alive = None if alive is None else alive[..., :num_items].cpu()
        self.excluded = torch.full((num_rows, 1), num_items)  # (B, E) ascending, num_items behind the last
        if exclude is not None and exclude[0].numel():
            ids, offsets = (part.cpu() for part in exclude)
            if offsets.numel() != num_rows + 1:
                raise InputError(f"exclude names {offsets.numel() - 1} histories", allowed=str(num_rows))
            table, _ = jagged.Jagged(ids, offsets).pad(num_items)
            self.excluded = torch.nn.functional.pad(table, (0, 1), value=num_items).sort(1).values
        counts = torch.tensor(num_items) if self.alive is None else self.alive.sum(-1)
        self.left = counts.expand(num_rows)  # (B,) at most so many are eligible

    @property
    def most_excluded(self) -> int:
        return self.excluded.shape[1] - 1

    def holds(self, rows: Tensor, item_ids: Tensor) -> Tensor:
        """(b, C) items of ``rows`` (b,) -> (b, C) True = barred; anything for ids below 0."""
        own = self.excluded[rows].contiguous()
        at = torch.searchsorted(own, item_ids.contiguous()).clamp(max=own.shape[1] - 1)
        barred = own.gather(1, at) == item_ids
        if self.alive is None:
            return barred
        places = item_ids.clamp(min=0)
        return barred | ~(self.alive[places] if self.alive.ndim == 1 else self.alive[rows].gather(1, places))

    def eligible(self, row: int) -> Tensor:
        """(n,) ids, ascending."""
        mask = torch.ones(self.num_items + 1, dtype=torch.bool)
        if self.alive is not None:
            mask[:-1] = self.alive if self.alive.ndim == 1 else self.alive[row]
        mask[self.excluded[row]] = False
        mask[-1] = False
        return mask.nonzero()[:, 0]


def _of_one_length(rows: np.ndarray) -> np.ndarray:
    """(N, D) -> (N, D + 1): one more number makes all rows equally long, so that the nearest by distance is the nearest
    by inner product. A graph of distances finds more than one of inner products, which are no metric."""
    squares = (rows.astype(np.float64) ** 2).sum(1)
    more = np.sqrt(squares.max(initial=0.0) - squares).astype(np.float32)
    return np.concatenate((rows, more[:, None]), axis=1)


def recall_of(found: Tensor, exact: Tensor) -> float:
    """Share of the exact ids (B, k) that were found (B, k); what does not exist (-1) does not count."""
    there = exact >= 0
    hits = (exact[:, :, None] == found[:, None, :]).any(2) & there
    return float(hits.sum()) / max(1, int(there.sum()))


def _faiss() -> Any:
    """InputError where faiss is not installed."""
    try:
        import faiss
    except ImportError:
        raise InputError("an index needs faiss, which is not installed", fix="pip install 'sidera[dense]'") from None
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss
