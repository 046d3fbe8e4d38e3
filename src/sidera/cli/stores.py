"""The verbs of what is kept of users: ``store``, ``erase``."""

from __future__ import annotations

from typing import Any

from sidera import console
from sidera.cli.parsing import Arguments, Verbs, add_verb
from sidera.core import InputError

DAY = 86_400  # seconds


def store_verb(arguments: Arguments) -> dict[str, Any]:
    """Look after a store, also while a server has it open."""
    from sidera.store.embedded import EmbeddedStore, StoreConfig

    if arguments.max_age_days is not None and not arguments.compact:
        raise InputError("--max-age-days without --compact", fix="add --compact: it lets old events go")
    age = None if arguments.max_age_days is None else arguments.max_age_days * DAY
    with EmbeddedStore(arguments.store, StoreConfig(max_age=age), must_exist=True) as store:
        if arguments.compact:
            gone = store.compact()
            console.say(f"compacted; nothing is left of {len(gone):,} users")
        if arguments.copy is not None:
            store.copy_to(arguments.copy)
            console.say(f"copied to {arguments.copy}")
        found = store.verify()
    each = found["bytes"] / max(1, found["events"])
    console.say(
        f"{arguments.store}: {found['events']:,} events of {found['users']:,} users, every record is whole;"
        f" {found['bytes']:,} bytes, {each:.1f} an event"
    )
    return {"store": arguments.store, **found}


def erase_verb(arguments: Arguments) -> dict[str, Any]:
    """One user, out of everything."""
    from dataclasses import asdict

    from sidera.engine.erasure import erase_user

    done = erase_user(arguments.user, arguments.store, exposures=arguments.exposures, exports=arguments.exports)
    console.say(
        f"erased: {done.events:,} events, {done.exposures:,} exposures, {done.exported:,} exported events"
        + ("" if any(asdict(done).values()) else "; nothing was known of this user")
    )
    return {"store": arguments.store, "user": arguments.user, **asdict(done)}


def add_store(verbs: Verbs) -> None:
    parser = add_verb(verbs, "store", store_verb, "check every record of a behaviour store, compact it, copy it")
    parser.add_argument("store", help="folder of the behaviour store; a server may have it open")
    parser.add_argument("--compact", action="store_true", help="give back the room of what was let go; writers wait")
    parser.add_argument("--max-age-days", type=int, metavar="N", help="with --compact: let older events go")
    parser.add_argument("--copy", metavar="OUT", help="copy of this moment, a store of its own")


def add_erase(verbs: Verbs) -> None:
    parser = add_verb(verbs, "erase", erase_verb, "take one user out of a store, its exposure log and its exports")
    parser.add_argument("store", help="folder of the behaviour store; a server may have it open")
    parser.add_argument("--user", required=True, help="key of the user")
    parser.add_argument("--exposures", metavar="LOG", help="folder of the exposure log: the user is taken out, too")
    parser.add_argument(
        "--exports", metavar="DATA", nargs="+", default=[], help="data folders, written without the user"
    )
