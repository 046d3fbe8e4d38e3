"""Semantic IDs that came after the training get the probability that those beside them have on average.

Training pushes down the score of every code that no item has under a prefix. An item that comes later may stand
exactly there: a model that reads it in histories would then never write it. A node of the trie is *late* when no item
that the training knew is, or was, below it. Under a prefix with late children the known children have n leaves below
them and the probability S together, the late ones m leaves. Every late leaf gets S / n, the mean of the known ones,
and all is divided by (n + m) / n, so that the children have S together as before:

    p'(known child) = p · n / (n + m)        p'(late child with j leaves) = S · j / (n + m)

A prefix that has nothing but late children tells a model nothing of the next code: each leaf is as likely as another
(j / m).

The rule is a Generator around another: whatever asks for scores of codes (search, exact scoring, draws,
log-probabilities with gradient) asks it and gets the same. Where no node is late there is none around it. A late item
that shares its whole semantic ID with known ones has their score already. Nothing here waits for a GPU.

Shape legend: B histories · W beams · K codes of a level · U prefixes of late leaves, at a level · S most known children
of such a prefix · J most late ones · L levels · N items · G semantic IDs of a history.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sidera.batch import Batch
from sidera.ops.columns import Column
from sidera.ops.trie import Array, CodeTrie
from sidera.roles import Context, Generator, HybridGenerator, Loss, SessionGenerator, StepOutput

NEG_INF = float("-inf")


@dataclass(frozen=True, eq=False)
class LateLevel:
    """What is late after the prefixes of one length. Row U of each table stands for every other prefix: nothing."""

    keys: Tensor  # (U,) int64 ascending: row of the prefix one code shorter * K + the last code; of the root: [0]
    siblings: Tensor  # (U+1, S) int32: codes of known children, -1 behind them
    late: Tensor  # (U+1, J) int32: codes of late children, K behind them
    shares: Tensor  # (U+1, J) float32: log(j / n), or log(j / m) where n = 0
    more: Tensor  # (U+1,) float32: log((n + m) / n)
    alone_mask: Tensor  # (U+1,) bool: n = 0

    def rows(self, above: Tensor, codes: Tensor, num_codes: int) -> Tensor:
        """(...) rows of prefixes that are one code longer than the rows ``above``."""
        wanted = above * num_codes + codes
        places = torch.searchsorted(self.keys, wanted).clamp_(max=len(self.keys) - 1)
        return torch.where(self.keys[places] == wanted, places, len(self.keys))

    def scored(self, logits: Tensor, log_norm: Tensor | None, rows: Tensor) -> StepOutput:
        """Scores (B, W, K) after the prefixes ``rows`` (B, W), late children in their place; differentiable."""
        if not self.late.shape[1]:
            return StepOutput(logits, log_norm)
        logits = logits.float()
        whole = _logsumexp(logits)  # (B, W)
        siblings = self.siblings[rows].long()  # (B, W, S)
        known = logits.gather(-1, siblings.clamp(min=0)).masked_fill(siblings < 0, NEG_INF)
        alone_mask = self.alone_mask[rows]
        base = torch.where(alone_mask, whole, _logsumexp(known))
        values = base[..., None] + self.shares[rows]  # (B, W, J)
        room = F.pad(logits, (0, 1)).scatter(-1, self.late[rows].long(), values)  # the last column takes the filling
        log_norm = whole if log_norm is None else torch.where(alone_mask, whole, log_norm.float())
        return StepOutput(room[..., :-1], log_norm + self.more[rows])


@dataclass(frozen=True, eq=False)
class LateCodes:
    """The late nodes of a trie."""

    levels: tuple[LateLevel, ...]  # L
    level_sizes: tuple[int, ...]

    @classmethod
    def of(
        cls, trie: CodeTrie, codes: Array | Column, num_known: int, removed: Array, device: torch.device | str = "cpu"
    ) -> LateCodes | None:
        """``codes`` (N, L) of all items, the first ``num_known`` of which the training knew; ``removed``: ids (n,) that
        the trie does not hold. None where no node is late."""
        late_items = np.setdiff1d(np.arange(num_known, trie.num_items), removed)
        if not len(late_items):
            return None
        paths, counts = np.unique(trie.paths(codes[late_items]), axis=0, return_counts=True)  # (m, L) in leaf order
        starts = trie.leaf_starts(paths[:, -1])
        gone = trie.paths(codes[removed[removed < num_known]])  # what a removed item taught is known
        late_mask = trie.leaf_starts(paths[:, -1] + 1) - starts == counts
        late_mask &= ~np.isin(paths[:, -1], gone[:, -1])
        paths = paths[late_mask]
        if not len(paths):
            return None
        levels, above = [], np.zeros(1, dtype=np.int64)
        for level in range(trie.num_levels):
            nodes, first, leaves = np.unique(paths[:, level], return_index=True, return_counts=True)
            late = (trie.leaves_below(nodes, level) == leaves) & ~np.isin(nodes, gone[:, level])
            prefixes, keys = above, np.zeros(1, dtype=np.int64)  # of level 0: the root
            if level:
                prefixes, start = np.unique(paths[:, level - 1], return_index=True)
                parents = np.searchsorted(above, paths[start, level - 2]) if level > 1 else 0
                keys = parents * trie.level_sizes[level - 1] + trie.tokens[level - 1][prefixes].astype(np.int64)
            owners = np.searchsorted(prefixes, paths[first[late], level - 1]) if level else np.zeros(late.sum(), int)
            levels.append(_level(trie, level, prefixes, keys, (nodes[late], owners, leaves[late]), device))
            above = prefixes
        return cls(tuple(levels), trie.level_sizes)


def _level(
    trie: CodeTrie, level: int, prefixes: Array, keys: Array, late: tuple[Array, Array, Array], device: Any
) -> LateLevel:
    """``late``: late nodes of this level in their order, the place of each one's prefix, and its leaves."""
    nodes, owners, leaves = late
    if level:
        ptr, total = trie.ptr[level - 1], trie.leaves_below(prefixes, level - 1)
        starts, ends = ptr[prefixes], ptr[prefixes + 1]
    else:
        starts, ends, total = np.array([0]), np.array([trie.num_nodes[0]]), np.array([trie.num_leaves])
    number = len(prefixes)
    num_late = np.bincount(owners, leaves, number)  # (U,)
    num_known = total - num_late
    touched = np.where(num_late > 0, ends - starts, 0)  # children of prefixes with late ones among them
    children = np.arange(touched.sum()) + np.repeat(starts - touched.cumsum() + touched, touched)
    parents = np.repeat(np.arange(number), touched)
    known = ~np.isin(children, nodes)
    tokens, size = trie.tokens[level], trie.level_sizes[level]
    alone = (num_known == 0) & (num_late > 0)
    shares = np.log(leaves / np.where(alone, num_late, num_known)[owners])
    more = np.zeros(number + 1)
    more[:-1][~alone] = np.log1p(num_late[~alone] / num_known[~alone])
    tables = (
        keys, _padded(parents[known], tokens[children[known]], number, np.int32(-1)),
        _padded(owners, tokens[nodes], number, np.int32(size)), _padded(owners, shares, number, np.float32(0)),
        more.astype(np.float32), np.append(alone, False),
    )  # fmt: skip
    return LateLevel(*(torch.from_numpy(table).to(device) for table in tables))


def _padded(rows: Array, values: Array, num_rows: int, fill: Any) -> Array:
    """(num_rows + 1, most of a row): the values of each row, which ascend, side by side; the last row has none."""
    counts = np.bincount(rows, minlength=num_rows)
    table = np.full((num_rows + 1, counts.max(initial=0)), fill)
    table[rows, np.arange(len(rows)) - (counts.cumsum() - counts)[rows]] = values
    return table


def _logsumexp(values: Tensor) -> Tensor:
    """(..., n) -> (...), -inf without a NaN in its gradient where all are -inf or there is none."""
    if not values.shape[-1]:
        return values.new_full(values.shape[:-1], NEG_INF)
    peak = values.detach().amax(-1, keepdim=True)
    peak = peak.masked_fill(peak == NEG_INF, 0.0)
    sums = (values - peak).exp().sum(-1)
    nothing_mask = sums == 0
    return (sums.masked_fill(nothing_mask, 1.0).log() + peak.squeeze(-1)).masked_fill(nothing_mask, NEG_INF)


@dataclass(eq=False)
class _Cache:
    own: Any  # the generator's
    rows: Tensor | None = None  # (B, W) of the prefixes that the beams wrote


class LateWriter:
    """A Generator whose late codes score by the rule."""

    def __init__(self, generator: Generator, late: LateCodes) -> None:
        self.generator, self.late = generator, late
        self.codebook_id, self.level_sizes = generator.codebook_id, generator.level_sizes

    def loss(self, batch: Batch) -> Loss:
        return self.generator.loss(batch)

    def parameters(self) -> Iterator[Tensor]:
        """The generator's: whoever recorded a search looks whether they are still those."""
        own = getattr(self.generator, "parameters", None)
        return iter(()) if own is None else own()

    def context(self, batch: Batch) -> Context:
        return self.generator.context(batch)

    def new_cache(self, context: Any, width: int) -> _Cache:
        return _Cache(self.generator.new_cache(context, width))

    def step(self, context: Any, cache: _Cache, level: int, codes: Tensor | None, parents: Tensor | None) -> StepOutput:
        output = self.generator.step(context, cache.own, level, codes, parents)
        here = self.late.levels[level]
        if level == 0:
            rows = torch.zeros(output.logits.shape[:2], dtype=torch.int64, device=output.logits.device)
        else:
            assert cache.rows is not None
            assert codes is not None
            assert parents is not None
            rows = here.rows(cache.rows.gather(1, parents), codes, self.level_sizes[level - 1])
        cache.rows = rows
        return here.scored(output.logits, output.log_norm, rows)

    def code_logits(self, context: Any, sids: Tensor) -> Sequence[Tensor]:
        found: list[Tensor] = []
        rows = torch.zeros(sids.shape[:2], dtype=torch.int64, device=sids.device)
        for level, logits in enumerate(self.generator.code_logits(context, sids)):
            if level:
                rows = self.late.levels[level].rows(rows, sids[..., level - 1], self.level_sizes[level - 1])
            found.append(self.late.levels[level].scored(logits, None, rows).logits)
        return found


class LateListWriter(LateWriter):
    """A SessionGenerator whose late codes score by the rule while it searches; given lists are scored as they were
    learned from."""

    def __init__(self, generator: SessionGenerator, late: LateCodes) -> None:
        super().__init__(generator, late)
        self.session_length, self.list_beam = generator.session_length, generator.list_beam
        self.log_probs_lists = generator.log_probs_lists


class LateHybrid(LateWriter):
    """A HybridGenerator whose late codes score by the rule; what compares vectors knows of no codes."""

    def __init__(self, generator: HybridGenerator, late: LateCodes) -> None:
        super().__init__(generator, late)
        self.num_proposed, self.joins_cold = generator.num_proposed, generator.joins_cold
        self.item_vectors, self.fused = generator.item_vectors, generator.fused
        self.given_vectors = generator.given_vectors
        self._beam_vectors = generator.beam_vectors

    def beam_vectors(self, context: Any, cache: _Cache, codes: Tensor, parents: Tensor) -> Tensor:
        return self._beam_vectors(context, cache.own, codes, parents)


def writing_late(generator: Generator, late: LateCodes | None) -> Generator:
    """``generator`` itself where nothing is late, or where it scores late codes on its own (``scores_late_codes``)."""
    if late is None or getattr(generator, "scores_late_codes", False):
        return generator
    if isinstance(generator, HybridGenerator):
        return LateHybrid(generator, late)
    return LateListWriter(generator, late) if isinstance(generator, SessionGenerator) else LateWriter(generator, late)
