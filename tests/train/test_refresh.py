"""A refresh: what is new is learned from yesterday's weights, and the result is published or the old one stays."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sidera.core import InputError
from sidera.data.append import append_log
from sidera.data.dataset import Dataset
from sidera.data.schema import build_dataset
from sidera.engine import versions
from sidera.engine.recommender import Recommender
from sidera.train.gate import Gates
from sidera.train.refresh import RefreshConfig, refresh


def quiet(text: str) -> None:
    pass


def grown_data(trained_run: Path, folder: Path, new_items: int = 2) -> Path:
    """The data of the run and a day more: everybody goes on as before, some to items that are new."""
    data = Path(shutil.copytree(trained_run.parent / "data", folder / "data"))
    old = Dataset.load(data)
    end, rng = int(old.times.max()) + 1, np.random.default_rng(0)
    rows = []
    for user in range(old.num_users):
        mine = old.item_ids[old.offsets[user] : old.offsets[user + 1]]
        for step in range(6):
            item = str(old.item_keys[rng.choice(mine)]) if rng.random() < 0.9 else f"new {rng.integers(new_items)}"
            rows.append((str(old.user_keys[user]), item, end + step * 1000 + user))
    names = ("user", "item", "time")
    append_log(data, build_dataset("more", pa.table({n: [row[i] for row in rows] for i, n in enumerate(names)})))
    return data


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


OPEN = Gates(max_loss=1.0, min_overlap=0.0, max_growth=10.0)


def test_new_events_and_items_become_a_version(run: Path, trained_run: Path, tmp_path: Path) -> None:
    data = grown_data(trained_run, tmp_path)
    before = {file: file.read_bytes() for file in sorted(run.rglob("*")) if file.is_file()}
    done = refresh(run, data, RefreshConfig(gates=OPEN), say=quiet)
    assert (done.published, done.version) == (True, 1), done.why
    assert before == {file: file.read_bytes() for file in before}, "no file of the old version changed"
    old, new = Recommender.load(run), Recommender.load(versions.current_folder(run))
    assert new.catalog.codebook_id == old.catalog.codebook_id
    assert new.catalog.item_keys.tolist()[: old.catalog.num_items] == old.catalog.item_keys.tolist()
    assert set(new.catalog.item_keys.tolist()[old.catalog.num_items :]) == {"new 0", "new 1"}
    assert new.num_known == new.catalog.num_items, "the new items have rows of their own"
    (answer,) = new.recommend([[str(new.catalog.item_keys[0]), "new 0"]], k=5)
    assert answer.unread == answer.unknown == ()
    record = versions.read_version(run, 1)
    assert (record.made_of, record.seen_until) == (0, int(Dataset.load(data).times.max()) + 1)
    assert record.gate["legality"] == 1
    again = refresh(run, data, RefreshConfig(gates=OPEN), say=quiet)
    assert not again.published
    assert "nothing new" in again.why


def test_a_gate_that_says_no_keeps_the_old_version_and_the_reason(run: Path, trained_run: Path, tmp_path: Path) -> None:
    data = grown_data(trained_run, tmp_path)
    for _ in range(2):
        done = refresh(run, data, RefreshConfig(gates=replace(OPEN, max_growth=0.01)), say=quiet)
        assert not done.published
        assert "size: " in done.why
        assert versions.current_number(run) == 0
    assert [line["what"] for line in versions.history(run)] == ["kept"]
    assert versions.numbers(run) == [0]


def test_a_version_that_was_taken_back_stays_so(run: Path, trained_run: Path, tmp_path: Path) -> None:
    data = grown_data(trained_run, tmp_path)
    assert refresh(run, data, RefreshConfig(gates=OPEN), say=quiet).published
    versions.make_current(run, 0, "taken back")
    done = refresh(run, data, RefreshConfig(gates=OPEN), say=quiet)
    assert not done.published
    assert "was taken back" in done.why
    assert versions.current_number(run) == 0


def moved_data(trained_run: Path, folder: Path, **feedback: int) -> Path:
    """The data of the run and a day more, in which everybody does what nobody did before: two new items in turn."""
    data = Path(shutil.copytree(trained_run.parent / "data", folder / "data"))
    old = Dataset.load(data)
    end = int(old.times.max()) + 1
    rows = [
        (str(user), f"new {step % 2}", end + step * 1000 + number, *feedback.values())
        for number, user in enumerate(old.user_keys)
        for step in range(8)
    ]
    names = ("user", "item", "time", *feedback)
    more = build_dataset("more", pa.table({n: [row[i] for row in rows] for i, n in enumerate(names)}))
    append_log(data, more, exported=bool(feedback))
    return data


def test_large_steps_are_taken_where_the_log_moves(run: Path, trained_run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    done = refresh(run, moved_data(trained_run, tmp_path), RefreshConfig(gates=OPEN), say=said.append)
    ratios, ndcg = zip(*done.gate["tried"], strict=True)
    assert ratios == (0.02, 0.2, 1.0)
    assert done.gate["lr_ratio"] == 1.0
    assert ndcg[-1] == max(ndcg)
    assert any("taken 1" in line for line in said)


@pytest.mark.parametrize(("gain", "taken"), [(0.3, 0.2), (0.001, 0.02), (-0.3, 0.02)])
def test_larger_steps_have_to_be_clearly_better(
    gain: float, taken: float, run: Path, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Better on average is not enough: .001 is far inside the interval of rows that vary by .3."""
    from sidera.train import refresh as module

    asked, inner, rng = list[str](), module.answers_of, np.random.default_rng(0)

    def answers(one: Recommender, **given: object) -> object:
        asked.append(one.version)
        lists = inner(one, **given)[1]  # type: ignore[arg-type]
        noise = rng.normal(0, 0.3, len(lists))
        return 1.0 + (len(asked) - 1) * gain + noise - noise.mean(), lists

    monkeypatch.setattr(module, "answers_of", answers)
    config = RefreshConfig(lr_ratio=(0.2, 0.02), gates=OPEN)
    done = refresh(run, grown_data(trained_run, tmp_path), config, say=quiet)
    assert len(asked) == len(set(asked)) == 2
    assert [ratio for ratio, _ in done.gate["tried"]] == [0.02, 0.2]
    assert done.gate["lr_ratio"] == taken
    assert done.gate["ndcg_new"] == pytest.approx(max(1.0, 1.0 + gain) if taken == 0.2 else 1.0), "asked once"


def test_steps_are_not_chosen_on_what_the_model_showed(run: Path, trained_run: Path, tmp_path: Path) -> None:
    data, said = moved_data(trained_run, tmp_path, slot=1), list[str]()
    done = refresh(run, data, RefreshConfig(gates=OPEN), say=said.append)
    assert done.gate["lr_ratio"] == 0.02
    assert not done.gate["tried"]
    assert any("answers the model's own lists" in line for line in said)


class Killed(BaseException):
    """As a kill: nothing of the process's own is done afterwards."""


@pytest.mark.parametrize(
    "place", ["_grow", "_candidate", "_gate", "_final", "_publish", "_make_current", "in the first training"]
)
def test_killed_anywhere_the_old_version_answers_and_the_next_call_goes_on(
    place: str, run: Path, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sidera.train import refresh as module

    data, calls = grown_data(trained_run, tmp_path), []
    with monkeypatch.context() as patch:
        if place.startswith("in"):
            inner = module.rows_since

            def killed(*arguments: object) -> object:
                source = inner(*arguments)  # type: ignore[arg-type]
                batches = source.batches

                def some(*args: object) -> object:
                    for number, batch in enumerate(batches(*args)):
                        if number == 1:
                            raise Killed
                        yield batch

                source.batches = some
                return source

            patch.setattr(module, "rows_since", killed)
        else:
            patch.setattr(module._Refresh, place, lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            refresh(run, data, RefreshConfig(gates=OPEN), say=quiet)
    assert versions.current_number(run) == 0
    Recommender.load(versions.current_folder(run))
    done = refresh(run, data, RefreshConfig(gates=OPEN), say=calls.append)
    assert done.published
    assert versions.numbers(run) == [0, 1]
    assert not (run / "versions" / ".work").exists()


def test_what_cannot_be_refreshed_is_said(run: Path, trained_run: Path, tmp_path: Path) -> None:
    data = grown_data(trained_run, tmp_path)
    with pytest.raises(InputError, match=r"lr_ratio = 11\.0"):
        RefreshConfig(lr_ratio=(0.1, 11.0))
    for nothing in ((), 0.5):
        with pytest.raises(InputError, match="one number or several"):
            RefreshConfig(lr_ratio=nothing)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="gate_share = 1"):
        RefreshConfig(gate_share=1)
    pointer = run / "current"
    pointer.write_text(json.dumps({"version": 7}))
    with pytest.raises(InputError, match="has no version 7; allowed: 0"):
        refresh(run, data, say=quiet)
    pointer.write_text("{")
    with pytest.raises(InputError, match="current is damaged"):
        versions.current_folder(run)
