"""The item encoder: words, categories, numbers and pictures -> tokens -> QFormer -> an item's vector, and its caption.

OneRec's technical report (arXiv 2506.13695): a vision-language model makes 1280 tokens of a video, a QFormer with 4
learned queries makes 4 vectors of them, K-means takes these as one long vector. Here the tokens come from one embedding
per word and category, a linear layer per column of numbers, and a small picture encoder trained with the rest or a
frozen checkpoint. The caption decoder writes an item's text from its vector alone, which keeps in the vector what the
behaviour of users would not ask for.

Saved as an artifact of kind "item_encoder": later items are encoded by it as the first ones were.

Shape legend: B items · S tokens of an item · D width · Q queries · W words · P pictures · T tokens of a picture.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.artifacts import Manifest, save_tensors, write_text, writing
from sidera.catalog.item_content import PICTURES, ContentReader, ItemContent
from sidera.loading import open_artifact
from sidera.nn.picture_encoder import PictureEncoder
from sidera.nn.qformer import QFormer
from sidera.nn.transformer import CausalEncoder
from sidera.ops.attention import layout_of

KIND = "item_encoder"
ENCODE_BATCH = 512


class ItemEncoder(nn.Module):
    """ItemContent of B items -> (B, Q * D) of unit length; the zero row for items without content."""

    def __init__(self, reader: ContentReader, content: ItemContent) -> None:
        """``content`` tells the shapes of what there is to read: any items read by ``reader``."""
        super().__init__()
        config = self.config = reader.config
        self.reader = reader
        width = config.width
        self.word = nn.Embedding(len(reader.words) + 1, width, padding_idx=0)
        self.category = nn.Embedding(len(reader.categories) + 1, width, padding_idx=0)
        self.dense = nn.ModuleDict({name: nn.Linear(v.shape[-1], width) for name, (v, _) in content.dense.items()})
        self.picture = PictureEncoder(width) if content.pixels else None
        self.feature = nn.ModuleDict({name: nn.Linear(v.shape[-1], width) for name, (v, _) in content.features.items()})
        kinds = ["words", "categories", *content.dense, *content.pixels, *content.features]
        self.kind = nn.ParameterDict({name: nn.Parameter(0.02 * torch.randn(width)) for name in kinds})
        self.former = QFormer(
            width, config.num_queries, config.num_layers, config.num_heads, ff_width=2 * width, dropout=config.dropout
        )

    @property
    def dim(self) -> int:
        return self.config.num_queries * self.config.width

    def tokens(self, content: ItemContent) -> tuple[Tensor, Tensor]:
        """(B, S, D) and which of them are there (B, S)."""
        tokens: list[Tensor] = []
        masks: list[Tensor] = []

        def put(name: str, values: Tensor, mask: Tensor) -> None:
            tokens.append(values + self.kind[name])
            masks.append(mask)

        words, categories = _trimmed(content.words), _trimmed(content.categories)
        put("words", self.word(words), words > 0)
        put("categories", self.category(categories), categories > 0)
        for name, (values, mask) in content.dense.items():
            put(name, self.dense[name](values)[:, None], mask[:, None])
        for name, (pixels, mask) in content.pixels.items():
            assert self.picture is not None
            if self.training and mask.shape[1] > 1:  # one at random: cheaper, and the others are left to generalise to
                pick = (torch.rand(mask.shape, device=mask.device) * mask).argmax(1)
                pixels, mask = pixels[torch.arange(len(pick)), pick][:, None], mask.any(1, keepdim=True)
            shown = self.picture(pixels.flatten(0, 1)).unflatten(0, mask.shape)  # (B, P, T, D)
            if name == "frames":  # a token per frame: what the video is about, not where
                shown = shown.mean(2, keepdim=True)
            put(name, shown.flatten(1, 2), mask[..., None].expand(shown.shape[:3]).flatten(1))
        for name, (values, mask) in content.features.items():
            shown = self.feature[name](values)
            put(name, shown.flatten(1, 2), mask[..., None].expand(shown.shape[:3]).flatten(1))
        return torch.cat(tokens, 1), torch.cat(masks, 1)

    def queries(self, content: ItemContent) -> Tensor:
        """(B, Q, D); while training, some tokens are hidden."""
        tokens, mask = self.tokens(content)
        if self.training and self.config.token_dropout:
            mask = mask & (torch.rand(mask.shape, device=mask.device) >= self.config.token_dropout)
        return self.former(tokens, mask=mask)

    def forward(self, content: ItemContent) -> Tensor:
        """(B, Q * D) unit rows."""
        return F.normalize(self.queries(content).flatten(1), dim=1)

    def encode(self, content: ItemContent) -> Tensor:
        """(N, Q * D) unit rows, zero where nothing is known; in batches, without gradient."""
        training = self.training
        self.eval()
        with torch.no_grad():
            parts = [self(content.take(ids)) for ids in torch.arange(content.num_items).split(ENCODE_BATCH)]
        self.train(training)
        vectors = torch.cat(parts) if parts else torch.empty(0, self.dim)
        return torch.where(content.known_mask()[:, None], vectors, 0.0)

    def encode_items(
        self, items: pa.Table, item_keys: Sequence[str] | np.ndarray, image_folder: str | Path | None = None
    ) -> Tensor:
        """Vectors of (new) items from their table and their pictures (default: the config's folder)."""
        return self.encode(self.reader.read(items, item_keys, image_folder))


def _trimmed(ids: Tensor) -> Tensor:
    """Without the columns in which no item has anything."""
    return ids[:, : int((ids > 0).sum(1).max()) if len(ids) else 0]


class CaptionDecoder(nn.Module):
    """-log P(word | the words before it, the item's vector), the vector standing before the words as Q tokens."""

    def __init__(self, encoder: ItemEncoder) -> None:
        super().__init__()
        config = encoder.config
        self.num_queries = config.num_queries
        self.read = nn.Linear(config.width, config.width)
        self.word = nn.Embedding(len(encoder.reader.words) + 1, config.width)  # 0: the end
        nn.init.normal_(self.word.weight, std=0.02)
        length = config.num_queries + config.max_words
        self.decoder = CausalEncoder(config.width, 1, config.num_heads, 2 * config.width, length, config.dropout)

    def forward(self, queries_BQD: Tensor, words_BW: Tensor) -> Tensor:
        """Mean over the words of the items that have any, the end of the text included; 0 without any."""
        has_words = words_BW[:, 0] > 0
        queries_BQD, words_BW = queries_BQD[has_words], words_BW[has_words]
        if not len(words_BW):
            return queries_BQD.sum() * 0.0
        number = self.num_queries
        inputs = torch.cat([self.read(queries_BQD), self.word(words_BW)], dim=1)  # (B, Q + W, D)
        lengths = number + (words_BW > 0).sum(1)  # (B,)
        mask = torch.arange(inputs.shape[1], device=inputs.device) < lengths[:, None]
        offsets = F.pad(lengths.cumsum(0), (1, 0))
        states = self.decoder(inputs[mask], layout_of(offsets))  # (T, D)
        targets = F.pad(words_BW, (number - 1, 1))  # place p predicts the word after it, the last place the end
        writes = mask & (torch.arange(inputs.shape[1], device=inputs.device) >= number - 1)
        logits = states[writes[mask]] @ self.word.weight.T
        return F.cross_entropy(logits, targets[writes])


def save_item_encoder(encoder: ItemEncoder, path: str | Path, digest: str, report: dict[str, object]) -> None:
    info = {"dim": encoder.dim, "report": report}
    with writing(path, Manifest(KIND, digest, info=info)) as folder:
        save_tensors(folder, encoder.state_dict())
        write_text(folder / "reader.json", json.dumps(encoder.reader.to_json()) + "\n")


def load_item_encoder(path: str | Path) -> ItemEncoder:
    """ArtifactError when a file is missing, truncated, edited, or does not fit."""
    opened = open_artifact(path, KIND)
    with opened.believed():
        reader = ContentReader.from_json(opened.json("reader.json", dict))
    return opened.network(lambda tensors: ItemEncoder(reader, _shapes_only(reader, tensors)))


def _shapes_only(reader: ContentReader, tensors: dict[str, Tensor]) -> ItemContent:
    """No item at all, with the widths that the weights were made for."""

    def widths(prefix: str) -> dict[str, int]:
        names = [name for name in tensors if name.startswith(prefix) and name.endswith(".weight")]
        return {name.removeprefix(prefix).removesuffix(".weight"): tensors[name].shape[1] for name in names}

    nothing = torch.zeros(0, 1, dtype=torch.bool)
    dense = {name: (torch.zeros(0, width), nothing[:, 0]) for name, width in widths("dense.").items()}
    features = {name: (torch.zeros(0, 1, 1, width), nothing) for name, width in widths("feature.").items()}
    pixels: dict[str, tuple[Tensor, Tensor]] = {}
    if not features:
        side = reader.config.image_size
        blank = torch.zeros(0, 1, side, side, 3, dtype=torch.uint8)
        pixels = {name: (blank, nothing) for name in PICTURES if name in reader.config.inputs}
    empty = torch.zeros(0, 1, dtype=torch.int64)
    return ItemContent(empty, empty, dense, pixels, features)
