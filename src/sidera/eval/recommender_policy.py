"""A trained recommender as a policy of the simulated app: requests in, item numbers out.

``to_batch`` is the one place where a request of the app becomes what a model reads; it has to agree with how training
and evaluation read the log (tests/sim/test_recommender_policy.py holds them together).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sidera.core import Batch, InputError
from sidera.engine.recommender import Recommender
from sidera.sim.requests import Requests
from sidera.sim.text import item_texts
from sidera.sim.world import World


class RecommenderPolicy:
    """A trained recommender as a policy: one call of ``rank`` answers a batch of requests.

    What a user was shown is not shown again. Users of whose history the model can read nothing get the most popular
    items, as from ``Recommender.recommend``.
    """

    def __init__(self, recommender: Recommender, world: World, log_probs: bool = False) -> None:
        """InputError when the recommender's catalogue is not the world's items.

        ``log_probs``: keep those of the last answers' codes, as ``Candidates`` has them.
        """
        self.recommender, self.with_log_probs = recommender, log_probs
        self.log_probs: torch.Tensor | None = None  # (requests, k, L); NaN for those answered by popularity
        _check_items(recommender, world)

    def __call__(self, requests: Requests) -> NDArray[np.int64]:
        batch = to_batch(requests, self.recommender)
        answers = np.full((requests.num_requests, requests.k), -1, dtype=np.int64)
        readable = batch.lengths > 0
        warm = torch.nonzero(readable).squeeze(1)
        if len(warm):
            shown = _rows_of(requests.item_ids, requests.offsets, warm.numpy())
            exclude = (torch.from_numpy(shown[0]), torch.from_numpy(shown[1]))
            asked = _only(batch, warm)
            ranked = self.recommender.rank(asked, requests.k, exclude=exclude, log_probs=self.with_log_probs)
            answers[warm.numpy()] = ranked.item_ids.cpu().numpy()
        if self.with_log_probs:
            shape = (*answers.shape, self.recommender.catalog.num_levels)
            self.log_probs = torch.full(shape, float("nan"))
            if len(warm) and ranked.log_probs is not None:
                self.log_probs[warm] = ranked.log_probs.cpu()
        for row in torch.nonzero(~readable).squeeze(1).tolist():
            shown_ids = requests.item_ids[requests.offsets[row] : requests.offsets[row + 1]]
            fresh = self.recommender.snapshot.most_popular(requests.k, set(shown_ids.tolist()))
            answers[row, : len(fresh)] = fresh
        return answers


def to_batch(requests: Requests, recommender: Recommender) -> Batch:
    """What the model reads of each request: every exposure with its feedback, or the positive ones only.

    Events are cut to those whose items the model has rows for; a history may come out empty.
    """
    schema = recommender.catalog.schema
    feedback = schema.complete(requests.feedback, len(requests.item_ids)) if schema.columns else {}
    kept = requests.item_ids < recommender.num_known
    if not recommender.reads_feedback and schema.positive:
        kept &= feedback[schema.positive] > 0
    offsets = np.concatenate([[0], np.cumsum(kept)])[requests.offsets]
    batch = Batch(torch.from_numpy(requests.item_ids[kept]), torch.from_numpy(offsets))
    if not recommender.reads_feedback:
        return batch
    return replace(
        batch,
        times=torch.from_numpy(requests.times[kept]),
        as_of=torch.from_numpy(requests.as_of),
        feedback={name: torch.from_numpy(values[kept]) for name, values in feedback.items()},
        profiles={
            name: torch.from_numpy(_places(requests.profiles[name], vocabulary))
            for name, vocabulary in schema.profile_fields.items()
        },
    )


def _check_items(recommender: Recommender, world: World) -> None:
    """The catalogue's items must be the world's, by key and by title: another seed's have the same keys."""
    catalog = recommender.catalog
    fix = "train on a log that `sidera simulate` wrote with the same --config, --set and --seed"
    keys = world.item_keys()
    if catalog.item_keys.tolist() != keys:
        problem = f"the catalogue has {catalog.num_items} items that are not the {len(keys)} of this world"
        raise InputError(problem, fix=fix)
    titles = item_texts(world.items, world.config, world.seed)["title"]
    different = [key for key, ours, own in zip(keys, catalog.titles, titles, strict=True) if ours not in (None, own)]
    if different:
        raise InputError(f"item {different[0]} has another title in this world: it is of another seed", fix=fix)


def _places(values: NDArray[Any], vocabulary: tuple[str, ...]) -> NDArray[np.int64]:
    """(B,) 1 + place of each value, 0 for one that training never saw."""
    numbers = {value: place + 1 for place, value in enumerate(vocabulary)}
    return np.array([numbers.get(str(value), 0) for value in values], dtype=np.int64)


def _rows_of(
    values: NDArray[Any], offsets: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The jagged rows ``rows`` alone: values and offsets."""
    lengths = np.diff(offsets)[rows]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    places = np.arange(bounds[-1]) - np.repeat(bounds[:-1] - offsets[rows], lengths)
    return values[places], bounds


def _only(batch: Batch, rows: torch.Tensor) -> Batch:
    """The histories ``rows``; those left out must be empty, so events stay as they are."""
    if len(rows) == batch.num_histories:
        return batch
    ends = torch.cat([batch.offsets[:1], batch.offsets[rows + 1]])
    return replace(
        batch,
        offsets=ends,
        as_of=None if batch.as_of is None else batch.as_of[rows],
        profiles={name: values[rows] for name, values in batch.profiles.items()},
    )
