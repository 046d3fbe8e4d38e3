"""What a model promises on the CPU it keeps on a GPU: the same loss, gradients and lists. Skipped without CUDA."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkerboard_world import ALL, GENERATORS, batches, build, recommender, section, trained, world

from feedback_world import feedback_catalog, requests
from sidera.decode.ways import AUTO
from sidera.engine.recommender import Recommender
from sidera.models import build_model, parse_model, ways_of
from sidera.train.recipe import Recipe
from sidera.train.stages import run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

WAYS = [(name, way) for name in ALL for way in (ways_of(name) if name in GENERATORS else (AUTO,))]
EXPERTS = {"num_experts": 4, "num_active": 2, "expert_width": 32}
ONERECS: dict[str, dict[str, Any]] = {
    "onerec_v2": EXPERTS,
    "onerec": EXPERTS,
    "onerec_v1": {"session_length": 2},
}


def loss_and_gradients(model: torch.nn.Module, batch: Any) -> tuple[float, dict[str, torch.Tensor]]:
    loss = model.loss(batch)
    loss.total.backward()
    found = {name: one.grad.double().cpu() for name, one in model.named_parameters() if one.grad is not None}
    return float(loss.total.detach()), found


def assert_alike(model: torch.nn.Module, batch: Any) -> None:
    """Loss and gradients of an equal model on the GPU, as far as sums in another order agree."""
    twin = copy.deepcopy(model).cuda()
    (loss, gradients), (there, of_twin) = loss_and_gradients(model, batch), loss_and_gradients(twin, batch.to("cuda"))
    assert there == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == of_twin.keys()
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(of_twin[name], gradient, rtol=1e-3, atol=1e-5 * scale, msg=f"{name} differs")


@pytest.mark.parametrize("name", [name for name in ALL if batches(name, build(name)) is not None])
def test_loss_and_gradients_are_those_of_the_cpu(name: str) -> None:
    model = build(name).eval()  # no dropout, whose draws differ between devices
    assert_alike(model, next(batches(name, model).batches(0)))


@pytest.mark.parametrize("name", sorted(ONERECS))
def test_feedback_profiles_and_experts_too(name: str) -> None:
    model = build_model(*parse_model({**section(name), **ONERECS[name]}), feedback_catalog(), 0).eval()
    sizes = [2, 2, 2, 2] if name == "onerec_v1" else [1, 2, 3, 1]
    assert_alike(model, requests([17, 3, 0, 9], targets=sizes))


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_lists_are_those_of_the_cpu(name: str, way: str) -> None:
    batch, _ = world().questions()
    here = recommender(name, trained(name).model)
    there = Recommender(
        copy.deepcopy(trained(name).model).cuda(), here.catalog, model_section=here.model_section, beam=10, search=way,
        device="cuda",
    )  # fmt: skip
    here.search = way
    wanted, found = here.rank(batch, 5), there.rank(batch, 5)
    np.testing.assert_array_equal(found.item_ids.cpu().numpy(), wanted.item_ids.numpy())
    torch.testing.assert_close(found.scores.cpu(), wanted.scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("name", ["sidera", "onerec", "onerec_v1", "onerec_v2"])
def test_a_recipe_runs_there_and_is_opened_here(name: str, precision: str, tmp_path: Path) -> None:
    world().dataset.save(tmp_path / "data")
    recipe = {
        "data": {},
        "catalog": {
            "vectors": ["behaviour"],
            "quantizer": {"num_levels": 1, "codebook_size": 5, "balanced": True},
            "vector_dim": 8,
        },
        "model": section(name),
        "fit": {"epochs": 12, "batch_size": 32, "lr": 3e-3, "warmup_steps": 5, "patience": 0, "precision": precision},
        "eval": {"bootstrap": 20, "latency_rows": 2, "free_rows": 10, "samples": 2, "beam": 24},
    }
    result = run(Recipe.parse(recipe), tmp_path / "data", tmp_path / "run", device="cuda", say=lambda _: None)
    assert result is not None
    batch, targets = world().questions()
    answered = Recommender.load(tmp_path / "run").rank(batch, 1).item_ids[:, 0].numpy()
    assert (answered == targets).mean() > 0.9
