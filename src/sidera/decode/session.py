"""Beam search over whole lists: session-wise generation (OneRec v1, 2502.18965).

A beam is a list. After an item's last code the trie is entered again at its root and the generator goes on in the same
stream, so that an item is chosen knowing all items before it. A list's score is the sum of log p of all its codes.

* No item comes twice in a list, and none of ``exclude``. Masking at the leaves alone would be a trap: a beam that has
  chosen a prefix all of whose items are used up is stuck, and with one beam (greedy) the whole list would be lost. So a
  node is closed for a beam as soon as the items below it are all in its list or excluded, on every level.
* Items that share a semantic ID are different items: a list may hold both, in serving order.
* ``width = 1`` is greedy decoding, a width of all lists is exact. Inside an item more beams are wanted than lists: the
  first code alone says little about the item (``code_width``). Ties go to the beam, then to the leaf, further left.
* Where fewer legal items exist than the list is long, lists are complete when they hold them all.

Shape legend: B histories · W lists kept · j items written so far · m items of a list · L levels · n_l nodes of a
level · P most candidates of one history · K codes of a level · R results.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sidera.batch import Batch
from sidera.core import InputError
from sidera.decode.beam import (
    Candidates,
    beam_search,
    check_search,
    continuations,
    items_of,
    normalised,
    prune,
)
from sidera.decode.eligible import NEG_INF, Allowed, Eligible, Jagged
from sidera.decode.select import best_first, best_positions
from sidera.ops.trie import CodeTrie
from sidera.roles import Context, SessionGenerator, StepOutput


@dataclass(frozen=True, eq=False)
class Lists:
    """Lists of each history, most likely first. Behind a list's last item: ids -1, scores -inf."""

    item_ids: Tensor  # (B, R, m) int64
    item_scores: Tensor  # (B, R, m) float32: log p of the list up to and including the item
    scores: Tensor  # (B, R) float32: log p(list); -inf for lists that do not exist
    valid_mask: Tensor  # (B, R) bool


@dataclass(frozen=True, eq=False)
class _Written:
    """The lists so far; dead ones have score -inf and hold any items."""

    scores: Tensor  # (B, W)
    item_ids: Tensor  # (B, W, j)
    item_scores: Tensor  # (B, W, j)

    def followed(self, owners: Tensor, item_ids: Tensor, scores: Tensor) -> _Written:
        """List w becomes list ``owners[:, w]`` and one more item. All (B, W')."""
        index = owners[..., None].expand(-1, -1, self.item_ids.shape[2])
        return _Written(
            scores,
            torch.cat((self.item_ids.gather(1, index), item_ids[..., None]), dim=2),
            torch.cat((self.item_scores.gather(1, index), scores[..., None]), dim=2),
        )


@torch.inference_mode()
def session_beam_search(
    generator: SessionGenerator,
    context: Context | Batch,
    trie: CodeTrie,
    *,
    length: int,
    width: int,
    code_width: int | None = None,
    num_results: int = 1,
    exclude: Jagged | None = None,
    allowed: Allowed | None = None,
) -> Lists:
    """The ``num_results`` most likely lists of ``length`` items of each history that a beam of ``width`` lists finds.

    ``code_width``: beams of a history while an item is being written; ``width`` of them go on as lists. Default: the
    same. ``exclude``: jagged item ids that no list may hold; ``allowed``: the items that each history's lists may.
    """
    if isinstance(context, Batch):
        context = generator.context(context)
    check_search(generator, context, trie, width, num_results, exclude)
    if not 1 <= length <= generator.session_length:
        raise InputError(f"length is {length}", allowed=f"1 to {generator.session_length} (session_length)")
    code_width = max(width, code_width or width)
    cache = generator.new_cache(context, code_width)
    output = generator.step(context, cache, 0, None, None)
    device, num_histories = output.logits.device, context.num_histories
    limits = _Limits(trie, num_histories, exclude, device, allowed)
    results = _Results(num_histories, num_results, length, device)
    ends = limits.eligible.num_legal().clamp(max=length)  # (B,) items of a complete list
    written = _Written(
        torch.zeros(num_histories, 1, device=device),
        torch.zeros(num_histories, 1, 0, dtype=torch.int64, device=device),
        torch.zeros(num_histories, 1, 0, device=device),
    )
    longest = int(ends.max()) if num_histories else 0
    for item in range(longest):
        candidates, owners = _first_codes(written, output, limits, code_width)
        for level in range(1, trie.num_levels):
            beams = prune(candidates, code_width)
            owners = owners.gather(1, beams.parents)  # (B, W): the list that each beam continues
            chosen = limits.tables.tokens[level - 1][beams.nodes].long()
            output = generator.step(context, cache, level, chosen, beams.parents)
            candidates = continuations(beams, output, limits.tables, level)
            limits.close(candidates, _own_items(candidates, owners, written), level)
        candidates, places = items_of(candidates, limits.tables)
        limits.close_items(candidates, places, _own_items(candidates, owners, written))
        last = prune(replace(candidates, nodes=places), width)  # of places in leaf_items
        codes = limits.last_codes(last.nodes)
        item_ids = limits.tables.leaf_items[last.nodes].long()
        written = written.followed(owners.gather(1, last.parents), item_ids, last.scores)
        results.put(ends == item + 1, written)
        if item + 1 < longest:
            output = generator.step(context, cache, 0, codes, last.parents)
    return results.lists()


def rank_by_lists(
    generator: SessionGenerator,
    context: Context | Batch,
    trie: CodeTrie,
    *,
    k: int,
    beam: int,
    exclude: Jagged | None = None,
    allowed: Allowed | None = None,
) -> tuple[Tensor, Tensor]:
    """k items of each history, best first: ids (B, k), -1 where there are no more, and scores (B, k).

    The best list comes first (a search of ``list_beam`` lists and ``beam`` beams inside an item), whole and in its
    order, so that the answer for a smaller k is the beginning of that for
    a larger one. A k beyond the list's length goes on with the likeliest first items of *other* lists (a search of
    ``beam`` beams for one item, without those answered already). The score at a place is the log-probability of the
    answer up to there, read as a list and then lists of one item: it falls from place to place.
    """
    if isinstance(context, Batch):
        context = generator.context(context)
    found = session_beam_search(
        generator, context, trie, length=generator.session_length, width=generator.list_beam, code_width=beam,
        exclude=exclude, allowed=allowed,
    )  # fmt: skip
    item_ids, scores = found.item_ids[:, 0], found.item_scores[:, 0]  # (B, m)
    more = k - item_ids.shape[1]
    if more <= 0:
        return item_ids[:, :k], scores[:, :k]
    answered = _join(exclude, item_ids)
    others = beam_search(generator, context, trie, width=beam, num_results=more, exclude=answered, allowed=allowed)
    so_far = found.scores.clamp(min=torch.finfo(torch.float32).min)  # (B, 1); no list at all: no other item either
    return (
        torch.cat((item_ids, others.item_ids), dim=1),
        torch.cat((scores, so_far + others.scores.cumsum(1)), dim=1),
    )


class _Limits:
    """What lists may still hold: eligible items that are not in them yet."""

    def __init__(
        self, trie: CodeTrie, num_histories: int, exclude: Jagged | None, device: torch.device, allowed: Allowed | None
    ) -> None:
        self.tables, self.ranges = trie.tensors(device), trie.ranges(device)
        self.eligible = Eligible(trie, num_histories, device, exclude, allowed)

    def close_roots(self, scores: Tensor, own: Tensor) -> None:
        """Score -inf for the first codes (B, W, n_0) under which a list that holds ``own`` (B, W, j) finds no further
        item."""
        num_histories, _, num_nodes = scores.shape
        nodes = torch.arange(num_nodes, device=own.device).expand(num_histories, -1)
        used = torch.zeros_like(scores, dtype=torch.int64).scatter_add_(2, self._nodes(own, 0), torch.ones_like(own))
        scores.masked_fill_(used >= self.eligible.num_left(nodes, 0)[:, None], NEG_INF)

    def close(self, candidates: Candidates, own: Tensor, level: int) -> None:
        """Score -inf for the nodes of ``level`` whose items are all used; own (B, P, j): the candidates' lists."""
        used = (self._nodes(own, level) == candidates.nodes[..., None]).sum(2)
        candidates.scores.masked_fill_(used >= self.eligible.num_left(candidates.nodes, level), NEG_INF)

    def close_items(self, candidates: Candidates, places: Tensor, own: Tensor) -> None:
        """Score -inf for items (B, P) that are barred or stand in their list already."""
        self.eligible.close_items(candidates.scores, places)
        taken = (self.ranges.place_of_item[own] == places[..., None]).any(2)
        candidates.scores.masked_fill_(taken, NEG_INF)

    def last_codes(self, places: Tensor) -> Tensor:
        """The last codes of the items at places (B, W)."""
        leaves = torch.searchsorted(self.ranges.starts[-1], places.int(), right=True) - 1
        return self.tables.tokens[-1][leaves].long()

    def _nodes(self, item_ids: Tensor, level: int) -> Tensor:
        """The node of ``level`` above each item, which a list holds and which is alive therefore."""
        places = self.ranges.place_of_item[item_ids]
        return torch.searchsorted(self.ranges.starts[level], places, right=True) - 1


def _first_codes(written: _Written, output: StepOutput, limits: _Limits, width: int) -> tuple[Candidates, Tensor]:
    """Each list's best ``width`` first codes of a further item, and which list each beam continues: (B, W), itself."""
    num_histories, num_lists = written.scores.shape
    logits, log_norm = normalised(output)  # (B, W, K), (B, W)
    scores = logits[..., limits.tables.tokens[0].long()].float() + (written.scores - log_norm)[..., None]
    limits.close_roots(scores, written.item_ids)
    scores = scores.flatten(0, 1)  # (B W, n_0)
    kept = min(width, scores.shape[1])  # no more than these can be among the best of all lists
    nodes = best_positions(scores, kept)  # (B W, kept)
    shape = (num_histories, num_lists * kept)
    lists = torch.arange(num_lists, device=scores.device)
    beams = lists.repeat_interleave(kept).expand(shape)
    candidates = Candidates(scores.gather(1, nodes).view(shape), nodes.view(shape), beams)
    return candidates, lists.expand(num_histories, -1)


def _own_items(candidates: Candidates, owners: Tensor, written: _Written) -> Tensor:
    """(B, P, j) the items in the list that each candidate continues. owners (B, W): list of each beam."""
    lists = owners.gather(1, candidates.beams)
    return written.item_ids.gather(1, lists[..., None].expand(-1, -1, written.item_ids.shape[2]))


class _Results:
    """Complete lists, history by history."""

    def __init__(self, num_histories: int, num_results: int, length: int, device: torch.device) -> None:
        shape = (num_histories, num_results, length)
        self.item_ids = torch.full(shape, -1, device=device)
        self.item_scores = torch.full(shape, NEG_INF, device=device)
        self.scores = torch.full(shape[:2], NEG_INF, device=device)

    def put(self, done_mask: Tensor, written: _Written) -> None:
        """Keep the best lists of the histories (B,) that are done."""
        rows = done_mask.nonzero()[:, 0]
        if not rows.numel():
            return
        places = best_first(written.scores[rows], self.scores.shape[1])  # (rows, R')
        found, length = places.shape[1], written.item_ids.shape[2]
        scores = written.scores[rows].gather(1, places)
        index = places[..., None].expand(-1, -1, length)
        dead = (scores == NEG_INF)[..., None]
        self.scores[rows, :found] = scores
        self.item_ids[rows, :found, :length] = written.item_ids[rows].gather(1, index).masked_fill(dead, -1)
        trail = written.item_scores[rows].gather(1, index)
        self.item_scores[rows, :found, :length] = trail.masked_fill(dead, NEG_INF)

    def lists(self) -> Lists:
        return Lists(self.item_ids, self.item_scores, self.scores, self.scores > NEG_INF)


def _join(exclude: Jagged | None, more: Tensor) -> Jagged:
    """Jagged ids with those of a padded table (B, m), -1 where there is none, behind each row's."""
    there = more >= 0
    rows, values = there.nonzero()[:, 0], more[there]
    if exclude is not None:
        ids, offsets = (part.to(more.device) for part in exclude)
        rows = torch.cat((torch.repeat_interleave(offsets.diff(), output_size=ids.numel()), rows))
        values = torch.cat((ids, values))
    counts = torch.bincount(rows, minlength=len(more))
    return values[rows.argsort(stable=True)], torch.cat((counts.new_zeros(1), counts.cumsum(0)))
