"""TIGER's weights in transformers' T5 and back: equal logits, and one line for a folder of another kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sidera.core import InputError
from sidera.models.generators.tiger import BEGIN, Tiger
from sidera.models.generators.tiger_t5 import TIED, load_t5, save_t5, t5_state
from sidera.ops.weights import check_weights

SIZES = (5, 7, 4)
SMALL = {"width": 16, "num_layers": 2, "num_heads": 2, "head_width": 4, "ff_width": 24, "normalize": "vocabulary"}


def catalog(*sizes: int) -> Any:
    return SimpleNamespace(codebook_id="c", level_sizes=sizes, check_codes=lambda reader: None)


def tiger(**config: Any) -> Tiger:
    torch.manual_seed(0)
    model = Tiger(Tiger.Config(**SMALL, **config), catalog(*SIZES))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_t5(tiger(), tmp_path / "t5")


def logits(model: Tiger, tokens: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
    """(B, L, V) of the decoder's every step, over whole rows of tokens of one length."""
    from sidera.nn.t5 import packed_rows

    number, length = tokens.shape
    rows = packed_rows(tokens.flatten(), torch.arange(number + 1) * length)
    read = torch.nn.functional.pad(written[:, :-1], (1, 0), value=BEGIN)
    memory = model.encoder(model.embedding(rows.tokens), rows.layout, torch.float32)
    read = model.embedding(read.reshape(-1))
    states = model.decoder(read, memory, written.shape[1], rows.layout, dtype=torch.float32)
    return (states.view(number, written.shape[1], -1) * model.config.width**-0.5) @ model.embedding.weight.T


def test_what_is_saved_comes_back(folder: Path) -> None:
    model, again = tiger(), load_t5(folder, catalog(*SIZES), max_history=20)
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    users = load_t5(save_t5(tiger(num_user_tokens=3), folder.with_name("users")), catalog(*SIZES))
    assert users.config.num_user_tokens == 3


def test_every_tensor_has_one_name_there() -> None:
    model = tiger()
    assert sum(tensor.numel() for tensor in t5_state(model).values()) == sum(one.numel() for one in model.parameters())


def test_transformers_opens_it_and_gives_equal_logits_and_back(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="parity with T5 needs transformers (extra: text)")
    model, t5 = tiger(), transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    tokens, written = torch.randint(2, 18, (3, 9)), torch.randint(2, 18, (3, 3))
    with torch.no_grad():
        expected = t5(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=written).logits
        torch.testing.assert_close(logits(model, tokens, written), expected, rtol=1e-4, atol=1e-5)
        for weight in t5.parameters():
            weight.mul_(1.1)
        t5.save_pretrained(tmp_path / "theirs")
        again = load_t5(tmp_path / "theirs", catalog(*SIZES))
        expected = t5(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=written).logits
        torch.testing.assert_close(logits(again, tokens, written), expected, rtol=1e-4, atol=1e-5)


def edit_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def edit_weights(folder: Path, **values: Any) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    for name, value in values.items():
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"feed_forward_proj": "gated-gelu"}, "feed_forward_proj = 'gated-gelu'; allowed: 'relu'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = False"),
        ({"model_type": "bart"}, "model_type = 'bart'"),
        ({"relative_attention_num_buckets": 16}, "num_buckets = 16; allowed: 32"),
        ({"num_decoder_layers": 3}, "num_decoder_layers = 3; allowed: 2, as num_layers"),
        ({"d_model": "16"}, "d_model = '16'; allowed: a whole number"),
        ({"d_kv": 8}, r"of shape \(8, 16\); allowed: \(16, 16\)"),
        ({"vocab_size": 10}, r"vocab_size = 10, the catalogue's codes \(5, 7, 4\) take 18 tokens"),
        ({"vocab_size": 21}, r"'shared.weight' of shape \(18, 16\)"),
        ({"num_layers": 1, "num_decoder_layers": 1}, "has an unknown 'decoder.block.1."),
        ({"dropout_rate": None}, "dropout_rate = None"),
    ],
)
def test_a_config_of_another_kind_is_refused(folder: Path, values: dict[str, Any], words: str) -> None:
    edit_config(folder, **values)
    with pytest.raises(InputError, match=words):
        load_t5(folder, catalog(*SIZES))


def test_weights_of_another_kind_are_refused(folder: Path) -> None:
    shared = torch.zeros(18, 16)
    for values, words in (
        ({"shared.weight": None}, "lacks 'shared.weight'"),
        ({"more": torch.zeros(1)}, "has an unknown 'more'"),
        ({"shared.weight": torch.full((18, 16), float("inf"))}, "not finite"),
        ({TIED[2]: shared}, "'lm_head.weight' of its own"),
    ):
        copy = Path(shutil.copytree(folder, folder.with_name("copy"), dirs_exist_ok=True))
        edit_weights(copy, **values)
        with pytest.raises(InputError, match=words):
            load_t5(copy, catalog(*SIZES))
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for broken, words in ((content[:-9], "is no tensor of this file"), (content[:4], "no header"), (b"", "no header")):
        weights.write_bytes(broken)
        with pytest.raises(InputError, match=f"is damaged: .*{words}"):
            load_t5(folder, catalog(*SIZES))
    weights.unlink()
    with pytest.raises(InputError, match=r"holds no model\.safetensors"):
        load_t5(folder, catalog(*SIZES))
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        load_t5(folder, catalog(*SIZES))
    with pytest.raises(InputError, match="no folder at"):
        load_t5(folder / "nowhere", catalog(*SIZES))


def test_nothing_is_written_over(folder: Path) -> None:
    with pytest.raises(InputError, match="is there already"):
        save_t5(tiger(), folder)
    check_weights(tiger(), load_t5(folder, catalog(*SIZES)).state_dict())
