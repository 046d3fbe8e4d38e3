"""Claim `serving`: how long one client waits, how many requests a second a server bears, whether answers are right.

    python benchmarks/serving.py [--quick] [--ref COMMIT] [--only NAME ...] [--runs FOLDER]

Every server is `sidera serve` in a process of its own on two cores that the load shares, with the behaviour store and
the exposure log on; a request names a user. Its run is exported first (`sidera export`), as in production, where the
model can be; each row says what programs there are and how often they answered (/metrics). `--ref` serves another
commit's code beside it, as that commit serves, and the two are measured in turn. Runs are trained for a few steps or
drawn (``servers.py``): only their cost matters. `--quick` exports nothing, as that alone takes a minute.

* *one client*: p50 and p99 of a closed loop of one client (demo OneRec-V2; Beauty's generator over 12 k items and over
  a million; TIGER); in turn with the same run without its programs (`eager`);
* *open loop*: the highest rate of Poisson arrivals of which 99 % are answered within 100 ms (demo OneRec-V2, Beauty's
  generator, SASRec), by one process that answers and by two (`--workers 2`): the better one is the figure;
* *right*: the share of answers, taken under load, whose ten items are those of the slow reference: the plain beam
  search of one history after another (with the expert: its pipeline, step by step), or all scores sorted;
* *peer*: TIGER's weights under 16 clients against FastAPI and transformers' `generate` with a prefix function, which
  takes both cores; ours by one process and by two.

Each run's row is written to ``results/serving.json`` when it is done, beside the rows that are there; a row says when
and at which commit it was measured. So the runs may be measured one by one, and a run that is cut off loses one row.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import http.client
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from before_after import other_tree
from claims import provenance
from harness import RESULTS, arguments, finish
from servers import ROOT, environment, exported, made, served, users_of

SLO = 0.1  # seconds
CLIENTS = 16  # of saturation
ONE_CLIENT = {"demo_onerec_v2": 7.0, "generator": 8.0, "million": 20.0, "tiger": 30.0}  # p50 in ms, at most
SPREAD = 2.5  # p99 / p50 of one client, at most
OPEN_LOOP = {"demo_onerec_v2": (300, 4.8), "generator": (250, 3.8), "sasrec": (600, 3.4)}  # rate, times the commit's
WORKERS = "after, 2 workers"  # as many processes as there are cores
FIRST_RATE = 40.0
RIGHT, PEER = 0.99, 8.0
QUICK = ("demo_onerec_v2",)
NAMES = ("demo_onerec_v2", "generator", "sasrec", "tiger", "million")


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ref", help="another commit to serve beside this one")
    parser.add_argument("--only", nargs="+", choices=NAMES, help="these runs; the rows of the others stay")
    parser.add_argument("--runs", help="folder that keeps the run folders, exports too (else made and removed)")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")


class Measured:
    """The servers of one run, this tree's (with programs: "after", without: "eager") and the other commit's, and who
    asks them."""

    def __init__(
        self, name: str, servers: Mapping[str, Any], folders: Mapping[str, Path], programs: str, quick: bool
    ) -> None:
        self.name, self.servers, self.folders, self.quick = name, servers, folders, quick
        self.programs = programs
        self.requests = {side: users_of(folders[side])(server.address) for side, server in servers.items()}

    def client(self, side: str) -> Any:
        from sidera.traffic.client import Client

        address = self.servers[side].address
        return Client((address.host, address.port), self.requests[side], timeout=30.0)

    def one_client(self) -> dict[str, dict[str, float]]:
        """side -> p50 and p99 in ms, over turns A B B A."""
        from sidera.traffic.tally import latency_figures

        sides, seconds = [side for side in self.servers if side != WORKERS], 1.0 if self.quick else 4.0
        waited: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(4):
            for side in sides if turn % 2 else sides[::-1]:
                tally = self.client(side).closed(1, seconds, 0.5)
                waited[side] += tally.kinds["recommend"].successes
                now = latency_figures(sorted(tally.kinds["recommend"].successes))
                self.say(f"one client, turn {turn + 1} of 4, {side}: p50 {now['p50']} ms, p99 {now['p99']} ms")
        return {side: latency_figures(sorted(values)) for side, values in waited.items()}

    def highest_rates(self) -> dict[str, float]:
        from sidera.traffic.highest_rate import SHARE, highest_rate

        rates, seconds = {}, 1.5 if self.quick else 4.0
        precision = 1.2 if self.quick else 1.04
        for side in (side for side in self.servers if side != "eager"):  # two workers too: the cores are two

            def window(rate: float, seconds: float, side: str = side) -> Any:
                tally = self.client(side).open(rate, seconds, 0.5, slo=SLO, miss_share=1 - SHARE)
                self.say(f"{rate:.1f} requests/s, {side}: {'borne' if tally.meets(SLO) else 'too many'}")
                return tally

            rates[side] = highest_rate(window, SLO, FIRST_RATE, seconds, precision).rate
            self.say(f"{side} bears {rates[side]:.1f} requests/s")
        return {side: round(rate, 1) for side, rate in rates.items()}

    def say(self, text: str) -> None:
        print(f"{self.name}: {text}", flush=True)

    def used(self) -> dict[str, Any]:
        """The programs that were exported, how often each answered, and why how many went step by step."""
        address = self.servers["after"].address
        connection = http.client.HTTPConnection(address.host, address.port, timeout=30)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        pairs = re.findall(r'^sidera_(?:program_calls|stepwise)_total\{\w+="([^"]*)"\} (\d+)', text, re.MULTILINE)
        return {"exported": self.programs, "calls": {name: int(number) for name, number in pairs}}

    def throughput(self, side: str, seconds: float) -> float:
        tally = self.client(side).closed(CLIENTS, seconds, seconds / 4)
        return tally.as_dict(SLO)["kinds"]["recommend"]["answers_per_second"]

    def right(self, count: int, side: str = "after") -> float:
        """Share of answers under load that hold the reference's items in its order."""
        from sidera.traffic.requests import histories_of

        users = list(histories_of(self.folders[side] / "data"))[:count]
        address = self.servers[side].address
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(lambda user: answer_of(address, user), users))
        expected = reference(self.folders[side], users)
        share = sum(same(*pair) for pair in zip(answers, expected, strict=True)) / len(users)
        self.say(f"{share:.1%} of {len(users)} answers are right")
        return share


def answer_of(address: Any, user: str) -> list[str]:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=60)
    body = json.dumps({"user": user, "k": 10, "filter_seen": False})
    headers = {"Content-Type": "application/json", "X-Deadline-Ms": "60000"}  # what is right may come late
    connection.request("POST", "/v1/recommend", body, headers)
    answer = connection.getresponse()
    said = json.loads(answer.read())
    connection.close()
    assert answer.status == 200, said
    return [one["item"] for one in said["items"]]


def reference(folder: Path, users: list[str]) -> list[list[tuple[str, float]]]:
    """The eleven best items of each user with their scores, one history after another, by the slowest path there is."""
    import torch

    from sidera.core import Request
    from sidera.decode.beam import beam_search
    from sidera.engine.answerer import Answerer
    from sidera.engine.pipeline import Query
    from sidera.engine.recommender import Recommender
    from sidera.engine.serving import ServeConfig

    found = []
    with tempfile.TemporaryDirectory() as store, Recommender.load(
        folder / "run", serve=ServeConfig(store=store, fill=str(folder / "data"), compiled=False)
    ) as recommender:  # fmt: skip
        snapshot, trie = recommender.snapshot, recommender.catalog.trie if recommender.catalog.has_codes else None
        reader = Answerer(snapshot, recommender.pipeline, recommender.behaviour).reader
        for user in users:
            whole = reader.batch([reader.read(Request(user=user, filter_seen=False))])
            batch = snapshot.readable(whole)
            with torch.inference_mode():
                if trie is None:
                    scores, ids = snapshot.scorer.item_scores(batch).float().topk(11)
                elif recommender.parts.steps:  # the transition expert, where the run has one
                    answer = recommender.pipeline(Query(snapshot, whole, 11))
                    ids, scores = answer.item_ids, answer.scores
                else:
                    context, width = snapshot.generator.context(batch), recommender.beam
                    beams = beam_search(snapshot.generator, context, trie, width=width, num_results=11)
                    ids, scores = beams.item_ids, beams.scores
            keys = recommender.catalog.item_keys.take(ids[0].numpy())
            found.append(list(zip(keys, scores[0].tolist(), strict=True)))
    return found


def same(answer: list[str], expected: list[tuple[str, float]]) -> bool:
    """Whether an answer holds the expected items. Items that score alike to a float's precision may change places."""
    scores = dict(expected)
    if not set(answer) <= set(scores):
        return False
    given = [scores[item] for item in answer]
    tolerance = 1e-5 * max(1.0, abs(expected[0][1]))
    return len(answer) == 10 and all(
        abs(score - wanted) <= tolerance for score, (_, wanted) in zip(given, expected, strict=False)
    )


@contextlib.contextmanager
def both(name: str, scratch: Path, other: Path | None, quick: bool) -> Iterator[Measured]:
    """Servers of this tree's run, with and without its programs, and of the other tree's."""
    folders = {"after": scratch / f"{name}-after"}
    made(name, folders["after"])
    programs = "none: --quick serves step by step" if quick else exported(folders["after"] / "run")
    print(f"{name}: programs: {programs}", flush=True)
    settings: dict[str, Any]
    with contextlib.ExitStack() as stack:
        servers = {"after": stack.enter_context(served(name, folders["after"]))}
        if name in ONE_CLIENT and not programs.startswith("none"):
            folders["eager"] = folders["after"]
            settings = {"flags": ["--no-compiled"], "store": "store-eager"}
            servers["eager"] = stack.enter_context(served(name, folders["eager"], **settings))
        if name in (*OPEN_LOOP, "tiger") and not quick:
            folders[WORKERS] = folders["after"]
            settings = {"flags": ["--workers", "2"], "store": "store-workers"}
            servers[WORKERS] = stack.enter_context(served(name, folders[WORKERS], **settings))
        if other is not None:
            folders["before"] = scratch / f"{name}-before"
            servers["before"] = stack.enter_context(served(name, folders["before"], other))
        yield Measured(name, servers, folders, programs, quick)


def against_transformers(ours: Measured, quick: bool) -> dict[str, float]:
    """Answers a second of both under 16 clients, in turn, and their ratio."""
    from sidera.traffic.client import Client
    from sidera.traffic.requests import Asked, histories_of, questions
    from sidera.traffic.server import serving

    folder, seconds = ours.folders["after"], 8.0 if quick else 20.0
    script = str(Path(__file__).with_name("generate_server.py"))
    ours_of = {"ours": "after"} | ({"ours, 2 workers": WORKERS} if WORKERS in ours.servers else {})
    rates: dict[str, list[float]] = {**{label: [] for label in ours_of}, "peer": []}
    with serving(folder / "run", command=[sys.executable, script, str(folder / "run")],
                 environment={**environment(ROOT), "PYTHONSAFEPATH": ""}) as peer:  # fmt: skip
        histories = histories_of(folder / "data")
        requests = questions(peer.address, histories, Asked(length=20))
        for _ in range(1 if quick else 3):
            client = Client((peer.address.host, peer.address.port), requests, timeout=60.0)
            figures = client.closed(CLIENTS, seconds, seconds / 4).as_dict(SLO)["kinds"]["recommend"]
            assert set(figures["statuses"]) == {"200"}, figures
            rates["peer"].append(figures["answers_per_second"])
            for label, side in ours_of.items():
                rates[label].append(ours.throughput(side, seconds))
            ours.say(f"answers/s: { {label: values[-1] for label, values in rates.items()} }")
    found = {side: statistics.median(values) for side, values in rates.items()}
    return {**found, "ratio": round(max(found[label] for label in ours_of) / found["peer"], 2)}


def measure(name: str, runs: Path, other: Path | None, options: argparse.Namespace) -> dict[str, Any]:
    with both(name, runs, other, options.quick) as measured:
        row: dict[str, Any] = {"right": measured.right(count=50 if options.quick else 200)}
        if name in ONE_CLIENT:
            row["one_client_ms"] = measured.one_client()
        if name in OPEN_LOOP:
            row["highest_rate"] = measured.highest_rates()
        if name == "tiger" and not options.no_peer:
            row["peer"] = against_transformers(measured, options.quick)
        row["programs"] = measured.used()
    made_by = provenance(Path(sys.argv[0]))
    row["measured"] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": made_by["commit"],
        "uncommitted_changes": made_by["uncommitted_changes"],
        "code": hashlib.sha256(json.dumps(made_by["code"]).encode()).hexdigest()[:12],
        "ref": options.ref,
    }
    measured.say(str(row))
    return row


def main() -> None:
    options = arguments(__doc__, flags)
    names = options.only or (QUICK if options.quick else NAMES)
    file, rows = RESULTS / "serving.json", dict[str, Any]()
    if file.is_file() and not options.quick:
        rows = json.loads(file.read_text(encoding="utf-8"))["context"]["rows"]
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="serving-")))
        other = stack.enter_context(other_tree(options.ref, scratch))[0] if options.ref else None
        for name in names:
            rows[name] = measure(name, Path(options.runs) if options.runs else scratch, other, options)
            value, bar, passed = verdict(rows)
            code = rows[name]["measured"]["code"]
            context = {
                "slo_ms": 1000 * SLO, "clients": CLIENTS, "store": True, "exposures": True,
                "weights": "of a short training, or drawn: benchmarks/servers.py",
                "of_other_code": [each for each, row in rows.items() if row["measured"]["code"] != code], "rows": rows,
            }  # fmt: skip
            finish("serving", value, bar, passed, context, options.quick)


def verdict(rows: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, float], bool]:
    """Figures by name, their bars, and whether each meets its own."""
    checks: list[tuple[str, float, float, bool]] = []

    def check(name: str, value: float, bar: float, at_most: bool = False) -> None:
        checks.append((name, value, bar, value <= bar if at_most else value >= bar))

    for name, row in rows.items():
        check(f"{name} right", row["right"], RIGHT)
        if "one_client_ms" in row:
            after = row["one_client_ms"]["after"]
            check(f"{name} p50", after["p50"], ONE_CLIENT[name], at_most=True)
            check(f"{name} p99/p50", round(after["p99"] / after["p50"], 2), SPREAD, at_most=True)
        if "highest_rate" in row:
            rates, (least, times) = row["highest_rate"], OPEN_LOOP[name]
            ours = max(rates["after"], rates.get(WORKERS, 0.0))
            check(f"{name} rate", ours, least)
            if rates.get("before"):
                check(f"{name} rate, times", round(ours / rates["before"], 2), times)
        if "peer" in row:
            check("tiger throughput, times generate", row["peer"]["ratio"], PEER)
    return (
        {name: value for name, value, _, _ in checks},
        {name: bar for name, _, bar, _ in checks},
        all(passed for *_, passed in checks),
    )


if __name__ == "__main__":
    main()
