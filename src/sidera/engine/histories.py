"""Where histories come from: the items that clusters are made of, representatives of what a request brings, and users
whose behaviour is in a store.

    with open_behaviour("store", recommender.catalog) as behaviour:  # what `sidera serve RUN --store store` does
        behaviour.append("user-7", ["cup-3"], [1_700_000_000], {"click": [1]})
        recommender.recommend([Request(user="user-7")])              # once recommender.behaviour is set

Clusters are made in the space of :attr:`Catalog.item_vectors`, so a store belongs to a codebook, and a Catalog that
grew may be given in place of the one it was opened with. Which labels an event can carry says the Catalog's schema,
which is kept beside the store and compared: bits of another schema would be read as other labels.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidera.artifacts import write_text
from sidera.batch import Events, Lifelong
from sidera.bounds import read_json
from sidera.catalog.catalog import Catalog
from sidera.config import parse_section
from sidera.core import ArtifactError, InputError
from sidera.data.dataset import Dataset
from sidera.store.behaviour import BehaviourStore, StoreConfig
from sidera.store.events import ItemTable
from sidera.store.lifelong import LifelongConfig
from sidera.store.log_events import (
    columns_of,
    events_of,
    lifelong_of,
    positive_bits,
    read_whole,
    tokens_of,
)

SCHEMA_FILE = "schema.json"
MAX_AHEAD = 60  # seconds that a sender's clock may be ahead of ours
DEFAULT_CHUNK = 250  # of stores that no model with representatives asks for


@lru_cache(maxsize=4)
def item_table(catalog: Catalog) -> ItemTable:
    """Vectors of the catalogue's items, and their creators where it knows any."""
    creators = catalog.categories.get("creator")
    return ItemTable.of(catalog.item_vectors, None if creators is None else creators - 1)


def lifelong_of_events(events: Events, catalog: Catalog, config: LifelongConfig) -> Lifelong:
    """Representatives of whole histories, whose ``items`` are dense ids. O(events) for long ones: a store is quicker."""
    item_ids, items = events.items.numpy(), item_table(catalog)
    times = np.zeros(len(item_ids), np.int64) if events.times is None else events.times.numpy()
    feedback = {name: values.numpy() for name, values in events.feedback.items()}
    rows = []
    for start, end in pairwise(events.offsets.tolist()):
        mine = slice(start, end)
        columns = {name: values[mine] for name, values in feedback.items()}
        rows.append(read_whole(catalog.schema, items, config, item_ids[mine], times[mine], columns))
    return lifelong_of(catalog.schema, rows)


@dataclass(frozen=True)
class KnownHistory:
    """What a store knows of one user."""

    item_ids: NDArray[np.int64]  # (n,) oldest first
    times: NDArray[np.int64]  # (n,)
    feedback: Mapping[str, NDArray[np.float32]]  # column -> (n,)
    tokens: NDArray[Any] | None  # representatives, where they were asked for


@dataclass(frozen=True)
class Kept:
    """What became of events that were sent."""

    new: int
    known: int  # of an item and second that the store held already, or that came twice
    unknown: tuple[str, ...]  # items that the catalogue does not hold, each once: their events were left out


class Behaviour:
    """A behaviour store spoken to in the keys and columns of a Catalog. Any number of threads."""

    def __init__(self, store: BehaviourStore, catalog: Catalog, now: Callable[[], float] = time.time) -> None:
        self.store, self.catalog, self.now = store, catalog, now

    def append(
        self, user: str, item_keys: Sequence[str], times: Sequence[int], feedback: Mapping[str, Sequence[float]]
    ) -> int:
        """Keep events of a user, each with all columns that the models read (or none with any: they count as chosen);
        -> how many are new. Durable when this returns; an event of an item and second that is known is not kept twice.

        InputError (and nothing is kept) for an item that the catalogue does not hold, a time in the future, a column
        that is missing, unknown to the schema, of another length, or negative seconds.
        """
        return self.keep(user, item_keys, times, feedback, refuse_unknown=True).new

    def keep(
        self, user: str, item_keys: Sequence[str], times: Sequence[int], feedback: Mapping[str, Sequence[float]],
        *, refuse_unknown: bool = False,
    ) -> Kept:  # fmt: skip
        """Like :meth:`append`, but events of unknown items are left out and named; InputError where none is left."""
        schema = self.catalog.schema
        when = np.asarray(times)
        if when.shape != (len(item_keys),):
            raise InputError(f"{when.size} times for {len(item_keys)} events", allowed="one each")
        if when.size and when.dtype.kind not in "iu":
            raise InputError(f"times are {when.dtype}", allowed="whole numbers: unix seconds")
        there = [key in self.catalog.ids_by_key for key in item_keys]
        kept = [key for key, known in zip(item_keys, there, strict=True) if known]
        item_ids = self.catalog.ids_of(item_keys if refuse_unknown or not kept else kept)
        latest = int(self.now()) + MAX_AHEAD
        late = np.flatnonzero(when > latest)
        if len(late):
            raise InputError(
                f"event {late[0]} is of second {when[late[0]]}, in the future",
                allowed=f"unix seconds up to {latest}",
                fix="give seconds (not milliseconds), and check the sender's clock",
            )
        unknown = [name for name in feedback if name not in schema.columns]
        if unknown:
            raise InputError(
                f"feedback {unknown[0]!r} is no column of this catalogue", allowed=", ".join(schema.columns) or "none"
            )
        columns = {name: values[there] for name, values in schema.complete(feedback, len(item_keys)).items()}
        new = self.store.append(user, events_of(schema, item_ids, when[there], columns), new_only=True)
        left_out = dict.fromkeys(key for key, known in zip(item_keys, there, strict=True) if not known)
        return Kept(new, len(kept) - new, tuple(left_out))

    def read(self, user: str, as_of: int | None = None, *, representatives: bool = False) -> KnownHistory | None:
        """What a user did before ``as_of`` (None: ever); None for a user of whom nothing is known."""
        found = self.store.history(user, as_of, representatives=representatives)
        if found is None:
            return None
        events, tokens = found
        columns = columns_of(self.catalog.schema, events.labels, events.watch_time, events.duration)
        return KnownHistory(
            item_ids=events.item_ids.astype(np.int64),
            times=events.times,
            feedback=columns,
            tokens=None if tokens is None else tokens_of(tokens),
        )

    def fill(self, dataset: Dataset) -> int:
        """Keep every event of a data set of the same items, and begin new logs; -> how many.

        InputError when the store knows a user already, or a column that models read is missing.
        """
        if self.store.num_users:
            raise InputError(f"the store knows {self.store.num_users:,} users already", fix="fill an empty folder")
        schema, item_ids = self.catalog.schema, self.catalog.ids_of(dataset.item_keys.tolist())
        feedback = {name: values for name, values in dataset.feedback.items() if name in schema.columns}
        columns = schema.complete(feedback, dataset.num_events)
        for user, key in enumerate(dataset.user_keys):
            span = slice(int(dataset.offsets[user]), int(dataset.offsets[user + 1]))
            mine = {name: values[span] for name, values in columns.items()}
            self.store.append(str(key), events_of(schema, item_ids[dataset.item_ids[span]], dataset.times[span], mine))
        self.store.snapshot()
        return dataset.num_events

    def set_catalog(self, catalog: Catalog) -> None:
        """Take a catalogue with new items; InputError when it is of another codebook."""
        catalog.check_codebook(self.catalog.codebook_id)
        self.store.set_items(item_table(catalog))
        self.catalog = catalog

    def close(self) -> None:
        self.store.close()

    def __enter__(self) -> Behaviour:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_behaviour(
    path: str | Path, catalog: Catalog, lifelong: LifelongConfig | None = None, *, sync: bool = True
) -> Behaviour:
    """The store at ``path`` (made when there is none), read as ``catalog`` says.

    ``lifelong``: how the model that will read it wants histories kept. InputError when the store keeps them otherwise,
    or was made under another schema of feedback columns.
    """
    path = Path(path)
    config = StoreConfig(lifelong=lifelong or LifelongConfig(chunk=DEFAULT_CHUNK))
    bits = positive_bits(catalog.schema)
    if bits is not None:
        config = replace(config, positive_labels=bits)
    if lifelong is None and (path / "store.json").exists():
        config = replace(config, lifelong=_kept_as(path))
    store = BehaviourStore(path, item_table(catalog), replace(config, sync=sync))
    try:
        _check_schema(path, catalog)
    except BaseException:
        store.close()
        raise
    return Behaviour(store, catalog)


def _kept_as(path: Path) -> LifelongConfig:
    """How an existing store keeps histories: good for every model that does not ask for more."""
    try:
        values = read_json(path / "store.json")["config"]["lifelong"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtifactError(f"{path / 'store.json'} is damaged", fix="restore it from a backup") from None
    return parse_section(LifelongConfig, values, "[lifelong]")


def _check_schema(path: Path, catalog: Catalog) -> None:
    ours = {"columns": list(catalog.schema.columns), "labels": list(catalog.schema.labels)}
    file = path / SCHEMA_FILE
    if not file.exists():
        write_text(file, json.dumps(ours) + "\n")
        return
    try:
        theirs = read_json(file)
        theirs["columns"] = [str(name) for name in theirs["columns"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtifactError(f"{file} is damaged", fix="restore it from a backup") from None
    if theirs != ours:
        raise InputError(
            f"store {str(path)!r} was made with columns {', '.join(theirs['columns']) or 'none'}",
            allowed=f"those of the catalogue: {', '.join(ours['columns']) or 'none'}",
            fix="give this model a store of its own",
        )
