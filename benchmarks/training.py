"""Claim `training`: a TIGER step (bf16, packed) against transformers' T5 of the same size on Beauty's history lengths.

    python benchmarks/training.py [--quick]

A step is forward, backward and a fused AdamW update of 256 rows (history -> next item), dropout 0.1, cross-entropy over
the whole vocabulary, one thread, one allocator for all. Contestants on the same rows:

* ours: `Tiger.loss` under bf16 autocast (f32 where bf16 is emulated), on the batches of `PrefixRows` (by length);
* padded: T5 in f32, rows in random order, padded to 20 items: how public TIGER code trains;
* sorted: T5 at its best, on the same bucketed batches padded to their longest row, under bf16 autocast.

The value is CPU time of each peer over all rounds divided by ours. For the log: ours in f32 and T5 bucketed in f32.
Without bf16 the last figure is not measured, and the claim is neither passed nor failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from decode import batch_of
from harness import NEEDS_BF16, arguments, finish, has_bf16, interleaved, single_thread, tuned_allocator
from t5_twin import as_t5, padded_tokens

SEED, BATCH_SIZE, MAX_HISTORY = 0, 256, 20
BAR = {"over_padded_f32": 3.5, "over_sorted_bf16": 1.4}
LEVEL_SIZES = (256, 256, 256, 256)
BEAUTY = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "amazon2014_beauty"


def history_lengths() -> tuple[Any, str]:
    """Length of the history of every training row (leave-one-out, 20 newest items), and where it is from."""
    import numpy as np

    if BEAUTY.exists():
        from sidera.batch import Reads
        from sidera.data.batches import PrefixRows
        from sidera.data.config import load_dataset, make_split
        from sidera.data.features import FeatureSchema
        from sidera.data.items import ItemTable
        from sidera.data.reading import Reading

        dataset = load_dataset(BEAUTY)
        reading = Reading(FeatureSchema(), ItemTable.plain(dataset.num_items), Reads(MAX_HISTORY)).over(dataset)
        rows = PrefixRows(reading, make_split(dataset), BATCH_SIZE, seed=SEED)
        return rows.ends - reading.starts(rows.user_ids, rows.ends), "amazon2014_beauty"
    users = 5 + np.random.default_rng(SEED).geometric(1 / 4.6, 22_000) - 1  # events: 8.6 on average, 5 at least
    return np.minimum(np.concatenate([np.arange(1, count - 2) for count in users]), MAX_HISTORY), "geometric, mean 8.6"


def make_batches(num_batches: int, codes: Any, bucketed: bool) -> tuple[list[Any], dict[str, Any]]:
    """Batches of random items with Beauty's lengths; ``codes`` (N, L). ``bucketed`` cuts the same rows by length."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    lengths, source = history_lengths()
    lengths = rng.choice(lengths, num_batches * BATCH_SIZE, replace=False)
    if bucketed:
        lengths = -np.sort(-lengths)
    rows = lengths.reshape(num_batches, BATCH_SIZE)
    batches = []
    for index in rng.permutation(num_batches):
        offsets = np.concatenate([[0], np.cumsum(rows[index])])
        items, targets = rng.integers(len(codes), size=offsets[-1]), rng.integers(len(codes), size=BATCH_SIZE)
        batches.append(batch_of(codes, items, offsets, targets))
    return batches, {"lengths": source, "mean_items": round(float(lengths.mean()), 2)}


def stepper(model: Any, loss: Callable[[Any, Any], Any], batches: list[Any], bf16: bool) -> Callable[[], None]:
    """A call that takes the next training step."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    remaining: Iterator[Any] = iter([*batches[-1:], *batches])  # the first call warms up
    model.train()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value = loss(model, next(remaining))
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def target_tokens(model: Any, batch: Any) -> Any:
    """(B, L) tokens of what should follow."""
    return model.item_tokens(batch.items.codes)[batch.targets.items]


def t5_batches(model: Any, batches: list[Any], num_items: int | None) -> list[dict[str, Any]]:
    prepared = []
    for batch in batches:
        tokens, mask = padded_tokens(model, batch, num_items)
        prepared.append({"input_ids": tokens, "attention_mask": mask, "labels": target_tokens(model, batch)})
    return prepared


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__)
    import numpy as np
    import torch

    from sidera.models.generators.tiger import Tiger

    single_thread()
    torch.manual_seed(SEED)
    rounds = 2 if options.quick else 24
    codes = np.random.default_rng(SEED).integers(256, size=(12_101, 4)).astype(np.int32)
    catalog: Any = SimpleNamespace(codes=codes, level_sizes=LEVEL_SIZES, codebook_id="benchmark")

    def tiger() -> Any:
        return Tiger(Tiger.Config(max_history=MAX_HISTORY, normalize="vocabulary"), catalog)

    def our_loss(model: Any, batch: Any) -> Any:
        return model.loss(batch).total / BATCH_SIZE

    def t5_loss(model: Any, batch: Any) -> Any:
        return model(**batch, use_cache=False).loss

    model = tiger()
    bucketed, context = make_batches(rounds, codes, bucketed=True)
    mixed, _ = make_batches(rounds, codes, bucketed=False)
    sorted_batches = t5_batches(model, bucketed, None)
    bf16 = has_bf16()
    ours = "ours_bf16" if bf16 else "ours_f32"
    contestants = {
        ours: stepper(tiger(), our_loss, bucketed, bf16=bf16),
        "t5_padded_f32": stepper(as_t5(model), t5_loss, t5_batches(model, mixed, MAX_HISTORY), bf16=False),
    }
    if bf16:
        contestants["t5_sorted_bf16"] = stepper(as_t5(model), t5_loss, sorted_batches, bf16=True)
    if not options.quick:
        contestants["ours_f32"] = stepper(tiger(), our_loss, bucketed, bf16=False)
        contestants["t5_sorted_f32"] = stepper(as_t5(model), t5_loss, sorted_batches, bf16=False)
    seconds = interleaved(contestants, rounds)
    total = {name: sum(values) for name, values in seconds.items()}
    value: dict[str, Any] = {
        "over_padded_f32": round(total["t5_padded_f32"] / total[ours], 2),
        "over_sorted_bf16": round(total["t5_sorted_bf16"] / total[ours], 2) if bf16 else NEEDS_BF16,
    }
    steps = {name: round(seconds / rounds, 4) for name, seconds in total.items()}
    for name, mean in steps.items():
        print(f"{name:16s} {1e3 * mean:8.1f} CPU-ms per step")
    context |= {"seed": SEED, "ours": ours, "batch_size": BATCH_SIZE, "steps": rounds, "cpu_seconds_per_step": steps}
    passed = all(value[name] >= bar for name, bar in BAR.items()) if bf16 else None
    finish("training", value, BAR, passed, context, options.quick, {"cpu_seconds": seconds})


if __name__ == "__main__":
    main()
