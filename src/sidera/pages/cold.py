"""Cold start on a run's page: new items and new users, a table a record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sidera.eval.cold import cold_rows, cold_words
from sidera.pages.names import model_title


def cold_sections(records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of every record, by the label of its run: a head, rows and what was asked."""
    sections = []
    for label, record in records.items():
        head, rows = cold_rows(record)
        titled = [[model_title(row[0]), *row[1:]] for row in rows]
        sections.append({"label": label, "head": head, "rows": titled, "words": cold_words(record)})
    return sections
