"""A beam search as one CUDA graph: the host starts it once instead of some hundred times.

A search has a fixed number of small steps, so on a GPU most of its time is the host's, which starts one kernel after
another. With shapes that are known before (``beam_search(..., fixed=True)``) the whole loop is recorded once and then
played: the cache of the beams, every step, the choice of beams and the answer. What differs between requests is copied
into the buffers that the recording reads: the context, padded to one of few sizes, and what may be answered.

A plan belongs to (histories, context length, width, results, bars), each rounded up. Whatever cannot be recorded runs
step by step, and :attr:`GraphedSearch.reasons` says why: no CUDA device, a context that cannot be padded, or a model
whose step reads a number back (a mixture of experts in float32 does).

Trap: a graph reads the weights where they lay when it was recorded. A plan is dropped when a parameter was replaced or
written to.

Shape legend: B histories · S context length · E excluded items of a history.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from sidera.decode.beam import Beams, beam_search, check_search, written_beams
from sidera.decode.eligible import Allowed, Eligible, Jagged
from sidera.decode.select import check_numbers
from sidera.ops.trie import CodeTrie
from sidera.roles import Generator

PLANS = 24  # that are kept
WARM_UPS = 2  # calls before a recording: libraries set themselves up in the first

Replay = Callable[[], None]
Record = Callable[[Callable[[], None]], Replay]  # runs a function, and gives what runs it again on the same memory


class Paddable(Protocol):
    """A Context whose shapes follow from two numbers."""

    @property
    def num_histories(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def length(self) -> int:
        """S: the most tokens or events of a history."""

    def padded_to(self, num_histories: int, length: int) -> Any:
        """The same histories, and copies of the first behind them; every history ``length`` long, the rest masked."""

    def tensors(self) -> tuple[Tensor, ...]:
        """What differs between requests."""


@dataclass(frozen=True)
class _Plan:
    inputs: tuple[Tensor, ...]  # what the recording reads
    found: list[Beams]  # one: what it writes
    replay: Replay


class GraphedSearch:
    """Beam searches of one generator in one trie. One at a time: plans share their memory."""

    def __init__(self, generator: Generator, trie: CodeTrie, record: Record | None = None) -> None:
        """``record``: how a function is recorded; None: as a CUDA graph."""
        self.generator, self.trie = generator, trie
        self.record = record or record_graph
        self.needs_cuda = record is None
        self.reasons: dict[str, int] = {}  # why searches ran step by step -> how many did
        self._plans: OrderedDict[Any, _Plan] = OrderedDict()
        self._refused: dict[Any, str] = {}
        self._made_of: tuple[tuple[int, int], ...] = ()

    @torch.inference_mode()
    def __call__(
        self, context: Any, *, width: int, num_results: int, exclude: Jagged | None = None,
        allowed: Allowed | None = None, log_probs: bool = False,
    ) -> Beams:  # fmt: skip
        """What :func:`sidera.decode.beam.beam_search` answers."""
        beams = self._played(context, width, num_results, log_probs, exclude, allowed)
        if isinstance(beams, Beams):
            return beams
        self.reasons[beams] = self.reasons.get(beams, 0) + 1
        return beam_search(
            self.generator, context, self.trie, width=width, num_results=num_results, exclude=exclude, allowed=allowed,
            log_probs=log_probs,
        )  # fmt: skip

    def _played(
        self, context: Any, width: int, num_results: int, log_probs: bool, exclude: Jagged | None,
        allowed: Allowed | None,
    ) -> Beams | str:  # fmt: skip
        """The answer, or why no recording gives it."""
        if not is_paddable(context):
            return f"{type(context).__name__} cannot be padded"
        device = context.tensors()[0].device
        if self.needs_cuda and device.type != "cuda":
            return f"device {device.type} has no graphs"
        self._drop_stale()
        number, num_histories = context.num_histories, _rounded(context.num_histories)
        check_search(self.generator, context, self.trie, width, num_results, exclude)
        padded = context.padded_to(num_histories, _rounded(context.length, 16))
        eligible = self._eligible(number, num_histories, device, exclude, allowed)
        inputs = (*padded.tensors(), *eligible.tensors())
        key = (width, num_results, log_probs, eligible.which is None, *(tuple(tensor.shape) for tensor in inputs))
        if key in self._refused:
            return self._refused[key]
        plan = self._plans.get(key)
        if plan is None:
            try:
                plan = self._recorded(padded, eligible, width, num_results, log_probs)
            except Exception as error:  # whatever torch, a driver or a model refuses in a recording
                why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
                self._refused[key] = why
                warnings.warn(f"a beam search cannot be recorded and runs step by step ({why})", RuntimeWarning, 3)
                return why
            self._plans[key] = plan
            if len(self._plans) > PLANS:
                self._plans.popitem(last=False)
        else:
            for own, new in zip(plan.inputs, inputs, strict=True):
                own.copy_(new)
        self._plans.move_to_end(key)
        plan.replay()
        (found,) = plan.found
        check_numbers(found.scores)
        columns = {field.name: getattr(found, field.name) for field in fields(found)}
        cut = {name: part[:number].clone() for name, part in columns.items() if isinstance(part, Tensor)}
        return replace(found, **cut)

    def _eligible(
        self, number: int, num_histories: int, device: torch.device, exclude: Jagged | None, allowed: Allowed | None
    ) -> Eligible:
        """What may be answered, in one of few sizes; histories behind the real ones bar what the first bars."""
        if exclude is not None:
            exclude = exclude[0], F.pad(exclude[1], (0, num_histories - number), value=exclude[0].numel())
        if allowed is not None and allowed.masks:
            allowed = Allowed([*allowed.masks, *[allowed.masks[0]] * (num_histories - number)])
        eligible = Eligible(self.trie, num_histories, device, exclude, allowed)
        if eligible.excluded is not None:
            missing = _rounded(eligible.excluded.shape[1], 8) - eligible.excluded.shape[1]
            eligible.excluded = F.pad(eligible.excluded, (0, missing), value=eligible.num_places)
        return eligible

    def _recorded(self, context: Any, eligible: Eligible, width: int, num_results: int, log_probs: bool) -> _Plan:
        """The search over these tensors, recorded. They stay with the plan."""
        generator, trie = self.generator, self.trie
        own = eligible.with_tensors([tensor.clone() for tensor in eligible.tensors()])
        context = context.padded_to(context.num_histories, context.length)
        room = min(width, max(trie.num_nodes[:-1], default=1))
        found: list[Beams] = []

        def search() -> None:
            cache = generator.new_cache(context, room)
            output = generator.step(context, cache, 0, None, None)
            bars = own.with_tensors(own.tensors())  # without what an earlier call made of them
            found[:] = [
                written_beams(generator, context, cache, output, trie, bars, width, num_results, True, log_probs)
            ]

        trie.most_children(width)  # made of the trie's arrays, and read from the host
        replay = self.record(search)
        return _Plan((*context.tensors(), *own.tensors()), found, replay)

    def _drop_stale(self) -> None:
        parameters = getattr(self.generator, "parameters", None)
        made_of = tuple((weight.data_ptr(), weight._version) for weight in parameters()) if parameters else ()
        if made_of != self._made_of:
            self._plans.clear()
            self._refused.clear()
            self._made_of = made_of


def is_paddable(context: Any) -> TypeGuard[Paddable]:
    return all(hasattr(context, name) for name in ("padded_to", "tensors", "length"))


def record_graph(call: Callable[[], None]) -> Replay:
    """Capture ``call`` as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        call()
    return graph.replay


def _rounded(number: int, least: int = 1) -> int:
    """The next of least, 2 least, 4 least, ... and, from 32 on, the middles between them."""
    size = least
    while size < number:
        size *= 2
    middle = size * 3 // 4
    return middle if size >= 64 and number <= middle else size
