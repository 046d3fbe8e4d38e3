"""The verbs that answer at the shell: ``recommend`` and its kin."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sidera import console
from sidera.cli.filtering import add_filter_flag, filter_of
from sidera.cli.parsing import Arguments, Verbs, add_threads_flag, add_verb
from sidera.core import InputError, Request

if TYPE_CHECKING:
    from sidera.engine.histories import Behaviour
    from sidera.engine.questions import ItemScore
    from sidera.engine.recommender import Recommender

DAY = 86_400  # seconds


def recommend_verb(arguments: Arguments) -> dict[str, Any]:
    """Answer one history, or one user of a data folder or store, on the command line."""
    recommender = _opened(arguments.run)
    unknown = arguments.unknown or ("refuse" if arguments.user is None else "report")  # who types is told of a slip
    with contextlib.ExitStack() as opened:
        question = replace(
            _question(arguments, recommender, opened), k=arguments.k, filter_seen=arguments.filter_seen,
            filter=filter_of(arguments.filter),
        )  # fmt: skip
        (answer,) = recommender.recommend([question], unknown=unknown)
    if answer.unknown_user:
        console.warn(f"{arguments.store} knows no user {arguments.user!r}")
    if answer.unknown:
        console.warn(f"not in the catalogue, left out: {', '.join(answer.unknown)}")
    if answer.unread:
        console.warn(f"newer than the model, left out: {', '.join(answer.unread)}")
    if answer.unseen:
        console.warn(f"never seen in training, read as unknown: {', '.join(answer.unseen)}")
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
        "unseen": answer.unseen,
        "eligible": answer.eligible,
        "policy_version": answer.policy_version,
    }


def _question(arguments: Arguments, recommender: Recommender, opened: contextlib.ExitStack) -> Request:
    """Whose list is asked for."""
    logs = [name for name in (arguments.data, arguments.store) if name is not None]
    if arguments.user is None:
        if logs:
            raise InputError("--data and --store are of a user", fix="name one with --user, in place of --history")
        return Request(tuple(_keys(arguments.history)))
    if len(logs) != 1:
        raise InputError(f"--user {arguments.user!r} of no log, or of two", fix="give --data FOLDER or --store FOLDER")
    if arguments.store is not None:
        _with_store(recommender, arguments.store, opened)
        return Request(user=arguments.user)
    from sidera.engine.everyone import EveryoneConfig, log_of_run, request_of_user

    dataset = log_of_run(arguments.run, arguments.data, recommender)
    (places,) = (dataset.user_keys == arguments.user).nonzero()
    if not len(places):
        console.warn(f"{arguments.data} knows no user {arguments.user!r}")
        return Request()
    return request_of_user(dataset, int(places[0]), recommender.catalog.schema, EveryoneConfig())


def _with_store(recommender: Recommender, store: str, opened: contextlib.ExitStack) -> Behaviour:
    from sidera.engine.histories import behaviour_of, open_store

    behaviour = behaviour_of(open_store(store, must_exist=True), recommender.catalog)
    opened.callback(behaviour.close)
    recommender.parts = replace(recommender.parts, behaviour=behaviour)
    return behaviour


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
    if arguments.data is not None and arguments.store is not None:
        raise InputError("--data and --store", allowed="one of them")
    asked = arguments.days is not None or bool(arguments.event)
    if asked != (arguments.data is not None or arguments.store is not None):
        raise InputError("--days and --event need --data or --store, and those need one of them", fix="give both")
    if arguments.days is not None and not arguments.days > 0:
        raise InputError(f"--days {arguments.days}", allowed="more than 0")
    category = (field, value) if arguments.category else None
    recommender, log, newest = _opened(arguments.run), None, 0
    with contextlib.ExitStack() as opened:
        if arguments.data is not None:
            log = Dataset.load(arguments.data)
            newest = int(log.times.max(initial=0))
        elif arguments.store is not None:
            behaviour = _with_store(recommender, arguments.store, opened)
            newest = behaviour.store.newest_of_users()[0][0] if behaviour.store.num_users else 0
        since = None if arguments.days is None else max(0, newest + 1 - round(DAY * arguments.days))
        ask = Questions(recommender)
        return _shown(ask.popular(arguments.k, category=category, since=since, events=arguments.event, log=log))


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


def add_recommend(verbs: Verbs) -> None:
    parser = add_verb(verbs, "recommend", recommend_verb, "answer one history or user: item id, score, title")
    parser.add_argument("run", help="run folder; its current version answers")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--history", help="item ids, oldest first, separated by commas")
    who.add_argument("--user", metavar="KEY", help="a user of --data or --store, after the whole history there")
    parser.add_argument("--data", metavar="FOLDER", help="data folder that knows the user")
    parser.add_argument("--store", metavar="FOLDER", help="behaviour store that knows the user; no server has it open")
    parser.add_argument("-k", type=int, default=10, help="items wanted")
    _add_seen_flag(parser)
    add_filter_flag(parser)
    parser.add_argument(
        "--unknown", choices=("report", "refuse"),
        help="unknown ids: leave out and name, or refuse (default: refuse in --history, report of a user)",
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
    parser.add_argument("--store", help="behaviour store whose events are counted")
    parser.add_argument("--days", type=float, help="newest days of --data or --store that count; default: all")
    parser.add_argument(
        "--event", action="append", default=[], metavar="NAME",
        help="count events with this label (click, like, ...); may be repeated",
    )  # fmt: skip
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
