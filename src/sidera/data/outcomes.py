"""What an exposure did to the session and to the day after: labels that no single reaction tells.

``stays``: another exposure of the same session followed. ``returns``: the user came back within ``RETURN`` of the end
of the session. A session ends where a user is silent for ``GAP``.

Trap: both are known only afterwards. They are labels of targets and never features of a history, where "the user came
back" would give the answer away. And the log ends somewhere: a last session of which nobody can know yet whether the
user came back has NaN, not 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.split import Split

GAP = 4 * 3600  # seconds of silence that end a session
RETURN = 36 * 3600  # seconds after a session within which a user has to be back
OUTCOMES = ("stays", "returns")


def session_outcomes(
    dataset: Dataset, names: Sequence[str] = OUTCOMES, split: Split | None = None
) -> dict[str, np.ndarray]:
    """name -> (E,) float32: 1, 0, or NaN where the log ends too soon to know.

    With a ``split`` the log ends where its training part does: what came later must not be known to a label either.
    """
    for name in names:
        if name not in OUTCOMES:
            raise InputError(f"no session outcome {name!r}", allowed=", ".join(OUTCOMES))
    if not names or not dataset.num_events:
        return {name: np.zeros(0, dtype=np.float32) for name in names}
    if dataset.time_kind != "seconds":
        raise InputError(f"data set {dataset.name!r} has an order and no times, so it has no sessions")
    times, users = dataset.times, dataset.event_users
    bounds = dataset.offsets[1:] if split is None else split.train_ends
    known = np.arange(dataset.num_events) < bounds[users]
    pause = np.full(dataset.num_events, np.inf)  # until the same user's next event
    pause[:-1] = np.where((users[1:] == users[:-1]) & known[1:], np.diff(times), np.inf)
    stays = pause <= GAP
    ends = np.flatnonzero(~stays)  # the last event of each session
    session = np.searchsorted(ends, np.arange(dataset.num_events))  # (E,) which session
    back = (pause[ends] <= RETURN).astype(np.float32)
    silent = (times[known].max() if known.any() else 0) - times  # (E,) seconds until the log ends
    # Cut by position and not by time, a user's next event is there and hidden: nobody may say that it did not come.
    hidden = np.zeros(dataset.num_events, dtype=bool)
    if split is not None and split.cut_times is None:
        hidden[:-1] = (users[1:] == users[:-1]) & known[:-1] & ~known[1:]
    back[np.isinf(pause[ends]) & ((silent[ends] < RETURN) | hidden[ends])] = np.nan
    found = {"stays": np.where(hidden, np.nan, stays).astype(np.float32), "returns": back[session]}
    return {name: found[name] for name in names}
