"""`sidera load` on a run folder, which it serves itself, and on addresses and flags that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sidera.cli import main
from sidera.core import InputError
from sidera.data.tiny import tiny_log
from sidera.traffic.requests import Address, Asked, histories_of, questions
from sidera.traffic.server import serving


def test_a_run_folder_is_served_and_asked(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["load", str(trained_run), "--clients", "2", "--seconds", "0.5", "--warmup", "0.1", "-k", "3", "--json"]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    kind = said["kinds"]["recommend"]
    assert said["mode"] == "closed, 2 clients"
    assert set(kind["statuses"]) == {"200"}
    assert kind["latency_ms"]["p50"] <= kind["latency_ms"]["p99"] <= kind["latency_ms"]["max"]
    assert said["generator_us_per_request"]["work"] > 0


def test_a_server_ends_with_its_block(trained_run: Path) -> None:
    with serving(trained_run) as server:
        assert server.rss > 0 or not Path("/proc").is_dir()
    assert server.process.poll() is not None


def test_a_server_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    problem = r"does not come up: sidera serve: .*no run folder"
    with pytest.raises(InputError, match=problem), serving(tmp_path / "none"):
        pass


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["https://shop"], "is no address"),
        (["http://127.0.0.1:1"], "fails"),
        (["http://127.0.0.1:99999"], "is no address"),
        (["127.0.0.1:1", "--rate", "0"], "--rate 0"),
        (["127.0.0.1:1", "--ask", "user"], "needs users"),
        (["127.0.0.1:1", "--header", "Key"], "--header"),
        (["127.0.0.1:1", "--serve", "--threads 1"], "goes with a run folder"),
        (["127.0.0.1:1", "--data", "/nothing"], "no events"),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load", *words]) == 2
    said = capsys.readouterr().err
    assert problem in said
    assert said.count("\n") == 1


def body_of(data: bytes) -> dict[str, Any]:
    head, _, body = data.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head.lower()
    return json.loads(body)


def test_questions_of_a_data_folder(tmp_path: Path) -> None:
    dataset = tiny_log()
    dataset.save(tmp_path / "data")
    histories = histories_of(tmp_path / "data", most_users=7)
    first = dataset.item_keys[dataset.item_ids[: dataset.offsets[1]]].tolist()
    assert list(histories) == dataset.user_keys[:7].tolist()
    assert histories[dataset.user_keys[0]] == first
    asked = questions(Address("shop", 80, "/api"), histories, Asked(k=4, length=2, events_share=0.2, fields={"a": 1}))
    kinds = [one.kind for one in asked]
    assert 0.15 < kinds.count("events") / len(kinds) < 0.25
    question = asked[kinds.index("recommend")]
    assert question.data.startswith(b"POST /api/v1/recommend HTTP/1.1\r\nHost: shop:80\r\n")
    body = body_of(question.data)
    assert body["history"] in [history[-2:] for history in histories.values()]
    assert (body["k"], body["a"]) == (4, 1)
    event = asked[kinds.index("events")]
    assert event.make is not None
    assert body_of(event.make(1))["times"] != body_of(event.make(2))["times"]
