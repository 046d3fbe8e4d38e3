"""What a policy is asked, and how its answer is taken: a policy may be wrong, slow or broken, the app goes on.

    def policy(requests: Requests) -> ids (B, k)      # an array, or B lists of item numbers

A slot whose answer is no item of the world, or one that stands further up in the same slate, or is missing, stays
empty; the user is as annoyed as by a skipped item, and the fault is counted. A policy that raises, or answers something
that is no list, loses the users of that batch; one that does not answer in time is not asked again and loses them all.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FAULTS = ("unknown", "duplicate", "missing")


@dataclass(frozen=True)
class Requests:
    """B users who wait for k items each. Item numbers are the rows of the world's items table, times unix seconds."""

    user_ids: NDArray[np.int64]  # (B,)
    item_ids: NDArray[np.int64]  # (T,) all that each was shown before, oldest first
    offsets: NDArray[np.int64]  # (B+1,)
    times: NDArray[np.int64]  # (T,)
    feedback: Mapping[str, NDArray[Any]]  # click, watch_time, like, ... (T,): what the log has, and no more
    queries: NDArray[Any]  # (S,) str: what each user searched for, oldest first
    query_offsets: NDArray[np.int64]  # (B+1,)
    query_times: NDArray[np.int64]  # (S,)
    profiles: Mapping[str, NDArray[Any]]  # age_group, region, device: (B,) str, as users.parquet has them
    as_of: NDArray[np.int64]  # (B,); a query of this very moment was typed before the request
    k: int

    @property
    def num_requests(self) -> int:
        return len(self.user_ids)

    def histories(self, signal: str | None = "click") -> list[NDArray[np.int64]]:
        """Item numbers per user, oldest first: those with the signal, or all that were shown."""
        mask = np.ones(len(self.item_ids), dtype=bool) if signal is None else self.feedback[signal].astype(bool)
        cuts = np.concatenate([[0], np.cumsum(mask)])[self.offsets[1:-1]]
        return np.split(self.item_ids[mask], cuts)


Policy = Callable[[Requests], "NDArray[Any] | Sequence[Sequence[int]]"]


class PolicyFailed(Exception):
    """The policy raised, hung, or answered something that cannot be read; the text says which."""


class Guarded:
    """Calls a policy on a thread of its own, so that one that hangs can be left behind."""

    def __init__(self, policy: Policy, num_items: int, timeout: float) -> None:
        self.policy, self.num_items, self.timeout = policy, num_items, timeout
        self.hung = False
        self._tasks: queue.SimpleQueue[Requests | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, str]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)  # a hung one does not hold up the exit
        self._thread.start()

    def ask(self, requests: Requests) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """(B, k) items, -1 where a slot stays empty, and (B, 3) faults in the order of ``FAULTS``."""
        if self.hung:
            raise PolicyFailed("did not answer earlier")
        self._tasks.put(requests)
        try:
            answer, problem = self._answers.get(timeout=self.timeout)
        except queue.Empty:
            self.hung = True
            raise PolicyFailed(f"no answer within {self.timeout:g} s") from None
        if problem:
            raise PolicyFailed(problem)
        return read_answer(answer, requests.num_requests, requests.k, self.num_items)

    def close(self) -> None:
        self._tasks.put(None)

    def _work(self) -> None:
        while (requests := self._tasks.get()) is not None:
            try:
                self._answers.put((self.policy(requests), ""))
            except BaseException as error:  # SystemExit too: nothing of a policy may end the run
                self._answers.put((None, f"raised {type(error).__name__}: {error}"))


def read_answer(answer: Any, num_users: int, k: int, num_items: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Items and faults; what stands behind the k-th position is not looked at. PolicyFailed when it is no list."""
    answered = np.full((num_users, k), -1, dtype=np.int64)  # -1: missing
    if isinstance(answer, np.ndarray) and answer.ndim == 2 and answer.dtype.kind in "iu":
        part = answer[:num_users, :k]
        answered[: part.shape[0], : part.shape[1]] = np.where(part < num_items, part, num_items)
        answered[answered < -1] = num_items
    else:
        for row, items in enumerate(_rows(answer)[:num_users]):
            for slot, item in enumerate(_rows(items)[:k]):
                answered[row, slot] = _item_number(item, num_items)
    missing_mask = answered == -1
    unknown_mask = answered == num_items
    earlier_mask = np.tril(np.ones((k, k), dtype=bool), -1)
    repeats = (answered[:, :, None] == answered[:, None, :]) & earlier_mask  # (B, k, k)
    duplicate_mask = repeats.any(axis=2) & ~missing_mask & ~unknown_mask
    faults = np.stack([mask.sum(axis=1) for mask in (unknown_mask, duplicate_mask, missing_mask)], axis=1)
    bad_mask = missing_mask | unknown_mask | duplicate_mask
    return np.where(bad_mask, -1, answered).astype(np.int32), faults.astype(np.int64)


def _rows(value: Any) -> Sequence[Any]:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise PolicyFailed(f"answered a {type(value).__name__} where a list belongs")
    return value


def _item_number(item: Any, num_items: int) -> int:
    """A number of the world's, -1 for an empty position, ``num_items`` for what is no item."""
    if item is None or (isinstance(item, int) and item == -1):
        return -1
    if isinstance(item, bool) or not isinstance(item, int | np.integer):
        return num_items
    return int(item) if 0 <= item < num_items else num_items
