"""TIGER's weights as those of transformers' T5ForConditionalGeneration, and back: folders that both open.

    save_t5(model, "exported/t5")          # T5ForConditionalGeneration.from_pretrained("exported/t5")
    tiger = load_t5("exported/t5", catalog, max_history=20)

Tiger computes what T5 (v1.0) computes, so logits are equal: its three projections of self-attention lie in one matrix,
its two of cross-attention in another, and every level's tokens are rows of one vocabulary (:class:`Tiger`). Neither way
needs transformers. A folder of another kind of T5 (gated feed-forward, untied output, other buckets) is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidera.artifacts import write_tensors, write_text
from sidera.bounds import read_json, shown
from sidera.catalog.catalog import Catalog
from sidera.config import MAX_RECIPE_BYTES
from sidera.core import InputError
from sidera.loading import LARGEST, mapped, tensors_in
from sidera.models.generators.tiger import BEGIN, FIRST_CODE, PAD, Tiger
from sidera.nn.t5 import T5Size
from sidera.ops.weights import check_weights

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")  # all of them shared.weight
FIXED: dict[str, Any] = {  # what another T5 may have and a Tiger has not; transformers' default where a key is missing
    "model_type": "t5", "feed_forward_proj": "relu", "tie_word_embeddings": True, "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": T5Size.num_buckets, "relative_attention_max_distance": T5Size.max_distance,
}  # fmt: skip
SIZES = {"d_model": "width", "num_layers": "num_layers", "num_heads": "num_heads", "d_kv": "head_width",
         "d_ff": "ff_width"}  # fmt: skip


def t5_config(model: Tiger) -> dict[str, Any]:
    """The keys of transformers' T5Config."""
    config = model.config
    sizes = {theirs: getattr(config, ours) for theirs, ours in SIZES.items()}
    return {
        **FIXED, **sizes, "num_decoder_layers": config.num_layers, "dropout_rate": config.dropout,
        "vocab_size": model.embedding.num_embeddings, "decoder_start_token_id": BEGIN, "pad_token_id": PAD,
        "eos_token_id": None, "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True,
    }  # fmt: skip


def t5_state(model: Tiger) -> dict[str, Tensor]:
    """Every tensor under its name there, tied ones once; views of the model's own."""
    state: dict[str, Tensor] = {}
    own = model.state_dict()
    for name, theirs in _names(model.config.num_layers).items():
        state.update(zip(theirs, own[name].chunk(len(theirs)), strict=True))
    return state


def save_t5(model: nn.Module, folder: str | Path) -> Path:
    """Write ``config.json`` and ``model.safetensors`` of a Tiger into a new or empty folder."""
    if type(model) is not Tiger:  # what a model built on it learned beside its T5 would be lost
        raise InputError(f"a model of {type(model).__name__} is no T5", allowed="a Tiger")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{str(folder)!r} is there already", fix="name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(t5_state(model), folder / WEIGHTS)
    write_text(folder / CONFIG, json.dumps(t5_config(model), indent=2) + "\n")
    return folder


def load_t5(folder: str | Path, catalog: Catalog, max_history: int = Tiger.Config.max_history) -> Tiger:
    """A Tiger over ``catalog`` with the weights of a T5 folder; its sizes come from the folder's config.

    InputError, in one line, for what is missing, cut off, of another kind or of other sizes: the vocabulary is pad,
    begin and the codes of every level, and what stands behind them are tokens of users.
    """
    folder = Path(folder)
    config, state = _read_config(folder), _read_weights(folder)
    values = {ours: _whole(config, theirs) for theirs, ours in SIZES.items()}
    if config.get("num_decoder_layers") not in (None, values["num_layers"]):
        raise InputError(f"{folder / CONFIG} has num_decoder_layers = {shown(config['num_decoder_layers'])}",
                         allowed=f"{values['num_layers']}, as num_layers")  # fmt: skip
    dropout = config.get("dropout_rate", 0.1)
    if type(dropout) not in (int, float):
        raise InputError(f"{folder / CONFIG} has dropout_rate = {shown(dropout)}", allowed="a number")
    catalog.check_codes("a T5 over semantic IDs")
    needed, vocabulary = FIRST_CODE + sum(map(int, catalog.level_sizes)), _whole(config, "vocab_size")
    if vocabulary < needed:
        problem = f"{folder / CONFIG} has vocab_size = {vocabulary}, the catalogue's codes {catalog.level_sizes}"
        raise InputError(f"{problem} take {needed} tokens", fix="give the catalogue that it was trained with")
    users = vocabulary - needed
    sizes: dict[str, Any] = dict(values)
    made = Tiger.Config(
        max_history=max_history, dropout=dropout, normalize="vocabulary", num_user_tokens=users, **sizes
    )
    model = Tiger(made, catalog)
    names = _names(made.num_layers)
    _check_names(folder, state, {name for theirs in names.values() for name in theirs})
    own = {}
    for name, theirs in names.items():
        parts, shape = [state[one] for one in theirs], model.state_dict()[name].chunk(len(theirs))[0].shape
        for one, part in zip(theirs, parts, strict=True):
            if part.shape != shape:
                problem = f"{folder / WEIGHTS} has {one!r} of shape {tuple(part.shape)}"
                raise InputError(problem, allowed=f"{tuple(shape)}, as {CONFIG} says")
        own[name] = torch.cat([part.float() for part in parts])
    check_weights(model, own)
    model.load_state_dict(own)
    return model.eval()


def _names(num_layers: int) -> dict[str, tuple[str, ...]]:
    """Our tensor -> theirs, which lie in it one below the other."""
    names: dict[str, tuple[str, ...]] = {"embedding.weight": ("shared.weight",)}
    for side in ("encoder", "decoder"):
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        names |= {f"{side}.bias.table.weight": (bias,), f"{side}.norm.weight": (f"{side}.final_layer_norm.weight",)}
        for layer in range(num_layers):
            ours, block = f"{side}.layers.{layer}", f"{side}.block.{layer}.layer"
            sublayers: list[tuple[str, str, tuple[tuple[str, Sequence[str]], ...]]]
            sublayers = [("attention", "SelfAttention", (("qkv", "qkv"), ("out", "o")))]
            if side == "decoder":
                sublayers.append(("cross", "EncDecAttention", (("query", "q"), ("key_value", "kv"), ("out", "o"))))
            sublayers.append(("feed_forward", "DenseReluDense", (("up", ("wi",)), ("down", ("wo",)))))
            for place, (part, theirs, matrices) in enumerate(sublayers):
                names[f"{ours}.{part}.norm.weight"] = (f"{block}.{place}.layer_norm.weight",)
                for matrix, letters in matrices:
                    found = tuple(f"{block}.{place}.{theirs}.{letter}.weight" for letter in letters)
                    names[f"{ours}.{part}.{matrix}.weight"] = found
    return names


def _read_config(folder: Path) -> Mapping[str, Any]:
    if not folder.is_dir():
        raise InputError(f"no folder at {str(folder)!r}", fix="give one that save_pretrained of transformers wrote")
    try:
        config = read_json(folder / CONFIG, MAX_RECIPE_BYTES)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / CONFIG} cannot be read: {error}", fix="save the model again") from None
    if not isinstance(config, dict):
        raise InputError(f"{folder / CONFIG} holds no object", fix="save the model again")
    for key, allowed in FIXED.items():
        if config.get(key, allowed) != allowed:
            raise InputError(f"{folder / CONFIG} has {key} = {shown(config[key])}", allowed=shown(allowed))
    return config


def _read_weights(folder: Path) -> dict[str, Tensor]:
    try:
        return tensors_in(mapped(folder / WEIGHTS, LARGEST))
    except FileNotFoundError:
        fix = f"save it whole: save_pretrained(..., safe_serialization=True, max_shard_size='100GB') writes {WEIGHTS}"
        raise InputError(f"{folder} holds no {WEIGHTS}", fix=fix) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / WEIGHTS} is damaged: {error}", fix="save the model again") from None


def _check_names(folder: Path, state: dict[str, Tensor], wanted: set[str]) -> None:
    """InputError unless the tensors are those of such a T5; copies of tied ones may be there."""
    for name in TIED:
        copy = state.pop(name, None)
        if copy is not None and "shared.weight" in state and not torch.equal(copy, state["shared.weight"]):
            raise InputError(f"{folder / WEIGHTS} has an {name!r} of its own", allowed="one tied to shared.weight")
    for names, problem in ((wanted - state.keys(), "lacks"), (state.keys() - wanted, "has an unknown")):
        if names:
            fix = f"give weights of the sizes in {CONFIG}"
            raise InputError(f"{folder / WEIGHTS} {problem} {shown(min(names))}", fix=fix)


def _whole(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise InputError(f"{CONFIG} has {key} = {shown(value)}", allowed="a whole number from 1")
    return value
