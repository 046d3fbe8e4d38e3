"""Business rules: what each does to a reward, and that one naming what is not there is refused."""

from __future__ import annotations

import pytest
import torch
from reward_world import DAY, ITEMS, Numbers, asked

from sidera.align.rules import Ruled, parse_rules
from sidera.core import InputError


def ruled(*lines: dict) -> Ruled:
    return Ruled(Numbers(), parse_rules(lines), ITEMS)


def test_a_cap_acts_only_while_the_share_is_above_it() -> None:
    viral = {"rule": "cap", "field": "viral", "value": "true", "share": 0.4, "factor": 0.5}
    over = ruled(viral)(asked([[0, 3], [1, -1]]))  # two of three are viral
    torch.testing.assert_close(over.total, torch.tensor([[0.5, 2.0], [2.0, 0.0]]))
    torch.testing.assert_close(over.parts["cap viral=true"], torch.tensor([[-0.5, -2.0], [0.0, 0.0]]))
    under = ruled(viral)(asked([[0, 1], [2, 4]]))
    assert under.parts["cap viral=true"].abs().sum() == 0


def test_a_cap_finds_any_entry_of_a_list() -> None:
    found = ruled({"rule": "cap", "field": "tags", "value": "y", "share": 0.0})(asked([[0, 1, 2, 4]]))
    assert (found.parts["cap tags=y"] < 0).tolist() == [[True, True, False, False]]


def test_fresh_items_are_lifted_and_those_without_a_date_are_fresh() -> None:
    fresh = ruled({"rule": "fresh", "field": "created", "days": 3, "bonus": 10})
    assert fresh(asked([[0, 1, 2, 4]])).parts["fresh created"].tolist() == [[0, 10, 10, 10]]
    assert fresh(asked([[0, 1, 2, 4]], as_of=100 * DAY)).parts["fresh created"].tolist() == [[0, 0, 0, 10]]


def test_diversity_counts_the_others_of_the_same_creator() -> None:
    found = ruled({"rule": "diversity", "field": "creator", "weight": 0.6})(asked([[0, 1, 3, 5, 5], [0, 3, 4, 5, -1]]))
    expected = torch.tensor([[-0.15, -0.15, 0, 0, 0], [0, 0, 0, 0, 0]])  # one of four others; no creator is no creator
    torch.testing.assert_close(found.parts["diversity creator"], expected)


def test_rules_follow_one_another() -> None:
    found = ruled(
        {"rule": "fresh", "field": "created", "days": 3, "bonus": 1},
        {"rule": "cap", "field": "tags", "value": "y", "share": 0.1, "factor": 0.0},
    )(asked([[1, 3]]))
    assert found.total.tolist() == [[0.0, 4.0]]
    torch.testing.assert_close(found.total, torch.stack(list(found.parts.values())).sum(0))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"rule": "cap", "field": "virality", "value": "true", "share": 0.1}, "names the field 'virality'"),
        ({"rule": "cap", "field": "tags", "value": "w", "share": 0.1}, "no item holds that value"),
        ({"rule": "cap", "field": "viral", "share": 0.1}, "lacks value"),
        ({"rule": "cap", "field": "viral", "value": "true", "share": 10}, "share = 10.0 is out of range"),
        ({"rule": "boost", "field": "viral"}, "'boost' is not known"),
        ({"rule": "fresh", "field": "tags", "days": 1, "bonus": 1}, "the field holds"),
        ({"rule": "fresh", "field": "created", "day": 1}, "no key 'day'"),
    ],
)
def test_refusals(line: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ruled(line)
