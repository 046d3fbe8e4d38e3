"""Beam search that can only write items that exist.

Each step asks the generator for the scores of the next code, lists the *legal* continuations of all beams (the children
in the trie, not the K codes), and keeps the best ``width`` of each history. The last step lists the items themselves,
so an item's rank inside a shared semantic ID and the excluded items need no special case.

* A beam's score is the sum of log p of its codes. p is the generator's own softmax, over the level's K codes unless it
  gives another ``log_norm``; nothing is renormalised over the legal codes, so scores of different prefixes compare.
* The context is computed once per history and shared by its beams. Ancestry is an index: the generator's cache is told
  each beam's ``parents`` and nothing is copied here.
* Ties go to the lower leaf, inside a leaf to the serving order. Beams stay in trie order between steps: that makes
  "leftmost" mean "lower leaf", and the gathers run forward through memory.
* A prefix without an eligible item (:mod:`sidera.decode.eligible`) scores -inf before the best are chosen.
* Items that something else proposes travel along: their prefixes go on beside the best ones, so that they are scored
  with the steps that the search takes anyway.

Continuations stand in a table (B, P). On the CPU, P is what the history with most of them has. On a GPU that number
would have to be waited for; there P is the most that ``width`` prefixes of this trie can have, so every shape is known
before the search begins and nothing is read back until it ends (``fixed``, and :mod:`sidera.decode.graph`).

Traps: ``torch.topk`` orders ties as it likes (see :mod:`sidera.decode.select`); a history with fewer legal
continuations than another of its batch carries dead beams (score -inf), which must neither grow nor be answered.

Shape legend: B histories · W beams · K codes of a level · P most candidates of one history · R results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sidera.batch import Batch
from sidera.core import InputError
from sidera.decode.eligible import NEG_INF, Allowed, Eligible, Jagged
from sidera.decode.select import best_first, best_positions, check_numbers, gathered, with_places
from sidera.ops.jagged import runs_of_rows
from sidera.ops.trie import CodeTrie, TrieTensors
from sidera.ops.waiting import may_ask
from sidera.roles import Context, Generator, StepOutput, TreeGenerator


@dataclass(frozen=True, eq=False)
class Beams:
    """The answers, most likely first. Where ``valid_mask`` is False, at the end: ids and codes -1, score -inf, log-prob
    NaN."""

    item_ids: Tensor  # (B, R) int64
    leaf_ids: Tensor  # (B, R) int64: the item's leaf in the trie; items that share a semantic ID repeat it
    scores: Tensor  # (B, R) float32: log-probability of the semantic ID
    sids: Tensor  # (B, R, L) int64
    valid_mask: Tensor  # (B, R) bool
    log_probs: Tensor | None = None  # (B, R, L) of each code among those that may follow its prefix, where asked


Trail = Sequence["tuple[Candidates, Tensor | None]"]  # of each level but the last, and the places of those that went on


@torch.inference_mode()
def beam_search(
    generator: Generator,
    context: Context | Batch,
    trie: CodeTrie,
    *,
    width: int,
    num_results: int,
    exclude: Jagged | None = None,
    allowed: Allowed | None = None,
    fixed: bool | None = None,
    log_probs: bool = False,
    proposals: Tensor | None = None,
) -> Beams:
    """The ``num_results`` most likely items of each history that a beam of ``width`` finds.

    ``exclude`` holds jagged item ids per history that must not be answered: ``(batch.item_ids, batch.offsets)`` leaves
    out what was seen. ``allowed``: the items that each history may be answered. Fewer such items than ``num_results``
    leave the rest invalid; see :class:`Beams`. ``fixed``: shapes do not depend on the scores; None: on a GPU.
    ``log_probs``: say what :func:`sidera.decode.sample.masked_log_probs` gives the codes, which costs next to nothing
    here; not where a filter is searched as a trie of its own, whose prefixes have fewer codes behind them.
    ``proposals`` (B, C): items, or -1, that are answered too where they may be, at most C behind the ``num_results``.
    """
    if isinstance(context, Batch):
        context = generator.context(context)
    check_search(generator, context, trie, width, num_results, exclude)
    if allowed is not None:
        allowed.check(trie, context.num_histories)
        sparse = None if fixed else allowed.one_sparse
        if sparse is not None:
            part, leaves = sparse.part
            settings: dict[str, Any] = {
                "width": width, "num_results": num_results, "exclude": exclude, "fixed": fixed, "proposals": proposals,
            }  # fmt: skip
            return of_whole(beam_search(generator, context, part, **settings), leaves)
    proposed = None if proposals is None else Proposed.of(trie, proposals)
    room = width + (0 if proposed is None else proposed.number)
    cache = generator.new_cache(context, min(room, max(trie.num_nodes[:-1], default=1)))
    output = generator.step(context, cache, 0, None, None)
    device = output.logits.device
    eligible = Eligible(trie, context.num_histories, device, exclude, allowed)
    if fixed is None:
        fixed = device.type == "cuda"
    beams = written_beams(
        generator, context, cache, output, trie, eligible, width, num_results, fixed, log_probs, proposed
    )
    if fixed:
        check_numbers(beams.scores)
    return beams


def of_whole(beams: Beams, leaves: np.ndarray) -> Beams:
    """Beams of a part of a trie, whose leaves are these of the whole."""
    numbers = torch.from_numpy(leaves).to(beams.leaf_ids.device)[beams.leaf_ids.clamp(min=0)]
    return replace(beams, leaf_ids=numbers.long().masked_fill_(~beams.valid_mask, -1))


def written_beams(
    generator: Generator, context: Context, cache: object, output: StepOutput, trie: CodeTrie, eligible: Eligible,
    width: int, num_results: int, fixed: bool, log_probs: bool = False, proposed: Proposed | None = None,
) -> Beams:  # fmt: skip
    """The search from the scores of the first codes on."""
    tables = trie.tensors(output.logits.device)
    tree = generator if not fixed and isinstance(generator, TreeGenerator) else None
    room = width + (0 if proposed is None else proposed.number)
    sizes = trie.most_children(room) if fixed else (None,) * (trie.num_levels + 1)
    candidates = first_candidates(output, tables, log_probs)
    eligible.close(candidates.scores, candidates.nodes, 0)
    trail: list[tuple[Candidates, Tensor | None]] = []
    for level in range(1, trie.num_levels):
        beams = prune(candidates, width, fixed, None if proposed is None else proposed.nodes[level - 1])
        trail.append((candidates, beams.positions))
        of_tree = None if tree is None else tree_children(tree, context, beams, trie, level, log_probs)
        if of_tree is not None:
            candidates = of_tree
        else:
            codes = tables.tokens[level - 1][beams.nodes].long()  # (B, W)
            output = generator.step(context, cache, level, codes, beams.parents)
            candidates = continuations(beams, output, tables, level, sizes[level], log_probs)
        eligible.close(candidates.scores, candidates.nodes, level)
    candidates, places = items_of(candidates, tables, sizes[-1])
    eligible.close_items(candidates.scores, places)
    items = tables.leaf_items[places].long()
    if proposed is None:
        return results_of(candidates, items, tables, num_results, fixed, trail)
    best = best_positions(candidates.scores, min(num_results, candidates.scores.shape[1]), fixed)
    positions = with_places(best, places, proposed.places, fixed)
    order = gathered(candidates.scores, positions).sort(dim=1, descending=True, stable=True).indices
    return results_of(candidates, items, tables, num_results, fixed, trail, positions.gather(1, order))


@dataclass(frozen=True, eq=False)
class Proposed:
    """Items that are scored whatever the search prefers: where they stand in the trie; behind its end, where not."""

    places: Tensor  # (B, C) int64 in ``leaf_items``
    nodes: tuple[Tensor, ...]  # L of (B, C) int64

    @property
    def number(self) -> int:
        return self.places.shape[1]

    @classmethod
    def of(cls, trie: CodeTrie, item_ids: Tensor) -> Proposed:
        """item_ids (B, C), -1 for none."""
        places = trie.places_of(item_ids.clamp(min=0)).masked_fill(item_ids < 0, trie.leaf_items.size)
        return cls.at(trie, places)

    @classmethod
    def at(cls, trie: CodeTrie, places: Tensor) -> Proposed:
        starts, wanted = trie.ranges(places.device).starts, places.int().contiguous()
        return cls(places, tuple(torch.searchsorted(level, wanted, right=True) - 1 for level in starts))


@dataclass(frozen=True, eq=False)
class Candidates:
    """Legal continuations, in trie order; behind the last of a history: score -inf, any node and beam."""

    scores: Tensor  # (B, P) float32
    nodes: Tensor  # (B, P) int64, nodes of this level
    beams: Tensor  # (B, P) int64: the beam that each continues
    log_probs: Tensor | None = None  # (B, P) of the last code among those that may follow its prefix, where asked


@dataclass(frozen=True, eq=False)
class Partial:
    """The surviving beams of a step, in trie order; dead ones have score -inf, node 0 and any parent."""

    scores: Tensor  # (B, W) float32
    nodes: Tensor  # (B, W) int64
    parents: Tensor  # (B, W) int64
    positions: Tensor | None = None  # (B, W) of each among the candidates; None: all of them, in their order


def first_candidates(output: StepOutput, tables: TrieTensors, log_probs: bool = False) -> Candidates:
    """All nodes of level 0 for every history."""
    logits, log_norm = normalised(output)
    of_codes = logits[:, 0].float() - log_norm  # (B, K)
    scores = of_codes.index_select(1, tables.tokens[0].int())  # (B, n_0)
    nodes = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    return Candidates(scores, nodes, torch.zeros_like(nodes), scores.log_softmax(1) if log_probs else None)


def prune(candidates: Candidates, width: int, fixed: bool = False, wanted: Tensor | None = None) -> Partial:
    """The best ``width`` candidates of each history (all of them, where there are not more) become its beams, and the
    nodes ``wanted`` (B, C) beside them."""
    scores, nodes, parents = candidates.scores, candidates.nodes, candidates.beams
    positions = None
    if scores.shape[1] > width:
        positions = best_positions(scores, width, fixed)  # (B, W)
        if wanted is None:
            scores = scores.gather(1, positions)
        else:
            positions = with_places(positions, nodes, wanted, fixed)
            scores, positions = gathered(scores, positions), positions.clamp(max=scores.shape[1] - 1)
        nodes, parents = nodes.gather(1, positions), parents.gather(1, positions)
    return Partial(scores, nodes.masked_fill(scores == NEG_INF, 0), parents, positions)


def continuations(
    beams: Partial, output: StepOutput, tables: TrieTensors, level: int, size: int | None = None,
    log_probs: bool = False,
) -> Candidates:  # fmt: skip
    """The legal continuations of all live beams, with their scores. ``size``: P; None: as many as there are."""
    runs, children = legal_children(beams, tables, level, size)
    logits, log_norm = normalised(output)
    num_histories, width, num_codes = logits.shape
    parents = runs.clamp(max=width - 1)
    index = torch.add(tables.tokens[level][children], parents, alpha=num_codes)  # (B, P) of a history's logits
    if num_histories == 1:
        chosen = logits.reshape(-1)[index]
    else:
        chosen = logits.reshape(num_histories, -1).gather(1, index)
    return grown(beams.scores - log_norm, runs, children, parents, chosen.float(), log_probs)


def legal_children(beams: Partial, tables: TrieTensors, level: int, size: int | None = None) -> tuple[Tensor, Tensor]:
    """Of all live beams: which beam (B, P) and which node of ``level`` (B, P), as :func:`runs_of_rows` has them."""
    ptr = tables.ptr[level - 1]
    starts = ptr[beams.nodes].long()
    counts = (ptr[beams.nodes + 1] - starts).masked_fill_(beams.scores == NEG_INF, 0)  # (B, W)
    return runs_of_rows(starts, counts, size)


def grown(
    before: Tensor, runs: Tensor, children: Tensor, parents: Tensor, chosen: Tensor, log_probs: bool
) -> Candidates:
    """Beams of scores ``before`` (B, W), each longer by one code of log-probability ``chosen`` (B, P)."""
    scores = F.pad(before, (0, 1), value=NEG_INF).gather(1, runs)  # run W is padding
    among = among_siblings(chosen, runs, before.shape[1]) if log_probs else None
    return Candidates(scores.add_(chosen), children, parents, among)


def part_children(
    tree: TreeGenerator, context: Context, beams: Partial, trie: CodeTrie, level: int, log_probs: bool = False
) -> Candidates | None:
    """The same in a part of a trie, whose nodes the generator scores by their numbers in the whole."""
    assert trie.part_of is not None
    runs, children = legal_children(beams, trie.tensors(beams.nodes.device), level)
    parents = runs.clamp(max=beams.nodes.shape[1] - 1)
    above, here = (torch.from_numpy(trie.part_nodes[at]).to(runs.device) for at in (level - 1, level))
    chosen = tree.some_log_probs(context, level, above[beams.nodes], here[children], parents, trie.part_of[0])
    return None if chosen is None else grown(beams.scores, runs, children, parents, chosen, log_probs)


def tree_children(
    tree: TreeGenerator, context: Context, beams: Partial, trie: CodeTrie, level: int, log_probs: bool = False
) -> Candidates | None:
    """The same by a generator that scores the children of a node: C places a beam. None where it cannot."""
    if trie.part_of is not None:
        return part_children(tree, context, beams, trie, level, log_probs)
    scored = tree.child_log_probs(context, level, beams.nodes, trie)
    if scored is None:
        return None
    (log_p, numbers), dead_mask = scored, beams.scores == NEG_INF
    if dead_mask.any():  # stands on node 0, maybe before the beam that really does: its children come first nowhere
        numbers = numbers.masked_fill(dead_mask[:, :, None], -1)
    scores = (beams.scores[:, :, None] + log_p).flatten(1)
    parents = torch.arange(log_p.shape[1], device=log_p.device).repeat_interleave(log_p.shape[2]).expand_as(scores)
    among = log_p.log_softmax(-1).flatten(1) if log_probs else None
    return Candidates(scores, numbers.flatten(1), parents, among)


def among_siblings(logits: Tensor, runs: Tensor, num_runs: int) -> Tensor:
    """(B, P) log-softmax over the candidates of each run; ``num_runs`` is the run of padding. NaN in a run of -inf."""
    peaks = logits.new_full((logits.shape[0], num_runs + 1), NEG_INF).scatter_reduce_(1, runs, logits, "amax")
    shifted = logits - peaks.gather(1, runs)
    sums = torch.zeros_like(peaks).scatter_add_(1, runs, shifted.exp())
    return shifted.sub_(sums.log_().gather(1, runs))


def items_of(candidates: Candidates, tables: TrieTensors, size: int | None = None) -> tuple[Candidates, Tensor]:
    """Candidates that are leaves -> one candidate per item, in serving order, and its place in ``leaf_items`` (B, P).

    ``size``: the new P; None: as many as there are.
    """
    if tables.shared_leaves.numel() == 0:
        return candidates, candidates.nodes
    starts = tables.leaf_starts(candidates.nodes)
    counts = tables.leaf_starts(candidates.nodes + 1) - starts
    counts = counts.masked_fill_(candidates.scores == NEG_INF, 0)
    which, places = runs_of_rows(starts, counts, size)  # (B, P') each
    scores = F.pad(candidates.scores, (0, 1), value=NEG_INF).gather(1, which)
    which = which.clamp_(max=counts.shape[1] - 1)
    columns = candidates.nodes, candidates.beams, candidates.log_probs
    nodes, beams, among = (None if column is None else column.gather(1, which) for column in columns)
    assert nodes is not None  # and beams: only log-probs may be missing
    assert beams is not None
    return Candidates(scores, nodes, beams, among), places


def results_of(
    candidates: Candidates, item_ids: Tensor, tables: TrieTensors, num_results: int, fixed: bool, trail: Trail = (),
    chosen: Tensor | None = None,
) -> Beams:  # fmt: skip
    """The best items of each history, best first, padded to ``num_results``; or those at ``chosen`` (B, R)."""
    positions = best_first(candidates.scores, num_results, fixed) if chosen is None else chosen  # (B, R'), R' <= R
    scores = gathered(candidates.scores, positions)
    positions = positions.clamp(max=candidates.scores.shape[1] - 1)
    log_probs = _followed(candidates, trail, positions)
    invalid_mask = scores == NEG_INF
    leaves = candidates.nodes.gather(1, positions)
    sids = tables.leaf_codes(leaves).masked_fill_(invalid_mask[..., None], -1)
    items, leaves = item_ids.gather(1, positions).masked_fill_(invalid_mask, -1), leaves.masked_fill_(invalid_mask, -1)
    if log_probs is not None:
        log_probs = log_probs.masked_fill_(invalid_mask[..., None], float("nan"))
    missing = num_results - positions.shape[1]
    if missing > 0:
        items, leaves = (F.pad(column, (0, missing), value=-1) for column in (items, leaves))
        sids, scores = F.pad(sids, (0, 0, 0, missing), value=-1), F.pad(scores, (0, missing), value=NEG_INF)
        log_probs = None if log_probs is None else F.pad(log_probs, (0, 0, 0, missing), value=float("nan"))
    return Beams(items, leaves, scores, sids, scores > NEG_INF, log_probs)


def _followed(candidates: Candidates, trail: Trail, positions: Tensor) -> Tensor | None:
    """Log-probabilities (B, R, L) of the codes of the candidates at ``positions`` (B, R), back through the levels."""
    if candidates.log_probs is None:
        return None
    columns = [candidates.log_probs.gather(1, positions)]
    for before, chosen in reversed(trail):
        assert before.log_probs is not None
        beams = candidates.beams.gather(1, positions)
        positions = beams if chosen is None else chosen.gather(1, beams)
        candidates = before
        columns.append(before.log_probs.gather(1, positions))
    return torch.stack(columns[::-1], dim=-1)


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
    if not may_ask(log_probs) or log_probs[..., 0].isnan().any():
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
