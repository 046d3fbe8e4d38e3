"""What the command says, how loudly and where; tables for people, one JSON object for programs, progress for both.

Three kinds of words. A *note* (:func:`say`) tells what happens on the way, a *result* (:func:`result`) is what was
asked for, a *warning* (:func:`warn`) is what the user must know. ``-q`` leaves results and warnings, ``-v`` adds
:func:`detail`. Notes and results go to standard output and warnings to standard error. With ``--json`` all words go to
standard error and the last line of standard output is one JSON object (docs/use/cli.md).

:class:`Progress` draws a bar on a terminal. Elsewhere (a log file, a pipe, a notebook's output) it writes a line every
30 seconds, so that a long stage is never silent.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

QUIET, NORMAL, VERBOSE = 0, 1, 2
EVERY = 30.0  # seconds between two lines of a stage where there is no terminal


@dataclass
class _Settings:
    level: int = NORMAL
    as_json: bool = False


_settings = _Settings()


def configure(level: int = NORMAL, as_json: bool = False) -> tuple[int, bool]:
    """What ``-q``, ``-v`` and ``--json`` ask for; holds for the process until it is called again. -> what held."""
    before = (_settings.level, _settings.as_json)
    _settings.level, _settings.as_json = level, as_json
    return before


def is_verbose() -> bool:
    return _settings.level >= VERBOSE


def say(text: str) -> None:
    """A note on the way: stages, paths, what was reused."""
    if _settings.level >= NORMAL:
        print(text, file=sys.stderr if _settings.as_json else sys.stdout, flush=True)


def detail(text: str) -> None:
    """A note that only ``-v`` shows."""
    if is_verbose():
        say(text)


def result(text: str) -> None:
    """What was asked for. Under ``--json`` it is for the eye only, beside the object that carries it."""
    if not _settings.as_json:
        print(text, flush=True)
    elif _settings.level >= NORMAL:
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """What must not be missed: standard error at every level."""
    print(text, file=sys.stderr, flush=True)


def finish(verb: str, answer: Mapping[str, Any] | None) -> None:
    """The one JSON object of a verb, where ``--json`` asked for it."""
    if _settings.as_json:
        print(json.dumps(plain({"verb": verb, **(answer or {})}), ensure_ascii=False, allow_nan=False), flush=True)


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: NaN and infinities become null, arrays lists, everything unknown its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if hasattr(value, "tolist"):  # arrays, tensors and their numbers
        value = value.tolist()
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, left: int = 1, indent: str = "") -> str:
    """Aligned plain text: the first ``left`` columns to the left, the others to the right, a rule below the header.

    Floats get four digits behind the point, whole numbers their thousands' commas, None an empty cell.
    """
    cells = [[str(name) for name in header], *([cell(value) for value in row] for row in rows)]
    if any(len(row) != len(header) for row in cells):
        raise ValueError("every row needs a cell for each column of the header")
    widths = [max(len(row[position]) for row in cells) for position in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [
            text.ljust(width) if position < left else text.rjust(width)
            for position, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return (indent + "  ".join(padded)).rstrip()

    return "\n".join([line(cells[0]), indent + "  ".join("-" * width for width in widths), *map(line, cells[1:])])


def cell(value: Any) -> str:
    """One value as a table shows it."""
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """How far a stage is.

        with Progress("encode", total=len(texts), unit="text") as progress:
            progress.advance(64)
            progress.show(loss=2.31)   # figures that stand behind the count

    ``done``: units that an earlier call has finished; they do not count for the speed. ``every``: seconds between lines
    where there is no terminal. Verbose output writes a line for every :meth:`show`. Quiet output has neither.
    """

    def __init__(
        self, stage: str, total: int | None = None, *, unit: str = "step", done: int = 0,
        every: float = EVERY, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.stage, self.total, self.unit, self.done = stage, total, unit, done
        self._first, self._every, self._clock = done, every, clock
        self._begun = self._spoke = clock()
        self._figures: dict[str, Any] = {}
        self._bar = _bar(stage, total, unit, done)

    def advance(self, count: int = 1) -> None:
        """``count`` more units are done."""
        self.to(self.done + count)

    def to(self, done: int, total: int | None = None) -> None:
        """``done`` units are done, of ``total`` where that has become known."""
        moved, self.done = done - self.done, done
        self.total = self.total if total is None else total
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.update(moved)
        elif self._clock() - self._spoke >= self._every:
            self._speak()

    def show(self, **figures: Any) -> None:
        """Figures to stand behind the count: loss, learning rate, a validation metric."""
        self._figures.update(figures)
        if self._bar is not None:
            self._bar.set_postfix(self._figures, refresh=False)
            if is_verbose():
                self._bar.write(self.line(), file=sys.stderr)
        elif is_verbose():
            self._speak()

    def line(self) -> str:
        """``train: 1,200 of 6,000 steps (20 %), loss 3.214, 41 steps/s, at most 2 min left``."""
        units = f"{self.unit}s"
        parts = [f"{self.done:,} {units}"]
        if self.total:
            parts = [f"{self.done:,} of {self.total:,} {units} ({100 * self.done // self.total} %)"]
        parts += [f"{name} {_figure(value)}" for name, value in self._figures.items()]
        seconds, moved = self._clock() - self._begun, self.done - self._first
        if moved > 0 and seconds > 0:
            speed = moved / seconds
            parts.append(f"{speed:.3g} {units}/s" if speed >= 0.1 else f"{1 / speed:.3g} s a {self.unit}")
            if self.total and self.done < self.total:
                parts.append(f"at most {duration((self.total - self.done) / speed)} left")
        return f"{self.stage}: {', '.join(parts)}"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _speak(self) -> None:
        self._spoke = self._clock()
        if _settings.level >= NORMAL:
            warn(self.line())


@contextlib.contextmanager
def repeating(speak: Callable[[float], None], every: float) -> Iterator[None]:
    """Call ``speak(seconds since the start)`` every so many seconds while the block runs, in a thread of its own."""
    over, begun = threading.Event(), time.monotonic()

    def run() -> None:
        while not over.wait(every):
            speak(time.monotonic() - begun)

    thread = threading.Thread(target=run, daemon=True, name="sidera-repeating")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def working(what: str, every: float = EVERY) -> Iterator[None]:
    """For a stage that cannot count itself (a decomposition, a clustering): every 30 s a line that it is at it."""
    if _settings.level < NORMAL:
        yield
        return
    with repeating(lambda seconds: warn(f"{what}: at it for {duration(seconds)}"), every):
        yield


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else cell(value)


def _bar(stage: str, total: int | None, unit: str, done: int) -> Any:
    """A tqdm bar on standard error, or None: quiet, no terminal, or no tqdm."""
    if _settings.level < NORMAL or not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:  # only decoration: the lines take its place
        return None
    return tqdm(total=total, initial=done, desc=stage, unit=unit, dynamic_ncols=True, leave=False)
