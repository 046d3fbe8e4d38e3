"""Small worlds and models for ``benchmarks/gpu.py``: training, answering and their speed on one device.

A world is a random catalogue and histories that walk it: after an item always comes the next of a fixed permutation, so
a model that learns anything lowers its loss fast. Everything needs torch, numpy, pyarrow and safetensors alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from sidera.batch import Batch, Events, Requests, TargetKind, Targets
from sidera.data.feature import Feature
from sidera.data.features import FeatureSchema
from sidera.data.items import ItemTable
from sidera.decode.beam import beam_search
from sidera.decode.session import session_beam_search
from sidera.models import build_model, parse_model
from sidera.ops.trie import CodeTrie
from sidera.roles import SessionGenerator

NOW = 1_700_000_000  # unix seconds
SCHEMA = FeatureSchema(
    positive="long_view",
    labels=("click", "long_view"),
    has_watch_time=True,
    has_duration=True,
    features=(
        Feature("creator", "category", "item", "creator", ("a", "b", "c"), has_missing=True),
        Feature("region", "category", "user", "region", ("north", "south"), has_missing=True),
    ),
    long_view_seconds=(5.0,) * 17,
)
ONEREC = {"width": 32, "ff_width": 64, "dropout": 0.0, "num_experts": 3, "num_active": 2, "expert_width": 32}
SMALL: dict[str, dict[str, Any]] = {
    "tiger": {"width": 32, "num_layers": 1, "num_heads": 2, "head_width": 16, "ff_width": 64, "dropout": 0.0},
    "sidera": {"width": 16, "num_layers": 1, "num_heads": 1, "dropout": 0.0},
    "onerec_v1": {**ONEREC, "num_layers": 1, "session_length": 2, "min_watched": 1},
    "onerec": {**ONEREC, "encoder_layers": 1, "decoder_layers": 1, "short_term": 4, "num_lifelong_queries": 2},
    "onerec_v2": {**ONEREC, "num_layers": 2, "num_kv_groups": 2},
}
GENERATORS = tuple(SMALL)
RETRIEVERS: dict[str, dict[str, Any]] = {
    "hstu": {"max_history": 8, "width": 16, "num_heads": 2, "dropout": 0.0, "loss": "full"},
    "kuaiformer": {
        "recent": 3, "middle_groups": 1, "middle_size": 2, "early_groups": 1, "early_size": 3, "width": 16,
        "num_layers": 1, "dropout": 0.0, "loss": "full",
    },
}  # fmt: skip
TARGET_KINDS: dict[str, TargetKind] = {
    "tiger": "history", "sidera": "event", "onerec_v1": "list", "onerec": "request", "onerec_v2": "request",
    "hstu": "event", "kuaiformer": "history",
}  # fmt: skip
LARGE_HISTORY = {"tiger": 20, "sidera": 50, "onerec_v1": 128, "onerec": 128, "onerec_v2": 128}


@dataclass(frozen=True)
class World:
    """A catalogue, its trie, and what comes after each item."""

    catalog: Any  # as much of a Catalog as a model reads
    trie: CodeTrie
    following: np.ndarray  # (N,)

    @property
    def table(self) -> ItemTable:
        return ItemTable(self.catalog.codes, self.catalog.features)

    @classmethod
    def of(cls, num_items: int, level_sizes: tuple[int, ...], seed: int = 0) -> World:
        """Items on distinct random codes."""
        rng = np.random.default_rng(seed)
        flat = rng.choice(int(np.prod(level_sizes)), num_items, replace=False)
        codes = np.stack(np.unravel_index(flat, level_sizes), axis=1).astype(np.int32)
        catalog = SimpleNamespace(
            codes=codes,
            level_sizes=level_sizes,
            codebook_id="benchmark",
            num_items=num_items,
            item_keys=np.arange(num_items).astype(str),
            schema=SCHEMA,
            features={"creator": rng.integers(0, 4, num_items)},
        )
        return cls(catalog, CodeTrie.build(codes, level_sizes), rng.permutation(num_items))

    def batch(self, kind: TargetKind, num_histories: int, longest: int, seed: int, targets: int = 2) -> Batch:
        """Walks of 2 to ``longest`` items with random feedback, and targets of ``kind``."""
        rng = np.random.default_rng((seed, num_histories))
        lengths = rng.integers(2, longest + 1, num_histories)
        walk = np.empty((num_histories, longest + targets), dtype=np.int64)
        walk[:, 0] = rng.integers(0, len(self.following), num_histories)
        for step in range(1, walk.shape[1]):
            walk[:, step] = self.following[walk[:, step - 1]]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        items = np.concatenate([row[:length] for row, length in zip(walk, lengths, strict=True)])
        after = [row[length : length + targets] for row, length in zip(walk, lengths, strict=True)]
        if kind == "event":
            followers, target_offsets = self.following[items], offsets
        else:
            each = 1 if kind == "history" else targets
            followers = np.concatenate([row[:each] for row in after])
            target_offsets = np.arange(num_histories + 1) * each
        table, (event_items, target_items) = self.table.distinct(items, followers)
        watched = torch.from_numpy(rng.random(len(items))).float()
        ages = np.concatenate([np.arange(length, 0, -1) for length in lengths]) * 60
        feedback = {
            "click": (watched > 0.2).float(),
            "long_view": (watched > 0.5).float(),
            "watch_time": 60 * watched,
            "duration": torch.full((len(items),), 60.0),
        }
        profiles = {"region": torch.from_numpy(rng.integers(0, 3, num_histories))}
        return Batch(
            Events(event_items, torch.from_numpy(offsets), torch.from_numpy(NOW - ages), feedback),
            table,
            Requests(as_of=torch.full((num_histories,), NOW), features=profiles),
            Targets(kind, target_items, torch.from_numpy(target_offsets)),
            global_count=len(followers),
        )


def build(name: str, world: World, **changes: Any) -> Any:
    return build_model(*parse_model({"name": name, **changes}), world.catalog, 0)


def world_for(name: str, num_items: int) -> World:
    """Two levels for the generator whose second code is an item of a cluster, three for the others."""
    if name == "sidera":
        return World.of(num_items, (max(4, num_items // 48), 64))
    side = 8 if num_items < 400 else 256
    return World.of(num_items, (side,) * 3)


# ---- training and answering -----------------------------------------------------------------------------------------


def autocast(device: str, precision: str) -> Any:
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


def curve(model: Any, batches: list[Batch], device: str, precision: str) -> list[float]:
    """Mean loss of each step of AdamW over ``batches``. Histories keep their times: each device draws its own."""
    with patch("sidera.nn.event_features.TIMELESS", 0.0), patch("sidera.nn.hstu.TIMELESS", 0.0):
        return _curve(model, batches, device, precision)


def _curve(model: Any, batches: list[Batch], device: str, precision: str) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    losses = []
    torch.manual_seed(0)
    for batch in batches:
        there = batch.to(device)
        with autocast(device, precision):
            loss = model.loss(there)
        (loss.total / loss.count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.total.detach()) / loss.count)
    model.eval()
    return losses


def gradient_distance(model: Any, batch: Batch, device: str) -> float:
    """Largest difference between the gradients of one loss here and on ``device``, over the largest gradient."""
    twin = copy.deepcopy(model).to(device).eval()
    grads = []
    for one, where in ((copy.deepcopy(model).eval(), "cpu"), (twin, device)):
        one.loss(batch.to(where)).total.backward()
        grads.append({name: p.grad.cpu() for name, p in one.named_parameters() if p.grad is not None})
    if grads[0].keys() != grads[1].keys():
        return float("inf")
    scale = max(float(grad.abs().max()) for grad in grads[0].values())
    return max(float((grads[1][name] - grad).abs().max()) / scale for name, grad in grads[0].items())


def train(name: str, device: str, steps: int) -> dict[str, Any]:
    """The same steps on the CPU in f32 and on ``device`` in f32 and bf16; ``problems`` lists what is out of bounds."""
    world = world_for(name, 120)
    model = build(name, world, **(RETRIEVERS.get(name) or {"max_history": 8, **SMALL[name]}))
    batches = [world.batch(TARGET_KINDS[name], 48, 8, seed) for seed in range(steps)]
    found: dict[str, Any] = {"gradients": gradient_distance(model, batches[0], device)}
    curves = {"cpu": curve(copy.deepcopy(model), batches, "cpu", "f32")}
    for precision in ("f32", "bf16"):
        curves[precision] = curve(copy.deepcopy(model).to(device), batches, device, precision)
    start, end = curves["cpu"][0], curves["cpu"][-1]
    problems = []
    if found["gradients"] > 1e-3:
        problems.append(f"gradients differ by {found['gradients']:.1e}")
    for precision, first, last in (("f32", 1e-4, 0.05), ("bf16", 2e-2, 0.15)):
        losses = curves[precision]
        found[precision] = {"first": losses[0], "last": losses[-1], "cpu_last": end}
        if not np.isfinite(losses).all():
            problems.append(f"{precision}: a loss is not finite")
        elif abs(losses[0] - start) > first * start or abs(losses[-1] - end) > last * start:
            problems.append(f"{precision}: {losses[0]:.4f} to {losses[-1]:.4f}, on the CPU {start:.4f} to {end:.4f}")
        elif losses[-1] >= losses[0]:
            problems.append(f"{precision}: the loss does not fall")
    return {**found, "problems": problems}


def answer(name: str, device: str) -> dict[str, Any]:
    """Top ten of the same weights here and on ``device``; places may change where scores are equal within 1e-4."""
    world = world_for(name, 120)
    model = build(name, world, max_history=8, **SMALL[name])
    curve(model, [world.batch(TARGET_KINDS[name], 48, 8, seed) for seed in range(10)], "cpu", "f32")
    twin = copy.deepcopy(model).to(device)
    batch = world.batch("history", 32, 8, seed=77)
    problems = []
    here = beam_search(model, batch, world.trie, width=20, num_results=10)
    there = beam_search(twin, batch.to(device), world.trie, width=20, num_results=10)
    off = float((there.scores.cpu() - here.scores).abs().max())
    same = float((there.item_ids.cpu() == here.item_ids).double().mean())
    if off > 1e-4 * max(1.0, float(here.scores.abs().max())):
        problems.append(f"scores differ by {off:.1e}")
    if same < 0.99:
        problems.append(f"{same:.3f} of the places hold the same item")
    found = {"score_difference": off, "same_places": same}
    if isinstance(model, SessionGenerator):
        settings: dict[str, Any] = {"length": 2, "width": 8, "code_width": 20, "num_results": 4}
        lists = [
            session_beam_search(one, batch.to(where), world.trie, **settings).item_ids.cpu()
            for one, where in ((model, "cpu"), (twin, device))
        ]
        found["same_lists"] = float((lists[0] == lists[1]).double().mean())
        if found["same_lists"] < 0.99:
            problems.append(f"{found['same_lists']:.3f} of the places of lists hold the same item")
    return {**found, "problems": problems}


# ---- speed ----------------------------------------------------------------------------------------------------------


def synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def repeated(call: Any, device: str, seconds: float, at_most: int) -> list[float]:
    """Wall seconds of each call, after two that warm up, for about ``seconds``."""
    for _ in range(2):
        call()
    synchronize(device)
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < at_most):
        begun = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - begun)
    return times


def training_speed(name: str, device: str, precision: str, tiny: bool, seconds: float, peak: float) -> dict[str, Any]:
    """Tokens (events read) a second and MFU of whole steps, default sizes, 256 histories, 12,000 items."""
    world = world_for(name, 300 if tiny else 12_000)
    histories, longest = (8, 6) if tiny else (256, LARGE_HISTORY[name])
    model = build(name, world, max_history=longest, **(SMALL[name] if tiny else {})).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batches = [world.batch(TARGET_KINDS[name], histories, longest, seed) for seed in range(4)]
    tokens = sum(batch.item_ids.numel() for batch in batches) / len(batches)
    flops = sum(model.flops_per_batch(batch) for batch in batches) / len(batches)
    order: Iterator[Batch] = iter(batches * 1000)

    def step() -> None:
        batch = next(order).to(device)
        with autocast(device, precision):
            loss = model.loss(batch)
        (loss.total / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    times = repeated(step, device, seconds, 300)
    each = float(np.median(times))
    return {
        "parameters": sum(one.numel() for one in model.parameters()),
        "step_ms": round(1e3 * each, 2),
        "tokens_per_second": round(tokens / each),
        "mfu": round(flops / each / (1e12 * peak), 4) if peak else None,
        "steps": len(times),
    }


def decoding_speed(name: str, device: str, batch_size: int, tiny: bool, seconds: float) -> dict[str, Any]:
    """Milliseconds of one call of beam search, 50 beams, top ten of 12,000 items, default sizes, f32."""
    world = world_for(name, 300 if tiny else 12_000)
    longest = 6 if tiny else LARGE_HISTORY[name]
    model = build(name, world, max_history=longest, **(SMALL[name] if tiny else {})).to(device).eval()
    batch = world.batch("history", batch_size, longest, seed=5).to(device)
    width = 10 if tiny else 50
    times = repeated(lambda: beam_search(model, batch, world.trie, width=width, num_results=10), device, seconds, 100)
    return {"ms": round(1e3 * float(np.median(times)), 2), "calls": len(times)}


def large_catalogue(device: str, tiny: bool, seconds: float) -> dict[str, Any]:
    """TIGER over a million items on 3 x 8,192 codes, 512 beams, one history and 16."""
    num_items, side, width = (2_000, 32, 32) if tiny else (1_000_000, 8_192, 512)
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, side, num_items) for _ in range(3)], axis=1).astype(np.int32)
    trie = CodeTrie.build(codes, (side,) * 3)
    catalog: Any = SimpleNamespace(codes=codes, level_sizes=(side,) * 3, codebook_id="benchmark")
    changes = {"width": 32, "num_heads": 2, "head_width": 16, "num_layers": 1, "ff_width": 64} if tiny else {}
    model: Any = build_model(*parse_model({"name": "tiger", **changes}), catalog, 0).to(device).eval()
    found: dict[str, Any] = {}
    for size in (1, 16):
        items = rng.integers(0, num_items, 20 * size)
        distinct, (places,) = ItemTable(codes).distinct(items)
        batch = Batch(Events(places, torch.arange(size + 1) * 20), distinct).to(device)
        call = partial(beam_search, model, batch, trie, width=width, num_results=10)
        answers = call()
        if not torch.equal(trie_codes(trie, answers.leaf_ids), answers.sids.cpu()) or not answers.valid_mask.all():
            found.setdefault("problems", []).append(f"of {size} histories: an answer is no item")
        found[f"ms_{size}"] = round(1e3 * float(np.median(repeated(call, device, seconds / 2, 50))), 2)
    if torch.device(device).type == "cuda":
        found["peak_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    return found


def trie_codes(trie: CodeTrie, leaves: Tensor) -> Tensor:
    return torch.from_numpy(trie.leaf_codes(leaves.cpu().numpy()))
