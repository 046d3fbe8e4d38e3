"""Texts of items as publishers wrote them, made plain: HTML entities and tags, lists that are paths, rare names."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

_TAG = re.compile(r"</?[A-Za-z!][^<>]{0,2000}>")
_SCRIPT = re.compile(r"\bgetTime\(|function\s*\(|^\s*<style|^\s*var ")


def plain(value: Any) -> str | None:
    """A text without HTML entities and tags; None where nothing is left, or where it is a page's script."""
    if not isinstance(value, str):
        return None
    if _SCRIPT.search(value):
        return None
    return html.unescape(_TAG.sub("", value)).strip() or None  # tags first: an escaped "<" is a letter of the text


def joined(value: Any) -> str | None:
    """A text, or a list of texts as one."""
    parts = [part for part in map(plain, value if isinstance(value, list) else [value]) if part]
    return " ".join(parts) or None


def names(values: Any) -> list[str]:
    """The texts of a list that hold something."""
    return [name for name in map(plain, values if isinstance(values, list) else [values]) if name]


def path_names(paths: Any) -> list[str]:
    """The names of several paths (root, branch, ..., leaf) without their roots, each once, in order."""
    if not isinstance(paths, list):
        return []
    return list(dict.fromkeys(names([name for path in paths if isinstance(path, list) for name in path[1:]])))


def drop_rare(rows: Sequence[dict[str, Any]], least: int) -> None:
    """Take away brands and category names that fewer than ``least`` items bear; S3-Rec counts both as one kind."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update({*row["categories"], *([row["brand"]] if row["brand"] else [])})
    for row in rows:
        row["categories"] = [name for name in row["categories"] if counts[name] >= least]
        if row["brand"] and counts[row["brand"]] < least:
            row["brand"] = None
