"""Questions beside the next item: exact scores, neighbours, what is popular, and a list for everybody."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from sidera.cli import main
from sidera.core import ArtifactError, InputError, Request
from sidera.data.dataset import Dataset
from sidera.data.split import leave_one_out, repeat_share
from sidera.engine.everyone import EveryoneConfig, recommend_all, requests_of_log
from sidera.engine.histories import open_behaviour
from sidera.engine.questions import Questions
from sidera.engine.recommender import Recommender

KEYS = [f"item{item:04d}" for item in range(24)]


@pytest.fixture(scope="module")
def recommender(trained_run: Path) -> Recommender:
    return Recommender.load(trained_run)


@pytest.fixture(scope="module")
def log(trained_run: Path) -> Dataset:
    return Dataset.load(trained_run.parent / "data")


def test_a_given_item_has_the_score_that_the_search_gives_it(recommender: Recommender) -> None:
    history = [KEYS[3], KEYS[7]]
    (answer,) = recommender.recommend([history], k=24, filter_seen=False)
    scored = Questions(recommender).score(history, answer.item_keys)
    np.testing.assert_allclose([one.score for one in scored], answer.scores, atol=1e-5)
    assert [one.title for one in scored] == list(answer.titles)
    backwards = Questions(recommender).rerank(history, answer.item_keys[::-1])
    assert [one.item for one in backwards] == list(answer.item_keys)
    assert sum(np.exp([one.score for one in scored])) == pytest.approx(1, abs=1e-4)  # all items: a distribution


def test_what_cannot_be_scored_is_refused_or_never(trained_run: Path) -> None:
    recommender = Recommender.load(trained_run)
    recommender.use_catalog(recommender.catalog.without([KEYS[5]]))
    ask = Questions(recommender)
    gone, there = ask.score([KEYS[3]], [KEYS[5], KEYS[6]])
    assert gone.score == -np.inf
    assert np.isfinite(there.score)
    with pytest.raises(InputError, match="the catalogue holds no item 'nothing'"):
        ask.score([KEYS[3]], ["nothing"])
    with pytest.raises(InputError, match="no item is named; allowed: 1 or more"):
        ask.score([KEYS[3]], [])
    with pytest.raises(InputError, match="can read nothing of the history"):
        ask.score(["nothing"], [KEYS[3]])
    for parameter in recommender.model.parameters():
        torch.nn.init.constant_(parameter, 1e30)
    with pytest.raises(ArtifactError, match="scores that are no numbers"):
        ask.score([KEYS[3]], [KEYS[6]])


def test_neighbours_are_the_nearest_vectors(recommender: Recommender) -> None:
    vectors = np.asarray(recommender.catalog.item_vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    ask = Questions(recommender)
    found = ask.similar(KEYS[3], k=23)
    assert KEYS[3] not in [one.item for one in found]
    expected = {key: float(unit[3] @ unit[item]) for item, key in enumerate(KEYS)}
    np.testing.assert_allclose([one.score for one in found], [expected[one.item] for one in found], atol=1e-5)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    cart = ask.related([KEYS[3], KEYS[9]], k=5)
    assert cart == ask.related([KEYS[9], KEYS[3]], k=5)
    best = max((key for key in KEYS if key not in (KEYS[3], KEYS[9])), key=lambda key: sum(
        float(unit[one] @ unit[KEYS.index(key)]) for one in (3, 9)
    ))  # fmt: skip
    assert cart[0].score == pytest.approx(
        sum(float(unit[one] @ unit[KEYS.index(best)]) for one in (3, 9)) / 2, abs=1e-5
    )
    with pytest.raises(InputError, match="k = 0; allowed: 1 or more"):
        ask.similar(KEYS[3], k=0)


def test_popular_counts_what_it_says(recommender: Recommender, log: Dataset) -> None:
    ask = Questions(recommender)
    counts = np.bincount(log.item_ids, minlength=24)
    of_log = ask.popular(24, log=log)
    assert [one.score for one in of_log] == sorted(counts[counts > 0].tolist(), reverse=True)
    middle = int(np.median(log.times))
    window = ask.popular(24, log=log, since=middle)
    inside = np.bincount(log.item_ids[log.times >= middle], minlength=24)
    assert {one.item: one.score for one in window} == {KEYS[item]: n for item, n in enumerate(inside) if n}
    liked = {**log.feedback, "like": np.arange(log.num_events) % 3 == 0}
    chosen = np.bincount(log.item_ids[liked["like"]], minlength=24)
    some = ask.popular(24, log=replace(log, feedback=liked), events=["like"])
    assert {one.item: one.score for one in some} == {KEYS[item]: n for item, n in enumerate(chosen) if n}
    with pytest.raises(InputError, match="the log has no events 'like'"):
        ask.popular(3, log=log, events=["like"])
    trained = ask.popular(3)
    assert [one.score for one in trained] == np.sort(np.asarray(recommender.catalog.popularity))[::-1][:3].tolist()
    with pytest.raises(InputError, match="a window or an event without a log"):
        ask.popular(3, since=0)
    assert [one.item for one in ask.popular(3, category=("item", KEYS[3]))] == [KEYS[3]]  # filters' own columns too
    with pytest.raises(InputError, match="no item has item = 'nothing'"):
        ask.popular(3, category=("item", "nothing"))
    with pytest.raises(InputError, match="names column 'colour'; allowed: item, popularity"):
        ask.popular(3, category=("colour", "red"))
    with pytest.raises(InputError, match="are only an order"):
        ask.popular(3, log=replace(log, time_kind="order"), since=5)


def test_everybody_gets_the_answer_that_they_would_get_alone(
    recommender: Recommender, log: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EveryoneConfig(k=3, users_a_part=20)
    asked = list(requests_of_log(log, recommender.catalog.schema, config))
    calls: list[int] = []
    answer = Recommender.recommend

    def stops_in_the_second_part(self: Recommender, requests: list[Request], **how: object) -> object:
        calls.append(len(requests))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answer(self, requests)

    monkeypatch.setattr(Recommender, "recommend", stops_in_the_second_part)
    with pytest.raises(KeyboardInterrupt):
        recommend_all(recommender, asked, tmp_path / "out", config, source=log.digest)
    assert [path.name for path in (tmp_path / "out").glob("part-*")] == ["part-00000.parquet"]
    done = recommend_all(recommender, asked, tmp_path / "out", config, source=log.digest)
    assert (done["complete"], done["num_users"], done["num_parts"]) == (True, len(asked), -(-len(asked) // 20))
    monkeypatch.undo()
    table = pq.read_table([tmp_path / "out" / f"part-{part:05d}.parquet" for part in range(done["num_parts"])])
    assert table["user"].to_pylist() == log.user_keys.tolist()
    for row in (0, 19, 20, len(asked) - 1):
        (alone,) = recommender.recommend([asked[row][1]])
        assert table["items"][row].as_py() == list(alone.item_keys)
        np.testing.assert_allclose(table["scores"][row].as_py(), alone.scores, atol=1e-5)
    with pytest.raises(InputError, match="was begun with k = 3, now it is 4"):
        recommend_all(recommender, asked, tmp_path / "out", replace(config, k=4), source=log.digest)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="holds something else"):
        recommend_all(recommender, asked, tmp_path / "other", config, source=log.digest)


def test_only_what_came_before_is_read(recommender: Recommender, log: Dataset) -> None:
    middle = int(np.median(log.times))
    for (user, request), (_, whole) in zip(
        requests_of_log(log, recommender.catalog.schema, EveryoneConfig(as_of=middle)),
        requests_of_log(log, recommender.catalog.schema, EveryoneConfig()), strict=True,
    ):  # fmt: skip
        assert whole.times is not None
        earlier = sum(time < middle for time in whole.times)
        assert request.history == whole.history[:earlier], user


def test_at_the_shell(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def lines(*arguments: object) -> list[list[str]]:
        assert main([str(argument) for argument in arguments]) == 0
        return [line.split("\t") for line in capsys.readouterr().out.splitlines() if "\t" in line]

    scored = lines("score", trained_run, "--history", f"{KEYS[3]},{KEYS[7]}", "--items", f"{KEYS[1]}, {KEYS[2]}")
    assert {row[0] for row in scored} == {KEYS[1], KEYS[2]}
    assert float(scored[0][1]) >= float(scored[1][1])
    assert len(lines("similar", trained_run, "--items", KEYS[3], "-k", 4)) == 4
    assert len(lines("popular", trained_run, "-k", 4)) == 4
    data = trained_run.parent / "data"
    assert lines("popular", trained_run, "-k", 4, "--data", data, "--days", 1e6)
    with open_behaviour(tmp_path / "store", Recommender.load(trained_run).catalog) as behaviour:
        behaviour.append("ann", [KEYS[2]] * 2 + [KEYS[3]], [1000, 2000, 1000 + 86_400], {})
    assert [row[:2] for row in lines("popular", trained_run, "--store", tmp_path / "store", "--days", 1)] == [
        [KEYS[2], "1.0000"], [KEYS[3], "1.0000"]
    ]  # fmt: skip
    everyone = ("recommend-all", trained_run, "--data", data, "--out", tmp_path / "all", "-k", 2)
    lines(*everyone)
    lines(*everyone)  # again: nothing to do
    assert json.loads((tmp_path / "all" / "recommendations.json").read_text())["complete"] is True
    for wrong, message in (
        (("popular", trained_run, "--days", 3), "--days and --event need --data or --store"),
        (("popular", trained_run, "--category", "colour"), "--category 'colour'; allowed: FIELD=VALUE"),
        (("popular", trained_run, "--data", data, "--days", 0), "--days 0.0; allowed: more than 0"),
    ):
        assert main([str(argument) for argument in wrong]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(("share", "filters"), [(0.0, True), (0.019, True), (0.02, False), (0.6, False), (None, False)])
def test_seen_items_are_left_out_where_nobody_comes_back(trained_run: Path, share: float | None, filters: bool) -> None:
    recommender = Recommender.load(trained_run)
    report = {name: value for name, value in recommender.catalog.report.items() if name != "repeat_share"}
    recommender.use_catalog(replace(recommender.catalog, report={**report, "repeat_share": share}))
    history = [KEYS[3], KEYS[7], KEYS[9]]

    def seen(**how: bool | None) -> tuple[bool, bool]:
        (answer,) = recommender.recommend([history], k=24, **how)
        return answer.filtered_seen, not set(history) & set(answer.item_keys)

    assert seen() == (filters, filters)
    assert seen(filter_seen=True) == (True, True)
    assert seen(filter_seen=False) == (False, False)
    (answer,) = recommender.recommend([Request(tuple(history), k=24)])
    assert answer.filtered_seen == filters


def test_the_catalogue_says_how_often_users_come_back(recommender: Recommender, log: Dataset) -> None:
    """Counted one event after another, in the training part alone."""
    split, again, later = leave_one_out(log), 0, 0
    for user in range(log.num_users):
        items = log.item_ids[log.offsets[user] : split.train_ends[user]].tolist()
        again += sum(item in items[:place] for place, item in enumerate(items))
        later += max(len(items) - 1, 0)
    assert recommender.catalog.report["repeat_share"] == pytest.approx(again / later)
    assert repeat_share(log, split) == pytest.approx(again / later)
