"""``sidera import``: a log of one's own becomes a canonical data folder, and what was understood is said.

    sidera import events.csv --items items.jsonl --out data/mine
    sidera import day1.csv day2.csv --event-column action --keep purchase=3,view=0 --out data/mine

The steps are files of ``intake/``: ``sources`` (which files), ``text``, ``delimited``, ``json_rows`` and ``parquet``
(blocks of rows), ``unroll`` (events inside rows), ``columns`` (which column is which), ``events``, ``times`` and
``numbers`` (values, judged one by one), ``kinds`` (which events count), ``report``. ``schema.build_dataset`` sorts.

Trap: key columns are read as text from CSV. As numbers, "0012" and "12" would become one item.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidera.artifacts import read_manifest
from sidera.core import ArtifactError, InputError
from sidera.data.dataset import Dataset
from sidera.data.intake.bad_rows import BadRows
from sidera.data.intake.columns import ITEM_NAMES, ITEM_ROLES, LOG_ROLES, USER_NAMES, Choice, choose
from sidera.data.intake.events import EventBlocks, Left, as_marks
from sidera.data.intake.keys import text_keys
from sidera.data.intake.kinds import apply_kinds, apply_rating
from sidera.data.intake.options import ImportMapping, parse_keep, parse_names, read_mapping
from sidera.data.intake.report import ImportReport, first_rows, join_warning, measure, repeats
from sidera.data.intake.sources import Source, find_sources
from sidera.data.intake.tables import Reading, check_same_columns, read_blocks, read_table
from sidera.data.intake.times import TimeColumn
from sidera.data.intake.unroll import unrolled
from sidera.data.schema import TEXT_FIELDS, build_dataset

__all__ = ["ImportMapping", "ImportReport", "import_log", "parse_keep", "parse_names", "read_log", "read_mapping"]

Paths = str | Path | Sequence[str | Path]


def import_log(
    events_path: Paths,
    out: str | Path,
    items_path: Paths | None = None,
    users_path: Paths | None = None,
    mapping: ImportMapping | None = None,
) -> Dataset:
    """Read, validate and write to the folder ``out``; nothing is written when anything is wrong."""
    return import_with_report(events_path, out, items_path, users_path, mapping)[0]


def import_with_report(
    events_path: Paths,
    out: str | Path,
    items_path: Paths | None = None,
    users_path: Paths | None = None,
    mapping: ImportMapping | None = None,
) -> tuple[Dataset, ImportReport]:
    """:func:`import_log`, and the account of what was read, kept, renamed and left out."""
    out = Path(out)
    _check_out(out)
    name = (mapping.name if mapping else None) or out.resolve().name
    dataset, report = read_log(events_path, name, items_path, users_path, mapping)
    dataset.save(out, {"import": report.to_json()})
    return dataset, report


def read_log(
    events_path: Paths,
    name: str,
    items_path: Paths | None = None,
    users_path: Paths | None = None,
    mapping: ImportMapping | None = None,
) -> tuple[Dataset, ImportReport]:
    """The data set and the account, nothing written."""
    mapping, report = mapping or ImportMapping(), ImportReport()
    events, choice, time_unit = _read_events(_paths(events_path), mapping, report, name)
    events, sources = as_marks(events), choice.sources
    if "event" in events.column_names:
        events, report.kinds, report.events = apply_kinds(events, mapping.keep, sources["event"])
    elif mapping.keep:
        fix = "say which column holds the kind: --event-column"
        raise InputError("--keep, but the log has no column with the kind of event", fix=fix)
    events, words = apply_rating(events, mapping.min_rating, sources.get("rating", "rating"))
    if words:
        report.notes.append(words)
    items = users = None
    if items_path is not None:  # its key is mostly called as in the log
        items, report.item_columns = _read_other(items_path, "items", sources["item"], ITEM_NAMES, mapping, report)
        _join(report, events["item"], items["key"])
    if users_path is not None:
        users, report.user_columns = _read_other(users_path, "users", sources["user"], USER_NAMES, mapping, report)
    dataset = build_dataset(
        name,
        events,
        items,
        users,
        time_unit=time_unit,
        strict_items=mapping.strict_items,
        text_fields=mapping.text_fields,
    )
    again = repeats(dataset)
    number = int(again.sum())
    if number and mapping.drop_duplicates:
        dataset = replace(dataset.keep(~again), source="")
        report.duplicates_dropped = True
    measure(report, dataset, number)
    if number > 0.1 * len(again) and not mapping.drop_duplicates:
        report.warnings.append(
            f"{number:,} of {len(again):,} events repeat a user, item and second, as if the log was sent again: "
            "evaluation would measure copying; fix: --drop-duplicates"
        )
    return dataset, report


def _read_events(
    paths: list[str | Path], mapping: ImportMapping, report: ImportReport, name: str
) -> tuple[pa.Table, Choice, str]:
    """-> (the events under our names, which column was what, the unit of their time for build_dataset)."""
    sources = find_sources(paths, mapping.format, mapping.max_bytes)
    bad = BadRows("log")
    blocks: EventBlocks | None = None
    names: list[str] = []
    unrolling = ""
    for source in sources:
        reading, own_names = Reading(source), None
        for table, first in read_blocks(source, mapping, bad, reading):
            table, words = unrolled(table, mapping.columns.get("item"), source.name)
            unrolling = unrolling or words
            if blocks is None:
                names = table.column_names
                blocks = EventBlocks(
                    _choose(source, names, mapping), bad, TimeColumn(mapping.time_unit, mapping.time_format)
                )
            elif own_names is None:
                check_same_columns(names, table.column_names, sources, source)
            own_names = table.column_names
            blocks.add(_with_all(table, blocks), _where(source, reading, first if not words else 0))
        report.notes += [f"{source.name}: {words}" for words in reading.said]
    report.files = [source.name for source in sources]
    if blocks is None or not blocks.num_rows:
        bad.check(max(1, bad.count), mapping.max_bad)
        raise InputError(f"log {name!r} is empty", allowed="at least one event", fix="check the path and the columns")
    report.num_rows = blocks.num_rows + sum(count for reason, count in bad.reasons.items() if "fields" in reason)
    if unrolling:
        report.notes.append(unrolling)
    events, unit, said = blocks.finish(mapping.max_bad)
    report.notes += blocks.choice.said
    report.bad_rows, report.time = bad.line(), said
    events, unit = _ordered(events, unit, mapping, report)
    _describe(report, blocks, names)
    report.first_rows = first_rows(events, unit)
    return events, blocks.choice, unit


def _choose(source: Source, names: list[str], mapping: ImportMapping) -> Choice:
    what = f"log {source.name}"
    roles = {role: known for role, known in LOG_ROLES.items() if role != "time" or mapping.order != "rows"}
    choice = choose(what, names, mapping.columns, roles)
    for role in ("user", "item"):
        if role not in choice.sources:
            raise InputError(
                f"the {what} has no column {role!r} (found: {', '.join(map(str, names[:30]))})",
                fix=f"say which column it is: --{role} COLUMN",
            )
    if mapping.order != "rows" and not {"time", "position"} & choice.sources.keys():
        raise InputError(
            f"the {what} has no column 'time' (found: {', '.join(map(str, names[:30]))})",
            fix="say which column it is (--time COLUMN), which holds the order (--position COLUMN), or that the rows "
            "stand in order (--order rows)",
        )
    return choice


def _with_all(table: pa.Table, blocks: EventBlocks) -> pa.Table:
    """A block with every column that is read; objects of JSON may leave some out, or bring new ones late."""
    choice = blocks.choice
    named = [*choice.sources.values(), *choice.kept.values()]
    for name in named:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows))
    for name in table.column_names:
        if name not in named and blocks.blocks:
            choice.said.append(f"column {name!r} is left out: it appears after {blocks.num_rows:,} rows")
            choice.kept[name] = name
            blocks.left[name] = Left("it appears late")
    return table


def _where(source: Source, reading: Reading, first: int) -> Callable[[int], str]:
    word = "line" if reading.lines and first else "row"
    return lambda row: f"{word} {first + row} of {source.name}"


def _ordered(events: pa.Table, unit: str, mapping: ImportMapping, report: ImportReport) -> tuple[pa.Table, str]:
    """Times as build_dataset reads them; an order where there are none."""
    if mapping.order == "rows":
        events = events.drop_columns([name for name in ("position", "time") if name in events.column_names])
        report.time = "none: the order of the rows is the order of the events"
        return events.append_column("position", pa.array(np.arange(events.num_rows))), "s"
    if unit == "order":
        values = events["time"]
        events = events.drop_columns([name for name in ("time", "position") if name in events.column_names])
        return events.append_column("position", values), "s"
    if not unit:
        report.time = "none: the position is the order"
    return events, unit or "s"


def _describe(report: ImportReport, blocks: EventBlocks, names: list[str]) -> None:
    choice = blocks.choice
    for role, source in choice.sources.items():
        report.columns.append(role if role == source else f"{role} ← {source}")
    for role, source in choice.kept.items():
        if source not in blocks.left:
            report.columns.append(f"{role} (feedback)" if role == source else f"{role} (feedback) ← {source}")
    for name, left in blocks.left.items():
        report.left_out.append(f"{name} ({left.reason}{', e.g. ' + repr(left.example) if left.example else ''})")
    texts = [name for name, left in blocks.left.items() if left.reason == "text"]
    if texts and "event" not in choice.sources:
        report.notes.append(f"if {texts[0]!r} says what happened: --event-column {texts[0]}")
    read = {*choice.sources.values(), *choice.kept.values()}
    report.left_out += [f"{name or '(without a name)'}" for name in names if name not in read]


def read_items(path: Paths) -> pa.Table:
    """An items table under our names, with ``key``, read as ``sidera import --items`` reads one."""
    return _read_other(path, "items", "item", ITEM_NAMES, ImportMapping(), ImportReport())[0]


def _read_other(
    path: Paths, what: str, called: str, keys: Sequence[str], mapping: ImportMapping, report: ImportReport
) -> tuple[pa.Table, list[str]]:
    """-> (an items or users table under our names, with ``key``; its columns in words)."""
    sources = find_sources(_paths(path), max_bytes=mapping.max_bytes, what=f"{what} file")
    mapped = mapping.item_columns if what == "items" else mapping.user_columns
    said: list[str] = []
    where = f"{what} file {sources[0].name}"
    roles = {"key": ("key", called, *keys, "id"), **(ITEM_ROLES if what == "items" else {})}
    read_columns = {
        name
        for role, names in {**roles, "text": ("text",)}.items()
        for name in names
        if role in ("key", *TEXT_FIELDS, "text")
    }
    table = read_table(sources, mapping, where, said, [*mapped.values(), *read_columns, *TEXT_FIELDS, called])
    names = [name for name in table.column_names if name]
    if called in names and "key" not in mapped and "key" not in names:
        mapped = {**mapped, "key": called}
    choice = choose(where, names, mapped, roles)
    if "key" not in choice.sources:
        raise InputError(
            f"the {where} has no column 'key' (found: {', '.join(names)})",
            fix=f'name it in a --mapping file: [{what[:-1]}_columns] key = "COLUMN"',
        )
    report.notes += said + choice.said
    columns = {**choice.sources, **choice.kept}
    report.files += [source.name for source in sources]
    described = [column if column == source else f"{column} ← {source}" for column, source in columns.items()]
    lost = [name for name in table.column_names if name not in columns.values()]
    described += [f"left out: {', '.join(name or '(without a name)' for name in lost)}"] if lost else []
    text = {"key", *TEXT_FIELDS, "text"} & columns.keys()
    return pa.table({column: _as_text(table[source], column in text) for column, source in columns.items()}), described


def _as_text(column: pa.ChunkedArray, needed: bool) -> pa.ChunkedArray:
    """Numbers as text where text is read (a title may be 1984)."""
    if needed and (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return column.cast(pa.string()) if pa.types.is_integer(column.type) else column
    return column


def _join(report: ImportReport, named: pa.ChunkedArray, keys: pa.ChunkedArray) -> None:
    """How many items of the log the items table holds; a warning when they do not meet."""
    log_keys = pc.unique(named).cast(pa.string())
    if isinstance(log_keys, pa.ChunkedArray):
        log_keys = log_keys.combine_chunks()
    table_keys = text_keys(keys, "key", "items").cast(pa.string()).combine_chunks()
    report.items_named = len(log_keys)
    report.items_found = int(pc.sum(pc.is_in(log_keys, value_set=table_keys)).as_py() or 0)
    if report.items_found < 0.5 * report.items_named:
        words = join_warning(log_keys.to_pylist(), table_keys.to_pylist(), report.items_found, report.items_named)
        report.warnings.append(words)


def _paths(given: Paths) -> list[str | Path]:
    return [given] if isinstance(given, str | Path) else list(given)


def _check_out(out: Path) -> None:
    """Writing replaces the whole folder, so only a data set may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        read_manifest(out, "dataset")
    except ArtifactError:
        raise InputError(
            f"{str(out)!r} exists and is no data set: it would be replaced", fix="give --out a new folder"
        ) from None
