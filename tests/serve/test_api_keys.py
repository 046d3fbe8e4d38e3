"""Keys: who may ask, send and look back; how often; and that a key which may only ask learns no history."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from sidera.cli import main
from sidera.core import ArtifactError, InputError
from sidera.engine.histories import open_behaviour
from sidera.engine.recommender import Recommender
from sidera.engine.serving import Parts
from sidera.serve.app import create_app
from sidera.serve.errors import Refused
from sidera.serve.keys import KeyFile, add_key, read_keys, remove_key

EVENT = {"user": "ann", "items": ["item0003", "gone"], "times": [1_600_000_123, 1_600_000_456]}


@pytest.fixture(scope="module")
def recommender(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recommender]:
    opened = Recommender.load(trained_run)
    with open_behaviour(tmp_path_factory.mktemp("keys") / "store", opened.catalog) as behaviour:
        behaviour.keep(EVENT["user"], EVENT["items"], EVENT["times"], {})  # type: ignore[arg-type]
        opened.parts = Parts(behaviour=behaviour)
        yield opened


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    file = tmp_path / "keys.json"
    return {"file": str(file), **{scope: add_key(file, scope, [scope]) for scope in ("read", "write", "admin")}}


@pytest.fixture
def client(recommender: Recommender, keys: dict[str, str]) -> TestClient:
    return TestClient(create_app(recommender, keys=KeyFile(keys["file"])))


def status(client: TestClient, key: str, path: str = "/v1/recommend", **body: Any) -> int:
    return client.post(path, json=body, headers={"authorization": f"Bearer {key}"}).status_code


def test_a_path_needs_a_key_of_its_scope(client: TestClient, keys: dict[str, str]) -> None:
    assert client.post("/v1/recommend", json={"history": []}).status_code == 401
    assert status(client, "wrong", history=[]) == 401
    assert status(client, keys["read"], history=[]) == 200
    assert status(client, keys["write"], history=[]) == 403
    event = {"user": "bob", "items": [], "times": []}
    assert status(client, keys["read"], "/v1/events", **event) == 403
    assert status(client, keys["write"], "/v1/events", **event) == 200
    sent = client.post("/v1/recommend", json={"history": []}, headers={"x-api-key": keys["read"]})
    assert sent.status_code == 200
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
        assert client.get(path).status_code == 200
    refused = client.post("/v1/recommend", json={"history": []})
    assert refused.headers["www-authenticate"] == "Bearer"
    assert "fix: send it as Authorization: Bearer KEY" in refused.json()["detail"]


def test_a_stranger_cannot_bisect_the_second_of_an_event(client: TestClient, keys: dict[str, str]) -> None:
    """34 requests found it: "no event before this second" is what ``as_of`` says of a user."""
    header = {"authorization": f"Bearer {keys['read']}"}
    low, high, asked = 0, 2**34, 0
    while high - low > 1:
        middle, asked = (low + high) // 2, asked + 1
        reply = client.post("/v1/recommend", json={"user": "ann", "as_of": middle}, headers=header)
        if reply.status_code != 200:
            break
        low, high = (middle, high) if reply.json()["unknown_user"] else (low, middle)
    assert (asked, reply.status_code) == (1, 403)
    assert "as_of for a stored user needs the scope 'admin'" in reply.json()["detail"]
    batch = client.post("/v1/recommend/batch", json={"requests": [{"user": "ann", "as_of": 5}]}, headers=header)
    assert batch.json()["answers"][0]["answer"] is None
    assert status(client, keys["read"], history=["item0003"], as_of=5) == 200  # its own history


def test_a_key_that_may_only_ask_learns_no_item_of_a_history(client: TestClient, keys: dict[str, str]) -> None:
    assert status(client, keys["read"], user="ann", filter_seen=True) == 403
    assert status(client, keys["read"], history=["item0003"], filter_seen=True) == 200
    reply = client.post("/v1/recommend", json={"user": "ann"}, headers={"x-api-key": keys["read"]})
    assert reply.json()["unknown"] == []
    both = add_key(keys["file"], "both", ["read", "write"])
    time.sleep(1.1)  # the file is looked at again
    reply = client.post("/v1/recommend", json={"user": "ann", "filter_seen": True}, headers={"x-api-key": both})
    assert reply.json()["unknown"] == ["gone"]


def test_what_a_long_list_lacks_does_not_say_what_a_user_has_seen(
    client: TestClient, keys: dict[str, str], recommender: Recommender
) -> None:
    """The catalogue leaves seen items out by default. A key that may only ask is answered all of it."""
    assert recommender.catalog.filters_seen
    knowing = add_key(Path(keys["file"]), "app", ["read", "write"])
    time.sleep(1.1)  # the file is looked at again

    def answer(key: str, **body: Any) -> dict[str, Any]:
        reply = client.post("/v1/recommend", json={"user": "ann", **body}, headers={"x-api-key": key})
        return reply.json()

    whole = answer(keys["read"], k=1000)
    assert not whole["filtered_seen"]
    assert len(whole["items"]) == 24
    assert [one["item"] for one in answer(keys["read"], filter={"item": "item0003"})["items"]] == ["item0003"]
    app = answer(knowing, k=1000)
    assert app["filtered_seen"]
    assert "item0003" not in [one["item"] for one in app["items"]]


def test_keys_expire_are_removed_and_limited(tmp_path: Path) -> None:
    file, now = tmp_path / "keys.json", [time.time()]
    old, gone = add_key(file, "old", ["read"], days=1), add_key(file, "gone", ["read"])
    limited = add_key(file, "limited", ["read"], rate=2)
    keys = KeyFile(file, now=lambda: now[0])
    assert [keys.check(key, "read").name for key in (old, gone, limited)] == ["old", "gone", "limited"]
    remove_key(file, "gone")
    now[0] += 2
    with pytest.raises(Refused, match="not known"):
        keys.check(gone, "read")
    for _ in range(4):  # two seconds' worth may come at once
        keys.check(limited, "read")
    with pytest.raises(Refused, match="may be used 2 times a second") as refusal:
        keys.check(limited, "read")
    assert (refusal.value.status_code, refusal.value.headers) == (429, {"retry-after": "1"})
    now[0] += 0.6
    keys.check(limited, "read")
    file.write_text("damaged")
    now[0] += 86_400
    with pytest.raises(Refused, match="the key 'old' has expired"):
        keys.check(old, "read")
    with pytest.raises(ArtifactError, match="is no file of keys"):
        KeyFile(file)


def test_the_shell_makes_lists_and_removes_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "keys.json")
    assert main(["api-keys", "add", "shop", "--keys", file, "--scopes", "read,write", "--days", "9"]) == 0
    key = capsys.readouterr().out.splitlines()[0]
    assert key not in Path(file).read_text()
    assert KeyFile(file).check(key, "write").name == "shop"
    assert main(["api-keys", "list", "--keys", file]) == 0
    assert "shop\tread,write\t20" in capsys.readouterr().out
    assert main(["api-keys", "remove", "shop", "--keys", file]) == 0
    assert read_keys(file) == {}
    for wrong in (["remove", "shop"], ["add"], ["add", "x", "--scopes", "all"]):
        assert main(["api-keys", *wrong, "--keys", file]) == 2
    add_key(file, "twice", ["read"])
    with pytest.raises(InputError, match="holds a key 'twice' already"):
        add_key(file, "twice", ["read"])
    assert (Path(file).stat().st_mode & 0o777) == 0o600


def test_beyond_this_machine_keys_are_asked_for(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(trained_run), "--host", "0.0.0.0"]) == 2
    assert "sidera api-keys add NAME --keys FILE" in capsys.readouterr().err


def test_the_log_names_nobody(recommender: Recommender, keys: dict[str, str], tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        client = TestClient(create_app(recommender, keys=KeyFile(keys["file"]), log=log))
        assert status(client, keys["read"], user="ann") == 200
        assert status(client, "wrong", user="ann") == 401
        assert client.get("/nowhere/ann").status_code == 404
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [(line["path"], line["status"], line["key"]) for line in lines] == [
        ("/v1/recommend", 200, "read"), ("other", 401, None), ("other", 404, None),
    ]  # fmt: skip
    assert "ann" not in (tmp_path / "log").read_text()


def test_a_key_that_may_only_ask_learns_of_no_single_second(client: TestClient, keys: dict[str, str]) -> None:
    """What is popular in a second is what somebody did then."""
    asking, knowing = keys["read"], add_key(Path(keys["file"]), "shop", ["read", "write"])
    second = {"seconds": 1, "until": 1_600_000_124}
    found = {}
    for name, key in (("asking", asking), ("knowing", knowing)):
        header = {"authorization": f"Bearer {key}"}
        assert client.get("/v1/popular", params={"window": "day"}, headers=header).status_code == 200
        found[name] = client.get("/v1/popular", params=second, headers=header)
    assert found["asking"].status_code == 403
    assert "seconds and until need the scope 'write'" in found["asking"].json()["detail"]
    assert [one["item"] for one in found["knowing"].json()["items"]] == ["item0003"]
    for scope, expected in (("read", 403), ("write", 403), ("admin", 200)):
        header = {"authorization": f"Bearer {keys[scope]}"}
        answer = client.get("/v1/history", params={"user": "ann"}, headers=header)
        assert answer.status_code == expected
    assert [one["time"] for one in answer.json()["events"]] == [1_600_000_123]
    assert answer.json()["unknown"] == ["gone"]
