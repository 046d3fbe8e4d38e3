"""TIGER: equal to transformers' T5, and its fast paths equal to its slow ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from sidera.core import Batch, InputError
from sidera.models.generators.tiger import BEGIN, Tiger


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
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    return Batch(
        item_ids=torch.randint(num_items, (int(offsets[-1]),), generator=generator),
        offsets=offsets,
        target_ids=torch.randint(num_items, (len(lengths),), generator=generator) if targets else None,
        user_ids=torch.arange(len(lengths)),
    )


SMALL = {"width": 32, "num_layers": 2, "num_heads": 3, "head_width": 16, "ff_width": 48}


def make_tiger(codes: Codes | None = None, seed: int = 0, **settings: object) -> Tiger:
    torch.manual_seed(seed)
    config = Tiger.Config(**{**SMALL, "dropout": 0.0, **settings})  # type: ignore[arg-type]
    return Tiger(config, codes or make_codes())  # type: ignore[arg-type]


LENGTHS = [3, 1, 7, 3, 30, 2]


def as_t5(model: Tiger) -> torch.nn.Module:
    """transformers' T5 with the weights of ``model``."""
    transformers = pytest.importorskip("transformers", reason="the parity tests need transformers (extra: text)")
    config = model.config
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=model.embedding.num_embeddings,
            d_model=config.width,
            d_kv=config.head_width,
            d_ff=config.ff_width,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            dropout_rate=config.dropout,
            decoder_start_token_id=BEGIN,
            pad_token_id=0,
            eos_token_id=None,
            tie_word_embeddings=True,
        )
    )
    state: dict[str, Tensor] = {"shared.weight": model.embedding.weight}
    for side, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        name = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        state[name] = stack.bias.table.weight
        state[f"{side}.final_layer_norm.weight"] = stack.norm.weight
        for index, layer in enumerate(stack.layers):
            parts = [("SelfAttention", layer.attention)]
            if side == "decoder":
                parts.append(("EncDecAttention", layer.cross))
            for place, (name, part) in enumerate(parts):
                prefix = f"{side}.block.{index}.layer.{place}."
                if name == "SelfAttention":
                    q, k, v = part.qkv.weight.chunk(3)
                else:
                    q, (k, v) = part.query.weight, part.key_value.weight.chunk(2)
                for letter, weight in zip("qkvo", (q, k, v, part.out.weight), strict=True):
                    state[f"{prefix}{name}.{letter}.weight"] = weight
                state[f"{prefix}layer_norm.weight"] = part.norm.weight
            prefix = f"{side}.block.{index}.layer.{len(parts)}."
            state[f"{prefix}DenseReluDense.wi.weight"] = layer.feed_forward.up.weight
            state[f"{prefix}DenseReluDense.wo.weight"] = layer.feed_forward.down.weight
            state[f"{prefix}layer_norm.weight"] = layer.feed_forward.norm.weight
    missing, unexpected = t5.load_state_dict({name: weight.detach() for name, weight in state.items()}, strict=False)
    assert not unexpected
    assert all(
        name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight") for name in missing
    )
    return t5


def padded_tokens(model: Tiger, batch: Batch) -> tuple[Tensor, Tensor]:
    """(B, S) tokens of the newest items, padded with 0, and their mask."""
    rows = []
    for start, end in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        ids = batch.item_ids[max(start, end - model.config.max_history) : end]
        rows.append(model.item_tokens[ids].flatten())
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return tokens, tokens != 0


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
    model = spread(make_tiger(normalize="vocabulary"))
    t5 = as_t5(model)
    batch = make_batch(LENGTHS)
    loss = model.loss(batch)
    loss.total.backward()
    tokens, mask = padded_tokens(model, batch)
    expected = t5(input_ids=tokens, attention_mask=mask.long(), labels=model.item_tokens[batch.target_ids]).loss
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
            log_norm = output.logits.logsumexp(-1) if output.log_norm is None else output.log_norm
            log_p = output.logits - log_norm[..., None]  # (B, W, K)
            parents = torch.randint(log_p.shape[1], (num_histories, width), generator=generator)
            codes_now = torch.randint(size, (num_histories, width), generator=generator)
            picked = log_p.gather(1, parents[..., None].expand(-1, -1, size)).gather(2, codes_now[..., None])[..., 0]
            if chosen is None:
                chosen, total = codes_now[..., None], picked[..., None]
            else:
                along = parents[..., None].expand(-1, -1, level)
                chosen = torch.cat([chosen.gather(1, along), codes_now[..., None]], -1)
                total = torch.cat([total.gather(1, along), picked[..., None]], -1)
        expected = model.log_probs(context, chosen)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)


def test_log_probs_is_the_loss() -> None:
    model = spread(make_tiger())
    batch = make_batch(LENGTHS)
    sids = torch.as_tensor(make_codes().codes)[batch.target_ids][:, None].long()  # (B, 1, L)
    log_p = model.log_probs(model.context(batch), sids)
    torch.testing.assert_close(-log_p.sum(), model.loss(batch).total, rtol=1e-5, atol=1e-4)
    log_p.sum().backward()
    assert model.encoder.layers[0].attention.qkv.weight.grad.abs().sum() > 0


def test_batch_equals_single() -> None:
    model = spread(make_tiger())
    batch = make_batch(LENGTHS)
    alone = []
    for row, (start, end) in enumerate(zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True)):
        single = Batch(batch.item_ids[start:end], torch.tensor([0, end - start]), batch.target_ids[row : row + 1])
        alone.append(model.loss(single).total)
    torch.testing.assert_close(torch.stack(alone).sum(), model.loss(batch).total, rtol=1e-5, atol=1e-4)
