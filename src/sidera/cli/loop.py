"""The verbs of the daily loop: ``export-events``, ``refresh``, ``versions``, ``rollback``."""

from __future__ import annotations

from typing import Any

from sidera import console
from sidera.cli.parsing import Arguments, Verbs, add_threads_flag, add_verb


def export_verb(arguments: Arguments) -> dict[str, Any]:
    """Store and exposure log to a data folder."""
    from dataclasses import asdict

    from sidera.engine.export import export_events, read_exposures, store_columns
    from sidera.store.embedded import EmbeddedStore

    exposures = None if arguments.exposures is None else read_exposures(arguments.exposures)
    with EmbeddedStore(arguments.store, must_exist=True) as store:
        columns, labels = store_columns(store)
        done = export_events(
            store, columns, labels, arguments.out, exposures=exposures, since=arguments.since, until=arguments.until
        )
    console.say(
        f"{arguments.out}: {done.events:,} events of {done.users:,} users, seconds {done.first} to {done.last}"
        + (f"; {done.answered:,} of {done.exposures:,} exposures answered" if exposures is not None else "")
    )
    console.say(f"next: sidera import {arguments.out} --append DATA")
    return {"out": arguments.out, **asdict(done)}


def refresh_verb(arguments: Arguments) -> dict[str, Any]:
    """The next version of a run, or why there is none."""
    from dataclasses import asdict, fields

    from sidera.engine.snapshot import check_device
    from sidera.train.gate import Gates
    from sidera.train.refresh import RefreshConfig, refresh

    check_device(arguments.device)
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    gates = Gates(**{field.name: given[field.name] for field in fields(Gates) if field.name in given})
    own = {field.name: given[field.name] for field in fields(RefreshConfig) if field.name in given}
    done = refresh(arguments.run, arguments.data, RefreshConfig(**own, gates=gates), device=arguments.device)
    if not done.published:
        console.warn(f"WARNING: {done.why}")
    return {"run": arguments.run, **asdict(done)}


def versions_verb(arguments: Arguments) -> dict[str, Any]:
    """What lies side by side, and which of it answers."""
    from dataclasses import asdict
    from datetime import UTC, datetime

    from sidera.engine import versions

    if arguments.add is not None:
        number = versions.add_run(arguments.run, arguments.add)
        console.say(f"{arguments.add} is version {number}; sidera rollback {arguments.run} {number} makes it answer")
    current = versions.current_number(arguments.run)
    found = [versions.read_version(arguments.run, number) for number in versions.numbers(arguments.run)]
    rows = []
    for one in found:
        made = datetime.fromtimestamp(one.created, UTC).strftime("%Y-%m-%d %H:%M") if one.created else ""
        ndcg = one.gate.get("ndcg_new")
        shown = "" if ndcg is None else f"{one.gate['ndcg_old']:.4f} -> {ndcg:.4f}"
        mark, made_of = "*" if one.number == current else "", "" if one.made_of is None else str(one.made_of)
        rows.append((f"{one.number}{mark}", made_of, made, f"{one.items:,}", shown, one.model))
    console.result(console.table(("version (* answers)", "made of", "made (UTC)", "items", "NDCG@10", "weights"), rows))
    kept = [line for line in versions.history(arguments.run) if line["what"] == "kept"]
    if kept:
        console.say(f"last kept back: {kept[-1]['why']}")
    return {"run": arguments.run, "current": current, "versions": [asdict(one) for one in found],
            "history": versions.history(arguments.run)}  # fmt: skip


def rollback_verb(arguments: Arguments) -> dict[str, Any]:
    """Let another version answer."""
    from sidera.engine import versions

    versions.make_current(arguments.run, arguments.version, "sidera rollback")
    console.say(f"{arguments.run}: version {arguments.version} answers; a server with --watch follows")
    return {"run": arguments.run, "current": arguments.version}


def add_refresh(verbs: Verbs) -> None:
    """The defaults are those of ``RefreshConfig`` and ``Gates``, which import torch; a test holds the two equal."""
    parser = add_verb(verbs, "refresh", refresh_verb, "train the current version on with new events and items")
    add = parser.add_argument
    add("run", help="run folder; its current version goes on")
    add("--data", required=True, help="data folder with the new events, e.g. one that was appended to")
    add("--epochs", type=int, default=2, help="passes over the new events")
    add("--lr-ratio", type=float, nargs="+", default=(0.02, 0.2, 1.0), metavar="RATIO",
        help="learning rate / that of the recipe; of several, a larger one where it is clearly better")  # fmt: skip
    add("--replay", type=float, default=1.0, help="older rows trained again for each new one")
    add("--gate-share", type=float, default=0.3, help="of the new events, the newest, that the gate measures on")
    add("--since", type=int, metavar="SECOND", help="events from this unix second on are new (else the version says)")
    add("--max-loss", type=float, default=0.05, help="share of the NDCG@10 that may be lost there")
    add("--min-overlap", type=float, default=0.1, help="share of the old answers that has to stay")
    add("--max-growth", type=float, default=1.5, help="bytes / bytes of the old version")
    add("--rows", type=int, default=1000, help="rows that the gate asks, at most")
    add("--device", default="cpu", help="cpu or cuda")
    add_threads_flag(parser)


def add_versions(verbs: Verbs) -> None:
    parser = add_verb(verbs, "versions", versions_verb, "list the versions of a run, and which of them answers")
    parser.add_argument("run", help="run folder")
    parser.add_argument("--add", metavar="RUN", help="copy another run folder in as a version, e.g. one trained again")
    parser = add_verb(verbs, "rollback", rollback_verb, "let another version of a run answer")
    parser.add_argument("run", help="run folder")
    parser.add_argument("version", type=int, help="a number of `sidera versions RUN`; 0: what `sidera run` made")


def add_export(verbs: Verbs) -> None:
    parser = add_verb(verbs, "export-events", export_verb, "write a store's events and exposures as a data folder")
    parser.add_argument("store", help="folder of the behaviour store; no server has it open")
    parser.add_argument("--exposures", metavar="LOG", help="folder of the exposure log: requests, slots and outcomes")
    parser.add_argument("--out", required=True, help="data folder to write")
    parser.add_argument("--since", type=int, metavar="SECOND", help="only events from this unix second on")
    parser.add_argument("--until", type=int, metavar="SECOND", help="only events before this unix second")
