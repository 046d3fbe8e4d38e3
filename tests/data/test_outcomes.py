"""Session outcomes: what is known only afterwards, and what nobody can know."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from sidera.core import InputError
from sidera.data.outcomes import session_outcomes
from sidera.data.schema import build_dataset

HOUR, DAY = 3600, 86_400


def log(times: dict[str, list[int]]) -> dict[str, np.ndarray]:
    rows = [(user, time) for user, moments in times.items() for time in moments]
    events = pa.table({"user": [row[0] for row in rows], "item": ["i"] * len(rows), "time": [row[1] for row in rows]})
    return session_outcomes(build_dataset("log", events))


def test_stays_until_the_last_of_a_session_and_returns_for_all_of_it() -> None:
    found = log({"ann": [0, 60, 120, DAY, DAY + 60, 5 * DAY], "bob": [9 * DAY]})
    assert found["stays"].tolist() == [1, 1, 0, 1, 0, 0, 0]
    # ann came back after a day, then only after four; whether she comes after day 5 is known: the log goes on to day 9
    assert found["returns"][:6].tolist() == [1, 1, 1, 0, 0, 0]
    assert np.isnan(found["returns"][6])  # bob's session ends with the log


def test_a_short_silence_ends_no_session() -> None:
    assert log({"ann": [0, 3 * HOUR, 10 * HOUR]})["stays"].tolist() == [1, 0, 0]


def test_unknown_names_and_logs_without_times() -> None:
    events = pa.table({"user": ["ann"], "item": ["i"], "time": [0]})
    with pytest.raises(InputError, match="no session outcome 'return'"):
        session_outcomes(build_dataset("log", events), ["return"])
    ordered = pa.table({"user": ["ann"], "item": ["i"], "position": [0]})
    with pytest.raises(InputError, match="no times"):
        session_outcomes(build_dataset("log", ordered))
