"""``--filter``: conditions on items as they are typed at the shell."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from sidera.core import Filter, InputError

CONDITION = re.compile(r"(?P<column>[^=!<>]+)(?P<sign>!=|>=|<=|=)(?P<value>.*)")
ALLOWED = "COLUMN=VALUE,VALUE, COLUMN!=VALUE, COLUMN>=NUMBER or COLUMN<=NUMBER"


def add_filter_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--filter", action="append", default=[], metavar="CONDITION",
        help="which items may be answered: brand=acme,globex, brand!=acme, 'popularity>=5'; all that are given hold",
    )  # fmt: skip


def filter_of(conditions: Sequence[str]) -> Filter | None:
    """The filter that the flags say; None where there is no flag. InputError names one that is no condition."""
    asked: dict[str, Any] = {}
    for text in conditions:
        found = CONDITION.fullmatch(text)
        if found is None:
            raise InputError(f"--filter {text!r}", allowed=ALLOWED)
        column, sign, value = found["column"].strip(), found["sign"], found["value"].strip()
        if sign in (">=", "<="):
            end = "min" if sign == ">=" else "max"
            before = asked.get(column, {})
            again = not isinstance(before, dict) or end in before or "not" in before
            condition: Any = {end: _number(text, value)} if again else {**before, end: _number(text, value)}
        else:
            values = [part.strip() for part in value.split(",")]
            condition, again = ({"not": values} if sign == "!=" else values), column in asked
        if again:
            raise InputError(f"--filter names {column!r} twice", fix="list the values, or give a >= and a <=")
        asked[column] = condition
    return Filter.of(asked) if asked else None


def _number(text: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InputError(f"--filter {text!r} compares with {value!r}", allowed="a number") from None
