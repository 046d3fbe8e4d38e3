"""What programs are compared with before they are opened: the model's own answers, and their time.

Requests are sampled from what the catalogue holds, so no log is asked for. A program has the most candidates that a
search can have, and the steps of the model only those that there are: so it may be equal and still slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from sidera.batch import Batch
from sidera.core import Request
from sidera.decode.beam import Beams, beam_search
from sidera.decode.compiled import CompiledSearch
from sidera.decode.eligible import NEG_INF, Eligible, Jagged
from sidera.decode.listing import Listing, list_items
from sidera.decode.select import best_first
from sidera.engine.requests import RequestReader
from sidera.engine.snapshot import Snapshot

EQUAL, TOLERANCE = 0.99, 1e-4  # least share of equal answers; most a score may be off, of 1 + itself
TOP = 10


@dataclass(frozen=True)
class Parity:
    """Programs against the model on sampled requests."""

    requests: int
    equal: float  # share whose ten best are the same, in their order
    off: float  # the most that a score is off, of 1 + itself
    times: dict[str, float] = field(default_factory=dict)  # program -> its CPU time over that of the steps, the median

    @property
    def holds(self) -> bool:
        return self.equal >= EQUAL and self.off <= TOLERANCE


def sampled_requests(snapshot: Snapshot, number: int, seed: int = 0) -> list[Request]:
    """Histories of drawn length, from two events to more than are read."""
    most = snapshot.reads.max_events
    lengths = np.random.default_rng(seed).integers(2, most + most // 4 + 3, number)
    return requests_of_lengths(snapshot, lengths.tolist(), seed)


def requests_of_lengths(snapshot: Snapshot, lengths: Sequence[int], seed: int = 0) -> list[Request]:
    """Histories of drawn items with drawn feedback; half leave out what was seen."""
    rng, catalog = np.random.default_rng(seed), snapshot.catalog
    keys, found = [str(key) for key in catalog.item_keys], []
    for place, length in enumerate(lengths):
        feedback = {
            name: (rng.random(length) < 0.5).astype(float).tolist()
            if name in catalog.schema.labels
            else rng.exponential(30.0, length).round(1).tolist()
            for name in (catalog.schema.columns if snapshot.reads.feedback else ())
        }
        times = 1_700_000_000 + np.cumsum(rng.integers(1, 100_000, length))
        history = tuple(keys[item] for item in rng.integers(0, len(keys), length))
        found.append(Request(history, times=tuple(times.tolist()), feedback=feedback, filter_seen=bool(place % 2)))
    return found


def reader_of(snapshot: Snapshot) -> RequestReader:
    return RequestReader(snapshot.catalog, snapshot.num_readable, snapshot.reading, None)


def batch_of(snapshot: Snapshot, requests: Sequence[Request]) -> Batch:
    reader = reader_of(snapshot)
    return snapshot.readable(reader.batch([reader.read(request) for request in requests]))


def sample_of(snapshot: Snapshot) -> tuple[Batch, Any]:
    """One history that the model reads, and its context."""
    (request,) = sampled_requests(snapshot, 1, seed=1)
    batch = batch_of(snapshot, [request])
    with snapshot.answering(), torch.inference_mode():
        return batch, snapshot.generator.context(batch)


@torch.inference_mode()
def parity_of(snapshot: Snapshot, compiled: CompiledSearch, number: int) -> Parity:
    """Answers of the programs beside those of the model, step by step: alone and in batches of several."""
    equal, off, reader = list[bool](), 0.0, reader_of(snapshot)
    requests, at, random = sampled_requests(snapshot, number), 0, np.random.default_rng(0)
    times: dict[str, list[float]] = {}
    sizes = [1, 1, 1, 5] if "searches" in compiled.programs else [1]
    while at < number:
        some = requests[at : at + sizes[at % len(sizes)]]
        at += len(some)
        compared = _compared(snapshot, compiled, [reader.read(request) for request in some], random, times)
        if compared is not None:
            equal += compared[0]
            off = max(off, compared[1])
    ratios = {name: float(np.median(each)) for name, each in times.items()}
    return Parity(len(equal), sum(equal) / max(1, len(equal)), off, ratios)


def _compared(
    snapshot: Snapshot, compiled: CompiledSearch, histories: list[Any], random: np.random.Generator,
    times: dict[str, list[float]],
) -> tuple[list[bool], float] | None:  # fmt: skip
    """Of one batch: which answers are equal, and the most that a score is off; None where no program was asked. Adds to
    ``times`` what programs took over what the steps took."""
    generator, trie, asked = snapshot.generator, snapshot.catalog.trie, compiled.shape.asked
    batch = snapshot.readable(reader_of(snapshot).batch(histories))
    seen = [torch.tensor(one.seen_ids, dtype=torch.int64) for one in histories]
    exclude = torch.cat(seen), torch.tensor([0, *map(len, seen)]).cumsum(0)
    search: dict[str, Any] = {"width": asked.width, "num_results": min(TOP, asked.results or TOP), "exclude": exclude}
    if asked.proposals:
        search["proposals"] = torch.from_numpy(random.integers(0, trie.num_items, (len(histories), asked.proposals)))
    with snapshot.answering():
        context, own_context = _timed(generator.context, batch)
        step_by_step, program = _searches(snapshot, compiled, search)
        expected, own_search = _timed(step_by_step, context)
        ours, of_context = _timed(compiled.context, batch)
        if ours is not None:
            times.setdefault("context", []).append(of_context / own_context)
            context = ours
        found, of_search = _timed(program, context)
        if found is not None:
            name = "search" if len(histories) == 1 else "searches"
            times.setdefault(name, []).append(of_search / own_search)
        elif ours is not None:  # only its context is a program
            found = step_by_step(context)
    return None if found is None else differences(found, expected, search["num_results"])


def _searches(
    snapshot: Snapshot, compiled: CompiledSearch, search: dict[str, Any]
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """context -> Beams by the model, and by its program (None where none gives it)."""
    generator, trie, exclude = snapshot.generator, snapshot.catalog.trie, search["exclude"]
    if compiled.shape.asked.lists:
        steps = partial(_listed, lambda context: list_items(generator, context, trie, True), exclude)
        return steps, partial(_listed, lambda context: compiled.listing(context, trie), exclude)
    return (
        lambda context: beam_search(generator, context, trie, **search),
        lambda context: compiled.beams(context, trie, allowed=None, **search),
    )


def _listed(list_them: Callable[[Any], Listing | None], exclude: Jagged, context: Any) -> Beams | None:
    """The best of all items."""
    listing = list_them(context)
    if listing is None:
        return None
    trie, scores = listing.trie, listing.scores
    Eligible(trie, len(scores), scores.device, exclude).close_all(scores)
    places = best_first(scores, TOP)
    best = scores.gather(1, places)
    valid_mask, log_probs = best > NEG_INF, listing.of_codes(places)
    sids = torch.from_numpy(trie.leaf_codes(trie.leaf_of_place[places.numpy()]))
    return Beams(listing.item_ids[places].masked_fill(~valid_mask, -1), places, best, sids, valid_mask, log_probs)


def _timed(call: Callable[..., Any], *given: Any, **named: Any) -> tuple[Any, float]:
    """What a call answers, and its CPU seconds."""
    begun = time.process_time()
    return call(*given, **named), time.process_time() - begun


def differences(found: Beams, expected: Beams, top: int) -> tuple[list[bool], float]:
    """Of the first ``top``: proposals stand behind them."""
    first = slice(None), slice(top)
    equal = (found.item_ids[first] == expected.item_ids[first]).all(1).tolist()
    both = found.valid_mask[first] & expected.valid_mask[first]
    scores, wanted = found.scores[first][both], expected.scores[first][both]
    return equal, float(((scores - wanted).abs() / (1 + wanted.abs())).amax()) if scores.numel() else 0.0
