"""GET /v1/history: the newest events that the store has of a user, of all items or of one category.

Who sees a user's events with their times may see everything, so it needs a key of the scope admin.
"""

from __future__ import annotations

import math
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from sidera.core import InputError
from sidera.serve.errors import printable
from sidera.serve.state import Served

MOST = 1000  # events of an answer


class HistoryEvent(BaseModel):
    """One event."""

    item: str
    title: str | None
    time: int = Field(description="unix seconds")
    feedback: dict[str, float | None] = Field(description="columns of the event; null: not recorded")


class HistoryResponse(BaseModel):
    """Oldest first."""

    events: list[HistoryEvent]
    unknown: list[str] = Field(description="items of such events that the catalogue does not hold: they are left out")
    unknown_user: bool = Field(description="true: the store has no event of this user")


def router(served: Served) -> APIRouter:
    """Routes that show what is known of a user."""
    routes, recommender = APIRouter(), served.recommender

    @routes.get("/v1/history", response_model=HistoryResponse)
    def history(
        user: Annotated[str, Query(min_length=1, description="key of the user")],
        n: Annotated[int, Query(ge=1, le=MOST, description="newest events wanted")] = 20,
        category: Annotated[
            str | None, Query(description="only of items with this value of the feature of --category-index")
        ] = None,
        as_of: Annotated[int | None, Query(ge=0, le=2**40, description="unix second; only events before it")] = None,
    ) -> HistoryResponse:
        """The newest events of a user, oldest first."""
        behaviour = recommender.behaviour
        if behaviour is None:
            raise InputError("no behaviour store is open", fix="serve with --store FOLDER")
        known, catalog = behaviour.read(user, as_of, n, category=category), behaviour.catalog
        if known is None:
            return HistoryResponse(events=[], unknown=[], unknown_user=True)
        keys, titles = catalog.item_keys.take(known.item_ids), catalog.titles.take(known.item_ids)
        columns = {
            name: [None if math.isnan(value) else value for value in values.tolist()]
            for name, values in known.feedback.items()
        }
        events = [
            HistoryEvent(
                item=str(key), title=title, time=second, feedback={name: columns[name][row] for name in columns}
            )
            for row, (key, title, second) in enumerate(zip(keys, titles, known.times.tolist(), strict=True))
        ]
        return HistoryResponse(events=events, unknown=[printable(key) for key in known.unknown], unknown_user=False)

    return routes
