"""HTTP over one Recommender: a router file for each subject, and the OpenAPI page at /docs.

``sidera serve RUN --port 8000 --store STORE`` runs it (``server.py``). Answers come from the same call that evaluation
measures. Request sizes are bounded at the door (``limits.py``, ``schemas.py``); what a request names that does not
exist is reported in the answer, not guessed at.

With a behaviour store, events are sent as they happen and a request names its user only. An answer to ``/v1/events``
means that the events are on the disk; who got none sends them again, and what was kept already is not kept twice.
With an exposure log, answers are named, and events that name the answer they came of say what followed on it.

A new subject is a file with ``router(served) -> APIRouter``, and a line in ``ROUTERS``.
"""

from __future__ import annotations

from fastapi import FastAPI

from sidera import __version__
from sidera.engine.recommender import Recommender
from sidera.serve import events, health, items, recommending, versions
from sidera.serve.errors import add_error_handlers
from sidera.serve.limits import BodyLimit
from sidera.serve.state import Served

ROUTERS = (
    recommending.router,
    events.router,
    items.router,
    versions.router,
    health.router,
)


def create_app(recommender: Recommender) -> FastAPI:
    """The ASGI application around an opened recommender, and its behaviour store where it has one."""
    app = FastAPI(
        title="sidera", version=__version__, description="Generative recommendation: histories in, items out."
    )
    app.add_middleware(BodyLimit)
    add_error_handlers(app)
    served = Served(recommender)
    for router in ROUTERS:
        app.include_router(router(served))
    return app
