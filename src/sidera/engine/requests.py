"""Requests to batches: what a model reads of a history that a request brings, or that the store has of a user.

Keys become ids, columns are completed as the Catalog's schema says, and what the model cannot read is left out: unknown
items and items that came after training, both named in the answer, and for models that read no feedback all but the
positive events. The newest
``max_history`` of what is left are read, and representatives of all of it where the model asks for these.

Shape legend: n events of one history.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sidera.batch import Batch, Requests
from sidera.catalog.catalog import Catalog
from sidera.core import InputError, Request
from sidera.data.reading import Reading
from sidera.data.representatives import lifelong_of
from sidera.engine.histories import Behaviour, KnownHistory
from sidera.store.log_representatives import read_whole


@dataclass(frozen=True)
class ReadHistory:
    """What a model reads of one request, and what is to be said of it in the answer."""

    item_ids: np.ndarray  # (n,) readable, oldest first
    times: np.ndarray  # (n,) int64
    feedback: Mapping[str, np.ndarray]  # column -> (n,) float32
    tokens: np.ndarray | None  # (R,) of dtype data.representatives.TOKEN, where the model reads representatives
    features: Mapping[str, np.ndarray]  # of the events -> (n, ...)
    asked: Mapping[str, np.ndarray]  # features of the user and the request -> (1, ...)
    as_of: int
    seen_ids: list[int]  # every item of the whole history, where they are not to be answered again
    unknown: tuple[str, ...]  # keys that the catalogue does not hold
    unread: tuple[str, ...] = ()  # keys that it holds and the model has no row for: they came after the training
    unseen: tuple[str, ...] = ()  # "feature=value" that training never saw: read as unknown
    unknown_user: bool = False
    warm: bool = True  # the model can read some of it


@dataclass(frozen=True)
class RequestReader:
    """How one model reads requests over one Catalog, and a ranker behind it."""

    catalog: Catalog
    num_readable: int  # items that the model can read
    reading: Reading
    behaviour: Behaviour | None
    whole: bool = False  # a ranker reads them too: batches hold every event, and each cuts what it reads

    @property
    def feedback(self) -> bool:
        return self.whole or self.reading.reads.feedback

    def read(self, request: Request) -> ReadHistory:
        """The history that a request brings, or that the behaviour store has of its user. InputError names what is
        wrong with it."""
        if request.user is not None:
            return self._of_user(request, request.user)
        schema, number = self.catalog.schema, len(request.history)
        feedback: dict[str, np.ndarray] = {}
        if request.feedback or self.feedback:
            feedback = schema.complete(request.feedback, number)
        times = np.zeros(number, dtype=np.int64)
        if request.times is not None:
            times = np.asarray(request.times, np.int64)
            if times.shape != (number,):
                raise InputError(f"the request has {times.size} times for {number} events", allowed="one each, or none")
            if (np.diff(times) < 0).any():
                raise InputError("the history is not in the order of its times", allowed="oldest event first")
        item_ids = self.catalog.find_ids(request.history)
        missing = tuple(key for key, item in zip(request.history, item_ids.tolist(), strict=True) if item < 0)
        features: dict[str, np.ndarray] = {}
        unseen: list[str] = []
        if self.feedback:
            features, unseen = schema.of_events(request.feedback, number)
        history = KnownHistory(item_ids, times, feedback, None)
        return self._readable(request, history, missing, features, unseen)

    def filters_seen(self, request: Request) -> bool:
        """Whether items of the history are left out of the answer."""
        return self.catalog.filters_seen if request.filter_seen is None else request.filter_seen

    def batch(self, histories: Sequence[ReadHistory]) -> Batch:
        """Histories of one event or more -> a Batch to answer."""
        item_ids = np.concatenate([history.item_ids for history in histories])
        offsets = np.cumsum([0, *(len(history.item_ids) for history in histories)])
        reads, schema = self.reading.reads, self.catalog.schema
        if not self.feedback:
            return self.reading.batch(item_ids, offsets)
        asked = {
            each.name: torch.from_numpy(np.concatenate([history.asked[each.name] for history in histories]))
            for each in schema.owned("user", "request")
        }
        tokens = [history.tokens for history in histories if history.tokens is not None]
        return self.reading.batch(
            item_ids,
            offsets,
            times=np.concatenate([history.times for history in histories]),
            feedback={
                name: np.concatenate([history.feedback[name] for history in histories]) for name in schema.columns
            },
            features={
                each.name: np.concatenate([history.features[each.name] for history in histories])
                for each in schema.owned("event")
            },
            requests=Requests(as_of=torch.tensor([history.as_of for history in histories]), features=asked),
            lifelong=None if reads.lifelong is None else lifelong_of(schema, tokens),
            whole=self.whole,
        )

    def _of_user(self, request: Request, user: str) -> ReadHistory:
        if request.history or request.feedback or request.times is not None:
            raise InputError(
                f"the request names user {user!r} and brings a history too",
                allowed="one of them",
                fix="leave history, feedback and times out, or the user",
            )
        if self.behaviour is None:
            raise InputError(
                f"the request names user {user!r}, but no behaviour store is open",
                fix="serve with --store FOLDER, or send the history",
            )
        found = self.behaviour.read(user, request.as_of, lifelong=self.reading.reads.lifelong)
        if found is None or not len(found.item_ids):
            nothing = np.empty(0, dtype=np.int64)
            found = KnownHistory(nothing, nothing, self.catalog.schema.complete({}, 0), None)
            features, _ = self.catalog.schema.of_events({}, 0) if self.feedback else ({}, None)
            return replace(self._readable(request, found, (), features, []), unknown_user=True)
        features = self._of_store(len(found.item_ids)) if self.feedback else {}
        return self._readable(request, found, found.unknown, features, [])

    def _of_store(self, number: int) -> dict[str, np.ndarray]:
        """Features of events that the store holds: it keeps none."""
        owned = self.catalog.schema.owned("event")
        required = [feature for feature in owned if feature.required]
        if required:
            raise InputError(
                f"the behaviour store keeps no {required[0].place}, which the model reads",
                fix="send the history with the request, or declare it with required = false",
            )
        return {feature.name: feature.unknown(number) for feature in owned}

    def _readable(
        self, request: Request, whole: KnownHistory, missing: tuple[str, ...], features: Mapping[str, np.ndarray],
        unseen: list[str],
    ) -> ReadHistory:  # fmt: skip
        schema, item_ids, feedback, reads = self.catalog.schema, whole.item_ids, whole.feedback, self.reading.reads
        kept = (item_ids >= 0) & (item_ids < self.num_readable)
        late: dict[int, None] = {}
        if not kept.all():
            late = dict.fromkeys(item_ids[item_ids >= self.num_readable].tolist())  # each once, in their order
        readable = kept
        if not reads.feedback and schema.positive and feedback:
            readable = kept & (feedback[schema.positive] > 0)
            kept = kept if self.whole else readable
        places = None if kept.all() else kept.nonzero()[0]  # None: all

        def left(values: np.ndarray) -> np.ndarray:
            return values if places is None else values[places]

        tokens = whole.tokens
        if tokens is not None:
            tokens = tokens[tokens["item_ids"] < self.num_readable]
        elif reads.lifelong is not None:
            columns = {name: left(values) for name, values in feedback.items()}
            vectors = self.catalog.item_vectors
            tokens = read_whole(schema, vectors, reads.lifelong, left(item_ids), left(whole.times), columns)
        filters = self.filters_seen(request)
        newest = int(whole.times[-1]) if len(whole.times) else 0
        asked, strange = schema.of_profile(request.profile) if self.feedback else ({}, [])
        return ReadHistory(
            item_ids=left(item_ids),
            times=left(whole.times),
            feedback={name: left(values) for name, values in feedback.items()} if self.feedback else {},
            tokens=tokens,
            features={name: left(values) for name, values in features.items()},
            asked=asked,
            as_of=newest if request.as_of is None else request.as_of,
            seen_ids=sorted({item for item in item_ids.tolist() if item >= 0}) if filters else [],
            unknown=missing,
            unread=tuple(str(self.catalog.item_keys[item]) for item in late),
            unseen=tuple(dict.fromkeys([*strange, *unseen])),
            warm=bool(readable.any()),
        )


def requests_of(entries: Iterable[Any], k: int, filter_seen: bool | None) -> list[Request]:
    """Histories of keys, or requests, as requests whose keys are texts; InputError for what is neither."""
    if isinstance(entries, str | bytes):
        raise InputError(
            f"the history {entries[:40]!r} is a text", allowed="a list of item ids", fix=f"[[{entries!r}]]"
        )
    requests = []
    for entry in entries:
        if isinstance(entry, Request):
            requests.append(
                replace(entry, history=keys_of_items(entry.history), exclude=keys_of_items(entry.exclude, "excluded"))
            )
            continue
        if isinstance(entry, str | bytes) or not isinstance(entry, Iterable):
            kind = "text" if isinstance(entry, str | bytes) else type(entry).__name__
            shown = repr(entry)[:40]
            raise InputError(f"the history {shown} is a {kind}", allowed="a list of item ids", fix=f"[[{shown}]]")
        requests.append(Request(keys_of_items(entry), k=k, filter_seen=filter_seen))
    return requests


def keys_of_items(values: Iterable[Any], what: str = "history") -> tuple[str, ...]:
    """Keys as the catalogue has them. Trap: a number that is looked up among texts is never found, and a history of
    which nothing is known is answered by popularity."""
    return tuple(key if type(key) is str else _key_of(key, what) for key in values)


def _key_of(value: Any, what: str) -> str:
    if isinstance(value, str):  # numpy's texts
        return str(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float | np.floating) and float(value).is_integer():
        fix = f"{int(value)}, or {str(int(value))!r}"
    else:
        fix = "give the ids as texts"
    raise InputError(
        f"item {value!r} of the {what} is a {type(value).__name__}", allowed="texts, whole numbers", fix=fix
    )
