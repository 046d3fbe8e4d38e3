"""The first hour of a user: a wheel, a clean environment, an own CSV, and how long until the first list.

    python benchmarks/first_hour.py [--quick]

A source distribution is built and a wheel from it; the wheel is installed into a new virtual environment that sees the
dependencies of this one and nothing else of it (no checkout, no editable install), and from another folder the three
commands are given as a user would give them:

    sidera import events.csv --out data
    sidera run generator --data data --out run
    sidera recommend run --history KEY,KEY

The log is a made one of 300 users and about 4,500 events (``sidera.data.tiny``). Item-kNN runs on the same data by
``sidera run item_knn``, and the two recalls are paired by user. ``install`` is what the wheel's dependencies weigh on
the disk beside torch and what torch itself brings.

``--quick`` trains 40 steps and builds no environment: it says how the commands go, not how good or how quick they are.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from harness import arguments, finish

ROOT = Path(__file__).resolve().parents[1]
BAR: dict[str, Any] = {
    "seconds": 60,
    "commands": 3,
    "megabytes_beside_torch": 300,
    "recall": "not below item_knn (paired)",
}
USERS, ITEMS, SEED = 300, 300, 0
SEEN = "keep"


def main() -> None:
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory(prefix="first-hour-") as folder:
        place = Path(folder)
        facts = write_log(place / "events.csv")
        if options.quick:
            command, environment = [sys.executable, "-m", "sidera"], {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        else:
            command, environment = [str(install(place))], clean_environment()
        work = place / "anywhere"
        work.mkdir()
        short = ["--set", "fit.max_steps=40", "--set", "eval.bootstrap=100"] if options.quick else []
        history = ",".join(facts["history"])
        steps = [
            ["import", str(place / "events.csv"), "--out", "data"],
            ["run", "generator", "--data", "data", "--out", "run", *short],
            ["recommend", "run", "--history", history, "-k", "5"],
        ]
        taken = [timed([*command, *step], work, environment) for step in steps]
        timed([*command, "run", "item_knn", "--data", "data", "--out", "knn", *short[2:]], work, environment)
        paired = compared(work / "run", work / "knn")
    sizes = install_sizes("sidera")
    wall = round(sum(wall for wall, _ in taken), 1)
    value = {
        "seconds": wall,
        "cpu_seconds": round(sum(cpu for _, cpu in taken), 1),
        "commands": len(steps),
        "megabytes_beside_torch": round(sum(sizes.values()), 1),
        f"recall@10 ({SEEN})": paired["recall@10"],
    }
    small = sum(sizes.values()) <= BAR["megabytes_beside_torch"]
    # 40 steps say nothing of recall, and a quick run may stand in a queue
    passed = small and (options.quick or (wall <= BAR["seconds"] and paired["recall@10"]["high"] >= 0))
    details = {"seconds_and_cpu_seconds": dict(zip(("import", "run", "recommend"), taken, strict=True)),
               "megabytes": sizes, "paired": paired}  # fmt: skip
    context = {
        "seed": SEED,
        "users": USERS,
        "items": ITEMS,
        "events": facts["events"],
        "clean_install": not options.quick,
    }
    finish("first_hour", value, BAR, passed, context, options.quick, details)


def write_log(path: Path) -> dict[str, Any]:
    """The CSV, and the newest items of its first user."""
    from sidera.data.tiny import tiny_log

    log = tiny_log(USERS, ITEMS, SEED)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "time"])
        for user, item, when in zip(log.event_users, log.item_ids, log.times, strict=True):
            writer.writerow([log.user_keys[user], log.item_keys[item], int(when)])
    newest = log.item_ids[: log.offsets[1]][-3:]
    return {"events": log.num_events, "history": [str(log.item_keys[item]) for item in newest]}


def build_wheel(place: Path) -> Path:
    """Source distribution, and the wheel that is built from it: what a package index would hold."""
    build = f"from setuptools.build_meta import build_sdist; print(build_sdist({str(place)!r}))"
    quiet = {"check": True, "capture_output": True, "text": True}
    # a copy without build leftovers: `build/` in the checkout would be packed again
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, **quiet).stdout.splitlines()  # type: ignore[call-overload]
    source = place / "source"
    for name in files:
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-c", build], cwd=source, **quiet)  # type: ignore[call-overload]
    (archive,) = place.glob("sidera-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(place / "unpacked", filter="data")
    (unpacked,) = (place / "unpacked").iterdir()
    build = f"from setuptools.build_meta import build_wheel; print(build_wheel({str(place)!r}))"
    subprocess.run([sys.executable, "-c", build], cwd=unpacked, **quiet)  # type: ignore[call-overload]
    (wheel,) = place.glob("sidera-*.whl")
    return wheel


def install(place: Path) -> Path:
    """A new environment with the wheel in it; the path of its ``sidera``."""
    wheel, home = build_wheel(place), place / "environment"
    quiet = {"check": True, "capture_output": True}
    subprocess.run([sys.executable, "-m", "venv", str(home)], **quiet)  # type: ignore[call-overload]
    folder = next((home / "lib").glob("python3*")) / "site-packages"
    subprocess.run(
        [str(home / "bin" / "pip"), "install", "-q", "--no-deps", "--no-index", str(wheel)],
        **quiet,  # type: ignore[call-overload]
    )
    (folder / "dependencies.py").write_text(BORROWED, encoding="utf-8")
    (folder / "dependencies.pth").write_text("import dependencies\n", encoding="utf-8")
    return home / "bin" / "sidera"


# Torch and the others are not downloaded again: those that the wheel asks for are found where this interpreter has
# them. An editable install of sidera there is out of reach: its .pth file is not read, and the wheel's comes first.
BORROWED = f"""
import sys
sys.path.append({str(metadata.distribution("numpy").locate_file(""))!r})
"""


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}


def timed(command: Sequence[str], folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """(wall seconds, processor seconds) of a command that must succeed."""
    before, start = os.times(), time.perf_counter()
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - start, os.times()
    if found.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {found.returncode}:\n{found.stdout}\n{found.stderr}")
    print(f"{wall:6.1f} s  sidera {' '.join(command[-6:])}", file=sys.stderr, flush=True)
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return round(wall, 1), round(cpu, 1)


def compared(ours: Path, theirs: Path) -> dict[str, Any]:
    """Generator minus item-kNN, paired by user."""
    from sidera.eval.compare import compare

    tests = compare(ours / "evaluation", theirs / "evaluation").tests
    return {
        metric: {"generator": test.first, "item_knn": test.second, "low": test.low, "high": test.high}
        for (seen, metric), test in tests.items()
        if seen == SEEN and metric in ("recall@10", "ndcg@10")
    }


def install_sizes(package: str) -> dict[str, float]:
    """Megabytes of every distribution that an installation of ``package`` needs and one of torch alone does not."""
    needed, torch = closure(declared()), closure(["torch"])
    return {name: megabytes(name) for name in sorted(needed - torch)}


def declared() -> list[str]:
    """The dependencies that pyproject.toml names, without extras."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [re.split(r"[<>=!~;\[ ]", line, maxsplit=1)[0] for line in project["dependencies"]]


def closure(names: Sequence[str]) -> set[str]:
    """These distributions and all that they need where this runs, by normalised name."""
    found: set[str] = set()
    waiting = [normal(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            needs = metadata.distribution(name).requires or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        waiting += [normal(re.split(r"[<>=!~;\[ (]", need, maxsplit=1)[0]) for need in needs if "extra ==" not in need]
    return found


def megabytes(name: str) -> float:
    """Of the files that an installation lays down, as the disk counts them."""
    files = metadata.distribution(name).files or []
    total = 0
    for file in files:
        path = Path(file.locate())
        if path.is_file():
            total += path.stat().st_size
    return round(total / 1e6, 1)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
