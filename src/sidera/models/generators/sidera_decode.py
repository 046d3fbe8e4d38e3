"""What sidera's generator keeps of a search, and its scores of the children of many nodes when it answers.

All beams of a history share its state, so the scores of a level are products of one vector. Two ways, held against the
generator's own (``tests/models/test_sidera.py``): one product with the whole level and a lookup, where the beams ask
for as much; else the rows that they ask for, read where they lie. Nothing is copied: a million leaves of 64 dims are
250 MB, and 50 beams of a tree of 1,000 clusters would copy 12 MB of them at every request.

Shape legend: B histories · W beams · S longest history · L levels · C most children of a node · D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from sidera.ops.jagged import with_copies
from sidera.ops.processor import chosen_products
from sidera.ops.tree_link import TreeLink
from sidera.ops.trie import CodeTrie

NEVER = float("-inf")


@dataclass
class TreeContext:
    """The state after each history, projected for every level, and where the history has been."""

    states: Tensor  # (B, L, D)
    visited: Tensor  # (B, S, L) nodes of the history's events, -1 behind a shorter history

    @property
    def num_histories(self) -> int:
        return self.states.shape[0]

    @property
    def nbytes(self) -> int:
        return self.states.nbytes + self.visited.nbytes

    @property
    def length(self) -> int:
        return self.visited.shape[1]

    def tensors(self) -> tuple[Tensor, ...]:
        return self.states, self.visited

    def padded_to(self, num_histories: int, length: int) -> TreeContext:
        """See :class:`sidera.decode.graph.Paddable`."""
        more = num_histories - self.num_histories
        visited = F.pad(self.visited, (0, 0, 0, length - self.length), value=-1)
        return TreeContext(with_copies(self.states, more), with_copies(visited, more))


@dataclass
class TreeCache:
    """The node that each beam stands on."""

    nodes: Tensor  # (B, W) node of the level before the one being scored


def children_logits(states: Tensor, children: Tensor, vectors: Tensor, bias: Tensor) -> Tensor:
    """Scores (B, W, C) of the nodes ``children`` (B, W, C) of a level, for states (B, D); vectors (nodes, D) and bias
    (nodes,) of the level."""
    asked = children.flatten(1)
    if not states.is_cpu or asked.shape[1] >= bias.shape[0]:
        found = torch.addmm(bias, states, vectors.T).gather(1, asked)
    elif torch.compiler.is_exporting():
        raise ValueError("the products of a large level are one sparse operation, which no program has")
    else:
        found = chosen_products(states, vectors, asked, bias)
    return found.view(children.shape)


def add_visits(
    logits: Tensor, nodes: Tensor, starts: Tensor, here: Tensor, above: Tensor | None, been: Tensor, often: Tensor
) -> None:
    """Add, in place, what a history's visits to a child change of its score.

    logits (B, W, C) of the children of nodes (B, W); here and above (B, S): the nodes that the events of the history
    stand on, at the children's level and at the one above (None: all hang under the root); -1: no event.
    """
    real_mask = here >= 0
    same = here[:, :, None] == here[:, None]  # (B, S, S)
    times = same.sum(2).to(logits.dtype)  # (B, S) visits of the node that an event stands on
    share = (been + often * times.log1p()) / times  # every visit of a node brings its part
    under = torch.zeros_like(here) if above is None else above.clamp(min=0)
    asks = (under[:, :, None] == nodes[:, None]) & real_mask[:, :, None]  # (B, S, W): beams that stand above the visit
    place = (here - starts[under]).clamp_(min=0, max=logits.shape[2] - 1)
    index = place[:, :, None] + torch.arange(nodes.shape[1], device=nodes.device) * logits.shape[2]
    shares = torch.where(asks, share[:, :, None], 0.0)
    logits.flatten(1).scatter_add_(1, index.flatten(1), shares.flatten(1))


class ScoresChildren(ABC):
    """The part of the generator that a search asks (:class:`sidera.roles.TreeGenerator`)."""

    leaf_of_item: Tensor  # (N,)
    _links: WeakKeyDictionary[CodeTrie, TreeLink | None]  # of tries that were searched

    @abstractmethod
    def _levels(self, name: str) -> list[Tensor]:
        """One of the tables of every level of the tree."""

    @abstractmethod
    def _child_log_probs(self, context: TreeContext, level: int, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, W) nodes -> log-probabilities and numbers of their children, and which are absent, (B, W, C) each."""

    def child_log_probs(
        self, context: TreeContext, level: int, nodes: Tensor, trie: CodeTrie
    ) -> tuple[Tensor, Tensor] | None:
        """See :class:`sidera.roles.TreeGenerator`."""
        link = self._link(trie)
        if link is None:
            return None
        log_p, children, _ = self._child_log_probs(context, level, link.own(level - 1, nodes) if level else nodes)
        here = link.levels[level]
        if here is None:
            return log_p, children
        return log_p.masked_fill_(here.missing[children], NEVER), here.numbers[children]

    def some_log_probs(
        self, context: TreeContext, level: int, nodes: Tensor, children: Tensor, parents: Tensor, trie: CodeTrie
    ) -> Tensor | None:
        """See :class:`sidera.roles.TreeGenerator`."""
        link = self._link(trie)
        if link is None:
            return None
        nodes, starts = link.own(level - 1, nodes), self._levels("starts")[level]
        log_p = self._child_log_probs(context, level, nodes)[0]  # (B, W, C)
        places = link.own(level, children) - starts[nodes].gather(1, parents)
        places = places.clamp_(min=0, max=log_p.shape[2] - 1).add_(parents, alpha=log_p.shape[2])
        return log_p.flatten(1).gather(1, places)

    def _link(self, trie: CodeTrie) -> TreeLink | None:
        """Looked for once."""
        if trie not in self._links:
            self._links[trie] = TreeLink.of(trie, self._levels("starts"), self.leaf_of_item)
        return self._links[trie]
