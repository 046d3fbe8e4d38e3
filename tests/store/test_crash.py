"""kill -9 at random moments, and damage of what is left: nothing acknowledged is lost, doubled, or lost in silence."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from crashing import crash


def crashes(place: Path, kills: int, damages: int, seed: int) -> None:
    rng = random.Random(seed)
    for number in range(kills):
        lost, outcomes = crash(place, seed * 1000 + number, rng.random() * 0.5, damages)
        assert lost == "", f"after kill {number} of seed {seed}"
        assert set(outcomes) <= {"whole", "refused"}, f"damaged after kill {number} of seed {seed}"


def test_a_killed_store_and_log_lose_nothing(tmp_path: Path) -> None:
    crashes(tmp_path, kills=3, damages=8, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 31))
def test_three_hundred_kills_lose_nothing(tmp_path: Path, seed: int) -> None:
    crashes(tmp_path, kills=10, damages=10, seed=seed)
