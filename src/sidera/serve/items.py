"""POST /v1/items: items come, change and go while they are served. GET /v1/items: how much they changed."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from sidera.engine.items_log import Conflict
from sidera.engine.live import LiveRun
from sidera.engine.living import Delta, ItemChange
from sidera.serve.errors import problem
from sidera.serve.schemas import Number, Text
from sidera.serve.state import Served

MAX_ITEMS = 10_000  # of one message
Key = Annotated[Text, Field(min_length=1, max_length=1000)]
Value = Text | Number | bool | list[Text]


class Item(BaseModel):
    """One item that is there from now on, or is described otherwise."""

    model_config = ConfigDict(extra="forbid")
    item: Key
    title: Text | None = Field(None, max_length=10_000, description="null: as it was")
    fields: dict[Text, Value] = Field(
        default_factory=dict, description="columns of the items table that the model reads (creator, brand, tags, ...)"
    )
    vector: list[Number] | None = Field(
        None,
        max_length=65_536,
        description="of a new item, as the catalogue's encoder makes it; else its words or its category place it,"
        " and refused where nothing is said of it (in a catalogue with codes)",
    )


class ItemsRequest(BaseModel):
    """One message: all of it is applied, or nothing."""

    model_config = ConfigDict(extra="forbid")
    items: list[Item] = Field(default_factory=list, max_length=MAX_ITEMS, description="to add, change, or bring back")
    removed: list[Key] = Field(
        default_factory=list, max_length=MAX_ITEMS, description="never answered from now on; unknown ones are reported"
    )
    version: int | None = Field(
        None,
        ge=1,
        le=2**53,
        description="number of the message, rising: the same again changes nothing; null: the next free one",
    )


class ItemsResponse(BaseModel):
    """Answers whose `items_version` is this one or a later one know of the message."""

    version: int
    applied: bool = Field(description="false: this message was applied before")
    items_version: int
    added: int
    changed: int
    restored: int = Field(description="that were removed before, under the codes that they had")
    removed: int
    placed_by: dict[str, str] = Field(
        description="added item -> what gave it its code: vector, words (items that share its rarest), category,"
        " or nothing (it is in the middle of all items: what is said of it is said of no other); empty where items"
        " have no codes"
    )
    absent: list[str] = Field(description="items to be removed that were not there")


def router(served: Served) -> APIRouter:
    """Routes that change the catalogue."""
    routes, recommender = APIRouter(), served.recommender

    @routes.post("/v1/items", response_model=ItemsResponse)
    def change(body: ItemsRequest) -> ItemsResponse | Response:
        """Add, change and remove items. Safe to send again with the same `version`."""
        upserts = tuple(ItemChange(one.item, one.title, one.fields, one.vector) for one in body.items)
        try:
            done = LiveRun.of(recommender).change_items(Delta(upserts, tuple(body.removed), body.version))
        except Conflict as error:
            return problem(409, str(error))
        except OSError as error:
            return problem(503, f"the disk does not take the items: {error.strerror or error}; nothing was changed")
        counts = done.changes.counts()
        return ItemsResponse(
            version=done.version, applied=done.new, items_version=done.items_version, added=counts["added"],
            changed=counts["changed"], restored=counts["restored"], removed=counts["removed"],
            absent=list(done.changes.absent), placed_by=dict(done.placed_by),
        )  # fmt: skip

    @routes.get("/v1/items")
    def churn() -> dict[str, Any]:
        """How the items changed since the training, and in the last day."""
        return LiveRun.of(recommender).churn()

    return routes
