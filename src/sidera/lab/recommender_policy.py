"""A trained recommender as a policy of the simulated app: requests in, item numbers out.

``to_batch`` hands the app's requests to the recommender's Reading, which builds batches for training and evaluation
too.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from sidera.batch import Batch
from sidera.batch import Requests as Asked
from sidera.core import InputError
from sidera.engine.recommender import Recommender
from sidera.lab.policy import Requests
from sidera.ops.jagged import Jagged
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
        readable = self.recommender.reading.cut(batch).lengths > 0
        warm = torch.nonzero(readable).squeeze(1)
        if len(warm):
            shown = Jagged(torch.from_numpy(requests.item_ids), torch.from_numpy(requests.offsets)).rows(warm)
            batch = batch if len(warm) == batch.num_histories else batch.rows(warm)
            exclude = (shown.values, shown.offsets)
            ranked = self.recommender.rank(batch, requests.k, exclude=exclude, log_probs=self.with_log_probs)
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
    """What the model reads of each request, or all of it where a ranker reads more; a history may come out empty."""
    schema, items = recommender.catalog.schema, requests.item_ids
    feedback = schema.complete(requests.feedback, len(items)) if schema.columns else {}
    known = items < recommender.snapshot.num_readable
    nothing = [None] * requests.num_requests  # the world shows no more of a request than its user and its moment
    features = {
        each.name: torch.from_numpy(each.encode_values(list(requests.profiles.get(each.source, nothing)))[0])
        for each in schema.owned("user", "request")
    }
    asked = Asked(as_of=torch.from_numpy(requests.as_of), features=features)
    of_events = {
        each.name: each.encode_values(list(requests.feedback.get(each.source, [None] * len(items))))[0]
        for each in schema.owned("event")
    }
    whole = recommender.pipeline.reads_feedback
    return recommender.reading.batch(
        items[known],
        np.concatenate([[0], np.cumsum(known)])[requests.offsets],
        times=requests.times[known],
        feedback={name: values[known] for name, values in feedback.items()},
        features={name: values[known] for name, values in of_events.items()},
        requests=asked if whole or recommender.reads.feedback else None,
        whole=whole,
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
    different = [
        key for key, title, expected in zip(keys, catalog.titles, titles, strict=True) if title not in (None, expected)
    ]
    if different:
        raise InputError(f"item {different[0]} has another title in this world: it is of another seed", fix=fix)
