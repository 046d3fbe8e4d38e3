"""One of several processes that serve a run on one port: its share of the limits, and what it tells the others.

Each accepts from a socket of its own, which the system hands connections (``cli/workers.py``). All of them map the same
weights and catalogue, and open the same behaviour store and exposure log. A change of items or of the version reaches
the others through the run folder within WATCH seconds.

Each counts for itself. A worker leaves its figures in a file every second, so that any of them answers ``/metrics`` for
all: every line has the label ``worker``, as a restart then resets the counters of one worker and not a sum.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidera.serve.config import HttpConfig  # which imports torch, and the parent of the workers needs none

BACKLOG = 8192  # connections that wait to be accepted: one that finds no room tries again after a second
WATCH = 0.5  # seconds between two looks at the run folder
WRITTEN_EVERY = 1.0  # seconds


@dataclass(frozen=True)
class Worker:
    """Worker ``number`` (from 0) of ``count``; ``folder`` is where the workers leave their figures."""

    number: int
    count: int
    folder: Path

    def share(self, config: HttpConfig) -> HttpConfig:
        """Limits of this process, so that those of all come to ``config``'s; one body always fits."""
        return replace(
            config,
            bodies_mb=max(config.max_body_mb, config.bodies_mb / self.count),
            max_connections=max(1, config.max_connections // self.count),
            max_writes=max(1, config.max_writes // self.count),
        )

    @property
    def file(self) -> Path:
        return self.folder / f"{self.number}.prom"

    def write(self, text: str) -> None:
        """Leave the figures; a reader finds the old ones or the new ones."""
        part = self.folder / f"{self.number}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, self.file)

    def figures(self, own: str) -> str:
        """Those of all workers: this one's as they are now, the others' as they were left."""
        texts = {self.number: own}
        for path in self.folder.glob("*.prom"):
            if path != self.file and path.stem.isdigit():
                with contextlib.suppress(FileNotFoundError):  # its worker is being started again
                    texts[int(path.stem)] = path.read_text(encoding="utf-8")
        return merged(texts)


def merged(texts: Mapping[int, str]) -> str:
    """The expositions of several workers as one: a family's lines together, each with the label ``worker``."""
    comments: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for number, text in sorted(texts.items()):
        family = ""
        for line in text.splitlines():
            if line.startswith("#"):
                family = line.split(" ", 3)[2]
                seen = comments.setdefault(family, [])
                if line not in seen:
                    seen.append(line)
            elif line:
                samples.setdefault(family, []).append(_labelled(line, number))
    lines = [line for family, head in comments.items() for line in (*head, *samples.get(family, ()))]
    return "\n".join(lines) + "\n"


def _labelled(line: str, number: int) -> str:
    label = f'worker="{number}"'
    name, brace, rest = line.partition("{")
    if brace:
        return f"{name}{{{label},{rest}"
    name, _, value = line.partition(" ")
    return f"{name}{{{label}}} {value}"
