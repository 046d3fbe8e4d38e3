"""Beam search that can only write items that exist.

Each step asks the generator for the scores of the next code, lists the *legal* continuations of all beams one after
another (the children in the trie, not the K codes), and keeps the best ``width`` of each history. The last step lists
the items themselves, so an item's rank inside a shared semantic ID and the excluded items need no special case.

* A beam's score is the sum of log p of its codes. p is the generator's own softmax, over the level's K codes unless it
  gives another ``log_norm``; nothing is renormalised over the legal codes, so scores of different prefixes compare.
* The context is computed once per history and shared by its beams. Ancestry is an index: the generator's cache is told
  each beam's ``parents`` and nothing is copied here.
* Ties go to the lower leaf, inside a leaf to the serving order. Beams stay in trie order between steps: that makes
  "leftmost" mean "lower leaf", and the gathers run forward through memory.

Traps: ``torch.topk`` orders ties as it likes (see :mod:`sidera.decode.select`); a history with fewer legal
continuations than another of its batch carries dead beams (score -inf), which must neither grow nor be answered.

Shape legend: B histories · W beams · K codes of a level · M legal candidates of all beams together, flat ·
P most candidates of one history · R results.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sidera.batch import Batch
from sidera.core import InputError
from sidera.decode.select import best_first, best_positions, excluded_mask
from sidera.ops.trie import CodeTrie, TrieTensors
from sidera.roles import Context, Generator, StepOutput

NEG_INF = float("-inf")
Jagged = tuple[Tensor, Tensor]  # values (E,), offsets (B+1,)


@dataclass(frozen=True, eq=False)
class Beams:
    """The answers, most likely first. Where ``valid_mask`` is False, at the end: ids and codes -1, score -inf."""

    item_ids: Tensor  # (B, R) int64
    leaf_ids: Tensor  # (B, R) int64: the item's leaf in the trie; items that share a semantic ID repeat it
    scores: Tensor  # (B, R) float32: log-probability of the semantic ID
    sids: Tensor  # (B, R, L) int64
    valid_mask: Tensor  # (B, R) bool


@torch.inference_mode()
def beam_search(
    generator: Generator,
    context: Context | Batch,
    trie: CodeTrie,
    *,
    width: int,
    num_results: int,
    exclude: Jagged | None = None,
) -> Beams:
    """The ``num_results`` most likely items of each history that a beam of ``width`` finds.

    ``exclude`` holds jagged item ids per history that must not be answered: ``(batch.item_ids, batch.offsets)`` leaves
    out what was seen. Fewer legal items than ``num_results`` leave the rest invalid; see :class:`Beams`.
    """
    if isinstance(context, Batch):
        context = generator.context(context)
    check_search(generator, context, trie, width, num_results, exclude)
    cache = generator.new_cache(context, min(width, max(trie.num_nodes[:-1], default=1)))
    output = generator.step(context, cache, 0, None, None)
    tables = trie.tensors(output.logits.device)
    candidates = _first_candidates(output, tables)
    for level in range(1, trie.num_levels):
        beams = prune(candidates, width)
        codes = tables.tokens[level - 1][beams.nodes].long()  # (B, W)
        output = generator.step(context, cache, level, codes, beams.parents)
        candidates = continuations(beams, output, tables, level)
    candidates, item_ids = items_of(candidates, tables)
    if exclude is not None:
        histories = candidates.rows // candidates.width
        ids, offsets = (part.to(item_ids.device) for part in exclude)
        excluded = excluded_mask(histories, item_ids, trie.num_items, (ids, offsets))
        candidates.scores.masked_fill_(excluded, NEG_INF)
    return _results(candidates, item_ids, tables, num_results)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Legal continuations, flat: history after history, inside a history in trie order."""

    scores: Tensor  # (M,) float32
    nodes: Tensor  # (M,) int64, nodes of this level
    rows: Tensor  # (M,) int64: history * width + beam that it continues
    width: int  # beams per history that were continued
    bounds: Tensor  # (B+1,) int64: history b holds the candidates bounds[b]:bounds[b+1]

    @property
    def num_histories(self) -> int:
        return self.bounds.numel() - 1

    def padded_scores(self) -> Tensor:
        """(B, P), -inf behind the candidates of a history that has fewer than another."""
        num_histories, num_candidates = self.num_histories, self.scores.numel()
        if num_histories == 1:
            return self.scores[None]
        most = int(self.bounds.diff().max())
        if most * num_histories == num_candidates:
            return self.scores.view(num_histories, most)
        padded = self.scores.new_full((num_histories, most), NEG_INF)
        places = torch.arange(num_candidates, device=self.rows.device)
        shift = torch.arange(num_histories, device=self.rows.device) * most - self.bounds[:-1]  # (B,)
        padded.view(-1)[places + shift[self.rows // self.width]] = self.scores
        return padded

    def best(self, width: int) -> tuple[Tensor, Tensor]:
        """Scores (B, W) and flat indices (B, W) of the best ``width`` of each history, in trie order; all of them,
        where there are not more."""
        scores = self.padded_scores()  # (B, P)
        if scores.shape[1] > width:
            positions = best_positions(scores, width)  # (B, W)
            scores = scores.gather(1, positions)
        else:
            positions = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
        return scores, self.flat(positions)

    def flat(self, positions: Tensor) -> Tensor:
        """(B, W) columns of the padded form -> (B, W) indices into the flat tensors; padding gives some index."""
        return (positions + self.bounds[:-1, None]).clamp_(max=self.scores.numel() - 1)


@dataclass(frozen=True, eq=False)
class Partial:
    """The surviving beams of a step, in trie order; dead ones have score -inf, node 0 and any parent."""

    scores: Tensor  # (B, W) float32
    nodes: Tensor  # (B, W) int64
    parents: Tensor  # (B, W) int64


def _first_candidates(output: StepOutput, tables: TrieTensors) -> Candidates:
    """All nodes of level 0 for every history."""
    num_histories, num_nodes = output.logits.shape[0], tables.tokens[0].numel()
    logits, log_norm = normalised(output)
    log_probs = logits[:, 0].float() - log_norm  # (B, K)
    device = log_probs.device
    return Candidates(
        scores=log_probs[:, tables.tokens[0].long()].reshape(-1),
        nodes=torch.arange(num_nodes, device=device).repeat(num_histories),
        rows=torch.arange(num_histories, device=device).repeat_interleave(num_nodes),
        width=1,
        bounds=torch.arange(num_histories + 1, device=device) * num_nodes,
    )


def prune(candidates: Candidates, width: int) -> Partial:
    """The best ``width`` candidates of each history (all of them, where there are not more) become its beams."""
    scores, flat = candidates.best(width)
    return Partial(
        scores=scores,
        nodes=candidates.nodes[flat].masked_fill_(scores == NEG_INF, 0),
        parents=candidates.rows[flat] % candidates.width,
    )


def continuations(beams: Partial, output: StepOutput, tables: TrieTensors, level: int) -> Candidates:
    """The legal continuations of all live beams, with their scores."""
    num_histories, width = beams.nodes.shape
    nodes, scores = beams.nodes.view(-1), beams.scores.view(-1)  # (B W,)
    ptr = tables.ptr[level - 1]
    starts = ptr[nodes].long()
    counts = (ptr[nodes + 1] - starts).masked_fill_(scores == NEG_INF, 0)  # (B W,)
    rows, children = runs(starts, counts)  # (M,) each
    codes = tables.tokens[level][children]  # (M,)
    logits, log_norm = normalised(output)
    chosen = logits.reshape(-1)[torch.add(codes, rows, alpha=logits.shape[-1])]  # (M,)
    before = (beams.scores - log_norm).view(-1)  # (B W,)
    ends = counts.view(num_histories, width).sum(dim=1).cumsum(0)  # (B,)
    return Candidates(
        scores=chosen.float() + before[rows],
        nodes=children,
        rows=rows,
        width=width,
        bounds=torch.cat([ends.new_zeros(1), ends]),
    )


def items_of(candidates: Candidates, tables: TrieTensors) -> tuple[Candidates, Tensor]:
    """Candidates that are leaves -> one candidate per item, in serving order, and the item ids (M,)."""
    if tables.shared_leaves.numel() == 0:
        return candidates, tables.leaf_items[candidates.nodes].long()
    starts = tables.leaf_starts(candidates.nodes)
    counts = tables.leaf_starts(candidates.nodes + 1) - starts
    leaves, places = runs(starts, counts)  # (M',) each: index of the leaf's candidate, place in leaf_items
    ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    expanded = Candidates(
        scores=candidates.scores[leaves],
        nodes=candidates.nodes[leaves],
        rows=candidates.rows[leaves],
        width=candidates.width,
        bounds=ends[candidates.bounds],
    )
    return expanded, tables.leaf_items[places].long()


def runs(starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Runs of ``counts[i]`` numbers from ``starts[i]`` on, one after another: i of each (M,), the numbers (M,)."""
    ends = counts.cumsum(0)
    total = int(ends[-1]) if ends.numel() else 0
    index = torch.repeat_interleave(counts, output_size=total)  # (M,)
    return index, torch.arange(total, device=counts.device) + (starts - ends + counts)[index]


def _results(candidates: Candidates, item_ids: Tensor, tables: TrieTensors, num_results: int) -> Beams:
    """The best items of each history, best first, padded to ``num_results``."""
    padded = candidates.padded_scores()  # (B, P)
    num_histories, device = padded.shape[0], padded.device
    shape = (num_histories, num_results)
    scores = torch.full(shape, NEG_INF, device=device)
    items = torch.full(shape, -1, device=device)
    leaves = torch.full(shape, -1, device=device)
    sids = torch.full((*shape, len(tables.tokens)), -1, device=device)
    if candidates.scores.numel():
        positions = best_first(padded, num_results)  # (B, R') with R' <= R
        found = positions.shape[1]
        flat = candidates.flat(positions)
        scores[:, :found] = padded.gather(1, positions)
        items[:, :found], leaves[:, :found] = item_ids[flat], candidates.nodes[flat]
        sids[:, :found] = tables.leaf_codes(leaves[:, :found])
    invalid_mask = scores == NEG_INF
    return Beams(
        item_ids=items.masked_fill_(invalid_mask, -1),
        leaf_ids=leaves.masked_fill_(invalid_mask, -1),
        scores=scores,
        sids=sids.masked_fill_(invalid_mask[..., None], -1),
        valid_mask=~invalid_mask,
    )


def normalised(output: StepOutput) -> tuple[Tensor, Tensor]:
    """Logits (B, W, K) and what to subtract from them, (B, W): together log-probabilities.

    ``log_softmax`` is one fused kernel and beats torch's ``logsumexp`` four times over at (512, 8192). A prefix all of
    whose codes have logit -inf (a model may know none of its items) continues with probability 0, not NaN.
    """
    if output.log_norm is not None:
        log_norm = output.log_norm.float()
        return output.logits, log_norm.masked_fill(log_norm == NEG_INF, 0.0)
    logits = output.logits.float()
    log_probs = logits.log_softmax(dim=-1)  # (B, W, K)
    if log_probs[..., 0].isnan().any():
        log_probs = log_probs.masked_fill(logits.amax(dim=-1, keepdim=True) == NEG_INF, NEG_INF)
    return log_probs, log_probs.new_zeros(log_probs.shape[:2])


def check_search(
    generator: Generator, context: Context, trie: CodeTrie, width: int, num_results: int, exclude: Jagged | None
) -> None:
    """InputError when a search of these histories in this trie makes no sense."""
    for name, value in (("width", width), ("num_results", num_results)):
        if value < 1:
            raise InputError(f"{name} is {value}", allowed="1 or more")
    if tuple(generator.level_sizes) != trie.level_sizes:
        raise InputError(
            f"the generator writes codes of sizes {tuple(generator.level_sizes)}, the trie holds {trie.level_sizes}",
            fix="use the Catalog that the model was trained on",
        )
    if exclude is not None:
        ids, offsets = exclude
        if offsets.numel() != context.num_histories + 1:
            raise InputError(f"exclude names {offsets.numel() - 1} histories", allowed=str(context.num_histories))
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= trie.num_items):
            raise InputError(
                f"exclude holds item ids from {int(ids.min())} to {int(ids.max())}",
                allowed=f"0 to {trie.num_items - 1}",
            )
