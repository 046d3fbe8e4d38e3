"""Take one user out of everything that is kept of users: store, exposure log, exported data folders.

    erase_user("ann", "runs/users", exposures="runs/shown", exports=["runs/mine/exports/monday"])

A server may have the store and the log open meanwhile: it answers the user as a stranger from the next call on. Weights
that were trained on the user's events are not changed; the next training reads data without them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sidera.artifacts import read_manifest
from sidera.data.dataset import Dataset
from sidera.engine.histories import open_store, remove_views
from sidera.store.exposures import logs_at

COUNTS = ("num_users", "num_items", "num_events")  # the writer's own, in a manifest's info


@dataclass(frozen=True)
class Erased:
    """What was known of the user, by place; 0: nothing was there."""

    events: int
    exposures: int
    exported: int  # events in the data folders


def erase_user(
    user: str, store: str | Path, *, exposures: str | Path | None = None, exports: Sequence[str | Path] = ()
) -> Erased:
    """``store``: a folder, or a Redis server. The user is in no file of these folders when this returns.

    InputError or ArtifactError, and nothing is erased, when one of them is not what it should be.
    """
    datasets = {Path(path): Dataset.load(path) for path in exports}
    logs = [] if exposures is None else logs_at(exposures)
    with contextlib.closing(open_store(store, must_exist=True)) as opened:
        events = len(opened.arrivals(user)[1])
        opened.erase(user)
    remove_views(Path(store))
    shown = sum(log.erase(user) for log in logs)
    exported = sum(_out_of(path, dataset, user) for path, dataset in datasets.items())
    return Erased(events, shown, exported)


def _out_of(path: Path, dataset: Dataset, user: str) -> int:
    """Write a data folder without the user -> how many events went."""
    places = np.flatnonzero(dataset.user_keys == user)
    if not len(places):
        return 0
    place = int(places[0])
    start, end = dataset.offsets[place : place + 2].tolist()
    rest = np.ones(dataset.num_events, bool)
    rest[start:end] = False
    others = np.delete(np.arange(dataset.num_users), place)
    bare = dataset.keep(rest)
    kept = replace(
        bare, source="", user_keys=bare.user_keys[others], users=bare.users.take(others),
        offsets=np.delete(bare.offsets, place),
    )  # fmt: skip
    info = read_manifest(path, "dataset").info
    kept.save(path, {name: value for name, value in info.items() if name not in (*COUNTS, "name", "notes")})
    return int(end - start)
