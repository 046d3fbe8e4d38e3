"""A local checkpoint as picture encoder: a folder with ``config.json`` and ``model.safetensors``. Frozen; no network.

Two kinds are known by ``model_type`` in the config:

* ``sidera_picture_encoder`` — sidera's own :class:`~sidera.nn.picture_encoder.PictureEncoder` (keys ``width``,
  ``channels``, ``image_size``), as :func:`save_picture_encoder` writes it;
* anything else — a vision model of the library ``transformers`` (extra ``text``), opened with ``local_files_only``:
  ViT, DINOv2, the vision part of CLIP or SigLIP; its last hidden state, averaged to at most 16 tokens, is read. Pixels
  are scaled to the config's ``image_size`` and normalised by ``preprocessor_config.json`` where there is one.

Shape legend: n pictures · S side in pixels · T tokens of a picture · D dims of a token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sidera.core import InputError
from sidera.nn.picture_encoder import PictureEncoder

OWN = "sidera_picture_encoder"
BATCH = 64
MAX_TOKENS = 16


@dataclass(frozen=True)
class FrozenEncoder:
    image_size: int
    width: int  # D
    encode: Callable[[Tensor], Tensor]  # (n, S, S, 3) uint8 -> (n, T, D) float32

    def features(self, pixels: Tensor) -> Tensor:
        """(n, S, S, 3) -> (n, T, D), in batches."""
        with torch.no_grad():
            return torch.cat([self.encode(part).float() for part in pixels.split(BATCH)])


def save_picture_encoder(encoder: PictureEncoder, image_size: int, folder: str | Path) -> None:
    """Write a folder that :func:`load_picture_encoder` reads."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": OWN, "width": encoder.width, "channels": encoder.channels, "image_size": image_size}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(
        {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}, folder / "model.safetensors"
    )


def load_picture_encoder(folder: str | Path) -> FrozenEncoder:
    """InputError when the folder, its config or a tensor is missing or does not fit."""
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"no picture encoder at {str(folder)!r}: config.json is missing",
            allowed='"small", or a folder with config.json and model.safetensors',
        ) from None
    except ValueError:
        config = None
    if not isinstance(config, dict) or "model_type" not in config:
        raise InputError(f"{folder / 'config.json'} is damaged or names no model_type")
    return _own(folder, config) if config["model_type"] == OWN else _of_transformers(folder, config)


def checkpoint_digest(folder: str | Path) -> str:
    """Names the content of the checkpoint's files, wherever they lie."""
    sha = hashlib.sha256()
    for file in sorted(Path(folder).iterdir()):
        if file.suffix in (".json", ".safetensors"):
            sha.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return sha.hexdigest()[:16]


def _own(folder: Path, config: dict[str, Any]) -> FrozenEncoder:
    try:
        encoder = PictureEncoder(int(config["width"]), int(config["channels"]))
        encoder.load_state_dict(load_file(folder / "model.safetensors"))
    except (KeyError, FileNotFoundError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"the checkpoint {str(folder)!r} does not fit its config: {_one_line(error)}") from None
    encoder.eval().requires_grad_(False)
    return FrozenEncoder(int(config.get("image_size", 32)), encoder.width, encoder)


def _of_transformers(folder: Path, config: dict[str, Any]) -> FrozenEncoder:
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError:
        raise InputError(
            f"the checkpoint {str(folder)!r} ({config['model_type']}) needs transformers, which is not installed",
            fix="pip install 'sidera[text]'",
        ) from None
    try:
        settings = AutoConfig.from_pretrained(folder, local_files_only=True)
        model, loading = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # whatever the library makes of files that do not belong together
        raise InputError(f"the checkpoint {str(folder)!r} cannot be loaded: {_one_line(error)}") from None
    missing = sorted(name for name in loading["missing_keys"] if "pooler" not in name and "position_ids" not in name)
    if missing:  # the library would draw them at random
        raise InputError(f"the checkpoint {str(folder)!r} lacks {len(missing)} tensors, {missing[0]!r} among them")
    model = getattr(model, "vision_model", model).eval().requires_grad_(False)
    settings = getattr(settings, "vision_config", settings)
    size, width = getattr(settings, "image_size", None), getattr(settings, "hidden_size", None)
    if not isinstance(size, int) or not isinstance(width, int):
        raise InputError(f"the checkpoint {str(folder)!r} ({config['model_type']}) is no vision model with image_size")
    mean, spread = _normalisation(folder)

    def encode(pixels: Tensor) -> Tensor:
        x = (pixels.float() / 255 - mean) / spread
        hidden = model(pixel_values=x.permute(0, 3, 1, 2)).last_hidden_state  # (n, t, D)
        count = min(MAX_TOKENS, hidden.shape[1])
        return torch.nn.functional.adaptive_avg_pool1d(hidden.transpose(1, 2), count).transpose(1, 2)

    return FrozenEncoder(size, width, encode)


def _normalisation(folder: Path) -> tuple[Tensor, Tensor]:
    try:
        values = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        values = {}
    return torch.tensor(values.get("image_mean", [0.5] * 3)), torch.tensor(values.get("image_std", [0.5] * 3))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
