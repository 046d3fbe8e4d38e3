"""Routes whose body is read by pydantic at once, without the detours of a framework: the ones that carry the traffic.

    routes = APIRouter(route_class=BodyRoute)

    @routes.post("/v1/recommend", response_model=RecommendResponse)
    async def recommend(request: Request, body: RecommendRequest) -> Any: ...

The signature and ``response_model`` document the route. What the function returns (a dictionary of plain values) is
written as it is. A body that pydantic's reader refuses is read by Python's, which knows half characters and names the
place of an error. A large body is parsed on a thread, one at a time, so that it does not hold up the others.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, get_type_hints

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

LARGE = 2**18  # bytes of a body from which it is parsed on a thread
Model = TypeVar("Model", bound=BaseModel)
_parsing = ThreadPoolExecutor(1, "parsing")


class BodyRoute(APIRoute):
    """``async def endpoint(request, body: Model) -> plain values or Response``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint, model = self.endpoint, get_type_hints(self.endpoint)["body"]

        async def handle(request: Request) -> Response:
            content = await request.body()
            if len(content) > LARGE:
                body = await asyncio.get_running_loop().run_in_executor(_parsing, parsed, model, content)
            else:
                body = parsed(model, content)
            answer = await endpoint(request, body)
            if isinstance(answer, Response):
                return answer
            return Response(to_json(answer), media_type="application/json")

        return handle


def parsed(model: type[Model], content: bytes) -> Model:
    """RequestValidationError says what is wrong, as it does for every other route."""
    try:
        return model.model_validate_json(content)
    except ValidationError as refusal:
        if refusal.errors(include_url=False)[0]["type"] != "json_invalid":
            raise RequestValidationError(refusal.errors(include_url=False)) from None
    try:
        value = json.loads(content)
    except RecursionError:
        raise _no_json("lists or objects inside one another too deep", 0) from None
    except json.JSONDecodeError as error:
        raise _no_json(error.msg, error.pos) from None
    except UnicodeDecodeError as error:
        raise _no_json("it is no UTF-8", error.start) from None
    except ValueError:
        raise _no_json("a number of thousands of digits", 0) from None
    try:
        return model.model_validate(value)
    except ValidationError as refusal:
        raise RequestValidationError(refusal.errors(include_url=False)) from None


def _no_json(why: str, where: int) -> RequestValidationError:
    return RequestValidationError([{"type": "json_invalid", "loc": ("body", where), "msg": why, "ctx": {"error": why}}])
