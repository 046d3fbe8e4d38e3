"""Which column is which: roles, the names that they bear in logs of the world, and how a choice is said.

A role's names are tried in the order written here, so of two candidates the earlier one is taken, and the report says
which one was not. Names are compared *squeezed*: lower case, letters and digits alone, without RecBole's kind
(``user_id:token``). Two columns that are the same name squeezed (``user_id`` and ``userId``) are refused.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sidera.core import InputError

USER_NAMES = (
    *("user", "userid", "uid", "useridx", "reviewerid", "customerid", "customer", "visitorid", "visitor", "memberid"),
    *("clientid", "accountid", "profileid", "readerid", "msno", "deviceid", "sessionid", "session", "username"),
)
ITEM_NAMES = (
    *("item", "itemid", "iid", "itemidx", "parentasin", "asin", "movieid", "filmid", "productid", "videoid", "photoid"),
    *("articleid", "newsid", "bookid", "isbn", "songid", "trackid", "artistid", "gameid", "appid", "recipeid"),
    *("businessid", "gmapid", "sku", "adid", "contentid", "aid"),
)
TIME_NAMES = (
    *("time", "timestamp", "ts", "datetime", "date", "eventtime", "eventtimestamp", "unixreviewtime", "unixtime"),
    *("createdat", "createdtime", "timems", "timestampms", "tdat", "clicktime", "viewtime", "sorttimestamp"),
)
EVENT_NAMES = (
    *("event", "eventtype", "eventname", "action", "actiontype", "behavior", "behaviour", "behaviortype"),
    *("behaviourtype", "interaction", "interactiontype", "feedbacktype", "type"),
)
RATING_NAMES = ("rating", "ratings", "stars", "star", "starrating", "score", "overall", "bookrating", "reviewscore")
LOG_ROLES: dict[str, tuple[str, ...]] = {
    "user": USER_NAMES,
    "item": ITEM_NAMES,
    "time": TIME_NAMES,
    "position": ("position",),
    "event": EVENT_NAMES,
    "rating": RATING_NAMES,
}
ITEM_ROLES: dict[str, tuple[str, ...]] = {
    "title": (
        *("title", "name", "producttitle", "productname", "itemname", "itemtitle", "movietitle", "booktitle"),
        *("prodname", "trackname", "headline"),
    ),
    "brand": ("brand", "brandname", "manufacturer"),
    "categories": ("categories", "category", "genres", "genre", "categoryname", "class"),
    "description": ("description", "desc", "itemdescription", "productdescription", "overview"),
}
_KIND = re.compile(r":(token|float|token_seq|float_seq)$")


@dataclass
class Choice:
    """Role -> column of the file, and what the reader should know of how it was chosen."""

    sources: dict[str, str]
    kept: dict[str, str] = field(default_factory=dict)  # the other columns, by the name that they get
    said: list[str] = field(default_factory=list)
    mapped: frozenset[str] = frozenset()  # roles that were named by a flag or a mapping file


def squeeze(name: str) -> str:
    return re.sub(r"[\W_]", "", _KIND.sub("", name.strip()).lower())


def plain_name(name: str) -> str:
    """A foreign name as it is kept: without RecBole's kind."""
    return _KIND.sub("", name.strip())


def choose(what: str, names: Sequence[str], mapping: Mapping[str, str], roles: Mapping[str, Sequence[str]]) -> Choice:
    """Find each role's column among ``names``; what a mapping names is taken, InputError when it is missing."""
    names = [name for name in names if name]
    named = {role: source for role, source in mapping.items() if role in roles}
    choice = Choice(named, {role: mapping[role] for role in mapping if role not in roles}, mapped=frozenset(mapping))
    for role, source in mapping.items():
        if source not in names:
            close = difflib.get_close_matches(source, names, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise InputError(f"the {what} has no column {source!r} to read as {role}{hint}", allowed=", ".join(names))
    taken = set(mapping.values())
    for role, known in roles.items():
        if role in mapping:
            continue
        column = _candidate(what, role, known, [name for name in names if name not in taken], choice)
        if column is not None:
            choice.sources[role] = column
            taken.add(column)
    for name in names:
        if name in taken:
            continue
        if plain_name(name) not in choice.sources and plain_name(name) not in choice.kept:
            choice.kept[plain_name(name)] = name
        else:
            choice.said.append(f"column {name!r} is left out: another column is read under that name")
    return choice


def _candidate(what: str, role: str, known: Sequence[str], names: Sequence[str], choice: Choice) -> str | None:
    if role in names:
        return role
    ranked: list[tuple[int, str]] = sorted(
        (known.index(squeeze(name)), name) for name in names if squeeze(name) in known
    )
    if not ranked:
        return None
    same = [name for position, name in ranked if position == ranked[0][0]]
    if len(same) > 1:
        raise InputError(
            f"the {what} has {' and '.join(map(repr, same))}, both of which may be the {role}",
            fix=f"say which: {flag_of(role)} {same[0]}",
        )
    others = [name for _, name in ranked[1:]]
    if others:
        choice.said.append(
            f"{role} is {same[0]!r}, not {', '.join(map(repr, others))} ({flag_of(role)} says otherwise)"
        )
    return same[0]


def flag_of(role: str) -> str:
    """What to type to name a role's column."""
    if role in ("user", "item", "time", "position", "rating"):
        return f"--{role}"
    return "--event-column" if role == "event" else f"[item_columns] {role} of a --mapping file:"
