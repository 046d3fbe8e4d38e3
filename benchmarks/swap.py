"""Claim `swap`: 100 swaps of the model and 10,000 changes of items in a running server, and nobody notices.

    python benchmarks/swap.py [--quick] [--swaps 100] [--changes 10000]

`sidera serve` answers Beauty's generator (12,000 items, store and exposure log on) to clients in another process, who
read every answer. Meanwhile the run's three versions take turns: the first two share a codebook, the third has codes of
its own. Items are added, changed, removed and brought back in messages of 50. Counted are answers that failed;
answers whose weights, codebook and beam are not those of one version (mixed); and answers with an item that was removed
by a message at or before their `items_version`. p99 during a swap (an answer that overlaps one) is compared with p99
outside them, in the same run.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import random
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from harness import arguments, finish, said

ITEMS = 12_000
LEVELS = (128, 128)  # 16,384 codes: items that come need free ones
CLIENTS, THINK, MESSAGE, SEED = 4, 0.03, 50, 0
P99_BAR = 2.0


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--changes", type=int, default=10_000)


def call(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    content = None if body is None else json.dumps(body)
    connection.request(method, path, content, {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def ask(host: str, port: int, number: int, users: list[str], stop: Any, out: Any) -> None:
    """One client: asks, reads, thinks. Sends back (begun, ended, status, versions, items) of every answer."""
    rng, seen = random.Random(number), list[Any]()
    connection = http.client.HTTPConnection(host, port, timeout=60)
    while not stop.is_set():
        body = {"user": rng.choice(users), "k": 10}
        begun = time.time()
        try:
            status, answer = call(connection, "POST", "/v1/recommend", body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            status, answer = 0, {"error": repr(error)}
            connection.close()
        ended = time.time()
        signed = [answer.get(name) for name in ("policy_version", "codebook_id", "items_version")]
        keys = [one["item"] for one in answer.get("items", ())]
        seen.append((begun, ended, status, *signed, keys, answer if status != 200 else None))
        time.sleep(THINK * rng.random())
    out.put(seen)


def versions_of(run: Path) -> dict[str, str]:
    """Two more versions: other weights over the same codes, and other codes; -> weights of each, with its codebook."""
    from dataclasses import replace

    import torch

    from sidera.artifacts import read_manifest
    from sidera.catalog.catalog import Catalog
    from sidera.engine.recommender import Recommender
    from sidera.engine.versions import add_run, folder_of
    from sidera.models import build_model, parse_model

    first = Recommender.load(run)
    for number, same in ((1, True), (2, False)):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(
                shutil.copytree(run, Path(place) / "run", ignore=shutil.ignore_patterns("versions", "*.sqlite"))
            )
            if not same:
                catalog = Catalog.load(run / "catalog")
                order = torch.randperm(catalog.num_items, generator=torch.Generator().manual_seed(number)).numpy()
                other = replace(catalog, codes=catalog.codes[order], codebook_id=f"other-{number}")
                shutil.rmtree(folder / "catalog")
                other.save(folder / "catalog")
            else:
                other = first.catalog
            model = build_model(*parse_model(first.model_section), other, number)
            if same:
                model.load_state_dict({name: 1.01 * tensor for name, tensor in first.model.state_dict().items()})
            one = Recommender(model, other, model_section=first.model_section, beam=first.beam)
            shutil.rmtree(folder / "model")
            one.save_model(folder / "model", digest=f"weights-{number}", parents={})
            add_run(run, folder)
    manifests = [read_manifest(folder_of(run, number) / "model", "model") for number in range(3)]
    return {one.digest: one.info["codebook_id"] for one in manifests}


def change(address: Any, keys: list[str], changes: int, removed: list[Any], bad: list[Any]) -> None:
    """Messages, one after the other; notes from which items_version on a key is gone, or back."""
    rng, gone = random.Random(SEED), list[str]()
    connection = http.client.HTTPConnection(address.host, address.port, timeout=60)
    done = 0
    while done < changes and len(bad) < 20:
        added = [
            {"item": f"new {done + place}", "title": f"Item {rng.randrange(ITEMS)}"} for place in range(MESSAGE // 5)
        ]
        some = rng.sample(keys, 4 * MESSAGE // 5)
        renamed = [{"item": key, "title": f"called {done}"} for key in some[: MESSAGE // 5] if key not in gone]
        leaving = [key for key in some[MESSAGE // 5 :] if key not in gone][: 2 * MESSAGE // 5]
        back = [gone.pop() for _ in range(min(len(gone), MESSAGE // 5 + (len(gone) > 2000) * MESSAGE))]
        body: dict[str, list[Any]] = {"items": [*added, *renamed, *({"item": key} for key in back)], "removed": leaving}
        try:
            status, answer = call(connection, "POST", "/v1/items", body)
        except (OSError, http.client.HTTPException) as error:
            status, answer = 0, repr(error)
        if status != 200:
            bad.append((status, answer))
            continue
        removed += [(key, answer["items_version"], True) for key in leaving]
        removed += [(key, answer["items_version"], False) for key in back]
        gone += leaving
        keys += [one["item"] for one in added]
        done += len(body["items"]) + len(leaving)
        time.sleep(0.02)


def swapped(address: Any, swaps: int, removed: list[Any], bad: list[Any]) -> list[tuple[float, float]]:
    """The versions take turns; -> begin and end of every swap."""
    during: list[tuple[float, float]] = []
    for number in range(swaps):
        connection = http.client.HTTPConnection(address.host, address.port, timeout=120)  # a server closes idle ones
        begun = time.time()
        try:
            status, answer = call(connection, "POST", "/v1/admin/swap", {"version": (number + 1) % 3})
        except (OSError, http.client.HTTPException) as error:
            bad.append((0, repr(error)))
            break
        during.append((begun, time.time()))
        if status != 200:
            bad.append((status, answer))
        if number % 10 == 0:
            print(f"swap {number}: {status}, {during[-1][1] - begun:.2f} s; {len(removed)} changes", flush=True)
        time.sleep(during[-1][1] - begun)  # as much time outside swaps as inside
    return during


def main() -> None:
    options = arguments(__doc__, flags)
    from servers import ROOT, Shape, draw, environment
    from sidera.data.dataset import Dataset
    from sidera.traffic.server import serving

    swaps, changes = (6, 500) if options.quick else (options.swaps, options.changes)
    with tempfile.TemporaryDirectory(prefix="swap-") as place:
        folder = Path(place)
        draw(Shape("beauty/generator", ITEMS, LEVELS), folder)
        codebooks = versions_of(folder / "run")
        data = Dataset.load(folder / "data")
        users, keys = [str(key) for key in data.user_keys], [str(key) for key in data.item_keys]
        words = ["--store", folder / "store", "--exposures", folder / "exposures", "--fill", folder / "data"]
        with serving(folder / "run", [str(word) for word in words], environment=environment(ROOT)) as server:
            address, spawn = server.address, multiprocessing.get_context("spawn")
            stop, out = spawn.Event(), spawn.Queue()
            clients = [
                spawn.Process(target=ask, args=(address.host, address.port, n, users, stop, out))
                for n in range(CLIENTS)
            ]
            for one in clients:
                one.start()
            removed: list[Any] = []
            bad: list[Any] = []
            writer = threading.Thread(target=change, args=(address, keys, changes, removed, bad))
            try:
                time.sleep(3)
                writer.start()
                with said(lambda: f"{len(removed)} changes to items, {len(bad)} failed calls, {server.rss >> 20} MB"):
                    during = swapped(address, swaps, removed, bad)
                    writer.join()
            finally:
                stop.set()
                seen = [row for _ in clients for row in out.get()]
                for one in clients:
                    one.join()
            cpu = server.cpu_seconds
    report(options, seen, during, removed, bad, codebooks, cpu() if callable(cpu) else cpu)


def report(
    options: Any,
    seen: list[Any],
    during: list[Any],
    removed: list[Any],
    bad: list[Any],
    codebooks: dict[str, str],
    cpu: float,
) -> None:
    failed = [row for row in seen if row[2] != 200]
    mixed = [row for row in seen if row[2] == 200 and codebooks.get(row[3]) != row[4]]
    at: dict[str, list[tuple[int, bool]]] = {}
    for key, version, is_gone in removed:
        at.setdefault(key, []).append((version, is_gone))
    wrong = []
    for row in seen:
        for key in row[6]:
            past = [is_gone for version, is_gone in at.get(key, ()) if version <= (row[5] or 0)]
            if past and past[-1]:
                wrong.append((key, row[5]))
    inside: list[float] = []
    outside: list[float] = []
    for begun, ended, status, *_ in seen:
        if status == 200:
            overlaps = any(begun < end and ended > start for start, end in during)
            (inside if overlaps else outside).append(1000 * (ended - begun))
    p99 = [_percentile(values, 99) for values in (inside, outside)]
    value = {
        "failed": len(failed) + len(bad), "mixed": len(mixed), "removed_items_answered": len(wrong),
        "p99_ratio": round(p99[0] / p99[1], 3),
    }  # fmt: skip
    bar = {"failed": 0, "mixed": 0, "removed_items_answered": 0, "p99_ratio": P99_BAR}
    passed = all(value[name] <= limit for name, limit in bar.items())
    context = {
        "items": ITEMS, "levels": LEVELS, "swaps": len(during), "clients": CLIENTS,
        "changes, at least": 500 if options.quick else options.changes, "removed or brought back": len(removed),
        "answers": {"during a swap": len(inside), "outside": len(outside)},
        "p50_ms": [round(_percentile(values, 50), 1) for values in (inside, outside)],
        "p99_ms": [round(one, 1) for one in p99],
        "swap_seconds": round(sum(end - begin for begin, end in during) / len(during), 3),
        "versions_seen": len({row[3] for row in seen}), "server_cpu_seconds": round(cpu, 1),
    }  # fmt: skip
    details = {"bad": bad[:5], "failed": [row[-1] for row in failed[:5]], "wrong": wrong[:5]}
    if bad or failed:
        print(json.dumps(details)[:2000], flush=True)
    finish("swap", value, bar, passed, context, options.quick, details)


def _percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("nan")


if __name__ == "__main__":
    main()
