"""The verbs that bring data in: ``import``."""

from __future__ import annotations

import sys

from sidera.cli.parsing import Arguments, Verbs, add_verb

ROLES = {"user": "user", "item": "item", "time": "time", "position": "position", "rating": "rating"}


def import_verb(arguments: Arguments) -> None:
    """Read a log and write it as a canonical data folder."""
    from dataclasses import replace

    from sidera.data.importing import ImportMapping, import_with_report, parse_keep, parse_names, read_mapping

    mapping = read_mapping(arguments.mapping) if arguments.mapping else ImportMapping()
    given = {ours: getattr(arguments, ours) for ours in ROLES if getattr(arguments, ours)}
    if arguments.event_column:
        given["event"] = arguments.event_column
    changes: dict[str, object] = {"columns": {**mapping.columns, **given}}
    said = (
        "time_unit",
        "time_format",
        "order",
        "delimiter",
        "encoding",
        "format",
        "min_rating",
        "max_bad",
        "max_bytes",
    )
    changes |= {name: getattr(arguments, name) for name in said if getattr(arguments, name) is not None}
    changes |= {name: True for name in ("strict_items", "drop_duplicates") if getattr(arguments, name)}
    if arguments.keep:
        changes["keep"] = parse_keep(arguments.keep)
    if arguments.columns:
        changes["column_names"] = parse_names(arguments.columns)
    if arguments.no_header:
        changes["header"] = False
    mapping = replace(mapping, **changes)  # type: ignore[arg-type]
    dataset, report = import_with_report(arguments.events, arguments.out, arguments.items, arguments.users, mapping)
    print("\n".join(report.lines()))
    for warning in report.warnings:
        print(f"WARNING: {warning}", file=sys.stderr)
    print(
        f"{arguments.out}: {dataset.num_events:,} events of {dataset.num_users:,} users on {dataset.num_items:,} items"
    )


def add_import(verbs: Verbs) -> None:
    parser = add_verb(verbs, "import", import_verb, "read a log (CSV, JSON Lines, Parquet, ...) into a data folder")
    add = parser.add_argument
    add("events", nargs="+", help="files with one event a row, a folder of them, or a pattern")
    add("--items", nargs="+", help="files with one item a row: key, title, categories, ...")
    add("--users", nargs="+", help="files with one user a row")
    add("--out", required=True, help="data folder to write")
    add("--user", help="column of the log with the user id (else found by its name)")
    add("--item", help="column of the log with the item id (else found by its name)")
    add("--time", help="column of the log with the time (else found by its name)")
    add("--position", help="column of the log with the order of a user's events, where times tie or are missing")
    add("--order", choices=("rows",), help="rows: the order of the rows is the order of the events, there is no time")
    add("--rating", help="column of the log with a rating (else found by its name)")
    add("--min-rating", type=float, help="leave out events rated lower, e.g. 4 of 5 stars")
    add("--event-column", help="column of the log with the kind of event: view, purchase, ... (else found by its name)")
    add("--keep", metavar="KIND[=WEIGHT],...", help="kinds of event that count; weight 0: shown, but no positive")
    add("--time-unit", choices=("s", "ms", "us", "ns", "d"), help="unit of the time column (else found by its size)")
    add("--time-format", help="form of the times, e.g. '%%d/%%m/%%Y %%H:%%M' (else found)")
    add("--format", choices=("csv", "jsonl", "json", "parquet"), help="what the log is (else by its ending)")
    add("--delimiter", help="between the log's columns, e.g. ';' or '::' (else found)")
    add("--encoding", help="of the text files, e.g. latin-1, utf-16, gbk (else found)")
    add("--no-header", action="store_true", help="the log's first line is an event: name the columns by --columns")
    add("--columns", metavar="NAME,...", help="names of the log's columns in order, '_' leaves one out")
    add("--drop-duplicates", action="store_true", help="keep one event of each user, item and second")
    add("--max-bad", type=float, help="share of rows that may be left out because they cannot be read (else 0.01)")
    add("--max-bytes", type=int, help="bytes that a packed file may swell to (else 100 times its size)")
    add("--mapping", help="TOML file that maps columns: docs/data.md")
    add("--strict", dest="strict_items", action="store_true", help="refuse events whose item is not in --items")
