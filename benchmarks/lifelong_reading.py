"""Claim `lifelong_reading`: training reads a log's representatives as a store would answer, without clustering a row.

    python benchmarks/lifelong_reading.py [--quick]

One user of 100,000 events (24-dimensional items of the simulated world's size, drawn around topics, half of the draws
from ten favourites of the day), chunks of 250. By the clock: events told to a store's history one by one, 10 ms apart
while a chunk is clustered ahead. In CPU time of one thread: the same log read for training at positions all along it
(first reading, which grows the user's tree, and later ones); and what a row would cost if its history were clustered
anew, all events at once. Every row must equal the history that was told its events one by one.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from harness import arguments, finish, single_thread, tuned_allocator

SEED, WIDTH, CHUNK = 0, 24, 250
BAR = {"rows_equal": 1.0, "times_cheaper_than_clustering_a_row": 10.0, "event_ms, 99.9th percentile, at most": 5.0}
PACE = 0.010  # seconds between two events of one user while a chunk is clustered ahead
FULL = {"events": 100_000, "items": 10_000, "rows": 2000, "checked": 12, "anew": 5}
QUICK = {"events": 8000, "items": 2000, "rows": 50, "checked": 4, "anew": 2}


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--chunk", type=int, default=CHUNK, help="events that enter the tree together")


def log_of_one_user(sizes: dict[str, int]) -> tuple[Any, Any]:
    """A data set of one user, and its items' vectors."""
    import numpy as np
    import pyarrow as pa

    from sidera.data.schema import build_dataset

    rng = np.random.default_rng(SEED)
    topics = rng.normal(size=(100, WIDTH))
    vectors = topics[rng.integers(100, size=sizes["items"])] + 0.4 * rng.normal(size=(sizes["items"], WIDTH))
    days = np.arange(sizes["events"]) // 500
    favourites = rng.integers(sizes["items"], size=(int(days[-1]) + 1, 10))[days, rng.integers(10, size=len(days))]
    any_item = rng.integers(sizes["items"], size=len(days))
    items = np.where(rng.random(len(days)) < 0.5, favourites, any_item)
    keys = [f"i{number:05d}" for number in range(sizes["items"])]
    events = pa.table(
        {
            "user": ["u"] * len(items),
            "item": [keys[item] for item in items],
            "time": 60 * np.arange(len(items)),
            "watch_time": rng.random(len(items)) * 60,
            "duration": rng.random(len(items)) * 60,
            "like": rng.random(len(items)) < 0.1,
        }
    )
    return build_dataset("long", events, pa.table({"key": keys})), vectors


def told_one_by_one(dataset: Any, schema: Any, items: Any, config: Any, ends: list[int]) -> tuple[dict, dict]:
    """Tokens after each of ``ends`` events, and what an event cost."""
    import numpy as np

    from sidera.store.events import packed_events
    from sidera.store.lifelong import LifelongHistory

    columns = {name: dataset.feedback[name] for name in schema.columns}
    events = packed_events(schema, dataset.item_ids, dataset.times, columns)
    tokens, waited, reading, wanted = {}, [], 0.0, set(ends)
    begun = time.process_time()
    with ThreadPoolExecutor(1) as background:
        history = LifelongHistory(items, config, SEED, background)
        for place in range(len(events)):
            if len(history.tail) >= 2 * config.chunk - config.chunk // 4 and place > config.max_clusters:
                time.sleep(PACE)
            start = time.perf_counter()
            history.append(events.take(slice(place, place + 1)))
            waited.append(1000 * (time.perf_counter() - start))
            if place + 1 in wanted:
                start = time.process_time()
                tokens[place + 1] = history.representatives()
                reading += time.process_time() - start
    cpu = 1000 * (time.process_time() - begun - reading) / len(events)
    p50, p99, p999, most = np.percentile(waited, [50, 99, 99.9, 100]).round(3).tolist()
    milliseconds = {"median": p50, "p99": p99, "p99.9": p999, "max": most, "CPU of both threads": round(cpu, 4)}
    sizes = {"megabytes": round(history.nbytes / 1e6, 2), "tokens": len(history.representatives())}
    return tokens, milliseconds | sizes


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__, flags)
    import numpy as np

    from sidera.data.features import fit_schema
    from sidera.data.representatives import lifelong_of
    from sidera.store.lifelong import LifelongConfig
    from sidera.store.log_representatives import LogRepresentatives, read_whole

    single_thread()
    sizes = QUICK if options.quick else FULL
    dataset, vectors = log_of_one_user(sizes)
    schema = fit_schema(dataset, "like", np.ones(dataset.num_events, bool))
    items, config = np.ascontiguousarray(vectors, dtype=np.float32), LifelongConfig(chunk=options.chunk)
    dataset = dataset.with_feedback("long_view", np.zeros(dataset.num_events, bool))
    ends = np.sort(np.random.default_rng(1).integers(2 * options.chunk, dataset.num_events, sizes["rows"]))
    checked = ends[:: max(1, len(ends) // sizes["checked"])].tolist()
    expected, per_event = told_one_by_one(dataset, schema, items, config, checked)
    read = LogRepresentatives(dataset, schema, items, config)
    spent = []
    for _ in range(2):
        start = time.process_time()
        found = [read(np.zeros(1, np.int64), np.array([end])) for end in ends]
        spent.append(time.process_time() - start)
    by_end = dict(zip(ends.tolist(), found, strict=True))
    equal = [
        all(
            bool((getattr(by_end[end], name) == getattr(row, name)).all())
            for row in [lifelong_of(schema, [expected[end]])]
            for name in ("items", "counts", "times")
        )
        for end in checked
    ]
    anew = []
    for end in ends[-sizes["anew"] :].tolist():
        start, one = time.process_time(), slice(0, end)
        columns = {name: dataset.feedback[name][one] for name in schema.columns}
        read_whole(schema, items, LifelongConfig(), dataset.item_ids[one], dataset.times[one], columns)
        anew.append(1000 * (time.process_time() - start))
    row_ms = 1000 * spent[0] / len(ends)
    held = sum(tokens.nbytes for kept in read._of_user.values() for tokens in kept.tokens)
    value = {
        "rows_equal": float(np.mean(equal)),
        "rows_checked": len(checked),
        "event_ms": per_event,
        "first_reading_s": round(spent[0], 2),
        "row_ms_tree_included": round(row_ms, 2),
        "row_ms_afterwards": round(1000 * spent[1] / len(ends), 3),
        "row_ms_clustered_anew": round(float(np.median(anew)), 1),
        "times_cheaper_than_clustering_a_row": round(float(np.median(anew)) / row_ms, 1),
        "checkpoints_megabytes": round(held / 1e6, 1),
        "tree_us_per_event": round(1e6 * spent[0] / dataset.num_events, 1),
    }
    late = per_event["p99.9"] > BAR["event_ms, 99.9th percentile, at most"]
    passed = not late and all(value[name] >= bar for name, bar in BAR.items() if name in value)
    context = {"seed": SEED, "chunk": options.chunk, "width": WIDTH, **sizes}
    finish("lifelong_reading", value, BAR, passed, context, quick=options.quick)


if __name__ == "__main__":
    main()
