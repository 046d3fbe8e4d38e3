"""The verbs that answer: ``recommend`` at the shell, ``serve`` over HTTP."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sidera import console
from sidera.cli.filtering import add_filter_flag, filter_of
from sidera.cli.parsing import Arguments, Verbs, add_threads_flag, add_verb
from sidera.core import InputError, Request

if TYPE_CHECKING:
    from sidera.engine.questions import ItemScore
    from sidera.engine.recommender import Recommender


def recommend_verb(arguments: Arguments) -> dict[str, Any]:
    """Answer one history on the command line."""
    from sidera.engine.recommender import Recommender

    recommender, history = Recommender.load(arguments.run), _keys(arguments.history)
    question = Request(
        tuple(history), arguments.k, filter_seen=arguments.filter_seen, filter=filter_of(arguments.filter)
    )
    (answer,) = recommender.recommend([question], unknown=arguments.unknown)
    if answer.unknown:
        console.warn(f"not in the catalogue, left out: {', '.join(answer.unknown)}")
    if answer.unread:
        console.warn(f"newer than the model, left out: {', '.join(answer.unread)}")
    if answer.cold_start:
        console.warn("nothing of the history is known: the most popular items follow")
    if answer.eligible == 0:
        console.warn("no item passes the filter: its conditions contradict, or name nothing that there is")
    elif len(answer.item_keys) < arguments.k:
        console.warn(f"only {len(answer.item_keys)} items can be answered (k = {arguments.k})")
    rows = list(zip(answer.item_keys, answer.scores, answer.titles, strict=True))
    for key, score, title in rows:
        console.result(f"{key}\t{score:.4f}\t{title or ''}")
    return {
        "items": [{"item": key, "score": score, "title": title} for key, score, title in rows],
        "cold_start": answer.cold_start,
        "unknown": answer.unknown,
        "unread": answer.unread,
        "eligible": answer.eligible,
        "policy_version": answer.policy_version,
    }


def score_verb(arguments: Arguments) -> dict[str, Any]:
    """Score the given items after a history, best first."""
    from sidera.engine.questions import Questions

    ask = Questions(_opened(arguments.run))
    history, items = _keys(arguments.history), _keys(arguments.items)
    return _shown(ask.rerank(history, items))


def similar_verb(arguments: Arguments) -> dict[str, Any]:
    """What is like an item, or goes with a cart of several."""
    from sidera.engine.questions import Questions

    return _shown(Questions(_opened(arguments.run)).related(_keys(arguments.items), arguments.k))


def popular_verb(arguments: Arguments) -> dict[str, Any]:
    """What most people take, of a category or in the newest days of a log."""
    from sidera.data.dataset import Dataset
    from sidera.engine.questions import Questions

    field, equals, value = (arguments.category or "").partition("=")
    if arguments.category and not (field and equals and value):
        raise InputError(f"--category {arguments.category!r}", allowed="FIELD=VALUE")
    if (arguments.days is None) != (arguments.data is None):
        raise InputError("--days needs --data, and --data needs --days", fix="give both, or neither")
    log = since = None
    if arguments.data is not None:
        if not arguments.days > 0:
            raise InputError(f"--days {arguments.days}", allowed="more than 0")
        log = Dataset.load(arguments.data)
        newest = int(log.times.max(initial=0))
        since = newest + 1 - round(86_400 * arguments.days)
    category = (field, value) if arguments.category else None
    return _shown(Questions(_opened(arguments.run)).popular(arguments.k, category=category, since=since, log=log))


def recommend_all_verb(arguments: Arguments) -> dict[str, Any]:
    """Answer every user of a data folder into Parquet files."""
    from sidera.engine.everyone import EveryoneConfig, log_of_run, recommend_all, requests_of_log

    config = EveryoneConfig(arguments.k, arguments.filter_seen, arguments.as_of)
    recommender = _opened(arguments.run)
    dataset = log_of_run(arguments.run, arguments.data, recommender)
    asked = requests_of_log(dataset, recommender.catalog.schema, config)
    with console.Progress("recommend-all", total=dataset.num_users, unit="user") as progress:
        done = recommend_all(
            recommender, asked, arguments.out, config, source=dataset.digest, progress=progress.to
        )  # fmt: skip
    console.say(f"{arguments.out}: {done['num_users']:,} users in {done['num_parts']:,} parts")
    return done


def _opened(run: str) -> Recommender:
    from sidera.engine.live import open_current

    return open_current(run)


def _keys(text: str) -> list[str]:
    return [key.strip() for key in text.split(",") if key.strip()]


def _shown(items: Sequence[ItemScore]) -> dict[str, Any]:
    for one in items:
        console.result(f"{one.item}\t{one.score:.4f}\t{one.title or ''}")
    return {"items": [{"item": one.item, "score": one.score, "title": one.title} for one in items]}


def serve_verb(arguments: Arguments) -> None:
    """Answer over HTTP until interrupted."""
    from sidera.engine.live import LiveRun
    from sidera.engine.serving import ServeConfig
    from sidera.serve.server import check_port, serve

    config = ServeConfig(
        arguments.rerank, arguments.rerank_from, arguments.cold_share, store=arguments.store, fill=arguments.fill,
        exposures=arguments.exposures,
    )  # fmt: skip
    check_port(arguments.host, arguments.port)
    with LiveRun.open(arguments.run, arguments.device, config) as live:
        recommender = live.recommender
        if arguments.watch:
            live.watch(arguments.watch)
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
    _add_seen_flag(parser)
    add_filter_flag(parser)
    parser.add_argument(
        "--unknown", choices=("report", "refuse"), default="refuse", help="unknown ids: leave out and name, or refuse"
    )
    add_threads_flag(parser, default=1)


def _add_seen_flag(parser: argparse.ArgumentParser) -> None:
    text = "leave out items of the history, or keep them (default: as the training log's users came back to some)"
    parser.add_argument("--filter-seen", action=argparse.BooleanOptionalAction, help=text)


def add_questions(verbs: Verbs) -> None:
    """``score``, ``similar``, ``popular`` and ``recommend-all``."""
    parser = add_verb(verbs, "score", score_verb, "score given items after a history, best first")
    parser.add_argument("run", help="run folder")
    parser.add_argument("--history", required=True, help="item ids, oldest first, separated by commas")
    parser.add_argument("--items", required=True, help="item ids to score, separated by commas")
    add_threads_flag(parser, default=1)
    parser = add_verb(verbs, "similar", similar_verb, "items like one, or that go with a cart of several")
    parser.add_argument("run", help="run folder")
    parser.add_argument("--items", required=True, help="item ids, separated by commas; their order says nothing")
    parser.add_argument("-k", type=int, default=10, help="items wanted")
    add_threads_flag(parser, default=1)
    parser = add_verb(verbs, "popular", popular_verb, "the items with the most events")
    parser.add_argument("run", help="run folder")
    parser.add_argument("-k", type=int, default=10, help="items wanted")
    parser.add_argument("--category", metavar="FIELD=VALUE", help="only items with this value; default: all")
    parser.add_argument("--data", help="data folder whose events are counted; default: the training log's counts")
    parser.add_argument("--days", type=float, help="newest days of --data that count")
    add_threads_flag(parser, default=1)
    text = "answer every user of a data folder into Parquet files; the same command goes on where it was stopped"
    parser = add_verb(verbs, "recommend-all", recommend_all_verb, text)
    parser.add_argument("run", help="run folder")
    parser.add_argument("--data", required=True, help="data folder: its users are answered after their whole histories")
    parser.add_argument("--out", required=True, help="folder for part-00000.parquet, ... and recommendations.json")
    parser.add_argument("-k", type=int, default=10, help="items for each user")
    _add_seen_flag(parser)
    parser.add_argument("--as-of", type=int, help="unix seconds; only earlier events are read; default: all")
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
    parser.add_argument(
        "--watch", type=float, default=0.0, metavar="SECONDS", help="follow the run's current version; 0: when asked"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    add_threads_flag(parser, default=1)  # an answer takes milliseconds: two threads mostly wait for each other
