"""What else is asked of a recommender: scores of given items, items like others, what is popular.

What is popular in one second of the store is what somebody did in that second. So a key that may only read is answered
for the windows hour, day, week and month, which end now, and for no others.
"""

from __future__ import annotations

import math
import time
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field

from sidera.core import InputError
from sidera.core import Request as Question
from sidera.engine.questions import ItemScore, Questions
from sidera.serve.aside import Aside
from sidera.serve.errors import Refused
from sidera.serve.schemas import MAX_K, Number, Second
from sidera.serve.state import Served
from sidera.serve.visit import visit_of

MAX_GIVEN = 1000  # items of one question
LONGEST = 366 * 86_400  # seconds of a window
WINDOWS = {"hour": 3600, "day": 86_400, "week": 7 * 86_400, "month": 30 * 86_400}
Count = Annotated[int, Query(ge=1, le=MAX_K, description="items wanted")]


class ScoreRequest(BaseModel):
    """Items, and the history after which they are scored."""

    model_config = ConfigDict(extra="forbid")
    items: list[str] = Field(min_length=1, max_length=MAX_GIVEN, description="item ids that the catalogue holds")
    history: list[str] = Field(description="item ids, oldest first")
    sort: bool = Field(False, description="true: the most likely first; else in the order of `items`")
    feedback: dict[str, list[Number]] = Field(default_factory=dict, description="as in /v1/recommend")
    times: list[Second] | None = Field(None, description="as in /v1/recommend")
    profile: dict[str, str] = Field(default_factory=dict, description="as in /v1/recommend")
    as_of: Second | None = Field(None, description="as in /v1/recommend")


class RelatedRequest(BaseModel):
    """A cart."""

    model_config = ConfigDict(extra="forbid")
    items: list[str] = Field(min_length=1, max_length=MAX_GIVEN, description="item ids; their order says nothing")
    k: int = Field(10, ge=1, le=MAX_K, description="items wanted")


class ScoredItem(BaseModel):
    """One item of an answer."""

    item: str
    score: float | None = Field(
        description="log-probability or model score; cosine of items that are alike; events of popular items; null: the"
        " model never gives this item"
    )
    title: str | None = None


class ScoresResponse(BaseModel):
    """Items with their scores, and what they are of."""

    items: list[ScoredItem]
    policy_version: str
    items_version: int


class PopularResponse(ScoresResponse):
    """The same, and what was counted."""

    since: int | None = Field(
        description="unix second from which on events are counted, later than asked for where there are too many; null:"
        " those of the training log"
    )
    until: int | None = Field(description="unix second before which they are; null: those of the training log")


def router(served: Served) -> APIRouter:
    """Routes of these questions."""
    routes, recommender = APIRouter(), served.recommender
    ask, aside, counting = Questions(recommender), Aside(), Aside()

    def said(scored: list[ItemScore]) -> ScoresResponse:
        snapshot = recommender.snapshot
        return ScoresResponse(
            items=[
                ScoredItem(item=one.item, score=one.score if math.isfinite(one.score) else None, title=one.title)
                for one in scored
            ],
            policy_version=snapshot.version, items_version=snapshot.catalog.items_version,
        )  # fmt: skip

    @routes.post("/v1/score", response_model=ScoresResponse)
    def score(body: ScoreRequest) -> ScoresResponse:
        """How likely is each of these items after this history?"""
        question = Question(
            tuple(body.history), feedback=body.feedback, times=body.times, profile=body.profile, as_of=body.as_of
        )
        with aside.turn():
            return said((ask.rerank if body.sort else ask.score)(question, body.items))

    @routes.get("/v1/similar", response_model=ScoresResponse)
    def similar(item: Annotated[str, Query(description="item id")], k: Count = 10) -> ScoresResponse:
        """Items like this one."""
        with aside.turn():
            return said(ask.similar(item, k))

    @routes.post("/v1/related", response_model=ScoresResponse)
    def related(body: RelatedRequest) -> ScoresResponse:
        """What goes with a cart?"""
        with aside.turn():
            return said(ask.related(body.items, body.k))

    @routes.get("/v1/popular", response_model=PopularResponse)
    def popular(
        request: HttpRequest,
        k: Count = 10,
        field: Annotated[str | None, Query(description="column of the items, with `value`")] = None,
        value: Annotated[str | None, Query(description="its value")] = None,
        window: Annotated[
            Literal["hour", "day", "week", "month"] | None, Query(description="the newest hour, ... of the store")
        ] = None,
        seconds: Annotated[int | None, Query(ge=1, le=LONGEST, description="the same, of so many seconds")] = None,
        until: Annotated[int | None, Query(ge=0, le=2**40, description="unix second where it ends; else now")] = None,
        event: Annotated[
            list[str],
            Query(
                max_length=32, description="which events count: names of labels (click, like, ...); else positive ones"
            ),
        ] = [],  # noqa: B006 - FastAPI copies it
    ) -> PopularResponse:
        """The items with the most events: of the training log, or of the users in the store where a window, `until` or
        `event` is given."""
        if (field is None) != (value is None):
            raise InputError("a field or a value alone", allowed="both, or neither")
        if (seconds is not None or until is not None) and not {"write", "admin"} & set(visit_of(request).key.scopes):
            raise Refused(403, "seconds and until need the scope 'write'; fix: ask for a window")
        if window is not None and seconds is not None:
            raise InputError("a window and seconds", allowed="one of them")
        length = WINDOWS.get(window or "", seconds)
        asked = length is not None or until is not None or bool(event)
        end = int(time.time()) + 1 if until is None and asked else until
        since = None if length is None or end is None else max(0, end - length)
        category = None if field is None or value is None else (field, value)
        with counting.turn():
            scored, begin = ask.popular_since(k, category=category, since=since, until=end, events=event)
        answer = said(scored)
        return PopularResponse(**answer.model_dump(), since=begin, until=end)

    return routes
