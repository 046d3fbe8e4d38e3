"""ALS and BPR: the library's own answer is the reference, and a history is answered whoever asks."""

from __future__ import annotations

import sys
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hand_made import hand_made
from sidera.core import InputError
from sidera.data.config import View
from sidera.data.features import FeatureSchema
from sidera.data.split import leave_one_out
from sidera.data.tiny import tiny_log
from sidera.models import fit_once
from sidera.models.retrievers.als import ALS
from sidera.models.retrievers.bpr import BPR
from sidera.models.retrievers.factors import library, training_matrix
from sidera.models.retrievers.validation import validation_ndcg

LOG = tiny_log(60, 40)
VIEW = View(LOG, leave_one_out(LOG), FeatureSchema())
SMALL: dict[str, Any] = {"factors": 6, "iterations": 5}


def fitted(kind: Any, **config: Any) -> Any:
    pytest.importorskip("implicit", reason="the extra baselines is not installed")
    catalog: Any = SimpleNamespace(item_keys=LOG.item_keys)
    model = kind(kind.Config(**SMALL, **config), catalog)
    model.fit_once(VIEW)
    return model


def users_of(model: Any, histories: list[list[int]]) -> np.ndarray:
    ends = np.cumsum([0] + [len(history) for history in histories])
    batch = hand_made(torch.tensor([item for one in histories for item in one]), torch.tensor(ends))
    return model.user_vectors(batch)[:, 0].numpy()


def test_a_history_is_folded_in_as_the_library_does_it() -> None:
    """Items that come twice weigh twice; histories of other lengths beside it change nothing."""
    model = fitted(ALS, choose=False, alpha=7.0, regularization=0.5)
    peer = library("als").AlternatingLeastSquares(factors=6, regularization=0.5, alpha=7.0, use_gpu=False)
    peer.item_factors, histories = model.factors.numpy(), [[3, 7, 3, 9], [1], [5, 5, 5, 2, 8, 11, 30]]
    for history, found in zip(histories, users_of(model, histories), strict=True):
        one = np.bincount(history, minlength=LOG.num_items).astype(np.float32)[None]
        expected = peer.recalculate_user(0, import_module("scipy.sparse").csr_matrix(one))
        np.testing.assert_allclose(found, expected.ravel(), rtol=1e-3, atol=1e-4)


def test_the_factors_explain_who_had_what() -> None:
    """Held items score above others for nearly all users, in a world of 40 items in few topics."""
    for kind, least in ((ALS, 0.9), (BPR, 0.7)):
        model = fitted(kind, choose=False) if kind is ALS else fitted(kind, choose=False, learning_rate=0.2)
        matrix, better = training_matrix(VIEW).toarray() > 0, []
        for row in matrix[:40]:
            scores = users_of(model, [np.flatnonzero(row).tolist()])[0] @ model.item_vectors().numpy().T
            better.append(scores[row].mean() > scores[~row].mean())
        assert np.mean(better) >= least


@pytest.mark.parametrize("kind", [ALS, BPR])
def test_one_seed_gives_one_result(kind: Any) -> None:
    first, again = (fitted(kind, choose=False).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = fitted(kind, choose=False, seed=1).state_dict()
    assert not torch.equal(first["factors"], other["factors"])


def test_the_setting_comes_from_the_validation_rows() -> None:
    model = fitted(ALS)
    trials = {alpha: validation_ndcg(fitted(ALS, choose=False, alpha=alpha), VIEW) for alpha in ALS.grid}
    assert trials[round(float(model.chosen[0]), 4)] == max(trials.values()) > min(trials.values())
    alone = fitted(ALS, choose=False, alpha=float(model.chosen[0]))
    torch.testing.assert_close(model.factors, alone.factors)
    assert round(float(fitted(ALS, choose=False, alpha=5.0).chosen[0]), 4) == 5.0


def test_the_absent_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("implicit", "implicit.als"):
        monkeypatch.setitem(sys.modules, name, None)
    catalog: Any = SimpleNamespace(item_keys=LOG.item_keys)
    with pytest.raises(InputError, match=r"library implicit.*pip install 'sidera\[baselines\]'"):
        ALS(ALS.Config(), catalog).fit_once(VIEW)


def test_settings_out_of_bounds_are_refused() -> None:
    for kind, bad in ((ALS, {"alpha": 0.0}), (BPR, {"learning_rate": float("nan")}), (ALS, {"factors": 0})):
        with pytest.raises(InputError, match=next(iter(bad))):
            kind.Config(**bad)


@pytest.mark.parametrize("kind", [ALS, BPR])
def test_a_refit_keeps_the_setting_and_learns_more_events(kind: Any) -> None:
    model = fitted(kind)
    chosen, before = float(model.chosen[0]), model.factors.clone()
    fit_once(model, VIEW, "train+valid")
    assert float(model.chosen[0]) == chosen
    assert not torch.equal(model.factors, before)
