"""What a server allows: sizes, times and numbers; flags of ``sidera serve`` set them."""

from __future__ import annotations

from dataclasses import dataclass, field

from sidera.core import InputError
from sidera.engine.scheduler import SchedulerConfig

MIB = 2**20


@dataclass(frozen=True)
class HttpConfig:
    """Limits at the door. A client that breaks one is answered 4xx or 503, or cut off where it sends nothing."""

    max_body_mb: float = 8.0  # of one request: a history of 300,000 keys
    bodies_mb: float = 32.0  # of all bodies that are read or worked on at one time, above SMALL_BODY each
    max_connections: int = 2048  # the one that was idle longest makes room for the next
    header_seconds: float = 10.0  # from the first byte of a request, or from the connection, to the end of the header
    body_seconds: float = 30.0  # from the header to the end of the body
    keep_alive_seconds: int = 30  # between two requests of one connection
    grace_seconds: int = 10  # after SIGTERM: what is under way ends, what is left then is cut
    max_writes: int = 256  # event calls that wait for the disk
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    def __post_init__(self) -> None:
        for name in ("max_body_mb", "bodies_mb", "max_connections", "header_seconds", "body_seconds", "max_writes"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} = {getattr(self, name)}", allowed="above 0")
        if self.grace_seconds < 0 or self.keep_alive_seconds < 0:
            raise InputError("grace_seconds or keep_alive_seconds below 0", allowed="0 or more")

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mb * MIB)
