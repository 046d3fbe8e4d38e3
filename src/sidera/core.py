"""The nouns of a conversation: what is asked, what is answered, and what is wrong with a question.

Two kinds of item name run through the code: an item's *key* is the publisher's string ("B000FTYALG"), its *id* is the
dense row number 0..N-1 inside one Dataset or Catalog. Tensors named ``*_ids`` hold dense ids. What models read is in
``batch.py``, what they can be is in ``roles.py``; this file needs no torch, so that ``sidera --help`` is quick.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LONGEST = 500  # characters of a part of a message; one that repeats a value of a damaged file may have any number


def _one_line(text: str) -> str:
    text = _cut(text)  # first: to escape millions of characters takes seconds
    if text.isprintable():
        return text
    return _cut("".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text))


def _cut(text: str) -> str:
    """What is wrong stands at the beginning, what it is held against often at the end."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 150]} ... {text[-140:]}"


class InputError(ValueError):
    """Something from outside (a file, a flag, a request) cannot be used.

    The message is one line: what is wrong with which value, what is allowed, how to mend it. The shell prints it
    without a traceback and HTTP answers 4xx with it. A value that it repeats may hold anything: line breaks, control
    characters and lone surrogates are escaped as ``repr`` escapes them; a part above ``LONGEST`` is cut in its middle.
    """

    def __init__(self, problem: str, *, allowed: str = "", fix: str = "") -> None:
        self.problem, self.allowed, self.fix = _one_line(problem), _one_line(allowed), _one_line(fix)
        parts = [self.problem.rstrip(".")]
        if allowed:
            parts.append(f"allowed: {self.allowed}")
        if fix:
            parts.append(f"fix: {self.fix}")
        super().__init__("; ".join(parts))


class ArtifactError(InputError):
    """A saved artifact is missing, truncated, edited, of another kind or of another version."""


class CatalogMismatch(ArtifactError):
    """A model was given a Catalog whose codes it was not trained on."""


@dataclass(frozen=True)
class Clause:
    """One condition on a column of the item table: one of some values, none of them, or a range."""

    column: str
    values: tuple[str, ...] = ()
    negated: bool = False  # none of the values
    low: float | None = None  # at least; with ``high`` None and no values it is the range's only end
    high: float | None = None  # at most

    @property
    def is_range(self) -> bool:
        return self.low is not None or self.high is not None

    @property
    def shown(self) -> str:
        """What is asked of the column, for a message."""
        return f"a range ({self.low} to {self.high})" if self.is_range else f"values ({', '.join(self.values)[:40]})"


@dataclass(frozen=True)
class Filter:
    """Items that pass every clause may be answered; make one with :meth:`of`."""

    clauses: tuple[Clause, ...]

    @classmethod
    def of(cls, conditions: Mapping[str, Any]) -> Filter:
        """column -> a value, a list of values, ``{"not": value or list}``, or ``{"min": number, "max": number}``.

        InputError for a condition that is none of these.
        """
        return cls(tuple(_clause(column, condition) for column, condition in sorted(conditions.items())))


def _clause(column: str, condition: Any) -> Clause:
    negated = isinstance(condition, Mapping) and set(condition) == {"not"}
    if isinstance(condition, Mapping) and not negated:
        ends = {"min": None, "max": None} | dict(condition)
        good = condition and len(ends) == 2 and all(_is_number(end) for end in condition.values())
        if not good:
            raise _bad_condition(column, condition)
        return Clause(column, low=ends["min"], high=ends["max"])
    values = condition["not"] if negated else condition
    values = [values] if isinstance(values, str | int) else values
    if not isinstance(values, list | tuple) or not all(
        isinstance(value, str | int) and not isinstance(value, bool) for value in values
    ):
        raise _bad_condition(column, condition)
    return Clause(column, tuple(sorted({str(value) for value in values})), negated)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _bad_condition(column: str, condition: Any) -> InputError:
    return InputError(
        f"the filter's condition on {column!r} is {str(condition)[:60]}",
        allowed='a value, a list of values, {"not": ...}, or {"min": number, "max": number}',
    )


@dataclass(frozen=True)
class Request:
    """One question: what comes after this history, or after what is known of this user?"""

    history: tuple[str, ...] = ()  # item keys, oldest first
    k: int = 10  # items wanted
    filter_seen: bool | None = None  # items of the history are not answered again; None: as the log's repeats say
    exclude: tuple[str, ...] = ()  # item keys that must not be answered; unknown ones never are
    feedback: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    # column, or feature of events -> one value per event of history; numbers, and of features what they hold
    times: Sequence[int] | None = None  # unix seconds of each event
    profile: Mapping[str, Any] = field(default_factory=dict)  # features of the user and of this request -> value
    as_of: int | None = None  # unix seconds; None: the moment of the newest event
    user: str | None = None  # key of a user whose history is in the behaviour store: events before ``as_of``, or all
    refuse_unknown: bool = False  # True: InputError for a history with an item that the catalogue does not hold
    filter: Filter | None = None  # which items may be answered; None: all


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
    expert_version: str = ""  # of the counts beside a generator, "+" how many events came since; "": none
    reranker_version: str = ""  # of the reranker that ordered the items; "": none did
    codebook_id: str = ""  # with items_version: the catalogue that answered
    unknown_user: bool = False  # the request named a user of whom the behaviour store knows nothing (as of then)
    request: str = ""  # names this answer in the exposure log; "": not logged
    shadow_version: str = ""  # of the weights that this answer is compared with; "": none
    filtered_seen: bool = False  # items of the history were left out: as asked, or because users hardly return to any
    unread: tuple[str, ...] = ()  # keys of the history that came after the training: the model has no row for them
    unseen: tuple[str, ...] = ()  # "feature=value" of the request that training never saw: read as unknown
    beam: int = 0  # width of the search; 0: no search was made (a scorer, or a cold start)
    eligible: int | None = None  # items that pass the request's filter; 0: clauses contradict, or name nothing there is
