"""What the stages say while they work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from sidera import console
from sidera.fit import distributed

Say = Callable[[str], None]


def say_once(text: str) -> None:
    """A note, but in one process of a ``torchrun`` only."""
    if distributed.rank() == 0:
        console.say(text)


@contextlib.contextmanager
def rows_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yields what takes (rows done, rows in all): a bar on a terminal, a line now and then elsewhere."""
    with console.Progress(what, unit="row") as progress:
        yield progress.to
