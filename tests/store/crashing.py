"""A process that writes and is killed, and what must be there afterwards: used by a test and by benchmarks/crash.py.

    python crashing.py FOLDER SEED        # writes until it is killed; prints what was acknowledged

Writers of three threads append events to users, and exposures to a log. Each acknowledged write is one line on stdout,
in one call, after the append returned: what was printed was acknowledged. The parent kills the process at a moment of
its choice and calls :func:`check`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sidera.core import InputError
from sidera.engine.exposures import ExposureWriter
from sidera.store.embedded import EmbeddedStore, StoreConfig
from sidera.store.events import Events
from sidera.store.exposures import ExposureLog

WRITERS, USERS = 3, 5


def write(folder: Path, seed: int) -> None:
    """Until somebody kills this process."""
    rng = random.Random(seed)
    store = EmbeddedStore(folder / "store", StoreConfig(durability=rng.choice(["disk", "kernel"])))
    writer = ExposureWriter(log_at(folder), max_parts=20)
    start = time.time_ns() // 1000

    def work(name: int) -> None:
        mine, second = random.Random(seed * 100 + name), start
        while True:
            second += 1 + mine.randrange(3)
            user = f"u{mine.randrange(USERS)}"
            times = [second + place - (mine.random() < 0.1) * 50 for place in range(mine.randrange(1, 6))]
            item = f"w{name}-{second}"  # an event of its own for every write
            store.append(user, Events.of(store.numbers_of([item]).repeat(len(times)), times), new_only=True)
            acknowledged(f"e {user} {item} {len(set(times))}")
            request = f"{seed}-{name}-{second}"
            columns = {"request": request, "user": user, "item": item, "time": second, "policy": "p"}
            twice = {key: [value] * 2 for key, value in columns.items()}
            writer.shown({**twice, "slot": [0, 1], "items_version": [0, 0]})
            acknowledged(f"x {request}")
            if mine.random() < 0.02:
                store.compact()

    for name in range(WRITERS):
        threading.Thread(target=work, args=(name,), daemon=True).start()
    acknowledged("started")
    threading.Event().wait()


def acknowledged(line: str) -> None:
    os.write(1, line.encode() + b"\n")  # one call: whole or not there


def log_at(folder: Path) -> ExposureLog:
    return ExposureLog.open(folder / "log", codebook_id="abc", num_levels=1)


def killed(folder: Path, seed: int, seconds: float) -> list[str]:
    """Write in a process that is killed -> what it acknowledged."""
    process = subprocess.Popen([sys.executable, __file__, str(folder), str(seed)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        time.sleep(seconds)
    finally:
        os.kill(process.pid, signal.SIGKILL)
    rest = process.stdout.read()
    process.wait()
    return [line for line in (first + rest).decode().split("\n")[:-1] if line != "started"]


def check(folder: Path, lines: Iterable[str]) -> str:
    """What is wrong with the folder, "" when every acknowledged write is there once."""
    lines = list(lines)
    with EmbeddedStore(folder / "store", must_exist=True) as store:
        keys, held = store.item_keys(), Counter[str]()
        for user in store.users():
            _, events = store.arrivals(user)
            pairs = list(zip(events.item_ids.tolist(), events.times.tolist(), strict=True))
            if len(set(pairs)) < len(pairs):
                return f"an event of {user} is there twice"
            held.update(f"{user} {keys[item]}" for item in events.item_ids.tolist())
        store.verify()
    for line in lines:
        if line.startswith("e "):
            _, user, item, number = line.split()
            if held[f"{user} {item}"] != int(number):
                return f"{held[f'{user} {item}']} of {number} events of {item} are there"
    requests = Counter(log_at(folder).read()["request"].to_pylist())
    for line in lines:
        if line.startswith("x ") and requests[line[2:]] != 2:
            return f"{requests[line[2:]]} of 2 exposures of {line[2:]} are there"
    if any(number != 2 for number in requests.values()):
        return "an exposure is there twice, or in half"
    return ""


def damage(folder: Path, rng: random.Random) -> str:
    """Change one file of the store or the log as a bad disk or a careless hand would; "" where nothing changed."""
    everything = sorted(file for file in folder.rglob("*") if file.is_file())
    files = [file for file in everything if file.name != "LOCK" and not file.name.endswith("-shm")]
    file = rng.choice(files)
    size = file.stat().st_size
    kind = rng.choice(["flip", "cut", "zero", "remove"])
    if size == 0:
        return ""
    place = rng.choice([rng.randrange(size), max(0, size - 1 - rng.randrange(min(size, 5000)))])
    content = file.read_bytes()
    if kind == "remove":
        file.unlink()
        return f"{file.name} removed"
    if kind == "cut":
        changed = content[:place]
    elif kind == "zero":
        changed = content[:place] + bytes(min(4096, size - place)) + content[place + 4096 :]
    else:
        changed = content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]
    file.write_bytes(changed)
    return "" if changed == content else f"{kind} at {place} of {size} bytes of {file.name}"


def outcome(folder: Path, lines: list[str]) -> str:
    """After damage: "whole", "refused", or what was lost in silence."""
    try:
        return check(folder, lines) or "whole"
    except (InputError, OSError):
        return "refused"


def crash(place: Path, seed: int, seconds: float, damages: int) -> tuple[str, list[str]]:
    """One kill of a folder that may have been killed before, and damaged copies of what it left -> what is wrong with
    the folder, and with the copies ("" and "whole" or "refused" where nothing is)."""
    folder, record = place / "folder", place / "acknowledged"
    folder.mkdir(exist_ok=True)
    with record.open("a", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in killed(folder, seed, seconds))
    lines = record.read_text(encoding="utf-8").split("\n")[:-1]
    rng, outcomes = random.Random(seed), []
    for _ in range(damages):
        shutil.rmtree(place / "copy", ignore_errors=True)
        shutil.copytree(folder, place / "copy")
        what = damage(place / "copy", rng)
        found = outcome(place / "copy", lines) if what else "whole"
        outcomes.append(found if found in ("whole", "refused") else f"{what}: {found}")
    return check(folder, lines), outcomes


if __name__ == "__main__":
    np.seterr(all="raise")
    write(Path(sys.argv[1]), int(sys.argv[2]))
