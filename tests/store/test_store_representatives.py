"""Representatives of a store's users: a view that a file keeps, that another catalogue drops, that loses nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from histories import item_vectors, stream

from hand_made import finder
from sidera import artifacts
from sidera.core import ArtifactError, InputError
from sidera.store.embedded import EmbeddedStore, StoreConfig
from sidera.store.events import Events
from sidera.store.lifelong import LifelongConfig, LifelongHistory
from sidera.store.store_representatives import CatalogItems, StoreRepresentatives

CONFIG = LifelongConfig(max_events=300, max_representatives=40, leaf_size=30, chunk=8)
KEYS = [f"item {number}" for number in range(320)]


def items(number: int = 300, seed: int = 0, width: int = 8) -> CatalogItems:
    keys = KEYS[:number]
    vectors = np.concatenate([item_vectors(300, width, seed), item_vectors(20, width, 50 + seed)])[:number]
    return CatalogItems.of(keys, finder({key: place for place, key in enumerate(keys)}), vectors)


def opened(path: Path) -> EmbeddedStore:
    store = EmbeddedStore(path / "s", StoreConfig(max_events=5000, durability="kernel"))
    store.numbers_of(KEYS)
    return store


def view_of(
    store: EmbeddedStore, path: Path, table: CatalogItems | None = None, **changes: Any
) -> StoreRepresentatives:
    config = LifelongConfig(**{**vars(CONFIG), **changes})
    return StoreRepresentatives(store, table or items(), config, path / "view")


def expected(events: Events, table: CatalogItems) -> bytes:
    history = LifelongHistory(table.vectors, CONFIG)
    history.append(events.take(events.item_ids < len(table.keys)))
    return history.representatives().tobytes()


def test_saved_it_is_taken_up_and_grows_as_before(tmp_path: Path) -> None:
    """Also where events came after it was saved, and beyond the limit of the clusters."""
    events = stream(600)
    with opened(tmp_path) as store:
        view = view_of(store, tmp_path)
        for user in ("long", "other", "short"):
            store.append(user, events.take(slice(0, 20 if user == "short" else 400)))
            view.of(user)
        assert set(view._held) == {"long", "other"}
        view.save()
        store.append("long", events.take(slice(400, 450)))
        view.close()
    with opened(tmp_path) as store:
        view = view_of(store, tmp_path)
        assert set(view._held) == {"long", "other"}
        grown = view._held["long"].history
        assert view.of("long").tobytes() == expected(events.take(slice(0, 450)), items())
        assert view._held["long"].history is grown  # not made again
        store.append("long", events.take(slice(450, 600)))
        assert view.of("long").tobytes() == expected(events, items())
        assert view.of("short").tobytes() == events.take(slice(0, 20)).tokens().tobytes()
        view.close()


@pytest.mark.parametrize("table", [items(seed=4), items(width=5), items(200)])
def test_other_vectors_leave_the_file_unread(tmp_path: Path, table: CatalogItems) -> None:
    events = stream(400)
    with opened(tmp_path) as store:
        store.append("a", events)
        first = view_of(store, tmp_path)
        first.of("a")
        first.save()
        second = view_of(store, tmp_path, table)
        assert second._held == {}
        assert second.of("a").tobytes() == expected(events, table)
        assert view_of(store, tmp_path, chunk=7)._held == {}  # other settings, too
        assert set(view_of(store, tmp_path)._held) == {"a"}


def test_a_catalogue_that_grew_keeps_the_clusters_of_who_did_nothing_with_its_new_items(tmp_path: Path) -> None:
    old, with_new = stream(400), stream(400, num_items=310, seed=1)
    table, longer = items(), items(310)
    with opened(tmp_path) as store:
        store.append("old", old)
        store.append("new", with_new)
        view = view_of(store, tmp_path)
        assert view.of("new").tobytes() == expected(with_new, table)
        kept = (view.of("old"), view._held["old"])
        view.save()
        for grown in (view, view_of(store, tmp_path, longer)):
            grown.set_items(longer)
            assert list(grown._held) == ["old"]
            assert grown.of("old").tobytes() == kept[0].tobytes()
            assert grown.of("new").tobytes() == expected(with_new, longer) != expected(with_new, table)
        assert view._held["old"] is kept[1]
        view.set_items(items(310, seed=2))
        assert view._held == {}
        assert view.of("old").tobytes() == expected(old, items(310, seed=2))


def test_a_file_of_other_events_is_not_believed(tmp_path: Path) -> None:
    """The user was erased and came back behind the view's back: the clusters are made again."""
    with opened(tmp_path) as store:
        store.append("a", stream(400))
        view = view_of(store, tmp_path)
        view.of("a")
        view.save()
        store.erase("a")
        other = stream(450, seed=3)
        store.append("a", other)
        assert view_of(store, tmp_path).of("a").tobytes() == expected(other, items())
        store.erase("a")
        assert len(view_of(store, tmp_path).of("a")) == 0


@pytest.mark.parametrize("crashed", [False, True])
def test_an_erased_user_is_on_no_file(tmp_path: Path, crashed: bool) -> None:
    """Also where a crash came before the view was told: the next one that is saved is without the user."""
    with opened(tmp_path) as store:
        for user in ("secret-ann", "bob"):
            store.append(user, stream(400))
        view = view_of(store, tmp_path)
        for user in ("secret-ann", "bob"):
            view.of(user)
        view.save()
        store.erase("secret-ann")
        if crashed:
            view_of(store, tmp_path).save()
        else:
            view.forget("secret-ann")
        content = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
        assert b"bob" in content
        assert b"secret-ann" not in content


def test_damage_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as store:
        store.append("a", stream(400))
        view = view_of(store, tmp_path)
        tokens = view.of("a").tobytes()
        view.save()
        with monkeypatch.context() as full:
            full.setattr(artifacts, "save_tensors", lambda *a, **k: (_ for _ in ()).throw(OSError("no space left")))
            with pytest.raises(OSError, match="no space"):
                view.save()
        assert set(view_of(store, tmp_path)._held) == {"a"}  # the older file is whole
        (file,) = (tmp_path / "view").glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ArtifactError, match=r"truncated or was edited.*fix: remove .*view: it is made again"):
            view_of(store, tmp_path)
        for part in (tmp_path / "view").iterdir():
            part.unlink()
        (tmp_path / "view").rmdir()
        assert view_of(store, tmp_path).of("a").tobytes() == tokens


def test_bad_tables_are_named() -> None:
    for vectors, message in (
        (np.ones(4), r"shape \(4,\); allowed: \(2 items"), (np.ones((3, 2)), r"shape \(3, 2\)"),
        ([[1.0, 2.0], [1.0, float("nan")]], "item 1 holds NaN"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            CatalogItems.of(["a", "b"], finder({"a": 0, "b": 1}), vectors)


def test_readers_senders_and_another_catalogue_at_once(tmp_path: Path) -> None:
    events = stream(600)
    with opened(tmp_path) as store, ThreadPoolExecutor(4) as pool:
        view = view_of(store, tmp_path)

        def send(user: str) -> None:
            for start in range(0, 600, 20):
                store.append(user, events.take(slice(start, start + 20)))
                view.follow(user)
                tokens = view.of(user)
                assert tokens["counts"].sum() == min(start + 20, 600) - max(0, (start + 20) // 8 * 8 - 8 - 300)

        work = [pool.submit(send, f"u{number}") for number in range(3)]
        for seed in range(4):
            view.set_items(items(seed=seed % 2))
        for done in work:
            done.result()
        view.set_items(items())
        assert all(view.of(f"u{number}").tobytes() == expected(events, items()) for number in range(3))
        view.close()
