"""HTTP over one Recommender: a router file for each subject, and the OpenAPI page at /docs.

``sidera serve RUN --port 8000 --store STORE`` runs it (``server.py``). Answers come from the same call that evaluation
measures. Keys, sizes and deadlines are checked at the door (``door.py``); what a request names that does not
exist is reported in the answer, not guessed at.

With a behaviour store, events are sent as they happen and a request names its user only. An answer to ``/v1/events``
means that the events are on the disk; who got none sends them again, and what was kept already is not kept twice.
With an exposure log, answers are named, and events that name the answer they came of say what followed on it.

A new subject is a file with ``router(served) -> APIRouter``, and a line in ``ROUTERS`` that says which scope of a key
its paths need (None: they need no key).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TextIO

from fastapi import APIRouter, FastAPI
from starlette.routing import Route

from sidera import __version__
from sidera.engine.recommender import Recommender
from sidera.serve import docs, events, explaining, health, history, items, page, questions, recommending, versions
from sidera.serve.config import HttpConfig
from sidera.serve.door import Door
from sidera.serve.errors import add_error_handlers, responses_of
from sidera.serve.keys import KeyFile
from sidera.serve.state import Served

ROUTERS: tuple[tuple[Callable[[Served], APIRouter], str | None], ...] = (
    (recommending.router, "read"),
    (questions.router, "read"),
    (explaining.router, "read"),  # of a stored user admin too
    (explaining.searching, "read"),
    (events.router, "write"),
    (items.router, "admin"),
    (history.router, "admin"),
    (versions.router, "admin"),
    (health.router, None),
    (page.router, None),
    (docs.router, None),
)


def create_app(
    recommender: Recommender,
    config: HttpConfig | None = None,
    keys: KeyFile | None = None,
    served: Served | None = None,
    log: TextIO | None = None,
) -> FastAPI:
    """The ASGI application around an opened recommender, and its behaviour store where it has one.

    Without ``keys`` everybody may do everything. The recommender stays open when the application ends.
    """
    served = served or Served(recommender, config or HttpConfig(), keys)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        served.reopen()
        yield
        await asyncio.to_thread(served.close)

    app = FastAPI(
        title="sidera", version=__version__, description="Generative recommendation: histories in, items out.",
        lifespan=lifespan, docs_url=None, redoc_url=None,
    )  # fmt: skip
    add_error_handlers(app)
    scopes = Scopes()
    for make, scope in ROUTERS:
        routes = make(served)
        scopes.add(routes, scope)
        app.include_router(routes, responses=responses_of(scope))
    checks = dict.fromkeys(("/v1/recommend", "/v1/recommend/batch"), recommending.admission(served))
    app.add_middleware(Door, served=served, scopes=scopes, admit=checks, log=log)
    return app


class Scopes:
    """Path -> the scope that it needs. A path that no router has needs none: there is nothing behind it."""

    def __init__(self) -> None:
        self._plain: dict[str, str | None] = {}
        self._patterns: list[tuple[re.Pattern[str], str | None]] = []

    def add(self, routes: APIRouter, scope: str | None) -> None:
        for route in routes.routes:
            if isinstance(route, Route):
                self._plain[route.path] = scope
                if route.param_convertors:
                    self._patterns.append((route.path_regex, scope))

    def __call__(self, path: str) -> str | None:
        if path in self._plain:
            return self._plain[path]
        return next((scope for pattern, scope in self._patterns if pattern.match(path)), None)
