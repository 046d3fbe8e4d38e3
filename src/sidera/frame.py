"""Tables in memory come in and answers go out: pandas, polars, pyarrow, or plain dictionaries of columns.

    data = sidera.from_frame(events, user="uid", item="asin", time="ts", items=products)

The frame takes the same way as a file: it is laid down as Parquet and read by the importer of ``sidera import``, so
names are recognised, values judged and times understood alike. No frame library is a dependency: whatever speaks the
Arrow stream or the dataframe interchange protocol is read.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from sidera.core import InputError, Recommendation
from sidera.data.dataset import Dataset
from sidera.data.importing import ImportMapping, import_log

SWITCHES = ("drop-duplicates", "strict")
FLAG = re.compile(
    r"--(user|item|time|rating|position|time-unit|time-format|order|event-column|keep|min-rating|max-bad"
    rf"|{'|'.join(SWITCHES)})\b(?: (COLUMN|rows|[\w.=,]+))?"
)
ARGUMENTS = {"event-column": "event", "strict": "strict_items"}  # flag -> argument, where the words differ


def from_frame(
    events: Any,
    *,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    rating: str | None = None,
    position: str | None = None,
    event: str | None = None,
    keep: Mapping[str, float] | Sequence[str] = (),
    min_rating: float | None = None,
    order: Literal["rows"] | None = None,
    drop_duplicates: bool = False,
    max_bad: float | None = None,
    items: Any = None,
    users: Any = None,
    item_key: str | None = None,
    user_key: str | None = None,
    time_unit: str | None = None,
    time_format: str | None = None,
    strict_items: bool = False,
    text_fields: Sequence[str] = (),
    name: str = "frame",
) -> Dataset:
    """A log, one row an event, as a Dataset; ``user``, ``item``, ``time``, ``rating``, ``position``, ``event`` name its
    columns.

    A column that is not named is looked for under its usual names (user, user_id, ...). Every other numeric column is
    feedback. ``event`` says what happened (view, purchase); ``keep`` names the kinds that count, or gives each its
    weight (0: shown, but no positive). ``min_rating`` leaves lower ratings out, ``order="rows"`` takes the order of the
    rows where there is no time; ``drop_duplicates``, ``max_bad``, ``strict_items``, ``time_unit``, ``time_format`` are
    those of ``sidera import`` (docs/use/data.md). ``items`` and ``users`` are further frames with one row an item or
    user, whose key is called ``item_key`` or ``user_key`` (else as in the log).

    InputError when a column is missing or a value cannot be understood, as ``sidera import`` says it.
    """
    named = {"user": user, "item": item, "time": time, "rating": rating, "position": position, "event": event}
    asked = {"time_unit": time_unit, "time_format": time_format, "order": order, "min_rating": min_rating,
             "max_bad": max_bad}  # fmt: skip
    settings: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    settings["keep"] = dict(keep) if isinstance(keep, Mapping) else dict.fromkeys(keep, 1.0)
    mapping = ImportMapping(
        columns={ours: theirs for ours, theirs in named.items() if theirs is not None},
        item_columns={} if item_key is None else {"key": item_key},
        user_columns={} if user_key is None else {"key": user_key},
        text_fields=tuple(text_fields),
        name=name,
        drop_duplicates=drop_duplicates,
        strict_items=strict_items,
        **settings,
    )
    with tempfile.TemporaryDirectory(prefix="sidera-frame-") as folder:
        paths = [
            None if frame is None else _written(frame, Path(folder), what)
            for frame, what in ((events, "events"), (items, "items"), (users, "users"))
        ]
        if paths[0] is None:
            raise InputError("no events", allowed="a frame with one event a row")
        try:
            return import_log(paths[0], Path(folder) / "data", paths[1], paths[2], mapping)
        except InputError as error:
            raise _in_python(error, folder) from None


def to_table(frame: Any, what: str = "frame") -> pa.Table:
    """Any frame as an Arrow table: pyarrow, polars, pandas, a mapping of columns, or a list of rows."""
    if isinstance(frame, pa.Table):
        return frame
    if isinstance(frame, pa.RecordBatch):
        return pa.Table.from_batches([frame])
    try:
        if isinstance(frame, Mapping):
            return pa.table({str(name): _column(values) for name, values in frame.items()})
        if hasattr(frame, "__arrow_c_stream__"):  # polars, pandas from 2.2 on, duckdb, ...
            return _without_index(pa.table(frame))
        if type(frame).__module__.partition(".")[0] == "pandas":
            return pa.Table.from_pandas(frame, preserve_index=False)
        if hasattr(frame, "__dataframe__"):
            from pyarrow.interchange import from_dataframe

            return _without_index(from_dataframe(frame))
        if (
            isinstance(frame, Sequence)
            and not isinstance(frame, str)
            and all(isinstance(row, Mapping) for row in frame)
        ):
            return pa.Table.from_pylist([dict(row) for row in frame])
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(f"the {what} cannot be read as a table: {str(error).splitlines()[0]}") from None
    fix = "sidera.load opens a run; for files: `sidera import`" if isinstance(frame, str | Path) else ""
    kinds = "a frame of pandas, polars or pyarrow, a dictionary of columns, a list of rows"
    raise InputError(f"the {what} is a {type(frame).__name__}", allowed=kinds, fix=fix)


class Answers(list[Recommendation]):
    """Recommendations, one for each history or user asked for, in their order."""

    def __init__(self, answers: Sequence[Recommendation], users: Sequence[str] | None = None) -> None:
        super().__init__(answers)
        self.users = users

    def to_table(self) -> pa.Table:
        """One row an item: query (0-based place of the history), user where users were asked for, rank from 1, item,
        score, title, cold_start."""
        rows = [
            (place, rank, key, score, title, answer.cold_start)
            for place, answer in enumerate(self)
            for rank, (key, score, title) in enumerate(
                zip(answer.item_keys, answer.scores, answer.titles, strict=True), start=1
            )
        ]
        kinds = {
            "query": pa.int64(), "rank": pa.int64(), "item": pa.string(), "score": pa.float64(), "title": pa.string(),
            "cold_start": pa.bool_(),
        }  # fmt: skip
        columns = [[row[place] for row in rows] for place in range(len(kinds))]
        table = pa.table(
            {name: pa.array(column, kind) for (name, kind), column in zip(kinds.items(), columns, strict=True)}
        )
        if self.users is None:
            return table
        names = pa.array([self.users[row[0]] for row in rows], pa.string())
        return table.add_column(1, "user", names)

    def to_frame(self) -> Any:
        """A pandas DataFrame where pandas is installed, else the Arrow table."""
        table = self.to_table()
        try:
            import pandas  # noqa: F401
        except ImportError:
            return table
        return table.to_pandas()


def _written(frame: Any, folder: Path, what: str) -> Path:
    path = folder / f"{what}.parquet"
    pq.write_table(to_table(frame, what), path)
    return path


def _column(values: Any) -> Any:
    return values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)


def _without_index(table: pa.Table) -> pa.Table:
    return table.select([name for name in table.column_names if not name.startswith("__index_level_")])


def _in_python(error: InputError, folder: str) -> InputError:
    """The importer's words with Python's arguments in place of the shell's flags and of the file's name."""

    def argument(match: re.Match[str]) -> str:
        name = ARGUMENTS.get(match[1], match[1].replace("-", "_"))
        if match[1] in SWITCHES:
            return f"{name}=True" + (f" {match[2]}" if match[2] else "")
        value = match[2] or ("..." if match[1] in ("max-bad", "min-rating", "keep", "time-format") else "COLUMN")
        return f"{name}={value}" if value == "..." or value[0].isdigit() else f'{name}="{value}"'

    parts = [
        FLAG.sub(argument, part).replace(f"{folder}/", "").replace(".parquet", "")
        for part in (error.problem, error.allowed, error.fix)
    ]
    return InputError(parts[0], allowed=parts[1], fix=parts[2])
