"""POST /v1/explain: why an item is likely. GET /v1/search: items by a part of their title or key.

An explanation of a stored user shows the user's history with its times, so it needs a key that may see everything.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field

from sidera.core import InputError, Request
from sidera.engine.explain import Branch, explain
from sidera.serve.aside import Aside
from sidera.serve.errors import Refused
from sidera.serve.schemas import Number, Second, Text
from sidera.serve.state import Served
from sidera.serve.visit import visit_of

SEARCHED = 20_000  # most popular items whose titles are looked through
MOST_FOUND = 50


class ExplainRequest(BaseModel):
    """An item, and the history or the stored user that it would be answered to."""

    model_config = ConfigDict(extra="forbid")
    item: Text = Field(description="item id that is explained, whether it was answered or not")
    history: list[str] | None = Field(None, description="item ids, oldest first")
    user: Text | None = Field(None, description="instead of a history: a user whose events are in the store")
    feedback: dict[str, list[Number]] = Field(default_factory=dict, description="as in /v1/recommend")
    times: list[Second] | None = Field(None, description="unix seconds of each event of the history")
    profile: dict[str, str] = Field(default_factory=dict, description="as in /v1/recommend")


class EventReason(BaseModel):
    """One event of the history."""

    item: str
    title: str | None
    time: int = Field(description="unix seconds; 0: not known")
    weight: float | None = Field(
        description="the item's score less its score without this event; null: it is the only event"
    )


class CodeReason(BaseModel):
    """One code of the item's semantic ID."""

    code: int
    probability: float = Field(description="after the codes before it, among those that the catalogue allows")


class TreeBranch(BaseModel):
    """A prefix of semantic IDs that the search keeps."""

    code: int
    probability: float
    num_items: int = Field(description="items below it that the search finds")
    item: str | None = Field(description="at a leaf: its best item")
    title: str | None = Field(description="of the best item below it")
    children: list[TreeBranch]


class ExplainResponse(BaseModel):
    """Why this item."""

    item: str
    title: str | None
    score: float = Field(description="of an answer: a log-probability, what an expert makes of it, or a model's score")
    counts: float | None = Field(description="what an expert's counts add to the score; null: no expert")
    codes: list[CodeReason] = Field(description="empty where the model scores items")
    events: list[EventReason] = Field(description="the weightiest first; the newest ones where the history is long")
    num_events: int = Field(description="events that the model can read")
    tree: list[TreeBranch] = Field(description="of the best items that a search finds; empty where the model scores")
    policy_version: str
    items_version: int


class FoundItem(BaseModel):
    """An item of the catalogue."""

    item: str
    title: str | None


def router(served: Served) -> APIRouter:
    """Routes that explain."""
    routes, recommender, aside = APIRouter(), served.recommender, Aside()

    @routes.post("/v1/explain", response_model=ExplainResponse)
    def why(body: ExplainRequest, request: HttpRequest) -> ExplainResponse:
        """Which events and codes made this item likely?"""
        if body.history is None and body.user is None:
            raise InputError("the request has neither history nor user", allowed="one of them")
        if body.user is not None and "admin" not in visit_of(request).key.scopes:
            raise Refused(403, "why a stored user gets an item needs the scope 'admin'; fix: send the history")
        question = Request(
            tuple(body.history or ()), feedback=body.feedback, times=body.times, profile=body.profile, user=body.user
        )
        with aside.turn():
            found = explain(recommender, question, body.item)
        return ExplainResponse(
            item=found.item, title=found.title, score=found.score, counts=found.counts,
            codes=[CodeReason(code=one.code, probability=one.probability) for one in found.codes],
            events=[
                EventReason(item=one.item, title=one.title, time=one.time, weight=one.weight) for one in found.events
            ],
            num_events=found.num_events, tree=[_branch(one) for one in found.tree],
            policy_version=found.policy_version, items_version=found.items_version,
        )  # fmt: skip

    return routes


def searching(served: Served) -> APIRouter:
    """Routes that look items up."""
    routes, recommender = APIRouter(), served.recommender

    @routes.get("/v1/search", response_model=list[FoundItem])
    def search(
        text: Annotated[str, Query(max_length=200, description="part of a title or of an item id; empty: all")] = "",
        k: Annotated[int, Query(ge=1, le=MOST_FOUND)] = 12,
    ) -> list[FoundItem]:
        """The most popular items whose title or id holds this text, of the 20,000 most popular."""
        snapshot, wanted = recommender.snapshot, text.casefold().strip()
        found: list[FoundItem] = []
        ids = np.array(snapshot.most_popular(SEARCHED if wanted else k, set()), np.int64)
        catalog = snapshot.catalog
        for item, title in zip(catalog.item_keys.take(ids), catalog.titles.take(ids), strict=True):
            if wanted in str(item).casefold() or wanted in (title or "").casefold():
                found.append(FoundItem(item=str(item), title=title))
                if len(found) == k:
                    break
        return found

    return routes


def _branch(branch: Branch) -> TreeBranch:
    return TreeBranch(
        code=branch.code, probability=branch.probability, num_items=branch.num_items, item=branch.item,
        title=branch.title, children=[_branch(child) for child in branch.children],
    )  # fmt: skip
