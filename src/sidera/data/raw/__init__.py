"""Published raw formats become a Dataset: ``convert("movielens", ["ml-1m.zip"])``.

``RAW_FORMATS`` lists the formats; a new one is a file here with a ``FORMATS`` of its own.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from sidera.artifacts import check_replaceable
from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.raw import amazon, ctr, kuairand, lastfm, movielens, steam, taobao, yelp
from sidera.data.raw.conversion import Conversion, Options, RawFormat
from sidera.data.raw.files import RawFiles

RAW_FORMATS: dict[str, RawFormat] = {
    name: found
    for family in (amazon, movielens, yelp, steam, lastfm, taobao, kuairand, ctr)
    for name, found in family.FORMATS.items()
}


def raw_format(name: str) -> RawFormat:
    """InputError where no format is called so."""
    if name not in RAW_FORMATS:
        close = difflib.get_close_matches(name.lower(), RAW_FORMATS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise InputError(f"raw format {name!r} is not known{hint}", allowed=", ".join(RAW_FORMATS))
    return RAW_FORMATS[name]


def convert(
    name: str, paths: Sequence[str | Path], options: Options | None = None, *, dataset_name: str = ""
) -> Dataset:
    """Read files, folders or archives of a published set; ``options``: else the format's own.

    ``notes`` of the result counts what was left out and why. Nothing is written.
    """
    chosen = raw_format(name)
    work = Conversion(dataset_name or name, RawFiles(paths), options or chosen.options)
    return chosen.read(work)


def writable(out: str | Path) -> None:
    """InputError, before hours of reading, when ``out`` is something that a data set may not replace."""
    if Path(out).is_dir() and not any(Path(out).iterdir()):
        return
    check_replaceable(Path(out))
