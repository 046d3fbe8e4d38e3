"""A second version beside the one that answers: as a canary it answers a share of the users, as a shadow it is
compared behind their answers.

The user's key decides, with the version's number: one user meets one version for as long as the trial lasts, and
another trial divides the users in another way. Who names no user is answered by the version that answers.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Literal

from sidera.core import InputError, Recommendation, Request
from sidera.engine.answerer import Answerer
from sidera.engine.serving import Serving

Side = Literal["canary", "shadow"]
WAITING = 256  # answers that wait to be compared; more are let go


@dataclass
class Compared:
    """What a shadow answered beside the answers that users saw."""

    answers: int = 0
    shared: float = 0.0  # sum over answers: share of the items shown that the shadow answers too
    failed: int = 0
    let_go: int = 0  # not compared: too many waited


@dataclass
class Route:
    """Who else answers, or is compared."""

    serving: Serving
    number: int  # version of the run
    share: float  # of the users
    side: Side
    answered: int = 0  # requests that a canary answered
    compared: Compared = field(default_factory=Compared)

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"share = {self.share} of the users", allowed="above 0, at most 1")

    def takes(self, request: Request) -> bool:
        """Whether the request is of one of its users."""
        if request.user is None:
            return False
        word = blake2b(f"{self.number}:{request.user}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(word, "big") / 2**64 < self.share

    def status(self) -> dict[str, Any]:
        made = self.compared
        return {
            "version": self.number, "policy_version": self.serving.snapshot.version, "side": self.side,
            "share": self.share, "answered": self.answered, "compared": made.answers,
            "shared_items": round(made.shared / made.answers, 4) if made.answers else None,
            "failed": made.failed, "let_go": made.let_go,
        }  # fmt: skip


class Shadow:
    """Answers a second time what was answered already, on a thread of its own, and compares."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[Route, Request, tuple[str, ...]]] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def answer(
        self, answerer: Answerer, route: Route, requests: Sequence[Request], refuse: bool
    ) -> list[Recommendation]:
        """Each request by who answers its user, in their order; what a shadow is to be compared on is noted."""
        theirs = [place for place, request in enumerate(requests) if route.takes(request)]
        if route.side == "shadow":
            answers = answerer(requests, refuse)
            for place in theirs:
                answers[place] = replace(answers[place], shadow_version=route.serving.snapshot.version)
            self.compare(route, [requests[place] for place in theirs], [answers[place] for place in theirs])
            return answers
        ours = [place for place in range(len(requests)) if place not in {*theirs}]
        parts = route.serving.parts
        canary = Answerer(route.serving.snapshot, route.serving.pipeline, parts.behaviour, parts.exposures)
        found: dict[int, Recommendation] = {}
        for one, places in ((answerer, ours), (canary, theirs)):
            if places:
                found |= zip(places, one([requests[place] for place in places], refuse), strict=True)
        route.answered += len(theirs)
        return [found[place] for place in range(len(requests))]

    def compare(self, route: Route, requests: Sequence[Request], answers: Sequence[Recommendation]) -> None:
        """Takes what is to be compared; never waits."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
                self._thread.start()
        for request, answer in zip(requests, answers, strict=True):
            try:
                self._waiting.put_nowait((route, request, answer.item_keys))
            except queue.Full:
                route.compared.let_go += 1

    def wait(self) -> None:
        """Until everything taken is compared."""
        self._waiting.join()

    def _run(self) -> None:
        while True:
            route, request, shown = self._waiting.get()
            try:
                serving = route.serving
                (answer,) = Answerer(serving.snapshot, serving.pipeline, serving.parts.behaviour)(
                    [request], refuse=False
                )
                route.compared.answers += 1
                route.compared.shared += len({*shown} & {*answer.item_keys}) / max(1, len(shown))
            except Exception:  # whatever it is, the users' answers are not touched
                route.compared.failed += 1
            finally:
                self._waiting.task_done()
