"""The report's encoder-decoder: what each pathway holds, pathways switched off, keys per layer, hard inputs."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from feedback_world import SCHEMA, bare_catalog, feedback_catalog, requests
from hand_made import changed, hand_made, table_of
from sidera.batch import Batch, Lifelong
from sidera.config import written
from sidera.core import InputError
from sidera.data.reading import Reading
from sidera.decode.sample import free_log_probs
from sidera.models.generators.onerec import OneRec
from sidera.nn.moe import MoE

SMALL: dict[str, Any] = {
    "max_history": 40, "short_term": 4, "positive_length": 6, "num_lifelong_queries": 3, "lifelong_layers": 1,
    "width": 16, "encoder_layers": 2, "decoder_layers": 2, "num_kv_groups": 2, "ff_width": 32, "dropout": 0.0,
}  # fmt: skip
OFF = {"short_term": 0, "positive_length": 0, "num_lifelong_queries": 0}


def build(catalog: Any = None, **changes: Any) -> OneRec:
    torch.manual_seed(0)
    return OneRec(OneRec.Config(**{**SMALL, **changes}), catalog or feedback_catalog()).eval()


def answers(model: OneRec, batch: Batch) -> torch.Tensor:
    """(B, 5, L) log-probabilities of the first five items."""
    codes = torch.from_numpy(feedback_catalog().codes).long()[None, :5]
    return free_log_probs(model, model.context(batch), codes.expand(batch.num_histories, -1, -1))


def other_item(batch: Batch, event: int, item: int) -> Batch:
    items = batch.item_ids.clone()
    items[event] = item
    return changed(batch, feedback_catalog(), item_ids=items)


def test_pathways_hold_what_they_say() -> None:
    model = build()
    batch = requests([17, 3, 0, 9], seed=5)
    tokens, offsets = model.pathways(batch)
    events, users = model.norm_events(model.events(batch)), model.norm_users(model.user(batch))
    places = model.place.weight
    short, positive, lifelong = 1, 1 + 4, 1 + 4 + 6  # where each pathway begins in the table of places
    for row in range(4):
        mine = list(range(int(batch.events.offsets[row]), int(batch.events.offsets[row + 1])))
        newest = mine[::-1][:4]
        liked = [event for event in mine[::-1] if batch.events.feedback["long_view"][event] > 0][:6]
        older = mine[:-4]
        wanted = [users[row] + places[0]]
        wanted += [events[event] + places[short + place] for place, event in reversed(list(enumerate(newest)))]
        wanted += [events[event] + places[positive + place] for place, event in reversed(list(enumerate(liked)))]
        if older:
            assert model.lifelong is not None
            read = model.lifelong(events[older][None])[0]
            wanted += [query + places[lifelong + place] for place, query in enumerate(read)]
        found = tokens[offsets[row] : offsets[row + 1]]
        torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("left", ["static", "short_term", "positive_length", "num_lifelong_queries", "none"])
def test_any_pathway_alone_and_none_at_all(left: str) -> None:
    changes = {name: value for name, value in OFF.items() if name != left} | {"static": left == "static"}
    model = build(**changes)
    batch = requests([17, 3, 0], targets=[1, 2, 1])
    assert model.loss(batch).total.isfinite()
    counts = model.context(batch).mask.sum(1).tolist()
    liked = [int((batch.events.feedback["long_view"][a:b] > 0).sum()) for a, b in ((0, 17), (17, 20), (20, 20))]
    expected = {
        "short_term": [4, 3, 0],
        "positive_length": [min(6, number) for number in liked],
        "num_lifelong_queries": [3, 3, 0],  # without a short-term pathway every event is an older one
    }
    assert counts == [1 + number for number in expected.get(left, [0, 0, 0])]
    other = changed(batch, profiles={"region": (batch.requests.features["region"] + 1) % 3})
    assert torch.allclose(answers(model, batch), answers(model, other)) == (left != "static")


def test_what_no_pathway_reads_changes_nothing() -> None:
    batch = requests([17], seed=5)
    ignored = next(event for event in range(12) if batch.events.feedback["long_view"][event] == 0)
    other = other_item(batch, ignored, int(batch.item_ids[ignored] + 1) % 20)
    without, with_lifelong = build(num_lifelong_queries=0), build()
    assert torch.equal(answers(without, batch), answers(without, other))
    assert without.of_pathways(batch).item_ids.numel() < 17
    assert not torch.allclose(answers(with_lifelong, batch), answers(with_lifelong, other))


def test_events_over_the_limit_change_nothing() -> None:
    batch = requests([30])
    model = build(max_history=10)

    def read(batch: Batch) -> torch.Tensor:
        return answers(model, Reading(SCHEMA, table_of(feedback_catalog()), model.reads).cut(batch))

    assert torch.equal(read(batch), read(other_item(batch, 19, int(batch.item_ids[19] + 1) % 20)))
    assert not torch.allclose(read(batch), read(other_item(batch, 20, int(batch.item_ids[20] + 1) % 20)))


def test_without_a_positive_label_every_event_is_positive() -> None:
    model = build(bare_catalog())
    assert model.context(requests([9, 2])).mask.sum(1).tolist() == [1 + 4 + 6 + 3, 1 + 2 + 2]


def test_every_layer_has_keys_and_values_of_its_own() -> None:
    model = build(decoder_layers=3)
    context = model.context(requests([9, 2]))
    assert len(context.pairs) == 3
    parts = [part for pair in context.pairs for part in pair]
    assert all(part.shape == (2, 2, context.mask.shape[1], 4) for part in parts)
    assert all(not torch.allclose(parts[0], part) for part in parts[1:])
    assert context.nbytes == sum(part.numel() for part in parts) * 4


def test_a_batch_answers_as_one_by_one() -> None:
    model = build()
    batch = requests([17, 0, 5, 2])
    together = answers(model, batch)
    for row in range(4):
        torch.testing.assert_close(together[row], answers(model, batch.cut(row, row + 1))[0], rtol=1e-4, atol=1e-5)


def test_at_first_an_event_is_louder_than_its_place() -> None:
    """The place of a token was once larger than all that told one event from another: training began deaf."""
    model, batch = build(width=64, short_term=40, positive_length=0, num_lifelong_queries=0), requests([30] * 20)
    tokens, _ = model.pathways(batch)
    places = model.place.weight[: 1 + 30]
    events = tokens.view(20, 31, 64)[:, 1:] - places[1:].flip(0)  # newest last
    told_apart = (events - events.mean((0, 1))).square().mean()
    assert told_apart > 4 * places.square().mean()


@pytest.mark.parametrize("item_input", ["id", "sid", "both"])
def test_loss_is_minus_the_log_probabilities_of_the_targets(item_input: str) -> None:
    model = build(item_input=item_input)
    batch = requests([7, 12], targets=[1, 3])
    context = model.context(batch)
    sids = batch.items.codes[batch.targets.items]  # type: ignore[union-attr]
    expected = -free_log_probs(model, context, sids[:1].expand(2, 1, 3))[0].sum()
    expected -= free_log_probs(model, context, sids[1:].expand(2, 3, 3))[1].sum()
    torch.testing.assert_close(model.loss(batch).total, expected, rtol=1e-5, atol=1e-4)


def test_every_parameter_learns() -> None:
    model = build().train()
    model.loss(requests([17] * 20, targets=[2] * 20)).total.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    dead = [name for name, p in model.named_parameters() if p.grad is not None and p.ndim > 1 and not p.grad.any()]
    assert dead == []


def places_of_experts(model: torch.nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, MoE)]


@pytest.mark.parametrize("in_encoder", [False, True])
def test_experts_stand_where_they_are_asked_for(in_encoder: bool) -> None:
    model = build(num_experts=4, num_active=2, expert_width=8, moe_from=1, encoder_experts=in_encoder).train()
    assert model.loss(requests([9, 2], targets=[1, 2])).total.isfinite()
    blocks = ["encoder.blocks.0.ff", "encoder.blocks.1.ff"] if in_encoder else []
    assert sorted(places_of_experts(model)) == sorted(["decoder.layers.1.ff", *blocks])
    assert all(module.counts.sum() > 0 for module in model.modules() if isinstance(module, MoE))


def test_hard_inputs() -> None:
    model = build()
    batch = requests([9, 1], targets=[1, 1])
    nothing = {name: torch.zeros_like(values) for name, values in batch.events.feedback.items()}  # durations too
    assert model.loss(changed(batch, feedback=nothing)).total.isfinite()
    with pytest.raises(InputError, match="no feedback column 'click'"):
        model.loss(changed(batch, feedback={}))
    with pytest.raises(InputError, match="no targets"):
        model.loss(requests([3]))


@pytest.mark.parametrize("name", ["short_term", "positive_length", "num_lifelong_queries", "encoder_layers"])
def test_impossible_settings_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=name):
        OneRec.Config(**{**SMALL, name: -1})


# -- representatives of whole histories ------------------------------------------------------------------------------

READS_ALL = {"lifelong": "representatives", "max_representatives": 10, "lifelong_chunk": 2}


def with_lifelong(batch: Batch, lengths: list[int], seed: int = 3) -> Batch:
    """Random representatives of these numbers beside the histories."""
    tokens = requests(lengths, seed=seed)
    counts = torch.randint(1, 50, (tokens.item_ids.numel(),), generator=torch.Generator().manual_seed(seed))
    events = tokens.events
    assert events.times is not None
    lifelong = Lifelong(tokens.item_ids, events.offsets, counts, events.times, events.feedback)
    return changed(batch, feedback_catalog(), lifelong=lifelong)


def test_the_lifelong_pathway_reads_representatives_and_their_sizes() -> None:
    model = build(**READS_ALL)
    batch = with_lifelong(requests([17, 3, 0, 9], seed=5), [8, 0, 0, 5])
    lifelong, places = batch.lifelong, model.place.weight
    assert lifelong is not None
    assert model.lifelong is not None
    assert model.count is not None
    tokens, offsets = model.pathways(model.of_pathways(batch))
    assert model.context(batch).mask.sum(1).tolist() == offsets.diff().tolist()
    for row, number in enumerate([8, 0, 0, 5]):
        # the same tokens as a history of their own, each counted as often as it stands for events
        mine = slice(int(lifelong.offsets[row]), int(lifelong.offsets[row + 1]))
        alone = hand_made(
            batch.items.ids[lifelong.items[mine]], torch.tensor([0, number]), times=lifelong.times[mine],
            as_of=batch.requests.as_of[:1],  # type: ignore[index]
            feedback={name: values[mine] for name, values in lifelong.feedback.items()}, items=feedback_catalog(),
        )  # fmt: skip
        counts = lifelong.counts[mine]
        after = torch.tensor([int(counts[place + 1 :].sum()) for place in range(number)], dtype=torch.int64)
        buckets = torch.tensor([math.floor(2 * math.log2(count)) for count in counts.tolist()], dtype=torch.int64)
        wanted = model.norm_events(model.events.concatenated(alone, after)) + model.count(buckets)
        found = tokens[offsets[row] : offsets[row + 1]]
        if number:
            read = model.lifelong(wanted[None])[0] + places[1 + 4 + 6 :]
            torch.testing.assert_close(found[-3:], read, rtol=1e-4, atol=1e-5)
        liked = int(
            (batch.events.feedback["long_view"][batch.events.offsets[row] : batch.events.offsets[row + 1]] > 0).sum()
        )
        newest = int(batch.lengths[row])
        assert len(found) == 1 + min(4, newest) + min(6, liked) + (3 if number else 0)


def test_representatives_belong_to_their_history() -> None:
    model = build(**READS_ALL)
    batch = with_lifelong(requests([17, 0, 5, 2], targets=[1, 1, 2, 1]), [9, 4, 0, 6])
    together = answers(model, batch)
    for row in range(4):
        torch.testing.assert_close(together[row], answers(model, batch.cut(row, row + 1))[0], rtol=1e-4, atol=1e-5)
    other = answers(model, with_lifelong(batch, [9, 4, 0, 6], seed=8))
    assert not torch.allclose(together[0], other[0], atol=1e-4)
    torch.testing.assert_close(together[2], other[2])
    assert batch.lifelong is not None
    more = replace(batch, lifelong=replace(batch.lifelong, counts=batch.lifelong.counts * 100))
    assert not torch.allclose(together[0], answers(model, more)[0], atol=1e-4)
    kept = batch.keep(torch.ones_like(batch.item_ids, dtype=torch.bool)).to("cpu")
    torch.testing.assert_close(answers(model, kept), together)


def test_every_parameter_learns_from_representatives() -> None:
    model = build(**READS_ALL).train()
    model.loss(with_lifelong(requests([17] * 20, targets=[2] * 20), [10] * 20)).total.backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or (p.ndim > 1 and not p.grad.any())]
    assert dead == []


def test_a_batch_without_representatives_is_refused() -> None:
    with pytest.raises(InputError, match="the batch has no representatives of its histories; fix: read the log with"):
        build(**READS_ALL).loss(requests([9], targets=[1]))
    with pytest.raises(InputError, match="no feedback column 'click'"):
        build(**READS_ALL).loss(changed(with_lifelong(requests([9], targets=[1]), [3]), feedback={}))
    with pytest.raises(InputError, match="num_lifelong_queries = 0"):
        OneRec.Config(lifelong="representatives", num_lifelong_queries=0)
    with pytest.raises(InputError, match="lifelong_chunk = 0"):
        OneRec.Config(lifelong="representatives", lifelong_chunk=0)
    with pytest.raises(InputError, match="chunk = 250"):
        OneRec.Config(lifelong="representatives", max_representatives=500)


def test_keys_that_came_later_do_not_show_where_they_are_not_used() -> None:
    """A recipe of before them has the digest that it had, and weights of before fit."""
    old = written(OneRec.Config(**SMALL))
    assert set(old) == {field.name for field in fields(OneRec.Config)} - set(READS_ALL)
    assert written(OneRec.Config(**SMALL, **READS_ALL)) == {**old, **READS_ALL}  # type: ignore[arg-type]
    assert not any(name.startswith("count") for name in build().state_dict())


def test_chosen_rows_take_their_representatives_along() -> None:
    model = build(**READS_ALL)
    batch = with_lifelong(requests([17, 0, 5, 2]), [9, 4, 0, 6])
    together = answers(model, batch)
    rows = torch.tensor([3, 0, 2])
    torch.testing.assert_close(answers(model, batch.rows(rows)), together[rows], rtol=1e-4, atol=1e-5)
