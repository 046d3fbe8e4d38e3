"""One user is taken out of everything: store, exposure log, exports; and out of the files, not only of the answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sidera.cli import main
from sidera.core import ArtifactError, InputError
from sidera.data.dataset import Dataset
from sidera.data.tiny import checkerboard
from sidera.engine.erasure import Erased, erase_user
from sidera.store.embedded import EmbeddedStore
from sidera.store.events import Events
from sidera.store.exposures import ExposureLog

USER = "checkered-ann"


def files(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.rglob("*") if file.is_file())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A store, a log with one of other codes beside it, and an export: the user is in all of them."""
    with EmbeddedStore(tmp_path / "store") as store:
        numbers = store.numbers_of([f"i{n}" for n in range(9)])
        for user in (USER, "bob"):
            store.append(user, Events.of(numbers, range(100, 109)))
    (tmp_path / "store" / "representatives-0").mkdir()
    for name in ("log", "log-other"):
        log = ExposureLog.open(tmp_path / name, codebook_id=name, num_levels=1)
        for user in (USER, "bob"):
            shown = {"request": [f"r-{user}"], "slot": [0], "user": [user], "item": ["i1"], "time": [5]}
            log.append({**shown, "policy": ["p"], "items_version": [0]})
    whole = checkerboard()
    keys = whole.user_keys.copy()
    keys[3] = USER
    users = whole.users.set_column(0, "key", [keys.tolist()])
    vars_of = {name: getattr(whole, name) for name in whole.__dataclass_fields__}
    Dataset(**{**vars_of, "user_keys": keys, "users": users}).save(tmp_path / "data", {"exported": {"since": 7}})
    return tmp_path


def test_a_user_is_in_no_file_afterwards(place: Path) -> None:
    before = Dataset.load(place / "data")
    size = int(np.diff(before.offsets)[3])
    found = erase_user(USER, place / "store", exposures=place / "log", exports=[place / "data"])
    assert found == Erased(events=9, exposures=2, exported=size)
    after = Dataset.load(place / "data")
    rest = [key for key in before.user_keys if key != USER]
    assert after.user_keys.tolist() == rest
    assert after.num_events == before.num_events - size
    assert np.diff(after.offsets).tolist() == np.delete(np.diff(before.offsets), 3).tolist()
    others = before.event_users != 3
    assert after.item_ids.tolist() == before.item_ids[others].tolist()
    assert json.loads((place / "data" / "manifest.json").read_text())["info"]["exported"] == {"since": 7}
    assert not (place / "store" / "representatives-0").exists()
    assert ExposureLog.at(place / "log-other").read()["user"].to_pylist() == ["bob"]
    assert USER.encode() not in files(place)
    assert b"bob" in files(place / "store")
    again = erase_user(USER, place / "store", exposures=place / "log", exports=[place / "data"])
    assert again == Erased(0, 0, 0)


def test_the_shell_erases_while_a_store_is_open(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with EmbeddedStore(place / "store") as served:
        assert served.history(USER) is not None
        assert main(["erase", str(place / "store"), "--user", USER, "--exposures", str(place / "log")]) == 0
        assert "erased: 9 events, 2 exposures, 0 exported events" in capsys.readouterr().out
        assert served.history(USER) is None
        assert main(["erase", str(place / "store"), "--user", USER]) == 0
        assert "nothing was known" in capsys.readouterr().out


def test_nothing_is_erased_where_one_place_is_wrong(place: Path) -> None:
    with pytest.raises(InputError, match="no exposure log at"):
        erase_user(USER, place / "store", exposures=place / "nowhere")
    with pytest.raises(ArtifactError):
        erase_user(USER, place / "store", exports=[place / "nowhere"])
    with pytest.raises(InputError, match="no store at"):
        erase_user(USER, place / "nowhere")
    with EmbeddedStore(place / "store") as store:
        assert store.users() == ["bob", USER]
    assert not (place / "nowhere").exists()


def test_the_shell_looks_after_a_store(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(place / "store")
    assert main(["store", store, "--copy", str(place / "copy"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["users"], found["events"]) == (2, 18)
    with EmbeddedStore(place / "copy", must_exist=True) as copy:
        assert copy.users() == ["bob", USER]
    assert main(["store", store, "--compact", "--max-age-days", "1"]) == 0  # the events are of 1970
    assert "nothing is left of 2 users" in capsys.readouterr().out
    assert main(["store", store, "--max-age-days", "1"]) == 2
    assert "add --compact" in capsys.readouterr().err
    assert main(["store", str(place / "nowhere")]) == 2
