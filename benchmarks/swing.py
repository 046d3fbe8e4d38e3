"""Claim `swing`: item-to-item similarity of 10 M events in at most 15 CPU-minutes and 8 GiB.

    python benchmarks/swing.py [--quick]

The log is drawn: users with heavy-tailed activity (50 events in the mean), items with heavy-tailed popularity (100 in
the mean), half of a user's events from one of 200 groups of items. The similarity runs in a process of its own, whose
CPU time (drawing the log left out) and peak resident memory (log included) are taken. ``--quick``: 500,000 events.
"""

from __future__ import annotations

import json
import subprocess
import sys

from harness import arguments, finish, single_thread, tuned_allocator

SEED = 0
BAR = {"cpu_minutes": 15.0, "peak_gib": 8.0}
CAPS = {"max_items": 100, "max_users": 200, "count": 50}
CHILD = """
import json, resource, sys, time
import numpy as np
from sidera.catalog.swing import swing, thin

num_events, caps, seed = int(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
num_users, num_items = num_events // 50, num_events // 100
rng = np.random.default_rng(seed)
activity = rng.pareto(1.5, num_users) + 1
users = np.sort(rng.choice(num_users, num_events, p=activity / activity.sum()))
popularity = np.arange(1, num_items + 1) ** -0.8
anywhere = rng.choice(num_items, num_events, p=popularity / popularity.sum())
group = rng.integers(0, 200, num_users)[users] + 200 * rng.integers(0, num_items // 200, num_events)
items = np.where(rng.random(num_events) < 0.5, anywhere, group)
start = time.process_time()
found = swing(users, items, num_items, seed=seed, **caps)
seconds = time.process_time() - start
kept = thin(users, items, max_items=caps["max_items"], max_users=caps["max_users"], seed=seed)
print(json.dumps({
    "cpu_minutes": seconds / 60,
    "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    "users": num_users, "items": num_items, "events_kept": len(kept[0]),
    "most_events_of_a_user": int(np.bincount(users).max()), "most_events_of_an_item": int(np.bincount(items).max()),
    "mean_neighbours": float((found.item_ids >= 0).sum(1).mean()),
}))
"""


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__)
    single_thread()
    num_events = 500_000 if options.quick else 10_000_000
    command = [sys.executable, "-c", CHILD, str(num_events), json.dumps(CAPS), str(SEED)]
    measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    value = {name: round(measured.pop(name), 3) for name in BAR}
    passed = all(value[name] <= BAR[name] for name in BAR) and (options.quick or num_events >= 10_000_000)
    context = {"seed": SEED, "events": num_events, **CAPS, **measured}
    finish("swing", value, BAR, passed, context, quick=options.quick)


if __name__ == "__main__":
    main()
