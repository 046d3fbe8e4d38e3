"""Reranking and quotas at serving: who chooses, what is kept free, and that neither breaks what an answer promises."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).resolve().parents[1] / "align"))
from tiny_world import tiny

from sidera import artifacts
from sidera.align.sources import exposures, requests
from sidera.batch import Batch
from sidera.core import ArtifactError, CatalogMismatch, InputError, Request
from sidera.engine.quota import Quota
from sidera.engine.ranking import Ranking
from sidera.engine.recommender import Recommender
from sidera.engine.reranker import Reranker, without_repeats
from sidera.engine.serving import Parts
from sidera.models import build_model, parse_model
from sidera.models.rankers.pscore import PScore
from sidera.ops.jagged import jagged_rows


def network(seed: int = 0) -> PScore:
    world = tiny()
    config = PScore.Config(width=16, hidden=16, tower_width=4, num_heads=2)
    model = build_model("pscore", config, world.catalog, seed)
    assert isinstance(model, PScore)
    return model.eval()


def save(ranker: PScore, run: Path, **facts: Any) -> None:
    section = {"name": "pscore", **asdict(ranker.config)}
    Ranking(ranker, tiny().catalog, section).save_model(run / "model", digest="d1", parents={}, **facts)


def recommender() -> Recommender:
    world = tiny()
    return Recommender(
        world.pretrained, world.catalog, model_section=world.recommender.model_section, beam=64, version="one"
    )


def questions() -> Batch:
    return tiny().probe(64).batches[0]


def test_the_reranker_chooses_among_the_search() -> None:
    one, batch, ranker = recommender(), questions(), network()
    candidates = one.rank(batch, 20, beam=64).item_ids
    one.parts = Parts((Reranker(ranker, "two", num_candidates=20),))
    found = one.rank(batch, 5, beam=64)
    with torch.inference_mode():
        scores = ranker.score(ranker.context(batch), candidates)[..., 0]
    best = scores.topk(5, dim=1)
    assert torch.equal(found.item_ids, candidates.gather(1, best.indices))
    torch.testing.assert_close(found.scores, best.values)
    assert (found.version, found.reranker, found.policy) == ("one", "two", "one+two")
    assert not torch.equal(found.item_ids, candidates[:, :5])


def test_draws_widen_the_choice_and_hold_nothing_seen_nor_twice() -> None:
    one, batch = recommender(), questions()
    beam = one.rank(batch, 5, filter_seen=True)
    one.parts = Parts((Reranker(network(), "two", num_candidates=64, source="sample"),))
    found = one.rank(batch, 5, filter_seen=True)
    assert torch.equal(found.item_ids, one.rank(batch, 5, filter_seen=True).item_ids)  # draws are repeatable
    assert not torch.equal(found.item_ids.sort(1).values, beam.item_ids.sort(1).values)
    for row, items in enumerate(found.item_ids.tolist()):
        seen = batch.item_ids[batch.events.offsets[row] : batch.events.offsets[row + 1]].tolist()
        assert len(set(items)) == 5
        assert not set(items) & set(seen)
        assert -1 not in items


def test_items_without_a_row_stand_behind_in_the_generators_order() -> None:
    ranker, batch = network(), questions().cut(0, 2)
    late = tiny().catalog.num_items
    candidates = torch.tensor([[late + 1, 3, late, 5, -1], [7, late, 8, -1, -1]])
    ids, scores = Reranker(ranker, "two", num_known=late).order(batch, candidates, 5)
    assert ids[0, 2:].tolist() == [late + 1, late, -1]
    assert ids[1, 2:].tolist() == [late, -1, -1]
    assert torch.equal(scores[0, 1:4], scores[0, 1].expand(3))  # no score of their own: the last that was given
    assert scores[0, 4] == float("-inf")


def test_items_that_came_later_are_read_and_ranked_by_their_content() -> None:
    world, ranker = tiny(), network()
    one = recommender()
    one.parts = Parts((Reranker(ranker, "two", num_candidates=64, num_known=world.catalog.num_items),))
    vectors = torch.randn(4, world.catalog.quantizer.dim, generator=torch.Generator().manual_seed(0))
    one.use_catalog(world.catalog.with_items([f"late{item}" for item in range(4)], vectors))
    keys = [str(key) for key in one.catalog.item_keys]
    (answer,) = one.recommend([[keys[3], "late0"]], k=len(keys))
    assert answer.unread == ()
    late = [item for item in answer.item_ids if item >= world.catalog.num_items]
    assert late
    reranker = one.parts.steps[0]
    assert isinstance(reranker, Reranker)
    reader, batch = reranker.over(one.catalog), questions().cut(0, 2)
    assert reader.num_known is None
    assert reranker.over(one.catalog).network is reader.network  # grown once a catalogue
    asked = torch.arange(one.catalog.num_items).expand(2, -1)
    known = world.catalog.num_items
    with torch.inference_mode():
        scores = reader.network.score(reader.network.context(batch), asked)[..., 0]
        before = ranker.score(ranker.context(batch), asked[:, :known])[..., 0]
    torch.testing.assert_close(scores[:, :known], before)
    assert scores[:, known:].isfinite().all()
    codes = [tuple(row) for row in np.asarray(one.catalog.codes)[known:].tolist()]
    assert len(set(scores[0, known:].tolist())) == len(set(codes))  # what they are decides, and nothing else
    assert not reader.network.items.own.weight[known:].any()


def test_the_order_does_not_depend_on_the_sign_of_scores() -> None:
    """Items without a row stand behind all others whatever a ranker's scores are."""
    late, batch, ranker = tiny().catalog.num_items, questions().cut(0, 2), network()
    candidates = torch.tensor([[late + 1, 3, late, 5, 9], [late + 2, -1, late, -1, -1]])
    ids, scores = Reranker(ranker, "two", num_known=late).order(batch, candidates, 5)
    plain, score = ids.clone(), ranker.score
    ranker.score = lambda context, asked: score(context, asked) - 5.0  # type: ignore[method-assign]
    ids, below = Reranker(ranker, "two", num_known=late).order(batch, candidates, 5)
    assert torch.equal(ids, plain)
    assert ids[0, 3:].tolist() == [late + 1, late]
    assert ids[1].tolist() == [late + 2, late, -1, -1, -1]
    torch.testing.assert_close(below[0], scores[0] - 5.0)
    assert below[1].tolist() == [0.0, 0.0] + 3 * [float("-inf")]


def test_repeats_and_left_out_items_go() -> None:
    candidates = torch.tensor([[4, 2, 4, 3], [1, 1, -1, 2]])
    left_out = (torch.tensor([3, 2]), torch.tensor([0, 1, 2]))
    assert without_repeats(candidates, left_out).tolist() == [[4, 2, -1, -1], [1, -1, -1, -1]]
    assert without_repeats(candidates, None).tolist() == [[4, 2, -1, 3], [1, -1, -1, 2]]


def test_a_saved_ranker_answers_alike_and_is_bound_to_its_catalogue(tmp_path: Path) -> None:
    ranker, batch, catalog = network(), questions(), tiny().catalog
    save(ranker, tmp_path / "reward", training={"users": 5})
    loaded = Ranking.load(tmp_path / "reward", catalog)
    assert loaded.version == "d1"
    assert artifacts.read_manifest(tmp_path / "reward" / "model", "model").info["training"] == {"users": 5}
    assert torch.equal(loaded.model.item_scores(batch), ranker.item_scores(batch))
    reranker = Reranker.load(tmp_path / "reward", catalog, 20)
    assert (reranker.version, reranker.num_candidates, reranker.num_known) == ("d1", 20, catalog.num_items)
    with pytest.raises(CatalogMismatch, match="codebook"):
        Ranking.load(tmp_path / "reward", replace(catalog, codebook_id="another"))
    with pytest.raises(ArtifactError, match="no ranker at"):
        Ranking.load(tmp_path / "none", catalog)


def test_a_ranker_is_read_as_its_manifest_lists_and_its_weights_imply(tmp_path: Path) -> None:
    ranker, batch, catalog, path = network(), questions(), tiny().catalog, tmp_path / "model"
    save(ranker, tmp_path)
    others = {name: tensor + 1 for name, tensor in ranker.state_dict().items() if tensor.is_floating_point()}
    save_file(others, path / "weights-99999.safetensors")
    assert torch.equal(Ranking.load(tmp_path, catalog).model.item_scores(batch), ranker.item_scores(batch))
    written = json.loads((path / "manifest.json").read_text())
    for key, value in (("width", 10**7), ("hidden", 2**16), ("num_learned", 3), ("name", "sasrec")):
        record = json.loads(json.dumps(written))
        record["recipe"]["model"][key] = value
        del record["seal"]
        (path / "manifest.json").write_text(json.dumps({**record, "seal": artifacts._seal(record)}))
        with pytest.raises(ArtifactError, match=r"model .* is damaged: ") as caught:
            Ranking.load(tmp_path, catalog)
        assert "\n" not in str(caught.value)


def cold_quota(share: float) -> Quota:
    return Quota(share, lambda catalog: np.arange(catalog.num_items) % 10 == 0)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_a_quota_gives_its_share_and_no_more(share: float) -> None:
    one, batch, k = recommender(), questions(), 10
    plain = one.rank(batch, k)
    quota = cold_quota(share)
    one.parts = Parts((quota,))
    found = one.rank(batch, k)
    mask = torch.from_numpy(quota.set_of(one.catalog).item_mask)
    held = mask[found.item_ids].sum(1)
    wanted = quota.num_slots(batch, k)
    assert (held >= wanted).all()
    assert abs(float(wanted.double().mean()) / k - share) < 0.02
    own = mask[plain.item_ids].sum(1)
    assert torch.equal(held, torch.maximum(own, wanted))
    for row in range(batch.num_histories):  # what stays keeps its order
        stayed = [item for item in plain.item_ids[row].tolist() if item in found.item_ids[row].tolist()]
        assert [item for item in found.item_ids[row].tolist() if item in stayed] == stayed
        assert len(set(found.item_ids[row].tolist())) == k
    assert (found.scores.diff(dim=1) <= 0).all()


def test_a_request_gets_the_same_alone_and_in_a_batch() -> None:
    one, batch = recommender(), questions().cut(0, 12)
    one.parts = Parts((cold_quota(0.3),))
    together = one.rank(batch, 5).item_ids
    alone = torch.cat([one.rank(batch.cut(row, row + 1), 5).item_ids for row in range(12)])
    assert torch.equal(together, alone)


def test_a_quota_of_nothing_is_refused_and_the_others_follow_the_catalogue() -> None:
    catalog, one = tiny().catalog, recommender()
    with pytest.raises(InputError, match="no item of the catalogue is in the quota's set"):
        Quota(0.1, lambda catalog: np.zeros(catalog.num_items, dtype=bool)).check(catalog)
    with pytest.raises(InputError, match=r"the quota's mask has shape \(3,\); allowed: \(300,\)"):
        Quota(0.1, lambda _: np.zeros(3, dtype=bool)).check(catalog)
    with pytest.raises(InputError, match=r"quota share = 1.5 is out of range; allowed: 0 to 1"):
        cold_quota(1.5)
    one.parts = Parts((cold_quota(0.5),))
    assert 0 in one.rank(questions(), 20).item_ids
    one.use_catalog(catalog.without([str(catalog.item_keys[0])]))
    found = one.rank(questions(), 20)
    assert 0 not in found.item_ids
    assert (found.item_ids % 10 == 0).sum(1).min() >= 10


def test_jagged_rows_are_picked() -> None:
    batch = questions()
    rows = torch.tensor([3, 0, 5])
    places, offsets = jagged_rows(batch.events.offsets, rows)
    assert int(places[0]) == int(batch.events.offsets[3])
    assert offsets.diff().tolist() == batch.lengths[rows].tolist()
    picked = batch.rows(rows)
    for place, row in enumerate(rows.tolist()):
        low, high = int(batch.events.offsets[row]), int(batch.events.offsets[row + 1])
        mine = slice(int(offsets[place]), int(offsets[place + 1]))
        assert torch.equal(picked.item_ids[mine], batch.item_ids[low:high])
        assert torch.equal(picked.events.feedback["click"][mine], batch.events.feedback["click"][low:high])
    assert batch.requests.as_of is not None
    assert picked.requests.as_of is not None
    assert torch.equal(picked.requests.as_of, batch.requests.as_of[rows])


def picky() -> Recommender:
    """A policy that reads its two newest events and of the older ones the clicked alone."""
    world = tiny()
    section = dict(world.recommender.model_section) | {"short_term": 2}
    return Recommender(build_model(*parse_model(section), world.catalog), world.catalog, model_section=section, beam=64)


def test_a_ranker_reads_events_that_the_policy_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    one, ranker, lengths = picky(), network(), []
    context = ranker.context
    monkeypatch.setattr(ranker, "context", lambda batch: (lengths.append(batch.lengths.tolist()), context(batch))[1])
    one.parts = Parts((Reranker(ranker, "two", num_candidates=20),))
    keys = [str(key) for key in tiny().catalog.item_keys[:8]]
    columns = tiny().catalog.schema.columns
    one.recommend([Request(tuple(keys), feedback={name: [0.0] * 8 for name in columns}, times=list(range(8)), k=5)])
    assert lengths == [[8]]


def test_rewards_read_events_that_the_policy_leaves_out() -> None:
    world, one = tiny(), picky()
    for source in (requests, exposures):
        batch = next(iter(source(one.model, world.view, world.catalog.items, 64).batches(0)))
        assert int(batch.lengths.sum()) > int(one.reading.cut(batch).lengths.sum())
