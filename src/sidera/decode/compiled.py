"""Contexts and searches as compiled programs: the same operations, without the host between them.

A lone request is some hundred small operations, and on a CPU starting them costs more than their arithmetic. A program
holds them as native code (torch.export and AOTInductor; ``engine/compiling.py`` makes, checks and opens the files).
Weights are inside. What changes is an input: histories, the trie's tables, what is left out. So a program serves a
catalogue whose items go, and it is dropped with the weights. What has a row an item is an input, too, where a model can
read it from there (``roles.TabledGenerator``): a copy in each program would be most of the memory.

    context    one history -> its context
    search     one context -> the best items, or the scores of all (``decode/listing.py``)
    searches   contexts of two histories or more -> the same of each

Whatever has no program is computed step by step, and :attr:`CompiledSearch.reasons` says why: a filter, another beam,
items that came later, a history of one event.

Shape legend: B histories · T events · U different items · E excluded items · C proposals · P most candidates of one
history.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.batch import Batch
from sidera.decode.beam import Beams, Proposed, written_beams
from sidera.decode.eligible import NEG_INF, Allowed, Eligible, Jagged
from sidera.decode.listing import Listing, level_scores, links_of, of_items
from sidera.decode.select import check_numbers
from sidera.ops.trie import CodeTrie, ItemRanges, TrieTensors
from sidera.roles import Context, TabledGenerator

CPU = torch.device("cpu")
NAMES = ("context", "search", "searches")
Program = Callable[..., Sequence[Tensor]]


def direct(program: Any) -> Program:
    """The program without torch's walk through its inputs, which takes a tenth of a lone answer."""
    run = getattr(getattr(program, "loader", None), "boxed_run", None)
    if run is None:
        whole: Program = program
        return whole

    def called(*inputs: Tensor | list[Tensor]) -> Sequence[Tensor]:
        flat = [one for part in inputs for one in (part if isinstance(part, list) else [part])]
        found: Sequence[Tensor] = run(flat)
        return found

    return called


def portable(context: Any) -> Any:
    """The context as a program takes it: tensors, and nothing that differs between histories. A context that holds more
    says how (``portable``)."""
    moved = getattr(context, "portable", None)
    return context if moved is None else moved()


@dataclass(frozen=True)
class _Slot:
    place: int


def taken_apart(value: Any) -> tuple[list[Tensor], Any]:
    """Every different tensor inside dataclasses, mappings and sequences, and the frame that :func:`put_together`
    fills."""
    tensors: list[Tensor] = []
    places: dict[int, int] = {}

    def frame(part: Any) -> Any:
        if isinstance(part, Tensor):
            if id(part) not in places:
                places[id(part)] = len(tensors)
                tensors.append(part)
            return _Slot(places[id(part)])
        if isinstance(part, Mapping):
            return {name: frame(each) for name, each in part.items()}
        if isinstance(part, list | tuple):
            return type(part)(frame(each) for each in part)
        if is_dataclass(part) and not isinstance(part, type):
            return replace(part, **{one.name: frame(getattr(part, one.name)) for one in fields(part)})
        return part

    return tensors, frame(value)


def put_together(frame: Any, tensors: Sequence[Tensor]) -> Any:
    """What was taken apart, with these tensors."""
    if isinstance(frame, _Slot):
        return tensors[frame.place]
    if isinstance(frame, Mapping):
        return {name: put_together(each, tensors) for name, each in frame.items()}
    if isinstance(frame, list | tuple):
        return type(frame)(put_together(each, tensors) for each in frame)
    if is_dataclass(frame) and not isinstance(frame, type):
        return replace(frame, **{one.name: put_together(getattr(frame, one.name), tensors) for one in fields(frame)})
    return frame


def constants(frame: Any) -> list[Any]:
    """What a frame holds beside tensors and the number of histories: a program has it fixed."""
    if isinstance(frame, _Slot):
        return []
    if isinstance(frame, Mapping):
        return [(name, constants(each)) for name, each in frame.items()]
    if isinstance(frame, list | tuple):
        return [constants(each) for each in frame]
    if is_dataclass(frame) and not isinstance(frame, type):
        return [constants(getattr(frame, one.name)) for one in fields(frame) if one.name != "num_histories"]
    return [frame]


def signature(tensors: Sequence[Tensor]) -> list[list[Any]]:
    """Number formats and dimensions: what a program checks of its inputs no more."""
    return [[str(tensor.dtype), tensor.ndim] for tensor in tensors]


@dataclass(frozen=True)
class Asked:
    """What the search of a served model is asked for, request after request: a program has it fixed."""

    width: int  # 0: all items are listed
    results: int  # at most
    proposals: int = 0  # of each history, at most

    @property
    def room(self) -> int:
        """Beams beside one another."""
        return self.width + self.proposals

    @property
    def lists(self) -> bool:
        return not self.width

    def __str__(self) -> str:
        if self.lists:
            return "all items"
        return f"{self.width} beams, {self.results} items and {self.proposals} proposals"


ALL_ITEMS = Asked(0, 0)


@dataclass(frozen=True)
class SearchShape:
    """What a program fixes of a search, and of the trie that it searches."""

    asked: Asked
    sizes: tuple[int, ...]  # most candidates of each level and, last, items, with room; listed: nodes but the last's
    first: int  # nodes of level 0
    shared: bool  # whether items share semantic IDs

    @classmethod
    def of(cls, trie: CodeTrie, asked: Asked) -> SearchShape:
        """An eighth of room."""
        if asked.lists:
            return cls(asked, trie.num_nodes[:-1], trie.num_nodes[0], bool(trie.shared_leaves.size))
        first, *others = trie.most_children(asked.room)
        return cls(asked, (first, *(size + size // 8 + 8 for size in others)), first, bool(trie.shared_leaves.size))

    def why_not(self, trie: CodeTrie) -> str:
        """Why this trie cannot be searched; "" where it can."""
        if self.asked.lists:
            return "" if trie.num_nodes[:-1] == self.sizes else "the prefixes are not those of the export"
        grown = any(now > room for now, room in zip(trie.most_children(self.asked.room), self.sizes, strict=True))
        if grown or trie.num_nodes[0] != self.first or bool(trie.shared_leaves.size) != self.shared:
            return "the catalogue outgrew the exported search"
        return ""


def tables_of(trie: CodeTrie) -> list[Tensor]:
    tensors, ranges = trie.tensors(CPU), trie.ranges(CPU)
    shared = (tensors.shared_leaves, tensors.shared_extra) if trie.shared_leaves.size else ()
    return [*tensors.tokens, *tensors.ptr, tensors.leaf_items, *ranges.starts, *shared]


def _trie_of(trie: CodeTrie, tables: Sequence[Tensor], shape: SearchShape) -> CodeTrie:
    """The trie with these tables in place of its own."""
    levels, rest = trie.num_levels, list(tables)
    tokens, ptr = tuple(rest[:levels]), tuple(rest[levels : 2 * levels - 1])
    leaf_items, *rest = rest[2 * levels - 1 :]
    starts = tuple(rest[:levels])
    own = trie.tensors(CPU)
    leaves, extra = rest[levels:] if shape.shared else (own.shared_leaves, own.shared_extra)
    moved = {CPU: TrieTensors(tokens, ptr, leaf_items, leaves, extra)}
    ranges = {CPU: ItemRanges(starts, (0,) * levels)}
    return replace(trie, _tensors=moved, _ranges=ranges, _most={shape.asked.room: shape.sizes})


class SearchProgram(nn.Module):
    """(context's tensors, excluded places (B, E), places of proposals [(B, C)] or [], the trie's tables, the model's
    item tables) -> items, leaves, scores, log-probabilities."""

    def __init__(self, generator: Any, trie: CodeTrie, frame: Any, shape: SearchShape) -> None:
        super().__init__()
        self.generator, self.trie, self.frame, self.shape = generator, trie, frame, shape

    def forward(
        self, context: list[Tensor], excluded: Tensor, proposals: list[Tensor], tables: list[Tensor],
        item_tables: list[Tensor],
    ) -> tuple[Tensor, ...]:  # fmt: skip
        shape, asked = self.shape, self.shape.asked
        trie, number = _trie_of(self.trie, tables, shape), excluded.shape[0]
        whole = _of_so_many(put_together(self.frame, context), number)
        cache = self.generator.new_cache(whole, min(asked.room, max(shape.sizes[:-2], default=1)))
        eligible = Eligible(trie, number, CPU)
        eligible.excluded = excluded
        proposed = Proposed.at(trie, proposals[0]) if proposals else None
        with reading(self.generator, item_tables):
            output = self.generator.step(whole, cache, 0, None, None)
            beams = written_beams(
                self.generator, whole, cache, output, trie, eligible, asked.width, asked.results, True, True, proposed
            )
        assert beams.log_probs is not None
        return beams.item_ids, beams.leaf_ids, beams.scores, beams.log_probs


class ListProgram(nn.Module):
    """(context's tensors, (B,) anything, :func:`links_of` the trie, the model's item tables) -> scores of its leaves,
    and of each level log-probabilities."""

    def __init__(self, generator: Any, frame: Any) -> None:
        super().__init__()
        self.generator, self.frame = generator, frame

    def forward(
        self, context: list[Tensor], rows: Tensor, tokens: list[Tensor], parents: list[Tensor],
        item_tables: list[Tensor],
    ) -> tuple[Tensor, ...]:  # fmt: skip
        whole = _of_so_many(put_together(self.frame, context), rows.shape[0])
        with reading(self.generator, item_tables):
            scores, log_probs = level_scores(self.generator, whole, tokens, parents, True)
        return scores, *log_probs


def item_tables(generator: Any) -> list[Tensor]:
    """What programs of this generator read, of a row an item; [] where they hold it."""
    return generator.item_tables() if isinstance(generator, TabledGenerator) else []


def reading(generator: Any, item_tables: Sequence[Tensor]) -> AbstractContextManager[None]:
    return generator.reading(item_tables) if item_tables else nullcontext()


def _of_so_many(context: Any, number: int) -> Any:
    """The context with its number of histories, where that is not asked of a tensor."""
    counts = any(one.name == "num_histories" for one in fields(context))
    return replace(context, num_histories=number) if counts else context


class ContextProgram(nn.Module):
    """(the tensors of a batch of one history, the model's item tables) -> those of its context."""

    def __init__(self, generator: Any, frame: Any) -> None:
        super().__init__()
        self.generator, self.frame = generator, frame

    def forward(self, batch: list[Tensor], item_tables: list[Tensor]) -> tuple[Tensor, ...]:
        with reading(self.generator, item_tables):
            return tuple(taken_apart(portable(self.generator.context(put_together(self.frame, batch))))[0])


def batch_parts(batch: Batch) -> Batch:
    """What a context is made of."""
    return replace(batch, requests=replace(batch.requests, user_ids=None), targets=None, global_count=None)


def excluded_places(trie: CodeTrie, num_histories: int, exclude: Jagged | None) -> Tensor:
    """(B, E), two places or more: one that no item has where nothing is excluded."""
    excluded = Eligible(trie, num_histories, CPU, exclude).excluded
    if excluded is None:
        return torch.full((num_histories, 2), trie.leaf_items.size)
    return excluded if excluded.shape[1] > 1 else F.pad(excluded, (0, 1), value=trie.leaf_items.size)


def proposed_places(trie: CodeTrie, number: int, num_histories: int, item_ids: Tensor | None = None) -> list[Tensor]:
    """[(B, ``number``)], behind the trie's end where nothing is proposed; [] for no number."""
    if not number:
        return []
    if item_ids is None:
        return [torch.full((num_histories, number), trie.leaf_items.size)]
    places = trie.places_of(item_ids.clamp(min=0)).masked_fill(item_ids < 0, trie.leaf_items.size)
    return [F.pad(places, (0, number - places.shape[1]), value=trie.leaf_items.size)]


class CompiledSearch:
    """Programs of one model's weights, and when each may be asked."""

    def __init__(
        self, programs: Mapping[str, Program], shape: SearchShape, sample: tuple[Batch, Context],
        item_tables: Sequence[Tensor] = (),
    ) -> None:  # fmt: skip
        """``sample``: a batch of one history of several events and its context, by the model itself; ``item_tables``:
        the model's."""
        self.programs, self.shape, self._items = dict(programs), shape, list(item_tables)
        self.reasons: Counter[str] = Counter()  # why something was computed step by step -> how often
        self.calls: Counter[str] = Counter()  # of each program
        batch, context = sample
        tensors, self._frame = taken_apart(portable(context))
        self._of_context = signature(tensors)
        self._of_batch = signature(taken_apart(batch_parts(batch))[0])
        self._tables: tuple[CodeTrie, list[Tensor], str] | None = None  # of the trie asked last, and why it cannot be

    def context(self, batch: Batch) -> Any:
        """The context of one history; None where no program gives it."""
        if batch.num_histories != 1 or "context" not in self.programs:
            return None
        tensors = taken_apart(batch_parts(batch))[0]
        if batch.num_events < 2 or batch.items.num_items < 2:
            return self._no("a history of one item")
        if batch.lifelong is not None or signature(tensors) != self._of_batch:
            return self._no("a history with other columns")
        self.calls["context"] += 1
        return put_together(self._frame, self.programs["context"](tensors, self._items))

    def beams(
        self, context: Any, trie: CodeTrie, width: int, num_results: int, exclude: Jagged | None,
        allowed: Allowed | None, proposals: Tensor | None = None,
    ) -> Beams | None:  # fmt: skip
        """What ``beam_search`` answers, with log-probabilities; None where no program gives it."""
        asked, name = self.shape.asked, self._program_of(context)
        if name not in self.programs:
            return self._no(f"no program {name!r} was exported")
        if width != asked.width or num_results > asked.results:
            return self._no("another beam than the exported one")
        if proposals is not None and proposals.shape[1] > asked.proposals:
            return self._no("more proposals than exported")
        if allowed is not None and any(mask is not None for mask in allowed.masks):
            return self._no("a filter")
        tensors = taken_apart(portable(context))[0]
        tables, why_not = self._tables_of(trie)
        if why_not or signature(tensors) != self._of_context:
            return self._no(why_not or "another context")
        excluded = excluded_places(trie, context.num_histories, exclude)
        places = proposed_places(trie, asked.proposals, context.num_histories, proposals)
        items, leaves, scores, log_probs = self.programs[name](tensors, excluded, places, tables, self._items)
        check_numbers(scores)
        self.calls[name] += 1
        cut = slice(None), slice(num_results if proposals is None else None)
        valid_mask = scores[cut] != NEG_INF
        sids = torch.from_numpy(trie.leaf_codes(leaves[cut].clamp(min=0).numpy()))
        sids.masked_fill_(~valid_mask[..., None], -1)
        return Beams(items[cut], leaves[cut], scores[cut], sids, valid_mask, log_probs[cut])

    def listing(self, context: Any, trie: CodeTrie) -> Listing | None:
        """What ``list_items`` answers, with log-probabilities; None where no program gives it."""
        name = self._program_of(context)
        if name not in self.programs:
            return self._no(f"no program {name!r} was exported")
        tensors, why_not = taken_apart(portable(context))[0], self.shape.why_not(trie)
        if not self.shape.asked.lists or why_not or signature(tensors) != self._of_context:
            return self._no(why_not or "another context")
        rows = torch.zeros(context.num_histories)
        scores, *log_probs = self.programs[name](tensors, rows, *links_of(trie), self._items)
        self.calls[name] += 1
        return Listing(trie, of_items(trie, scores), tuple(log_probs))

    def _program_of(self, context: Any) -> str:
        return "search" if context.num_histories == 1 else "searches"

    def _tables_of(self, trie: CodeTrie) -> tuple[list[Tensor], str]:
        if self._tables is None or self._tables[0] is not trie:
            self._tables = trie, tables_of(trie), self.shape.why_not(trie)
        return self._tables[1:]

    def _no(self, why: str) -> Any:
        """None, with its reason counted."""
        self.reasons[why] += 1
        return None
