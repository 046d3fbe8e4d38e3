"""Every validation measures the weights as they are then: what a model lays out for answering never outlives a step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from sidera.data.tiny import tiny_log
from sidera.engine.recommender import Recommender
from sidera.fit.loop import fit
from sidera.models import build_model
from sidera.train.recipe import Recipe
from sidera.train.stages import batch_source, catalog_stage, prepare

SMALL = {"max_history": 8, "width": 8, "num_layers": 1, "num_heads": 1}
SECTIONS: dict[str, dict[str, Any]] = {
    "sasrec": {"name": "sasrec", **SMALL},
    "sidera-tied": {"name": "sidera", **SMALL, "leaf": "tied"},
    "sidera-untied": {"name": "sidera", **SMALL, "leaf": "untied"},
    "sidera-sum": {"name": "sidera", **SMALL, "leaf": "sum"},
    "tiger": {"name": "tiger", **SMALL, "head_width": 8, "ff_width": 16},
    "onerec_v2": {"name": "onerec_v2", **SMALL, "short_term": 4, "ff_width": 16, "num_kv_groups": 1},
    "onerec": {"name": "onerec", "max_history": 8, "width": 8, "num_heads": 1, "num_kv_groups": 1, "ff_width": 16,
               "encoder_layers": 1, "decoder_layers": 1, "short_term": 4, "num_lifelong_queries": 0},
}  # fmt: skip


@pytest.mark.parametrize("name", SECTIONS)
def test_answers_in_a_training_are_those_of_a_fresh_model_with_the_same_weights(name: str, tmp_path: Path) -> None:
    tiny_log(num_users=40, num_items=24).save(tmp_path / "data")
    sections = {
        "data": {}, "model": SECTIONS[name], "eval": {},
        "catalog": {"vectors": ["behaviour"], "num_levels": 2, "codebook_size": 4, "vector_dim": 8},
        "fit": {"max_steps": 4, "batch_size": 16, "lr": 0.05, "warmup_steps": 0, "eval_every_steps": 1, "patience": 0,
                "monitor": "sum", "num_threads": 1},
    }  # fmt: skip
    recipe = Recipe.parse({"align": {}, "rewards": {}, **sections})
    prepared = prepare(recipe, tmp_path / "data", lambda _: None)
    catalog = catalog_stage(recipe, prepared, tmp_path / "run", lambda _: None)
    model = build_model(recipe.model_name, recipe.model_config, catalog)
    ours = Recommender(model, catalog, model_section=recipe.model_section, beam=8)
    source = batch_source(recipe, prepared, model, ours.read_log(prepared.dataset))
    assert source is not None
    seen: list[torch.Tensor] = []

    def answers(recommender: Recommender) -> torch.Tensor:
        requests = [["item0001", "item0002"], ["item0007", "item0003", "item0005"]]
        return torch.tensor([answer.scores for answer in recommender.recommend(requests, k=5)])

    def evaluate(_: torch.nn.Module) -> Mapping[str, float]:
        fresh_model = build_model(recipe.model_name, recipe.model_config, catalog)
        fresh_model.load_state_dict(model.state_dict())
        fresh = Recommender(fresh_model, catalog, model_section=recipe.model_section, beam=8)
        expected = answers(fresh)
        seen.append(expected)
        torch.testing.assert_close(answers(ours), expected)
        return {"sum": float(len(seen))}

    fit(model, source, recipe.fit, tmp_path / "fit", evaluate=evaluate)
    assert len(seen) >= 4
    assert not torch.equal(seen[0], seen[-1]), "the weights never moved: this tests nothing"
