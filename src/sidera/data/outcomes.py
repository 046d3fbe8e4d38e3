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

GAP = 4 * 3600  # seconds of silence that end a session
RETURN = 36 * 3600  # seconds after a session within which a user has to be back
OUTCOMES = ("stays", "returns")


def session_outcomes(dataset: Dataset, names: Sequence[str] = OUTCOMES) -> dict[str, np.ndarray]:
    """name -> (E,) float32: 1, 0, or NaN where the log ends too soon to know."""
    for name in names:
        if name not in OUTCOMES:
            raise InputError(f"no session outcome {name!r}", allowed=", ".join(OUTCOMES))
    if not names or not dataset.num_events:
        return {name: np.zeros(0, dtype=np.float32) for name in names}
    if dataset.time_kind != "seconds":
        raise InputError(f"data set {dataset.name!r} has an order and no times, so it has no sessions")
    times, users = dataset.times, dataset.event_users
    pause = np.full(dataset.num_events, np.inf)  # until the same user's next event
    pause[:-1] = np.where(users[1:] == users[:-1], np.diff(times), np.inf)
    stays = pause <= GAP
    ends = np.flatnonzero(~stays)  # the last event of each session
    session = np.searchsorted(ends, np.arange(dataset.num_events))  # (E,) which session
    back = (pause[ends] <= RETURN).astype(np.float32)
    back[np.isinf(pause[ends]) & (times.max() - times[ends] < RETURN)] = np.nan
    found = {"stays": stays.astype(np.float32), "returns": back[session].astype(np.float32)}
    return {name: found[name] for name in names}
