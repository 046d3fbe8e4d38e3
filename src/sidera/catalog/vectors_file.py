"""Pre-computed item vectors: Parquet (``key`` and a list column) or safetensors beside a JSON list of keys.

``item.safetensors`` holds one tensor ``vectors`` (N, D) and ``item.keys.json`` the N keys in the same order. Half
precision is read too, so that a catalogue's vectors travel in a small file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sidera.core import InputError


def read_vectors(path: str | Path, item_keys: Sequence[str] | np.ndarray) -> Tensor:
    """(N, D) float32, the rows in the order of ``item_keys``; keys of the file that are not asked for are ignored."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no vectors file at {str(path)!r}", fix="check [catalog] vectors_file")
    if path.suffix == ".parquet":
        keys, vectors = _read_parquet(path)
    elif path.suffix == ".safetensors":
        keys, vectors = _read_safetensors(path)
    else:
        raise InputError(f"vectors file {str(path)!r} has suffix {path.suffix!r}", allowed=".parquet, .safetensors")
    row_of = {key: row for row, key in enumerate(keys)}
    if len(row_of) != len(keys):
        twice = next(key for row, key in enumerate(keys) if row_of[key] != row)
        raise InputError(f"{path}: item {twice!r} has two vectors", fix="keep one row per item")
    missing = [str(key) for key in item_keys if str(key) not in row_of]
    if missing:
        raise InputError(
            f"{path} lacks a vector for item {missing[0]!r} ({len(missing)} of {len(item_keys)} items missing)",
            fix="add the missing rows",
        )
    chosen = vectors[[row_of[str(key)] for key in item_keys]]
    check_finite(chosen, item_keys, str(path))
    return chosen


def save_vectors(
    path: str | Path, item_keys: Sequence[str] | np.ndarray, vectors: Tensor, *, half: bool = False
) -> None:
    """Write ``path`` (.safetensors) and its ``.keys.json``; ``half`` stores float16."""
    path = Path(path)
    save_file({"vectors": (vectors.half() if half else vectors.float()).contiguous()}, path)
    _keys_path(path).write_text(json.dumps([str(key) for key in item_keys]), encoding="utf-8")


def check_finite(vectors: Tensor, item_keys: Sequence[str] | np.ndarray, source: str) -> None:
    """InputError naming the first item whose vector holds NaN or infinity."""
    bad = (~vectors.isfinite().all(dim=1)).nonzero()
    if bad.numel():
        raise InputError(
            f"{source}: the vector of item {str(item_keys[int(bad[0])])!r} holds NaN or inf ({bad.numel()} such items)",
            allowed="finite numbers",
            fix="mend or recompute these vectors",
        )


def _read_parquet(path: Path) -> tuple[list[str], Tensor]:
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {error}") from None
    lists = [field.name for field in table.schema if _holds_numbers(field.type)]
    if "key" not in table.column_names or not lists:
        raise InputError(
            f"{path} has the columns {', '.join(table.column_names)}", allowed="`key` and a column of lists of numbers"
        )
    keys = [str(key) for key in table["key"].to_pylist()]
    column = table[lists[0]]
    widths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    if not len(widths) or (widths != widths[0]).any() or widths[0] == 0:
        odd = keys[int((widths != widths[0]).argmax())] if len(widths) else ""
        raise InputError(f"{path}: vectors differ in length or are empty, see item {odd!r}", allowed="one length > 0")
    numbers = pc.list_flatten(column).cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)  # nulls become NaN
    return keys, torch.from_numpy(numbers.reshape(len(keys), -1).copy())


def _holds_numbers(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return False
    return pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)


def _read_safetensors(path: Path) -> tuple[list[str], Tensor]:
    try:
        vectors = load_file(path)["vectors"]
        keys = [str(key) for key in json.loads(_keys_path(path).read_text(encoding="utf-8"))]
    except FileNotFoundError:
        raise InputError(
            f"no keys file {str(_keys_path(path))!r} beside {path.name}", fix="write the keys as JSON"
        ) from None
    except KeyError:
        raise InputError(f"{path} holds no tensor 'vectors'") from None
    except (SafetensorError, ValueError, TypeError) as error:
        raise InputError(f"{path} or its keys file is damaged: {error}") from None
    if vectors.ndim != 2 or vectors.shape[0] != len(keys) or vectors.shape[1] == 0:
        raise InputError(
            f"{path}: vectors {tuple(vectors.shape)} do not fit {len(keys)} keys", allowed="(keys, dims > 0)"
        )
    return keys, vectors.float()


def _keys_path(path: Path) -> Path:
    return path.with_suffix(".keys.json")
