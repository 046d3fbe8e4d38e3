"""Kinds of event (view, addtocart, purchase) and ratings: which events count, and how much.

Every kind becomes a mark (``is_purchase``), so that nothing of it is lost and ``[data] positive`` can name it. With
``--keep``:

* kinds that are not named leave the log (and are counted);
* weights other than 1 become the feedback column ``weight``;
* a kind of weight 0 stays as an exposure that is no positive: the mark ``positive`` says which events are. A data set
  that has that mark is learned from its positive events unless the recipe names another label.

``--min-rating``: events rated lower, or not rated, leave the log, as they do for MovieLens. A model that reads item ids
alone cannot tell a film that was disliked from one that was liked, so an event that stays is one that counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidera.core import InputError
from sidera.data.features import POSITIVE
from sidera.data.intake.events import MAX_KINDS

SHOWN = 8


def count_kinds(kinds: pa.ChunkedArray) -> dict[str, int]:
    """kind -> events."""
    counts = pc.value_counts(kinds.combine_chunks() if kinds.num_chunks == 1 else pa.concat_arrays(kinds.chunks))
    values = counts.field("values")
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return dict(zip(values.to_pylist(), counts.field("counts").to_pylist(), strict=True))


def apply_kinds(events: pa.Table, keep: Mapping[str, float], column: str) -> tuple[pa.Table, dict[str, int], str]:
    """-> (events with marks and weights instead of ``event``, kind -> events read, what was done in words)."""
    counts = count_kinds(events["event"])
    ordered = sorted(counts, key=lambda kind: -counts[kind])
    if keep:
        unknown = [kind for kind in keep if kind not in counts]
        if unknown:
            raise InputError(
                f"--keep {unknown[0]!r}: column {column!r} has no such kind of event",
                allowed=", ".join(map(str, ordered[:SHOWN])),
            )
        kept_mask = pc.is_in(events["event"].cast(pa.string()), value_set=pa.array(list(keep), type=pa.string()))
        events = events.filter(kept_mask)
        gone = {kind: count for kind, count in counts.items() if kind not in keep}
        words = f"; left out: {', '.join(f'{kind} {count:,}' for kind, count in gone.items())}" if gone else ""
    elif len(counts) > MAX_KINDS:
        return events.drop_columns(["event"]), {}, f"column {column!r} has {len(counts):,} values: no kind of event"
    elif len(counts) > 1:
        words = (
            f"; all count alike, a look and a purchase: --keep {ordered[-1]} takes one kind, "
            f"--keep {ordered[-1]}=3,{ordered[0]}=0 weighs them"
        )
    else:
        words = ""
    kinds = events["event"].cast(pa.string())
    events = events.drop_columns(["event"])
    if len(keep or counts) > 1:
        for kind in keep or ordered:
            name = _free_name(f"is_{re.sub(r'[^0-9a-zA-Z]+', '_', kind.strip()).strip('_').lower() or 'none'}", events)
            events = events.append_column(name, pc.equal(kinds, kind))
    weights = set(keep.values())
    if len(weights) > 1 or weights - {0.0, 1.0}:
        values = np.zeros(len(kinds))
        for kind, weight in keep.items():
            values[pc.equal(kinds, kind).to_numpy()] = weight
        events = events.append_column(_free_name("weight", events), pa.array(values))
    if 0.0 in weights:
        chosen = [kind for kind, weight in keep.items() if weight]
        mark = pc.is_in(kinds, value_set=pa.array(chosen, type=pa.string()))
        if POSITIVE in events.column_names:
            events = events.drop_columns([POSITIVE])
        events = events.append_column(POSITIVE, mark)
        words += f"; no positives: {', '.join(kind for kind, weight in keep.items() if not weight)}"
    return events, counts, words


def apply_rating(events: pa.Table, min_rating: float | None, column: str) -> tuple[pa.Table, str]:
    """-> (events rated at least so, what was done in words)."""
    if min_rating is None:
        if "rating" not in events.column_names:
            return events, ""
        ends = pc.min_max(pc.filter(events["rating"], pc.is_finite(events["rating"]))).as_py()
        if ends["min"] is None or ends["min"] == ends["max"]:
            return events, ""
        low, high = ends["min"], ends["max"]
        return events, (
            f"rated {low:g} to {high:g} ({column}), all of them count as liked: --min-rating "
            f"{low + 0.75 * (high - low):g} leaves out what was rated lower"
        )
    if "rating" not in events.column_names:
        raise InputError(
            f"--min-rating {min_rating:g}, but the log has no rating", fix="say which column it is: --rating"
        )
    kept_mask = pc.fill_null(pc.greater_equal(events["rating"], min_rating), False)
    number = int(pc.sum(kept_mask).as_py() or 0)
    if not number:
        raise InputError(f"no event is rated {min_rating:g} or more", fix="pass a smaller --min-rating")
    lower = events.num_rows - number
    return events.filter(kept_mask), f"{lower:,} events rated below {min_rating:g} or not at all are left out"


def _free_name(name: str, events: pa.Table) -> str:
    free, number = name, 2
    while free in events.column_names:
        free, number = f"{name}_{number}", number + 1
    return free
