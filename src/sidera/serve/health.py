"""GET /healthz (up, and with what), /readyz (may be sent requests), /metrics (Prometheus): they wait for no engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from sidera import __version__
from sidera.engine.expert import Expert
from sidera.engine.following import FollowedExpert
from sidera.engine.recommender import Recommender
from sidera.serve.errors import Problem, problem
from sidera.serve.metrics import gauge
from sidera.serve.state import Served


def router(served: Served) -> APIRouter:
    """Routes for those who watch the process."""
    routes, recommender = APIRouter(), served.recommender

    @routes.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Up, and with what."""
        catalog, index = recommender.catalog, recommender.snapshot.index
        return {
            "status": "ok",
            "version": __version__,
            "model": recommender.model_section["name"],
            "policy_version": recommender.version,
            "items": int((~catalog.removed).sum()),
            "codebook_id": catalog.codebook_id,
            "items_version": catalog.items_version,
            "index": None if index is None else {"kind": index.config.kind, "recall@10": round(index.recall, 4)},
            "expert": _expert(recommender),
            "users": None if recommender.behaviour is None else recommender.behaviour.store.num_users,
            "exposures": None if recommender.exposures is None else {"problem": recommender.exposures.problem},
            "uptime_seconds": round(time.time() - served.metrics.started, 1),
        }

    @routes.get("/readyz", responses={503: {"model": Problem, "description": "it is being stopped"}})
    async def readyz() -> Any:
        """Whether new requests may be sent here."""
        if served.stopping:
            return problem(503, "the server is being stopped")
        return {"status": "ready"}

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters and gauges, as Prometheus reads them."""
        figures, worker = exposition(served), served.worker
        if worker is not None:
            figures = worker.figures(figures)
        return Response(figures, media_type="text/plain; version=0.0.4")

    return routes


def _expert(recommender: Recommender) -> dict[str, Any] | None:
    """Counts beside a generator, and why they follow the store no more, where they do not."""
    for step in recommender.parts.steps:
        if isinstance(step, FollowedExpert):
            return {"version": step.version, "problem": step.problem}
        if isinstance(step, Expert):
            return {"version": f"{step.version}+0", "problem": ""}
    return None


def exposition(served: Served) -> str:
    """The figures of this process."""
    return "\n".join((*served.metrics.lines(), *_of_the_engine(served))) + "\n"


def _of_the_engine(served: Served) -> Iterator[str]:
    scheduler, counts = served.asker.scheduler, served.asker.scheduler.counts
    yield "# TYPE sidera_engine_requests_total counter"
    for outcome in ("answered", "failed", "refused", "late", "dropped"):
        yield f'sidera_engine_requests_total{{outcome="{outcome}"}} {getattr(counts, outcome)}'
    for name, text, value in (
        ("sidera_engine_batches_total", "batches answered", counts.batches),
        ("sidera_engine_rows_total", "requests times beams of all batches", counts.rows),
        ("sidera_engine_narrowed_total", "batches with less than the recipe's beam", counts.narrowed),
        ("sidera_engine_busy_seconds_total", "time in which a batch ran", counts.busy_seconds),
    ):
        yield from gauge(name, text, value, kind="counter")
    recommender, exposures = served.recommender, served.recommender.exposures
    for name, text, number in (
        ("sidera_engine_waiting", "requests in the queue", scheduler.num_waiting),
        ("sidera_events_waiting", "event calls that wait for the disk", served.num_writing),
        ("sidera_exposures_failing", "1: the last write of the exposure log failed",
         0 if exposures is None or not exposures.problem else 1),
        ("sidera_items_version", "of the catalogue that answers", recommender.catalog.items_version),
        ("sidera_ready", "1: new requests may be sent here", int(not served.stopping)),
    ):  # fmt: skip
        yield from gauge(name, text, number)
    if (programs := recommender.snapshot.compiled) is not None:
        yield "# TYPE sidera_program_calls_total counter"
        for name, number in list(programs.calls.items()):
            yield f'sidera_program_calls_total{{program="{name}"}} {number}'
        yield "# TYPE sidera_stepwise_total counter"
        for why, number in list(programs.reasons.items()):  # asked of a program, and computed step by step
            yield f'sidera_stepwise_total{{why="{why}"}} {number}'
    labels = f'{{version="{recommender.version}",codebook="{recommender.catalog.codebook_id}"}}'
    yield from gauge("sidera_serves", "what answers", 1, labels=labels)
