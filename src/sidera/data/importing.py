"""``sidera import``: a log of one's own (Parquet, CSV, TSV, JSON Lines) becomes a canonical data folder.

    sidera import events.csv --items items.jsonl --out data/mine
    sidera import events.csv --items items.jsonl --mapping mine.toml --out data/mine

A mapping says which column is which, as ``ours = "theirs"``; columns that already bear our name need no line:

    time_unit = "ms"
    [columns]            # of the log: user, item, time, position; others are renamed feedback
    user = "uid"
    item = "asin"
    time = "ts"
    [item_columns]       # key, title, brand, categories, description, text, ...
    key = "asin"

Whole-number columns of 0 and 1 alone (``is_click``) are read as marks: what became of an exposure.

Trap: key columns are read as text from CSV. As numbers, "0012" and "12" would become one item.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json

from sidera.artifacts import read_manifest
from sidera.config import parse_section, read_toml
from sidera.core import ArtifactError, InputError
from sidera.data.dataset import Dataset, read_parquet
from sidera.data.features import BOOKKEEPING
from sidera.data.schema import TEXT_FIELDS, build_dataset

# our column -> what it may be called without a mapping; the first one found is taken
LOG_COLUMNS = {"user": ("user", "user_id"), "item": ("item", "item_id"), "time": ("time", "timestamp")}
NO_MARKS = (  # whatever numbers they hold
    "user",
    "item",
    "time",
    "rating",
    "position",
    *BOOKKEEPING,
)
FORMATS = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson")
WHOLE_FILE = 1 << 28  # bytes read as one block: types are guessed from the whole of all but very large files


@dataclass(frozen=True)
class ImportMapping:
    """How a foreign log is to be read; also the content of a mapping file."""

    columns: dict[str, str] = field(default_factory=dict)  # ours -> theirs, in the log
    item_columns: dict[str, str] = field(default_factory=dict)  # ours -> theirs, in the items file
    user_columns: dict[str, str] = field(default_factory=dict)  # ours -> theirs, in the users file
    time_unit: str = "s"  # s or ms
    name: str | None = None  # of the data set; None: the name of the folder written
    strict_items: bool = False  # refuse events whose item is not in the items file
    text_fields: tuple[str, ...] = ()  # item columns that make up the text


def read_mapping(path: str | Path) -> ImportMapping:
    return parse_section(ImportMapping, read_toml(path), str(path))


def import_log(
    events_path: str | Path,
    out: str | Path,
    items_path: str | Path | None = None,
    users_path: str | Path | None = None,
    mapping: ImportMapping | None = None,
) -> Dataset:
    """Read, validate and write to the folder ``out``; nothing is written when anything is wrong."""
    mapping, out = mapping or ImportMapping(), Path(out)
    _check_out(out)
    events, sources = _read(Path(events_path), "log", mapping.columns, LOG_COLUMNS, required=("user", "item"))
    events = _marks(events)
    items = users = None
    if items_path is not None:  # its key is mostly called as in the log
        known = {"key": ("key", sources["item"], *LOG_COLUMNS["item"])}
        items, _ = _read(Path(items_path), "items file", mapping.item_columns, known, required=("key",))
    if users_path is not None:
        known = {"key": ("key", sources["user"], *LOG_COLUMNS["user"])}
        users, _ = _read(Path(users_path), "users file", mapping.user_columns, known, required=("key",))
    dataset = build_dataset(
        mapping.name or out.resolve().name,
        events,
        items,
        users,
        time_unit=mapping.time_unit,
        strict_items=mapping.strict_items,
        text_fields=mapping.text_fields,
    )
    dataset.save(out)
    return dataset


def _read(
    path: Path, what: str, mapping: Mapping[str, str], known: Mapping[str, Sequence[str]], required: Sequence[str]
) -> tuple[pa.Table, dict[str, str]]:
    """A file as a table under our column names, and what the file calls each of them."""
    _check_path(path)
    table = _read_table(path, _text_columns(mapping, known))
    names = table.column_names
    sources = dict(mapping)
    for ours, theirs in mapping.items():
        if theirs not in names:
            close = difflib.get_close_matches(theirs, names, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise InputError(
                f"the {what} {path.name} has no column {theirs!r} to read as {ours}{hint}",
                allowed=", ".join(names),
            )
    for ours, candidates in known.items():
        found = [name for name in candidates if name in names and name not in mapping.values()]
        if ours not in sources and found:
            sources[ours] = found[0]
        elif ours not in sources and ours in required:
            raise InputError(
                f"the {what} {path.name} has no column {ours!r} (found: {', '.join(names)})",
                fix="say which column it is, by a flag or in a mapping file",
            )
    used = {*sources, *sources.values()}
    sources.update({name: name for name in names if name not in used})
    return pa.table({ours: table[theirs] for ours, theirs in sources.items()}), sources


def _marks(events: pa.Table) -> pa.Table:
    """Whole-number columns of 0 and 1 alone are what logs call a mark (clicked or not): they become true and false."""
    for place, name in enumerate(events.column_names):
        column = events[name]
        if name in NO_MARKS or not pa.types.is_integer(column.type) or column.null_count:
            continue
        ends = pc.min_max(column).as_py()
        if (ends["min"], ends["max"]) == (0, 1):
            events = events.set_column(place, name, column.cast(pa.bool_()))
    return events


def _text_columns(mapping: Mapping[str, str], known: Mapping[str, Sequence[str]]) -> list[str]:
    """Columns that a CSV must not turn into numbers: keys (leading zeros) and texts (a title may be "1984")."""
    keys = [name for ours, names in known.items() if ours != "time" for name in (ours, *names)]
    ours_text = {*keys, *TEXT_FIELDS, "text"}
    numbers = {theirs for ours, theirs in mapping.items() if ours not in ours_text}
    return [*(mapping.get(name, name) for name in ours_text), *(ours_text - numbers)]


def _read_table(path: Path, text_columns: Sequence[str]) -> pa.Table:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = suffixes[-1:] == [".gz"]
    suffix = suffixes[-2] if compressed and len(suffixes) > 1 else (suffixes or [""])[-1]
    block_size = WHOLE_FILE if compressed else max(1 << 20, min(path.stat().st_size + 1, WHOLE_FILE))
    try:
        if suffix == ".parquet":
            return _plain(read_parquet(path))
        if suffix in (".csv", ".tsv"):
            return pa_csv.read_csv(
                path,
                read_options=pa_csv.ReadOptions(block_size=block_size),
                parse_options=pa_csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ",", newlines_in_values=True),
                convert_options=pa_csv.ConvertOptions(column_types=dict.fromkeys(text_columns, pa.string())),
            )
        if suffix in (".jsonl", ".ndjson"):
            return pa_json.read_json(path, read_options=pa_json.ReadOptions(block_size=block_size))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        if "Empty" in reason:
            raise InputError(f"{path} is empty", allowed="a header and at least one row") from None
        raise InputError(f"cannot read {path}: {reason}", allowed="UTF-8 text, or whole Parquet") from None
    raise InputError(f"{path} has the unknown ending {suffix!r}", allowed=f"{', '.join(FORMATS)}, text also with .gz")


def _plain(table: pa.Table) -> pa.Table:
    """Dictionary-encoded columns (pandas categories) as their values, foreign metadata dropped."""
    columns = {
        field.name: table[field.name].cast(field.type.value_type)
        if pa.types.is_dictionary(field.type)
        else table[field.name]
        for field in table.schema
    }
    return pa.table(columns)


def _check_path(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        files = sorted(file.name for file in path.iterdir() if file.suffix in FORMATS)
        raise InputError(f"{path} is a folder", allowed=f"a file: {', '.join(files[:6]) or 'it holds none'}")
    folder = next(parent for parent in path.parents if parent.exists())
    names = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    close = difflib.get_close_matches(path.name, names, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise InputError(f"no file at {str(path)!r}{hint}", allowed=f"{folder} holds {', '.join(names[:6]) or 'nothing'}")


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
