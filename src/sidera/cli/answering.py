"""The verbs that answer: ``recommend`` at the shell, ``serve`` over HTTP."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidera import console
from sidera.cli.parsing import Arguments, Verbs, add_threads_flag, add_verb
from sidera.core import InputError

if TYPE_CHECKING:
    from sidera.engine.histories import Behaviour
    from sidera.engine.recommender import Recommender


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
    if answer.cold_start:
        console.warn("nothing of the history is known: the most popular items follow")
    if len(answer.item_keys) < arguments.k:
        console.warn(f"only {len(answer.item_keys)} items can be answered (k = {arguments.k})")
    found = list(zip(answer.item_keys, answer.scores, answer.titles, strict=True))
    for key, score, title in found:
        console.result(f"{key}\t{score:.4f}\t{title or ''}")
    return {
        "items": [{"item": key, "score": score, "title": title} for key, score, title in found],
        "cold_start": answer.cold_start,
        "unknown": answer.unknown,
        "unread": answer.unread,
        "policy_version": answer.policy_version,
    }


def serve_verb(arguments: Arguments) -> None:
    """Answer over HTTP until interrupted."""
    from sidera.engine.exposures import ExposureWriter
    from sidera.engine.serving import Serving
    from sidera.serve.app import check_port, serve
    from sidera.store.exposures import ExposureLog

    if arguments.fill and not arguments.store:
        raise InputError(f"--fill {arguments.fill} without a store", fix="name its folder with --store")
    if arguments.exposures and not arguments.store:
        raise InputError(
            f"--exposures {arguments.exposures} without a store: logged answers are of requests that name a user",
            fix="name the store's folder with --store",
        )
    check_port(arguments.host, arguments.port)
    plan = Serving(Path(arguments.run), arguments.rerank, arguments.rerank_from, cold_share=arguments.cold_share)
    recommender = plan.open(arguments.device)
    with contextlib.ExitStack() as opened:
        if arguments.store:
            opened.enter_context(_open_store(recommender, arguments))
        if arguments.exposures:
            catalog = recommender.catalog
            log = ExposureLog.open(arguments.exposures, codebook_id=catalog.codebook_id, num_levels=catalog.num_levels)
            recommender.exposures = opened.enter_context(ExposureWriter(log))
        console.say(
            f"serving {arguments.run} on http://{arguments.host}:{arguments.port} (POST /v1/recommend, page /docs);"
            " Ctrl-C stops"
        )
        with contextlib.suppress(KeyboardInterrupt):  # the way to stop it, no failure
            serve(recommender, arguments.host, arguments.port)
        if recommender.behaviour is not None:
            recommender.behaviour.store.snapshot()  # the next start reads it instead of all events


def _open_store(recommender: Recommender, arguments: Arguments) -> Behaviour:
    """The behaviour store of ``--store``, with the events of ``--fill`` where it is new."""
    from sidera.data.config import load_dataset
    from sidera.engine.histories import open_behaviour
    from sidera.train.recipe import Recipe

    behaviour = open_behaviour(arguments.store, recommender.catalog, recommender.reads.lifelong)
    recommender.behaviour = behaviour
    try:
        if arguments.fill and not behaviour.store.num_users:
            behaviour.fill(load_dataset(arguments.fill, Recipe.of_run(arguments.run).data))
    except BaseException:
        behaviour.close()
        raise
    console.say(f"store: {arguments.store}, {behaviour.store.num_users:,} users")
    return behaviour


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
