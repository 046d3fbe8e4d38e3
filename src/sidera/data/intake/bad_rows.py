"""Rows that nobody can read: counted, the first ones named, refused above a stated share."""

from __future__ import annotations

from dataclasses import dataclass, field

from sidera.core import InputError

SHOWN = 3  # rows that are named


@dataclass
class BadRows:
    """What was left out of one table, and why."""

    what: str  # "log"
    count: int = 0
    examples: list[str] = field(default_factory=list)  # "line 7 of a.csv has no user"
    reasons: dict[str, int] = field(default_factory=dict)  # "no user" -> rows

    def add_line(self, file: str, where: str, problem: str) -> None:
        """One row that the parser could not take apart."""
        self.add([f"{where} of {file} {problem}"], "another number of fields" if "fields" in problem else problem, 1)

    def add(self, examples: list[str], reason: str, count: int) -> None:
        self.count += count
        self.reasons[reason] = self.reasons.get(reason, 0) + count
        self.examples += examples[: max(0, SHOWN - len(self.examples))]

    def check(self, num_rows: int, max_share: float) -> None:
        """InputError when more than ``max_share`` of ``num_rows`` rows are bad."""
        if not self.count or self.count <= max_share * num_rows:
            return
        raise InputError(
            f"{self.count:,} of {num_rows:,} rows of the {self.what} cannot be used: {', '.join(self.examples)}",
            allowed=f"{max_share:.1%} of the rows (--max-bad)",
            fix="correct them, or pass a larger --max-bad to leave them out",
        )

    def line(self) -> str:
        """For the report; "" when nothing was left out."""
        if not self.count:
            return ""
        kinds = ", ".join(
            f"{reason} {count:,}" for reason, count in sorted(self.reasons.items(), key=lambda one: -one[1])
        )
        return f"{self.count:,} rows left out ({kinds}): {', '.join(self.examples)}"
