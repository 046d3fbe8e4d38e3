"""The transition expert beside a generator: counts propose items too, and learned weights join the two.

A search of the tree and the counts of item pairs (``models/retrievers/pair_counts.py``) know different things. The
pool is the best counted items, whose prefixes the search follows beside its beams, and the best of all items that it
then has scored. The generator's score of each is exact, and

    score = w0 log p(item | history) + sum of w_f feature_f(history, item)

orders them. Features are directed, decayed counts divided by popularity, the cosine of item-kNN, popularity, whether,
how lately and how often the history holds the item, and how near its vector is to the mean of the history's. The
weights w belong to a log, one set for each bucket of history lengths; ``train/expert.py`` learns them. Such a score is
a logit: higher is likelier, and no probability.

    expert = Expert.load("runs/mine/expert", snapshot.catalog)    # a Step of the pipeline

The cost follows the pairs of a history's newest events and never the catalogue: nothing is (B, N).

Shape legend: B histories · T events · U distinct (history, item) pairs that are counted · C items of a pool ·
F features · N items · L levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from sidera import artifacts
from sidera.batch import Reads
from sidera.catalog.catalog import Catalog
from sidera.config import check_counts
from sidera.core import ArtifactError
from sidera.data.reading import Reading
from sidera.decode.compiled import ALL_ITEMS, Asked
from sidera.decode.dense import padded_results
from sidera.decode.eligible import NEG_INF
from sidera.decode.listing import MOST_LISTED, Listing, lists_whole
from sidera.decode.select import best_first
from sidera.engine.directions import directions
from sidera.engine.pipeline import Candidates, Query, listed, search
from sidera.loading import open_artifact
from sidera.models.retrievers.pair_counts import KINDS, VOTES, PairCounts
from sidera.ops.jagged import Jagged
from sidera.ops.trie import CodeTrie

FOLDER = KIND = "expert"  # of a run folder, and the artifact's kind
FEATURES = (*VOTES, "popularity", "seen", "seen_lately", "seen_often", "alike")
MANY_LISTED = 100_000  # items that a search lists with all proposals: beyond, it has no more of them than beams
POPULARITY = FEATURES.index("popularity")
SEEN_FADING, ALIKE_FADING = 0.85, 0.7  # of an event against the one after it


@dataclass(frozen=True)
class ExpertConfig:
    """The ``[expert]`` section of a recipe: counts of item pairs beside a generator."""

    enabled: bool = False  # whether a generator gets an expert; it answers where it helps on held-out validation rows
    candidates: int = 200  # best counted items of a history that the generator scores beside those of its search
    searched: int = 400  # items of the search that are ordered beside them
    wider: int = 3  # times as many beams: counts and vectors lift items of prefixes that the generator has far behind
    history: int = 20  # newest events whose pairs are counted
    neighbours: int = 200  # pairs kept of an item
    max_rows: int = 20_000  # validation rows that the weights are learned from, a seeded sample

    def __post_init__(self) -> None:
        check_counts("[expert]", self, "candidates", "searched", "wider", "history", "neighbours", "max_rows")


@dataclass(frozen=True, eq=False)
class Pool:
    """What a search with the counts' proposals found; -1 where there are fewer."""

    item_ids: Tensor  # (B, C)
    log_probs: Tensor  # (B, C) by the generator
    features: Tensor  # (B, C, F)
    buckets: Tensor  # (B,) of the histories' lengths


@dataclass(frozen=True, eq=False)
class Expert:
    """A step of the pipeline, first behind the search."""

    config: ExpertConfig
    counts: PairCounts
    edges: Tensor  # (buckets - 1,) ascending: a history of so many events or more is in the next bucket
    weights: Tensor  # (buckets, 1 + F): of log p, and of each feature
    version: str = "unsaved"
    info: Mapping[str, Any] | None = None  # how it was learned and what it was worth
    followed_events: int = 0  # that the counts took in since (``engine/following.py``)

    @property
    def is_on(self) -> bool:
        """Whether it helped on held-out validation rows. One that did not is kept to say so."""
        return bool((self.info or {}).get("on"))

    def to(self, device: torch.device | str) -> Expert:
        weights, edges = self.weights.to(device), self.edges.to(device)
        return replace(self, weights=weights, edges=edges)

    def recounted(self, item_ids: np.ndarray, offsets: np.ndarray, num_items: int, version: str) -> Expert:
        """The same weights over counts of other sequences: user u's events are ``item_ids[offsets[u]:offsets[u+1]]``,
        oldest first. A refit counts the validation events too, a refresh those of today."""
        counts = PairCounts.of(item_ids, offsets, num_items, self.config.neighbours)
        return replace(self, counts=counts, version=version)

    # -- a step ---------------------------------------------------------------------------------------------------

    def needs(self, k: int, beam: int) -> int:
        return max(k, beam, self.config.searched)

    def asked(self, trie: CodeTrie, beam: int) -> Asked:
        """All items, where the trie has few prefixes, whatever the beam; else :meth:`_search`."""
        return ALL_ITEMS if lists_whole(trie) else self._search(trie, beam)

    def _search(self, trie: CodeTrie, beam: int) -> Asked:
        """A wider search, where the trie is small, and the best counted items wherever they stand in it."""
        config, wide = self.config, beam * self.config.wider
        wider = trie.most_children(wide + config.candidates)[-1] <= MOST_LISTED
        fewer = trie.most_children(beam + config.candidates)[-1] > MANY_LISTED
        return Asked(
            wide if wider else beam,
            max(config.searched, beam),
            min(beam, config.candidates) if fewer else config.candidates,
        )

    def searched(self, query: Query, number: int) -> Candidates:
        """The ``number`` best that :meth:`asked` finds, and its proposals; or all items."""
        snapshot = query.snapshot
        if not snapshot.generates:
            return search(query, number)
        trie = snapshot.catalog.trie
        if lists_whole(trie) and snapshot.takes_proposals:
            return listed(query)
        return search(query, number, self.proposals(query), max(self._search(trie, query.beam or 1).width, query.k))

    @torch.inference_mode()
    def proposals(self, query: Query) -> Tensor:
        """(B, C) the best counted items that may be answered, -1 behind the last."""
        number = self._search(query.snapshot.catalog.trie, query.beam or 1).proposals
        return self._best_counted(query, self._counted(query), number)

    def __call__(self, query: Query, candidates: Candidates, number: int) -> Candidates:
        """The ``number`` best of the candidates."""
        if candidates.listing is not None:
            return self._best_listed(query, candidates.listing, candidates, number)
        pool = self.pool(query, candidates)
        scores = self.joined(pool)
        order = best_first(scores, number)
        ids, scores = padded_results(pool.item_ids.gather(1, order), scores.gather(1, order), number)
        log_probs = candidates.log_probs
        if log_probs is not None:
            log_probs = log_probs.gather(1, order[..., None].expand(-1, -1, log_probs.shape[2]))
            log_probs = pad(log_probs, (0, 0, 0, number - order.shape[1]), value=float("nan"))
        signed = candidates.version, candidates.items_version
        found = Candidates(ids, scores, *signed, log_probs=log_probs, searched=candidates)
        return replace(found, expert=self.version, followed_events=self.followed_events)

    def _best_listed(self, query: Query, listing: Listing, candidates: Candidates, number: int) -> Candidates:
        """The same of all items: counts are added where they say something, and the rest is two products."""
        barred = candidates.scores == NEG_INF
        scores = self._joined_to_all(query, listing).masked_fill_(barred, NEG_INF)
        places = best_first(scores, number)
        ids, scores = padded_results(listing.item_ids[places], scores.gather(1, places), number)
        log_probs = None
        if query.log_probs:
            log_probs = pad(listing.of_codes(places), (0, 0, 0, number - places.shape[1]), value=float("nan"))
            log_probs = log_probs.masked_fill((ids < 0)[..., None], float("nan"))
        found = replace(candidates, item_ids=ids, scores=scores, log_probs=log_probs, listing=None)
        if query.alone:
            own = best_first(candidates.scores, number)
            alone = padded_results(listing.item_ids[own], candidates.scores.gather(1, own), number)
            found = replace(found, searched=replace(found, item_ids=alone[0], scores=alone[1], log_probs=None))
        return replace(found, expert=self.version, followed_events=self.followed_events)

    def _joined_to_all(self, query: Query, listing: Listing) -> Tensor:
        """(B, n) scores of all items on the CPU, by the features and weights of :meth:`joined`."""
        catalog, trie = query.snapshot.catalog, listing.trie
        events = self._events(query)
        ids, rows, ages = events.ids, events.rows, events.ages
        own = self.weights.numpy()[np.searchsorted(self.edges.numpy(), events.lengths, side="right")]  # (B, 1 + F)
        weights, named = torch.from_numpy(own), dict(zip(FEATURES, own.T[1:], strict=True))
        popularity, vectors, clusters = self._of_items(catalog, trie)
        means, num_items = self._mean_directions(catalog, events), len(clusters)
        scores = listing.scores.masked_fill(listing.scores == NEG_INF, 0.0) * weights[:, :1]
        scores += weights[:, 1 + POPULARITY, None] * popularity
        scores += (weights[:, -1:] * (means @ vectors.T)).index_select(1, clusters)
        of_pairs, right, sums = self.counts.vote_sums(ids, ages, own[rows, 1 : 1 + len(VOTES)], self.config.history)
        keys, newest, times = np.unique((rows * catalog.num_items + ids)[::-1], return_index=True, return_counts=True)
        seen_rows, seen = np.divmod(keys, catalog.num_items)
        visits = named["seen"][seen_rows] + named["seen_often"][seen_rows] * np.log1p(times)
        visits += named["seen_lately"][seen_rows] * SEEN_FADING ** ages[::-1][newest]
        places = trie.place_of_item[np.concatenate([right, seen])]
        there = places < num_items  # others were removed
        flat = np.concatenate([rows[of_pairs], seen_rows]) * num_items + places
        np.add.at(scores.numpy().reshape(-1), flat[there], np.concatenate([sums, visits.astype(np.float32)])[there])
        return scores

    def _of_items(self, catalog: Catalog, trie: CodeTrie) -> tuple[Tensor, Tensor, Tensor]:
        """Of all items in the order of the trie: popularity (n,), and directions (V, D) with each item's place in them
        (n,). Kept until counts or catalogue change."""
        if trie not in self._of_tries:
            items = trie.tensors("cpu").leaf_items.long()
            self._of_tries[trie] = (self._popularity_of(items), *directions(catalog, items))
        return self._of_tries[trie]

    @cached_property
    def _of_tries(self) -> WeakKeyDictionary[CodeTrie, tuple[Tensor, Tensor, Tensor]]:
        return WeakKeyDictionary()

    def joined(self, pool: Pool) -> Tensor:
        """(B, C) scores; -inf for empty places, and for items that the generator cannot give."""
        weights = self.weights[pool.buckets]  # (B, 1 + F)
        none_mask = (pool.item_ids < 0) | (pool.log_probs == NEG_INF)
        scores = (pool.features @ weights[:, 1:, None]).squeeze(2)
        return (scores + weights[:, :1] * pool.log_probs.masked_fill(none_mask, 0.0)).masked_fill(none_mask, NEG_INF)

    def given(self, query: Query, item_ids: Tensor, log_probs: Tensor) -> Tensor:
        """(B, C) items with what the generator gives them -> (B, C) scores as an answer would have them."""
        counted = self._counted(query)
        return self.joined(Pool(item_ids, log_probs, counted.features_of(item_ids), counted.buckets))

    def added(self, query: Query, item_ids: Tensor) -> Tensor:
        """(B, C) items -> (B, C) what the counts alone add to their scores."""
        return self.given(query, item_ids, torch.zeros(item_ids.shape, device=item_ids.device))

    # -- the pool -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def pool(self, query: Query, candidates: Candidates) -> Pool:
        """What a search with :meth:`proposals` found, with what the counts say of it."""
        counted, ids = self._counted(query), candidates.item_ids
        return Pool(ids, candidates.scores, counted.features_of(ids), counted.buckets)

    def _counted(self, query: Query) -> _Counted:
        """Asked by :meth:`proposals` and again of what was found: once computed."""
        if self not in query.notes:
            query.notes[self] = self._count(query)
        return query.notes[self]

    def _events(self, query: Query) -> _Events:
        """Of what the model reads, the positive events."""
        catalog, reads, batch = query.snapshot.catalog, query.snapshot.reads, query.read
        if reads.feedback:
            batch = Reading(catalog.schema, catalog.items, Reads(reads.max_events)).cut(batch)
        ids, offsets = batch.item_ids.cpu().numpy(), batch.events.offsets.cpu().numpy()
        lengths = np.diff(offsets)
        ages = np.repeat(offsets[1:], lengths) - 1 - np.arange(len(ids))
        return _Events(ids, np.repeat(np.arange(len(lengths)), lengths), ages, lengths)

    def _mean_directions(self, catalog: Catalog, events: _Events) -> Tensor:
        """(B, D) directions of the histories' vectors."""
        device = self.weights.device
        vectors, places = directions(catalog, torch.from_numpy(events.ids).to(device))
        fades = torch.from_numpy((ALIKE_FADING**events.ages).astype(np.float32)).to(device)
        sums = vectors.new_zeros(len(events.lengths), vectors.shape[1])
        sums.index_add_(0, torch.from_numpy(events.rows).to(device), vectors[places] * fades[:, None])
        return normalize(sums, dim=1)

    def _count(self, query: Query) -> _Counted:
        catalog, device, events = query.snapshot.catalog, self.weights.device, self._events(query)
        span, named = catalog.num_items, events.rows * catalog.num_items + events.ids
        keys, votes = self.counts.votes(events.ids, events.rows, events.ages, span, self.config.history)
        own = np.searchsorted(keys, named)  # (T,) an event's item is among the keys
        times, lately = (np.zeros(len(keys), np.float32) for _ in range(2))
        np.add.at(times, own, 1.0)
        np.maximum.at(lately, own, (SEEN_FADING**events.ages).astype(np.float32))
        seen = np.stack((times > 0, lately, np.log1p(times)), axis=1)
        moved_keys, moved_votes, moved_seen, lengths = (
            torch.from_numpy(column).to(device) for column in (keys, votes, seen, events.lengths)
        )
        popularity = self._popularity_of(moved_keys % span)[:, None]
        features = torch.cat((moved_votes, popularity, moved_seen), dim=1)  # (U, F - 1)
        buckets = torch.bucketize(lengths, self.edges, right=True)
        means = self._mean_directions(catalog, events)
        return _Counted(moved_keys, features, self._popularity_of, buckets, means, catalog)

    @cached_property
    def _log_popularity(self) -> Tensor:
        """(N,) of the items that are counted."""
        return self.counts.popularity.to(self.weights.device).log1p()

    def _popularity_of(self, item_ids: Tensor) -> Tensor:
        """(...) items -> (...) the feature of that name; 0 for those that came later."""
        later_mask = item_ids >= self.counts.num_items
        return self._log_popularity[item_ids.masked_fill(later_mask, 0)].masked_fill(later_mask, 0.0)

    def _best_counted(self, query: Query, counted: _Counted, number: int) -> Tensor:
        """(B, M <= number) items by what counts alone say of them, the best first; -1 behind the last that may be
        answered."""
        keys, span = counted.keys, counted.catalog.num_items
        rows, items = keys // span, keys % span
        weights = self.weights[counted.buckets[rows], 1:-1]  # (U, F - 1): vectors are asked of the pool alone
        scores = (counted.features * weights).sum(1)
        barred = torch.zeros_like(keys, dtype=torch.bool)
        alive, left_out = query.snapshot.alive_mask, query.left_out
        if alive is not None:
            barred |= ~alive[items]
        if left_out is not None:
            values, offsets = left_out
            of_rows = torch.repeat_interleave(offsets.diff())
            barred |= torch.isin(keys, of_rows * span + values)
        offsets = pad(torch.bincount(rows, minlength=query.batch.num_histories).cumsum(0), (1, 0))
        table = _table(items.masked_fill(barred, -1), offsets, -1)
        if query.allowed is not None:
            table = table.masked_fill(~query.allowed.holds(table), -1)
        by_score = _table(scores, offsets, NEG_INF).masked_fill(table < 0, NEG_INF)
        return table.gather(1, best_first(by_score, number))

    # -- on disk --------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, *, digest: str, parents: Mapping[str, str]) -> None:
        """Write the artifact: counts, weights, and what they were worth on held-out rows."""
        manifest = artifacts.Manifest(
            KIND, digest, parents=dict(parents), recipe={"expert": asdict(self.config)},
            info={**(self.info or {}), "num_items": self.counts.num_items, "features": list(FEATURES)},
        )  # fmt: skip
        with artifacts.writing(path, manifest) as folder:
            artifacts.save_tensors(folder, {**self.counts.columns(), "edges": self.edges, "weights": self.weights})

    @classmethod
    def load(cls, path: str | Path, catalog: Catalog) -> Expert:
        """ArtifactError where it is damaged, of other features, or of more items than the catalogue has."""
        opened = open_artifact(path, KIND)
        with opened.believed():
            config = ExpertConfig(**opened.recipe("expert", dict))
            tensors = opened.tensors()
            weights, edges = tensors.pop("weights"), tensors.pop("edges")
            expert = cls(config, PairCounts(**tensors), edges, weights, opened.manifest.digest, opened.manifest.info)
            expert._check(opened.info("features", list))
        if expert.counts.num_items > catalog.num_items:
            raise ArtifactError(
                f"the expert of {path} counts {expert.counts.num_items:,} items, the catalogue holds"
                f" {catalog.num_items:,}", fix="run the recipe again",
            )  # fmt: skip
        return expert

    def _check(self, features: list[str]) -> None:
        """ValueError where tensors do not fit together."""
        counts, buckets = self.counts, len(self.edges) + 1
        shapes = (
            tuple(features) == FEATURES,
            self.weights.shape == (buckets, 1 + len(FEATURES)) and bool(self.weights.isfinite().all()),
            counts.begins.shape == counts.ends.shape == counts.popularity.shape,
            counts.counts.shape == (len(counts.right_ids), len(KINDS)),
            not len(counts.begins) or (int(counts.begins.min()) >= 0 and int(counts.ends.max()) <= len(counts.counts)),
            not len(counts.right_ids) or 0 <= int(counts.right_ids.min()) <= int(counts.right_ids.max())
            < counts.num_items,
        )  # fmt: skip
        if not all(shapes):
            raise ValueError("its tensors do not fit together")


@dataclass(frozen=True, eq=False)
class _Events:
    """Events of the histories of a batch, oldest first in each."""

    ids: np.ndarray  # (T,)
    rows: np.ndarray  # (T,) of the batch
    ages: np.ndarray  # (T,) 0: the newest of its history
    lengths: np.ndarray  # (B,)


@dataclass(frozen=True, eq=False)
class _Counted:
    """What the counts say of the histories of a batch."""

    keys: Tensor  # (U,) ascending: row * span + item
    features: Tensor  # (U, F - 1): all but the last
    popularity_of: Callable[[Tensor], Tensor]  # (...) items -> (...) the feature of that name
    buckets: Tensor  # (B,)
    means: Tensor  # (B, D) direction of the histories' vectors
    catalog: Catalog

    def features_of(self, item_ids: Tensor) -> Tensor:
        """(B, C) items, -1 anywhere -> (B, C, F)."""
        items = item_ids.clamp(min=0)
        wanted = torch.arange(len(items), device=items.device)[:, None] * self.catalog.num_items + items
        at = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        found = self.features[at].masked_fill((self.keys[at] != wanted)[..., None], 0.0)
        found[..., POPULARITY] = self.popularity_of(items)
        vectors, places = directions(self.catalog, items)
        alike = (self.means @ vectors.T).gather(1, places)  # (B, V) first: C times fewer vectors are read
        return torch.cat((found, alike[..., None]), dim=2)


def _table(values: Tensor, offsets: Tensor, fill: float) -> Tensor:
    """(U,) of jagged rows -> (B, M); of one row, as most requests are, without a copy."""
    return values[None] if offsets.numel() == 2 else Jagged(values, offsets).pad(fill)[0]
