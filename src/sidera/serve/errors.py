"""Whatever is wrong with a request is answered by one line: ``{"detail": "what; allowed: ...; fix: ..."}``."""

from __future__ import annotations

from typing import Any, get_args

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from sidera.config import closest
from sidera.core import InputError


def problem(status: int, text: str) -> JSONResponse:
    return JSONResponse({"detail": text}, status_code=status)


def printable(key: str) -> str:
    """An id that a client sent, as UTF-8 can hold it: half a character is written as its escape."""
    return key.encode("utf-8", "backslashreplace").decode()


def add_error_handlers(app: FastAPI) -> None:
    """InputError from any route, and a body that does not fit its schema, are 422; a disk that takes nothing is 503."""

    @app.exception_handler(InputError)
    async def bad_input(request: Request, error: InputError) -> Response:
        return problem(422, str(error))

    @app.exception_handler(OSError)
    async def no_disk(request: Request, error: OSError) -> Response:
        return problem(503, f"the disk does not take what must be written: {error.strerror or error}; send again")

    @app.exception_handler(RequestValidationError)
    async def bad_body(request: Request, error: RequestValidationError) -> Response:
        body = getattr(request.scope.get("route"), "body_field", None)
        return problem(422, one_line(error.errors()[0], None if body is None else body.field_info.annotation))


def one_line(first: Any, body: Any) -> str:
    """The first thing that is wrong with a body of this type: where, what, and the value when it is short."""
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    if first["type"] == "extra_forbidden":
        fields = _fields_at(body, first["loc"][:-1])
        return f"{where} is no field of the request{closest(where, fields)}; allowed: {', '.join(fields)}"
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}"
    value = repr(first.get("input"))
    return f"{where}: {first['msg']}" + (f" (got {value})" if len(value) <= 80 else "")


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
