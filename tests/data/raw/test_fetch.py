"""Fetching, against a server on this machine that cuts, lies, changes its mind and redirects."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from bad_web import Proxy, Site, running, serving

from sidera.cli import main
from sidera.core import InputError
from sidera.data import download as downloading
from sidera.data.download import Patience, download, sha256
from sidera.data.fetch import fetch, listing, read_lock
from sidera.data.published import CATALOGUE, published
from sidera.data.raw import RAW_FORMATS

QUICK = Patience(tries=3, timeout=5, first_wait=0.001, say_every=0)
CONTENT = bytes(range(256)) * 4000  # 1 MB


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def silent(_: str) -> None:
    pass


def get(site: Site, folder: Path, name: str = "file.bin", patience: Patience = QUICK) -> Path:
    download(f"{site.address}/{name}", folder / name, silent, patience)
    return folder / name


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    said: list[str] = []
    with serving(Site(CONTENT)) as site:
        download(f"{site.address}/file.bin", tmp_path / "file.bin", said.append, QUICK)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert left(tmp_path) == ["file.bin"]
    assert any("MB/s" in line for line in said)
    assert said[-1] == "file.bin: 1,024,000 bytes"


def test_a_cut_connection_goes_on_where_it_broke(tmp_path: Path) -> None:
    with serving(Site(CONTENT, "cut", "cut", "well")) as site:
        assert get(site, tmp_path).read_bytes() == CONTENT
    ranges = [asked.get("range") for asked in site.asked]
    assert ranges == [None, "bytes=512000-", "bytes=768000-"]
    assert site.asked[1]["if-range"] == '"one"'


def test_a_later_command_goes_on_too(tmp_path: Path) -> None:
    with serving(Site(CONTENT, "cut", "503")) as site:
        with pytest.raises(InputError, match=r"answers 503 \(3 tries\).*goes on after 512,000 bytes"):
            get(site, tmp_path)
        assert left(tmp_path) == ["file.bin.part", "file.bin.part.json"]
        site.manners = ["well"]
        assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.asked[-1]["range"] == "bytes=512000-"
    assert left(tmp_path) == ["file.bin"]


def test_a_call_that_ended_before_the_last_step_fetches_nothing_again(tmp_path: Path) -> None:
    with serving(Site(CONTENT)) as site:
        get(site, tmp_path).rename(tmp_path / "file.bin.part")
        memo = {"url": f"{site.address}/file.bin", "version": site.tag}
        (tmp_path / "file.bin.part.json").write_text(json.dumps(memo))
        assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.asked[-1]["range"] == "bytes=1024000-"
    assert left(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("then", ["no ranges", "changed"])
def test_a_server_without_ranges_or_with_another_file_sends_it_from_the_beginning(tmp_path: Path, then: str) -> None:
    with serving(Site(CONTENT, "cut", then, "well")) as site:
        found = get(site, tmp_path).read_bytes()
    assert found == site.content
    assert (found == CONTENT) == (then == "no ranges")
    assert len(site.asked) == 2


@pytest.mark.parametrize("manner", ["no version", "weak"])
def test_what_has_no_version_is_not_patched_together(tmp_path: Path, manner: str) -> None:
    with serving(Site(CONTENT, manner, "well")) as site:
        assert get(site, tmp_path).read_bytes() == CONTENT
    assert "range" not in site.asked[1]


def test_a_part_of_another_address_is_not_gone_on_with(tmp_path: Path) -> None:
    with serving(Site(CONTENT, "cut", "404", "well")) as site:
        with pytest.raises(InputError, match="answers 404"):
            get(site, tmp_path)
        download(f"{site.address}/moved/file.bin", tmp_path / "file.bin", silent, QUICK)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert "range" not in site.asked[-1]


@pytest.mark.parametrize(
    ("manner", "named"),
    [
        ("404", "answers 404"),
        ("403", "answers 403"),
        ("500", r"answers 500 \(3 tries\)"),
        ("429", r"answers 429 \(3 tries\)"),
        ("short", r"ended after 1,024,000 of 1,024,100 bytes \(3 tries\)"),
        ("silent", "no connection"),
        ("wrong part", r"another part .* \(3 tries\)"),
        ("to ftp://127.0.0.1/file.bin", "redirect|302"),
        ("to file:///etc/passwd", "redirect|302"),
        ("to data:text/plain,x", "redirect|302"),
    ],
)
def test_what_cannot_be_had_is_one_line(tmp_path: Path, manner: str, named: str) -> None:
    with serving(Site(CONTENT, manner)) as site, pytest.raises(InputError, match=named) as error:
        get(site, tmp_path)
    assert "\n" not in str(error.value)
    assert not any(path.stat().st_size for path in tmp_path.iterdir() if manner not in ("short", "wrong part"))
    assert not (tmp_path / "file.bin").exists()


def test_redirects_between_web_addresses_are_followed(tmp_path: Path) -> None:
    with serving(Site(CONTENT)) as there, serving(Site(b"", f"to {there.address}/elsewhere")) as here:
        assert get(here, tmp_path).read_bytes() == CONTENT


def test_no_step_from_https_to_http() -> None:
    import urllib.request

    request = urllib.request.Request("https://example.org/x")
    with pytest.raises(InputError, match="no step from https to http"):
        downloading._Redirects().redirect_request(request, None, 302, "", {}, "http://example.org/x")


def test_nobody_there_and_no_web_address(tmp_path: Path) -> None:
    with serving(Site(CONTENT)) as site:
        pass
    with pytest.raises(InputError, match=r"no connection .*\(3 tries\)"):
        get(site, tmp_path)
    for address in ("ftp://example.org/x", "file:///etc/passwd", "example.org/x"):
        with pytest.raises(InputError, match="http:// and https://"):
            download(address, tmp_path / "x", silent, QUICK)


def test_certificates_are_checked(tmp_path: Path) -> None:
    """The opener's context is the default one of the library: names and chains are verified."""
    import ssl
    import urllib.request

    (handler,) = [h for h in downloading._opener().handlers if isinstance(h, urllib.request.HTTPSHandler)]
    context = handler._context
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


def test_a_page_in_place_of_an_archive_is_refused(tmp_path: Path) -> None:
    with serving(Site(CONTENT, "page")) as site:
        with pytest.raises(InputError, match=r"gives is no \.gz file .*an account"):
            get(site, tmp_path, "reviews.json.gz")
        with pytest.raises(InputError, match=r"gives is no \.zip file"):
            small_set(site, tmp_path / "set")
        assert left(tmp_path) == ["set"]
        assert left(tmp_path / "set") == []
        site.content, site.manners = gzip.compress(b"{}"), ["well"]
        assert gzip.decompress(get(site, tmp_path, "reviews.json.gz").read_bytes()) == b"{}"


def test_a_full_disk_is_seen_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda _: Usage(1000))
    with serving(Site(CONTENT)) as site, pytest.raises(InputError, match=r"needs 1 MB, .* has 0 MB free"):
        get(site, tmp_path)


class Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_two_at_once_are_kept_apart(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with (
        serving(Site(CONTENT)) as site,
        downloading._alone(tmp_path / "file.bin.part"),
        pytest.raises(InputError, match="fetched by another process"),
    ):
        get(site, tmp_path)


def test_the_proxy_of_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    with serving(Site(CONTENT)) as site, running(type("Seeing", (Proxy,), {"seen": seen})) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        assert get(site, tmp_path).read_bytes() == CONTENT
    assert seen == [f"{site.address}/file.bin"]


# ---- sets, terms, pins


def small_set(site: Site, folder: Path, **more: object) -> list[Path]:
    options = {"accept": lambda _: True, "source": site.address, "say": silent, "patience": QUICK, **more}
    return fetch("ml-latest-small", folder, **options)  # type: ignore[arg-type]


def test_the_first_download_is_pinned_and_the_next_must_equal_it(tmp_path: Path) -> None:
    with serving(Site(b"PK" + CONTENT)) as site:
        (path,) = small_set(site, tmp_path)
        pin = read_lock(tmp_path / "fetch.lock.json")["ml-latest-small.zip"]
        assert (pin.bytes, pin.sha256) == (path.stat().st_size, sha256(path))
        assert pin.url == f"{site.address}/ml-latest-small.zip"
        number = len(site.asked)
        small_set(site, tmp_path)
        assert len(site.asked) == number, "a whole file is not fetched again"

        site.content += b"!"
        path.unlink()
        with pytest.raises(InputError, match=r"is not the file that .* pins: .*--repin"):
            small_set(site, tmp_path)
        assert not path.exists()
        small_set(site, tmp_path, repin=True)
        assert read_lock(tmp_path / "fetch.lock.json")["ml-latest-small.zip"].sha256 == sha256(path) != pin.sha256


def test_a_file_edited_on_the_disk_is_fetched_again(tmp_path: Path) -> None:
    with serving(Site(b"PK" + CONTENT)) as site:
        (path,) = small_set(site, tmp_path)
        path.write_bytes(b"PKbroken")
        small_set(site, tmp_path)
    assert path.read_bytes() == b"PK" + CONTENT


def test_a_shared_lock_holds_for_another_folder(tmp_path: Path) -> None:
    with serving(Site(b"PK" + CONTENT)) as site:
        small_set(site, tmp_path / "a", lock=tmp_path / "team.json")
        site.content += b"!"
        with pytest.raises(InputError, match=r"team\.json pins"):
            small_set(site, tmp_path / "b", lock=tmp_path / "team.json")
    (tmp_path / "team.json").write_text("[]")
    with pytest.raises(InputError, match="is no lock"):
        small_set(site, tmp_path / "b", lock=tmp_path / "team.json")


def test_a_folder_can_be_the_mirror(tmp_path: Path) -> None:
    (tmp_path / "usb").mkdir()
    (tmp_path / "usb" / "ml-latest-small.zip").write_bytes(b"PKx")
    site = Site(b"")
    (path,) = small_set(site, tmp_path / "here", source=str(tmp_path / "usb"))
    assert path.read_bytes() == b"PKx"
    with pytest.raises(InputError, match="no file at"):
        small_set(site, tmp_path / "there", source=str(tmp_path / "nothing"))


def test_terms_come_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Site(b"PK" + CONTENT)) as site:
        command = ["fetch", "ml-1m", "--out", str(tmp_path / "x"), "--from", site.address]
        assert main(command) == 2
        shown = capsys.readouterr()
        assert "licence  for research; cite the paper" in shown.out
        assert "pass --accept-licence" in shown.err
        assert not site.asked
        assert main([*command, "--accept-licence"]) == 0
    assert "sidera convert movielens" in capsys.readouterr().out
    assert json.loads((tmp_path / "x" / "fetch.lock.json").read_text())["files"].keys() == {"ml-1m.zip"}


def test_sets_behind_an_account_say_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("yelp", "taobao", "criteo", "avazu"):
        assert main(["fetch", name, "--out", str(tmp_path), "--accept-licence"]) == 2
        shown = capsys.readouterr()
        assert published(name).page in shown.err
        assert "sidera convert" in shown.err


def test_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "--list"]) == 0
    assert capsys.readouterr().out.strip() == listing()
    for name, found in CATALOGUE.items():
        assert found.raw_format in RAW_FORMATS, name
        assert found.page.startswith("https://"), name
        assert all(url.startswith("https://") for url in found.files), name
        assert bool(found.files) != bool(found.by_hand), name
        assert len({url.rsplit("/", 1)[-1] for url in found.files}) == len(found.files), name
        assert len(found.terms) > 20, name
    assert len(CATALOGUE) > 95
    with pytest.raises(InputError, match="did you mean amazon2014-beauty"):
        published("amazon2014-beuty")
    with pytest.raises(InputError, match=r"did you mean .*amazon2014-toys-and-games"):
        published("Toys")
    assert main(["fetch"]) == 2


def test_what_was_fetched_is_converted_as_the_command_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The lock beside the files, and what an earlier, broken call left there, are no data."""
    review = {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1_400_000_000}
    mirror, out = tmp_path / "mirror", tmp_path / "raw"
    mirror.mkdir()
    (mirror / "reviews_Beauty_5.json.gz").write_bytes(gzip.compress(json.dumps(review).encode()))
    (mirror / "meta_Beauty.json.gz").write_bytes(gzip.compress(b"{'asin': 'B1', 'title': 'Soap'}"))
    command = ["fetch", "amazon2014-beauty", "--accept-licence", "--from", str(mirror), "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"next: `sidera convert amazon2014 {out} --out data/amazon2014-beauty`"
    (out / "reviews_Beauty_5.json.gz.part").write_bytes(b"half")
    (out / "reviews_Beauty_5.json.gz.part.json").write_text("{}")
    typed = said.removeprefix("next: `sidera ").rstrip("`").split()
    typed[typed.index("--out") + 1] = str(tmp_path / "beauty")
    assert main([*typed, "--core", "0"]) == 0
    assert capsys.readouterr().out.strip().endswith("1 events of 1 users on 1 items")
