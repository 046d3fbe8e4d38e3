"""sidera's own generator: a causal encoder over items and a tree decoder whose leaves are the items.

The encoder reads one vector per event (the item's own vector plus the vectors of its codes) and is trained on every
position of packed histories at once. The decoder walks the Catalog's tree: every node (a prefix of codes) has a vector,
and the next code is a softmax over the *existing* children of the prefix, so all probability lies on real items and
log p(item) is the sum over its path. Leaf vectors are per item: what makes a code-by-code model as sharp as a retriever
(docs/understand/models/sidera.md has the measurements). With a tree of 256 balanced clusters over co-occurrence
vectors a target costs 256 + ~48 dot products instead of one per catalogue item.

The decoder also sees, for every child, whether and how often the history has been there: two learned weights a level.
In a shop where nobody buys twice they become strongly negative at the leaves, where people repeat they do not, so what
is "seen" need not be guessed by a filter (the idea of RepeatNet, arXiv 1812.02646, reduced to a bias).

An item that came after the training takes the place that its codes give it in the tree (:meth:`SideraGenerator.grow`),
with the mean vector of its siblings (``nn.item_embedding``) until the model is trained again; with ``content =
"titles"`` its vector, in histories and in the leaf, is what its title says (``titled_items``).

Shape legend: T tokens · B histories · S longest history · R rows (tokens, or histories x beams) · W beams ·
G candidates · L levels · K codes of a level · C children · D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog
from sidera.catalog.code_vectors import start_nodes
from sidera.config import check_counts, check_value, later
from sidera.core import InputError
from sidera.data.batches import PackedSequences
from sidera.models.generators.sidera_decode import (
    NEVER,
    ScoresChildren,
    TreeCache,
    TreeContext,
    add_visits,
    children_logits,
)
from sidera.models.generators.sidera_tree import old_numbers, tree_levels
from sidera.models.generators.titled_items import TitledItems
from sidera.nn.counters import TRAINING, matmul_flops
from sidera.nn.item_embedding import ItemEmbedding, ItemRows, with_siblings
from sidera.nn.made_of_weights import MadeOfWeights
from sidera.nn.soft_targets import cross_entropy, uniform
from sidera.nn.transformer import CausalEncoder
from sidera.ops.attention import Layout, layout_of
from sidera.ops.tree_link import TreeLink
from sidera.ops.trie import CodeTrie
from sidera.roles import Loss, StepOutput

TREE = ("keys", "starts", "codes")  # tables of a level of the tree
VISIT_SCALE = 10.0  # the visit weights learn this much faster than others: they must reach about -10


class SideraGenerator(ScoresChildren, nn.Module):
    """Writes an item's codes from the root of the Catalog's tree to its leaf."""

    scores_late_codes, learns_from_teachers = True, True  # see ``grow``, ``loss``

    @dataclass(frozen=True)
    class Config:
        max_history: int = 50  # events read of a history
        width: int = 64  # dims of a token
        num_layers: int = 2  # blocks after each other
        num_heads: int = 2  # heads of attention; they divide width
        ff_multiple: int = 2  # feed-forward width / width
        dropout: float = 0.5  # share of units dropped
        leaf: Literal["tied", "untied", "sum"] = "tied"  # leaf vector: item's input vector, an own one, or both added
        label_smoothing: float = 0.0  # share of probability spread over the siblings
        content: Literal["none", "titles"] = later("none")  # titles: an item's vector also says what its title does
        id_dropout: float = later(0.2)  # titles: share of items whose own part is dropped at a step
        code_start: Literal["random", "centroids"] = later("random")  # vectors of codes: drawn, or the quantizer's

        def __post_init__(self) -> None:
            check_counts("[model]", self, "max_history", "width", "num_layers", "num_heads", "ff_multiple")
            for name in ("dropout", "label_smoothing", "id_dropout"):
                check_value("[model]", name, getattr(self, name), 0 <= getattr(self, name) < 1, "0 <= x < 1")
            if self.content != "none" and self.leaf == "untied":
                problem = f"[model] content = {self.content!r} with leaf = 'untied', which reads no item vector"
                raise InputError(problem, allowed="leaf = tied or sum")
            if self.width % self.num_heads:
                raise InputError(f"[model] width = {self.width} is not a multiple of num_heads = {self.num_heads}")

        @property
        def reads(self) -> Reads:
            return Reads(self.max_history)

    role = "generator"
    feed = PackedSequences
    leaf_items: Tensor  # (N,) item of each leaf
    leaf_of_item: Tensor  # (N,)

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config, self.reads = config, config.reads
        self.codebook_id = catalog.codebook_id
        self.level_sizes = tuple(catalog.level_sizes)
        width, num_items = config.width, len(catalog.item_keys)
        self._build_tree(np.asarray(catalog.codes))
        self.item: ItemEmbedding | TitledItems = ItemEmbedding(num_items, width)
        self.node_in = nn.ModuleList(nn.Embedding(n, width) for n in self.num_nodes[:-1])  # read with the history
        self.node_out = nn.ModuleList(nn.Embedding(n, width) for n in self.num_nodes[:-1])  # written
        for table in (self.item, *self.node_in, *self.node_out):
            nn.init.normal_(table.weight, std=0.02)
        if config.content == "titles":
            self.item = TitledItems(list(catalog.titles), width, config.id_dropout)
        if config.code_start == "centroids":
            start_nodes(zip(self.node_in, self.node_out, strict=True), catalog, std=0.02)
        if config.leaf != "tied":
            self.leaf = ItemEmbedding(num_items, width)
            nn.init.normal_(self.leaf.weight, std=0.02 if config.leaf == "untied" else 0.0)
        self.bias = nn.ParameterList(nn.Parameter(torch.zeros(n)) for n in self.num_nodes)
        self.visits = nn.Parameter(torch.zeros(len(self.level_sizes), 2))  # weights of "been there", log(1 + times)
        self.project = nn.ModuleList(nn.Linear(width, width) for _ in self.level_sizes)
        self.encoder = CausalEncoder(
            width, config.num_layers, config.num_heads, config.ff_multiple * width, config.max_history, config.dropout
        )
        self._tables: tuple[Tensor, ...] = ()  # in place of its own: see ``reading``
        self._folded = MadeOfWeights[Tensor]()  # leaf vectors in leaf order, for answering

    def train(self, mode: bool = True) -> SideraGenerator:
        """Switching modes drops the folded leaves."""
        self._folded.drop()
        return super().train(mode)

    # -- the tree ------------------------------------------------------------------------------------------------

    def _build_tree(self, codes_NL: np.ndarray) -> None:
        """Number the nodes of every level in code order, so that the children of a node are neighbours."""
        self._links = WeakKeyDictionary[CodeTrie, TreeLink | None]()  # tries that were searched
        levels, leaves = tree_levels(codes_NL, self.level_sizes)
        for number, level in enumerate(levels):
            for name in TREE:
                self.register_buffer(f"{name}_{number}", torch.from_numpy(getattr(level, name)), persistent=False)
        self.num_nodes = [level.num_nodes for level in levels]
        self.num_children = [level.most_children for level in levels]  # of the node with the most
        self.code_is_place = [level.code_is_place for level in levels]
        if self.num_nodes[-1] != len(codes_NL):
            raise InputError(
                f"{len(codes_NL) - self.num_nodes[-1]} items share their semantic ID with another item",
                fix='give every item its own: [catalog] collision = "extra_digit" or "greedy"',
            )
        self.register_buffer("leaf_of_item", torch.from_numpy(leaves), persistent=False)
        self.register_buffer("leaf_items", torch.from_numpy(np.argsort(leaves)), persistent=False)

    def _levels(self, name: str) -> list[Tensor]:
        """One of the tables ``TREE`` of every level."""
        return [getattr(self, f"{name}_{level}") for level in range(len(self.level_sizes))]

    def grow(self, items: ItemRows) -> None:
        """Take in the nodes of items that came later; a new node scores as its siblings do on average."""
        before, device = [keys.cpu().numpy() for keys in self._levels("keys")], self.leaf_items.device
        self._build_tree(np.asarray(items.codes, dtype=np.int64))
        now = [keys.numpy() for keys in self._levels("keys")]
        for level, of_old in enumerate(old_numbers(before, now, self.level_sizes)):
            parents = torch.from_numpy(now[level] // self.level_sizes[level]).to(device)
            rows = torch.from_numpy(of_old).to(device)
            self.bias[level] = nn.Parameter(with_siblings(self.bias[level].detach()[:, None], rows, parents)[:, 0])
            if level < len(self.level_sizes) - 1:
                for tables in (self.node_in, self.node_out):
                    weight = with_siblings(cast(nn.Embedding, tables[level]).weight.detach(), rows, parents)
                    tables[level] = nn.Embedding(weight.shape[0], weight.shape[1], _weight=weight)
        self.to(device).requires_grad_(False)

    def _paths(self, codes_UL: Tensor) -> Tensor:
        """(U, L) codes of items -> the node of each at each level."""
        nodes, found = torch.zeros_like(codes_UL[:, 0]), []
        for level in range(len(self.level_sizes)):
            nodes = self._child(level, nodes, codes_UL[:, level])
            found.append(nodes)
        return torch.stack(found, dim=1)

    def _node_vectors(self, level: int) -> Tensor:
        """(nodes of the level, D); at the last level in leaf order."""
        if level < len(self.level_sizes) - 1:
            return cast(nn.Embedding, self.node_out[level]).weight
        if self._tables:
            return self._tables[1]
        if self.training or torch.is_grad_enabled():  # gradients flow to the tables
            return self._leaf_vectors()
        weights = [*self.item.parameters(), *(() if self.config.leaf == "tied" else self.leaf.parameters())]
        return self._folded.get(weights, self._leaf_vectors)

    def _leaf_vectors(self) -> Tensor:
        if self.config.leaf == "untied":
            return F.embedding(self.leaf_items, self.leaf.weight)
        read = self.item.weight if isinstance(self.item, ItemEmbedding) else self.item.table()
        read = F.embedding(self.leaf_items, read)
        return read if self.config.leaf == "tied" else F.embedding(self.leaf_items, self.leaf.weight) + read

    def _children_logits(self, level: int, states: Tensor, parents: Tensor, visited: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the children of ``parents`` (R,) for ``states`` (R, D) -> logits (R, C), child nodes (R, C).

        ``visited`` (R, S, L) are the nodes of each row's history. Places past a node's last child hold -inf.
        """
        vectors, bias = self._node_vectors(level), self.bias[level]
        starts = getattr(self, f"starts_{level}")
        if level == 0:  # one parent, the root: a plain matrix product
            children = torch.arange(self.num_nodes[0], device=states.device).expand(len(states), -1)
            return torch.addmm(bias, states, vectors.T) + self._visit_bias(level, parents, visited), children
        first = starts[parents]  # (R,)
        steps = torch.arange(self.num_children[level], device=states.device)
        children = first[:, None] + steps  # (R, C)
        absent_mask = children >= starts[parents + 1, None]
        children = children.masked_fill(absent_mask, 0)
        logits = torch.bmm(F.embedding(children, vectors), states[:, :, None]).squeeze(2)  # (R, C)
        logits = logits + bias[children] + self._visit_bias(level, parents, visited)
        return logits.masked_fill(absent_mask, NEVER), children

    def _visit_bias(self, level: int, parents: Tensor, visited: Tensor) -> Tensor:
        """(R, C): what the history's visits to each child add to its score."""
        here = visited[:, :, level]  # (R, S)
        real_mask = here >= 0
        if level > 0:  # only visits that went through this row's parent count
            real_mask = real_mask & (visited[:, :, level - 1] == parents[:, None])
        place = (here - getattr(self, f"starts_{level}")[parents, None]).masked_fill(~real_mask, 0)
        times = torch.zeros(len(parents), self.num_children[level], device=here.device)
        times.scatter_add_(1, place, real_mask.float())  # (R, C)
        been, often = VISIT_SCALE * self.visits[level]
        return been * (times > 0) + often * times.log1p()

    def _level_states(self, states_TD: Tensor) -> list[Tensor]:
        return [states_TD + project(states_TD) for project in self.project]

    # -- training ------------------------------------------------------------------------------------------------

    def states(self, batch: Batch, layout: Layout, paths: Tensor) -> Tensor:
        """(T, D): at each event what the history up to it says. ``paths`` (U, L): nodes of the batch's items."""
        return self.encoder(self._events(batch, paths), layout)

    def _events(self, batch: Batch, paths: Tensor) -> Tensor:
        items = F.embedding(batch.items.ids, self._tables[0]) if self._tables else self.item(batch.items.ids)
        for level, table in enumerate(self.node_in):
            items = items + table(paths[:, level])
        return F.embedding(batch.events.items, items)

    def _visited(self, batch: Batch, paths: Tensor, first: Tensor, count: Tensor) -> Tensor:
        """(R, S, L) nodes of the ``count`` (R,) events from token ``first`` (R,) on; -1 behind them."""
        steps = torch.arange(int(count.max()), device=first.device)
        tokens = (first[:, None] + steps).clamp(max=batch.events.num_values - 1)  # (R, S)
        nodes = paths[batch.events.items[tokens]]  # (R, S, L)
        return nodes.masked_fill((steps >= count[:, None])[:, :, None], -1)

    def loss(self, batch: Batch, teachers: Sequence[SideraGenerator] = (), share: float = 0.0) -> Loss:
        """Sum over targets of -log p(next item), one softmax over siblings a level; ``share`` of it is the
        cross-entropy with the mean distribution of ``teachers``."""
        target_ids, offsets = batch.target_ids_of("event"), batch.events.offsets
        layout, smoothing = layout_of(offsets), self.config.label_smoothing
        paths = self._paths(batch.items.codes)  # (U, L)
        target_paths = paths[batch.targets_of("event").items]  # (T, L)
        visited = self._visited(batch, paths, offsets[layout.row_ids], layout.positions + 1)  # (T, S, L)
        asked = (batch, layout, paths, target_paths, visited)
        with torch.no_grad():
            taught = [[logits.softmax(1) for logits, _ in teacher.target_logits(*asked)] for teacher in teachers]
        total, parts = target_paths.new_zeros((), dtype=torch.float32), {}
        for level, (logits, place) in enumerate(self.target_logits(*asked)):
            level_total = F.cross_entropy(logits, place, reduction="sum")
            if smoothing:
                level_total = (1 - smoothing) * level_total + smoothing * cross_entropy(logits, uniform(logits))
            parts[f"level_{level}"] = float(level_total.detach()) / max(1, place.numel())
            if taught:
                mean = torch.stack([levels[level] for levels in taught]).mean(0)
                level_total = (1 - share) * level_total + share * cross_entropy(logits, mean)
            total = total + level_total
        return Loss(total, target_ids.numel(), parts)

    def target_logits(
        self, batch: Batch, layout: Layout, paths: Tensor, target_paths: Tensor, visited: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each level the scores of the children of the targets' parents (T, C), and the targets' places (T,)."""
        parents = torch.zeros_like(target_paths[:, 0])
        for level, states in enumerate(self._level_states(self.states(batch, layout, paths))):
            logits, _ = self._children_logits(level, states, parents, visited)
            yield logits, target_paths[:, level] - getattr(self, f"starts_{level}")[parents]
            parents = target_paths[:, level]

    def flops_per_batch(self, batch: Batch) -> float:
        """FLOPs of one training step on this batch, forward and backward; places past a last child do not count."""
        events = batch.events.num_values
        forward = self.encoder.flops(batch.lengths) + matmul_flops(self.project, events)
        if batch.targets is not None:
            codes_UL = batch.items.codes.to(self.leaf_items.device)  # a batch is counted before it moves to the device
            paths = self._paths(codes_UL).cpu()[batch.targets.items.cpu()]
            parents = torch.zeros(events, dtype=torch.int64)
            for level in range(len(self.level_sizes)):
                starts = getattr(self, f"starts_{level}").cpu()
                forward += 2.0 * self.config.width * float((starts[parents + 1] - starts[parents]).sum())
                parents = paths[:, level]
        return TRAINING * forward

    # -- answering -----------------------------------------------------------------------------------------------

    def context(self, batch: Batch) -> TreeContext:
        """Encode the histories once. Requires at least one event in each."""
        offsets, paths = batch.events.offsets, self._paths(batch.items.codes)
        layout, alone = layout_of(offsets, num_tokens=batch.num_events), batch.num_histories == 1
        last = self.encoder.last(self._events(batch, paths), layout, offsets[1:] - 1)  # (B, D)
        visited = paths[batch.events.items][None] if alone else self._visited(batch, paths, offsets[:-1], batch.lengths)
        return TreeContext(torch.stack(self._level_states(last), dim=1), visited)

    def new_cache(self, context: TreeContext, width: int) -> TreeCache:
        return TreeCache(torch.zeros(context.num_histories, 1, dtype=torch.int64, device=context.states.device))

    def step(
        self, context: TreeContext, cache: TreeCache, level: int, codes: Tensor | None, parents: Tensor | None
    ) -> StepOutput:
        """Log-probabilities of the next code, -inf where the prefix has no such child: (B, W, K)."""
        if codes is None or parents is None:
            nodes = torch.zeros_like(cache.nodes[:, :1])  # the root
        else:
            nodes = self._child(level - 1, cache.nodes.gather(1, parents), codes)
        cache.nodes = nodes
        log_p, child_codes = self._coded(context, level, nodes)  # (B, W, C)
        return StepOutput(self._by_code(level, log_p, child_codes), log_p.new_zeros(nodes.shape))

    def code_logits(self, context: TreeContext, sids: Tensor) -> list[Tensor]:
        """(B, G, L) codes -> per level (B, G, K) log-probabilities, -inf where a prefix has no such child."""
        nodes = torch.zeros_like(sids[:, :, 0])
        found = []
        for level in range(len(self.level_sizes)):
            log_p, child_codes = self._coded(context, level, nodes)  # (B, G, C)
            found.append(self._by_code(level, log_p, child_codes))
            nodes = self._child(level, nodes, sids[:, :, level])
        return found

    def _child(self, level: int, nodes: Tensor, codes: Tensor) -> Tensor:
        """The child of each node under a code; an arbitrary node where there is none (its beam is dead already)."""
        keys = getattr(self, f"keys_{level}")
        return torch.searchsorted(keys, nodes * self.level_sizes[level] + codes).clamp(max=len(keys) - 1)

    def _by_code(self, level: int, log_p: Tensor, codes: Tensor | None) -> Tensor:
        """(B, W, C) of children -> (B, W, K) of codes, -inf where a prefix has no such child."""
        if codes is None:
            return log_p
        size = self.level_sizes[level]
        table = log_p.new_full((*log_p.shape[:2], size + 1), NEVER)
        return table.scatter(2, codes, log_p)[:, :, :-1]  # absent children carry the spare code K

    def item_tables(self) -> list[Tensor]:
        """Vectors of items and of leaves, and biases of leaves; see :class:`sidera.roles.TabledGenerator`."""
        if not isinstance(self.item, ItemEmbedding):
            return []
        return [
            table.detach() for table in (self.item.weight, self._node_vectors(len(self.level_sizes) - 1), self.bias[-1])
        ]

    @contextmanager
    def reading(self, item_tables: Sequence[Tensor]) -> Iterator[None]:
        """Answer from these tables."""
        self._tables = tuple(item_tables)
        try:
            yield
        finally:
            self._tables = ()

    def _coded(self, context: TreeContext, level: int, nodes: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, W) nodes -> log-probabilities and codes of their children, (B, W, C) each; absent ones -inf, code K.
        None: every child's code is its place, and C is K."""
        log_p, children, absent_mask = self._child_log_probs(context, level, nodes)
        if self.code_is_place[level] and log_p.shape[2] == self.level_sizes[level]:
            return log_p, None
        return log_p, getattr(self, f"codes_{level}")[children].masked_fill_(absent_mask, self.level_sizes[level])

    def _child_log_probs(self, context: TreeContext, level: int, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, W) nodes -> log-probabilities and numbers of their children, and which are absent, (B, W, C) each;
        an absent one has -inf, and the number of the last child."""
        starts, num_children = getattr(self, f"starts_{level}"), self.num_children[level]
        children = starts[nodes][:, :, None] + torch.arange(num_children, device=nodes.device)  # (B, W, C)
        last = starts[nodes + 1][:, :, None] - 1
        absent_mask = children > last
        children = torch.minimum(children, last, out=children)
        if torch.is_grad_enabled():
            states = context.states[:, level, None].expand(-1, nodes.shape[1], -1).flatten(0, 1)  # (B*W, D)
            visited = context.visited[:, None].expand(-1, nodes.shape[1], -1, -1).flatten(0, 1)  # (B*W, S, L)
            logits = self._children_logits(level, states, nodes.flatten(), visited)[0].view(children.shape)
        else:
            vectors, here = self._node_vectors(level), context.visited[:, :, level]
            bias = self._tables[2] if self._tables and level == len(self.level_sizes) - 1 else self.bias[level]
            logits = children_logits(context.states[:, level], children, vectors, bias)
            above = context.visited[:, :, level - 1] if level else None
            add_visits(logits, nodes, starts, here, above, *(VISIT_SCALE * self.visits[level]))
            logits = logits.masked_fill_(absent_mask, NEVER)
        return logits.log_softmax(-1), children, absent_mask
