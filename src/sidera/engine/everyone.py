"""Answers for everybody, written to Parquet: what a mailing or a cache of tomorrow's front pages needs.

    config = EveryoneConfig(k=20)
    asked = requests_of_log(dataset, recommender.catalog.schema, config)
    recommend_all(recommender, asked, "tonight", config, source=dataset.digest)

The folder holds ``part-00000.parquet``, ... with a row per user (user, items, scores, cold_start) and
``recommendations.json``, which says what answered. Memory holds one part. A part is written whole or not at all, so the
same call goes on where an earlier one was stopped; other settings or another model are refused, not mixed. Each answer
is the one that :meth:`Recommender.recommend` gives to this user alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sidera.artifacts import write_text
from sidera.bounds import read_json
from sidera.config import digest, parse_section
from sidera.core import InputError, Recommendation, Request
from sidera.data.config import DataConfig, load_dataset, make_views
from sidera.data.dataset import Dataset
from sidera.data.feature_fitting import values_of
from sidera.data.features import FeatureSchema
from sidera.engine.recommender import Recommender
from sidera.engine.run_folder import section_of_run

MANIFEST = "recommendations.json"
USERS_A_PART = 8192
USERS_A_CALL = 256  # bounds what is held of histories; each answer is the same in any company
COLUMNS = pa.schema(
    [
        ("user", pa.string()),
        ("items", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("cold_start", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class EveryoneConfig:
    """What everybody is answered."""

    k: int = 10  # items for each user
    filter_seen: bool | None = None  # leave out items of the history; None: as the log's own repeats say
    as_of: int | None = None  # unix seconds; None: the moment of each user's newest event
    users_a_part: int = USERS_A_PART  # rows of a Parquet file

    def __post_init__(self) -> None:
        for name in ("k", "users_a_part"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}", allowed="1 or more")


def recommend_all(
    recommender: Recommender,
    asked: Iterable[tuple[str, Request]],
    out: str | Path,
    config: EveryoneConfig,
    *,
    source: str,
    progress: Callable[[int], Any] = lambda users: None,
) -> dict[str, Any]:
    """Answer every user's request into the folder ``out``; -> what ``recommendations.json`` says.

    ``asked`` (user, request) come in the same order on every call; ``source`` names what they were made of (a digest).
    A folder that was begun with another source, model, catalogue or setting is refused. ``progress`` is called with the
    users that are done.
    """
    folder, snapshot = Path(out), recommender.snapshot
    settings = {
        "policy_version": snapshot.version, "codebook_id": snapshot.catalog.codebook_id,
        "items_version": snapshot.catalog.items_version, "beam": recommender.beam, "source": source,
        "k": config.k, "filter_seen": config.filter_seen, "as_of": config.as_of, "users_a_part": config.users_a_part,
    }  # fmt: skip
    known = _begun(folder, settings)
    if known.get("complete"):
        return known
    rows, users, number = iter(asked), 0, 0
    while part := list(islice(rows, config.users_a_part)):
        path = folder / f"part-{number:05d}.parquet"
        if not path.exists():
            _write(path, [user for user, _ in part], _answers(recommender, [request for _, request in part]))
        users, number = users + len(part), number + 1
        progress(users)
    finished = {**known, "complete": True, "num_users": users, "num_parts": number}
    write_text(folder / MANIFEST, json.dumps(finished, indent=1) + "\n")
    return finished


def requests_of_log(dataset: Dataset, schema: FeatureSchema, config: EveryoneConfig) -> Iterator[tuple[str, Request]]:
    """A request for every user of a data set, in its order."""
    for user, key in enumerate(dataset.user_keys.tolist()):
        yield key, request_of_user(dataset, user, schema, config)


def request_of_user(dataset: Dataset, user: int, schema: FeatureSchema, config: EveryoneConfig) -> Request:
    """What a data set knows of one of its users (by row): whole history, feedback, times and profile."""
    seconds = dataset.time_kind == "seconds"
    start, end = int(dataset.offsets[user]), int(dataset.offsets[user + 1])
    if config.as_of is not None and seconds:
        end = start + int(np.searchsorted(dataset.times[start:end], config.as_of))
    columns = schema.columns if all(name in dataset.feedback for name in schema.columns) else ()  # all, or none
    feedback = {name: dataset.feedback[name][start:end].tolist() for name in columns}
    feedback |= {each.name: values_of(dataset, each, slice(start, end)) for each in schema.owned("event")}
    profile = {each.name: values_of(dataset, each, slice(user, user + 1))[0] for each in schema.owned("user")}
    profile |= {each.name: None for each in schema.owned("request")}  # nobody asked yet: unknown
    return Request(
        history=tuple(map(str, dataset.item_keys[dataset.item_ids[start:end]])),
        k=config.k,
        filter_seen=config.filter_seen,
        feedback=feedback,
        times=dataset.times[start:end].tolist(),
        profile=profile,
        as_of=config.as_of if seconds else None,
    )


def log_of_run(run: str | Path, data: str | Path, recommender: Recommender) -> Dataset:
    """The events of a data folder that the run's model reads, as its recipe's [data] reads it."""
    section = section_of_run(Path(run), "data", "how its data folder is read", "run the recipe again")
    config = parse_section(DataConfig, section, "[data]")
    everything, positives = make_views(load_dataset(data, config), config)
    return (everything if recommender.reads.feedback else positives).dataset


def _answers(recommender: Recommender, requests: list[Request]) -> Iterator[Recommendation]:
    for start in range(0, len(requests), USERS_A_CALL):
        yield from recommender.recommend(requests[start : start + USERS_A_CALL])


def _begun(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a folder that was begun with these settings, or of a new one."""
    path = folder / MANIFEST
    known = {**settings, "settings": digest(settings), "complete": False}
    if path.exists():
        there = read_json(path)
        if there.get("settings") != known["settings"]:
            other = next((name for name in settings if there.get(name) != settings[name]), "settings")
            raise InputError(
                f"{folder} was begun with {other} = {there.get(other)!r}, now it is {settings.get(other)!r}",
                fix="give another folder, or remove this one",
            )
        return there
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} holds something else", fix="give a folder that is empty or not there yet")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(known, indent=1) + "\n")
    return known


def _write(path: Path, users: list[str], answers: Iterable[Recommendation]) -> None:
    """One part, whole or not at all."""
    rows = list(answers)
    table = pa.table(
        {
            "user": users,
            "items": [list(row.item_keys) for row in rows],
            "scores": [list(row.scores) for row in rows],
            "cold_start": [row.cold_start for row in rows],
        },
        schema=COLUMNS,
    )
    unfinished = path.with_suffix(".unfinished")
    pq.write_table(table, unfinished, compression="zstd")
    os.replace(unfinished, path)
