"""The web page: its files and headers, and what a person does with it in a headless Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from shutil import copytree

import pytest
from browser import Page, browsing, executable
from fastapi.testclient import TestClient

from sidera.engine.recommender import Recommender
from sidera.engine.serving import ServeConfig
from sidera.serve import aside as aside_module
from sidera.serve.app import create_app
from sidera.serve.errors import Refused
from sidera.serve.keys import KeyFile, add_key
from sidera.serve.page import NAMES
from sidera.traffic.server import serving

STATIC = files("sidera.serve") / "static"
needs_browser = pytest.mark.skipif(executable() is None, reason="no chromium here")
FEED = "document.querySelectorAll('#feed article')"


@pytest.fixture(scope="module")
def client(trained_run: Path) -> TestClient:
    return TestClient(create_app(Recommender.load(trained_run)))


def test_the_page_and_its_files_go_out_under_a_policy(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for name in NAMES:
        answer = client.get(f"/page/{name}")
        assert answer.status_code == 200
        assert answer.content == (STATIC / name).read_bytes()
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
    for name in ("nothing.js", "../app.py", "..%2fapp.py", "page.html/..", "%00"):
        assert client.get(f"/page/{name}").status_code == 404


def test_every_file_is_served_and_asks_for_no_other(client: TestClient) -> None:
    assert {one.name for one in STATIC.iterdir()} == {*NAMES, "page.html"}
    for one in STATIC.iterdir():
        text = one.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.|\bstyle=|\son[a-z]+=|innerHTML|eval\(", text), one.name
        for asked in re.findall(r"[\"'](/page/[\w.]+)[\"']", text):
            assert asked.removeprefix("/page/") in (*NAMES, "config.json")


def test_what_the_page_is_told(client: TestClient) -> None:
    told = client.get("/page/config.json").json()
    assert (told["model"], told["generates"], told["store"], told["columns"]) == ("sidera", True, False, [])


def test_items_are_searched_by_title_and_id(client: TestClient) -> None:
    everything = client.get("/v1/search", params={"k": 50}).json()
    assert len(everything) == 24
    assert client.get("/v1/search", params={"text": "ITEM0007"}).json() == [
        one for one in everything if one["item"] == "item0007"
    ]
    title = everything[3]["title"] or everything[3]["item"]
    assert everything[3] in client.get("/v1/search", params={"text": title[1:-1], "k": 50}).json()
    assert client.get("/v1/search", params={"text": "no such thing"}).json() == []
    assert client.get("/v1/search", params={"k": 0}).status_code == 422


def test_explanations_over_http(client: TestClient) -> None:
    body = {"history": ["item0003", "item0007"], "item": "item0005"}
    found = client.post("/v1/explain", json=body).json()
    assert {one["item"] for one in found["events"]} == {"item0003", "item0007"}
    assert found["events"][0]["weight"] >= found["events"][1]["weight"]
    assert len(found["codes"]) == 2
    assert found["tree"][0]["children"]
    for wrong in ({}, {"item": "item0005"}, {**body, "item": "nothing"}, {**body, "user": "ann"}, {**body, "x": 1}):
        assert client.post("/v1/explain", json=wrong).status_code == 422


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browsing() as tab:
        yield tab


@pytest.fixture(scope="module")
def address(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of a copy of the run, whose items may change, with a store that is empty."""
    folder = tmp_path_factory.mktemp("page")
    copytree(trained_run, folder / "run")
    flags = ["--store", str(folder / "store"), "--exposures", str(folder / "exposures")]
    with serving(folder / "run", flags) as server:
        yield f"http://127.0.0.1:{server.address.port}"


def opened(page: Page, address: str, user: str) -> None:
    page.open(f"{address}/?user={user}")
    page.until(f"location.search === '?user={user}' && {FEED}.length === 12")


def texts(page: Page, selector: str) -> list[str]:
    return page.run(f"[...document.querySelectorAll('{selector}')].map((one) => one.textContent)")


def shown(page: Page) -> list[str]:
    return page.run(f"[...{FEED}].map((one) => one.dataset.item)")


@needs_browser
def test_a_user_clicks_and_the_list_follows(page: Page, address: str) -> None:
    page.size(1280, 900)
    opened(page, address, "ann")
    assert "nothing is known" in page.run("document.querySelector('#summary').textContent")
    before = shown(page)
    page.run(f"{FEED}[0].focus()")
    page.press("Enter")
    page.until("document.querySelectorAll('#past li').length === 1 && !document.querySelector('#feed[aria-busy]')")
    page.until("!document.querySelector('#summary').textContent.includes('nothing is known')")
    assert shown(page) != before
    assert page.run("document.activeElement.closest('#feed') !== null")  # the keyboard stays where it was
    page.press("ArrowRight")
    page.press("s")
    page.until("document.querySelectorAll('#past li').length === 2 && !document.querySelector('#feed[aria-busy]')")
    skipped = page.run("JSON.parse(localStorage.getItem('skipped ann'))[0]")
    page.until(f"![...{FEED}].some((one) => one.dataset.item === '{skipped}')")
    assert page.run("fetch('/healthz').then((one) => one.json()).then((one) => one.users)") == 1


@needs_browser
def test_why_names_events_codes_and_the_search(page: Page, address: str) -> None:
    page.size(1280, 900)
    opened(page, address, "eve")
    for number in (1, 2):
        page.run(f"{FEED}[0].querySelector('button').click()")
        page.until(f"document.querySelectorAll('#past li').length === {number}")
    page.run(f"{FEED}[1].focus()")
    item = page.run("document.activeElement.dataset.item")
    page.press("w")
    page.until("document.querySelectorAll('.reasons li').length === 2")
    assert item in page.run("document.querySelector('.explained').textContent")
    assert len(texts(page, ".codes li")) == 2
    assert len(texts(page, ".tree .here .code")) == 2  # the way to this item is open, and marked
    page.press("Escape")
    page.until("document.querySelector('#why').hidden")
    assert page.run("document.activeElement.dataset.item") == item


@needs_browser
def test_items_are_removed_and_added_by_hand(page: Page, address: str) -> None:
    page.size(1280, 900)
    opened(page, address, "zoe")
    gone = shown(page)[0]
    page.run("document.querySelector('#find').open = true")
    page.until("document.querySelectorAll('#found li').length === 12")
    page.run(
        f"document.querySelector('#search').value = '{gone}'; document.querySelector('#search-form').requestSubmit()"
    )
    page.until("document.querySelectorAll('#found li').length === 1")
    page.run("document.querySelector('#found .danger').click()")
    page.until(f"![...{FEED}].some((one) => one.dataset.item === '{gone}')")
    page.run(
        f"document.querySelector('#add-key').value = '{gone}'; document.querySelector('#add-title').value = 'back'"
    )
    page.run("document.querySelector('#add-form').requestSubmit()")
    page.until(f"[...{FEED}].some((one) => one.dataset.item === '{gone}')")


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True), (320, False)])
def test_it_fits_and_can_be_read(page: Page, address: str, width: int, dark: bool) -> None:
    page.size(width, 800, dark=dark)
    opened(page, address, "fit")
    page.run(f"{FEED}[0].querySelectorAll('button')[3].click()")
    page.until("document.querySelector('#why-body').textContent.includes('most popular')")
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("getComputedStyle(document.documentElement).getPropertyValue('--is-dark')").strip() == str(
        int(dark)
    )
    small = page.run(
        "[...document.querySelectorAll('button, select, input')].filter((one) => one.offsetParent &&"
        " one.getBoundingClientRect().height < 29).map((one) => one.outerHTML)"
    )
    assert small == []
    assert page.run(CONTRAST) == []


# Texts whose colour and the ground below them differ by less than 4.5 to 1 (WCAG 2.2, 1.4.3); pictures are left out.
CONTRAST = """[...document.querySelectorAll('body *')].filter((one) =>
  one.offsetParent && !one.closest('.picture, svg') &&
  [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())).map((one) => {
    const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = (color) => color.slice(0, 3).map((part) => part / 255)
      .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
      .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
    let ground = one;
    const clear = (element) => (rgb(getComputedStyle(element).backgroundColor)[3] ?? 1) === 0;
    while (ground.parentElement && clear(ground)) ground = ground.parentElement;
    const pair = [light(rgb(getComputedStyle(one).color)), light(rgb(getComputedStyle(ground).backgroundColor))].sort();
    return [one.textContent.trim().slice(0, 30), (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05)];
  }).filter(([, ratio]) => ratio < 4.5)"""


@needs_browser
def test_nobody_outside_was_asked_and_nothing_went_wrong(page: Page, address: str) -> None:
    opened(page, address, "last")
    assert {re.match(r"\w+:(//[^/]*)?", url)[0] for url in page.requests} <= {address, "about:", "data:"}  # type: ignore[index]
    assert page.problems == []


@needs_browser
def test_without_a_store_the_browser_remembers(page: Page, trained_run: Path) -> None:
    with serving(trained_run) as server:
        opened(page, f"http://127.0.0.1:{server.address.port}", "here")
        before = " ".join(shown(page))
        page.run(f"{FEED}[2].querySelector('button').click()")
        page.until(f"[...{FEED}].map((one) => one.dataset.item).join(' ') !== '{before}'")
        page.until("!document.querySelector('#summary').textContent.includes('nothing is known')")
        page.run(f"{FEED}[0].querySelectorAll('button')[3].click()")
        page.until("document.querySelectorAll('.reasons li').length === 1")
    assert page.problems == []


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A file of keys, and the key of each scope."""
    path = tmp_path / "keys.json"
    return path, {scope: add_key(path, scope, [scope]) for scope in ("read", "admin")}


def test_why_a_stored_user_gets_an_item_needs_the_admin_scope(
    trained_run: Path, tmp_path: Path, keys: tuple[Path, dict[str, str]]
) -> None:
    with Recommender.load(trained_run, serve=ServeConfig(store=str(tmp_path / "store"))) as recommender:
        assert recommender.behaviour is not None
        recommender.behaviour.keep("ann", ["item0003", "item0007"], [10, 20], {}, refuse_unknown=True)
        client = TestClient(create_app(recommender, keys=KeyFile(keys[0])))

        def status(scope: str, **body: object) -> int:
            headers = {"X-API-Key": keys[1].get(scope, "")}
            return client.post("/v1/explain", json={"item": "item0005", **body}, headers=headers).status_code

        assert [status(scope, user="ann") for scope in ("", "read", "admin")] == [401, 403, 403]  # one scope each
        both = add_key(keys[0], "both", ["read", "admin"])
        client = TestClient(create_app(recommender, keys=KeyFile(keys[0])))
        keys[1]["both"] = both
        assert status("both", user="ann") == 200
        assert status("read", history=["item0003"]) == 200
        assert client.get("/").status_code == client.get("/page/config.json").status_code == 200
        assert client.get("/v1/search").status_code == 401


def test_questions_beside_the_queue_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside_module, "PATIENCE", 0.01)
    aside = aside_module.Aside()
    with aside.turn():
        with pytest.raises(Refused) as refusal, aside.turn():
            pass
        assert refusal.value.status_code == 503
    with aside.turn():
        pass


@needs_browser
def test_a_server_with_keys_is_given_one(page: Page, trained_run: Path, keys: tuple[Path, dict[str, str]]) -> None:
    with serving(trained_run, ["--keys", str(keys[0])]) as server:
        page.problems.clear()
        page.open(f"http://127.0.0.1:{server.address.port}/?user=kim")
        page.until("location.search === '?user=kim' && document.querySelector('#key-form')?.hidden === false")
        page.run(f"document.querySelector('#key').value = '{keys[1]['read']}'")
        page.run("document.querySelector('#key-form').requestSubmit()")
        page.until(f"{FEED}.length === 12 && document.querySelector('#key-form')?.hidden")
        assert all("401" in problem for problem in page.problems)
