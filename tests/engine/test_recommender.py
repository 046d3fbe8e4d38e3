"""The Recommender as callers see it: what is unknown, what is new, what is filtered, what is damaged."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sidera
from hand_made import hand_made
from sidera import artifacts
from sidera.artifacts import Manifest, save_tensors, writing
from sidera.catalog.catalog import Catalog
from sidera.core import ArtifactError, CatalogMismatch, InputError, Request
from sidera.data.tiny import checkerboard_next
from sidera.engine.recommender import MAX_BATCH, Recommender
from sidera.engine.snapshot import check_device
from yardstick import yardstick

NUM_ITEMS = 24
KEYS = [f"item{item:04d}" for item in range(NUM_ITEMS)]


@pytest.fixture(scope="module")
def recommender(trained_run: Path) -> Recommender:
    return Recommender.load(trained_run)


def after(item: int) -> str:
    return KEYS[checkerboard_next()[item]]


def test_the_readme_line(trained_run: Path) -> None:
    answers = sidera.load(str(trained_run)).recommend([[KEYS[3], KEYS[7]], [KEYS[2]]], k=3)
    assert [answer.item_keys[0] for answer in answers] == [after(7), after(2)]
    assert answers[0].titles[0] == "Cycle 3 place 2"
    assert [len(answer.item_ids) for answer in answers] == [3, 3]
    assert [KEYS[item] for item in answers[0].item_ids] == list(answers[0].item_keys)


def test_unknown_items_are_reported_or_refused(recommender: Recommender) -> None:
    history = [KEYS[3], "nothing", KEYS[7], "nobody"]
    (answer,) = recommender.recommend([history])
    assert answer.unknown == ("nothing", "nobody")
    assert not answer.cold_start
    assert answer.item_keys == recommender.recommend([[KEYS[3], KEYS[7]]])[0].item_keys
    with pytest.raises(InputError, match="the catalogue holds no item 'nothing'; allowed: one of its 24 item ids"):
        recommender.recommend([history], unknown="refuse")
    with pytest.raises(InputError, match="unknown = 'guess'; allowed: 'report' or 'refuse'"):
        recommender.recommend([history], unknown="guess")
    (free,) = recommender.recommend([Request((KEYS[3],), exclude=("nothing",))], unknown="refuse")
    assert free.item_keys == recommender.recommend([[KEYS[3]]])[0].item_keys


def test_weights_that_overflow_are_named(trained_run: Path) -> None:
    """Finite weights can be large enough for scores of NaN: no traceback, and no answer of chance."""
    broken = Recommender.load(trained_run)
    state = {name: torch.full_like(tensor, 1e38) for name, tensor in broken.model.state_dict().items()}
    broken.load_weights(state, "large")
    with pytest.raises(ArtifactError, match="the weights large give scores that are no numbers; fix: train the model"):
        broken.recommend([[KEYS[3]]])


@pytest.mark.parametrize("history", [[], ["nothing", "nobody"]])
def test_cold_starts_are_flagged_and_popular(recommender: Recommender, history: list[str]) -> None:
    (answer,) = recommender.recommend([history], k=5)
    assert answer.cold_start
    assert answer.unknown == tuple(history)
    popularity = recommender.catalog.popularity
    assert list(answer.scores) == sorted(popularity.tolist(), reverse=True)[:5]
    (filtered,) = recommender.recommend([Request(tuple(history), k=NUM_ITEMS, exclude=(KEYS[0],))])
    assert set(filtered.item_keys) == set(KEYS) - {KEYS[0]}


def test_a_text_is_no_history(recommender: Recommender) -> None:
    """Python would iterate over its letters: all unknown, and answered by popularity."""
    with pytest.raises(InputError, match="the history 'item0003' is a text; allowed: a list of item ids"):
        recommender.recommend([KEYS[3]])
    with pytest.raises(InputError, match="is a text"):
        recommender.recommend(KEYS[3])  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [0, -3])
def test_k_must_be_positive(recommender: Recommender, k: int) -> None:
    with pytest.raises(InputError, match=f"k = {k}; allowed: 1 or more"):
        recommender.recommend([[KEYS[3]]], k=k)
    with pytest.raises(InputError, match=f"k = {k}; allowed: 1 or more"):
        recommender.rank(hand_made(torch.tensor([1]), torch.tensor([0, 1]), items=recommender.catalog), k)


def test_k_above_the_catalogue_answers_all_of_it(recommender: Recommender) -> None:
    (answer,) = recommender.recommend([[KEYS[3]]], k=10**6, filter_seen=False)
    assert sorted(answer.item_keys) == KEYS


def test_no_histories_no_answers(recommender: Recommender) -> None:
    assert recommender.recommend([]) == []


def test_more_histories_than_a_pass_holds(recommender: Recommender) -> None:
    histories = [[KEYS[item % NUM_ITEMS]] for item in range(MAX_BATCH + 30)]
    answers = recommender.recommend(histories, k=1)
    assert [answer.item_keys[0] for answer in answers] == [after(item % NUM_ITEMS) for item in range(len(histories))]


def test_filter_seen_remembers_what_the_model_cannot_read(recommender: Recommender) -> None:
    old = [KEYS[item] for item in (1, 2, 5, 9, 10)]
    read = [KEYS[item] for item in (3, 7, 11, 15)] * 2
    assert len(read) == recommender.reads.max_events
    (answer,) = recommender.recommend([old + read], k=NUM_ITEMS, filter_seen=True)
    assert set(answer.item_keys) == set(KEYS) - set(old) - set(read)
    items = torch.tensor([KEYS.index(key) for key in old + read])
    whole = hand_made(items, torch.tensor([0, len(items)]), items=recommender.catalog)
    ranked = recommender.rank(whole, NUM_ITEMS, filter_seen=True)
    assert set(ranked.item_ids[0].tolist()) - {-1} == set(range(NUM_ITEMS)) - set(items.tolist())


def test_filter_and_exclude_together_on_tensors(recommender: Recommender) -> None:
    batch = hand_made(torch.tensor([1, 2, 3]), torch.tensor([0, 1, 3]), items=recommender.catalog)
    exclude = (torch.tensor([10, 11]), torch.tensor([0, 2, 2]))
    ranked = recommender.rank(batch, NUM_ITEMS, filter_seen=True, exclude=exclude)
    found = [set(row) - {-1} for row in ranked.item_ids.tolist()]
    assert found == [set(range(NUM_ITEMS)) - {1, 10, 11}, set(range(NUM_ITEMS)) - {2, 3}]


@pytest.mark.parametrize("filter_seen", [False, True])
def test_a_history_of_a_million_events_is_no_trouble(recommender: Recommender, filter_seen: bool) -> None:
    history = ([KEYS[0]] * 10 + ["gone"]) * 95_000 + [KEYS[3], KEYS[7]]
    assert len(history) > 10**6
    unit = yardstick()
    begun = time.thread_time()  # the threads of torch spin while they wait, on a busy machine for long
    (answer,) = recommender.recommend([history], k=5, filter_seen=filter_seen)
    assert time.thread_time() - begun < 20 * unit
    assert answer.item_keys[0] == after(7)
    assert len(answer.unknown) == 95_000


def test_everything_excluded_leaves_nothing(recommender: Recommender) -> None:
    (answer,) = recommender.recommend([Request((KEYS[3],), exclude=tuple(KEYS))])
    assert answer.item_keys == ()
    assert not answer.cold_start


def test_an_empty_history_cannot_be_ranked(recommender: Recommender) -> None:
    """Its place in the jagged states is the last state of the history before it: somebody else's."""
    batch = hand_made(torch.tensor([3]), torch.tensor([0, 1, 1]))
    with pytest.raises(InputError, match="an empty history cannot be ranked; allowed: 1 event or more"):
        recommender.rank(batch, 3)


def test_answering_keeps_what_was_laid_out_for_it(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of mode drops the weights laid out for beam search: a third of a TIGER's answer, if paid each time."""
    recommender = Recommender.load(trained_run)
    calls: list[bool] = []
    switch = type(recommender.model).train

    def counted(self: torch.nn.Module, mode: bool = True) -> torch.nn.Module:
        calls.append(mode)
        return switch(self, mode)

    monkeypatch.setattr(type(recommender.model), "train", counted)
    recommender.recommend([[KEYS[3]]])
    recommender.recommend([[KEYS[3]]])
    assert calls == []
    recommender.model.train()
    recommender.recommend([[KEYS[3]]])
    assert calls == [True, False]


def test_removed_items_leave_at_once_and_are_still_read(trained_run: Path, recommender: Recommender) -> None:
    catalog = recommender.catalog.without([after(7), KEYS[3]])
    smaller = Recommender.load(trained_run, catalog=catalog)
    (answer,) = smaller.recommend([[KEYS[3], KEYS[7]]], k=NUM_ITEMS, filter_seen=False)
    assert set(answer.item_keys) == set(KEYS) - {after(7), KEYS[3]}
    assert answer.items_version == recommender.recommend([[KEYS[3]]])[0].items_version + 1
    assert answer.unknown == ()
    (cold,) = smaller.recommend([[]], k=NUM_ITEMS)
    assert after(7) not in cold.item_keys


def test_late_items_can_stand_in_a_history(trained_run: Path, recommender: Recommender) -> None:
    vectors = np.random.default_rng(0).normal(size=(2, recommender.catalog.quantizer.dim))
    catalog = recommender.catalog.with_items(["late0", "late1"], vectors, ["First", None])
    grown = Recommender.load(trained_run, catalog=catalog)
    (answer,) = grown.recommend([[KEYS[3], KEYS[7], "late0"]], k=3)
    assert (answer.unknown, answer.unread) == ((), ())
    assert answer.items_version == recommender.catalog.items_version + 1
    (cold,) = grown.recommend([["late1", "nowhere", "late0", "late1"]], k=3)
    assert not cold.cold_start
    assert (cold.unknown, cold.unread) == (("nowhere",), ())
    assert recommender.recommend([[KEYS[3]]])[0].unread == ()
    (refined,) = grown.recommend([Request((KEYS[7], "late0"), k=50, filter_seen=True, exclude=("late1",))])
    assert not {"late0", "late1", KEYS[7]} & set(refined.item_keys)
    assert set(KEYS) - {KEYS[7]} == set(refined.item_keys)  # late0 was seen, late1 is excluded


def test_a_grown_catalogue_is_saved_beside_its_model(
    trained_run: Path, recommender: Recommender, tmp_path: Path
) -> None:
    vectors = np.random.default_rng(0).normal(size=(1, recommender.catalog.quantizer.dim))
    shutil.copytree(trained_run, tmp_path / "run")
    recommender.catalog.with_items(["late0"], vectors).save(tmp_path / "run" / "catalog")
    loaded = Recommender.load(tmp_path / "run")
    assert loaded.recommend([["late0", KEYS[7]]], k=1)[0].item_keys == (after(7),)
    loaded.save_model(tmp_path / "run" / "model", digest="again", parents={})
    again = Recommender.load(tmp_path / "run")
    assert again.recommend([["late0", KEYS[7]]], k=1)[0].item_keys == (after(7),)


def test_free_generation_is_a_generators(recommender: Recommender) -> None:
    batch = hand_made(torch.tensor([1, 2, 3]), torch.tensor([0, 1, 3]), items=recommender.catalog)
    legal = recommender.free_generation(batch, 10)
    assert legal.shape == (2, 10)
    assert set(legal.nan_to_num(0.0).unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "tpu:0", "meta"])
def test_unknown_devices_are_refused(trained_run: Path, device: str) -> None:
    with pytest.raises(InputError, match=f"device '{device}' is not known; allowed: cpu, cuda"):
        Recommender.load(trained_run, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_refused(trained_run: Path) -> None:
    with pytest.raises(InputError, match=r"device 'cuda': this machine .* has no CUDA; fix: use cpu"):
        Recommender.load(trained_run, device="cuda")


def test_a_device_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda:1")
    with pytest.raises(InputError, match="device 'cuda:2' is not here; allowed: cuda:0 to cuda:1"):
        check_device("cuda:2")


def test_newest_cuts_and_keeps_times() -> None:
    batch = hand_made(torch.arange(8), torch.tensor([0, 5, 6, 8]), times=torch.arange(8) * 10)
    cut = batch.newest(2)
    assert cut.item_ids.tolist() == [3, 4, 5, 6, 7]
    assert cut.events.offsets.tolist() == [0, 2, 3, 5]
    assert cut.events.times is not None
    assert cut.events.times.tolist() == [30, 40, 50, 60, 70]
    assert batch.newest(5) is batch


# -- folders that cannot be opened -----------------------------------------------------------------------------------


def test_no_folder() -> None:
    with pytest.raises(ArtifactError, match="no run folder at 'runs/absent'; fix: give a folder that `sidera run`"):
        sidera.load("runs/absent")


def test_the_beam_is_that_of_the_runs_recipe(trained_run: Path, tmp_path: Path) -> None:
    """What was measured is what is served: [eval] beam may change after the training, unknown to the weights."""
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    (run / "recipe.json").write_text(json.dumps({"eval": {"beam": 7}}))
    assert Recommender.load(run).beam == sidera.load(str(run)).beam == 7
    assert Recommender.load(run, beam=9).beam == 9
    (run / "recipe.json").unlink()
    with pytest.raises(ArtifactError, match=r"has no recipe.json, which says how wide its beam.*; fix: put recipe"):
        Recommender.load(run)
    assert Recommender.load(run, beam=9).beam == 9
    deep = '{"eval": {"beam": ' + "[" * 100_000 + "]" * 100_000 + "}}"
    for beam in ("wide", "0", "true", "null", "1e3", "99999999", "9" * 9999):
        for damage in ("{", "[]", deep, f'{{"eval": {{"beam": {beam}}}}}'):
            (run / "recipe.json").write_text(damage)
            with pytest.raises(ArtifactError, match=r"recipe.json is damaged: no \[eval\].*; fix: run the recipe"):
                Recommender.load(run)


def edit_manifest(run: Path, **changes: object) -> None:
    """As another program would that seals what it writes."""
    path = run / "model" / "manifest.json"
    record = {**json.loads(path.read_text()), **changes}
    record.pop("seal")
    path.write_text(json.dumps({**record, "seal": artifacts._seal(record)}))


def other_weights(run: Path) -> None:
    record = json.loads((run / "model" / "manifest.json").read_text())
    manifest = Manifest("model", "d", recipe=record["recipe"], info=record["info"])
    with writing(run / "model", manifest) as folder:
        save_tensors(folder, {"other": torch.zeros(3)})


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no catalogue": (lambda run: shutil.rmtree(run / "catalog"), "no catalog at"),
    "no model": (lambda run: shutil.rmtree(run / "model"), "no model at"),
    "weights gone": (
        lambda run: (run / "model" / "weights-00000.safetensors").unlink(),
        "lacks its file weights-00000.safetensors",
    ),
    "weights cut": (
        lambda run: (run / "model" / "weights-00000.safetensors").write_bytes(b"123"),
        "weights-00000.safetensors is truncated or was edited",
    ),
    "codes cut": (lambda run: (run / "catalog" / "codes.safetensors").write_bytes(b""), "truncated or was edited"),
    "manifest cut": (lambda run: (run / "model" / "manifest.json").write_text('{"kind'), "manifest.json is damaged"),
    "another version": (lambda run: edit_manifest(run, format_version=0), "has artifact format 0; allowed: 1"),
    "no identities": (lambda run: edit_manifest(run, info={}), "it lacks num_items"),
    "no recipe": (lambda run: edit_manifest(run, recipe={}), "it lacks model"),
    "unknown model": (lambda run: edit_manifest(run, recipe={"model": {"name": "bert"}}), "name = 'bert' is not known"),
    "other sizes": (
        lambda run: edit_manifest(run, recipe={"model": {"name": "sidera", "width": 32}}),
        "does not fit its recipe",
    ),
    "other weights": (other_weights, "does not fit its recipe"),
    "swapped": (
        lambda run: (shutil.rmtree(run / "model"), shutil.copytree(run / "catalog", run / "model")),
        "holds a catalog, not a model",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_runs_are_refused_in_one_line(trained_run: Path, tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    act, named = DAMAGES[damage]
    act(run)
    with pytest.raises(InputError, match=named) as caught:
        Recommender.load(run)
    assert "\n" not in str(caught.value)


def test_a_full_disk_while_saving_keeps_the_old_model(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    loaded = Recommender.load(run)
    expected = loaded.recommend([[KEYS[3]]])

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sidera.artifacts.write_tensors", full_disk)
    with pytest.raises(OSError, match="No space"):
        loaded.save_model(run / "model", digest="new", parents={})
    assert Recommender.load(run).recommend([[KEYS[3]]]) == expected


def test_the_catalogue_given_must_be_the_models(trained_run: Path, recommender: Recommender) -> None:
    catalog = Catalog.load(trained_run / "catalog")
    assert Recommender.load(trained_run, catalog=catalog).catalog is catalog


def test_a_catalogue_of_other_features_is_refused_naming_both(trained_run: Path, recommender: Recommender) -> None:
    catalog = recommender.catalog
    other = replace(catalog, schema=replace(catalog.schema, labels=("share",)))
    with pytest.raises(CatalogMismatch) as refusal:
        Recommender.load(trained_run, catalog=other)
    assert catalog.schema.digest in str(refusal.value)
    assert other.schema.digest in str(refusal.value)
