"""The Snapshot: one model over one Catalog, with the versions of both. A call answers from the snapshot it began with.

Nothing in a snapshot changes. New weights and a new catalogue make another snapshot, aside, while the old one answers;
the Recommender then replaces one reference. Calls in flight finish with the old snapshot, whose memory is freed with
the last of them: while weights are swapped there are two sets of them, never more.

Trap: the buffers that a model made from the catalogue (semantic IDs, a tree of them) are large and not part of its
weights. A snapshot with other weights shares them with the one it was made from.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog
from sidera.core import InputError
from sidera.data.reading import Reading
from sidera.decode.beam import Beams, beam_search
from sidera.decode.compiled import CompiledSearch
from sidera.decode.eligible import Allowed, Jagged
from sidera.decode.graph import GraphedSearch
from sidera.decode.late import LateCodes, writing_late
from sidera.decode.listing import Listing, list_items
from sidera.decode.vector_index import IndexConfig, VectorIndex
from sidera.decode.ways import AUTO, Search, search_by, way_of
from sidera.engine.histories import lifelong_of_events
from sidera.nn.item_embedding import grown
from sidera.ops.weights import check_weights
from sidera.roles import Context, Generator, HybridGenerator, Retriever, Scorer, SessionGenerator

SAMPLED_USERS, SAMPLED_EVENTS = 256, 10  # random histories that an index is measured on, and most events of one


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What answers: a model bound to a Catalog on a device."""

    trained: nn.Module  # as it was trained, with rows for the items of then
    model: nn.Module  # what answers: the same, grown to the items of the catalogue
    catalog: Catalog
    section: Mapping[str, Any]  # [model] of the recipe: name and keys
    version: str  # of the weights
    num_known: int  # items that the model has rows for; the catalogue may have grown since
    device: str = "cpu"
    compiled: CompiledSearch | None = None  # programs of these weights
    search: str = AUTO  # how a generator is searched: one of its ways
    index: VectorIndex | None = None  # of a retriever's items; None: all are compared
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)  # of the model, see ``answering``

    @classmethod
    def of(
        cls, model: nn.Module, catalog: Catalog, section: Mapping[str, Any], version: str, num_known: int | None = None,
        device: str = "cpu",
    ) -> Snapshot:  # fmt: skip
        """The model moves to the device. CatalogMismatch when its codes are not this catalogue's."""
        check_device(device)
        if isinstance(model, Generator):
            catalog.check_codebook(model.codebook_id)
        known, model = catalog.num_items if num_known is None else num_known, model.to(device).eval()
        return cls(model, grown(model, catalog.items), catalog, section, version, known, device)

    # -- another snapshot ----------------------------------------------------------------------------------------

    def with_weights(self, state: Mapping[str, Tensor], version: str) -> Snapshot:
        """The same model with other weights; InputError when a tensor is missing, unknown, of another shape or not
        finite."""
        check_weights(self.trained, state)
        memo: dict[int, Tensor] = {id(buffer): buffer for buffer in self.trained.buffers()}
        for name, own in self.trained.state_dict(keep_vars=True).items():
            new = state[name].detach().to(own.device, own.dtype, copy=True)
            memo[id(own)] = nn.Parameter(new, own.requires_grad) if isinstance(own, nn.Parameter) else new
        with self.lock:  # nobody lays out weights for answering while they are copied
            model = copy.deepcopy(self.trained, cast(dict[int, Any], memo))
        model.eval()  # drops what was laid out for answering with the old weights
        after = replace(
            self, trained=model, model=grown(model, self.catalog.items), version=version, index=None, compiled=None,
            lock=threading.Lock(),
        )  # fmt: skip
        return after if self.index is None else after.indexed(self.index.config)

    def with_catalog(self, catalog: Catalog) -> Snapshot:
        """The same model over a catalogue whose items came and went; CatalogMismatch when it is of another codebook
        or has other features."""
        catalog.check_codebook(self.catalog.codebook_id)
        catalog.check_features(self.catalog.schema.digest)
        if self.generates:
            catalog.trie.tensors(torch.device(self.device))  # built before anybody waits for it
        same = _says_the_same(catalog, self.catalog)
        after = replace(self, catalog=catalog, model=self.model if same else grown(self.trained, catalog.items))
        over: Any = getattr(self.__dict__.get("searcher"), "over", None)  # what was made of the catalogue, and stays
        if over is not None and after.way == self.way:
            after.__dict__["searcher"] = over(after.model, catalog.trie)
        if self.generates:
            after.generator  # noqa: B018 — the tables of late codes too
        if self.index is not None:
            with after.answering():
                vectors = after.item_vectors()
            after = replace(after, index=self.index.extended(vectors, after.sample_users))
        return after  # calls that have begun do not wait

    def indexed(self, config: IndexConfig) -> Snapshot:
        """The same, answering by an index of the items' vectors. InputError for a model whose score is no inner
        product, without faiss, and where an approximate index does not find what it should."""
        if self.generates or not isinstance(self.model, Retriever):
            raise InputError(
                f"[model] {self.section.get('name')} cannot be searched by an index of vectors",
                allowed="models whose score is an inner product of a user's and an item's vector, such as sasrec",
                fix="leave the index out (index, --index)",
            )
        with self.answering():
            vectors = self.item_vectors()
        return replace(self, index=VectorIndex.build(vectors, config, self.sample_users))

    @torch.inference_mode()
    def item_vectors(self) -> Tensor:
        """(N, D) of a retriever."""
        return cast(Retriever, self.model).item_vectors()

    @torch.inference_mode()
    def sample_users(self) -> Tensor:
        """(S, Q, D): users of a retriever after random histories of popular items, which an index is measured on."""
        source, weights = np.random.default_rng(0), np.asarray(self.catalog.popularity[: self.num_known]) + 1.0
        lengths = source.integers(1, 1 + min(SAMPLED_EVENTS, self.reads.max_events), SAMPLED_USERS)
        ids = source.choice(self.num_known, lengths.sum(), p=weights / weights.sum())
        batch = self.reading.batch(ids, np.concatenate([[0], lengths.cumsum()]))
        with self.answering():
            return cast(Retriever, self.model).user_vectors(self.readable(batch))

    # -- the model's role ----------------------------------------------------------------------------------------

    @property
    def num_readable(self) -> int:
        """Items that the model can read in a history: all, or those that its counts were made of."""
        return self.catalog.num_items if getattr(self.model, "reads_late_items", True) else self.num_known

    @cached_property
    def generates(self) -> bool:
        return isinstance(self.model, Generator)

    @cached_property
    def writes_lists(self) -> bool:
        return isinstance(self.model, SessionGenerator)

    @cached_property
    def is_hybrid(self) -> bool:
        return isinstance(self.model, HybridGenerator)

    @cached_property
    def cold_ids(self) -> Tensor:
        """(C,) on the device: items that are there and that the training never showed."""
        catalog = self.catalog
        cold_mask = (np.asarray(catalog.popularity) == 0) & ~np.asarray(catalog.removed)
        cold_mask[self.num_known :] = ~np.asarray(catalog.removed)[self.num_known :]
        return torch.from_numpy(np.flatnonzero(cold_mask)).to(self.device)

    @cached_property
    def generator(self) -> Generator:
        if not self.generates:
            raise InputError("a scorer generates nothing; rollouts and legality are a generator's")
        return self.writing(self.model)

    @cached_property
    def late_codes(self) -> LateCodes | None:
        """What the catalogue's trie holds that the training did not know."""
        catalog = self.catalog
        if self.num_known == catalog.num_items:
            return None
        removed = np.flatnonzero(np.asarray(catalog.removed))
        return LateCodes.of(catalog.trie, catalog.codes, self.num_known, removed, self.device)

    def writing(self, model: Any) -> Generator:
        """A generator, or another with the same knowledge (a policy in training), as it writes the late items too."""
        return writing_late(cast(Generator, model), self.late_codes)

    @property
    def scorer(self) -> Scorer:
        return cast(Scorer, self.model)

    @cached_property
    def graphs(self) -> GraphedSearch | None:
        """Searches recorded as CUDA graphs; None elsewhere."""
        on_gpu = self.generates and torch.device(self.device).type == "cuda"
        return GraphedSearch(self.generator, self.catalog.trie) if on_gpu else None

    @property
    def programs(self) -> CompiledSearch | None:
        """Compiled programs, where this catalogue is the one that the weights were trained on, or less."""
        return self.compiled if self.model is self.trained and self.late_codes is None else None

    def context(self, batch: Batch) -> Context:
        """The encoded histories of a batch as the model reads it. Call it inside :meth:`answering`."""
        found = None if self.programs is None else self.programs.context(batch)
        return self.generator.context(batch) if found is None else cast(Context, found)

    def beams(
        self, context: Context, *, width: int, num_results: int, exclude: Jagged | None = None,
        allowed: Allowed | None = None, log_probs: bool = False, proposals: Tensor | None = None,
    ) -> Beams:  # fmt: skip
        """The search that ``search`` names, by the generator. Call it inside :meth:`answering`. ``proposals``: where
        :attr:`takes_proposals`."""
        settings: dict[str, Any] = {"width": width, "num_results": num_results, "exclude": exclude, "allowed": allowed}
        if self.way != "beam":
            return self.searcher(context, **settings)
        if self.graphs is not None:
            return self.graphs(context, log_probs=log_probs, **settings)
        settings["proposals"] = proposals
        found = None if self.programs is None else self.programs.beams(context, self.catalog.trie, **settings)
        if found is not None:
            return found
        settings["log_probs"] = log_probs
        return beam_search(self.generator, context, self.catalog.trie, **settings)

    def listing(self, context: Context, log_probs: bool = False) -> Listing:
        """Scores of all items, where :attr:`takes_proposals`. Call it inside :meth:`answering`."""
        found = None if self.programs is None else self.programs.listing(context, self.catalog.trie)
        return list_items(self.generator, context, self.catalog.trie, log_probs) if found is None else found

    @property
    def takes_proposals(self) -> bool:
        """Whether a search scores proposed items on its way; elsewhere they are scored behind it."""
        return self.generates and self.way == "beam" and not (self.writes_lists or self.is_hybrid or self.graphs)

    @property
    def way(self) -> str:
        """How the generator is searched. InputError where it cannot be searched so."""
        return way_of(self.model, self.search, self.catalog.trie)

    @cached_property
    def searcher(self) -> Search:
        """The search by another way than a beam; what it makes of the catalogue once is made at the first question."""
        return search_by(self.way, self.model, self.writing, self.catalog.trie)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """The model answers and does not train. One thread at a time: a model's caches for answering are not made for
        two.

        The mode is not set on every call: a change of mode drops what a model laid out for answering.
        """
        with self.lock:
            if self.model.training:
                self.model.eval()
            yield

    # -- what the model reads ------------------------------------------------------------------------------------

    @property
    def reads(self) -> Reads:
        return cast(Any, self.model).reads

    @cached_property
    def reading(self) -> Reading:
        """How the model reads histories over this catalogue."""
        catalog, reads = self.catalog, self.reads
        compress = partial(lifelong_of_events, catalog=catalog, config=reads.lifelong) if reads.lifelong else None
        return Reading(catalog.schema, catalog.items, reads, compress)

    def readable(self, batch: Batch) -> Batch:
        """What the model reads of whole histories, on its device."""
        return self.reading.cut(batch.to(self.device))

    # -- the catalogue -------------------------------------------------------------------------------------------

    @cached_property
    def alive_mask(self) -> Tensor | None:
        """(N,) on the device; None where no item was removed."""
        removed = self.catalog.removed
        return torch.from_numpy(~removed).to(self.device) if removed.any() else None

    def most_popular(self, k: int, left_out: set[int], allowed: np.ndarray | None = None) -> list[int]:
        """Ids of the ``k`` most popular items that may be answered: what a user gets of whom nothing is known.

        ``allowed`` (N,) bool: those that a filter leaves.
        """
        if allowed is not None:
            eligible = self.catalog.serving_order[allowed[self.catalog.serving_order]].tolist()
            return list(islice((item for item in eligible if item not in left_out), k))
        removed = self.catalog.removed
        order = (int(item) for item in self.catalog.serving_order)
        return list(islice((item for item in order if item not in left_out and not removed[item]), k))


def check_device(device: str) -> None:
    """InputError unless this machine has the device."""
    try:
        named = torch.device(device)
    except RuntimeError:
        named = torch.device("meta")
    if named.type not in ("cpu", "cuda"):
        raise InputError(f"device {device!r} is not known", allowed="cpu, cuda, cuda:0, ...")
    if named.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r}: this machine or this build of torch has no CUDA", fix="use cpu")
    if named.type == "cuda" and (named.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device!r} is not here", allowed=f"cuda:0 to cuda:{torch.cuda.device_count() - 1}")


def _says_the_same(one: Catalog, other: Catalog) -> bool:
    """Whether all that a model's rows of late items are made of is the very same: what was removed may differ."""
    columns = [(each.codes, each.titles, *each.features.values()) for each in (one, other)]
    return one.features.keys() == other.features.keys() and all(
        mine is theirs for mine, theirs in zip(*columns, strict=True)
    )
