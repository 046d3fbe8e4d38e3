"""P-Score: it learns who likes what, its fusion is personal, it counts what was seen and knows no future."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from labelled_log import NUM_ITEMS, NUM_TOPICS, labelled_view

from hand_made import changed, read_log
from sidera.batch import Batch
from sidera.core import InputError
from sidera.data.batches import ExposureRows, RequestRows
from sidera.data.features import FeatureSchema
from sidera.data.reading import Reading
from sidera.models.rankers.pscore import PScore
from sidera.nn.target_attention import match_sums
from sidera.roles import Ranker

SMALL = {"max_history": 24, "width": 16, "hidden": 32, "tower_width": 8, "dropout": 0.0}


def make(**changes: object) -> PScore:
    torch.manual_seed(0)
    _, catalog = labelled_view()
    return PScore(PScore.Config(**{**SMALL, **changes}), catalog)  # type: ignore[arg-type]


def rows(batch_size: int = 32) -> ExposureRows:
    view, _ = labelled_view()
    return ExposureRows(read_log(view.dataset, 24, view.schema), view.split, batch_size)


def questions(count: int = 24) -> Batch:
    return next(rows(count).batches(0))


@cache
def trained() -> PScore:
    model = make().train()
    model.know_views(*(labelled_view()[0].dataset.feedback[name] for name in ("watch_time", "duration")))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for epoch in range(3):
        for batch in rows(48).batches(epoch):
            loss = model.loss(batch)
            optimizer.zero_grad()
            (loss.total / loss.count).backward()
            optimizer.step()
    return model.eval()


def every_item(batch: Batch) -> torch.Tensor:
    return torch.arange(NUM_ITEMS).expand(batch.num_histories, -1)


def liked_mask(batch: Batch) -> torch.Tensor:
    """(B, N) True for items of the topic that the user likes."""
    view, _ = labelled_view()
    number = torch.tensor([int(str(view.dataset.user_keys[user])[1:]) for user in batch.requests.user_ids])
    item = torch.tensor([int(str(key)[1:]) for key in view.dataset.item_keys])
    return (item % NUM_TOPICS) == (number // 2 % NUM_TOPICS)[:, None]


def test_it_is_a_ranker_with_a_task_for_every_label() -> None:
    model = make()
    assert isinstance(model, Ranker)
    assert model.tasks == ("p", "click", "not_dislike", "like", "long_view", "watch")
    batch = questions()
    scores = model.score(model.context(batch), every_item(batch))
    assert scores.shape == (24, NUM_ITEMS, 6)
    assert ((scores > 0) & (scores < 1)).all()


def test_it_finds_what_each_user_likes() -> None:
    batch = questions(60)
    p = trained().item_scores(batch)
    liked = liked_mask(batch)
    above = torch.stack([row[mask].mean() > row[~mask].mean() for row, mask in zip(p, liked, strict=True)])
    assert above.float().mean() > 0.8


def test_every_exposure_is_a_target() -> None:
    view, _ = labelled_view()
    dataset, split = view.dataset, view.split
    everything = ExposureRows(read_log(dataset, 24, view.schema), split, 32)
    positive = RequestRows(read_log(dataset, 24, view.schema), split, 32)
    trained_on = np.arange(dataset.num_events) < split.train_ends[dataset.event_users]
    first = np.arange(dataset.num_events) < dataset.offsets[dataset.event_users] + 4  # no history before it
    assert len(everything.targets) == (trained_on & ~first).sum()
    assert set(positive.targets) < set(everything.targets)
    assert everything.digest != positive.digest


def disagreements(model: PScore, batch: Batch, users: torch.Tensor) -> torch.Tensor:
    """(states, states) True where two users (B, D) put the same towers' states into opposite order, both clearly."""
    context = model.context(batch)
    hidden = model.hidden(context, every_item(batch))
    states = torch.stack([tower(hidden) for tower in model.towers], dim=-2).flatten(0, 1)[:300]
    item = context.items[:1].expand(len(states), -1)
    fused = torch.stack([model.fuse(states, user.expand(len(states), -1), item) for user in users])  # (B, states)
    lead = fused[:, :, None] - fused[:, None]  # (B, states, states)
    return (lead > 0.01).any(0) & (lead < -0.01).any(0)


def test_the_fusion_is_personal() -> None:
    """Two users, the same tower values, another order. A fusion that is told the same user twice never disagrees."""
    model, batch = trained(), questions(60)
    users = model.context(batch).user
    assert disagreements(model, batch, users).any()
    assert not disagreements(model, batch, users[:1].expand(60, -1)).any()


def test_match_sums_equal_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    candidates, events = (torch.randint(0, 4, shape, generator=generator) for shape in ((3, 5), (3, 7)))
    weighted = torch.rand(3, 7, 6, generator=generator)
    expected = torch.zeros(3, 5, 6)
    for row in range(3):
        for place, kind in enumerate(candidates[row].tolist()):
            for event, other in enumerate(events[row].tolist()):
                if kind == other and kind > 0:
                    expected[row, place] += weighted[row, event]
    torch.testing.assert_close(match_sums(candidates, events, weighted), expected)


def test_unclicked_exposures_count() -> None:
    """Satiation: more exposures of the candidate's topic, none of them clicked, change what the trunk is told."""
    model = trained()
    batch = questions(1)
    none = {name: torch.zeros_like(values) for name, values in batch.events.feedback.items()}
    topic = model.items.category_ids("tags")
    candidate = torch.tensor([[5]])
    like_it = torch.nonzero(topic == topic[5]).flatten()[: batch.item_ids.numel()]
    unlike = torch.nonzero(topic != topic[5]).flatten()
    number = batch.item_ids.numel()
    many = changed(batch, item_ids=like_it.repeat(number)[:number], feedback=none)
    few = changed(batch, item_ids=unlike.repeat(number)[:number], feedback=none)
    for change in (many, few):
        sums = match_sums(topic[candidate], topic[change.item_ids][None], torch.ones(1, number, 1))
        assert float(sums) == (number if change is many else 0)
    p = [float(model.score(model.context(change), candidate)[0, 0, 0].detach()) for change in (many, few)]
    assert abs(p[0] - p[1]) > 1e-4


def test_learned_signals_of_any_sign_keep_the_inputs_tame() -> None:
    """Means are over counted events; divided by a sum of learned numbers they would explode where it nears -1."""
    model = make().eval()
    batch = questions()
    largest: list[float] = []
    model.trunk.register_forward_pre_hook(lambda _, given: largest.append(float(given[0].abs().max())))
    with torch.no_grad():
        model.learned.weight.zero_()
        for level in torch.linspace(-0.3, 0.0, 101).tolist():
            model.learned.bias.fill_(level)
            model.logits(model.context(batch), every_item(batch))
    assert max(largest) < 2 * min(largest)


def test_padding_and_company_change_nothing() -> None:
    model = trained()
    batch = questions()
    together = model.score(model.context(batch), every_item(batch))
    alone = torch.cat([model.score(model.context(batch.cut(row, row + 1)), every_item(batch)[:1]) for row in range(5)])
    torch.testing.assert_close(together[:5], alone, rtol=1e-4, atol=1e-5)


def test_the_newest_events_count_and_older_ones_are_cut() -> None:
    model = make(max_history=4).eval()
    batch = questions(4)
    assert int(batch.lengths.min()) > 4
    view, catalog = labelled_view()
    read = Reading(view.schema, catalog.items, model.reads).cut(batch)
    assert read.lengths.tolist() == [4] * 4
    assert torch.equal(read.events.offsets, torch.arange(5) * 4)


def test_an_unseen_item_is_its_content() -> None:
    model = make()
    table = model.eval().items.table()
    assert model.items.own.weight.abs().sum() == 0  # ids start at nothing
    twins = torch.nonzero((model.items.codes == model.items.codes[3]).all(1)).flatten()
    assert table.shape == (NUM_ITEMS, 16)
    assert len(twins) >= 1


def test_watch_quantiles_are_fair_to_short_items() -> None:
    model = make()
    rng = np.random.default_rng(0)
    duration = np.repeat([10.0, 100.0], 1000).astype(np.float32)
    watch = (duration * rng.random(2000)).astype(np.float32)
    model.know_views(watch, duration)
    q = model.watch_quantiles(torch.tensor([5.0, 50.0, 0.0, float("nan")]), torch.tensor([10.0, 100.0, 10.0, 10.0]))
    assert abs(float(q[0]) - 0.5) < 0.08
    assert abs(float(q[1]) - 0.5) < 0.08
    assert q[2:].tolist() == [0.0, 0.0]


def test_unknown_outcomes_teach_nothing() -> None:
    model = make(outcomes=("returns",))
    batch = questions()
    known = torch.zeros_like(batch.targets.feedback["click"])
    unknown = torch.full_like(known, float("nan"))
    model.eval()
    losses = []
    for values in (known, unknown):
        given = changed(batch, target_feedback={**batch.targets.feedback, "returns": values})
        losses.append(model.loss(given))
    assert losses[1].total < losses[0].total
    assert losses[1].total.isfinite()


def test_refusals() -> None:
    _, catalog = labelled_view()
    with pytest.raises(InputError, match="weights names 'clik'"):
        make(weights={"clik": 1.0})
    with pytest.raises(InputError, match="all 0"):
        make(weights=dict.fromkeys(("click", "not_dislike", "like", "long_view", "watch"), 0.0))
    with pytest.raises(InputError, match="needs a log with labels"):
        PScore(PScore.Config(), replace(catalog, schema=FeatureSchema()))
    batch = questions(2)
    with pytest.raises(InputError, match="no feedback column 'click'"):
        make().context(changed(batch, feedback={}))
