"""Impossible worlds are named one by one; the two named worlds are frozen."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from sidera.config import digest
from sidera.core import InputError
from sidera.sim.config import WORLDS, WorldConfig, world_config


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_items", 0, "whole numbers from 1"),
        ("num_items", 10**9, "whole numbers from 1"),
        ("num_topics", 5000, "no more than num_items"),
        ("num_topics", 1, "whole numbers from 2"),
        ("num_creators", 4000, "no more than num_items"),
        ("favourite_topics", 17, "no more than num_topics"),
        ("quality_std", -0.1, "0 or more"),
        ("idle_penalty", -1.0, "0 or more"),
        ("uniform_share", 1.5, "share"),
        ("search_share", 1.5, "share"),
        ("search_whim", -0.1, "0 or more"),
        ("search_pull", -1.0, "0 or more"),
        ("drift_decay", -0.5, "0 or more"),
        ("mood_decay", 1.01, "share"),
        ("duration_median", 0.0, "above 0"),
        ("duration_max", 1.0, "duration_min (6) or more"),
        ("favourite_high", 0.1, "favourite_low (0.8) or more"),
        ("like_bias", float("nan"), "finite"),
        ("click_affinity", float("inf"), "finite"),
        ("num_candidates", 2500, "at most 2100"),
        ("num_candidates", 9, "10 or more"),
        ("slate_size", 0, "whole numbers from 1"),
        ("max_items_per_day", 0, "whole numbers from 1"),
        ("join_days", 0, "whole numbers from 1"),
    ],
)
def test_each_impossible_value_is_named(key: str, value: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        WorldConfig(**{key: value})
    assert key in str(caught.value)
    assert words in str(caught.value)


def test_no_item_left_for_the_first_day() -> None:
    with pytest.raises(InputError, match=r"new_share \+ cold_share = 1.1"):
        WorldConfig(new_share=0.6, cold_share=0.5)


def test_unknown_worlds_keys_and_types_are_named() -> None:
    with pytest.raises(InputError, match="did you mean 'easy'"):
        world_config("eazy")
    with pytest.raises(InputError, match="did you mean 'num_items'"):
        world_config("easy", {"num_itms": 5})
    with pytest.raises(InputError, match="num_items = 'many' is a str"):
        world_config("easy", {"num_items": "many"})


def test_the_named_worlds_are_frozen() -> None:
    """What was tuned or measured in a world counts only while the world stays: change a number, make a new name."""
    assert {name: digest(config) for name, config in WORLDS.items()} == {
        "easy": "e8b36fdbeabd6f16",
        "hard": "0d26daaeda621427",
    }


def test_the_page_explains_every_parameter_with_its_default() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "understand" / "world.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (\S+) \| .+ \|$", page, flags=re.M))
    assert rows == {field.name: f"{field.default:g}" for field in dataclasses.fields(WorldConfig)}
