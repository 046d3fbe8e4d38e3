"""The loop closes: events that were sent to a server train the version that it answers with next."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from sidera.catalog.catalog import Catalog
from sidera.cli import main
from sidera.data.dataset import Dataset
from sidera.engine import versions
from sidera.engine.export import read_exposures
from sidera.engine.live import LiveRun, open_current
from sidera.engine.serving import ServeConfig
from sidera.serve.app import create_app

NOW = 1_700_000_000


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


@pytest.fixture
def live(run: Path, tmp_path: Path) -> Iterator[LiveRun]:
    config = ServeConfig(store=tmp_path / "store", exposures=tmp_path / "log")
    with LiveRun.open(run, serve=config) as opened:
        yield opened


def post(live: LiveRun, path: str, expected: int = 200, **body: Any) -> dict[str, Any]:
    response = TestClient(create_app(live.recommender)).post(path, json=body)
    assert response.status_code == expected, response.text
    return response.json()


def copied(run: Path, number: int, change: float = 0.5) -> None:
    """Another version: the same weights, scaled."""
    from sidera.engine.recommender import Recommender
    from sidera.engine.versions import Version, adding, write_record

    one = Recommender.load(run)
    with adding(run, number) as folder:
        shutil.copytree(run / "catalog", folder / "catalog")
        shutil.copyfile(run / "recipe.json", folder / "recipe.json")
        with torch.no_grad():
            for weight in one.model.parameters():
                weight.mul_(change)
        one.save_model(folder / "model", digest=f"v{number}", parents={})
        write_record(folder, Version(number, f"v{number}", one.catalog.num_items))


def test_from_events_to_the_next_version_that_answers(run: Path, trained_run: Path, tmp_path: Path) -> None:
    """Serve, export, append, refresh, swap: at the shell and over HTTP."""
    data = Path(shutil.copytree(trained_run.parent / "data", tmp_path / "data"))
    old = Dataset.load(data)
    end = int(old.times.max()) + 1
    config = ServeConfig(store=tmp_path / "store", exposures=tmp_path / "log")
    with LiveRun.open(run, serve=config) as live:
        rng = np.random.default_rng(0)
        for user in range(old.num_users):
            mine = old.item_ids[old.offsets[user] : old.offsets[user + 1]]
            items = [str(old.item_keys[item]) for item in rng.choice(mine, 5)] + ["brand new"]
            times = list(range(end + user, end + user + 6))
            post(live, "/v1/events", user=str(old.user_keys[user]), items=items, times=times)
        answer = post(live, "/v1/recommend", user=str(old.user_keys[0]), k=5)
        shown = answer["items"][0]["item"]
        assert post(live, "/v1/events", user=str(old.user_keys[0]), items=[shown], times=[end + 900])["new"] == 1
        exported = post(live, "/v1/admin/export", name="tuesday")
        assert exported["events"] == 6 * old.num_users + 1
        assert exported["answered"] == 0, "the item was shown now, long after its event's second"
        before = live.recommender.version
        assert main(["import", exported["folder"], "--append", str(data)]) == 0
        assert main(["refresh", str(run), "--data", str(data), "--max-loss", "1", "--min-overlap", "0"]) == 0
        assert versions.current_number(run) == 1
        assert live.recommender.version == before, "the server answers on with the old one until it is told"
        done = post(live, "/v1/admin/swap")
        assert (done["version"], done["before"]) == (1, 0)
        after = post(live, "/v1/recommend", user=str(old.user_keys[0]), k=5)
        assert after["policy_version"] == versions.read_version(run, 1).model != before
        assert after["items_version"] > answer["items_version"]
        assert "brand new" in live.recommender.catalog.item_keys.tolist()
        assert main(["versions", str(run)]) == 0
        assert main(["rollback", str(run), "0"]) == 0
        live.follow()
        assert live.recommender.version == before


def test_a_version_that_is_broken_leaves_the_old_one_answering(live: LiveRun, run: Path) -> None:
    copied(run, 1)
    copied(run, 2, float("nan"))
    copied(run, 3)
    (run / "versions" / "3" / "model" / "weights-00000.safetensors").write_bytes(b"damaged")
    before = post(live, "/v1/recommend", history=["item0003"], k=5)
    for number, words in ((7, "has no version 7"), (2, ""), (3, "truncated or was edited")):
        assert words in post(live, "/v1/admin/swap", 409, version=number)["detail"]
        after = post(live, "/v1/recommend", history=["item0003"], k=5)
        assert {**after, "milliseconds": 0} == {**before, "milliseconds": 0}
    assert versions.current_number(run) == 0
    assert post(live, "/v1/admin/swap", version=1)["policy_version"] == "v1"
    assert versions.current_number(run) == 1


def test_the_pointer_is_followed_and_a_bad_one_is_tried_once(live: LiveRun, run: Path) -> None:
    copied(run, 1)
    versions.make_current(run, 1, "test")
    live.watch(0.05)
    for _ in range(200):
        if live.recommender.version == "v1":
            break
        threading.Event().wait(0.05)
    assert live.recommender.version == "v1"
    copied(run, 2, float("nan"))
    versions.make_current(run, 2, "test")
    for _ in range(200):
        if live.problem:
            break
        threading.Event().wait(0.05)
    assert live.problem.startswith("version 2: ")
    assert live.recommender.version == "v1"


def test_items_change_for_the_next_answer_and_after_a_restart(live: LiveRun, run: Path, tmp_path: Path) -> None:
    first = post(live, "/v1/recommend", history=["item0003"], k=5)
    top = first["items"][0]["item"]
    body = {"items": [{"item": "late", "title": "late cup"}], "removed": [top, "nobody"], "version": 5}
    done = post(live, "/v1/items", **body)
    assert (done["added"], done["removed"], done["absent"], done["applied"]) == (1, 1, ["nobody"], True)
    after = post(live, "/v1/recommend", history=["item0003"], k=50)
    assert after["items_version"] == done["items_version"] > first["items_version"]
    keys = [one["item"] for one in after["items"]]
    assert top not in keys
    assert "late" in keys
    again = post(live, "/v1/items", **body)
    assert (again["applied"], again["items_version"]) == (False, done["items_version"])
    assert "other content" in post(live, "/v1/items", 409, **{**body, "removed": []})["detail"]
    assert "behind message 5" in post(live, "/v1/items", 409, items=[{"item": "x"}], version=4)["detail"]
    assert "named twice" in post(live, "/v1/items", 422, items=[{"item": "x"}, {"item": "x"}])["detail"]
    report = TestClient(create_app(live.recommender)).get("/v1/items").json()
    assert (report["removed"], report["newer_than_the_model"], report["last_message"]) == (1, 1, 5)
    restarted = open_current(run)
    (answer,) = restarted.recommend([["item0003"]], k=50)
    assert list(answer.item_keys) == keys
    assert answer.items_version == done["items_version"]


def test_changes_of_items_survive_a_swap_and_reach_other_processes(live: LiveRun, run: Path) -> None:
    copied(run, 1)
    top = post(live, "/v1/recommend", history=["item0003"], k=1)["items"][0]["item"]
    changed = post(live, "/v1/items", items=[{"item": "late", "title": "late cup"}], removed=[top])
    other = LiveRun.open(run)
    assert other.recommender.catalog.items_version == changed["items_version"]
    swapped = post(live, "/v1/admin/swap", version=1)
    assert swapped["items_version"] > changed["items_version"]
    answers = post(live, "/v1/recommend", history=["item0003"], k=50)
    assert top not in [one["item"] for one in answers["items"]]
    post(live, "/v1/items", items=[{"item": top}])
    other.follow()
    assert other.recommender.catalog.items_version == live.recommender.catalog.items_version
    assert other.recommender.version == live.recommender.version == "v1"
    assert other.recommender.catalog.content_digest() == live.recommender.catalog.content_digest()
    other.close()


def of_other_codes(run: Path, trained_run: Path, folder: Path) -> int:
    """A version that was trained again, with a codebook of its own."""
    from sidera.train.recipe import Recipe
    from sidera.train.stages import train

    codes = ("num_levels=2", "codebook_size=6", "balanced=false")
    recipe = Recipe.of_run(trained_run, ("fit.epochs=1", *(f"catalog.quantizer.{key}" for key in codes)))
    train(recipe, trained_run.parent / "data", folder / "again", say=lambda _: None)
    return versions.add_run(run, folder / "again")


def codes_of(catalog: Catalog) -> dict[str, tuple[int, ...]]:
    return dict(zip(catalog.item_keys.tolist(), map(tuple, np.asarray(catalog.codes).tolist()), strict=True))


def test_a_canary_of_other_codes_takes_messages_in_with_one_index_of_titles(
    run: Path, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sidera.engine import version_catalogs as module
    from sidera.engine.living import catalog_now

    number = of_other_codes(run, trained_run, tmp_path)
    with LiveRun.open(run) as live:
        post(live, "/v1/items", items=[{"item": "early", "title": "an early cup"}])
        post(live, "/v1/admin/trial", version=number, share=1.0)
        made, plain = list[int](), module.TextNeighbours

        def counted(titles: list[Any]) -> Any:
            made.append(len(titles))
            return plain(titles)

        monkeypatch.setattr(module, "TextNeighbours", counted)
        for name in ("late 1", "late 2", "late 3"):
            post(live, "/v1/items", items=[{"item": name, "title": f"{name} cup"}])
        assert len(made) == 1
        route = live.recommender.route
        assert route is not None
        side, main_catalog = route.serving.snapshot.catalog, live.recommender.catalog
        assert side.codebook_id != main_catalog.codebook_id
        assert side.item_keys.tolist() == main_catalog.item_keys.tolist()
        assert side.items_version >= main_catalog.items_version
        post(live, "/v1/admin/swap", version=number)
        assert np.array_equal(live.recommender.catalog.codes, side.codes)
        post(live, "/v1/items", items=[{"item": "last", "title": "a last cup"}])
        assert len(made) == 1, "promoted with its index"
        side = live.recommender.catalog
    again = catalog_now(run, number)[0]
    assert codes_of(again) == codes_of(side), "as if all had come at once"


def test_a_model_trained_again_with_other_codes_reads_the_same_store(
    run: Path, trained_run: Path, tmp_path: Path
) -> None:
    number = of_other_codes(run, trained_run, tmp_path)
    config = ServeConfig(store=tmp_path / "store", exposures=tmp_path / "log")
    with LiveRun.open(run, serve=config) as live:
        post(live, "/v1/events", user="ann", items=["item0003", "item0004"], times=[NOW, NOW + 1])
        before = post(live, "/v1/recommend", user="ann", k=5)
        swapped = post(live, "/v1/admin/swap", version=number)
        assert swapped["codebook_id"] != before["codebook_id"]
        after = post(live, "/v1/recommend", user="ann", k=5)
        assert after["codebook_id"] == swapped["codebook_id"]
        assert not after["unknown_user"]
        for answer in (before, after):  # what followed on answers of both is told to the log of each
            live.recommender.follow({"request": [answer["request"]], "slot": [0], "click": [True]})
    table = read_exposures(tmp_path / "log")
    clicked = table.filter(table["click"]).to_pydict()
    assert sorted(clicked["request"]) == sorted([before["request"], after["request"]])
    with LiveRun.open(run, serve=config) as again:
        assert post(again, "/v1/recommend", user="ann", k=5)["codebook_id"] == after["codebook_id"]
        assert post(again, "/v1/admin/swap", version=0)["codebook_id"] == before["codebook_id"]


def test_a_canary_answers_its_users_and_a_shadow_nobody(live: LiveRun, run: Path) -> None:
    copied(run, 1)
    users = [f"user {number}" for number in range(60)]
    for user in users:
        post(live, "/v1/events", user=user, items=["item0003"], times=[NOW])
    main_version = live.recommender.version

    def who_answers() -> dict[str, str]:
        found = live.recommender.recommend([_request(user) for user in users], k=5)
        return {user: one.policy_version for user, one in zip(users, found, strict=True)}

    post(live, "/v1/admin/trial", version=1, share=0.5)
    by_user = who_answers()
    assert set(by_user.values()) == {main_version, "v1"}
    assert 15 <= sum(version == "v1" for version in by_user.values()) <= 45
    assert who_answers() == by_user, "a user meets one version"
    changed = post(live, "/v1/items", removed=["item0003"])
    for one in live.recommender.recommend([_request(user) for user in users], k=50):
        assert "item0003" not in one.item_keys
        assert one.items_version >= changed["items_version"]
    post(live, "/v1/admin/trial", version=1, share=1.0, side="shadow")
    (answer,) = live.recommender.recommend([_request(users[0])], k=5)
    assert (answer.policy_version, answer.shadow_version) == (main_version, "v1")
    live.recommender._shadow.wait()
    trial = live.status()["trial"]
    assert (trial["compared"], trial["failed"]) == (1, 0)
    TestClient(create_app(live.recommender)).delete("/v1/admin/trial")
    assert set(who_answers().values()) == {main_version}
    assert "share" in post(live, "/v1/admin/trial", 422, version=1, share=2)["detail"]


def _request(user: str) -> Any:
    from sidera.core import Request

    return Request(user=user, k=50)


def test_swaps_and_changes_of_items_under_load_mix_nothing(live: LiveRun, run: Path) -> None:
    """Answers of 3 threads while versions are swapped and items come and go: each is of one version."""
    copied(run, 1)
    removed_at: dict[str, int] = {}
    returned_at: dict[str, int] = {}
    names = {0: live.recommender.version, 1: "v1"}
    problems: list[str] = []
    stop = threading.Event()
    seen: list[tuple[str, int, list[str]]] = []

    def ask() -> None:
        torch.set_num_threads(1)
        while not stop.is_set():
            try:
                for one in live.recommender.recommend([["item0003"], ["item0010", "late 1"]], k=50):
                    seen.append((one.policy_version, one.items_version, list(one.item_keys)))
            except Exception as error:
                problems.append(repr(error))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    from sidera.engine.living import Delta, ItemChange

    for step in range(12):
        gone = f"item{step:04d}"
        done = live.change_items(Delta((ItemChange(f"late {step}", "late"),), (gone,)))
        removed_at[gone] = done.items_version
        live.swap(1 - step % 2)
        if step % 3 == 0:
            returned_at[gone] = live.change_items(Delta((ItemChange(gone),))).items_version
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert {version for version, _, _ in seen} <= set(names.values())
    for _, items_version, keys in seen:
        for key in keys:
            if key in removed_at:
                gone_now = removed_at[key] <= items_version < returned_at.get(key, 10**9)
                assert not gone_now, (key, items_version)
    assert len(seen) > 20
    assert isinstance(live.recommender.catalog, Catalog)
