"""Templates to files. Everything that a template prints is escaped, unless our own code marked it as markup."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sidera.artifacts import write_text

LONGEST = 240  # characters of a title; what is longer is cut and ends in an ellipsis


def write_page(path: str | Path, template: str, **values: Any) -> Path:
    """Render ``templates/<template>`` with ``values`` to ``path`` and return it. A name that is missing is an error."""
    write_text(path, environment().get_template(template).render(**values))
    return Path(path)


@functools.cache
def environment() -> Environment:
    jinja = Environment(
        loader=PackageLoader("sidera.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters.update(number=number, short=short)
    return jinja


def number(value: object, digits: int = 4) -> str:
    """``0.1234``; whole numbers with thousands; a dash where nothing was measured."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{digits}f}" if isinstance(value, float) else str(value)


def short(text: object) -> str:
    """At most ``LONGEST`` characters, on one line."""
    words = " ".join(str(text).split())
    return words if len(words) <= LONGEST else words[: LONGEST - 1] + "…"
