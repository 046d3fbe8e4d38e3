"""TIGER: equal to transformers' T5, and its fast paths equal to its slow ones."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hand_made import changed, hand_made
from sidera.batch import Batch
from sidera.core import InputError
from sidera.data.features import FeatureSchema
from sidera.data.items import ItemTable
from sidera.data.reading import Reading
from sidera.decode.beam import normalised
from sidera.decode.sample import free_log_probs
from sidera.models import parse_model
from sidera.models.generators.tiger import Tiger
from sidera.nn import t5_functions as functions

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # t5_twin: T5 with a Tiger's weights


@dataclass(frozen=True)
class Codes:
    """As much of a Catalog as a generator reads."""

    codes: np.ndarray
    level_sizes: tuple[int, ...]
    codebook_id: str = "test"


def make_codes(num_items: int = 60, level_sizes: tuple[int, ...] = (8, 6, 5), seed: int = 0) -> Codes:
    rng = np.random.default_rng(seed)
    flat = rng.choice(int(np.prod(level_sizes)), num_items, replace=False)
    return Codes(np.stack(np.unravel_index(flat, level_sizes), axis=1).astype(np.int32), level_sizes)


def make_batch(lengths: list[int], num_items: int = 60, seed: int = 0, targets: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    lengths = [min(length, 20) for length in lengths]  # what a TIGER reads at most
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    return hand_made(
        item_ids=torch.randint(num_items, (int(offsets[-1]),), generator=generator),
        offsets=offsets,
        target_ids=torch.randint(num_items, (len(lengths),), generator=generator) if targets else None,
        user_ids=torch.arange(len(lengths)),
        items=make_codes(num_items),
    )


SMALL = {"width": 32, "num_layers": 2, "num_heads": 3, "head_width": 16, "ff_width": 48}


def make_tiger(codes: Codes | None = None, seed: int = 0, **settings: object) -> Tiger:
    torch.manual_seed(seed)
    config = Tiger.Config(**{**SMALL, "dropout": 0.0, **settings})  # type: ignore[arg-type]
    return Tiger(config, codes or make_codes())  # type: ignore[arg-type]


LENGTHS = [3, 1, 7, 3, 30, 2]


def spread(model: Tiger) -> Tiger:
    """Norm weights away from one and biases away from small: a part that forgets them must show."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            if "bias" in name:
                weight.normal_()
    return model


def test_loss_and_gradients_equal_t5() -> None:
    pytest.importorskip("transformers", reason="parity with T5 needs transformers (extra: text)")
    from t5_twin import as_t5, padded_tokens

    model = spread(make_tiger(normalize="vocabulary"))
    t5 = as_t5(model)
    batch = make_batch(LENGTHS)
    loss = model.loss(batch)
    loss.total.backward()
    tokens, mask = padded_tokens(model, batch)
    expected = t5(
        input_ids=tokens, attention_mask=mask, labels=model.item_tokens(batch.items.codes[batch.targets.items])
    ).loss
    (expected * batch.target_ids.numel() * model.num_levels).backward()
    assert loss.count == len(LENGTHS)
    torch.testing.assert_close(loss.total / loss.count / model.num_levels, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.embedding.weight.grad, t5.shared.weight.grad, rtol=1e-3, atol=1e-4)
    ours, theirs = model.encoder.layers[0].attention, t5.encoder.block[0].layer[0].SelfAttention
    torch.testing.assert_close(ours.qkv.weight.grad.chunk(3)[1], theirs.k.weight.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        model.encoder.bias.table.weight.grad, theirs.relative_attention_bias.weight.grad, rtol=1e-3, atol=1e-4
    )
    ours, theirs = model.decoder.layers[1].cross, t5.decoder.block[1].layer[1].EncDecAttention
    torch.testing.assert_close(ours.key_value.weight.grad.chunk(2)[1], theirs.v.weight.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("normalize", ["level", "vocabulary"])
@pytest.mark.parametrize("lengths", [[4], [3, 3], LENGTHS])
def test_steps_equal_teacher_forcing(normalize: str, lengths: list[int]) -> None:
    """Beams that are reordered, dropped and doubled between steps score as whole tuples do."""
    codes = make_codes()
    model = spread(make_tiger(codes, normalize=normalize)).eval()
    batch = make_batch(lengths, targets=False)
    num_histories, width = len(lengths), 5
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        context = model.context(batch)
        cache = model.new_cache(context, width)
        chosen: Tensor | None = None
        total: Tensor | None = None
        codes_now, parents = None, None
        for level, size in enumerate(codes.level_sizes):
            output = model.step(context, cache, level, codes_now, parents)
            log_p = output.logits.log_softmax(-1)  # (B, W, K)
            parents = torch.randint(log_p.shape[1], (num_histories, width), generator=generator)
            codes_now = torch.randint(size, (num_histories, width), generator=generator)
            picked = log_p.gather(1, parents[..., None].expand(-1, -1, size)).gather(2, codes_now[..., None])[..., 0]
            if chosen is None:
                chosen, total = codes_now[..., None], picked[..., None]
            else:
                along = parents[..., None].expand(-1, -1, level)
                chosen = torch.cat([chosen.gather(1, along), codes_now[..., None]], -1)
                total = torch.cat([total.gather(1, along), picked[..., None]], -1)
        expected = free_log_probs(model, context, chosen)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalize", ["level", "vocabulary"])
def test_steps_along_the_targets_give_the_loss(normalize: str) -> None:
    """Each step's own normaliser is that of training: over a level's codes, or over all tokens."""
    model, batch = spread(make_tiger(normalize=normalize)).eval(), make_batch(LENGTHS)
    sids = torch.as_tensor(make_codes().codes)[batch.target_ids][:, None].long()  # (B, 1, L)
    with torch.no_grad():
        context = model.context(batch)
        cache, total, parents = model.new_cache(context, 1), torch.zeros(()), torch.zeros(len(sids), 1).long()
        for level in range(sids.shape[2]):
            before = (None, None) if level == 0 else (sids[:, :, level - 1], parents)
            logits, log_norm = normalised(model.step(context, cache, level, *before))
            total += (logits.gather(2, sids[:, :, level, None])[..., 0] - log_norm).sum()
        torch.testing.assert_close(-total, model.loss(batch).total, rtol=1e-4, atol=1e-4)


def test_log_probs_is_the_loss() -> None:
    model = spread(make_tiger())
    batch = make_batch(LENGTHS)
    sids = torch.as_tensor(make_codes().codes)[batch.target_ids][:, None].long()  # (B, 1, L)
    log_p = free_log_probs(model, model.context(batch), sids)
    torch.testing.assert_close(-log_p.sum(), model.loss(batch).total, rtol=1e-5, atol=1e-4)
    log_p.sum().backward()
    assert model.encoder.layers[0].attention.qkv.weight.grad.abs().sum() > 0


def test_log_probs_under_autocast() -> None:
    model, batch = spread(make_tiger()), make_batch(LENGTHS)
    sids = torch.as_tensor(make_codes().codes)[batch.target_ids][:, None].long()
    exact = free_log_probs(model, model.context(batch), sids)
    with torch.autocast("cpu", torch.bfloat16):
        close = free_log_probs(model, model.context(batch), sids)
    close.sum().backward()
    assert model.encoder.layers[0].attention.qkv.weight.grad.dtype == torch.float32
    assert 0 < (close - exact).abs().max() < 0.2


def test_batch_equals_single() -> None:
    model = spread(make_tiger())
    batch = make_batch(LENGTHS)
    alone = []
    for row in range(batch.num_histories):
        single = batch.cut(row, row + 1)
        alone.append(model.loss(single).total)
    torch.testing.assert_close(torch.stack(alone).sum(), model.loss(batch).total, rtol=1e-5, atol=1e-4)


def test_fast_context_equals_encoder() -> None:
    model = spread(make_tiger()).eval()
    batch = make_batch(LENGTHS, targets=False)
    slow = model.context(batch)
    with torch.no_grad():
        fast = model.context(batch)
    assert slow.weights is None
    assert fast.weights is not None
    torch.testing.assert_close(fast.states, slow.states, rtol=1e-4, atol=1e-5)
    assert fast.num_histories == len(LENGTHS)
    assert fast.nbytes >= fast.states.nbytes


def first_logits(model: Tiger, batch: Batch) -> Tensor:
    with torch.inference_mode():
        context = model.context(batch)
        return model.step(context, model.new_cache(context, 1), 0, None, None).logits.clone()


def test_answers_follow_the_parameters() -> None:
    """Weights laid out for answering are made anew after an update, a load and a change of mode."""
    model, batch = spread(make_tiger()).eval(), make_batch([3, 2], targets=False)
    before = first_logits(model, batch)
    torch.testing.assert_close(first_logits(model, batch), before, rtol=0, atol=0)
    saved = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        model.decoder.layers[0].feed_forward.up.weight.mul_(2.0)
    changed = first_logits(model, batch)
    assert not torch.allclose(changed, before)
    model.load_state_dict(saved)
    torch.testing.assert_close(first_logits(model, batch), before, rtol=0, atol=0)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(first_logits(twin, batch), before, rtol=0, atol=0)
    model.decoder.norm.weight = torch.nn.Parameter(2 * model.decoder.norm.weight.detach())
    torch.testing.assert_close(first_logits(model, batch), 2 * before)
    torch.testing.assert_close(first_logits(twin, batch), before, rtol=0, atol=0)


def test_bfloat16_answers_are_close() -> None:
    model, batch = spread(make_tiger()).eval(), make_batch([3, 2], targets=False)
    exact = first_logits(model, batch)
    close = first_logits(model.prepare(torch.bfloat16), batch)
    assert close.dtype == torch.bfloat16
    difference = (close.float() - exact).abs().max()
    assert 0 < difference < 0.05 * exact.abs().max()


def test_users_are_read_when_asked_for() -> None:
    model = spread(make_tiger(num_user_tokens=4))
    batch = make_batch(LENGTHS)
    total = model.loss(batch).total
    other = changed(batch, user_ids=batch.requests.user_ids + 1)
    same = changed(batch, user_ids=batch.requests.user_ids + 4)  # the same hashes
    assert model.loss(other).total != total
    torch.testing.assert_close(model.loss(same).total, total)
    rows = model.packed_rows(batch)
    assert rows.tokens[rows.layout.keys[0].start] >= model.user_start
    assert int((rows.tokens >= model.user_start).sum()) == len(LENGTHS)
    with pytest.raises(InputError, match="user ids"):
        model.loss(changed(batch, user_ids=None))


def test_only_the_newest_items_are_read() -> None:
    model = make_tiger(max_history=4)
    batch = make_batch([9])
    read = Reading(FeatureSchema(), ItemTable.plain(60), model.reads).cut(batch)
    assert read.item_ids.tolist() == batch.item_ids[-4:].tolist()


def test_bad_input() -> None:
    model = make_tiger()
    packed = make_batch([3, 2])
    every_position = changed(packed, target_ids=packed.item_ids, kind="event")
    for batch in (every_position, make_batch([3, 2], targets=False)):
        with pytest.raises(InputError, match="targets of kind history"):
            model.loss(batch)
    with pytest.raises(InputError, match="empty history"):
        model.context(make_batch([3, 0], targets=False))
    single = make_batch([1, 1, 1])  # as many targets as events, and still one per history
    assert model.loss(single).count == 3


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_history", 0), ("num_heads", 0), ("ff_width", -1), ("dropout", 1.5), ("num_user_tokens", -1)],
)
def test_sizes_out_of_range_are_refused(key: str, value: float) -> None:
    """By the recipe's section, before any data is read."""
    with pytest.raises(InputError, match=rf"\[model\] {key} = {value} is out of range; allowed: "):
        parse_model({"name": "tiger", key: value})


def test_layer_gradients() -> None:
    torch.manual_seed(0)
    x, update = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    up = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    down = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)

    def seeded(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*tensors: Tensor) -> Tensor:
            torch.manual_seed(1)
            return function(*tensors)

        return call

    gradcheck = torch.autograd.gradcheck
    assert gradcheck(seeded(lambda x: functions.unit_rms(x, torch.float64)), (x,))
    assert gradcheck(seeded(lambda x, update: functions.add_dropped(x, update, 0.4)), (x, update))
    assert gradcheck(seeded(lambda x, up, down: functions.feed_forward(x, up, down, 0.4)), (x, up, down))
    assert gradcheck(functions.linear, (x, up))


def train(model: Tiger, batch: Batch, steps: int, bf16: bool = False, seed: int = 3) -> list[float]:
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model.loss(batch)
        (loss.total / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.total.detach()) / loss.count)
    return losses


def test_bfloat16_training_follows_float32() -> None:
    batch = make_batch([3, 2, 5, 4] * 8)
    exact = train(make_tiger(), batch, 30)
    close = train(make_tiger(), batch, 30, bf16=True)
    assert exact[-1] < 0.7 * exact[0]
    assert abs(close[0] - exact[0]) < 0.02 * exact[0]
    assert abs(close[-1] - exact[-1]) < 0.05 * exact[0]
    assert close != exact  # bfloat16 was really used


def test_dropout_follows_the_seed() -> None:
    batch = make_batch(LENGTHS)
    runs = [train(make_tiger(dropout=0.3), batch, 3, seed=seed) for seed in (5, 5, 6)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_learns_a_world_with_one_answer() -> None:
    """The next item is a function of the last: the beam answers it."""
    from sidera.decode.beam import beam_search
    from sidera.ops.trie import CodeTrie

    codes = make_codes(num_items=12)
    model = make_tiger(codes, dropout=0.05)
    successor = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    items = torch.randint(12, (64, 2), generator=torch.Generator().manual_seed(3))
    batch = hand_made(items.flatten(), torch.arange(65) * 2, successor[items[:, 1]], items=codes)
    losses = train(model, batch, 150)
    assert losses[-1] < 0.1 * losses[0]
    trie = CodeTrie.build(codes.codes, codes.level_sizes)
    answers = beam_search(model.eval(), batch, trie, width=5, num_results=1)
    assert (answers.item_ids[:, 0] == batch.target_ids).float().mean() > 0.9  # chance: one of 12
