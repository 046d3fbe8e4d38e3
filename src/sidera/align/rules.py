"""Business rules on a reward, declared in the recipe:

    [rewards]
    rules = [
      {rule = "cap", field = "viral", value = "true", share = 0.1, factor = 0.5},   # the viral cap of 2506.13695, 4.2.4
      {rule = "fresh", field = "created", days = 3, bonus = 0.1},
      {rule = "diversity", field = "creator", weight = 0.2},
    ]

``cap``: while items whose field holds the value make up more than ``share`` of what an update wrote, their reward is
multiplied by ``factor`` (a negative one is made as much worse instead). ``fresh``: ``bonus`` on items that came less
than ``days`` before the request; an item without a date came after the log, so it is fresh. ``diversity``: ``weight``
times the share of the group's other items with the same value is taken off.

Trap: rules change what is rewarded, not what can be written. A cap holds in training and fades with the next update
that forgets it; what must never be shown belongs in the Catalog's removed items or in a filter.

Shape legend: N items · B requests · G items of a request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from sidera.align.rewards import Reward, RewardBatch, Rewards
from sidera.config import check_value, closest, parse_section
from sidera.core import InputError
from sidera.fit.protocols import restore, states

DAY = 86_400
NEEDED = {"cap": ("value", "share"), "fresh": ("days", "bonus"), "diversity": ("weight",)}


@dataclass(frozen=True)
class Rule:
    """One line of ``rules``; which keys count depends on ``rule``."""

    rule: Literal["cap", "fresh", "diversity"]
    field: str  # a column of the items table
    value: str | None = None  # cap: what the column holds (of a list: any entry); true and false for marks
    share: float | None = None  # cap: of all items of an update
    factor: float = 0.5  # cap
    days: float | None = None  # fresh
    bonus: float | None = None  # fresh: in units of the reward
    weight: float | None = None  # diversity: in units of the reward

    def __post_init__(self) -> None:
        where = f"[rewards] rule {self.rule!r}"
        for name in NEEDED[self.rule]:
            if getattr(self, name) is None:
                raise InputError(f"{where} lacks {name}", fix="add the key to the rule")
        for name, low, high in (("share", 0, 1), ("factor", 0, 1), ("days", 0, 1e6), ("weight", 0, 1e6)):
            given = getattr(self, name)
            check_value(where, name, given, given is None or low <= given <= high, f"{low} to {high:g}")

    @property
    def name(self) -> str:
        return f"{self.rule} {self.field}" + (f"={self.value}" if self.value is not None else "")


def parse_rules(lines: Sequence[Mapping[str, Any]]) -> tuple[Rule, ...]:
    """The recipe's ``rules``."""
    return tuple(parse_section(Rule, line, f"[rewards] rules[{place}]") for place, line in enumerate(lines))


class Ruled:
    """A reward under business rules; each rule's change is a part of the answer."""

    def __init__(self, reward: Reward, rules: Sequence[Rule], items: pa.Table) -> None:
        """``items``: one row per dense item id; InputError names a field that it lacks, or a value nobody has."""
        self.reward, self.rules = reward, tuple(rules)
        self.tables = [_table(rule, items) for rule in self.rules]

    def __call__(self, asked: RewardBatch) -> Rewards:
        found = self.reward(asked)
        there = asked.item_ids >= 0
        total, parts = found.total, dict(found.parts)
        if len(parts) < 2:
            parts = {"reward": found.total, **parts}
        for rule, table in zip(self.rules, self.tables, strict=True):
            values = table.to(asked.item_ids.device)[asked.item_ids.clamp(min=0)]  # (B, G)
            change = _change(rule, values, total, asked, there) * there
            parts[rule.name] = change
            total = total + change
        return Rewards(total, parts)

    def state(self) -> Mapping[str, Any]:
        """What the reward keeps."""
        return states({"reward": self.reward})

    def restore(self, state: Mapping[str, Any]) -> None:
        restore({"reward": self.reward}, state)


def _change(rule: Rule, values: Tensor, total: Tensor, asked: RewardBatch, there: Tensor) -> Tensor:
    """(B, G) what the rule adds to the reward."""
    if rule.rule == "cap":
        matched = (values > 0) & there
        share = float(matched.sum()) / max(1, int(there.sum()))
        assert rule.share is not None
        return -(1 - rule.factor) * total.abs() * matched * (share > rule.share)
    if rule.rule == "fresh":
        if asked.batch.requests.as_of is None:
            raise InputError(f"rule {rule.name!r} needs to know when it was asked", fix="give batches with as_of")
        assert rule.days is not None
        assert rule.bonus is not None
        age = asked.batch.requests.as_of[:, None] - values  # seconds, below 0 for what came later
        return rule.bonus * (age < rule.days * DAY).to(total.dtype)
    assert rule.weight is not None
    same = (values[:, :, None] == values[:, None]) & (values[:, :, None] > 0)  # (B, G, G)
    same &= there[:, None] & there[:, :, None]
    others = (there.sum(1, keepdim=True) - 1).clamp(min=1)
    return -rule.weight * (same.sum(2) - 1).clamp(min=0) / others


def _table(rule: Rule, items: pa.Table) -> Tensor:
    """(N,) what the rule reads of each item: 1 where it matches, when it came, or the number of its value."""
    if rule.field not in items.column_names or rule.field == "key":
        allowed = ", ".join(name for name in items.column_names if name != "key")
        hint = closest(rule.field, items.column_names)
        raise InputError(f"rule {rule.rule!r} names the field {rule.field!r}{hint}", allowed=allowed or "no field")
    column = items[rule.field].combine_chunks()
    if rule.rule == "fresh":
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise InputError(f"rule {rule.name!r}: the field holds {column.type}", allowed="unix seconds")
        never = np.iinfo(np.int64).max // 2
        return torch.from_numpy(pc.fill_null(column.cast(pa.int64()), never).to_numpy(zero_copy_only=False).copy())
    if rule.rule == "cap":
        return torch.from_numpy(_matches(rule, column))
    if pa.types.is_list(column.type):
        column = pc.list_element(pc.if_else(pc.greater(pc.list_value_length(column), 0), column, None), 0)
    codes = pc.dictionary_encode(column).indices
    return torch.from_numpy(pc.fill_null(codes.cast(pa.int64()), -1).to_numpy(zero_copy_only=False) + 1)


def _matches(rule: Rule, column: pa.Array) -> np.ndarray:
    """(N,) int64: 1 where the column holds the value."""
    listed = pa.types.is_list(column.type)
    texts = (column.flatten() if listed else column).cast(pa.string())
    hits = pc.fill_null(pc.equal(texts, str(rule.value)), False).to_numpy(zero_copy_only=False)
    if not hits.any():
        some = ", ".join(sorted(str(value) for value in pc.unique(texts).to_pylist() if value is not None)[:8])
        raise InputError(f"rule {rule.name!r}: no item holds that value", allowed=f"values such as {some}")
    if not listed:
        return hits.astype(np.int64)
    rows = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
    return (np.bincount(rows, weights=hits, minlength=len(column)) > 0).astype(np.int64)
