"""Beams propose, vectors order: the search of models that are generative and dense at once (LIGER, COBRA).

The trie is walked as in :mod:`sidera.decode.beam` down to the ``num_proposed`` best semantic IDs of each history. All
eligible items that bear one of them are compared: the dot product of what the beam says (a vector of the history, or
one predicted behind the codes that it wrote) with the item's own vector, fused with the beam's log-probability by the
model. A model that ``joins_cold`` has every item compared that training never showed, whatever the beams wrote.

With as many proposals as there are semantic IDs nothing is left out, and the answer is the exact one.

Traps: a cold item that a beam proposed must not be answered twice; a semantic ID all of whose items are barred must not
take the place of one that can be answered.

Shape legend: B histories · W beams · P most candidates of one history · C cold items · N items · D width · R results.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sidera.decode.beam import check_search, continuations, first_candidates, items_of, prune
from sidera.decode.dense import padded_results
from sidera.decode.eligible import NEG_INF, Allowed, Eligible, Jagged
from sidera.decode.given import given_log_probs
from sidera.decode.select import best_first, check_numbers
from sidera.ops.trie import CodeTrie
from sidera.roles import Context, HybridGenerator

CHUNK = 1 << 24  # numbers of one (B, P, D) table of candidates' vectors


@torch.inference_mode()
def hybrid_search(
    generator: HybridGenerator,
    context: Context,
    trie: CodeTrie,
    *,
    width: int,
    num_results: int,
    exclude: Jagged | None = None,
    allowed: Allowed | None = None,
    cold_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The ``num_results`` items of each history with the best fused scores -> ids and scores (B, R), best first.

    ``width``: beams kept on the way; never fewer than are proposed at its end. ``cold_ids`` (C,) alive items that
    training never showed. Behind the last that exists: id -1, score -inf.
    """
    check_search(generator, context, trie, width, num_results, exclude)
    if allowed is not None:
        allowed.check(trie, context.num_histories)
    proposed = max(generator.num_proposed, num_results)
    width = max(width, proposed)
    cache = generator.new_cache(context, min(width, max(trie.num_nodes)))
    output = generator.step(context, cache, 0, None, None)
    device = output.logits.device
    tables, eligible = trie.tensors(device), Eligible(trie, context.num_histories, device, exclude, allowed)
    candidates = first_candidates(output, tables)
    eligible.close(candidates.scores, candidates.nodes, 0)
    for level in range(1, trie.num_levels):
        beams = prune(candidates, width)
        output = generator.step(context, cache, level, tables.tokens[level - 1][beams.nodes].long(), beams.parents)
        candidates = continuations(beams, output, tables, level)
        eligible.close(candidates.scores, candidates.nodes, level)
    if eligible.masks or eligible.excluded is not None:
        candidates.scores.masked_fill_(eligible.num_left(candidates.nodes, trie.num_levels - 1) <= 0, NEG_INF)
    beams = prune(candidates, proposed)
    said = generator.beam_vectors(context, cache, tables.tokens[-1][beams.nodes].long(), beams.parents)  # (B, W, D)
    places_of_beams = torch.arange(beams.nodes.shape[1], device=device).expand_as(beams.nodes)
    found, places = items_of(type(candidates)(beams.scores, beams.nodes, places_of_beams), tables)
    eligible.close_items(found.scores, places)
    item_ids = tables.leaf_items[places].long()  # (B, P)
    vectors = generator.item_vectors()
    matches = beam_matches(said, vectors, found.beams, item_ids)
    scores = generator.fused(found.scores, matches).float().masked_fill(found.scores == NEG_INF, NEG_INF)
    if cold_ids is not None and cold_ids.numel():
        cold_mask = torch.zeros(len(vectors), dtype=torch.bool, device=device)
        cold_mask[cold_ids] = True
        scores = scores.masked_fill(cold_mask[item_ids], NEG_INF)
        item_ids = torch.cat((item_ids, cold_ids.expand(len(item_ids), -1)), dim=1)
        scores = torch.cat((scores, _cold_scores(generator, said, vectors, cold_ids, trie, eligible)), dim=1)
    return _best(item_ids, scores, num_results)


def _cold_scores(
    generator: HybridGenerator, said: Tensor, vectors: Tensor, cold_ids: Tensor, trie: CodeTrie, eligible: Eligible
) -> Tensor:
    """(B, C): cold items have no beam, so what the first beam says is compared, and log p counts for nothing."""
    matches = said[:, 0] @ vectors[cold_ids].T  # (B, C)
    scores = generator.fused(torch.zeros_like(matches), matches).float()
    places = trie.places_of(cold_ids).expand_as(matches)
    eligible.close_items(scores, places)
    return scores


def beam_matches(said: Tensor, vectors: Tensor, beams: Tensor, item_ids: Tensor) -> Tensor:
    """(B, W, D) of beams, (N, D) of items -> (B, P) dot products of candidate ``item_ids`` with their ``beams``."""
    step = max(1, CHUNK // max(1, item_ids.shape[0] * vectors.shape[1]))
    parts = []
    for ids, which in zip(item_ids.split(step, 1), beams.split(step, 1), strict=True):
        own = said.gather(1, which[..., None].expand(-1, -1, said.shape[2]))  # (B, p, D)
        parts.append((own * F.embedding(ids, vectors)).sum(-1))
    return torch.cat(parts, dim=1)


@torch.inference_mode()
def hybrid_scores(generator: HybridGenerator, context: Context, item_ids: Tensor, sids: Tensor) -> Tensor:
    """(B, C) given items with their semantic IDs (B, C, L) -> (B, C): the scores that a search gives them."""
    said = generator.given_vectors(context, sids)
    log_probs = given_log_probs(generator, context, sids)
    if generator.joins_cold:
        log_probs = log_probs.masked_fill(log_probs == NEG_INF, 0.0)  # reached without codes
    each = torch.arange(sids.shape[1], device=sids.device).expand_as(item_ids)
    matches = beam_matches(said, generator.item_vectors(), each, item_ids)
    return generator.fused(log_probs, matches).float().masked_fill(log_probs == NEG_INF, NEG_INF)


def _best(item_ids: Tensor, scores: Tensor, num_results: int) -> tuple[Tensor, Tensor]:
    check_numbers(scores)
    positions = best_first(scores, num_results)
    return padded_results(item_ids.gather(1, positions), scores.gather(1, positions), num_results)
