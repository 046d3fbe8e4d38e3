"""The roles that a model can play, and what they return.

Shape legend: B histories · W beams of one history · L levels of a semantic ID · K codes of a level · N items ·
G candidates of one history · Q user vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from sidera.batch import Batch, Reads
from sidera.core import InputError


@dataclass(frozen=True)
class Loss:
    """What a model's ``loss`` returns: the *sum* over targets and their number, so ranks and micro-batches add up."""

    total: Tensor  # () sum over the batch's targets, differentiable
    count: int  # number of targets that entered the sum
    parts: Mapping[str, float] = field(default_factory=dict)  # for the log, already averaged


class Context(Protocol):
    """What a request costs once: the encoded histories, shared by every beam and candidate. Private to its model."""

    @property
    def num_histories(self) -> int: ...

    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True)
class StepOutput:
    """Scores of the next code for each beam: log p(code) = logits - log_norm."""

    logits: Tensor  # (B, W, K_level)
    log_norm: Tensor | None = None  # (B, W); None: the softmax runs over the K_level codes


@runtime_checkable
class Generator(Protocol):
    """Writes semantic IDs code by code. A method's ``context`` is what :meth:`context` of the same model gave."""

    codebook_id: str  # the Catalog identity that the codes belong to
    level_sizes: tuple[int, ...]  # K of each level

    def loss(self, batch: Batch) -> Loss: ...

    def context(self, batch: Batch) -> Context: ...

    def new_cache(self, context: Any, width: int) -> Any:
        """Buffers for one beam search of at most ``width`` beams per history, allocated once."""

    def step(self, context: Any, cache: Any, level: int, codes: Tensor | None, parents: Tensor | None) -> StepOutput:
        """Scores for the code at ``level``.

        At level 0 ``codes`` and ``parents`` are None and the output has W = 1. Afterwards ``codes`` (B, W) holds the
        code each beam chose at ``level - 1`` and ``parents`` (B, W) the beam of the previous step that it grew from.
        """

    def code_logits(self, context: Any, sids: Tensor) -> Sequence[Tensor]:
        """What ``step`` would score after each prefix of given semantic IDs, all levels at once, with gradient.

        sids (B, G, L) -> L of (B, G, K_level), up to a constant a row; -inf for a code that the model cannot write.
        The last code of ``sids`` is not read. Alignment renormalises these over what the trie allows.
        """


@runtime_checkable
class TreeGenerator(Generator, Protocol):
    """A Generator that scores the children of a node rather than all codes of a level."""

    def child_log_probs(self, context: Any, level: int, nodes: Tensor, trie: Any) -> tuple[Tensor, Tensor] | None:
        """Nodes (B, W) of the level above in ``trie`` (at level 0 the root's number, 0) -> log-probabilities of their
        children, and the children's numbers in the trie, (B, W, C) each. Numbers ascend along the children of ascending
        nodes. Behind a node's last child, and for a child that the trie lacks: -inf, and the number of the one before
        it, or -1. None where the trie is no part of the model's tree.
        """

    def some_log_probs(
        self, context: Any, level: int, nodes: Tensor, children: Tensor, parents: Tensor, trie: Any
    ) -> Tensor | None:
        """Nodes (B, W), some of their children (B, P), and in which column of ``nodes`` each one's parent stands (B, P)
        -> (B, P) log-probabilities among all children that the node has in the model's tree. A child of another node:
        anything. None as above."""


@runtime_checkable
class TabledGenerator(Generator, Protocol):
    """A Generator that can read its tables of a row an item from elsewhere: a compiled program takes them as inputs
    rather than to hold a copy of them."""

    def item_tables(self) -> list[Tensor]:
        """Without gradient; [] where there are none."""

    def reading(self, item_tables: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Answer from these."""


@runtime_checkable
class SessionGenerator(Generator, Protocol):
    """A Generator that goes on after an item: it writes lists of up to ``session_length`` items.

    ``step`` at level 0 with ``codes`` given takes them as the last codes of an item and begins the beams' next one.
    """

    session_length: int  # m
    list_beam: int  # lists that a search keeps side by side

    def log_probs_lists(self, context: Any, sids: Tensor) -> Tensor:
        """Log-probability of every code of given lists, with gradient. sids (B, G, m, L) -> (B, G, m, L); any list
        length up to ``session_length``. The sum over (m, L) is log p(list)."""


@runtime_checkable
class ParallelGenerator(Generator, Protocol):
    """A Generator whose codes do not read each other: one state scores the codes of all levels at once, and
    log p(item) is a sum over them."""

    def code_log_probs(self, context: Any) -> Sequence[Tensor]:
        """L of (B, K_level)"""

    def code_vectors(self) -> Sequence[Tensor]:
        """L of (K_level, D): codes that are likely for the same histories have like vectors."""


@runtime_checkable
class MaskedGenerator(Generator, Protocol):
    """A Generator that fills codes in any order."""

    def fill_log_probs(self, context: Any, codes: Tensor) -> Sequence[Tensor]:
        """Codes (B, W, L), -1 where open -> L of (B, W, K_level): log-probabilities of the codes of each level."""


@runtime_checkable
class TaughtGenerator(Generator, Protocol):
    """A small Generator that learned from a large one, which it can draft for."""

    teacher: Any  # a Generator over the same codes

    def teacher_context(self, context: Any) -> Any:
        """The teacher's context of the histories of a context of the small one."""


@runtime_checkable
class HybridGenerator(Generator, Protocol):
    """A Generator whose beams propose semantic IDs, and whose vectors order the items that bear them."""

    num_proposed: int  # semantic IDs whose items are compared
    joins_cold: bool  # whether items that training never showed are compared too, whatever the beams wrote

    def item_vectors(self) -> Tensor:
        """(N, D)"""

    def beam_vectors(self, context: Any, cache: Any, codes: Tensor, parents: Tensor) -> Tensor:
        """The step behind the last: what each finished beam says of its item, (B, W, D). Arguments as of ``step``."""

    def given_vectors(self, context: Any, sids: Tensor) -> Tensor:
        """What beams that wrote these semantic IDs (B, G, L) would say, (B, G, D)."""

    def fused(self, log_probs: Tensor, matches: Tensor) -> Tensor:
        """log p of the semantic IDs, and dot products of beam and item vectors, (B, C) each -> scores (B, C)."""


@runtime_checkable
class Scorer(Protocol):
    """Scores every item of the catalogue at once (popularity, item-kNN, SASRec)."""

    def item_scores(self, batch: Batch) -> Tensor:
        """(B, N), higher is better."""


@runtime_checkable
class Retriever(Scorer, Protocol):
    """A Scorer whose score is a dot product, so that it can be served by nearest-neighbour search."""

    def user_vectors(self, batch: Batch) -> Tensor:
        """(B, Q, D)"""

    def item_vectors(self) -> Tensor:
        """(N, D)"""


@runtime_checkable
class Ranker(Protocol):
    """Scores given items for each history, one number per task; the user part is paid for once."""

    tasks: tuple[str, ...]  # what the numbers of an item are, the one to rank by first
    reads: Reads

    def loss(self, batch: Batch) -> Loss: ...

    def context(self, batch: Batch) -> Context: ...

    def score(self, context: Context, candidates: Tensor) -> Tensor:
        """Candidates (B, C) item ids -> (B, C, tasks), each in the order of ``tasks``, higher is more likely.

        For a list reward: lists (B, G, m), -1 where a list is shorter -> (B, G, tasks).
        """

    def labels(self, batch: Batch) -> Mapping[str, Tensor]:
        """task -> (targets,) what came of the batch's targets, 0 to 1, NaN where nobody knows yet; (B,) of a list
        reward. A task that nothing can be said of (a fused score) is left out."""


@dataclass(frozen=True)
class Rollout:
    """Semantic IDs that a policy wrote for the histories of a batch, and how likely it was to write each code.

    ``log_probs`` are those of the distribution that was drawn from (mode and temperature included), or, for
    ``mode = "beam"``, of the masked policy. Where a rollout wrote no item (an illegal semantic ID of a free rollout,
    fewer items than places in a beam) ``item_ids`` holds -1; where nothing was written ``sids`` holds -1 too.
    """

    sids: Tensor  # (B, G, L) int64
    item_ids: Tensor  # (B, G) int64; of items that share a semantic ID the first in serving order
    log_probs: Tensor  # (B, G, L) float32
    mode: str  # masked | free | beam
    temperature: float
    policy_version: str
    codebook_id: str
    items_version: int

    @property
    def legal_mask(self) -> Tensor:
        """(B, G) True where an item was written."""
        return self.item_ids >= 0

    def check(self, policy_version: str, codebook_id: str, items_version: int) -> None:
        """InputError, naming both, unless these wrote it: an update that needs its own rollouts calls this."""
        pairs = (
            ("policy", self.policy_version, policy_version),
            ("codebook", self.codebook_id, codebook_id),
            ("items_version", self.items_version, items_version),
        )
        for what, theirs, ours in pairs:
            if theirs != ours:
                raise InputError(
                    f"the rollout is of {what} {theirs}, the update is of {what} {ours}",
                    fix="roll out again after the weights or the catalogue changed",
                )
