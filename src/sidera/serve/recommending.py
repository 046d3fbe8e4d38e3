"""POST /v1/recommend and /v1/recommend/batch: what comes next after a history, or after what the store has of a user.

Requests of all clients meet in the scheduler (``engine/scheduler.py``). A client may say how long it waits
(``X-Deadline-Ms``) and how urgent it is (``X-Priority``); both are headers, so that what cannot be met is refused
before a body is read.

What shows a stored user's history is not for every key. With ``as_of`` anybody could bisect the second of a stranger's
first event. The answers with and without ``filter_seen`` differ in items of the history, and so do the names of unknown
items tell of it. ``keys.py`` says which scope may what.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.types import Scope

from sidera.core import Filter, InputError, Recommendation
from sidera.core import Request as Question
from sidera.engine.scheduler import PRIORITIES, Overloaded
from sidera.serve.bodies import BodyRoute
from sidera.serve.errors import Refused, printable
from sidera.serve.keys import Key
from sidera.serve.schemas import BatchRequest, BatchResponse, RecommendRequest, RecommendResponse
from sidera.serve.state import MAX_DEADLINE_MS, Served
from sidera.serve.visit import Visit, visit_of

HEADERS = [
    {"in": "header", "name": "X-Deadline-Ms", "required": False,
     "schema": {"type": "integer", "minimum": 1, "maximum": MAX_DEADLINE_MS},
     "description": "milliseconds until the answer is of no use any more; what cannot be met is refused at once (503)"},
    {"in": "header", "name": "X-Priority", "required": False,
     "schema": {"type": "string", "enum": list(PRIORITIES), "default": "normal"},
     "description": "who goes first while requests wait"},
]  # fmt: skip


def router(served: Served) -> APIRouter:
    """Routes that answer."""
    routes, asker = APIRouter(route_class=BodyRoute), served.asker

    @routes.post("/v1/recommend", response_model=RecommendResponse, openapi_extra={"parameters": HEADERS})
    async def recommend(request: Request, body: RecommendRequest) -> Any:
        """What comes next after this history?"""
        visit = visit_of(request)
        question = question_of(body, visit.key)
        answer = await asker.ask(question, visit.deadline, visit.priority, visit.tickets, visit.place)
        return response_of(answer, visit, may_see(question, visit.key))

    @routes.post("/v1/recommend/batch", response_model=BatchResponse, openapi_extra={"parameters": HEADERS})
    async def recommend_batch(request: Request, body: BatchRequest) -> Any:
        """The same for many histories or users: an answer, or what is wrong, for each."""
        visit = visit_of(request)

        async def one(part: RecommendRequest) -> dict[str, Any]:
            try:
                question = question_of(part, visit.key)
                answer = await asker.ask(question, visit.deadline, visit.priority, visit.tickets, visit.place)
            except (InputError, OSError, Refused, Overloaded) as error:
                return {"answer": None, "problem": error.detail if isinstance(error, Refused) else str(error)}
            return {"answer": response_of(answer, visit, may_see(question, visit.key)), "problem": None}

        return {"answers": await asyncio.gather(*map(one, body.requests))}

    return routes


def admission(served: Served) -> Callable[[Scope, Visit], None]:
    """The check of the door: reads deadline and priority from the headers, and refuses what the engine cannot take.
    A request that the connection let in (``protocol.py``) has its place."""

    def check(scope: Scope, visit: Visit) -> None:
        seconds, visit.priority = served.urgency(scope["headers"])
        visit.deadline = visit.begun + seconds
        if visit.place is None:
            visit.place = served.let_in(visit.deadline, visit.priority)

    return check


def question_of(body: RecommendRequest, key: Key) -> Question:
    """InputError for a body that asks nothing, Refused for what this key may not ask."""
    if body.history is None and body.user is None:
        raise InputError("the request has neither history nor user", allowed="one of them")
    filter_seen = body.filter_seen
    if body.user is not None:
        if body.as_of is not None and "admin" not in key.scopes:
            raise Refused(403, "as_of for a stored user needs the scope 'admin'; fix: leave it out")
        if not {"write", "admin"} & set(key.scopes):
            if filter_seen is not None:
                raise Refused(403, "filter_seen for a stored user needs the scope 'write'; fix: leave it out")
            filter_seen = False  # what a long list lacks would say what the user has seen
    return Question(
        tuple(body.history or ()), k=body.k, filter_seen=filter_seen, exclude=tuple(body.exclude),
        feedback=body.feedback, times=body.times, profile=body.profile, as_of=body.as_of, user=body.user,
        refuse_unknown=body.unknown == "refuse", filter=None if body.filter is None else Filter.of(body.filter),
    )  # fmt: skip


def may_see(question: Question, key: Key) -> bool:
    """Whether the answer may name items of the history: the client's own, or for keys that may know a user's."""
    return question.user is None or bool({"write", "admin"} & set(key.scopes))


def response_of(answer: Recommendation, visit: Visit, with_history: bool) -> dict[str, Any]:
    return {
        "items": [
            {"item": key, "score": score, "title": title}
            for key, score, title in zip(answer.item_keys, answer.scores, answer.titles, strict=True)
        ],
        "cold_start": answer.cold_start,
        "unknown": [printable(key) for key in answer.unknown] if with_history else [],
        "unread": answer.unread if with_history else [],
        "unseen": [printable(text) for text in answer.unseen] if with_history else [],
        "filtered_seen": answer.filtered_seen,
        "unknown_user": answer.unknown_user,
        "policy_version": answer.policy_version,
        "shadow_version": answer.shadow_version or None,
        "expert_version": answer.expert_version or None,
        "reranker_version": answer.reranker_version or None,
        "codebook_id": answer.codebook_id,
        "items_version": answer.items_version,
        "request": answer.request or None,
        "eligible": answer.eligible,
        "beam": answer.beam or None,
        "milliseconds": round(1000 * (time.monotonic() - visit.begun), 3),
    }
