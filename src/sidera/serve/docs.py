"""GET /docs: every route with its fields, and a form to try it; made from openapi.json, without any outside request."""

from __future__ import annotations

from importlib import resources

from fastapi import APIRouter, Response

from sidera.serve.state import Served


def router(served: Served) -> APIRouter:
    """The page about the API."""
    routes = APIRouter()
    page = resources.files("sidera.serve").joinpath("templates/docs.html").read_bytes()

    @routes.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(page, media_type="text/html")

    return routes
