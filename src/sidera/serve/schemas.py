"""Bodies of requests and answers: types, ranges, and the description of every field that /docs shows.

Sizes are bounded here. What a body names and the catalogue does not hold is reported in the answer, not refused.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_K = 1000
MAX_EVENTS = 100_000  # of one call
MAX_BATCH = 256  # requests of one call
MAX_CONDITIONS = 32  # of a filter
LARGEST = 3.4e38  # of a number that is kept in 32 bits


def whole_characters(text: str) -> str:
    """A client that cuts a text in the middle of an emoji sends half a character, which no file can hold."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"half a character (a lone surrogate) in {text[:40]!r}")
    return text


Text = Annotated[str, AfterValidator(whole_characters)]  # what is kept; what is only looked up may be anything
Second = Annotated[int, Field(ge=0, le=2**40)]  # unix time; the year 36,800 is a mistake
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # what is larger is a Number, or none
Entry = bool | Whole | Number | Text
Value = Entry | list[Entry] | None  # of a feature, or a number of feedback


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
    filter_seen: bool | None = Field(
        None,
        description="true: items of the history are not answered again; null: they are not where users of the training"
        " log hardly ever came back to one; `filtered_seen` of the answer says which",
    )
    exclude: list[str] = Field(
        default_factory=list,
        description="item ids that must not be answered; those that the catalogue does not hold never are",
    )
    filter: dict[str, Any] | None = Field(
        None,
        max_length=MAX_CONDITIONS,
        examples=[{"brand": ["acme", "globex"], "item": {"not": "cup-3"}, "popularity": {"min": 5}}],
        description="which items may be answered: column -> a value, a list of values, {not: ...} or {min: ..., max:"
        " ...}; columns are those of the items, `item` (the id) and `popularity` (training events); all must hold",
    )
    feedback: dict[str, list[Value]] = Field(
        default_factory=dict,
        description="what came of each event of the history, a column each (click, watch_time, ...), and features of"
        " the events, null where unknown; all that the model was trained with, or none: events count as chosen",
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
    unseen: list[str] = Field(description='"feature=value" that training never saw: read as unknown')
    filtered_seen: bool = Field(description="true: items of the history were left out")
    unknown_user: bool = Field(description="true: the store has no event of this user (before `as_of`)")
    policy_version: str = Field(description="of the weights that answered; changes when others are loaded")
    shadow_version: str | None = Field(
        None, description="of the weights that this answer is compared with, which nobody sees; null: none"
    )
    expert_version: str | None = Field(
        description="of the counts that joined the search, with the number of events that they took in since they were"
        " made, such as 1a2b+57; null: none"
    )
    reranker_version: str | None = Field(description="of the network that ordered the items; null: none did")
    codebook_id: str = Field(description="of the catalogue that answered: what its codes mean")
    items_version: int = Field(description="of the catalogue that answered: counts items coming and going")
    eligible: int | None = Field(
        description="items that pass the request's filter; 0: its clauses contradict, or name nothing there is"
    )
    request: str | None = Field(
        description="names this answer in the exposure log; send it, with slots, beside the events that it led to"
    )
    beam: int | None = Field(
        description="width of the search; below the recipe's where the server may narrow it under load; null: no search"
    )
    milliseconds: float = Field(description="wall time from the request to the answer, waiting included")


class BatchRequest(BaseModel):
    """Many requests in one call. Each is answered as if it came alone."""

    model_config = ConfigDict(extra="forbid")
    requests: list[RecommendRequest] = Field(min_length=1, max_length=MAX_BATCH, description="each as /v1/recommend")


class BatchAnswer(BaseModel):
    """An answer, or why there is none."""

    answer: RecommendResponse | None
    problem: str | None


class BatchResponse(BaseModel):
    """In the order of the requests."""

    answers: list[BatchAnswer]


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
