"""OneRec-V2: the paper's bookkeeping of keys and values, sharing, the events that are read, hard inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from feedback_world import SCHEMA, bare_catalog, feedback_catalog, requests
from hand_made import changed, table_of
from sidera.batch import Batch
from sidera.core import InputError
from sidera.data.reading import Reading
from sidera.decode.sample import free_log_probs
from sidera.models.generators.onerec_v2 import ContextProcessor, OneRecV2
from sidera.nn.code_decoder import DecoderSize
from sidera.nn.moe import MoE

SMALL: dict[str, Any] = {
    "max_history": 12,
    "short_term": 6,
    "width": 16,
    "num_layers": 4,
    "ff_width": 32,
    "dropout": 0.0,
}
CODES = torch.from_numpy(feedback_catalog().codes).long()  # (N, L)


def build(catalog: Any = None, **changes: Any) -> OneRecV2:
    torch.manual_seed(0)
    return OneRecV2(OneRecV2.Config(**{**SMALL, **changes}), catalog or feedback_catalog()).eval()


@pytest.mark.parametrize(("groups", "millions"), [(14, 94), (7, 47), (2, 13), (1, 7)])
def test_keys_and_values_of_the_papers_1b_model(groups: int, millions: int) -> None:
    """Table of GQA in 2508.20900: batch 512, context 512, five samples share a context."""
    with torch.device("meta"):
        size = DecoderSize(width=1792, num_layers=18, num_heads=14, num_kv_groups=groups)
        processor = ContextProcessor(size, num_pairs=1, separate_values=False)
    assert size.head_width == 128
    assert processor.project.out_features == 128 * groups
    assert round(512 * 512 / 5 * processor.project.out_features / 1e6) == millions


@pytest.mark.parametrize(("pairs", "separate"), [(1, False), (1, True), (3, False), (9, False), (18, False)])
def test_context_width_of_the_papers_sharing_rows(pairs: int, separate: bool) -> None:
    """d_ctx = S_kv * L_kv * G_kv * d_head."""
    with torch.device("meta"):
        size = DecoderSize(width=1792, num_layers=18, num_heads=14, num_kv_groups=14)
        processor = ContextProcessor(size, pairs, separate)
    assert processor.project.out_features == (2 if separate else 1) * pairs * 1792


@pytest.mark.parametrize("pairs", [1, 2, 3, 4])
@pytest.mark.parametrize("separate", [False, True])
def test_layers_share_keys_and_values(pairs: int, separate: bool) -> None:
    model = build(kv_sharing=pairs, separate_values=separate, num_kv_groups=2)
    context = model.context(requests([5, 3]))
    assert len(context.pairs) == pairs
    read = model.keys_values(context)
    assert [id(pair) for pair in read] == [id(context.pairs[layer * pairs // 4]) for layer in range(4)]
    for keys, values in context.pairs:
        assert keys.shape == values.shape == (2, 2, 6, 4)  # 5 events and the user
        assert (keys is values) != separate
    assert context.nbytes == 2 * 6 * (2 if separate else 1) * pairs * 2 * 4 * 4
    if pairs > 1:
        assert not torch.allclose(context.pairs[0][0], context.pairs[1][0])


@pytest.mark.parametrize("separate", [False, True])
def test_grouped_heads_are_heads_whose_keys_are_repeated(separate: bool) -> None:
    grouped = build(num_kv_groups=2, separate_values=separate)
    full = build(num_kv_groups=4, separate_values=separate)
    state = grouped.state_dict()
    chunks = 2 if separate else 1
    for name in ("weight", "bias"):
        table = state[f"processor.project.{name}"].unflatten(0, (chunks, 2, 4))
        state[f"processor.project.{name}"] = table.repeat_interleave(2, dim=1).flatten(0, 2)
    full.load_state_dict(state)
    batch, sids = requests([7, 2]), CODES[torch.arange(6).view(2, 3)]
    ours, theirs = (free_log_probs(model, model.context(batch), sids) for model in (grouped, full))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [feedback_catalog, bare_catalog])
@pytest.mark.parametrize("item_input", ["id", "sid", "both"])
def test_loss_is_minus_the_log_probabilities_of_the_targets(make: Any, item_input: str) -> None:
    model = build(make(), item_input=item_input)
    batch = requests([7, 3, 9], targets=[2, 1, 4])
    loss = model.loss(batch)
    context = model.context(batch)
    expected = torch.zeros(())
    for row, (first, last) in enumerate([(0, 2), (2, 3), (3, 7)]):
        sids = torch.zeros(3, last - first, 3, dtype=torch.int64)
        sids[row] = batch.items.codes[batch.targets.items[first:last]]  # type: ignore[union-attr]
        expected = expected - free_log_probs(model, context, sids)[row].sum()
    assert loss.count == 7
    torch.testing.assert_close(loss.total, expected, rtol=1e-5, atol=1e-4)
    assert loss.parts["gen_loss"] == pytest.approx(loss.total.item() / 7 / 3, rel=1e-5)


def test_every_parameter_learns() -> None:
    model = build(num_kv_groups=2, kv_sharing=2, separate_values=True).train()
    torch.manual_seed(1)
    model.loss(requests([12] * 40, targets=[2] * 40)).total.backward()
    still = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert still == []


def test_the_newest_events_and_older_positives_are_read() -> None:
    batch = requests([15, 4, 9], seed=3)

    def cut(newest: int, limit: int, positive: str) -> Batch:
        reads = OneRecV2.Config(max_history=limit, short_term=newest).reads
        return Reading(replace(SCHEMA, positive=positive), table_of(feedback_catalog()), reads).cut(batch)

    kept = cut(5, 11, "like")
    wanted = []
    for row in range(3):
        events = range(int(batch.events.offsets[row]), int(batch.events.offsets[row + 1]))
        liked = batch.events.feedback["like"]
        chosen = [e for place, e in enumerate(list(events)[::-1]) if place < 5 or (place < 11 and liked[e] > 0)]
        wanted.append(sorted(chosen))
    assert kept.lengths.tolist() == [len(chosen) for chosen in wanted]
    places = torch.tensor([event for chosen in wanted for event in chosen])
    assert torch.equal(kept.item_ids, batch.item_ids[places])
    assert torch.equal(kept.events.times, batch.events.times[places])  # type: ignore[arg-type,index]
    for name, values in batch.events.feedback.items():
        assert torch.equal(kept.events.feedback[name], values[places])
    assert cut(15, 20, "like") is batch
    assert cut(2, 6, "").lengths.tolist() == [6, 4, 6]  # no such label: all are positive


def model_reading(model: OneRecV2) -> Reading:
    return Reading(SCHEMA, table_of(feedback_catalog()), model.reads)


def test_events_over_the_limit_change_nothing() -> None:
    model, batch = build(), requests([30])
    recent = model_reading(model).cut(batch.newest(12))
    batch = model_reading(model).cut(batch)
    sids = CODES[None, :5]
    first, second = (free_log_probs(model, model.context(asked), sids) for asked in (batch, recent))
    torch.testing.assert_close(first, second)


def test_experts_count_real_targets_only() -> None:
    model = build(num_experts=5, num_active=2, expert_width=8, moe_from=2).train()
    model.loss(requests([4, 4], targets=[1, 5]))
    sparse = [module for module in model.modules() if isinstance(module, MoE)]
    assert len(sparse) == 2  # layers 2 and 3
    for module in sparse:
        assert module.counts.sum() == 6 * 3 * 2  # targets, codes, active experts
    places = [name for name, module in model.named_modules() if isinstance(module, MoE)]
    assert places == ["decoder.layers.2.ff", "decoder.layers.3.ff"]


def test_experts_of_the_last_step_are_balanced_before_the_next() -> None:
    model = build(num_experts=5, num_active=2, expert_width=8).train()
    batch = requests([4, 4], targets=[1, 5])
    model.loss(batch)
    (first, *_) = (module for module in model.modules() if isinstance(module, MoE))
    assert (first.bias == 0).all()
    model.loss(batch)
    assert (first.bias != 0).any()
    biases = first.bias.clone()
    model.eval().loss(batch)
    assert torch.equal(first.bias, biases)


def test_a_missing_feedback_column_is_refused() -> None:
    batch = requests([3], targets=[1])
    feedback = {name: values for name, values in batch.events.feedback.items() if name != "watch_time"}
    with pytest.raises(InputError, match="no feedback column 'watch_time'"):
        build().loss(changed(batch, feedback=feedback))


def test_users_without_positives_zero_durations_and_empty_histories() -> None:
    batch = requests([9, 0, 1], targets=[1, 1, 1])
    nothing = {name: torch.zeros_like(values) for name, values in batch.events.feedback.items()}
    model = build(short_term=2)
    loss = model.loss(changed(batch, feedback=nothing))
    assert loss.total.isfinite()
    context = model.context(model_reading(model).cut(changed(batch, feedback=nothing)))
    assert context.mask.sum(1).tolist() == [3, 1, 2]  # two newest events and the user; the user alone; one event


def test_a_batch_answers_as_one_by_one() -> None:
    model = build()
    batch = requests([9, 2, 5])
    sids = CODES[None, :4].expand(3, -1, -1)
    together = free_log_probs(model, model.context(batch), sids)
    for row in range(3):
        alone = free_log_probs(model, model.context(batch.cut(row, row + 1)), sids[:1])
        torch.testing.assert_close(together[row], alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_sharing": 5}, "kv_sharing.*at most num_layers"),
        ({"short_term": 0}, "short_term"),
        ({"num_heads": 3}, "num_heads.*divisor"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OneRecV2.Config(**{**SMALL, **changes})
