"""Whatever is wrong with a request is answered by one line: ``{"detail": "what; allowed: ...; fix: ..."}``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, get_args

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from sidera.config import closest
from sidera.core import InputError
from sidera.engine.scheduler import Left, Overloaded

# how pydantic names the kinds of a value that may be of several, behind its place
_KIND = re.compile(r"bool|int|float|str|constrained-\w+|[\w-]+\[.*\]")
_NO_LIMIT = {"string_unicode", "int_parsing_size", "int_parsing", "int_from_float", "float_parsing", "bool_parsing"}
_VALID = "Input should be a valid "


class Problem(BaseModel):
    """What is wrong, in one line."""

    detail: str


TEXTS = {
    401: "no key, or one that is not known or has expired",
    403: "the key has not the scope that this needs",
    413: "the body is too large",
    422: "the request cannot be used",
    429: "the key is used too often; Retry-After says when",
    503: "more than can be answered in time, or the disk takes nothing; Retry-After says when",
}
ADMIN_TEXTS = {400: "the body is no JSON", 409: "it contradicts what is served; nothing was changed"}


def responses_of(scope: str | None) -> dict[int | str, dict[str, Any]]:
    """What the routes of a scope may answer beside 200, for the description of the API."""
    texts = {} if scope is None else TEXTS | ADMIN_TEXTS if scope == "admin" else TEXTS
    return {status: {"model": Problem, "description": text} for status, text in texts.items()}


def problem(status: int, text: str) -> JSONResponse:
    return JSONResponse({"detail": text}, status_code=status)


class Refused(HTTPException):
    """Not let in, or not answered now: status, text, and seconds until it is worth another try."""

    def __init__(self, status: int, text: str, retry_after: float = 0.0) -> None:
        headers = {"retry-after": str(max(1, math.ceil(retry_after)))} if retry_after else {}
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        super().__init__(status, text, headers)

    @property
    def response(self) -> Response:
        return JSONResponse({"detail": self.detail}, self.status_code, self.headers)


def printable(key: str) -> str:
    """An id that a client sent, as UTF-8 can hold it: half a character is written as its escape."""
    return key.encode("utf-8", "backslashreplace").decode()


def add_error_handlers(app: FastAPI) -> None:
    """InputError from any route, and a body that does not fit its schema, are 422; a disk that takes nothing is 503."""

    @app.exception_handler(InputError)
    async def bad_input(request: Request, error: InputError) -> Response:
        return problem(422, str(error))

    @app.exception_handler(Overloaded)
    async def overloaded(request: Request, error: Overloaded) -> Response:
        if isinstance(error, Left):  # nobody reads it; the status is for the counts
            return Response(status_code=499)
        return Refused(503, error.problem, error.retry_after).response

    @app.exception_handler(OSError)
    async def no_disk(request: Request, error: OSError) -> Response:
        return problem(503, f"the disk does not take what must be written: {error.strerror or error}; send again")

    @app.exception_handler(RequestValidationError)
    async def bad_body(request: Request, error: RequestValidationError) -> Response:
        body = getattr(request.scope.get("route"), "body_field", None)
        return problem(422, one_line(error.errors(), None if body is None else body.field_info.annotation))


def one_line(errors: Sequence[Any], body: Any) -> str:
    """The first thing that is wrong with a body of this type: where, what, and the value when it is short."""
    first = _most_telling(errors)
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    if first["type"] == "extra_forbidden":
        fields = _fields_at(body, first["loc"][:-1])
        return f"{where} is no field of the request{closest(where, fields)}; allowed: {', '.join(fields)}"
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}"
    value = repr(first.get("input"))
    return f"{where}: {first['msg']}" + (f" (got {value})" if len(value) <= 80 else "")


def _most_telling(errors: Sequence[Any]) -> dict[str, Any]:
    """Of a value that may be of several kinds, pydantic says what is wrong with it as each of them. A limit that it
    breaks says most; else no kind fits, and the kinds are named together."""
    first = dict(errors[0])
    place, kind = list(first["loc"][:-1]), first["loc"][-1:]
    if not kind or not isinstance(kind[0], str) or not _KIND.fullmatch(kind[0]):
        return first
    same = [one for one in errors if list(one["loc"][: len(place)]) == place]
    limits = [one for one in same if not one["type"].endswith("_type") and one["type"] not in _NO_LIMIT]
    if limits:
        loc = [part for part in limits[-1]["loc"] if not (isinstance(part, str) and _KIND.fullmatch(part))]
        return {**limits[-1], "loc": loc}
    kinds = [one["msg"].removeprefix(_VALID) for one in same if len(one["loc"]) == len(place) + 1]
    return {**first, "loc": place, "msg": f"{_VALID}{', '.join(kinds[:-1])} or {kinds[-1]}" if kinds[1:] else kinds[0]}


def _fields_at(body: Any, loc: tuple[Any, ...]) -> dict[str, Any]:
    """Fields of the model that lies at ``loc`` inside a body of the type ``body``."""
    for part in loc:
        model = _model_of(body)
        if model is not None and part in model.model_fields:
            body = model.model_fields[part].annotation
    model = _model_of(body)
    return {} if model is None else dict(model.model_fields)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """``Model`` in ``Model``, ``list[Model]``, ``Model | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_of(part)) is not None), None)
