"""Every recipe still does what it did: losses of twenty steps, first answers, what its batches say."""

from __future__ import annotations

import copy
import json

import pytest
from golden_runs import ACROSS_PROCESSORS, COMMITTED, differences, golden_run, recipes

RECORDED = json.loads(COMMITTED.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_does_what_was_recorded(name: str) -> None:
    assert name in RECORDED, "a new recipe: record it with `make golden`"
    assert differences(RECORDED[name], golden_run(name), ACROSS_PROCESSORS) == []


def test_no_recording_is_of_a_recipe_that_is_gone() -> None:
    assert sorted(RECORDED) == recipes()


def test_a_difference_is_noticed() -> None:
    run = RECORDED["any/generator"]
    assert differences(run, run, 0.0) == []
    for change, words in (
        (lambda run: run.update(batches="0" * 16), "the batches say something else"),
        (lambda run: run["losses"].pop(), "19 steps instead of 20"),
        (lambda run: run["losses"].__setitem__(4, run["losses"][4] * 1.01), "the loss of step 5"),
        (lambda run: run["answers"][1][0].__setitem__(1, run["answers"][1][0][1] + 0.1), "answer 1, rank 1"),
        (lambda run: run["answers"][1][0].__setitem__(0, "another item"), "answer 1 lacks"),
        (lambda run: run["answers"][1].pop(), "answer 1 has 4 items instead of 5"),
    ):
        changed = copy.deepcopy(run)
        change(changed)
        told = differences(run, changed, ACROSS_PROCESSORS)
        assert len(told) == 1
        assert words in told[0]
