"""One request, two readers: the reward sees every exposure with what came of it, the policy what it learned to read.

A policy that reads items alone is given the positive ones, as it had them in training.
"""

from __future__ import annotations

from sidera.core import Batch, InputError
from sidera.engine.recommender import Recommender
from sidera.engine.snapshot import newest


def as_read(batch: Batch, engine: Recommender) -> Batch:
    """The requests as the engine's model reads them; their newest events alone, as many as it takes."""
    if batch.feedback and not engine.reads_feedback:
        column = engine.catalog.schema.positive
        if column:
            batch = batch.keep(batch.feedback[column] > 0)
            empty = int((batch.lengths == 0).sum())
            if empty:
                problem = f"{empty} of {batch.num_histories} requests have no {column}, which is all that is read"
                raise InputError(problem, fix="take requests from align.sources.requests, which leaves them out")
    return newest(batch, engine.max_history)
