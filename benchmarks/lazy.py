"""Claim `lazy`: a training step of the lazy decoder against the encoder-decoder, at equal parameters and like loss.

    python benchmarks/lazy.py [--quick] [--seeds 0 1 2]

Both read the same 512 newest events of the same requests, in a log of the simulated world with long histories, and are
trained for the same steps on the same batches, one step of each in turn, one thread, f32. The encoder-decoder has as
many encoder as decoder layers (the paper's Enc:Dec 1:1), the lazy decoder as many layers as both together, and its
feed-forwards are widened until the parameters agree. Validation requests are later than all training requests.

Value: CPU time of the encoder-decoder's steps over the lazy decoder's (first seed), and the lazy decoder's validation
loss over the encoder-decoder's, the mean of the seeds with its interval; a seed is another world, another order and
other weights. For the log: the encoder-decoder with the report's own pathways (20 + 256 + queries), counted FLOPs
of one request, and what a naive decoder-only model would cost by the same count: all layers over all events.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import arguments, finish, single_thread, tuned_allocator

BAR = {"times_cheaper": 6.0, "loss_ratio_at_most": 1.02, "parameters_within": 0.02}
CONTEXT, WIDTH, HEADS, ENCODER_FF, ENCODER_LAYERS, DECODER_LAYERS = 512, 64, 4, 128, 3, 3
BATCH_SIZE, STEPS, VALID_SHARE, LR, WARMUP = 32, 300, 0.15, 3e-3, 20
WORLD = {"num_items": 1000, "num_creators": 80, "max_items_per_day": 100, "exit_bias": -4.5, "return_bias": 1.5}
USERS, DAYS = 250, 16
CODE_STD = 1.0  # of both, as in the world's recipes
SEEDS = (0, 1, 2)


def long_histories(folder: Path, seed: int) -> tuple[Any, list[Any], list[Any]]:
    """A catalogue, STEPS training batches in random order, later validation batches; every history has 512 events."""
    import numpy as np

    from sidera.batch import Reads
    from sidera.catalog.build import build_catalog
    from sidera.catalog.config import CatalogConfig
    from sidera.data.batches import RequestRows
    from sidera.data.config import DataConfig, load_dataset, make_views
    from sidera.data.reading import Reading
    from sidera.sim.config import world_config
    from sidera.sim.simulate import simulate

    simulate(world_config("easy", WORLD), USERS, DAYS, folder / "log", seed)
    every, positives = make_views(load_dataset(folder / "log"), DataConfig(positive="long_view"))
    codes = CatalogConfig(vectors=("tfidf", "behaviour"), num_levels=3, codebook_size=32, balanced=True)
    catalog, _ = build_catalog(positives.dataset, positives.split, codes, every.schema)
    reading = Reading(every.schema, catalog.items, Reads(CONTEXT, "all")).over(every.dataset)
    source = RequestRows(reading, every.split, BATCH_SIZE, order="time")
    full = []
    for batch in source.batches(0):  # longest first, so the full histories stand in front
        count = int((batch.lengths == CONTEXT).sum())
        if count >= BATCH_SIZE // 2:
            full.append(batch.cut(0, count))
    cut = round(len(full) * (1 - VALID_SHARE))
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(cut) for _ in range(-(-STEPS // cut))])[:STEPS]
    return catalog, [full[index] for index in order], full[cut:]


def encoder_decoder(**changes: Any) -> dict[str, Any]:
    """[model] of the encoder-decoder; by default all 512 events enter the encoder as they are."""
    pathways = {"short_term": CONTEXT, "positive_length": 0, "num_lifelong_queries": 0, **changes}
    layers = {"encoder_layers": ENCODER_LAYERS, "decoder_layers": DECODER_LAYERS}
    shared = {
        "width": WIDTH, "num_heads": HEADS, "num_kv_groups": HEADS, "ff_width": ENCODER_FF, "code_std": CODE_STD,
    }  # fmt: skip
    return {"name": "onerec", "max_history": CONTEXT, **shared, **layers, **pathways}


def lazy_decoder(ff_width: int) -> dict[str, Any]:
    """[model] of the lazy decoder."""
    shared = {
        "width": WIDTH, "num_heads": HEADS, "num_kv_groups": HEADS, "ff_width": ff_width, "code_std": CODE_STD,
    }  # fmt: skip
    layers = ENCODER_LAYERS + DECODER_LAYERS
    return {"name": "onerec_v2", "max_history": CONTEXT, "short_term": CONTEXT, "num_layers": layers, **shared}


def parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def outside_tables(model: Any) -> int:
    """Parameters that are not rows of an embedding table."""
    import torch

    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    return parameters(model) - sum(table.weight.numel() for table in tables)


def build(section: dict[str, Any], catalog: Any, seed: int) -> Any:
    from sidera.models import build_model, parse_model

    return build_model(*parse_model(section), catalog, seed)


def matched_lazy(catalog: Any, wanted: int, seed: int) -> tuple[Any, int]:
    """The lazy decoder whose feed-forward makes it as large as ``wanted`` parameters."""
    low, high = (parameters(build(lazy_decoder(width), catalog, seed)) for width in (1, 2))
    ff_width = max(1, 1 + round((wanted - low) / (high - low)))
    return build(lazy_decoder(ff_width), catalog, seed), ff_width


class Trainer:
    """A model, its optimizer, and the CPU seconds of each of its steps."""

    def __init__(self, model: Any, total_steps: int) -> None:
        from sidera.fit.config import FitConfig
        from sidera.fit.schedule import make_optimizer

        self.config = FitConfig(lr=LR, betas=(0.9, 0.98), warmup_steps=WARMUP, max_steps=total_steps)
        self.model, self.total_steps = model.train(), total_steps
        self.optimizer = make_optimizer(model, self.config)
        self.seconds: list[float] = []

    def step(self, batch: Any) -> float:
        """One update; the mean loss of the batch before it."""
        import torch

        from sidera.fit.schedule import learning_rate

        start = time.process_time()
        loss = self.model.loss(batch)
        (loss.total / loss.count).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, len(self.seconds), self.total_steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seconds.append(time.process_time() - start)
        return loss.total.item() / loss.count

    def validation(self, batches: list[Any]) -> float:
        """Sum over codes of -log p, averaged over the targets of ``batches``."""
        import torch

        self.model.eval()
        with torch.no_grad():
            losses = [self.model.loss(batch) for batch in batches]
        self.model.train()
        return float(sum(loss.total for loss in losses)) / sum(loss.count for loss in losses)


def counted_gflops(lazy_ff: int, codebook_size: int, targets: float) -> dict[str, float]:
    """Forward and backward of one request with ``targets`` targets, by architecture; what embeds events is left out."""
    from sidera.models.counters import Architecture

    layers = ENCODER_LAYERS + DECODER_LAYERS
    shared: dict[str, Any] = {"width": WIDTH, "head_width": WIDTH // HEADS, "codebook_size": codebook_size}
    halves: dict[str, Any] = {"encoder_layers": ENCODER_LAYERS, "decoder_layers": DECODER_LAYERS}
    built = {
        "encoder-decoder": Architecture("encoder_decoder", ff_width=ENCODER_FF, **halves, **shared),
        "lazy decoder": Architecture("lazy", ff_width=lazy_ff, decoder_layers=layers, **shared),
        "naive decoder-only": Architecture("naive", ff_width=ENCODER_FF, decoder_layers=layers, **shared),
    }
    return {name: round(sizes.flops_per_request(CONTEXT + 1, targets) / 1e9, 4) for name, sizes in built.items()}


@dataclass
class Trained:
    """Both contestants after the same steps of one seed."""

    trainers: dict[str, Trainer]
    catalog: Any
    lazy_ff: int
    before: dict[str, float]  # validation loss
    after: dict[str, float]
    curves: dict[str, list[float]]  # loss of every training batch
    targets_per_request: float
    requests: dict[str, int]
    seconds: dict[str, float]  # CPU of the median step

    @property
    def ratio(self) -> float:
        return self.after["lazy decoder"] / self.after["encoder-decoder"]


def train_both(seed: int, steps: int, quick: bool, report_steps: int) -> Trained:
    """One seed; the report's own pathways are timed for ``report_steps`` steps in turn with the two."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        catalog, training, valid = long_histories(Path(folder), seed)
    training, valid = training[:steps], valid[:4] if quick else valid
    full = build(encoder_decoder(), catalog, seed)
    lazy, lazy_ff = matched_lazy(catalog, parameters(full), seed)
    trainers = {"encoder-decoder": Trainer(full, steps), "lazy decoder": Trainer(lazy, steps)}
    before = {name: trainer.validation(valid) for name, trainer in trainers.items()}
    pathways = encoder_decoder(short_term=20, positive_length=256, num_lifelong_queries=16)
    own = Trainer(build(pathways, catalog, seed), steps)
    curves: dict[str, list[float]] = {name: [] for name in trainers}
    torch.manual_seed(seed)
    for number, batch in enumerate(training):
        for name, trainer in trainers.items():
            curves[name].append(trainer.step(batch))
        if number < report_steps:
            own.step(batch)
    after = {name: trainer.validation(valid) for name, trainer in trainers.items()}
    requests = {"training": sum(b.num_histories for b in training), "validation": sum(b.num_histories for b in valid)}
    targets = sum(int(batch.target_ids.numel()) for batch in training) / requests["training"]
    timed = {**trainers, "report's pathways": own} if report_steps else trainers
    seconds = {name: statistics.median(trainer.seconds[2:]) for name, trainer in timed.items()}
    return Trained(trainers, catalog, lazy_ff, before, after, curves, targets, requests, seconds)


def interval(values: list[float]) -> list[float | None]:
    """95 % interval of the mean by Student's t; nothing of a single value."""
    if len(values) < 2:
        return [None, None]
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return [round(statistics.mean(values) + sign * half, 4) for sign in (-1, 1)]


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of the loss; the first one is timed")


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__, flags)
    single_thread()
    steps = 8 if options.quick else STEPS
    seeds = options.seeds[:1] if options.quick else options.seeds
    runs = {}
    for number, seed in enumerate(seeds):
        runs[seed] = train_both(seed, steps, options.quick, 0 if number else 12)
        print(f"seed {seed}: loss ratio {runs[seed].ratio:.4f}", flush=True)
    first = runs[seeds[0]]
    ratios = [run.ratio for run in runs.values()]
    sizes = {name: parameters(trainer.model) for name, trainer in first.trainers.items()}
    apart = abs(sizes["lazy decoder"] / sizes["encoder-decoder"] - 1)
    value: dict[str, Any] = {
        "times_cheaper": round(first.seconds["encoder-decoder"] / first.seconds["lazy decoder"], 2),
        "loss_ratio": round(statistics.mean(ratios), 4),
        "loss_ratio_interval": interval(ratios),
    }
    passed = value["times_cheaper"] >= BAR["times_cheaper"] and apart <= BAR["parameters_within"]
    passed = passed and (options.quick or value["loss_ratio"] <= BAR["loss_ratio_at_most"])
    lazy = first.trainers["lazy decoder"].model
    context = {
        "seeds": seeds,
        "context": CONTEXT,
        "width": WIDTH,
        "layers": {"encoder-decoder": f"{ENCODER_LAYERS} + {DECODER_LAYERS}", "lazy decoder": len(lazy.decoder.layers)},
        "feed-forward of the lazy decoder": first.lazy_ff,
        "batch_size": BATCH_SIZE,
        "steps": steps,
        "parameters": sizes,
        "parameters outside tables": {name: outside_tables(one.model) for name, one in first.trainers.items()},
    }
    details = {
        "cpu_seconds_per_step": {name: round(seconds, 4) for name, seconds in first.seconds.items()},
        "loss_ratio": {seed: round(run.ratio, 4) for seed, run in runs.items()},
        "validation_loss": {seed: _rounded(run.after) for seed, run in runs.items()},
        "validation_loss_before_training": {seed: _rounded(run.before) for seed, run in runs.items()},
        "training_loss_every_10_steps": {
            name: [round(statistics.mean(curve[at : at + 10]), 3) for at in range(0, steps, 10)]
            for name, curve in first.curves.items()
        },
        "counted_gflops_per_request": counted_gflops(
            first.lazy_ff, first.catalog.level_sizes[0], first.targets_per_request
        ),
        "targets_per_request": round(first.targets_per_request, 2),
        "requests": {seed: run.requests for seed, run in runs.items()},
        "world": {**WORLD, "users": USERS, "days": DAYS},
    }
    for name, entry in details.items():
        print(f"{name}: {entry}")
    finish("lazy", value, BAR, passed, context, quick=options.quick, details=details)


def _rounded(losses: dict[str, float]) -> dict[str, float]:
    return {name: round(loss, 4) for name, loss in losses.items()}


if __name__ == "__main__":
    main()
