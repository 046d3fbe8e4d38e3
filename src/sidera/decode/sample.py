"""Sampling semantic IDs from a generator: what alignment rolls out, and how likely each code was.

Modes. ``masked``: at every level the model's probabilities are renormalised over the codes that the trie allows, so
each sample is an item, and its log-probabilities are those of that distribution. ``free``: the softmax runs over all
codes of the level, so illegal semantic IDs can be written and legality shows. The gradient side is
:func:`masked_log_probs` and :func:`free_log_probs`, which give the same numbers for the same codes, differentiable.

Trap: an update must use the normalisation that its rollout used. Sampling in the trie while taking ratios of
unmasked probabilities lets illegal mass move the ratio (OneRec's technical report, 2506.13695, on legality).

Nothing is replicated per sample: the first step has one live row a history, and a prefix that several samples drew is
one row of the next step. Draws are inverse transforms of one uniform number per sample and level, which makes
the outcome a function of the seed alone, whatever the batch's device.

Shape legend: B histories · G samples of each · W distinct prefixes of a history · L levels · K codes of a level ·
R rows, B*W · M codes that may follow, of all rows one after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sidera.batch import Batch
from sidera.core import InputError
from sidera.decode.eligible import NEG_INF
from sidera.ops.trie import CodeTrie, TrieTensors
from sidera.roles import Context, Generator, StepOutput

SampleMode = Literal["masked", "free"]


@dataclass(frozen=True, eq=False)
class Samples:
    """Independent draws, with replacement. Illegal ones (free mode) have item and leaf -1.

    A model that gives all legal continuations of a prefix probability 0 (it knows none of its items) writes nothing
    there: sid, item and leaf are -1, its log-probabilities -inf.
    """

    sids: Tensor  # (B, G, L) int64
    leaf_ids: Tensor  # (B, G) int64
    item_ids: Tensor  # (B, G) int64: the first of the leaf in serving order
    log_probs: Tensor  # (B, G, L) float32, of the distribution that was drawn from


@torch.inference_mode()
def sample(
    generator: Generator,
    context: Context | Batch,
    trie: CodeTrie,
    *,
    count: int,
    mode: SampleMode = "masked",
    temperature: float = 1.0,
    seed: int = 0,
    part: tuple[int, int] = (0, 1),
) -> Samples:
    """``count`` semantic IDs for each history.

    ``part`` (r, n): these histories are the r-th, (r+n)-th, ... of a larger batch and draw as they would inside it.
    """
    if isinstance(context, Batch):
        context = generator.context(context)
    _check(generator, trie, count, mode, temperature)
    num_histories, num_levels = context.num_histories, trie.num_levels
    source = torch.Generator().manual_seed(seed)
    rank, ranks = part
    uniforms = torch.rand(num_histories * ranks, count, num_levels, generator=source, dtype=torch.float64)[rank::ranks]
    cache = generator.new_cache(context, min(count, max(trie.num_nodes[:-1], default=1)) if mode == "masked" else count)
    output = generator.step(context, cache, 0, None, None)
    device = output.logits.device
    uniforms, tables = uniforms.to(device), trie.tensors(device)
    nodes = torch.zeros(num_histories, 1, dtype=torch.int64, device=device)  # (B, W) of the level before
    rows = torch.arange(num_histories, device=device)[:, None].expand(-1, count)  # (B, G) row of each sample
    alive_mask = torch.ones_like(rows, dtype=torch.bool)
    codes, log_probs = [], []
    for level in range(num_levels):
        width = output.logits.shape[1]
        choices = _legal(output, nodes, tables, level, temperature) if mode == "masked" else _all(output, temperature)
        drawn, possible_mask = choices.draw(rows, uniforms[:, :, level])  # (B, G) places in the choices
        alive_mask = alive_mask & possible_mask
        codes.append(choices.codes[drawn])
        log_probs.append(choices.log_probs[drawn])
        if level + 1 < num_levels:
            beams, rows = _distinct(drawn, choices.rows // width)
            nodes = choices.nodes[beams] if mode == "masked" else nodes
            output = generator.step(context, cache, level + 1, choices.codes[beams], choices.rows[beams] % width)
    sids = torch.stack(codes, dim=-1)
    if mode == "masked":
        leaves = choices.nodes[drawn]
    else:
        leaves = torch.from_numpy(trie.find(sids.cpu().numpy())).to(device)
    leaves = leaves.masked_fill(~alive_mask, -1)
    items = tables.leaf_items[tables.leaf_starts(leaves.clamp(min=0))].long()
    return Samples(
        sids=sids.masked_fill(~alive_mask[..., None], -1),
        leaf_ids=leaves,
        item_ids=items.masked_fill(leaves < 0, -1),
        log_probs=torch.stack(log_probs, dim=-1).float().masked_fill(~alive_mask[..., None], NEG_INF),
    )


@dataclass(frozen=True, eq=False)
class _Choices:
    """Codes that may follow each row, flat: row after row."""

    log_probs: Tensor  # (M,), normalised over each row
    codes: Tensor  # (M,) int64
    nodes: Tensor  # (M,) int64: trie nodes; unused in free mode
    rows: Tensor  # (M,) int64
    bounds: Tensor  # (R+1,)

    def draw(self, rows: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Places in the flat tensors for samples that stand on ``rows`` (B, G), and which of the draws are possible."""
        sums = self.log_probs.double().exp().cumsum(0)  # (M,)
        edges = torch.cat([sums.new_zeros(1), sums])
        low, high = edges[self.bounds[rows]], edges[self.bounds[rows + 1]]
        wanted = torch.minimum(low + uniforms * (high - low), torch.nextafter(high, high - 1))  # below high, rounded
        drawn = torch.searchsorted(sums, wanted, right=True)
        possible_mask = high > low
        return torch.where(possible_mask, drawn, self.bounds[rows]), possible_mask


def _legal(output: StepOutput, nodes: Tensor, tables: TrieTensors, level: int, temperature: float) -> _Choices:
    """The children of each row's node, the model's probabilities renormalised over them."""
    num_rows, size = nodes.numel(), output.logits.shape[-1]
    if level == 0:
        counts = torch.full((num_rows,), tables.tokens[0].numel(), device=nodes.device)
        starts = torch.zeros_like(counts)
    else:
        ptr = tables.ptr[level - 1]
        starts = ptr[nodes.view(-1)].long()
        counts = ptr[nodes.view(-1) + 1] - starts
    rows, children = runs(starts, counts)  # (M,) each
    codes = tables.tokens[level][children].long()
    chosen = output.logits.reshape(-1)[rows * size + codes].float() / temperature
    bounds = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return _Choices(log_softmax_of_runs(chosen, rows, num_rows), codes, children, rows, bounds)


def _all(output: StepOutput, temperature: float) -> _Choices:
    """Every code of the level for each row."""
    logits = output.logits.float().flatten(0, 1) / temperature  # (R, K)
    (num_rows, size), device = logits.shape, logits.device
    rows = torch.arange(num_rows, device=device).repeat_interleave(size)
    codes = torch.arange(size, device=device).repeat(num_rows)
    bounds = torch.arange(num_rows + 1, device=device) * size
    return _Choices(_log_softmax(logits).flatten(), codes, codes, rows, bounds)


def _distinct(drawn: Tensor, histories: Tensor) -> tuple[Tensor, Tensor]:
    """Different choices of each history as the beams of the next step: (B, W) places, and each sample's row (B, G).

    ``drawn`` (B, G) places; ``histories`` (M,) of every place. A history with fewer than W repeats its first.
    """
    num_histories = drawn.shape[0]
    places, inverse = drawn.flatten().unique(return_inverse=True)  # ascending: history after history
    counts = torch.bincount(histories[places], minlength=num_histories)
    first = counts.cumsum(0) - counts  # (B,)
    width = int(counts.max())
    steps = torch.arange(width, device=drawn.device)
    beams = places[first[:, None] + torch.where(steps < counts[:, None], steps, 0)]  # (B, W)
    each = torch.arange(num_histories, device=drawn.device)[:, None]
    return beams, inverse.view_as(drawn) - first[:, None] + each * width


def masked_log_probs(
    generator: Generator, context: Context, sids: Tensor, trie: CodeTrie, temperature: float = 1.0
) -> Tensor:
    """Log-probability of every code, renormalised over what the trie allows after its prefix; differentiable.

    sids (B, G, L) -> (B, G, L); -inf, without gradient, in all places of a semantic ID that no item has.
    """
    leaves = torch.from_numpy(trie.find(sids.cpu().numpy())).to(sids.device)  # (B, G)
    none_mask = leaves < 0
    tables = trie.tensors(sids.device)
    paths = _paths(tables, leaves.clamp(min=0))
    found = []
    for level, logits in enumerate(generator.code_logits(context, sids.clamp(min=0))):
        logits = logits.float() / temperature  # (B, G, K)
        if level == 0:  # every row has the same children
            log_p = _log_softmax(logits[..., tables.tokens[0].long()])
            found.append(log_p.gather(-1, paths[0][..., None]).squeeze(-1))
            continue
        parents, ptr = paths[level - 1].view(-1), tables.ptr[level - 1]
        starts = ptr[parents].long()
        counts = ptr[parents + 1] - starts
        rows, children = runs(starts, counts)  # (M,)
        chosen = logits.reshape(-1).index_select(0, rows * logits.shape[-1] + tables.tokens[level][children].long())
        log_p = log_softmax_of_runs(chosen, rows, len(parents))
        own = counts.cumsum(0) - counts + paths[level].view(-1) - starts  # (B G,) place of each row's child
        found.append(log_p.index_select(0, own).view_as(leaves))
    return torch.stack(found, dim=-1).masked_fill(none_mask[..., None], NEG_INF)


def free_log_probs(generator: Generator, context: Context, sids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of every code over all codes of its level; differentiable. sids (B, G, L) -> (B, G, L).

    The distribution is that of :func:`sample` in free mode, which writes no code of another level: what a generator's
    own normaliser (``StepOutput.log_norm``) leaves to those is not counted. What a search says of given items, that
    normaliser included, is ``decode.given.given_log_probs``. -inf where a sid holds -1.
    """
    codes = sids.clamp(min=0)
    found = [
        _log_softmax(logits.float() / temperature).gather(-1, codes[..., level, None]).squeeze(-1)
        for level, logits in enumerate(generator.code_logits(context, codes))
    ]
    return torch.stack(found, dim=-1).masked_fill((sids < 0).any(-1, keepdim=True), NEG_INF)


def runs(starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Runs of ``counts[i]`` numbers from ``starts[i]`` on, one after another: i of each (M,), the numbers (M,)."""
    ends = counts.cumsum(0)
    total = int(ends[-1]) if ends.numel() else 0
    index = torch.repeat_interleave(counts, output_size=total)  # (M,)
    return index, torch.arange(total, device=counts.device) + (starts - ends + counts)[index]


def log_softmax_of_runs(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """(M,) log-softmax over the values of each row, differentiable; -inf for a row that has nothing but -inf."""
    peak = values.detach().new_full((num_rows,), NEG_INF).scatter_reduce(0, rows, values.detach(), "amax")
    shifted = values - peak.masked_fill(peak == NEG_INF, 0.0)[rows]
    sums = shifted.new_zeros(num_rows).index_add(0, rows, shifted.exp())
    return shifted - sums.masked_fill(sums == 0, 1.0).log()[rows]


def _log_softmax(logits: Tensor) -> Tensor:
    """(..., K), with -inf instead of NaN for a row that has nothing but -inf."""
    nothing_mask = logits.amax(-1, keepdim=True) == NEG_INF
    return logits.masked_fill(nothing_mask, 0.0).log_softmax(-1).masked_fill(nothing_mask, NEG_INF)


def _paths(tables: TrieTensors, leaves: Tensor) -> list[Tensor]:
    """The node of each leaf (...) on every level, L of (...)."""
    nodes = [leaves]
    for ptr in reversed(tables.ptr):
        nodes.insert(0, torch.searchsorted(ptr, nodes[0].int(), right=True) - 1)
    return nodes


def _check(generator: Generator, trie: CodeTrie, count: int, mode: str, temperature: float) -> None:
    if count < 1:
        raise InputError(f"count is {count}", allowed="1 or more")
    if mode not in ("masked", "free"):
        raise InputError(f"mode is {mode!r}", allowed="masked, free")
    if not 0 < temperature < float("inf"):
        raise InputError(f"temperature is {temperature}", allowed="a number above 0")
    if tuple(generator.level_sizes) != trie.level_sizes:
        raise InputError(
            f"the generator writes codes of sizes {tuple(generator.level_sizes)}, the trie holds {trie.level_sizes}",
            fix="use the Catalog that the model was trained on",
        )
