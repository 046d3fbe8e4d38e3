"""A small log and a recommender whose every list is known: no model is trained here."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from sidera.batch import Reads
from sidera.data.dataset import Dataset
from sidera.data.features import FeatureSchema
from sidera.data.items import ItemTable
from sidera.data.reading import LogReading, Reading


def make_dataset(num_users: int = 60, num_items: int = 40, seed: int = 0) -> Dataset:
    """Walks around a ring of items, popular ones oftener; item 0..N-1 has key i00.. and a title."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 14, num_users)
    weights = 1 / np.arange(1, num_items)
    walks = [rng.choice(num_items - 1, length, p=weights / weights.sum()) for length in lengths]
    item_keys = np.array([f"i{item:02}" for item in range(num_items)], dtype=object)
    user_keys = np.array([f"u{user:02}" for user in range(num_users)], dtype=object)
    return Dataset(
        name='ring <&> "log"',
        item_keys=item_keys,
        user_keys=user_keys,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_ids=np.concatenate(walks).astype(np.int64),
        times=np.concatenate([np.arange(length) for length in lengths]).astype(np.int64),
        feedback={},
        items=pa.table({"key": item_keys.tolist(), "title": [f"Item <{key}>" for key in item_keys]}),
        users=pa.table({"key": user_keys.tolist()}),
    )


def make_catalog(dataset: Dataset, *, share: int = 1, removed: tuple[int, ...] = ()) -> Any:
    """``share`` neighbouring items behind one semantic ID."""
    num = dataset.num_items
    sids = np.arange(num) // share
    removed_mask = np.zeros(num, dtype=bool)
    removed_mask[list(removed)] = True
    return SimpleNamespace(
        item_keys=dataset.item_keys.astype(str),
        codes=np.stack([sids // 4, sids % 4], axis=1).astype(np.int32),
        removed=removed_mask,
        num_items=num,
        codebook_id="c0de",
        items_version=1,
    )


@dataclass
class FakeRecommender:
    """Scores (user, item) from a fixed table, so that a test can work out every list by itself.

    A generator scores semantic IDs and serves the items of one in the order of their ids.
    """

    catalog: Any
    table: np.ndarray  # (U, N)
    kind: str = "scorer"
    max_history: int = 20
    calls: list[dict[str, Any]] = field(default_factory=list)

    @property
    def reads(self) -> Reads:
        return Reads(self.max_history)

    def read_log(self, dataset: Dataset) -> LogReading:
        return Reading(FeatureSchema(), ItemTable.plain(dataset.num_items), self.reads).over(dataset)

    def rank(self, batch: Any, k: int, *, beam: int = 50, filter_seen: bool = False) -> Any:
        self.calls.append({"k": k, "beam": beam, "filter_seen": filter_seen, "targets": batch.targets})
        sids = np.unique(self.catalog.codes, axis=0, return_inverse=True)[1].reshape(-1)
        item_ids = np.full((batch.num_histories, k), -1)
        for row, user in enumerate(batch.requests.user_ids.tolist()):
            history = batch.item_ids[batch.events.offsets[row] : batch.events.offsets[row + 1]].tolist()
            out = set(history if filter_seen else []) | set(np.flatnonzero(self.catalog.removed).tolist())
            order = self.order(user, sids)
            kept = [item for item in order if item not in out][:k]
            item_ids[row, : len(kept)] = kept
        leaves = torch.from_numpy(sids[item_ids]) if self.kind == "generator" else None
        ids = torch.from_numpy(item_ids)
        return SimpleNamespace(item_ids=ids, scores=-torch.arange(k).float().expand(ids.shape), leaf_ids=leaves)

    def order(self, user: int, sids: np.ndarray) -> list[int]:
        if self.kind == "scorer":
            return np.argsort(-self.table[user], kind="stable").tolist()
        return np.lexsort((np.arange(len(sids)), -self.table[user][sids])).tolist()

    def free_generation(self, batch: Any, beam: int) -> torch.Tensor:
        return torch.arange(beam).expand(batch.num_histories, beam) % 4 != 3


def fake(
    dataset: Dataset, *, kind: str = "scorer", seed: int = 0, hint: float = 0.0, share: int = 1, **more: Any
) -> Any:
    """Random scores; ``hint`` lifts each user's last item, so that better and worse recommenders can be made."""
    table = np.random.default_rng(seed).random((dataset.num_users, dataset.num_items))
    last = dataset.item_ids[dataset.offsets[1:] - 1]
    if kind == "generator":
        last = last // share
    table[np.arange(dataset.num_users), last] += hint
    return FakeRecommender(make_catalog(dataset, share=share, **more), table, kind)
