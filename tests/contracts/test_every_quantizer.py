"""What every quantizer keeps, and one that is defined here and goes the whole way without a line changed elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sidera.catalog.build import build_catalog
from sidera.catalog.catalog import Catalog
from sidera.catalog.collisions import POLICIES
from sidera.catalog.config import CatalogConfig
from sidera.catalog.quantizers import QUANTIZERS, identity, name_of
from sidera.config import load_recipe, parse_section
from sidera.core import ArtifactError, InputError
from sidera.data.split import leave_one_out
from sidera.data.tiny import tiny_log
from sidera.engine.recommender import Recommender
from sidera.train.recipe import Recipe
from sidera.train.stages import run


@dataclass(frozen=True)
class Signs:
    """One bit a level: the side of a threshold that the largest principal directions lie on. Nothing is left over."""

    @dataclass(frozen=True)
    class Config:
        num_bits: int = 6  # levels of two codes

    directions: Tensor  # (L, D) orthonormal
    steps: Tensor  # (L, 2) what each code says along its direction

    @property
    def level_sizes(self) -> tuple[int, ...]:
        return (2,) * len(self.directions)

    @property
    def dim(self) -> int:
        return self.directions.shape[1]

    @classmethod
    def fit(cls, vectors: Tensor, config: Config, seed: int) -> tuple[Signs, Tensor]:
        if config.num_bits > vectors.shape[1]:
            raise InputError(f"num_bits = {config.num_bits} of {vectors.shape[1]} numbers")
        directions = torch.linalg.svd(vectors, full_matrices=False)[2][: config.num_bits]
        along = vectors @ directions.T
        middle, spread = along.mean(0), along.std(0).clamp(min=1e-3)
        quantizer = cls(directions.contiguous(), torch.stack([middle - spread, middle + spread], dim=1))
        return quantizer, quantizer.encode(vectors)

    def encode(self, vectors: Tensor) -> Tensor:
        return (vectors @ self.directions.T > self.steps.mean(1)).long()

    def decode(self, codes: Tensor) -> Tensor:
        count = codes.shape[1]
        return self.steps[torch.arange(count), codes] @ self.directions[:count]

    def next_costs(self, prefix: Tensor, vectors: Tensor) -> Tensor:
        level = len(prefix)
        return (vectors @ self.directions[level])[:, None].sub(self.steps[level]).square()

    def state(self) -> Mapping[str, Tensor]:
        return {"directions": self.directions, "steps": self.steps}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Signs:
        if set(state) != {"directions", "steps"} or state["steps"].shape != (len(state["directions"]), 2):
            raise InputError("directions and steps do not fit")
        return cls(state["directions"], state["steps"])


TRAINED: dict[str, Any] = {"hidden": [16], "steps": 150, "batch_size": 64, "lr": 1e-2}
SMALL: dict[str, dict[str, Any]] = {
    "rq_kmeans": {"num_levels": 2, "codebook_size": 6},
    "rq_vae": {**TRAINED, "num_levels": 2, "codebook_size": 6, "latent": 4},
    "pq": {"num_levels": 2, "codebook_size": 6},
    "opq": {"num_levels": 2, "codebook_size": 6, "rotations": 3},
    "fsq": {**TRAINED, "num_levels": 2, "grid": [3, 2]},
    "rq_fsq": {**TRAINED, "num_levels": 2, "codebook_size": 6, "grid": [3, 2]},
    "lfq": {**TRAINED, "num_levels": 2, "bits": 3},
    "signs": {"num_bits": 5},
}
NAMES = sorted({*QUANTIZERS, "signs"})


@pytest.fixture(autouse=True)
def entered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(QUANTIZERS, "signs", Signs)
        yield


def _fit(kind: Any, name: str, vectors: Tensor) -> tuple[Any, Tensor]:
    return kind.fit(vectors, parse_section(kind.Config, SMALL.get(name, {}), "[catalog.quantizer]"), 3)


def _vectors() -> Tensor:
    return torch.randn(60, 8, generator=torch.Generator().manual_seed(0))


@cache
def _fitted(name: str) -> tuple[Any, Tensor]:
    return _fit(QUANTIZERS[name], name, _vectors())


@pytest.mark.parametrize("name", NAMES)
class TestEvery:
    @pytest.fixture(autouse=True)
    def fit_it(self, name: str) -> None:
        self.vectors = _vectors()
        self.quantizer, self.codes = _fitted(name)

    def test_config_has_defaults(self, name: str) -> None:
        assert dataclasses.is_dataclass(QUANTIZERS[name].Config)
        QUANTIZERS[name].Config()

    def test_codes_are_of_their_levels(self, name: str) -> None:
        sizes = torch.tensor(self.quantizer.level_sizes)
        for codes in (self.codes, self.quantizer.encode(self.vectors)):
            assert codes.dtype == torch.int64
            assert codes.shape == (60, len(sizes))
            assert bool(((codes >= 0) & (codes < sizes)).all())

    def test_more_codes_say_more(self, name: str) -> None:
        levels = len(self.quantizer.level_sizes)
        codes = self.quantizer.encode(self.vectors)
        errors = [
            float((self.vectors - self.quantizer.decode(codes[:, :depth])).square().sum())
            for depth in range(levels + 1)
        ]
        assert self.quantizer.decode(codes).shape == (60, self.quantizer.dim)
        assert errors[-1] < errors[0]
        assert errors == sorted(errors, reverse=True)

    def test_the_cheapest_next_codes_are_those_of_encode(self, name: str) -> None:
        for vector, codes in zip(self.vectors, self.quantizer.encode(self.vectors), strict=True):
            for level, size in enumerate(self.quantizer.level_sizes):
                costs = self.quantizer.next_costs(codes[:level], vector[None])
                assert costs.shape == (1, size)
                assert int(costs.argmin()) == int(codes[level])

    def test_costs_of_many_are_those_of_each(self, name: str) -> None:
        prefix = self.codes[0][:1]
        together = self.quantizer.next_costs(prefix, self.vectors)
        alone = torch.cat([self.quantizer.next_costs(prefix, vector[None]) for vector in self.vectors])
        torch.testing.assert_close(together - together[:, :1], alone - alone[:, :1], rtol=1e-4, atol=1e-4)

    def test_its_state_is_all_of_it(self, name: str) -> None:
        again = type(self.quantizer).from_state(dict(self.quantizer.state()))
        assert again.level_sizes == self.quantizer.level_sizes
        assert torch.equal(again.encode(self.vectors), self.quantizer.encode(self.vectors))
        assert torch.equal(again.decode(self.codes), self.quantizer.decode(self.codes))
        assert identity(again) == identity(self.quantizer)
        assert name_of(again) == name

    def test_the_seed_decides(self, name: str) -> None:
        twin, codes = _fit(QUANTIZERS[name], name, self.vectors)
        assert torch.equal(codes, self.codes)
        assert identity(twin) == identity(self.quantizer)
        other = _fit(QUANTIZERS[name], name, self.vectors * 2)[0]
        assert identity(other) != identity(self.quantizer)

    def test_a_damaged_state_is_refused(self, name: str) -> None:
        state = dict(self.quantizer.state())
        with pytest.raises(InputError):
            type(self.quantizer).from_state({})
        with pytest.raises(InputError):
            type(self.quantizer).from_state({**state, "strange": torch.zeros(1)})

    @pytest.mark.parametrize("collision", POLICIES)
    def test_a_catalogue_of_it_lives(self, name: str, collision: str, tmp_path: Path) -> None:
        dataset = tiny_log(60, 30)
        config = CatalogConfig(
            vectors=("tfidf", "behaviour"), vector_dim=8, collision=collision,  # type: ignore[arg-type]
            quantizer={"name": name, **SMALL.get(name, {})},
        )  # fmt: skip
        catalog, report = build_catalog(dataset, leave_one_out(dataset), config)
        assert report["relative_error"] < 1.0
        vectors = np.random.default_rng(0).standard_normal((2, catalog.quantizer.dim))
        catalog = catalog.with_items(["late0", "late1"], vectors).without([str(catalog.item_keys[0])])
        if collision != "share":
            assert len(np.unique(catalog.codes, axis=0)) == 32
        catalog.save(tmp_path / "catalog")
        loaded = Catalog.load(tmp_path / "catalog")
        assert loaded.content_digest() == catalog.content_digest()
        assert name_of(loaded.quantizer) == name
        assert np.array_equal(np.asarray(loaded.item_vectors), np.asarray(catalog.item_vectors))
        assert loaded.trie.num_leaves <= 31


def test_one_from_elsewhere_is_named_in_a_recipe_and_serves(tmp_path: Path) -> None:
    tiny_log(60, 30).save(tmp_path / "data")
    sections = {
        "catalog": {"vectors": ["tfidf"], "vector_dim": 8, "quantizer": {"name": "signs", "num_bits": 4}},
        "model": {"name": "sidera", "max_history": 8, "width": 16, "num_layers": 1, "num_heads": 1},
        "fit": {"max_steps": 3, "batch_size": 16, "eval_every_epochs": 0},
        "eval": {"bootstrap": 10, "latency_rows": 2, "free_rows": 5, "ks": [5, 10]},
    }
    assert run(Recipe.parse(load_recipe(sections)), tmp_path / "data", tmp_path / "run") is not None
    recommender = Recommender.load(tmp_path / "run")
    assert recommender.catalog.level_sizes[:4] == (2, 2, 2, 2)
    (answer,) = recommender.recommend([[str(recommender.catalog.item_keys[1])]], 3)
    assert len(answer.item_keys) == 3
    with pytest.raises(InputError, match=r"\[catalog.quantizer\] has no key 'num_bit' \(did you mean 'num_bits'\?\)"):
        Recipe.parse(load_recipe(sections, ["catalog.quantizer.num_bit=3"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(QUANTIZERS, "signs")
        with pytest.raises(ArtifactError, match="name = 'signs' is not known"):
            Recommender.load(tmp_path / "run")
