"""The verb ``load``: a load on a server, and what it could bear."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidera import console
from sidera.cli.parsing import Arguments, Verbs, add_verb
from sidera.core import InputError

if TYPE_CHECKING:
    from sidera.traffic.client import Client, Prepared
    from sidera.traffic.requests import Address

FIRST_RATE = 20.0  # requests a second that the search begins with
DEFAULT_CLIENTS = 16


def load_verb(arguments: Arguments) -> dict[str, Any]:
    """Put a load on a server and say how it answered."""
    from sidera.traffic.requests import Address
    from sidera.traffic.server import serving

    check_flags(arguments)
    with contextlib.ExitStack() as stack:
        if Path(arguments.target).is_dir():
            console.say(f"starting sidera serve {arguments.target} {arguments.serve}".rstrip())
            address = stack.enter_context(serving(arguments.target, shlex.split(arguments.serve))).address
        elif arguments.serve:
            raise InputError("--serve goes with a run folder", fix="give the flags to the server itself")
        else:
            address = Address.of(arguments.target)
        requests = requests_of(address, arguments)
        return find(address, requests, arguments) if arguments.find else measure(address, requests, arguments)


def check_flags(arguments: Arguments) -> None:
    """InputError for a number that makes no load."""
    for flag in ("clients", "rate", "slo", "seconds", "timeout", "connections", "length", "k"):
        value = getattr(arguments, flag)
        if value is not None and not 0 < value < 1e7:
            raise InputError(f"--{flag} {value:g}", allowed="above 0, below 10,000,000")
    if not 0 <= arguments.warmup < 1e7 or not 0 <= arguments.events <= 1:
        raise InputError(f"--warmup {arguments.warmup:g} --events {arguments.events:g}", allowed="0 or more; 0 to 1")
    if any(": " not in line for line in arguments.header):
        raise InputError(f"--header {arguments.header!r}", allowed='"Name: value"')
    if arguments.ask == "user" and not arguments.data:
        raise InputError("--ask user needs users", fix="give --data FOLDER, and serve with --store S --fill FOLDER")


def requests_of(address: Address, arguments: Arguments) -> list[Prepared]:
    from sidera.traffic.requests import Asked, get_requests, histories_of, questions, synthetic_histories

    if arguments.get:
        return get_requests(address, arguments.get, arguments.header)
    asked = Asked(arguments.k, arguments.ask, int(arguments.length), arguments.events, arguments.header)
    if arguments.data:
        histories = histories_of(arguments.data)
    else:
        histories = synthetic_histories(address, arguments.header, seed=arguments.seed)
    return questions(address, histories, asked, arguments.seed)


def client(address: Address, requests: list[Prepared], arguments: Arguments) -> Client:
    from sidera.traffic.client import Client

    return Client(
        (address.host, address.port), requests, timeout=arguments.timeout,
        max_connections=int(arguments.connections), seed=arguments.seed,
    )  # fmt: skip


def measure(address: Address, requests: list[Prepared], arguments: Arguments) -> dict[str, Any]:
    """One window, behind its warm-up."""
    load, slo = client(address, requests, arguments), arguments.slo / 1000
    if arguments.rate is not None:
        tally = load.open(arguments.rate, arguments.seconds, arguments.warmup)
    else:
        tally = load.closed(int(arguments.clients or DEFAULT_CLIENTS), arguments.seconds, arguments.warmup)
    console.result(tally.lines(slo))
    return tally.as_dict(slo)


def find(address: Address, requests: list[Prepared], arguments: Arguments) -> dict[str, Any]:
    """The highest rate within the SLO."""
    from sidera.traffic.highest_rate import SHARE, highest_rate
    from sidera.traffic.tally import Tally

    slo = arguments.slo / 1000

    def window(rate: float, seconds: float) -> Tally:
        load = client(address, requests, arguments)
        tally = load.open(rate, seconds, arguments.warmup, slo=slo, miss_share=1 - SHARE)
        console.say(f"{rate:8.1f} requests/s: {'met' if tally.meets(slo, SHARE) else 'missed'}")
        return tally

    found = highest_rate(window, slo, arguments.rate or FIRST_RATE, arguments.seconds)
    if found.confirmed is not None:
        console.result(found.confirmed.lines(slo))
    console.result(f"highest rate with p99 <= {arguments.slo:g} ms: {found.rate:.1f} requests/s")
    return {
        "highest_rate": round(found.rate, 1),
        "tried": found.tried,
        **({} if found.confirmed is None else found.confirmed.as_dict(slo)),
    }


def add_load(verbs: Verbs) -> None:
    text = "put a load on a server: percentiles of its answers, or the highest rate it bears (--find)"
    parser = add_verb(verbs, "load", load_verb, text)
    parser.add_argument("target", help="http://HOST:PORT, or a run folder: it is served for as long as the load lasts")
    loops = parser.add_mutually_exclusive_group()
    loops.add_argument("--clients", type=float, help=f"closed loop: each waits for its answer (else {DEFAULT_CLIENTS})")
    loops.add_argument("--rate", type=float, help="open loop: Poisson arrivals, requests/s; with --find the first rate")
    parser.add_argument("--find", action="store_true", help="search the highest rate whose p99 is within --slo")
    parser.add_argument("--slo", type=float, default=100.0, help="an answer is in time within so many ms")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the window that is counted")
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds of load before it")
    parser.add_argument("--data", help="data folder whose users ask; else histories of the server's popular items")
    parser.add_argument("--ask", choices=("history", "user"), default="history", help="send histories, or user keys")
    parser.add_argument("--length", type=float, default=50, help="events of a history, at most")
    parser.add_argument("-k", type=int, default=10, help="items wanted")
    parser.add_argument("--events", type=float, default=0.0, help="share of requests that send an event")
    parser.add_argument("--get", metavar="PATH", help="GET this path instead, e.g. /healthz")
    parser.add_argument("--header", action="append", default=[], metavar="'NAME: VALUE'", help="of every request")
    parser.add_argument("--connections", type=float, default=512, help="of an open loop, at most")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds until a request is given up")
    parser.add_argument("--serve", default="", metavar="FLAGS", help="flags of `sidera serve` where a run is given")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals and of who asks")
