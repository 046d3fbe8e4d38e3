"""transformers' T5 with the weights of one of our TIGERs, the peer that `decode` and `training` measure against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from sidera.batch import Batch
    from sidera.models.generators.tiger import Tiger

BEGIN = 1  # Tiger's begin token
TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")  # all of them shared.weight


def as_t5(model: Tiger, **settings: Any) -> Any:
    """A T5ForConditionalGeneration that computes what ``model`` does."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = model.config
    configured: Any = T5Config  # takes keys of its parent class, which its own signature does not list
    t5 = T5ForConditionalGeneration(
        configured(
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
            **settings,
        )
    )
    missing, unexpected = t5.load_state_dict(_t5_state(model), strict=False)
    if unexpected or any(name not in TIED for name in missing):
        raise RuntimeError(f"transformers' T5 has other weights than expected: {missing} missing, {unexpected} unknown")
    return t5


def _t5_state(model: Tiger) -> dict[str, Tensor]:
    state: dict[str, Any] = {"shared.weight": model.embedding.weight}
    stacks: dict[str, Any] = {"encoder": model.encoder, "decoder": model.decoder}
    for side, stack in stacks.items():
        state[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = stack.bias.table.weight
        state[f"{side}.final_layer_norm.weight"] = stack.norm.weight
        for index, layer in enumerate(stack.layers):
            block, attention, forward = f"{side}.block.{index}.layer", layer.attention, layer.feed_forward
            sublayers = [("SelfAttention", attention, attention.qkv.weight.chunk(3))]
            if side == "decoder":
                cross = layer.cross
                sublayers.append(("EncDecAttention", cross, (cross.query.weight, *cross.key_value.weight.chunk(2))))
            for place, (name, sublayer, projections) in enumerate(sublayers):
                for letter, weight in zip("qkvo", (*projections, sublayer.out.weight), strict=True):
                    state[f"{block}.{place}.{name}.{letter}.weight"] = weight
                state[f"{block}.{place}.layer_norm.weight"] = sublayer.norm.weight
            last = f"{block}.{len(sublayers)}"
            state[f"{last}.DenseReluDense.wi.weight"] = forward.up.weight
            state[f"{last}.DenseReluDense.wo.weight"] = forward.down.weight
            state[f"{last}.layer_norm.weight"] = forward.norm.weight
    return {name: weight.detach() for name, weight in state.items()}


def event_tokens(model: Tiger, batch: Batch) -> Tensor:
    """(T, L) tokens of the items of all events."""
    return model.item_tokens(batch.items.codes)[batch.events.items]


def padded_tokens(model: Tiger, batch: Batch, num_items: int | None = None) -> tuple[Tensor, Tensor]:
    """(B, S) tokens of the newest items, 0 behind the last, and their mask (int64); S from the longest or num_items."""
    import torch

    tokens_TL, rows = event_tokens(model, batch), []
    for start, end in zip(batch.events.offsets[:-1].tolist(), batch.events.offsets[1:].tolist(), strict=True):
        rows.append(tokens_TL[max(start, end - model.config.max_history) : end].flatten())
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    if num_items is not None:
        tokens = torch.nn.functional.pad(tokens, (0, num_items * model.num_levels - tokens.shape[1]))
    return tokens, (tokens != 0).long()
