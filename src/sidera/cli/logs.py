"""The verbs that bring data in: ``import``."""

from __future__ import annotations

from typing import Any

from sidera import console
from sidera.cli.parsing import Arguments, Verbs, add_verb


def import_verb(arguments: Arguments) -> dict[str, Any]:
    """Read a log and write it as a canonical data folder."""
    from dataclasses import replace

    from sidera.data.importing import ImportMapping, import_log, read_mapping

    mapping = read_mapping(arguments.mapping) if arguments.mapping else ImportMapping()
    given = {ours: getattr(arguments, ours) for ours in ("user", "item", "time") if getattr(arguments, ours)}
    mapping = replace(mapping, columns={**mapping.columns, **given})
    if arguments.time_unit:
        mapping = replace(mapping, time_unit=arguments.time_unit)
    if arguments.strict:
        mapping = replace(mapping, strict_items=True)
    dataset = import_log(arguments.events, arguments.out, arguments.items, arguments.users, mapping)
    console.say(
        f"{arguments.out}: {dataset.num_events:,} events of {dataset.num_users:,} users on {dataset.num_items:,} items"
    )
    return {
        "out": arguments.out,
        "events": dataset.num_events,
        "users": dataset.num_users,
        "items": dataset.num_items,
        "notes": dict(dataset.notes),
    }


def add_import(verbs: Verbs) -> None:
    parser = add_verb(verbs, "import", import_verb, "read a log (Parquet, CSV, TSV, JSON Lines) into a data folder")
    parser.add_argument("events", help="file with one event a row")
    parser.add_argument("--items", help="file with one item a row: key, title, categories, ...")
    parser.add_argument("--users", help="file with one user a row")
    parser.add_argument("--out", required=True, help="data folder to write")
    parser.add_argument("--user", help="column of the log with the user id (else: user, user_id)")
    parser.add_argument("--item", help="column of the log with the item id (else: item, item_id)")
    parser.add_argument("--time", help="column of the log with the time (else: time, timestamp)")
    parser.add_argument("--time-unit", choices=("s", "ms"), help="unit of the time column (else the mapping's, or s)")
    parser.add_argument("--mapping", help="TOML file that maps columns: docs/data.md")
    parser.add_argument("--strict", action="store_true", help="refuse events whose item is not in --items")
