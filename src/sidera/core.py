"""The nouns that every room speaks, and the roles that a model can play.

Two kinds of item name run through the code: an item's *key* is the publisher's string ("B000FTYALG"), its *id* is the
dense row number 0..N-1 inside one Dataset or Catalog. Tensors named ``*_ids`` hold dense ids.

Shape legend: T tokens or events (jagged, all histories of a batch after each other) · B histories · W beams of one
history · L levels of a semantic ID · K codes of a level · N items · G candidates of one history, or all
targets of a batch · Q user vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:  # torch takes a second to import, and `sidera --help` needs only the errors below
    import torch
    from torch import Tensor


class InputError(ValueError):
    """Something from outside (a file, a flag, a request) cannot be used.

    The message is one line: what is wrong with which value, what is allowed, how to mend it. The shell prints it
    without a traceback and HTTP answers 4xx with it.
    """

    def __init__(self, problem: str, *, allowed: str = "", fix: str = "") -> None:
        self.problem, self.allowed, self.fix = problem, allowed, fix
        parts = [problem.rstrip(".")]
        if allowed:
            parts.append(f"allowed: {allowed}")
        if fix:
            parts.append(f"fix: {fix}")
        super().__init__("; ".join(parts))


class ArtifactError(InputError):
    """A saved artifact is missing, truncated, edited, of another kind or of another version."""


class CatalogMismatch(ArtifactError):
    """A model was given a Catalog whose codes it was not trained on."""


def jagged_rows(offsets: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the jagged rows ``rows`` (n,) one after the other, and their new offsets (n+1,)."""
    lengths = offsets.diff()[rows]
    bounds = lengths.new_zeros(len(rows) + 1)
    bounds[1:] = lengths.cumsum(0)
    shift = (offsets[rows] - bounds[:-1]).repeat_interleave(lengths)
    return shift.new_ones(len(shift)).cumsum(0) - 1 + shift, bounds


@dataclass(frozen=True)
class Lifelong:
    """Whole histories as a few representatives each, jagged, oldest first; see ``store.lifelong``.

    A representative is an event that stands for others like it: the item and labels of the one nearest to their centre,
    their mean time and seconds. In a history short enough every event stands for itself.
    """

    item_ids: Tensor  # (R,) int64
    offsets: Tensor  # (B+1,) int64: history b has those from offsets[b] to offsets[b+1]
    counts: Tensor  # (R,) int64, events that each stands for
    times: Tensor  # (R,) int64, unix seconds
    feedback: Mapping[str, Tensor] = field(default_factory=dict)  # column -> (R,) float32

    def cut(self, low: int, high: int) -> Lifelong:
        """Those of the histories ``low`` to ``high - 1``."""
        begin, end = int(self.offsets[low]), int(self.offsets[high])
        return Lifelong(
            self.item_ids[begin:end],
            self.offsets[low : high + 1] - begin,
            self.counts[begin:end],
            self.times[begin:end],
            {name: values[begin:end] for name, values in self.feedback.items()},
        )

    def rows(self, rows: Tensor) -> Lifelong:
        """Those of the histories ``rows`` (n,)."""
        places, offsets = jagged_rows(self.offsets, rows)
        feedback = {name: values[places] for name, values in self.feedback.items()}
        return Lifelong(self.item_ids[places], offsets, self.counts[places], self.times[places], feedback)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Lifelong:
        ids, offsets, counts, times = (
            values.to(device, non_blocking=non_blocking)
            for values in (self.item_ids, self.offsets, self.counts, self.times)
        )
        feedback = {name: values.to(device, non_blocking=non_blocking) for name, values in self.feedback.items()}
        return Lifelong(ids, offsets, counts, times, feedback)


@dataclass(frozen=True)
class Batch:
    """Jagged histories, oldest event first: history b is ``item_ids[offsets[b]:offsets[b+1]]``.

    ``target_ids`` is (T,) when every position predicts its next item (packed training), (B,) when each history has one
    target, (G,) when it has several (one request's positives: history b has those from ``target_offsets[b]`` to
    ``target_offsets[b+1]``), None when answering. ``global_count`` is the number of targets over all ranks (DDP), so
    that a loss divided by it does not depend on how the batch was cut.

    ``feedback`` holds logged columns by name, as numbers: for models that read every exposure with what came of it.
    ``lifelong`` is there for models that read representatives of the whole histories, of which the events are the end.
    """

    item_ids: Tensor  # (T,) int64
    offsets: Tensor  # (B+1,) int64
    target_ids: Tensor | None = None  # (T,), (B,) or (G,) int64
    times: Tensor | None = None  # (T,) int64, unix seconds
    user_ids: Tensor | None = None  # (B,) int64
    global_count: int | None = None
    target_offsets: Tensor | None = None  # (B+1,) int64
    as_of: Tensor | None = None  # (B,) int64, unix seconds: the moment of the request
    feedback: Mapping[str, Tensor] = field(default_factory=dict)  # column -> (T,) float32
    target_feedback: Mapping[str, Tensor] = field(default_factory=dict)  # column -> (G,) float32
    profiles: Mapping[str, Tensor] = field(default_factory=dict)  # field -> (B,) int64, 0: unknown
    lifelong: Lifelong | None = None

    @property
    def num_histories(self) -> int:
        return self.offsets.numel() - 1

    @property
    def lengths(self) -> Tensor:
        """(B,) events per history."""
        return self.offsets.diff()

    @property
    def per_position(self) -> bool:
        """True when there is one target for every event rather than one per history."""
        if self.target_ids is None or self.target_offsets is not None:
            return False
        return self.target_ids.numel() == self.item_ids.numel()

    def cut(self, low: int, high: int) -> Batch:
        """The histories ``low`` to ``high - 1`` with all that belongs to them."""
        begin, end = int(self.offsets[low]), int(self.offsets[high])
        bounds = self.target_offsets
        if bounds is not None:
            first, last = int(bounds[low]), int(bounds[high])
        else:
            first, last = (begin, end) if self.per_position else (low, high)
        return replace(
            self,
            item_ids=self.item_ids[begin:end],
            offsets=self.offsets[low : high + 1] - begin,
            target_ids=None if self.target_ids is None else self.target_ids[first:last],
            times=None if self.times is None else self.times[begin:end],
            user_ids=None if self.user_ids is None else self.user_ids[low:high],
            target_offsets=None if bounds is None else bounds[low : high + 1] - first,
            as_of=None if self.as_of is None else self.as_of[low:high],
            feedback={name: values[begin:end] for name, values in self.feedback.items()},
            target_feedback={name: values[first:last] for name, values in self.target_feedback.items()},
            profiles={name: values[low:high] for name, values in self.profiles.items()},
            lifelong=None if self.lifelong is None else self.lifelong.cut(low, high),
        )

    def rows(self, rows: Tensor) -> Batch:
        """The histories ``rows`` (n,) for answering: what they should have been followed by stays behind."""
        places, offsets = jagged_rows(self.offsets, rows)
        return Batch(
            self.item_ids[places],
            offsets,
            times=None if self.times is None else self.times[places],
            user_ids=None if self.user_ids is None else self.user_ids[rows],
            as_of=None if self.as_of is None else self.as_of[rows],
            feedback={name: values[places] for name, values in self.feedback.items()},
            profiles={name: values[rows] for name, values in self.profiles.items()},
            lifelong=None if self.lifelong is None else self.lifelong.rows(rows),
        )

    def keep(self, kept_mask: Tensor) -> Batch:
        """The same histories with only the events that a mask (T,) names; targets belong to histories and stay."""
        counts = self.offsets.new_zeros(len(kept_mask) + 1)  # events kept before each place
        counts[1:] = kept_mask.cumsum(0)
        return replace(
            self,
            item_ids=self.item_ids[kept_mask],
            offsets=counts[self.offsets],
            times=None if self.times is None else self.times[kept_mask],
            feedback={name: values[kept_mask] for name, values in self.feedback.items()},
        )

    def to(self, device: torch.device | str) -> Batch:
        moved: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Mapping):
                moved[entry.name] = {name: column.to(device, non_blocking=True) for name, column in value.items()}
            elif value is not None and not isinstance(value, int):
                moved[entry.name] = value.to(device, non_blocking=True)
        return replace(self, **moved)


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

    def log_probs(self, context: Any, sids: Tensor) -> Tensor:
        """Log-probability of every code of given semantic IDs, with gradient. sids (B, G, L) -> (B, G, L)."""

    def code_logits(self, context: Any, sids: Tensor) -> Sequence[Tensor]:
        """What ``step`` would score after each prefix of given semantic IDs, all levels at once, with gradient.

        sids (B, G, L) -> L of (B, G, K_level), up to a constant a row; -inf for a code that the model cannot write.
        The last code of ``sids`` is not read. Alignment renormalises these over what the trie allows.
        """


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

    def loss(self, batch: Batch) -> Loss: ...

    def context(self, batch: Batch) -> Context: ...

    def score(self, context: Context, candidates: Tensor) -> Tensor:
        """Candidates (B, C) item ids -> (B, C, tasks), each in the order of ``tasks``, higher is more likely."""


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


@dataclass(frozen=True)
class Request:
    """One question: what comes after this history, or after what is known of this user?"""

    history: tuple[str, ...] = ()  # item keys, oldest first
    k: int = 10  # items wanted
    filter_seen: bool = False  # True: items of the history are not answered again
    exclude: tuple[str, ...] = ()  # item keys that must not be answered; unknown ones never are
    feedback: Mapping[str, Sequence[float]] = field(default_factory=dict)  # column -> one number per event of history
    times: Sequence[int] | None = None  # unix seconds of each event
    profile: Mapping[str, str] = field(default_factory=dict)  # what is known of the user: region, device, ...
    as_of: int | None = None  # unix seconds; None: the moment of the newest event
    user: str | None = None  # key of a user whose history is in the behaviour store: events before ``as_of``, or all


@dataclass(frozen=True)
class Recommendation:
    """The answer to one Request, most likely first."""

    item_ids: tuple[int, ...]
    item_keys: tuple[str, ...]
    scores: tuple[float, ...]  # log-probability (generators) or model score
    titles: tuple[str | None, ...]
    cold_start: bool  # the history held nothing that the model knows: answered by popularity
    unknown: tuple[str, ...]  # keys of the history that the catalogue does not hold
    items_version: int
    policy_version: str = ""  # of the weights that answered
    codebook_id: str = ""  # with items_version: the catalogue that answered
    unknown_user: bool = False  # the request named a user of whom the behaviour store knows nothing (as of then)
    request: str = ""  # names this answer in the exposure log; "": not logged
    unread: tuple[str, ...] = ()  # keys of the history that came after the training: the model has no row for them
