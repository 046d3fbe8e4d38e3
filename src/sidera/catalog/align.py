"""Alignment of item vectors: content tells what an item is, pairs from behaviour tell what it is like to people.

In-batch contrastive loss over mined pairs plus a caption loss (OneRec technical report, arXiv 2506.13695, section 2.1):

    L = -mean log [exp(sim(i, j)/tau) / sum_j' exp(sim(i, j')/tau)] + caption_weight * L_caption,  sim = cosine

Two corrections to the in-batch negatives: a j' that *is* i or j, or is among i's known partners, is masked; and with
``log_q`` the log-frequency of j' among the partners is taken from its score (otherwise popular items, which are in
every batch, are pushed away from everything).

    encoder = align_items(dataset, split, config)          # trains, or takes the artifact that is there
    vectors = encoder.encode_items(new_items, new_keys)    # later items, without training

Trap: pairs come from training events alone; content of every item, cold ones included, may be read: it is no answer.

Shape legend: P pairs of a batch · U distinct items of it · N items · D dims of a vector.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.batch import Batch
from sidera.catalog.config import AlignConfig, CatalogConfig
from sidera.catalog.item_content import PICTURES, ContentReader, ItemContent
from sidera.catalog.item_encoder import KIND, CaptionDecoder, ItemEncoder, load_item_encoder, save_item_encoder
from sidera.catalog.pairs import PairBatches, Pairs, mine_pairs
from sidera.catalog.picture_checkpoint import checkpoint_digest
from sidera.catalog.pictures import pictures_digest
from sidera.catalog.text_encoder import cache_dir
from sidera.config import digest
from sidera.data.dataset import Dataset
from sidera.data.split import Split
from sidera.fit.config import FitConfig
from sidera.fit.loop import fit
from sidera.fit.seeding import seed_everything
from sidera.roles import Loss
from sidera.stage import stage

MASKED = -1e9


def aligned_vectors(
    dataset: Dataset, split: Split, config: CatalogConfig, path: str | Path | None = None
) -> tuple[Tensor, dict[str, Any]]:
    """(N, Q * D) unit rows, zero for items without content, and what reading and training noticed."""
    encoder = align_items(dataset, split, config, path)
    content = encoder.reader.read(dataset.items, dataset.item_keys)
    return encoder.encode(content), content.report


def align_items(dataset: Dataset, split: Split, config: CatalogConfig, path: str | Path | None = None) -> ItemEncoder:
    """The encoder of ``[catalog.align]``, trained unless the artifact at ``path`` (default: in the cache) is it."""
    wanted = align_digest(dataset, split, config)
    path = Path(path) if path is not None else cache_dir() / f"item-encoder-{wanted}"
    return stage(
        path, KIND, wanted, lambda wanted: _align_items(dataset, split, config, path, wanted),
        lambda: load_item_encoder(path),
    )  # fmt: skip


def _align_items(dataset: Dataset, split: Split, config: CatalogConfig, path: Path, wanted: str) -> ItemEncoder:
    align = config.align
    reader = ContentReader.fit(dataset.items, align, config.text_fields)
    content = reader.read(dataset.items, dataset.item_keys)
    pairs = mine_pairs(dataset, split, align)
    seed_everything(align.seed, 0, 0, 0)
    model = AlignedTraining(ItemEncoder(reader, content), content, pairs)
    settings = FitConfig(
        epochs=1,
        max_steps=align.steps,
        batch_size=align.batch_size,
        lr=align.lr,
        warmup_steps=min(50, align.steps // 10),
        seed=align.seed,
        patience=0,
        checkpoint_minutes=10.0,
    )
    unfinished = path.with_name(f".{path.name}-fit-{wanted}")  # a stopped training goes on from here
    result = fit(model, PairBatches(pairs, align, wanted), settings, unfinished)
    training = {"steps": result.steps, "cpu_minutes": round(result.cpu_seconds / 60, 2)}
    counts = {"user_to_item_pairs": len(pairs.user_to_item[0]), "item_to_item_pairs": len(pairs.item_to_item[0])}
    save_item_encoder(model.encoder, path, wanted, {**content.report, **training, **counts})
    shutil.rmtree(unfinished, ignore_errors=True)
    return load_item_encoder(path)


def align_digest(dataset: Dataset, split: Split, config: CatalogConfig) -> str:
    """Names the inputs of :func:`align_items`: log, split, recipe, and the content of pictures and checkpoint."""
    train_ends = hashlib.sha256(np.ascontiguousarray(split.train_ends, dtype="<i8").tobytes()).hexdigest()
    return digest([dataset.digest, split.name, train_ends, list(config.text_fields), align_identity(config.align)])


def align_identity(config: AlignConfig) -> dict[str, Any]:
    """The section with files named by what is in them, not by where they lie."""
    values = {name: getattr(config, name) for name in AlignConfig.__dataclass_fields__}
    kinds = [kind for kind in PICTURES if kind in config.inputs]
    if kinds:
        values["image_folder"] = pictures_digest(str(config.image_folder), kinds)
    if kinds and config.image_encoder != "small":
        values["image_encoder"] = checkpoint_digest(config.image_encoder)
    return values


class AlignedTraining(nn.Module):
    """What the training loop trains: encoder and caption decoder, with the content of all items at hand."""

    log_share: Tensor  # (N,) of an item among the partners
    partners: Tensor  # (N, k) known partners of each item

    def __init__(self, encoder: ItemEncoder, content: ItemContent, pairs: Pairs) -> None:
        super().__init__()
        self.encoder, self.caption = encoder, CaptionDecoder(encoder)
        self.content = content  # no part of the weights
        partners = np.concatenate([pairs.user_to_item[1], pairs.item_to_item[1]])
        shares = torch.from_numpy(np.bincount(partners, minlength=content.num_items) / len(partners))
        self.register_buffer("log_share", shares.clamp(min=1e-9).log().float(), persistent=False)
        self.register_buffer("partners", pairs.partners(encoder.config.neighbours), persistent=False)

    def loss(self, batch: Batch) -> Loss:
        """Sum over the batch's pairs of both losses."""
        config = self.encoder.config
        left, right = batch.item_ids, batch.target_ids
        ids, places = torch.cat([left, right]).unique(return_inverse=True)
        content = self.content.take(ids)
        queries = self.encoder.queries(content)  # (U, Q, D)
        vectors = F.normalize(queries.flatten(1), dim=1)
        shift = self.log_share[right] if config.log_q else None
        negatives = negative_mask(left, right, self.partners)
        anchors, others = vectors[places].chunk(2)
        loss = contrastive_loss(anchors, others, negatives, config.temperature, shift)
        parts = {"contrastive": float(loss.detach())}
        if config.caption_weight and config.caption_items:
            chosen = places[: len(left)].unique()
            chosen = chosen[torch.randperm(len(chosen), device=chosen.device)[: config.caption_items]]
            caption = self.caption(queries[chosen], content.words[chosen])
            parts["caption"] = float(caption.detach())
            loss = loss + config.caption_weight * caption
        return Loss(loss * len(left), len(left), parts)


def negative_mask(left: Tensor, right: Tensor, partners: Tensor) -> Tensor:
    """(P, P) True where pair p's item may take pair q's partner for a negative; the diagonal is False."""
    same = right[None] == right[:, None]  # the partner itself, in another pair
    self_ = right[None] == left[:, None]
    known = (partners[left][:, :, None] == right[None, None]).any(1)
    return ~(same | self_ | known)


def contrastive_loss(
    left: Tensor, right: Tensor, negatives: Tensor, temperature: float, shift: Tensor | None = None
) -> Tensor:
    """Mean InfoNCE of unit rows (P, D); ``shift`` (P,) is taken from the scores of each partner."""
    logits = left @ right.T / temperature
    if shift is not None:
        logits = logits - shift
    own = torch.eye(len(left), dtype=torch.bool, device=left.device)
    logits = logits.masked_fill(~(negatives | own), MASKED)
    return F.cross_entropy(logits, torch.arange(len(left), device=left.device))
