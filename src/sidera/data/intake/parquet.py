"""Parquet as a stream of tables, its size judged by the footer before a row is read.

Runs of equal values cost a Parquet file nothing: 60 million rows may stand in 600 kB. Text columns are read as
dictionaries, so that repeated text is held once, and what the rows need is computed first.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sidera.core import InputError
from sidera.data.intake.delimited import MAX_COLUMNS
from sidera.data.intake.sources import Source

ROWS = 1 << 17  # of a block
VALUE_BYTES = 8  # that a value of any column takes in a data set


def read_parquet_blocks(source: Source) -> Iterator[tuple[pa.Table, int]]:
    """-> (a block of rows, the row number of its first row). InputError when damaged or beyond the budget."""
    path = source.path
    try:
        with pq.ParquetFile(path) as plain:
            schema = plain.schema_arrow
            check_names(path.name, schema.names)
            num_values = _num_values(plain)
            if num_values * VALUE_BYTES > source.budget:
                raise source.swollen(f"{plain.metadata.num_rows:,} rows ({num_values:,} values)")
        texts = [field.name for field in schema if is_bytes(field.type)]
        first = 0
        with pq.ParquetFile(path, read_dictionary=texts) as file:
            for batch in file.iter_batches(batch_size=ROWS):
                yield pa.Table.from_batches([batch]).replace_schema_metadata(None), first
                first += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read {path}: {str(error).splitlines()[0]}", allowed="whole Parquet", fix="write the file again"
        ) from None


def check_names(file: str, names: list[str]) -> None:
    """InputError when two columns bear one name, or there are too many."""
    if len(names) > MAX_COLUMNS:
        raise InputError(f"{file} has {len(names):,} columns", allowed=f"up to {MAX_COLUMNS:,}")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{file} has the column {name!r} more than once", fix="rename one of them")


def is_bytes(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    )  # fmt: skip


def _num_values(file: pq.ParquetFile) -> int:
    """Values of all columns, those inside lists counted."""
    metadata = file.metadata
    return sum(
        max(metadata.row_group(group).column(column).num_values, metadata.row_group(group).num_rows)
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    )


def decoded_bytes(column: pa.ChunkedArray) -> int:
    """Bytes that a dictionary column takes as plain text."""
    total = 0
    for chunk in column.chunks:
        if pa.types.is_dictionary(chunk.type) and is_bytes(chunk.type.value_type):
            lengths = pc.binary_length(chunk.dictionary.cast(pa.large_binary()))
            total += pc.sum(lengths.take(chunk.indices)).as_py() or 0
    return total
