"""A log without some of its items and users, to be asked about them afterwards: the two protocols of cold start.

parts = withhold(dataset, item_share=0.1, user_share=0.2, seed=0)
parts.known      # what a training may see: no withheld item is in it, no asked user has an event
parts.whole      # everything; its first items are those of ``known``, the withheld ones stand behind them
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.newest import in_order
from sidera.data.split import EvalRows, user_groups

LENGTHS = ((1, 1), (2, 2), (3, 5), (6, None))  # events of a history, inclusive


@dataclass(frozen=True)
class Withheld:
    """Both parts, on one numbering of items and users."""

    known: Dataset
    whole: Dataset
    asked_mask: np.ndarray  # (U,) bool: users without an event in ``known``

    @property
    def first_new(self) -> int:
        """Number of the first withheld item."""
        return self.known.num_items


def withhold(dataset: Dataset, item_share: float, user_share: float, seed: int) -> Withheld:
    """Items drawn among those that were ever met; users by their keys. InputError where nothing would be left."""
    counts = np.bincount(dataset.item_ids, minlength=dataset.num_items)
    met = np.flatnonzero(counts)
    number = round(item_share * len(met))
    asked_mask = user_groups(dataset.user_keys, [user_share, 1 - user_share], f"cold{seed}") == 0
    if not 0 < number < len(met) or not asked_mask.any() or asked_mask.all():
        shares = f"{item_share:g} of {len(met)} items and {user_share:g} of {dataset.num_users} users"
        raise InputError(f"{shares} cannot be withheld", fix="give other shares, or a larger log")
    cold_mask = np.zeros(dataset.num_items, dtype=bool)
    cold_mask[np.random.default_rng(seed).choice(met, number, replace=False)] = True
    whole = in_order(dataset, dataset.item_keys[~cold_mask].tolist())
    first_new = int((~cold_mask).sum())
    kept = whole.keep((whole.item_ids < first_new) & ~asked_mask[whole.event_users])
    known = replace(kept, item_keys=whole.item_keys[:first_new], items=whole.items.slice(0, first_new), source="")
    return Withheld(known, whole, asked_mask)


def questions_about(
    dataset: Dataset, asked_mask: np.ndarray, first_new: int, max_rows: int, seed: int
) -> dict[str, EvalRows]:
    """ "cold": what asked users met next was a withheld item; "1", "2", "3-5", "6+": it was a known one, after so many
    events. At most ``max_rows`` cold ones and a quarter of them of each other group, drawn by the seed; histories hold
    whatever came before. InputError where nobody met a withheld item."""
    users = dataset.event_users
    lengths = np.arange(dataset.num_events) - dataset.offsets[users]
    asked, cold = asked_mask[users] & (lengths > 0), dataset.item_ids >= first_new
    masks = {"cold": asked & cold}
    for low, high in LENGTHS:
        name = f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}"
        masks[name] = asked & ~cold & (lengths >= low) & (lengths <= (high or lengths.max(initial=0)))
    rng, found = np.random.default_rng(seed), {}
    for name, mask in masks.items():
        at, most = np.flatnonzero(mask), max_rows if name == "cold" else max(1, max_rows // 4)
        at = np.sort(rng.choice(at, most, replace=False)) if len(at) > most else at
        found[name] = EvalRows(users[at], dataset.offsets[users[at]], at, dataset.item_ids[at])
    if not len(found["cold"]):
        raise InputError("no asked user met a withheld item", fix="give larger shares, or a larger log")
    return found


def without_new(dataset: Dataset, rows: EvalRows, first_new: int) -> tuple[Dataset, EvalRows]:
    """The log without events of withheld items, and the same questions over it, for models that cannot read those. A
    history may be empty then; targets stay what they were."""
    kept_mask = dataset.item_ids < first_new
    places = np.concatenate([[0], np.cumsum(kept_mask)]).astype(np.int64)
    return dataset.keep(kept_mask), EvalRows(rows.user_ids, places[rows.starts], places[rows.ends], rows.target_ids)


def among_all(rows: EvalRows, dataset: Dataset, positive_mask: np.ndarray) -> EvalRows:
    """Questions over ``dataset.keep(positive_mask)`` as questions over ``dataset`` itself, with every event before."""
    return EvalRows(
        rows.user_ids, dataset.offsets[rows.user_ids], np.flatnonzero(positive_mask)[rows.ends], rows.target_ids
    )
