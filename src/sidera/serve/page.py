"""GET /: a page to look at what is served. It shows a user's list, sends events, and asks why.

The page talks to the API like any client; nothing here reads the model. Its files lie in ``static/`` and go out under
a policy that lets the browser ask nobody but this server and run no script but these.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request, Response

from sidera import __version__
from sidera.serve.state import Served

KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
NAMES = ("style.css", "page.js", "draw.js", "why.js", "icon.svg")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def router(served: Served) -> APIRouter:
    """Routes of the page."""
    routes, recommender = APIRouter(include_in_schema=False), served.recommender

    @routes.get("/")
    def page() -> Response:
        return _file("page.html")

    @routes.get("/page/config.json")
    def config(request: Request) -> dict[str, Any]:
        """What this server can do: the page hides the rest."""
        catalog, paths = recommender.catalog, request.app.openapi()["paths"]
        return {
            "version": __version__,
            "model": recommender.model_section.get("name", ""),
            "generates": recommender.snapshot.generates,
            "store": recommender.behaviour is not None,
            "columns": list(catalog.schema.columns),
            "positive": catalog.schema.positive or "",
            "items_change": "post" in paths.get("/v1/items", {}),
        }

    @routes.get("/page/{name}")
    def static(name: str) -> Response:
        return _file(name) if name in NAMES else Response(status_code=404)

    return routes


def _file(name: str) -> Response:
    kind = KINDS[name.rpartition(".")[2]]
    return Response(_content(name), media_type=f"{kind}; charset=utf-8", headers=HEADERS)


@cache
def _content(name: str) -> bytes:
    return (files("sidera.serve") / "static" / name).read_bytes()
