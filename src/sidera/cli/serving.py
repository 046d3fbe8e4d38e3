"""The verbs of a server: ``serve`` answers over HTTP, ``api-keys`` says who may ask."""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sidera import console
from sidera.cli.parsing import Arguments, Verbs, add_threads_flag, add_verb
from sidera.core import InputError

if TYPE_CHECKING:
    from sidera.engine.recommender import Recommender
    from sidera.serve.keys import KeyFile

HERE = ("127.0.0.1", "::1", "localhost")  # who reaches these has the machine already
MOST_WORKERS = 256
BEAM_STEPS = (1.0, 0.5, 0.25)  # of --adapt-beam


def serve_verb(arguments: Arguments) -> None:
    """Answer over HTTP until interrupted."""
    worker, listener = getattr(arguments, "worker", None), getattr(arguments, "listener", None)
    if arguments.workers > 1 and worker is None:
        from sidera.cli.workers import serve_with_workers

        _keys_for(arguments)
        console.say(_where(arguments) + f"; {arguments.workers} workers")
        return serve_with_workers(arguments)
    from sidera.engine.live import LiveRun
    from sidera.engine.scheduler import SchedulerConfig
    from sidera.engine.serving import ServeConfig
    from sidera.serve.config import HttpConfig
    from sidera.serve.door import open_log
    from sidera.serve.server import check_port, serve
    from sidera.serve.tracing import open_tracer
    from sidera.serve.worker import WATCH

    parts = ServeConfig(
        arguments.rerank, arguments.rerank_from, arguments.cold_share, store=arguments.store, fill=arguments.fill,
        category_index=arguments.category_index,
        exposures_days=arguments.exposures_days, exposures_mb=arguments.exposures_mb,
        exposures=arguments.exposures, compiled=not arguments.no_compiled, export_key=arguments.export_key,
        index=arguments.index, index_recall=arguments.index_recall,
    )  # fmt: skip
    scheduler = SchedulerConfig(
        deadline_ms=arguments.deadline_ms, beam_steps=BEAM_STEPS if arguments.adapt_beam else (1.0,)
    )
    http = HttpConfig(
        max_body_mb=arguments.max_body_mb, bodies_mb=max(HttpConfig.bodies_mb, arguments.max_body_mb),
        max_connections=arguments.max_connections, grace_seconds=arguments.grace_seconds, scheduler=scheduler,
    )  # fmt: skip
    keys = _keys_for(arguments)
    if worker is None:
        check_port(arguments.host, arguments.port)
    else:
        http = worker.share(http)
        arguments.watch = arguments.watch or WATCH
    with _stopped_by_signals(), LiveRun.open(arguments.run, arguments.device, parts) as live:
        recommender = live.recommender
        if arguments.watch:
            live.watch(arguments.watch)
        if recommender.behaviour is not None:
            console.say(f"store: {arguments.store}, {recommender.behaviour.store.num_users:,} users")
        if recommender.compiled_note:
            console.say(recommender.compiled_note)
        if recommender.snapshot.index is not None:
            console.say(recommender.snapshot.index.describe())
        if not arguments.threads:
            _choose_threads(recommender)
        if worker is None:
            console.say(_where(arguments))
        port = (arguments.host, arguments.port) if listener is None else listener
        tracer = open_tracer() if arguments.otel else None
        serve(recommender, port, http, keys, open_log(arguments.access_log), worker, tracer)


def _where(arguments: Arguments) -> str:
    address = f"http://{arguments.host}:{arguments.port}"
    return f"serving {arguments.run} on {address} (POST /v1/recommend, page /docs); Ctrl-C stops"


def api_keys_verb(arguments: Arguments) -> dict[str, Any]:
    """Make, list or remove keys."""
    from sidera.serve.keys import add_key, read_keys, remove_key

    if arguments.what != "list" and not arguments.name:
        raise InputError(f"api-keys {arguments.what} without a name", fix=f"sidera api-keys {arguments.what} NAME")
    if arguments.what == "add":
        scopes = [scope.strip() for scope in arguments.scopes.split(",")]
        key = add_key(arguments.keys, arguments.name, scopes, arguments.days, arguments.rate)
        console.result(key)
        console.say(f"{arguments.keys} holds its hash only: the key is not shown again")
        return {"name": arguments.name, "key": key}
    if arguments.what == "remove":
        remove_key(arguments.keys, arguments.name)
        return {"name": arguments.name}
    keys = read_keys(arguments.keys).values()
    for one in keys:
        until = time.strftime("%Y-%m-%d", time.gmtime(one.expires)) if one.expires else "for ever"
        console.result(f"{one.name}\t{','.join(one.scopes)}\t{until}\t{one.rate:g}")
    return {
        "keys": [{"name": one.name, "scopes": one.scopes, "expires": one.expires, "rate": one.rate} for one in keys]
    }


def _keys_for(arguments: Arguments) -> KeyFile | None:
    """Keys are asked for wherever others reach the server, unless whoever starts it says otherwise."""
    from sidera.serve.keys import KeyFile

    if arguments.keys:
        return KeyFile(arguments.keys)
    if arguments.host not in HERE and not arguments.no_keys:
        raise InputError(
            f"--host {arguments.host} lets others in, and nobody needs a key",
            fix="make one (sidera api-keys add NAME --keys FILE) and serve with --keys FILE, or say --no-keys",
        )
    return None


def _choose_threads(recommender: Recommender) -> None:
    """As many threads as are fastest for a batch, one core left to the event loop."""
    import torch

    from sidera.engine.scheduler import trial_requests
    from sidera.ops.threads import choose_threads, usable_threads

    requests = trial_requests(recommender, 16)
    choice = choose_threads(lambda number: recommender.answers(requests), max(1, usable_threads() - 1))
    torch.set_num_threads(choice.threads)
    console.say(choice.describe("batch of 16"))


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGTERM before the server runs stops as Ctrl-C does; while the store is closed a second one changes nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with contextlib.suppress(KeyboardInterrupt):  # the way to stop it, no failure
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of workers; allowed: 1 to {MOST_WORKERS}")
    return int(text)


def add_serve(verbs: Verbs) -> None:
    text = "answer over HTTP: POST /v1/recommend, POST /v1/events, GET /healthz, page /docs"
    parser = add_verb(verbs, "serve", serve_verb, text)
    parser.add_argument("run", help="run folder")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="TCP port")
    parser.add_argument(
        "--workers", type=_count, default=1, metavar="N", help="processes that answer; they share weights and catalogue"
    )
    parser.add_argument("--store", help="folder of the behaviour store: users' events, sent to POST /v1/events")
    parser.add_argument(
        "--exposures", metavar="LOG", help="folder of the exposure log: answers to users, what followed"
    )
    parser.add_argument("--fill", metavar="DATA", help="data folder whose events a new store begins with")
    parser.add_argument(
        "--category-index", default="", metavar="FIELD",
        help="feature of the items by which a user's events are found (GET /v1/history); default: the store's own",
    )  # fmt: skip
    parser.add_argument(
        "--exposures-days", type=float, default=0.0, metavar="N", help="older exposures are let go; 0: none is"
    )
    parser.add_argument(
        "--exposures-mb", type=float, default=0.0, metavar="N", help="beyond so many MiB the oldest are; 0: none is"
    )
    parser.add_argument(
        "--rerank", type=int, default=0, metavar="N", help="candidates that the run's reward chooses among; 0: none"
    )
    parser.add_argument(
        "--rerank-from", choices=("sample", "beam"), default="sample", help="candidates are drawn, or the search's best"
    )
    parser.add_argument("--cold-share", type=float, default=0.0, help="share of slots for items that no log showed")
    parser.add_argument(
        "--index", choices=("", "flat", "ivf", "hnsw"), default="",
        help="search a retriever's items by faiss (extra: dense): exact, or approximate; default: compare all",
    )  # fmt: skip
    parser.add_argument(
        "--index-recall", type=float, default=0.95, metavar="SHARE",
        help="share of the exact top 10 that an approximate index must find; it looks further until it does",
    )  # fmt: skip
    parser.add_argument(
        "--watch", type=float, default=0.0, metavar="SECONDS", help="follow the run's current version; 0: when asked"
    )
    parser.add_argument("--keys", metavar="FILE", help="who may ask (see api-keys); needed beyond this machine")
    parser.add_argument("--no-keys", action="store_true", help="everybody who reaches the address may do everything")
    parser.add_argument(
        "--deadline-ms", type=float, default=1000.0, help="of a request that names none (X-Deadline-Ms)"
    )
    parser.add_argument(
        "--adapt-beam", action="store_true", help="under load: half or a quarter of the recipe's beam; answers name it"
    )
    parser.add_argument("--no-compiled", action="store_true", help="leave what `sidera export` made aside")
    parser.add_argument("--export-key", metavar="FILE", help="key that signed it; default: this machine's own")
    parser.add_argument("--max-body-mb", type=float, default=8.0, help="size of a request, MiB")
    parser.add_argument("--max-connections", type=int, default=2048, help="connections at one time")
    parser.add_argument(
        "--grace-seconds", type=int, default=10, help="after SIGTERM or Ctrl-C: time for what is under way"
    )
    parser.add_argument("--access-log", default="", metavar="FILE", help="a JSON line a request; -: standard error")
    parser.add_argument(
        "--otel", action="store_true", help="send traces by OpenTelemetry (extra: otel; variables OTEL_...)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    add_threads_flag(parser, default=1)  # an answer takes milliseconds: two threads mostly wait for each other


def add_api_keys(verbs: Verbs) -> None:
    text = "keys of those who may ask a server: add, list or remove"
    parser = add_verb(verbs, "api-keys", api_keys_verb, text)
    parser.add_argument("what", choices=("add", "list", "remove"), help="what to do")
    parser.add_argument("name", nargs="?", default="", help="of the key")
    parser.add_argument("--keys", required=True, metavar="FILE", help="file of the keys' hashes (sidera serve --keys)")
    parser.add_argument("--scopes", default="read", help="read (ask), write (send events), admin; separated by commas")
    parser.add_argument("--days", type=float, default=0, help="until it expires; 0: never")
    parser.add_argument("--rate", type=float, default=0, help="requests a second; 0: no limit")
