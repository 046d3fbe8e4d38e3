"""GET /healthz: up, and with what."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter

from sidera import __version__
from sidera.serve.state import Served


def router(served: Served) -> APIRouter:
    """Routes for those who watch the process."""
    routes, recommender = APIRouter(), served.recommender

    @routes.get("/healthz")
    def healthz() -> dict[str, Any]:
        """Up, and with what."""
        catalog = recommender.catalog
        return {
            "status": "ok",
            "version": __version__,
            "model": recommender.model_section["name"],
            "policy_version": recommender.version,
            "items": int((~catalog.removed).sum()),
            "codebook_id": catalog.codebook_id,
            "items_version": catalog.items_version,
            "users": None if recommender.behaviour is None else recommender.behaviour.store.num_users,
            "exposures": None if recommender.exposures is None else {"problem": recommender.exposures.problem},
            "uptime_seconds": round(time.time() - served.started, 1),
        }

    return routes
