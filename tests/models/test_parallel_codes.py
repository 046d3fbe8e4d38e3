"""RPG, masked diffusion, multi-token prediction and the distilled MLPs: the mechanism of each."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_catalog import SmallCatalog, position_batch, small_catalog
from torch import Tensor

from hand_made import hand_made
from sidera.batch import Batch
from sidera.core import InputError
from sidera.data.items import ItemTable
from sidera.models.generators.masked_codes import MaskedCodes
from sidera.models.generators.mtp import TigerMTP
from sidera.models.generators.rpg import Rpg
from sidera.models.generators.tiger import Tiger
from sidera.models.generators.tiger_mlp import TigerMLP
from sidera.models.saved import save_model

SIZES = (4, 3, 2)
ENCODER: dict[str, Any] = {"max_history": 8, "width": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
TIGER: dict[str, Any] = {**ENCODER, "head_width": 8, "ff_width": 16}


def events(lengths: list[int], catalog: SmallCatalog, seed: int = 0) -> Batch:
    """A target after every event."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    items, targets = (torch.randint(catalog.num_items, (int(offsets[-1]),), generator=generator) for _ in range(2))
    return hand_made(items, offsets, targets, items=ItemTable(catalog.codes), kind="event")


def histories(lengths: list[int], catalog: SmallCatalog, seed: int = 0) -> Batch:
    """One target behind every history."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    items = torch.randint(catalog.num_items, (int(offsets[-1]),), generator=generator)
    targets = torch.randint(catalog.num_items, (len(lengths),), generator=generator)
    return hand_made(items, offsets, targets, items=ItemTable(catalog.codes), kind="history")


def spread(model: torch.nn.Module) -> Any:
    """Fresh weights give nearly equal scores."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.5)
    return model.eval()


# -- RPG -----------------------------------------------------------------------------------------------------------


def test_rpg_loss_is_the_mean_over_codes_and_the_softmax_over_items() -> None:
    catalog: Any = small_catalog(level_sizes=SIZES)
    batch = events([3, 5, 1], catalog)
    model = spread(Rpg(Rpg.Config(**ENCODER, item_weight=0.7), catalog))
    with torch.no_grad():
        states, targets = model.states(batch), batch.target_ids
        vectors, expected = model.code_vectors(), 0.0
        looks = model.written(states)
        for row, target in enumerate(targets.tolist()):
            codes = catalog.codes[target]
            by_code = [-(looks[level, row] @ vectors[level].T).log_softmax(0)[code] for level, code in enumerate(codes)]
            scores = torch.tensor(
                [sum(float(looks[at, row] @ vectors[at][code]) for at, code in enumerate(own)) for own in catalog.codes]
            )
            by_item = -(scores * model.item_scale.exp()).log_softmax(0)[target]
            expected += float(sum(by_code) / len(codes) + 0.7 * by_item)
        assert float(model.loss(batch).total) == pytest.approx(expected, rel=1e-4)
        paper = spread(Rpg(Rpg.Config(**ENCODER, item_weight=0.0), catalog))
        assert set(paper.loss(batch).parts) == {"level_0", "level_1", "level_2"}


def test_rpg_codes_have_no_order() -> None:
    """The levels of the catalogue permuted, and the weights with them: every item scores as before."""
    catalog: Any = small_catalog(level_sizes=SIZES)
    order = [2, 0, 1]
    other: Any = replace(catalog, codes=catalog.codes[:, order], level_sizes=tuple(SIZES[level] for level in order))
    model, twin = (Rpg(Rpg.Config(**ENCODER), one) for one in (catalog, other))
    spread(model)
    state = dict(model.state_dict())
    state["code.weight"] = torch.cat([state["code.weight"].split(SIZES)[level] for level in order])
    for name in ("heads.up", "heads.down", "log_scale"):
        state[name] = state[name][order]
    twin.load_state_dict(state)
    twin.eval()

    def scores(one: Any, own: Any) -> Tensor:
        log_probs = one.code_log_probs(one.context(events([3, 5, 1], own)))
        return sum(part[:, torch.from_numpy(own.codes[:, level]).long()] for level, part in enumerate(log_probs))

    with torch.no_grad():
        torch.testing.assert_close(scores(model, catalog), scores(twin, other), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [Rpg, MaskedCodes])
def test_what_comes_later_does_not_reach_an_earlier_state(kind: Any) -> None:
    catalog: Any = small_catalog(level_sizes=SIZES)
    batch, model = position_batch([5], sizes=SIZES), spread(kind(kind.Config(**ENCODER), catalog))
    other = replace(batch, events=replace(batch.events, items=batch.events.items.clone()))
    other.events.items[3] = (other.events.items[3] + 1) % batch.items.num_items
    with torch.no_grad():
        one, two = model.states(batch), model.states(other)
    torch.testing.assert_close(one[:3], two[:3])
    assert not torch.allclose(one[3], two[3], atol=1e-3)


# -- masked diffusion ----------------------------------------------------------------------------------------------


def test_masked_codes_are_not_seen_and_filled_ones_are_from_both_sides() -> None:
    catalog: Any = small_catalog(level_sizes=SIZES)
    model = spread(MaskedCodes(MaskedCodes.Config(**ENCODER), catalog))
    states = torch.randn(1, 16)
    with torch.no_grad():
        base = model.fill(states, torch.tensor([[1, -1, 0]]))
        for changed in ([0, -1, 0], [1, -1, 1]):  # the code before, the code behind
            assert not torch.allclose(model.fill(states, torch.tensor([changed]))[1], base[1], atol=1e-3)
        # teacher forcing shows level 1 the first code alone
        first, second = (model._left_to_right(states, torch.tensor([codes])) for codes in ([1, 2, 0], [1, 0, 1]))
        torch.testing.assert_close(first[1], second[1])
        torch.testing.assert_close(first[2].shape, second[2].shape)
        assert not torch.allclose(first[2], second[2], atol=1e-3)


def test_the_bound_is_the_mean_over_all_orders() -> None:
    """Over all masks with their weights the loss is the mean of -log p over every order of filling."""
    catalog: Any = small_catalog(level_sizes=SIZES)
    model = spread(MaskedCodes(MaskedCodes.Config(**ENCODER), catalog))
    batch = events([1, 1], catalog)
    with torch.no_grad():
        states, codes = model.states(batch), torch.from_numpy(catalog.codes).long()[batch.target_ids]
        orders = list(itertools.permutations(range(3)))
        by_order = torch.zeros(())
        for order in orders:
            filled = torch.full_like(codes, -1)
            for level in order:
                by_order += F.cross_entropy(model.fill(states, filled)[level], codes[:, level], reduction="sum")
                filled[:, level] = codes[:, level]
        expected = float(by_order) / len(orders)
        model.train()
        torch.manual_seed(0)
        drawn = [float(model.loss(batch).total) for _ in range(1500)]
    assert np.mean(drawn) == pytest.approx(expected, abs=5 * np.std(drawn) / len(drawn) ** 0.5)


# -- multi-token prediction ----------------------------------------------------------------------------------------


def test_later_heads_add_to_tigers_loss_and_see_no_code() -> None:
    catalog: Any = small_catalog(level_sizes=SIZES)
    model = spread(TigerMTP(TigerMTP.Config(**TIGER, mtp_weight=0.5), catalog))
    plain = Tiger(Tiger.Config(**TIGER), catalog).eval()
    plain.load_state_dict({name: w for name, w in model.state_dict().items() if not name.startswith("later")})
    batch = histories([3, 5, 1], catalog)
    with torch.no_grad():
        log_probs = model.code_log_probs(model.context(batch))
        codes = torch.from_numpy(catalog.codes).long()[batch.target_ids]
        later = -sum(float(log_probs[level].gather(1, codes[:, level, None]).sum()) for level in (1, 2))
        assert float(model.loss(batch).total) == pytest.approx(float(plain.loss(batch).total) + 0.5 * later, rel=1e-4)
        first = plain.step(None, plain.new_cache(plain.context(batch), 1), 0, None, None).logits[:, 0].log_softmax(-1)
        torch.testing.assert_close(log_probs[0], first, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [TigerMTP, TigerMLP])
def test_a_softmax_over_the_vocabulary_is_refused(kind: Any) -> None:
    with pytest.raises(InputError, match="normalize"):
        kind.Config(normalize="vocabulary")


# -- the distilled MLPs --------------------------------------------------------------------------------------------


def taught(tmp_path: Path, **changes: Any) -> tuple[Any, Any, Any]:
    catalog: Any = small_catalog(num_items=20, level_sizes=SIZES)
    teacher = spread(Tiger(Tiger.Config(**TIGER), catalog))
    section = {"name": "tiger", **TIGER}
    whole: Any = type("Whole", (), {"codebook_id": "test", "num_items": 20, "schema": type("S", (), {"digest": "s"})})
    save_model(teacher, tmp_path / "run" / "model", whole, section, digest="d", parents={})
    config = TigerMLP.Config(**TIGER, teacher=str(tmp_path / "run"), inside=32, **changes)
    torch.manual_seed(0)
    return catalog, teacher, TigerMLP(config, catalog)


def test_a_teacher_is_taken_rests_and_is_learned_from(tmp_path: Path) -> None:
    catalog, teacher, model = taught(tmp_path, label_weight=0.0, num_prefixes=3)
    assert model.config.inputs == ["d"]
    model.fit_once(None)
    before = {name: weight.clone() for name, weight in model.teacher.state_dict().items()}
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())
    batch = histories([3, 5, 1, 4, 2, 6], catalog)
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-2)
    model.train()
    losses = []
    for _ in range(60):
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(loss.parts["kl"])
    assert losses[-1] < 0.2 * losses[0]
    assert all(torch.equal(weight, before[name]) for name, weight in model.teacher.state_dict().items())
    model.fit_once(None)  # what it has is kept
    model.eval()
    with torch.no_grad():
        sids = torch.from_numpy(catalog.codes).long()[batch.target_ids][:, None]
        own = model.code_logits(model.context(batch), sids)
        theirs = teacher.code_logits(teacher.context(batch), sids)
        pairs = [(a.log_softmax(-1), b.log_softmax(-1)) for a, b in zip(own, theirs, strict=True)]
    divergence = sum(float(F.kl_div(a, b, log_target=True, reduction="sum")) for a, b in pairs)
    assert divergence / (3 * len(sids)) < 0.3 * losses[0]


def test_prefixes_are_the_targets_and_the_teachers_best(tmp_path: Path) -> None:
    catalog, teacher, model = taught(tmp_path, num_prefixes=5)
    model.fit_once(None)
    batch = histories([3, 5, 1], catalog)
    codes = torch.from_numpy(catalog.codes).long()[batch.target_ids]
    with torch.no_grad():
        context = teacher.context(batch)
        found = model._prefixes(context, codes)
        forced = teacher.code_logits(context, codes[:, None])
        for level in range(3):
            torch.testing.assert_close(found[level][0][:, 0], forced[level][:, 0].log_softmax(-1), rtol=1e-3, atol=1e-4)
        pairs = torch.cartesian_prod(torch.arange(4), torch.arange(3), torch.zeros(1, dtype=torch.int64))
        every = teacher.code_logits(context, pairs.expand(3, -1, -1))
        first = every[0].log_softmax(-1).gather(2, pairs[None, :, :1].expand(3, -1, -1))[..., 0]
        second = every[1].log_softmax(-1).gather(2, pairs[None, :, 1:2].expand(3, -1, -1))[..., 0]
        best = (first + second).topk(4, dim=1).indices  # among the beam's: 4 first codes are all of them
        for row in range(3):
            _, last, parents = found[2]
            _, firsts, _ = found[1]
            walked = {(int(firsts[row, parents[row, w]]), int(last[row, w])) for w in range(1, 6)}
            assert {tuple(pairs[place, :2].tolist()) for place in best[row].tolist()} <= walked


def test_a_teacher_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    catalog, _, _ = taught(tmp_path)
    run = str(tmp_path / "run")
    wider = TigerMLP(TigerMLP.Config(**{**TIGER, "width": 32}, teacher=run), catalog)
    with pytest.raises(InputError, match="width = 16"):
        wider.fit_once(None)
    foreign = TigerMLP(TigerMLP.Config(**TIGER, teacher=run), replace(catalog, codebook_id="other"))
    with pytest.raises(InputError, match="other codes"):
        foreign.fit_once(None)
