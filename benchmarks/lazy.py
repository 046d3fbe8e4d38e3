"""Claim `lazy`: a training step of the lazy decoder against the encoder-decoder, at equal parameters and like loss.

    python benchmarks/lazy.py [--quick] [--seed N]

Both read the same 512 newest events of the same requests, in a log of the simulated world with long histories, and are
trained for the same steps on the same batches, one step of each in turn, one thread, f32. The encoder-decoder has as
many encoder as decoder layers (the paper's Enc:Dec 1:1), the lazy decoder as many layers as both together, and its
feed-forwards are widened until the parameters agree. Validation requests are later than all training requests.

Value: CPU time of the encoder-decoder's steps over the lazy decoder's, and the lazy decoder's validation loss over the
encoder-decoder's. For the log: the encoder-decoder with the report's own pathways (20 + 256 + queries), counted FLOPs
of one request, and what a naive decoder-only model would cost by the same count: all layers over all events.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import arguments, finish, single_thread, tuned_allocator

BAR = {"times_cheaper": 6.0, "loss_ratio_at_most": 1.02, "parameters_within": 0.02}
CONTEXT, WIDTH, HEADS, ENCODER_FF, ENCODER_LAYERS, DECODER_LAYERS = 512, 64, 4, 128, 3, 3
BATCH_SIZE, STEPS, VALID_SHARE, LR, WARMUP = 32, 300, 0.15, 3e-3, 20
WORLD = {"num_items": 1000, "num_creators": 80, "max_items_per_day": 100, "exit_bias": -4.5, "return_bias": 1.5}
USERS, DAYS = 250, 16


def long_histories(folder: Path, seed: int) -> tuple[Any, list[Any], list[Any]]:
    """A catalogue, STEPS training batches in random order, later validation batches; every history has 512 events."""
    import numpy as np

    from sidera.catalog.build import build_catalog
    from sidera.catalog.config import CatalogConfig
    from sidera.data.batches import RequestRows
    from sidera.data.config import DataConfig, load_dataset, make_views
    from sidera.sim.config import world_config
    from sidera.sim.simulate import simulate

    simulate(world_config("easy", WORLD), USERS, DAYS, folder / "log", seed)
    every, positives = make_views(load_dataset(folder / "log"), DataConfig(positive="long_view"))
    codes = CatalogConfig(vectors=("tfidf", "behaviour"), num_levels=3, codebook_size=32, balanced=True)
    catalog, _ = build_catalog(positives.dataset, positives.split, codes, every.schema)
    source = RequestRows(every.dataset, every.split, every.schema, CONTEXT, BATCH_SIZE, order="time")
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
    shared = {"width": WIDTH, "num_heads": HEADS, "num_kv_groups": HEADS, "ff_width": ENCODER_FF}
    return {"name": "onerec", "max_history": CONTEXT, **shared, **layers, **pathways}


def lazy_decoder(ff_width: int) -> dict[str, Any]:
    """[model] of the lazy decoder."""
    shared = {"width": WIDTH, "num_heads": HEADS, "num_kv_groups": HEADS, "ff_width": ff_width}
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
    halves = {"encoder_layers": ENCODER_LAYERS, "decoder_layers": DECODER_LAYERS}
    built = {
        "encoder-decoder": Architecture("encoder_decoder", ff_width=ENCODER_FF, **halves, **shared),
        "lazy decoder": Architecture("lazy", ff_width=lazy_ff, decoder_layers=layers, **shared),
        "naive decoder-only": Architecture("naive", ff_width=ENCODER_FF, decoder_layers=layers, **shared),
    }
    return {name: round(sizes.flops_per_request(CONTEXT + 1, targets) / 1e9, 4) for name, sizes in built.items()}


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__, lambda parser: parser.add_argument("--seed", type=int, default=0))
    single_thread()
    import torch

    with tempfile.TemporaryDirectory() as folder:
        catalog, training, valid = long_histories(Path(folder), options.seed)
    steps = 8 if options.quick else STEPS
    valid = valid[:4] if options.quick else valid
    full = build(encoder_decoder(), catalog, options.seed)
    lazy, lazy_ff = matched_lazy(catalog, parameters(full), options.seed)
    pathways = build(
        encoder_decoder(short_term=20, positive_length=256, num_lifelong_queries=16), catalog, options.seed
    )
    trainers = {
        "encoder-decoder": Trainer(full, steps),
        "lazy decoder": Trainer(lazy, steps),
    }
    own = Trainer(pathways, steps)
    before = {name: trainer.validation(valid) for name, trainer in trainers.items()}
    curves: dict[str, list[float]] = {name: [] for name in trainers}
    torch.manual_seed(options.seed)
    for number, batch in enumerate(training[:steps]):
        for name, trainer in trainers.items():
            curves[name].append(trainer.step(batch))
        if number < 12:
            own.step(batch)
    after = {name: trainer.validation(valid) for name, trainer in trainers.items()}

    times = {name: statistics.median(trainer.seconds[2:]) for name, trainer in trainers.items()}
    sizes = {name: parameters(trainer.model) for name, trainer in trainers.items()}
    apart = abs(sizes["lazy decoder"] / sizes["encoder-decoder"] - 1)
    value = {
        "times_cheaper": round(times["encoder-decoder"] / times["lazy decoder"], 2),
        "loss_ratio": round(after["lazy decoder"] / after["encoder-decoder"], 4),
    }
    passed = value["times_cheaper"] >= BAR["times_cheaper"] and apart <= BAR["parameters_within"]
    passed = passed and (options.quick or value["loss_ratio"] <= BAR["loss_ratio_at_most"])
    targets = sum(int(batch.target_ids.numel()) for batch in training) / sum(batch.num_histories for batch in training)
    context = {
        "seed": options.seed,
        "context": CONTEXT,
        "width": WIDTH,
        "layers": {"encoder-decoder": f"{ENCODER_LAYERS} + {DECODER_LAYERS}", "lazy decoder": len(lazy.decoder.layers)},
        "feed-forward of the lazy decoder": lazy_ff,
        "batch_size": BATCH_SIZE,
        "steps": steps,
        "parameters": sizes,
        "parameters outside tables": {name: outside_tables(trainer.model) for name, trainer in trainers.items()},
    }
    details = {
        "cpu_seconds_per_step": {name: round(seconds, 4) for name, seconds in times.items()},
        "cpu_seconds_per_step, report's pathways": round(statistics.median(own.seconds[2:]), 4),
        "validation_loss": {name: round(loss, 4) for name, loss in after.items()},
        "validation_loss_before_training": {name: round(loss, 4) for name, loss in before.items()},
        "training_loss_every_10_steps": {
            name: [round(statistics.mean(curve[at : at + 10]), 3) for at in range(0, steps, 10)]
            for name, curve in curves.items()
        },
        "counted_gflops_per_request": counted_gflops(lazy_ff, catalog.level_sizes[0], targets),
        "targets_per_request": round(targets, 2),
        "requests": {
            "training": sum(b.num_histories for b in training[:steps]),
            "validation": sum(b.num_histories for b in valid),
        },
        "world": {**WORLD, "users": USERS, "days": DAYS},
    }
    for name, entry in details.items():
        print(f"{name}: {entry}")
    finish("lazy", value, BAR, passed, context, quick=options.quick, details=details)


if __name__ == "__main__":
    main()
