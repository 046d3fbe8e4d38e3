from __future__ import annotations

import pytest

from sidera.models import MODELS, RANKING, role_of
from sidera.pages import names
from sidera.pages.names import data_title, distinct


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("amazon2014_beauty", "Amazon Beauty 2014"),
        ("ml-1m", "MovieLens 1M"),
        ("ml-latest-small-2016", "MovieLens latest small"),
        ("world-efc4f4498df61a6c", "Simulated app"),
        ("my shop", "my shop"),
    ],
)
def test_data_sets_are_called_what_people_call_them(name: str, title: str) -> None:
    assert data_title(name) == title


def test_runs_of_one_model_are_told_apart_by_their_folders() -> None:
    assert distinct(["SASRec", "SASRec", "TIGER"], ["a", "b", "c"]) == ["SASRec (a)", "SASRec (b)", "TIGER"]


def test_every_model_that_answers_has_a_title() -> None:
    assert {name for name in MODELS if role_of(name) not in RANKING} <= set(names.MODELS)
