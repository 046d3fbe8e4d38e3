"""The verbs that answer: ``recommend`` at the shell, ``serve`` over HTTP."""

from __future__ import annotations

import contextlib
from typing import Any

from sidera import console
from sidera.cli.parsing import Arguments, Verbs, add_threads_flag, add_verb


def recommend_verb(arguments: Arguments) -> dict[str, Any]:
    """Answer one history on the command line."""
    from sidera.engine.recommender import Recommender

    recommender = Recommender.load(arguments.run)
    history = [key.strip() for key in arguments.history.split(",") if key.strip()]
    (answer,) = recommender.recommend(
        [history], arguments.k, filter_seen=arguments.filter_seen, unknown=arguments.unknown
    )
    if answer.unknown:
        console.warn(f"not in the catalogue, left out: {', '.join(answer.unknown)}")
    if answer.unread:
        console.warn(f"newer than the model, left out: {', '.join(answer.unread)}")
    if answer.unseen:
        console.warn(f"never seen in training, read as unknown: {', '.join(answer.unseen)}")
    if answer.cold_start:
        console.warn("nothing of the history is known: the most popular items follow")
    if len(answer.item_keys) < arguments.k:
        console.warn(f"only {len(answer.item_keys)} items can be answered (k = {arguments.k})")
    rows = list(zip(answer.item_keys, answer.scores, answer.titles, strict=True))
    for key, score, title in rows:
        console.result(f"{key}\t{score:.4f}\t{title or ''}")
    return {
        "items": [{"item": key, "score": score, "title": title} for key, score, title in rows],
        "cold_start": answer.cold_start,
        "unknown": answer.unknown,
        "unread": answer.unread,
        "unseen": answer.unseen,
        "policy_version": answer.policy_version,
    }


def serve_verb(arguments: Arguments) -> None:
    """Answer over HTTP until interrupted."""
    from sidera.engine.recommender import Recommender
    from sidera.engine.serving import ServeConfig
    from sidera.serve.app import check_port, serve

    config = ServeConfig(
        arguments.rerank, arguments.rerank_from, arguments.cold_share, store=arguments.store, fill=arguments.fill,
        exposures=arguments.exposures,
    )  # fmt: skip
    check_port(arguments.host, arguments.port)
    with Recommender.load(arguments.run, device=arguments.device, serve=config) as recommender:
        if recommender.behaviour is not None:
            console.say(f"store: {arguments.store}, {recommender.behaviour.store.num_users:,} users")
        console.say(
            f"serving {arguments.run} on http://{arguments.host}:{arguments.port} (POST /v1/recommend, page /docs);"
            " Ctrl-C stops"
        )
        with contextlib.suppress(KeyboardInterrupt):  # the way to stop it, no failure
            serve(recommender, arguments.host, arguments.port)



def add_recommend(verbs: Verbs) -> None:
    parser = add_verb(verbs, "recommend", recommend_verb, "answer one history: item id, score, title")
    parser.add_argument("run", help="run folder")
    parser.add_argument("--history", required=True, help="item ids, oldest first, separated by commas")
    parser.add_argument("-k", type=int, default=10, help="items wanted")
    parser.add_argument("--filter-seen", action="store_true", help="leave out items of the history")
    parser.add_argument(
        "--unknown", choices=("report", "refuse"), default="refuse", help="unknown ids: leave out and name, or refuse"
    )
    add_threads_flag(parser, default=1)


def add_serve(verbs: Verbs) -> None:
    text = "answer over HTTP: POST /v1/recommend, POST /v1/events, GET /healthz, page /docs"
    parser = add_verb(verbs, "serve", serve_verb, text)
    parser.add_argument("run", help="run folder")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="TCP port")
    parser.add_argument("--store", help="folder of the behaviour store: users' events, sent to POST /v1/events")
    parser.add_argument(
        "--exposures", metavar="LOG", help="folder of the exposure log: answers to users, what followed"
    )
    parser.add_argument("--fill", metavar="DATA", help="data folder whose events a new store begins with")
    parser.add_argument(
        "--rerank", type=int, default=0, metavar="N", help="candidates that the run's reward chooses among; 0: none"
    )
    parser.add_argument(
        "--rerank-from", choices=("sample", "beam"), default="sample", help="candidates are drawn, or the search's best"
    )
    parser.add_argument("--cold-share", type=float, default=0.0, help="share of slots for items that no log showed")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    add_threads_flag(parser, default=1)  # an answer takes milliseconds: two threads mostly wait for each other
