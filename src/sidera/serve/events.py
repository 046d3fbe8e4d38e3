"""POST /v1/events: something happened; keep it, and log what followed on an answer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request

from sidera.core import InputError
from sidera.engine.recommender import Recommender
from sidera.engine.timeline import Span
from sidera.serve.bodies import BodyRoute
from sidera.serve.errors import Refused, printable
from sidera.serve.schemas import EventsRequest, EventsResponse
from sidera.serve.state import Served
from sidera.serve.visit import visit_of


def router(served: Served) -> APIRouter:
    """Routes that write."""
    routes = APIRouter(route_class=BodyRoute)

    @routes.post("/v1/events", response_model=EventsResponse)
    async def events(request: Request, body: EventsRequest) -> Any:
        """Something happened: keep it. Safe to send again."""
        if served.recommender.behaviour is None:
            raise InputError("no behaviour store is open", fix="serve with --store FOLDER")
        if served.num_writing >= served.config.max_writes:
            raise Refused(503, f"{served.num_writing} calls wait for the disk already; nothing was kept", 1)
        served.num_writing += 1
        begun = time.monotonic()
        try:
            return await asyncio.get_running_loop().run_in_executor(served.writers, _keep, served.recommender, body)
        finally:
            served.num_writing -= 1
            visit_of(request).spans.append(Span("store", begun, time.monotonic()))

    return routes


def _keep(recommender: Recommender, body: EventsRequest) -> dict[str, Any]:
    """On a thread: it waits for the disk."""
    assert recommender.behaviour is not None
    outcomes = _outcomes(recommender, body)
    try:
        kept = recommender.behaviour.keep(
            body.user, body.items, body.times, body.feedback, refuse_unknown=body.unknown == "refuse"
        )
    except OSError as error:
        why = error.strerror or error
        raise Refused(503, f"the disk does not take the events: {why}; nothing was kept", 1) from error
    if outcomes and recommender.exposures is not None:
        try:
            recommender.follow(outcomes)
        except OSError as error:
            why = error.strerror or error
            text = f"the disk does not take the exposure log: {why}; the events were kept, send again"
            raise Refused(503, text, 1) from error
    return {"new": kept.new, "known": kept.known, "unknown": [printable(key) for key in kept.unknown]}


def _outcomes(recommender: Recommender, body: EventsRequest) -> dict[str, list[Any]]:
    """What the exposure log keeps of these events, nothing where they name no answer, else InputError."""
    if body.request is None:
        if body.slots:
            raise InputError("the events have slots and no request", fix="name the answer that showed the items")
        return {}
    if recommender.exposures is None:
        raise InputError(f"the events name the answer {body.request!r}, but no exposure log is open",
                         fix="serve with --exposures FOLDER, or leave request and slots out")  # fmt: skip
    if len(body.slots) != len(body.items):
        raise InputError(f"{len(body.slots)} slots for {len(body.items)} events", allowed="one each")
    if not body.feedback:
        raise InputError("the events name an answer and have no feedback", fix="send what came of them")
    columns = {name: list(values) for name, values in body.feedback.items()}
    for name, values in columns.items():
        if len(values) != len(body.items):
            raise InputError(
                f"feedback {name!r} has {len(values)} values for {len(body.items)} events", allowed="one each"
            )
    return {"request": [body.request] * len(body.items), "slot": body.slots, **columns}
