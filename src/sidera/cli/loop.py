"""The verbs of the daily loop: ``export-events``, ``refresh``, ``versions``, ``rollback``."""

from __future__ import annotations

from typing import Any

from sidera import console
from sidera.cli.parsing import Arguments, Verbs, add_verb


def export_verb(arguments: Arguments) -> dict[str, Any]:
    """Store and exposure log to a data folder."""
    from dataclasses import asdict

    from sidera.engine.export import export_events, read_exposures, store_columns
    from sidera.store.embedded import EmbeddedStore

    columns, labels = store_columns(arguments.store)
    exposures = None if arguments.exposures is None else read_exposures(arguments.exposures)
    with EmbeddedStore(arguments.store) as store:
        done = export_events(
            store, columns, labels, arguments.out, exposures=exposures, since=arguments.since, until=arguments.until
        )
    console.say(
        f"{arguments.out}: {done.events:,} events of {done.users:,} users, seconds {done.first} to {done.last}"
        + (f"; {done.answered:,} of {done.exposures:,} exposures answered" if exposures is not None else "")
    )
    console.say(f"next: sidera import {arguments.out} --append DATA")
    return {"out": arguments.out, **asdict(done)}


def add_export(verbs: Verbs) -> None:
    parser = add_verb(verbs, "export-events", export_verb, "write a store's events and exposures as a data folder")
    parser.add_argument("store", help="folder of the behaviour store; no server has it open")
    parser.add_argument("--exposures", metavar="LOG", help="folder of the exposure log: requests, slots and outcomes")
    parser.add_argument("--out", required=True, help="data folder to write")
    parser.add_argument("--since", type=int, metavar="SECOND", help="only events from this unix second on")
    parser.add_argument("--until", type=int, metavar="SECOND", help="only events before this unix second")
