"""Duration-aware shaping: fair to short items, silent where too little is known."""

from __future__ import annotations

import pytest
import torch

from sidera.align.shaping import feedback_advantage, view_quantiles
from sidera.core import Batch, InputError


def batch(history: list[tuple[float, float]], targets: list[tuple[float, float, bool]]) -> Batch:
    """One user; (watch time, duration) of the past, (watch time, duration, disliked) of what was shown."""
    seen, shown = torch.tensor(history).T, torch.tensor([entry[:2] for entry in targets]).T
    return Batch(
        torch.zeros(len(history), dtype=torch.int64),
        torch.tensor([0, len(history)]),
        target_ids=torch.zeros(len(targets), dtype=torch.int64),
        target_offsets=torch.tensor([0, len(targets)]),
        feedback={"watch_time": seen[0], "duration": seen[1]},
        target_feedback={
            "watch_time": shown[0],
            "duration": shown[1],
            "dislike": torch.tensor([float(entry[2]) for entry in targets]),
        },
    )


PAST = [(1, 10.0), (2, 10), (3, 10), (4, 10), (20, 100), (40, 100), (60, 100), (80, 100)]


def test_quantiles_are_within_like_durations() -> None:
    """Nine seconds of ten beat all that this user saw of short items; ninety of a hundred beat all of long ones."""
    q = view_quantiles(batch(PAST, [(9, 10, False), (90, 100, False), (2.5, 11, False), (30, 100, False)]))
    torch.testing.assert_close(q, torch.tensor([0.9, 0.9, 0.5, 0.3]))


def test_ties_count_half() -> None:
    q = view_quantiles(batch([(2, 10.0)] * 9, [(2, 10, False)]))
    torch.testing.assert_close(q, torch.tensor([0.5]))


def test_the_top_quarter_is_good_a_dislike_is_bad_the_rest_is_dropped() -> None:
    shown = [(9, 10, False), (2.5, 10, False), (0.5, 10, False), (30, 100, False), (10, 100, True), (70, 100, False),
             (30, 100, False), (5, 100, False)]  # fmt: skip
    assert feedback_advantage(batch(PAST, shown)).tolist() == [1, 0, 0, 0, -1, 1, 0, 0]


def test_a_good_view_that_was_disliked_is_bad() -> None:
    assert feedback_advantage(batch(PAST, [(9, 10, True)])).tolist() == [-1]


def test_too_few_views_say_nothing() -> None:
    shown = batch(PAST, [(900.0, 1000.0, False), (9, 10, False), (float("nan"), 10, False)])
    assert view_quantiles(shown).isnan().tolist() == [True, False, True]
    assert feedback_advantage(shown).tolist() == [0, 1, 0]


def test_a_log_without_seconds_is_refused() -> None:
    given = batch(PAST, [(1, 10, False)])
    with pytest.raises(InputError, match="history has no 'watch_time'"):
        feedback_advantage(Batch(**{**given.__dict__, "feedback": {}}))
