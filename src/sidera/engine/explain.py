"""Why an item is likely: the events of the history that made it so, its codes one by one, and the search as a tree.

    explanation = explain(recommender, ["cup-3", "tea-1"], "cup-9")
    explanation.events[0]      # the event without which the item would lose most
    explanation.codes          # probability of each of its codes after the codes before it
    explanation.tree           # the prefixes that a search keeps, with the items below them

The weight of an event is exact. It is the item's score less its score after the same history without this event; all
histories go in one batch. So the first of ``events`` is the one whose removal lowers the score most. What two events
say twice, neither loses alone: among many events each may weigh little though all of them together decide.

Shape legend: n events that may be named · C items of the search · L levels of a semantic ID.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from sidera.core import InputError, Request
from sidera.engine.expert import Expert
from sidera.engine.pipeline import Query, log_probs_of, search
from sidera.engine.questions import given_scores
from sidera.engine.recommender import Recommender
from sidera.engine.requests import ReadHistory, RequestReader, keys_of_items, requests_of
from sidera.engine.snapshot import Snapshot
from sidera.store.log_representatives import read_whole

MOST_EVENTS = 128  # newest ones that are weighed: each is another history to encode
TREE_ITEMS = 24  # of the search, best first, that the tree is drawn of


@dataclass(frozen=True)
class EventWeight:
    """One event of the history."""

    item: str
    title: str | None
    time: int  # unix seconds; 0 where the request brought none
    weight: float | None  # score with it less score without it; None: without it the model can read nothing


@dataclass(frozen=True)
class CodeProbability:
    """One code of the item's semantic ID."""

    code: int
    probability: float  # after the codes before it, among those that the catalogue allows there


@dataclass
class Branch:
    """A prefix that the search kept."""

    code: int
    probability: float  # of this code after its prefix
    num_items: int = 0  # of the search below it
    item: str | None = None  # at a leaf: its best item
    title: str | None = None  # of the best item below it
    children: list[Branch] = field(default_factory=list)


@dataclass(frozen=True)
class Explanation:
    """Why this item."""

    item: str
    title: str | None
    score: float  # log-probability inside the catalogue's trie (generators), what an expert makes of it, or model score
    codes: tuple[CodeProbability, ...]  # () for a scorer
    counts: float | None  # what the counts of an expert add to it; None: no expert stands beside the model
    events: tuple[EventWeight, ...]  # the weightiest first
    num_events: int  # that the model can read; the newest MOST_EVENTS of them are weighed
    tree: tuple[Branch, ...]  # () for a scorer
    policy_version: str
    items_version: int


def explain(
    recommender: Recommender, history: Sequence[str | int] | Request, item: str | int, *, tree: bool = True
) -> Explanation:
    """Why ``item`` is likely after a history, or after what the store has of a user.

    InputError for an item that the catalogue does not hold or the model cannot give, and for a history in which the
    model can read nothing: then the item was answered for being popular.
    """
    serving = recommender.serving
    snapshot, expert = serving.snapshot, serving.expert
    reader = RequestReader(snapshot.catalog, snapshot.num_readable, snapshot.reading, recommender.behaviour)
    (request,) = requests_of([history], k=1, filter_seen=False)
    (key,) = keys_of_items([item], "question")
    (item_id,) = snapshot.catalog.ids_of([key]).tolist()
    read = reader.read(request)
    if not read.warm:
        raise InputError(
            "the model can read nothing of the history",
            fix="give a history with a known item: others get what is popular",
        )
    weighed, scores = leave_one_out(snapshot, reader, read, item_id, expert)
    if scores[0] == float("-inf"):
        raise InputError(f"the model never gives item {key!r}", allowed="an item that it can recommend")
    query = Query(snapshot, reader.batch([read]).to(snapshot.device), 1, beam=recommender.beam)
    return Explanation(
        item=key,
        title=_titles(snapshot, [item_id])[0],
        score=scores[0],
        codes=_codes(query, item_id),
        counts=None if expert is None else _counts(expert, query, item_id),
        events=_events(snapshot, read, weighed, scores),
        num_events=len(read.item_ids),
        tree=tuple(_tree(query)) if tree and snapshot.generates else (),
        policy_version=snapshot.version,
        items_version=snapshot.catalog.items_version,
    )


def leave_one_out(
    snapshot: Snapshot, reader: RequestReader, read: ReadHistory, item_id: int, expert: Expert | None = None
) -> tuple[list[int], list[float]]:
    """Places (n,) of the events that are weighed; scores (1 + n,) of the item: after the whole history, and without
    each of them. A history of one event has nothing to compare with, so its only event is not weighed."""
    number, reads = len(read.item_ids), snapshot.reads
    most = MOST_EVENTS
    if reads.recent is None and reads.lifelong is None:  # what is older is not read, with any one event or without
        most = min(most, reads.max_events)
    places = list(range(max(0, number - most), number)) if number > 1 else []
    histories = [read, *(_without(snapshot, read, place) for place in places)]
    batch = reader.batch(histories).to(snapshot.device)
    wanted = torch.full((len(histories), 1), item_id, device=snapshot.device)
    return places, given_scores(Query(snapshot, batch, 1), wanted, expert)[:, 0].tolist()


def _without(snapshot: Snapshot, read: ReadHistory, place: int) -> ReadHistory:
    """The history as it would be read if this event had not been."""
    item_ids, times = np.delete(read.item_ids, place), np.delete(read.times, place)
    feedback = {name: np.delete(values, place) for name, values in read.feedback.items()}
    tokens, config = read.tokens, snapshot.reads.lifelong
    if tokens is not None and config is not None:
        catalog = snapshot.catalog
        columns = feedback or catalog.schema.complete({}, len(item_ids))
        tokens = read_whole(catalog.schema, catalog.item_vectors, config, item_ids, times, columns)
    return replace(read, item_ids=item_ids, times=times, feedback=feedback, tokens=tokens)


def _events(snapshot: Snapshot, read: ReadHistory, places: list[int], scores: list[float]) -> tuple[EventWeight, ...]:
    weights: list[float | None] = [scores[0] - without for without in scores[1:]] or [None]
    places = places or [0]
    keys = snapshot.catalog.item_keys.take(read.item_ids[places])
    titles = _titles(snapshot, read.item_ids[places].tolist())
    events = [
        EventWeight(str(key), title, int(read.times[place]), weight)
        for key, title, place, weight in zip(keys, titles, places, weights, strict=True)
    ]
    return tuple(sorted(events, key=lambda event: -(event.weight or 0.0)))


def _counts(expert: Expert, query: Query, item_id: int) -> float:
    return float(expert.added(query, torch.tensor([[item_id]], device=query.snapshot.device)))


def _codes(query: Query, item_id: int) -> tuple[CodeProbability, ...]:
    snapshot = query.snapshot
    if not snapshot.generates:
        return ()
    (logs,) = log_probs_of(query, torch.tensor([[item_id]], device=snapshot.device))[0].tolist()
    codes = np.asarray(snapshot.catalog.codes[np.array([item_id])])[0].tolist()
    return tuple(CodeProbability(code, float(np.exp(log))) for code, log in zip(codes, logs, strict=True))


@torch.inference_mode()
def _tree(query: Query) -> list[Branch]:
    """The prefixes of the items that the search finds, the most likely first."""
    snapshot = query.snapshot
    found = search(query, min(TREE_ITEMS, snapshot.catalog.num_items)).item_ids  # (1, C)
    found = found[found >= 0][None]
    probabilities = log_probs_of(query, found)[0].exp().tolist()  # (C, L)
    ids = found[0].tolist()
    codes = np.asarray(snapshot.catalog.codes[np.array(ids)]).tolist()
    keys, titles = snapshot.catalog.item_keys.take(np.array(ids)), _titles(snapshot, ids)
    root = Branch(0, 1.0)
    for key, title, sid, chances in zip(keys, titles, codes, probabilities, strict=True):  # best first
        branch = root
        for code, chance in zip(sid, chances, strict=True):
            child = next((one for one in branch.children if one.code == code), None)
            if child is None:
                child = Branch(code, chance, title=title or str(key))
                branch.children.append(child)
            child.num_items += 1
            branch = child
        branch.item = branch.item or str(key)
    return root.children


def _titles(snapshot: Snapshot, ids: list[int]) -> Any:
    return list(snapshot.catalog.titles.take(np.array(ids, np.int64)))
