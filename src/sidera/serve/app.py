"""HTTP over one Recommender: POST /v1/recommend, POST /v1/events, GET /healthz, and the OpenAPI page at /docs.

``sidera serve RUN --port 8000 --store STORE`` runs it. Answers come from the same call that evaluation measures.
Request sizes are bounded here, at the door; what a request names that does not exist is reported in the answer, not
guessed at.

With a behaviour store, events are sent as they happen and a request names its user only. An answer to ``/v1/events``
means that the events are on the disk; who got none sends them again, and what was kept already is not kept twice.
With an exposure log, answers are named, and events that name the answer they came of say what followed on it.
"""

from __future__ import annotations

import socket
import time
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sidera import __version__
from sidera.config import closest
from sidera.core import InputError, Recommendation
from sidera.core import Request as Question
from sidera.engine.recommender import Recommender

MAX_BODY_BYTES = 32 * 2**20  # a history of a million keys still fits
MAX_K = 1000
MAX_EVENTS = 100_000  # of one call
LARGEST = 3.4e38  # of a number that is kept in 32 bits


def whole_characters(text: str) -> str:
    """A client that cuts a text in the middle of an emoji sends half a character, which no file can hold."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"half a character (a lone surrogate) in {text[:40]!r}")
    return text


Text = Annotated[str, AfterValidator(whole_characters)]  # what is kept; what is only looked up may be anything
Second = Annotated[int, Field(ge=0, le=2**40)]  # unix time; the year 36,800 is a mistake
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
Value = bool | int | Number | Text | list[bool | int | Number | Text] | None  # of a feature, or a number of feedback


class RecommendRequest(BaseModel):
    """One history, or a user whose history is in the behaviour store. Item ids are those of the imported log."""

    model_config = ConfigDict(extra="forbid")
    history: list[str] | None = Field(
        None, description="item ids, oldest first; the newest `max_history` of them are read"
    )
    user: Text | None = Field(
        None,
        description="instead of a history: a user whose events were sent to /v1/events; those before `as_of` are read,"
        " or all",
    )
    k: int = Field(10, ge=1, le=MAX_K, description="items wanted; at most as many as the catalogue holds come back")
    filter_seen: bool = Field(False, description="true: items of the history are not answered again")
    exclude: list[str] = Field(
        default_factory=list,
        description="item ids that must not be answered; those that the catalogue does not hold never are",
    )
    feedback: dict[str, list[Value]] = Field(
        default_factory=dict,
        description="what came of each event of the history, a column each (click, watch_time, ...), and features of"
        " the events, null where unknown; all that the model was trained with, or none: the events then count as chosen",
    )
    times: list[Second] | None = Field(None, description="unix seconds of each event of the history")
    profile: dict[str, Value] = Field(
        default_factory=dict,
        description="features of the user and of this request (region, device, ...), null where unknown",
    )
    as_of: Second | None = Field(None, description="unix seconds of the request; else the moment of the newest event")
    unknown: Annotated[str, Field(pattern="^(report|refuse)$")] = Field(
        "report", description="unknown ids in the history: 'report' names them in the answer, 'refuse' answers 422"
    )


class Answer(BaseModel):
    """One recommended item."""

    item: str
    score: float = Field(description="log-probability (generators) or the model's score; comparable inside one answer")
    title: str | None = None


class RecommendResponse(BaseModel):
    """Most likely first; no item twice, none that the catalogue does not hold."""

    items: list[Answer]
    cold_start: bool = Field(description="true: nothing in the history is known, the most popular items are answered")
    unknown: list[str] = Field(description="ids of the history that the catalogue does not hold")
    unread: list[str] = Field(description="ids of the history that are newer than the model, which has not read them")
    unseen: list[str] = Field(description='"feature=value" that training never saw, read as unknown')
    unknown_user: bool = Field(description="true: the store has no event of this user (before `as_of`)")
    policy_version: str = Field(description="of the weights that answered; changes when others are loaded")
    reranker_version: str | None = Field(description="of the network that ordered the items; null: none did")
    codebook_id: str = Field(description="of the catalogue that answered: what its codes mean")
    items_version: int = Field(description="of the catalogue that answered: counts items coming and going")
    request: str | None = Field(
        description="names this answer in the exposure log; send it, with slots, beside the events that it led to"
    )
    milliseconds: float = Field(description="wall time inside the engine")


class EventsRequest(BaseModel):
    """Events of one user, a column each."""

    model_config = ConfigDict(extra="forbid")
    user: Text = Field(min_length=1, description="key of the user")
    items: list[str] = Field(max_length=MAX_EVENTS, description="item id of each event")
    times: list[Second] = Field(max_length=MAX_EVENTS, description="unix seconds of each event, not in the future")
    feedback: dict[str, list[Number]] = Field(
        default_factory=dict,
        description="what came of each event, a column each (click 0 or 1, watch_time in seconds, ...); all that the"
        " model was trained with, or none: the events then count as chosen",
    )
    unknown: Annotated[str, Field(pattern="^(report|refuse)$")] = Field(
        "report",
        description="events of items that the catalogue does not hold: 'report' keeps them and names the items in the"
        " answer, 'refuse' keeps nothing and answers 422",
    )
    request: Text | None = Field(
        None, min_length=1, description="the answer that showed these items: their feedback is logged beside it"
    )
    slots: list[Annotated[int, Field(ge=0, lt=MAX_K)]] = Field(
        default_factory=list, description="with `request`: the place of each item in that answer, from 0"
    )


class EventsResponse(BaseModel):
    """The events are on the disk."""

    new: int = Field(description="events kept by this call")
    known: int = Field(description="events of an item and second that the store held already, or that came twice")
    unknown: list[str] = Field(description="items that the catalogue does not hold: their events are read once it does")


def create_app(recommender: Recommender) -> FastAPI:
    """The ASGI application around an opened recommender, and its behaviour store where it has one."""
    app = FastAPI(
        title="sidera", version=__version__, description="Generative recommendation: histories in, items out."
    )
    started = time.time()

    app.add_middleware(BodyLimit)

    @app.exception_handler(InputError)
    async def bad_input(request: Request, error: InputError) -> Response:
        return _error(422, str(error))

    @app.exception_handler(RequestValidationError)
    async def bad_body(request: Request, error: RequestValidationError) -> Response:
        body: type[BaseModel] = EventsRequest if request.url.path.endswith("/events") else RecommendRequest
        return _error(422, _one_line(error, body))

    @app.post("/v1/recommend", response_model=RecommendResponse)
    def recommend(body: RecommendRequest) -> RecommendResponse:
        """What comes next after this history?"""
        begun = time.perf_counter()
        if body.history is None and body.user is None:
            raise InputError("the request has neither history nor user", allowed="one of them")
        question = Question(
            tuple(body.history or ()), k=body.k, filter_seen=body.filter_seen, exclude=tuple(body.exclude),
            feedback=body.feedback, times=body.times, profile=body.profile, as_of=body.as_of, user=body.user,
        )  # fmt: skip
        answer = recommender.recommend([question], unknown=body.unknown)[0]
        return _response(answer, 1000 * (time.perf_counter() - begun))

    @app.post("/v1/events", response_model=EventsResponse)
    def events(body: EventsRequest) -> EventsResponse | Response:
        """Something happened: keep it. Safe to send again."""
        if recommender.behaviour is None:
            raise InputError("no behaviour store is open", fix="serve with --store FOLDER")
        outcomes = _outcomes(recommender, body)
        try:
            kept = recommender.behaviour.keep(
                body.user, body.items, body.times, body.feedback, refuse_unknown=body.unknown == "refuse"
            )
        except OSError as error:
            return _error(503, f"the disk does not take the events: {error.strerror or error}; nothing was kept")
        if outcomes and recommender.exposures is not None:
            try:
                recommender.exposures.follow(outcomes)
            except OSError as error:
                why = error.strerror or error
                return _error(503, f"the disk does not take the exposure log: {why}; the events were kept, send again")
        return EventsResponse(new=kept.new, known=kept.known, unknown=[_sayable(key) for key in kept.unknown])

    @app.get("/healthz")
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
            "exposures": None
            if recommender.exposures is None
            else {
                "waiting": recommender.exposures.num_waiting,
                "problem": recommender.exposures.problem,
            },
            "uptime_seconds": round(time.time() - started, 1),
        }

    return app


class BodyLimit:
    """Refuses large bodies while they arrive: a length need not be announced, nor be true."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        small = len(announced) <= len(str(MAX_BODY_BYTES)) and announced.isdigit() and int(announced) <= MAX_BODY_BYTES
        body, more = bytearray(), small or not announced.isdigit()
        too_large = not more
        while more:
            message = await receive()
            body += message.get("body", b"")
            too_large = len(body) > MAX_BODY_BYTES
            more = message.get("more_body", False) and not too_large
        if too_large:
            problem = f"the body is larger than {MAX_BODY_BYTES:,} bytes; fix: send the newest events only"
            await _error(413, problem)(scope, receive, send)
            return
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)


def serve(recommender: Recommender, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Run until interrupted; InputError when the port is taken."""
    import uvicorn

    check_port(host, port)
    uvicorn.run(create_app(recommender), host=host, port=port, log_level="warning")


def check_port(host: str, port: int) -> None:
    """InputError when nobody can listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OverflowError:
            raise InputError(f"--port {port} is no port", allowed="0 to 65535") from None
        except OSError as error:
            raise InputError(
                f"cannot listen on {host}:{port}: {error.strerror}", fix="choose a free port with --port"
            ) from None


def _response(answer: Recommendation, milliseconds: float) -> RecommendResponse:
    return RecommendResponse(
        items=[
            Answer(item=key, score=score, title=title)
            for key, score, title in zip(answer.item_keys, answer.scores, answer.titles, strict=True)
        ],
        cold_start=answer.cold_start,
        unknown=[_sayable(key) for key in answer.unknown],
        unread=list(answer.unread),
        unseen=list(answer.unseen),
        unknown_user=answer.unknown_user,
        policy_version=answer.policy_version,
        reranker_version=answer.reranker_version or None,
        codebook_id=answer.codebook_id,
        items_version=answer.items_version,
        request=answer.request or None,
        milliseconds=round(milliseconds, 3),
    )


def _sayable(key: str) -> str:
    """An id that a client sent, as UTF-8 can hold it: half a character is written as its escape."""
    return key.encode("utf-8", "backslashreplace").decode()


def _outcomes(recommender: Recommender, body: EventsRequest) -> dict[str, list[Any]]:
    """What the exposure log is told of these events, nothing where they name no answer, else InputError."""
    if body.request is None:
        if body.slots:
            raise InputError("the events have slots and no request", fix="name the answer that showed the items")
        return {}
    if recommender.exposures is None:
        raise InputError(f"the events name the answer {body.request!r}, but no exposure log is open",
                         fix="serve with --exposures FOLDER, or leave request and slots out")  # fmt: skip
    if len(body.slots) != len(body.items):
        raise InputError(f"{len(body.slots)} slots for {len(body.items)} events", allowed="one each")
    if not body.feedback:
        raise InputError("the events name an answer and have no feedback", fix="send what came of them")
    columns = {name: list(values) for name, values in body.feedback.items()}
    for name, values in columns.items():
        if len(values) != len(body.items):
            raise InputError(
                f"feedback {name!r} has {len(values)} values for {len(body.items)} events", allowed="one each"
            )
    return {"request": [body.request] * len(body.items), "slot": body.slots, **columns}


def _one_line(error: RequestValidationError, body: type[BaseModel]) -> str:
    """The first thing that is wrong with a body: where, what, and the value when it is short."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    if first["type"] == "extra_forbidden":
        known = ", ".join(body.model_fields)
        return f"{where} is no field of the request{closest(where, body.model_fields)}; allowed: {known}"
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}"
    value = repr(first.get("input"))
    return f"{where}: {first['msg']}" + (f" (got {value})" if len(value) <= 80 else "")


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"detail": message}, status_code=status)
