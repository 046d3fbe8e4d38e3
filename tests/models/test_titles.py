"""What leans on titles: the index against plain cosines, content-kNN and transitions with titles against loops."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hand_made import hand_made
from sidera.batch import Reads
from sidera.core import InputError
from sidera.data.config import View
from sidera.data.features import FeatureSchema
from sidera.data.items import ItemTable
from sidera.data.split import leave_one_out
from sidera.data.tiny import tiny_log
from sidera.models import fit_once
from sidera.models.retrievers.content_knn import FADINGS, ContentKNN
from sidera.models.retrievers.title_words import TitleWords
from sidera.models.retrievers.transitions import Transitions
from sidera.models.retrievers.transitions_text import WEIGHTS, TransitionsText
from sidera.models.retrievers.validation import validation_ndcg
from sidera.nn.item_embedding import grown
from sidera.ops.columns import Texts

TITLES = ["red tea cup", "blue tea cup", "garden hose", None, "red garden rake", "blue", "hose", "tea", "rake"]


def plain(titles: list[str | None], asked: list[str | None]) -> np.ndarray:
    """(asked, N) cosines, word by word; the vocabulary is that of ``titles``."""
    bags = [set((title or "").split()) for title in titles]
    counts = {word: sum(word in bag for bag in bags) for bag in bags for word in bag}
    rarity = {word: np.log(1 + len(bags) / count) for word, count in counts.items() if count > 1}

    def cosine(one: set[str], other: set[str]) -> float:
        norms = [sum(rarity.get(word, 0) ** 2 for word in bag) ** 0.5 for bag in (one, other)]
        return sum(rarity.get(word, 0) ** 2 for word in one & other) / max(norms[0] * norms[1], 1e-12)

    return np.array([[cosine(set((title or "").split()), bag) for bag in bags] for title in asked])


def test_the_index_gives_plain_cosines_and_grows() -> None:
    words, asked = TitleWords(TITLES), ["blue garden", "unheard of", None]
    expected = plain(TITLES, [*asked, *TITLES])
    np.testing.assert_allclose(words.scores(words.rows(asked)), expected[:3], rtol=1e-5)
    np.testing.assert_allclose(words.scores(words.items), expected[3:], rtol=1e-5)
    ids, alike = words.nearest(words.items, 3, itself=True)
    for item in range(len(TITLES)):
        others = np.delete(expected[3 + item], item)
        np.testing.assert_allclose(alike[item], np.sort(others)[::-1][:3], rtol=1e-5)
        assert item not in ids[item][alike[item] > 0]
    longer = words.with_titles(["blue rake"])
    np.testing.assert_allclose(longer.scores(longer.rows(asked))[:, :-1], expected[:3], rtol=1e-5)
    assert longer.scores(longer.rows(["blue rake"]))[0, -1] == pytest.approx(1)
    assert len(words.items) == len(TITLES)  # the shorter one is as it was


def test_nearest_of_many_are_those_of_a_full_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    titles = [str(title) for title in tiny_log(20, 90).items["title"].to_pylist()]
    words = TitleWords(titles)
    ids, alike = words.nearest(words.items, 4, itself=True)
    scores = words.scores(words.items)
    np.fill_diagonal(scores, 0)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(alike, np.take_along_axis(scores, order, 1))
    np.testing.assert_array_equal(alike, np.take_along_axis(scores, ids, 1))
    monkeypatch.setattr("sidera.models.retrievers.title_words.CELLS", 200)  # two rows at a time
    np.testing.assert_array_equal(words.nearest(words.items, 4, itself=True)[0], ids)


def catalog_of(titles: list[str | None]) -> Any:
    return SimpleNamespace(item_keys=np.arange(len(titles)).astype(str), titles=titles)


def grown_by(model: torch.nn.Module, titles: list[str | None]) -> Any:
    every = [*TITLES, *titles]
    codes = np.zeros((len(every), 0), dtype=np.int64)
    return grown(model, ItemTable(codes, titles=Texts.of(every)))


def scores_of(model: Any, *histories: list[int]) -> np.ndarray:
    ends = np.cumsum([0] + [len(history) for history in histories])
    batch = hand_made(torch.tensor([item for one in histories for item in one]), torch.tensor(ends))
    return model.item_scores(batch).numpy()


def test_content_knn_sums_faded_cosines_and_reads_new_items() -> None:
    model = ContentKNN(ContentKNN.Config(fading=0.5), catalog_of(TITLES))
    cosines = plain(TITLES, TITLES)
    found = scores_of(model, [1, 4], [3])
    np.testing.assert_allclose(found[0], 0.5 * cosines[1] + cosines[4], rtol=1e-5)
    assert not found[1].any()  # an item without a title is like nothing
    longer = grown_by(model, ["blue garden", None])
    assert scores_of(longer, [5]).argmax() == 5
    assert scores_of(longer, [9])[0, 2] == pytest.approx(plain(TITLES, ["blue garden"])[0, 2])
    assert scores_of(longer, [1])[0, 9] == pytest.approx(plain(TITLES, ["blue garden"])[0, 1])
    assert model.num_items == len(TITLES)


def counted(weight: float, few: int = 3, unseen: float = 0.0) -> tuple[TransitionsText, Transitions, list[list[int]]]:
    sequences = [[0, 2, 4], [0, 2, 0], [2, 4, 0], [0, 1]]
    flat, offsets = np.concatenate(sequences), np.cumsum([0] + [len(one) for one in sequences])
    config = {"neighbours": len(TITLES), "fading": 0.5}
    text = TransitionsText(
        TransitionsText.Config(few=few, alike=4, weight=weight, unseen=unseen, **config), catalog_of(TITLES)
    )
    bare = Transitions(Transitions.Config(**config), catalog_of(TITLES))
    for model in (text, bare):
        model.count(flat, offsets, 0.0, 0.5)
    return text, bare, sequences


def test_items_with_few_events_borrow_by_title() -> None:
    text, bare, sequences = counted(weight=0.3, unseen=0.5)
    events = np.bincount(np.concatenate(sequences), minlength=len(TITLES))
    few, cosines = np.clip(1 - events / 3, 0, 1), plain(TITLES, TITLES)
    np.fill_diagonal(cosines, 0)
    history, weight = [1, 0], np.where(events > 0, 0.3, 0.5)
    weights = np.zeros(len(TITLES))
    met = np.zeros(len(TITLES))
    for back, item in enumerate(reversed(history)):
        weights[item] += 0.5**back
        met[item] += 0.5**back
        weights += weight[item] * few[item] * cosines[item] * 0.5**back
    votes = sum(share * scores_of(bare, [item])[0] for item, share in enumerate(weights))
    expected = votes + weight * few * (cosines @ (votes + met))
    np.testing.assert_allclose(scores_of(text, history)[0], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores_of(text, [2], history)[1], expected, rtol=1e-4, atol=1e-6)


def test_without_weight_they_are_plain_transitions() -> None:
    text, bare, _ = counted(weight=0.0)
    np.testing.assert_array_equal(scores_of(text, [1, 0], [3]), scores_of(bare, [1, 0], [3]))
    cold, _, sequences = counted(weight=0.0, unseen=0.1)
    seen = sorted({item for one in sequences for item in one})
    np.testing.assert_array_equal(scores_of(cold, [1, 0])[0, seen], scores_of(bare, [1, 0])[0, seen])
    assert scores_of(cold, [0])[0, 8] > 0  # nobody had the rake, which is called as what follows


def test_an_item_with_enough_events_keeps_its_own_counts() -> None:
    text, bare, _ = counted(weight=1.0, few=1)
    seen = [0, 1, 2, 4]
    np.testing.assert_allclose(scores_of(text, [0])[0, seen], scores_of(bare, [0])[0, seen])


def test_a_new_item_is_read_and_answered_by_its_title() -> None:
    text, _, _ = counted(weight=1.0)
    longer = grown_by(text, ["red rake", "something else"])
    found = scores_of(longer, [0])[0]
    assert found[9] > 0  # "red garden rake" follows item 0
    assert found[10] == 0
    assert scores_of(longer, [9])[0, 0] > 0
    assert not scores_of(longer, [10]).any()
    np.testing.assert_allclose(scores_of(longer, [0])[0, :9], scores_of(text, [0])[0], rtol=1e-6)


def assert_best(model: Any, setting: torch.Tensor, grid: Any, view: View) -> None:
    """The value that a setting has is the best of its grid on the validation rows, and another is worse."""
    chosen, trials = round(float(setting), 4), {}
    for value in grid:
        setting.fill_(value)
        trials[value] = validation_ndcg(model, view)
    assert trials[chosen] == max(trials.values()) > min(trials.values())


def test_the_weight_comes_from_the_validation_rows() -> None:
    log = tiny_log(80, 60)
    view = View(log, leave_one_out(log), FeatureSchema())
    catalog: Any = SimpleNamespace(item_keys=log.item_keys, titles=log.items["title"].to_pylist())
    model = TransitionsText(TransitionsText.Config(neighbours=20), catalog)
    model.fit_once(view)
    assert_best(model, model.weight, WEIGHTS, view)
    content = ContentKNN(ContentKNN.Config(), catalog)
    content.fit_once(view)
    assert_best(content, content.fading, FADINGS, view)
    fixed = TransitionsText(TransitionsText.Config(neighbours=20, choose=False, weight=0.7), catalog)
    fixed.fit_once(view)
    assert float(fixed.weight) == pytest.approx(0.7)


def test_a_trial_counts_ten_places_and_puts_the_target_behind_its_equals() -> None:
    log = tiny_log(80, 60)
    view = View(log, leave_one_out(log), FeatureSchema())
    for scores, places in ((-torch.arange(60.0), view.split.valid.target_ids), (torch.zeros(60), np.array([59]))):
        scorer = SimpleNamespace(
            reads=Reads(5), item_scores=lambda batch, scores=scores: scores.expand(batch.num_histories, -1)
        )
        gains = np.where(places < 10, 1 / np.log2(places + 2), 0)
        assert validation_ndcg(scorer, view) == pytest.approx(gains.mean())


def test_settings_out_of_bounds_are_refused() -> None:
    for kind, bad in ((TransitionsText, {"weight": -1.0}), (TransitionsText, {"few": 0}), (ContentKNN, {"fading": 0})):
        with pytest.raises(InputError, match=next(iter(bad))):
            kind.Config(**bad)


def test_a_refit_keeps_the_weight_and_counts_again_who_has_few_events() -> None:
    log = tiny_log(80, 60)
    view = View(log, leave_one_out(log), FeatureSchema())
    catalog: Any = SimpleNamespace(item_keys=log.item_keys, titles=log.items["title"].to_pylist())
    model = TransitionsText(TransitionsText.Config(neighbours=20), catalog)
    fit_once(model, view)
    weight, shares = float(model.weight), model.alike_shares.clone()
    fit_once(model, view, "train+valid")
    assert float(model.weight) == weight
    assert (model.alike_shares <= shares + 1e-6).all()
    assert float(model.alike_shares.sum()) < float(shares.sum())
