"""How long the steps of a batch took, where somebody asks: the spans of a trace (``serve/tracing.py``).

    with collecting() as spans:
        recommender.answers(requests)          # spans: [Span("read", ...), Span("search", ...)]

Nobody asks by default, and then a step costs half a microsecond more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

_NOTHING: AbstractContextManager[None] = nullcontext()
_collected = threading.local()


class Span(NamedTuple):
    """A step, in seconds of ``time.monotonic()``."""

    name: str
    begin: float
    end: float


@contextmanager
def collecting() -> Iterator[list[Span]]:
    """The steps that this thread does inside the block."""
    _collected.spans = spans = list[Span]()
    try:
        yield spans
    finally:
        _collected.spans = None


def step(name: str) -> AbstractContextManager[None]:
    """A step of whatever is being done on this thread."""
    spans = getattr(_collected, "spans", None)
    return _NOTHING if spans is None else _measured(spans, name)


@contextmanager
def _measured(spans: list[Span], name: str) -> Iterator[None]:
    begin = time.monotonic()
    try:
        yield
    finally:
        spans.append(Span(name, begin, time.monotonic()))
