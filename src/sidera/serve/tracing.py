"""Traces for OpenTelemetry: a request, its wait in the queue, its batch, and the steps of the batch.

    pip install 'sidera[otel]'
    OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 sidera serve runs/mine --otel

Spans are made when a request was answered, of seconds that were noted on the way, and are sent by a thread of the SDK.
A caller's ``traceparent`` is continued. The SDK reads its usual variables (endpoint, sampler, resource). No span names
a user, an item or a key. Requests that are refused before they are read are counted in ``/metrics`` and have no span.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from starlette.types import Scope

from sidera import __version__
from sidera.core import InputError
from sidera.engine.scheduler import Ticket
from sidera.serve.visit import Visit

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

CARRIED = (b"traceparent", b"tracestate")


def open_tracer() -> Tracer:
    """Sends by OTLP over HTTP. InputError without the packages."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise InputError("traces need the packages of OpenTelemetry", fix="pip install 'sidera[otel]'") from None
    provider = TracerProvider(resource=Resource.create({"service.name": "sidera", "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider)


class Tracer:
    """Makes spans of visits."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider, self._api = provider, trace
        self._tracer = provider.get_tracer("sidera", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def record(self, scope: Scope, visit: Visit, path: str, status: int) -> None:
        """A request that is over: answered, refused or left."""
        offset, api = time.time() - time.monotonic(), self._api
        carried = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in CARRIED}
        attributes = {"http.request.method": scope["method"], "http.route": path, "http.response.status_code": status}

        def nanoseconds(moment: float) -> int:
            return int((moment + offset) * 1e9)

        def child(name: str, begin: float, end: float, parent: Any, **more: Any) -> Any:
            context = api.set_span_in_context(parent)
            span = self._tracer.start_span(name, context, start_time=nanoseconds(begin), attributes=more)
            span.end(nanoseconds(end))
            return span

        root = self._tracer.start_span(
            f"{scope['method']} {path}", self._propagator.extract(carried), api.SpanKind.SERVER, attributes,
            start_time=nanoseconds(visit.begun),
        )  # fmt: skip
        if root.is_recording():
            for ticket in visit.tickets:
                self._of_ticket(ticket, root, child)
            for span in visit.spans:
                child(*span, root)
            if status >= 500:
                root.set_status(api.Status(api.StatusCode.ERROR))
        root.end(nanoseconds(time.monotonic()))

    def _of_ticket(self, ticket: Ticket, root: Any, child: Any) -> None:
        if not ticket.taken:  # refused, or the client left
            return
        child("queue", ticket.submitted, ticket.taken, root)
        batch = child("batch", ticket.taken, ticket.done, root, **{"batch.requests": ticket.together})
        for span in ticket.spans or ():
            child(*span, batch)

    def close(self) -> None:
        """What was recorded is sent."""
        self._provider.shutdown()
