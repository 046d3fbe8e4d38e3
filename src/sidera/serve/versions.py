"""/v1/admin: other versions of the model, a version for some users, and the events as a data folder."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from sidera.core import InputError
from sidera.engine.live import LiveRun
from sidera.serve.errors import problem
from sidera.serve.state import Served

Version = Annotated[int, Field(ge=0, le=2**31)]


class SwapRequest(BaseModel):
    """Which version answers from now on."""

    model_config = ConfigDict(extra="forbid")
    version: Version | None = Field(None, description="of the run that is served; null: the one that `current` names")


class TrialRequest(BaseModel):
    """A second version, for some users."""

    model_config = ConfigDict(extra="forbid")
    version: Version
    share: float = Field(gt=0, le=1, description="of the users, chosen by a hash of their key")
    side: Literal["canary", "shadow"] = Field(
        "canary", description="canary: it answers these users; shadow: its answers are compared, and nobody sees them"
    )


class ExportRequest(BaseModel):
    """Which events to write."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$", description="folder below `exports` of the run")
    since: int | None = Field(None, ge=0, le=2**40, description="only events from this unix second on")
    until: int | None = Field(None, ge=0, le=2**40, description="only events before this unix second")


def router(served: Served) -> APIRouter:
    """Routes for who runs the service."""
    routes, recommender = APIRouter(prefix="/v1/admin"), served.recommender

    @routes.get("/versions")
    def versions() -> dict[str, Any]:
        """Which versions there are, and which answer whom."""
        return LiveRun.of(recommender).status()

    @routes.post("/swap", response_model=None)
    def swap(body: SwapRequest) -> dict[str, Any] | Response:
        """Load a version, check it, and let it answer. The old one answers on where anything is wrong (409)."""
        try:
            return LiveRun.of(recommender).swap(body.version)
        except InputError as error:
            return problem(409, str(error))
        except OSError as error:
            return problem(503, f"the version cannot be read: {error.strerror or error}; the old one answers on")

    @routes.post("/trial", response_model=None)
    def trial(body: TrialRequest) -> dict[str, Any] | Response:
        """Let a version answer some of the users, or be compared behind their answers."""
        live = LiveRun.of(recommender)
        try:
            live.try_out(body.version, body.share, body.side)
        except InputError as error:
            return problem(409, str(error))
        return live.status()

    @routes.delete("/trial")
    def stop() -> dict[str, Any]:
        """Every user is answered by the version that answers."""
        live = LiveRun.of(recommender)
        live.stop_trial()
        return live.status()

    @routes.post("/export", response_model=None)
    def export(body: ExportRequest) -> dict[str, Any] | Response:
        """Write the store's events and the exposures as a data folder, for `sidera import --append`."""
        begun = time.perf_counter()
        try:
            folder, done = LiveRun.of(recommender).export(body.name, body.since, body.until)
        except OSError as error:
            return problem(503, f"the disk does not take the export: {error.strerror or error}")
        return {"folder": str(folder), **done, "seconds": round(time.perf_counter() - begun, 3)}

    return routes
