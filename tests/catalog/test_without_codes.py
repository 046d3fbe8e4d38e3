"""A catalogue without codes: made when the model reads none, whole in every other use, refused where codes are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sidera.catalog import build
from sidera.catalog.build import build_catalog, catalog_digest
from sidera.catalog.catalog import Catalog
from sidera.catalog.config import CatalogConfig
from sidera.core import InputError, Request
from sidera.data.config import DataConfig, make_views
from sidera.data.tiny import tiny_log
from sidera.engine.histories import open_behaviour
from sidera.engine.recommender import Recommender
from sidera.engine.serving import Parts
from sidera.models import MODELS, build_model, reads_codes
from sidera.pages.run import write_report
from sidera.train.recipe import Recipe
from sidera.train.stages import catalog_stage, prepare, run, train

NONE = CatalogConfig(quantizer={"name": "none"})
COUNTERS = ("popularity", "item_knn", "transitions", "transitions_text", "content_knn", "als", "bpr")
SCORERS = (*COUNTERS, "sasrec", "hstu", "kuaiformer")


def recipe(name: str, **catalog: object) -> Recipe:
    fit = {"max_steps": 4, "batch_size": 16, "eval_every_epochs": 0}
    evaluation = {"bootstrap": 10, "latency_rows": 2, "free_rows": 5, "ks": [5, 10]}
    return Recipe.parse({"data": {}, "catalog": catalog, "model": {"name": name}, "fit": fit, "eval": evaluation})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny"
    tiny_log(60, 48).save(path)
    return path


def codeless() -> Catalog:
    view = make_views(tiny_log(60, 48), DataConfig())[0]
    return build_catalog(view.dataset, view.split, NONE, view.schema)[0]


def test_the_scorers_read_no_codes_and_the_generators_do() -> None:
    assert [name for name in MODELS if not reads_codes(name)] == list(SCORERS)


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_runs_and_answers_without_one_quantizer_call(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "quantize", lambda *_, **__: pytest.fail("codes were made"))
    monkeypatch.setattr(build, "item_vectors", lambda *_, **__: pytest.fail("vectors were made"))
    found = run(
        recipe(name, vectors=["behaviour"], quantizer={"num_levels": 2, "codebook_size": 4}), data, tmp_path / "run"
    )
    assert found is not None
    assert 0 <= found.value("recall@10") <= 1
    recommender = Recommender.load(tmp_path / "run")
    assert recommender.catalog.num_levels == 0
    key = str(recommender.catalog.item_keys[0])
    (answer,) = recommender.recommend([[key]], 3)
    assert len(answer.item_keys) == 3
    assert write_report(tmp_path / "run", tmp_path / "report.html").stat().st_size > 1000


def test_a_run_whose_recipe_asks_for_codes_gets_them(data: Path, tmp_path: Path) -> None:
    asked = recipe(
        "popularity", vectors=["behaviour"], quantizer={"name": "rq_kmeans", "num_levels": 1, "codebook_size": 4}
    )
    train(asked, data, tmp_path / "run")
    assert Catalog.load(tmp_path / "run" / "catalog").num_levels == 2


def test_what_is_not_read_does_not_count() -> None:
    """Vectors and sizes change nothing where no code is made; the same events do."""
    view = make_views(tiny_log(60, 48), DataConfig())[0]
    one, other = (
        catalog_digest(view.dataset, view.split, config, view.schema)
        for config in (NONE, CatalogConfig(quantizer={"name": "none", "codebook_size": 7}, vectors=("behaviour",)))
    )
    assert one == other
    assert one != catalog_digest(view.dataset, view.split, CatalogConfig(), view.schema)
    auto = catalog_digest(view.dataset, view.split, CatalogConfig(), view.schema)
    assert auto == catalog_digest(view.dataset, view.split, CatalogConfig(quantizer={"name": "rq_kmeans"}), view.schema)


def test_it_is_saved_grown_and_thinned_like_any_other(tmp_path: Path) -> None:
    catalog = codeless()
    grown = catalog.with_items(["late"], None, ["a late one"]).without([str(catalog.item_keys[2])])
    grown.save(tmp_path / "catalog")
    again = Catalog.load(tmp_path / "catalog")
    assert again.codes.shape == (catalog.num_items + 1, 0)
    assert again.level_sizes == ()
    assert again.codebook_id == catalog.codebook_id
    assert again.removed.sum() == 1
    assert again.titles[-1] == "a late one"
    assert not np.any(again.item_vectors)


def test_a_store_keeps_histories_beside_it(tmp_path: Path) -> None:
    """Clusters of items that nothing is known of: nobody reads them, and they must not stand in the way."""
    catalog = codeless()
    keys = [str(key) for key in catalog.item_keys]
    with open_behaviour(tmp_path / "store", catalog) as behaviour:
        events = [keys[place % len(keys)] for place in range(1500)]
        behaviour.append("u", events, list(range(1, 1501)), {})
        model = build_model("popularity", MODELS["popularity"].Config(), catalog)
        section, parts = {"name": "popularity"}, Parts(behaviour=behaviour)
        recommender = Recommender(model, catalog, model_section=section, parts=parts)
        (answer,) = recommender.recommend([Request(user="u", k=2, filter_seen=False)])
    assert len(answer.item_keys) == 2
    assert not answer.unknown_user


@pytest.mark.parametrize("name", [name for name in MODELS if reads_codes(name)])
def test_a_model_that_reads_codes_refuses_it(name: str) -> None:
    with pytest.raises(InputError, match=rf"{name}.*reads semantic IDs.*catalog.quantizer.name=rq_kmeans"):
        build_model(name, MODELS[name].Config(), codeless())


def test_a_recipe_that_takes_the_codes_from_a_generator_is_refused_before_any_work() -> None:
    with pytest.raises(InputError, match=r"quantizer\] name = 'none', but .* 'sidera' reads codes"):
        recipe("sidera", quantizer={"name": "none"})


def test_a_search_in_it_is_refused() -> None:
    with pytest.raises(InputError, match="reads semantic IDs and the catalogue has none"):
        _ = codeless().trie


def test_the_stage_says_so(data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    asked = recipe("popularity")
    prepared = prepare(asked, data, said.append)
    catalog_stage(asked, prepared, tmp_path, said.append)
    assert any("no codes" in line for line in said)


def test_one_long_key_does_not_widen_all_of_them() -> None:
    assert codeless().item_keys.dtype == object
