"""Claim `explain`: the event that is named is the one whose removal lowers the item's score most, and what that costs.

    python benchmarks/explain.py [--quick] [--runs FOLDER]

For 500 answers (the first item of as many users' lists) the events are removed one at a time, each history asked alone
by another call (`Questions.score`), and the event that loses most is held against the one that `explain` names first.
Ties within 1e-4 count as equal. Beside it stands what a cheap form would reach that asks the model nothing: the event
whose item is nearest to the answered one by the catalogue's vectors, and the newest event. CPU milliseconds are those
of one explanation without the tree.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import arguments, finish, single_thread, tuned_allocator
from servers import ROOT, environment

RUNS = ("demo_onerec_v2", "demo_generator", "demo_sasrec")  # trained: fresh weights look at the newest event alone
QUICK_STEPS = 60
ANSWERS, QUICK_ANSWERS = 500, 40  # of all runs together
MOST_EVENTS = 40  # of a history, so that removing one at a time takes minutes
BAR = 0.8


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", help="folder that keeps the run folders; no result is kept")


def one_answer(recommender: Any, history: list[str]) -> dict[str, Any]:
    """Whether each form names the right event; NaN where nothing can be said."""
    import numpy as np

    from sidera.engine.explain import explain
    from sidera.engine.questions import Questions

    ask, catalog = Questions(recommender), recommender.catalog
    item = recommender.recommend([history], 1, filter_seen=False)[0].item_keys[0]
    begun = time.process_time()
    found = explain(recommender, history, item, tree=False)
    seconds = time.process_time() - begun
    (whole,) = ask.score(history, [item])
    losses = []
    for place in range(len(history)):
        (without,) = ask.score(history[:place] + history[place + 1 :], [item])
        losses.append(whole.score - without.score)
    most = max(losses) - 1e-4
    right = {key for key, loss in zip(history, losses, strict=True) if loss >= most}
    vectors = np.asarray(catalog.item_vectors[catalog.ids_of([item, *history])])
    unit = vectors / np.maximum(1e-9, np.linalg.norm(vectors, axis=1, keepdims=True))
    nearest = history[int(np.argmax(unit[1:] @ unit[0]))]
    return {
        "explain": found.events[0].item in right,
        "nearest": nearest in right if catalog.has_codes else None,
        "newest": history[-1] in right,
        "chance": len(right) / len(set(history)),
        "ms": 1000 * seconds,
    }


def of_run(folder: Path, count: int) -> dict[str, Any]:
    from sidera.engine.recommender import Recommender
    from sidera.traffic.requests import histories_of

    recommender = Recommender.load(folder / "run")
    histories = [history[-MOST_EVENTS:] for history in histories_of(folder / "data").values()]
    asked = [history for history in histories if len(set(history)) > 2][:count]
    rows = [one_answer(recommender, history) for history in asked]
    means = {
        name: round(statistics.fmean(values), 3)
        for name in ("explain", "nearest", "newest", "chance")
        if (values := [float(row[name]) for row in rows if row[name] is not None])
    }
    return {**means, "ms": round(statistics.median(row["ms"] for row in rows), 1), "answers": len(rows)}


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__, flags)
    single_thread()
    names = RUNS[1:] if options.quick else RUNS
    count = -(-(QUICK_ANSWERS if options.quick else ANSWERS) // len(names))
    rows = {}
    with contextlib.ExitStack() as stack:
        runs = Path(options.runs or stack.enter_context(tempfile.TemporaryDirectory(prefix="explain-")))
        for name in names:
            words = [sys.executable, str(ROOT / "benchmarks" / "servers.py"), name, str(runs / name)]
            words.append(str(QUICK_STEPS if options.quick else 0))
            subprocess.run(words, check=True, env=environment(ROOT))
            rows[name] = of_run(runs / name, count)
            print(f"{name}: {rows[name]}", flush=True)
    total = sum(row["answers"] for row in rows.values())
    value = round(sum(row["explain"] * row["answers"] for row in rows.values()) / total, 4)
    finish("explain", value, BAR, value >= BAR, {"rows": rows}, options.quick or bool(options.runs))


if __name__ == "__main__":
    main()
