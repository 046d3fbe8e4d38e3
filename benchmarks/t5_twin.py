"""transformers' T5 with the weights of one of our TIGERs, the peer that `decode` and `training` measure against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from sidera.batch import Batch
    from sidera.models.generators.tiger import Tiger

BEGIN = 1  # Tiger's begin token


def as_t5(model: Tiger, **settings: Any) -> Any:
    """A T5ForConditionalGeneration that computes what ``model`` does."""
    from transformers import T5Config, T5ForConditionalGeneration

    from sidera.models.generators.tiger_t5 import TIED, t5_config, t5_state

    configured: Any = T5Config  # takes keys of its parent class, which its own signature does not list
    t5 = T5ForConditionalGeneration(configured(**{**t5_config(model), **settings}))
    missing, unexpected = t5.load_state_dict(t5_state(model), strict=False)
    if unexpected or any(name not in TIED for name in missing):
        raise RuntimeError(f"transformers' T5 has other weights than expected: {missing} missing, {unexpected} unknown")
    return t5


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
