"""The transition expert: counted candidates, exact scores, learned weights, and what answers promise all the same."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from checkerboard_recipe import CHECKERBOARD_RECIPE
from sidera.core import ArtifactError, Filter, InputError, Request
from sidera.data.dataset import Dataset
from sidera.data.schema import build_dataset
from sidera.data.split import train_sequences
from sidera.decode.exact import score_all_items
from sidera.engine.directions import decoded, directions
from sidera.engine.expert import Expert, ExpertConfig
from sidera.engine.explain import explain
from sidera.engine.pipeline import Query
from sidera.engine.questions import Questions
from sidera.engine.recommender import Recommender
from sidera.engine.serving import Parts, ServeConfig
from sidera.engine.snapshot import Snapshot
from sidera.eval.evaluation import load_evaluation
from sidera.eval.ranking import questions
from sidera.models.retrievers.pair_counts import PairCounts
from sidera.ops.trie import CodeTrie
from sidera.train.expert import fit_expert
from sidera.train.gate import Gates
from sidera.train.recipe import Recipe
from sidera.train.refresh import RefreshConfig, refresh
from sidera.train.stages import prepare, run

ITEMS, USERS, EVENTS, DAY = 80, 260, 8, 86_400
RECIPE: dict[str, dict[str, Any]] = CHECKERBOARD_RECIPE | {
    "catalog": CHECKERBOARD_RECIPE["catalog"] | {
        "quantizer": {"num_levels": 1, "codebook_size": 12, "balanced": True},
    },
    "fit": {"max_steps": 20, "batch_size": 16, "lr": 2e-3, "warmup_steps": 5, "patience": 0},
    "eval": CHECKERBOARD_RECIPE["eval"] | {"beam": 12, "wide_beam": 50, "baselines": []},
    "expert": {"enabled": True},
}  # fmt: skip


def quiet(text: str) -> None:
    pass


def chains(change: int | None = None) -> Dataset:
    """Seven of ten events are the item that follows the one before in a fixed order. ``change``: events of every user
    from this place on are another item."""
    rng, after = np.random.default_rng(0), np.random.default_rng(1).permutation(ITEMS)
    rows = []
    for user in range(USERS):
        item = rng.integers(ITEMS)
        for place in range(EVENTS):
            shown = item if change is None or place < change else (item + 1) % ITEMS
            rows.append((f"u{user}", f"i{shown:03d}", place * DAY + user))
            item = after[item] if rng.random() < 0.7 else rng.integers(ITEMS)
    return build_dataset(
        "chains",
        pa.table(
            {name: list(column) for name, column in zip(("user", "item", "time"), zip(*rows, strict=True), strict=True)}
        ),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a generator that learned little, with an expert; ``data`` beside it."""
    folder = tmp_path_factory.mktemp("expert")
    chains().save(folder / "data")
    assert run(Recipe.parse(RECIPE), folder / "data", folder / "run", say=quiet) is not None
    return folder / "run"


@pytest.fixture
def recommender(made: Path) -> Recommender:
    return Recommender.load(made)


def expert_of(recommender: Recommender) -> Expert:
    expert = recommender.serving.expert
    assert expert is not None
    return expert


def test_an_expert_that_helps_answers_and_the_report_says_by_how_much(made: Path, recommender: Recommender) -> None:
    info = expert_of(recommender).info
    assert info is not None
    assert info["on"]
    assert info["trials"][info["design"]]["gain"] > 2 * info["trials"][info["design"]]["standard_error"]
    assert set(info["trials"]) > {"generator alone", "all features"}
    both, alone = (load_evaluation(made / path) for path in ("evaluation", "baselines/evaluation/without_expert"))
    assert (both.name, alone.name) == ("sidera", "sidera without expert")
    assert both.value("ndcg@10") > alone.value("ndcg@10") + 0.05
    without = Recommender.load(made, serve=ServeConfig(expert=False))
    assert without.serving.expert is None
    data = Dataset.load(made.parent / "data")
    rows = prepare(Recipe.parse(RECIPE), made.parent / "data", quiet).split.test
    ranked = torch.cat([without.rank(batch, 10).item_ids for _, batch in questions(without, data, rows, 256)])
    hits = ranked == torch.from_numpy(rows.target_ids)[:, None]
    ranks = torch.where(hits.any(1), hits.int().argmax(1) + 1, 0)
    assert ranks.tolist() == alone.target_ranks("keep", 10).rank.tolist()


def whole_catalogue(recommender: Recommender, batch: Any, **limits: Any) -> torch.Tensor:
    """(B, N) scores of every item, by the exhaustive search and the expert's weights."""
    snapshot, expert = recommender.snapshot, expert_of(recommender)
    query = Query(snapshot, batch, 10, **limits)
    exact = score_all_items(snapshot.generator, query.context, snapshot.catalog.trie)
    items = torch.arange(snapshot.catalog.num_items).expand_as(exact)
    return expert.given(query, items, exact)


def test_the_pool_answers_what_the_whole_catalogue_would(made: Path, recommender: Recommender) -> None:
    dataset = Dataset.load(made.parent / "data")
    rows = prepare(Recipe.parse(RECIPE), made.parent / "data", quiet).split.test
    equal = []
    for _, batch in questions(recommender, dataset, rows, 64):
        best = whole_catalogue(recommender, batch).topk(10, dim=1)
        found = recommender.rank(batch, 10, beam=40)
        equal.append(torch.isclose(found.scores, best.values, atol=1e-3).all(1))  # rounding may change places
    assert float(torch.cat(equal).float().mean()) >= 0.999


def test_a_search_with_proposals_answers_what_the_listing_does(
    made: Path, recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catalogues with many prefixes are searched, the others listed, unless the search can take no proposals."""
    catalog, data = recommender.catalog, Dataset.load(made.parent / "data")
    recommender.use_catalog(catalog.without([str(key) for key in catalog.item_keys[:3]]))
    rows = prepare(Recipe.parse(RECIPE), made.parent / "data", quiet).split.test.take(np.arange(64))
    ((_, batch),) = questions(recommender, data, rows, 64)
    settings: dict[str, Any] = {"beam": 60, "filter_seen": True, "log_probs": True, "alone": True}
    listed = recommender.rank(batch, 10, **settings)
    assert recommender.pipeline.asked(catalog.trie).lists
    assert replace(recommender.pipeline, beam=1).asked(catalog.trie).lists, "a narrow beam would save nothing"
    with monkeypatch.context() as patch:
        patch.setattr(Snapshot, "takes_proposals", False)  # as where it is a recorded graph
        behind = recommender.rank(batch, 10, **{**settings, "beam": 20})
    monkeypatch.setattr("sidera.decode.listing.MOST_LISTED", 0)
    assert not recommender.pipeline.asked(catalog.trie).lists
    searched = recommender.rank(batch, 10, **settings)
    for one, other in ((listed, searched), (listed.searched, searched.searched), (listed, behind)):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one.scores, other.scores[:, :10], rtol=1e-4, atol=1e-4)
        same = one.item_ids == other.item_ids[:, :10]  # rounding may change places
        assert float(same.float().mean()) > 0.99
    assert listed.log_probs is not None
    assert searched.log_probs is not None
    equal = (listed.item_ids == searched.item_ids)[..., None]
    torch.testing.assert_close(listed.log_probs.where(equal, 0), searched.log_probs.where(equal, 0), rtol=0, atol=1e-4)


def test_prefixes_of_many_items_get_fewer_proposals(recommender: Recommender) -> None:
    expert, trie = expert_of(recommender), recommender.catalog.trie
    codes = np.stack([np.repeat(np.arange(400), 500), np.tile(np.arange(500), 400)], axis=1)
    large = CodeTrie.build(codes, (400, 500))
    assert expert.asked(trie, 12).lists
    asked = expert.asked(large, 50)
    assert (asked.width, asked.proposals) == (50, 50), "each proposal may cost 500 items"
    small = CodeTrie.build(codes[::25], (400, 500))
    assert expert.asked(small, 50).proposals == ExpertConfig().candidates


def test_directions_of_all_clusters_are_those_of_the_clusters_that_are_asked_for(recommender: Recommender) -> None:
    items = torch.randint(0, recommender.catalog.num_items, (3, 7), generator=torch.Generator().manual_seed(0))
    vectors, places = directions(recommender.catalog, items)
    few, own = decoded(recommender.catalog, items)
    assert len(few) < len(vectors) == recommender.catalog.quantizer.level_sizes[0]
    assert torch.equal(vectors[places], few[own])


def test_a_given_item_has_the_score_of_an_answer_and_events_explain_it(recommender: Recommender) -> None:
    history = ["i003", "i007", "i050"]
    (answer,) = recommender.recommend([history], k=20, filter_seen=False)
    scored = Questions(recommender).score(history, answer.item_keys)
    np.testing.assert_allclose([one.score for one in scored], answer.scores, atol=1e-4)
    why = explain(recommender, history, answer.item_keys[0])
    assert why.score == pytest.approx(answer.scores[0], abs=1e-4)
    assert why.counts is not None
    assert why.counts > 0, "what a chain is known for"
    assert why.events[0].item == "i050", "the newest event decides"
    alone = replace(recommender.serving, parts=Parts())
    recommender.serving = alone
    assert explain(recommender, history, answer.item_keys[0]).counts is None


def test_counted_items_obey_filters_removals_and_what_is_left_out(recommender: Recommender) -> None:
    history = ["i003", "i007"]
    (plain,) = recommender.recommend([history], k=5, filter_seen=False)
    best, second = plain.item_keys[:2]
    (without,) = recommender.recommend([Request(tuple(history), k=79, exclude=(best,), filter_seen=True)])
    assert best not in without.item_keys
    assert not {"i003", "i007"} & set(without.item_keys)
    assert len(set(without.item_keys)) == len(without.item_keys)
    recommender.use_catalog(recommender.catalog.without([best]))
    (after,) = recommender.recommend([history], k=5, filter_seen=False)
    assert best not in after.item_keys
    assert after.item_keys[0] == second
    assert after.item_keys[0] in [one.item for one in Questions(recommender).rerank(history, [second, "i001"])]


def test_an_allow_list_reaches_counted_items(made: Path) -> None:
    recommender = Recommender.load(made, beam=1)
    history = ("i003", "i007")
    (plain,) = recommender.recommend([Request(history, k=3, filter_seen=False)])
    wanted = plain.item_keys[1:]
    given = Filter.of({"item": list(wanted)})
    (found,) = recommender.recommend([Request(history, k=3, filter_seen=False, filter=given)])
    assert found.item_keys == wanted


def test_items_that_come_later_are_answered_beside_the_counted_ones(recommender: Recommender) -> None:
    catalog = recommender.catalog
    vectors = torch.as_tensor(np.asarray(catalog.item_vectors[np.array([3, 50])]))
    recommender.use_catalog(catalog.with_items(["late0", "late1"], vectors))
    (answer,) = recommender.recommend([["i003", "late0"]], k=82, filter_seen=False)
    assert {"late0", "late1"} <= set(answer.item_keys)
    assert np.isfinite(answer.scores).all()
    scored = Questions(recommender).score(["i003", "late0"], ["late1", "i004"])
    by_key = dict(zip(answer.item_keys, answer.scores, strict=True))
    assert [one.score for one in scored] == pytest.approx([by_key["late1"], by_key["i004"]], abs=1e-4)
    expert = expert_of(recommender)
    popularity = expert._popularity_of(torch.arange(recommender.catalog.num_items))
    assert torch.equal(popularity, torch.cat((expert.counts.popularity.log1p(), torch.zeros(2))))


def test_counts_never_hold_what_rows_ask_for(made: Path, tmp_path: Path) -> None:
    """Another validation and test item of every user: the same counts."""
    chains(change=EVENTS - 2).save(tmp_path / "data")
    changed = prepare(Recipe.parse(RECIPE), tmp_path / "data", quiet)
    mine = Recommender.load(made).serving.expert
    assert mine is not None
    theirs = PairCounts.of(*train_sequences(changed.positives.dataset, changed.positives.split), ITEMS, 200)
    for name, column in mine.counts.columns().items():
        assert torch.equal(column, theirs.columns()[name]), name
    more = chains().item_ids, chains().offsets
    refitted = mine.recounted(*more, ITEMS, "refitted")
    assert float(refitted.counts.popularity.sum()) == USERS * EVENTS
    assert torch.equal(refitted.weights, mine.weights)


def test_an_expert_that_teaches_nothing_is_off(made: Path, tmp_path: Path) -> None:
    prepared = prepare(Recipe.parse(RECIPE), made.parent / "data", quiet)
    recommender = Recommender.load(made, serve=ServeConfig(expert=False))
    view, split = prepared.view, prepared.split
    for number, why in ((0, "no validation rows"), (12, "of a half have their target among the candidates")):
        few = replace(view, split=replace(split, valid=split.valid.take(np.arange(number))))
        expert = fit_expert(recommender, few, prepared.positives, ExpertConfig(enabled=True))
        assert not expert.is_on
        assert why in str((expert.info or {})["why"])
    rng = np.random.default_rng(2)
    noise = replace(split.valid, target_ids=rng.integers(0, ITEMS, len(split.valid)))
    expert = fit_expert(recommender, replace(view, split=replace(split, valid=noise)), prepared.positives,
                        ExpertConfig(enabled=True))  # fmt: skip
    assert not expert.is_on, expert.info
    target = Path(shutil.copytree(made, tmp_path / "run"))
    replace(expert, version="off").save(target / "expert", digest="off", parents={"model": recommender.version})
    assert Recommender.load(target).serving.expert is None


def test_stages_reuse_remake_and_remove_it(made: Path, tmp_path: Path) -> None:
    target, said = Path(shutil.copytree(made, tmp_path / "run")), list[str]()
    run(Recipe.parse(RECIPE), made.parent / "data", target, say=said.append)
    assert any(line.startswith("expert: reused") for line in said)
    assert any(line.startswith("evaluate: reused") for line in said)
    run(Recipe.parse({**RECIPE, "expert": {"enabled": False}}), made.parent / "data", target, say=quiet)
    assert not (target / "expert").exists()
    assert not (target / "baselines/evaluation/without_expert").exists()
    with pytest.raises(InputError, match=r"\[expert\] enabled = true, but \[model\] name = 'sasrec'"):
        Recipe.parse({**RECIPE, "model": {"name": "sasrec"}})
    with pytest.raises(InputError, match="candidates = 0"):
        Recipe.parse({**RECIPE, "expert": {"enabled": True, "candidates": 0}})


def test_one_of_another_model_or_damaged_is_refused(made: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(made, tmp_path / "run"))
    expert = Expert.load(target / "expert", Recommender.load(made).catalog)
    expert.save(target / "expert", digest="d", parents={"model": "another"})
    with pytest.raises(ArtifactError, match="was made for the weights another"):
        Recommender.load(target)
    broken = replace(expert, counts=replace(expert.counts, right_ids=expert.counts.right_ids + ITEMS))
    broken.save(target / "expert", digest="d", parents={"model": "another"})
    with pytest.raises(ArtifactError, match="its tensors do not fit together"):
        Recommender.load(target)


def test_a_refresh_counts_again_and_keeps_the_weights(made: Path, tmp_path: Path) -> None:
    target, data = Path(shutil.copytree(made, tmp_path / "run")), tmp_path / "data"
    old = chains()
    users = [str(key) for key in old.user_keys]
    events = {"user": [users[user] for user in old.event_users], "item": [str(old.item_keys[i]) for i in old.item_ids],
              "time": old.times.tolist()}  # fmt: skip
    for user in users:
        for place, item in enumerate(["i000", "new", "i001"]):
            events["user"].append(user)
            events["item"].append(item)
            events["time"].append(EVENTS * DAY + 10_000 + place * 1000)
    build_dataset("chains", pa.table(events)).save(data)
    gates = Gates(max_loss=1.0, min_overlap=0.0, max_growth=10.0)
    done = refresh(target, data, RefreshConfig(gates=gates), say=quiet)
    assert done.published, done.why
    version = target / "versions" / "1"
    refreshed = Recommender.load(version)
    before, after = expert_of(Recommender.load(made)), expert_of(refreshed)
    assert torch.equal(before.weights, after.weights)
    assert after.version == refreshed.version == json.loads((version / "version.json").read_text())["model"]
    assert float(after.counts.popularity.sum()) == USERS * (EVENTS + 3)
    assert after.counts.num_items == ITEMS + 1
    (answer,) = refreshed.recommend([["i000"]], k=3, filter_seen=False)
    assert "new" in answer.item_keys, "its pairs are of today"


def test_a_refit_keeps_the_weights_and_counts_the_validation_events(made: Path, tmp_path: Path) -> None:
    target, data = Path(shutil.copytree(made, tmp_path / "run")), made.parent / "data"
    recipe = Recipe.parse({**RECIPE, "fit": {**RECIPE["fit"], "refit": True}})
    before = expert_of(Recommender.load(target))
    assert run(recipe, data, target, say=quiet) is not None
    after = expert_of(Recommender.load(target))
    assert torch.equal(before.weights, after.weights)
    assert float(before.counts.popularity.sum()) == USERS * (EVENTS - 2)
    assert float(after.counts.popularity.sum()) == USERS * (EVENTS - 1)
    said: list[str] = []
    run(recipe, data, target, say=said.append)
    assert any(line.startswith("expert: reused") for line in said)
    shutil.rmtree(target / "expert")
    with pytest.raises(InputError, match="was refitted without an expert"):
        run(recipe, data, target, say=quiet)
