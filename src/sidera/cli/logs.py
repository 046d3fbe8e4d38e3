"""The verbs that bring data in: ``import``, ``fetch``, ``convert``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sidera import console
from sidera.cli.parsing import Arguments, Verbs, add_verb
from sidera.core import InputError

if TYPE_CHECKING:
    from sidera.data.dataset import Dataset
    from sidera.data.importing import ImportMapping

ROLES = ("user", "item", "time", "position", "rating")  # columns of the log that a flag can name


def import_verb(arguments: Arguments) -> dict[str, Any]:
    """Read a log and write it as a canonical data folder."""
    from dataclasses import asdict, replace

    from sidera.data.importing import ImportMapping, import_with_report, parse_keep, parse_names, read_mapping

    if (arguments.out is None) == (arguments.append is None):
        raise InputError("import writes a new folder or appends to one", allowed="--out DATA or --append DATA")
    if arguments.lacks and arguments.append is None:
        raise InputError("--lacks names columns of a folder that is appended to", fix="give --append DATA too")
    mapping = read_mapping(arguments.mapping) if arguments.mapping else ImportMapping()
    given = {role: getattr(arguments, role) for role in ROLES if getattr(arguments, role)}
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
    if arguments.append is not None:
        return _append(arguments, mapping)
    dataset, report = import_with_report(arguments.events, arguments.out, arguments.items, arguments.users, mapping)
    console.say("\n".join(report.lines()))
    for warning in report.warnings:
        console.warn(f"WARNING: {warning}")
    return {**_wrote(dataset, arguments.out), "report": asdict(report)}


def _append(arguments: Arguments, mapping: ImportMapping) -> dict[str, Any]:
    from dataclasses import asdict
    from pathlib import Path

    from sidera.data.append import append_log, is_export
    from sidera.data.dataset import Dataset
    from sidera.data.importing import parse_names, read_log

    lacks = parse_names(arguments.lacks) if arguments.lacks else ()
    exported = len(arguments.events) == 1 and is_export(arguments.events[0])
    if exported:
        new = Dataset.load(arguments.events[0])
    else:
        name = Path(arguments.append).resolve().name
        new, report = read_log(arguments.events, name, arguments.items, arguments.users, mapping)
        console.say("\n".join(report.lines()))
        for warning in report.warnings:
            console.warn(f"WARNING: {warning}")
    done = append_log(arguments.append, new, lacks=lacks, exported=exported)
    console.say("\n".join(done.lines()))
    return {**_wrote(Dataset.load(arguments.append), arguments.append), "appended": asdict(done)}


def _wrote(dataset: Dataset, out: str) -> dict[str, Any]:
    """Say what a data folder holds; what ``--json`` prints of it."""
    console.say(f"{out}: {dataset.num_events:,} events of {dataset.num_users:,} users on {dataset.num_items:,} items")
    counts = {"events": dataset.num_events, "users": dataset.num_users, "items": dataset.num_items}
    return {"out": out, **counts, "notes": dict(dataset.notes)}


def add_import(verbs: Verbs) -> None:
    parser = add_verb(verbs, "import", import_verb, "read a log (CSV, JSON Lines, Parquet, ...) into a data folder")
    add = parser.add_argument
    add("events", nargs="+", help="files with one event a row, a folder of them, or a pattern")
    add("--items", nargs="+", help="files with one item a row: key, title, categories, ...")
    add("--users", nargs="+", help="files with one user a row")
    add("--out", help="data folder to write")
    add("--append", metavar="DATA", help="data folder that the new events, items and users are put into")
    add("--lacks", metavar="COLUMN,...", help="with --append: columns that the new files do not have; unknown there")
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
    add("--mapping", help="TOML file that maps columns: docs/use/data.md")
    add("--strict", dest="strict_items", action="store_true", help="refuse events whose item is not in --items")


def fetch_verb(arguments: Arguments) -> dict[str, Any] | None:
    """Get the raw files of a published data set."""
    import sys

    from sidera.data.fetch import convert_command, fetch, listing
    from sidera.data.published import Published, published

    def accept(release: Published) -> bool:
        if arguments.accept_licence or not sys.stdin.isatty():
            return bool(arguments.accept_licence)
        return input("Do you accept these terms? [y/N] ").strip().lower() in ("y", "yes")

    if arguments.list:
        console.result(listing())
        return None
    if not arguments.name:
        raise InputError("which data set?", fix="`sidera fetch NAME`; `sidera fetch --list` names them")
    out = arguments.out or f"data/raw/{arguments.name}"
    given = {"source": arguments.source, "lock": arguments.lock, "repin": arguments.repin}
    fetch(arguments.name, out, accept=accept, say=console.say, **given)
    command = convert_command(published(arguments.name), out)
    console.say(f"next: {command}")
    return {"name": arguments.name, "out": out, "next": command}


def add_fetch(verbs: Verbs) -> None:
    parser = add_verb(verbs, "fetch", fetch_verb, "get a published data set (docs/evidence/public_data.md)")
    parser.add_argument("name", nargs="?", help="data set, e.g. amazon2014-beauty or ml-1m")
    parser.add_argument("--list", action="store_true", help="name every data set")
    parser.add_argument("--out", help="folder to write (else data/raw/NAME)")
    parser.add_argument("--accept-licence", action="store_true", help="the terms shown are read and accepted")
    parser.add_argument("--from", dest="source", default="", help="folder or address with the same files: a mirror")
    parser.add_argument("--lock", default="", help="file that pins digests (else fetch.lock.json in the folder)")
    parser.add_argument("--repin", action="store_true", help="fetch again and pin what comes")


def convert_verb(arguments: Arguments) -> dict[str, Any]:
    """Make a data folder of the raw files of a published data set."""
    from dataclasses import replace
    from pathlib import Path

    from sidera.data.raw import convert, raw_format, writable

    options = raw_format(arguments.format).options
    names = ("core", "min_rating", "dedupe", "since", "until", "rare", "max_bad")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    writable(arguments.out)
    dataset = convert(
        arguments.format, arguments.files, replace(options, **given), dataset_name=Path(arguments.out).resolve().name
    )
    dataset.save(arguments.out)
    for name, value in dataset.notes.items():
        console.say(f"{name.replace('_', ' ')}: {value if isinstance(value, (dict, list)) else f'{value:,}'}")
    return _wrote(dataset, arguments.out)


def add_convert(verbs: Verbs) -> None:
    parser = add_verb(
        verbs, "convert", convert_verb, "published raw files to a data folder (docs/evidence/public_data.md)"
    )
    parser.add_argument(
        "format", help="amazon2014, amazon2018, amazon2023, movielens, yelp, steam, lastfm, taobao, ..."
    )
    parser.add_argument("files", nargs="+", help="files, folders or archives as published")
    parser.add_argument("--out", required=True, help="data folder to write")
    parser.add_argument(
        "--core", type=int, help="keep users and items with so many events, repeatedly (else the format's)"
    )
    parser.add_argument("--min-rating", type=float, help="keep events rated at least this (else the format's)")
    parser.add_argument("--dedupe", choices=("none", "exact", "pairs"), help="repeats to leave out (else the format's)")
    parser.add_argument("--since", help="leave out events before this day, e.g. 2019-01-01")
    parser.add_argument("--until", help="leave out events from this day on")
    parser.add_argument("--rare", type=int, help="leave out brands and categories of fewer items (else the format's)")
    parser.add_argument("--max-bad", type=float, help="share of lines that may be beyond understanding (else 0.01)")
