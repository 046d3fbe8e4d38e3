"""Claim `hstu`: a training step of our HSTU against the public PyTorch code, same rows, same sizes, one thread.

    git clone https://github.com/meta-recsys/generative-recommenders peers/generative-recommenders
    pip install --no-deps --target peers/site fbgemm-gpu-cpu==1.8.0
    PYTHONPATH=peers/site:peers/generative-recommenders python benchmarks/hstu.py [--quick]

A step is forward, backward and an AdamW update on 128 users of MovieLens-1M, the newest 200 events of each (random
histories of like lengths where the data is not there), with the sizes of the public configuration
`ml-1m/hstu-sampled-softmax-n128-final.gin`: 2 blocks, width 50, one head, dropout 0.2, 128 negatives, cosines over
0.05. The peer is the published package itself, run as its trainer calls it: histories padded to 211 places, dense
squares, and 128 negatives drawn for each target. It computes in f32 on a CPU, and so do we here. Three ratios of CPU
time:

* `step`: as each trains by default; ours shares its 128 negatives among the targets of a batch;
* `step_same_negatives`: ours too draws 128 negatives for each target;
* `encoder`: from item vectors to states, forward and backward, without a loss.

Before any timing both encoders get the same weights, and their states on a batch are compared.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness import arguments, finish, interleaved, single_thread, tuned_allocator

SEED, BATCH_SIZE, MAX_HISTORY, EXTRA = 0, 128, 200, 11  # EXTRA: places that the peer keeps behind a history
WIDTH, LAYERS, HEADS, DROPOUT, NEGATIVES, TEMPERATURE = 50, 2, 1, 0.2, 128, 0.05
BAR = {"step": 2.5}
ML1M = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "ml-1m"


def log() -> tuple[Any, str]:
    """A data set and where it is from."""
    import numpy as np
    import pyarrow as pa

    from sidera.data.config import DataConfig, load_dataset
    from sidera.data.schema import build_dataset

    if ML1M.exists():
        return load_dataset(ML1M, DataConfig(min_rating=1.0)), "ml-1m, all ratings"
    rng = np.random.default_rng(SEED)
    users = np.repeat(np.arange(6_040), np.clip(rng.geometric(1 / 145, 6_040) + 19, 20, 2_000))
    items = np.concatenate([np.arange(3_416), rng.integers(3_416, size=len(users) - 3_416)])
    events = {"user": users.astype(str), "item": items.astype(str), "time": rng.integers(10**8, size=len(users))}
    return build_dataset("random", pa.table(events), pa.table({"key": np.unique(events["item"])})), "random histories"


def batches_of(count: int) -> tuple[list[Any], Any, str]:
    """Batches of users' newest windows, as both contestants get them."""
    from itertools import islice

    from sidera.batch import Reads
    from sidera.data.batches import PackedSequences
    from sidera.data.config import make_split
    from sidera.data.features import FeatureSchema
    from sidera.data.items import ItemTable
    from sidera.data.reading import Reading

    dataset, source = log()
    reading = Reading(FeatureSchema(), ItemTable.plain(dataset.num_items), Reads(MAX_HISTORY)).over(dataset)
    rows = PackedSequences(reading, make_split(dataset), BATCH_SIZE, seed=SEED, windows="last")
    return list(islice(rows.batches(0), count)), dataset, source


def our_model(num_items: int, loss: Any = "sampled") -> Any:
    import torch

    from sidera.models.retrievers.hstu import HSTU

    torch.manual_seed(SEED)
    config = HSTU.Config(
        max_history=MAX_HISTORY + EXTRA, width=WIDTH, num_layers=LAYERS, num_heads=HEADS, dropout=DROPOUT,
        num_negatives=NEGATIVES, temperature=TEMPERATURE, loss=loss,
    )  # fmt: skip
    catalog: Any = SimpleNamespace(item_keys=range(num_items))
    return HSTU(config, catalog)


def public() -> SimpleNamespace:
    """The parts of the public package; its absence ends the script with how to get it."""
    names = {
        "losses": "modeling.sequential.autoregressive_losses",
        "embeddings": "modeling.sequential.embedding_modules",
        "hstu": "modeling.sequential.hstu",
        "inputs": "modeling.sequential.input_features_preprocessors",
        "outputs": "modeling.sequential.output_postprocessors",
        "softmax": "modeling.sequential.losses.sampled_softmax",
        "dot": "rails.similarities.dot_product_similarity_fn",
    }
    try:
        import_module("fbgemm_gpu")
        parts = {part: import_module(f"generative_recommenders.research.{name}") for part, name in names.items()}
    except ImportError as error:
        sys.exit(f"the public code cannot be imported ({error}); the first lines of this script say how to get it")
    return SimpleNamespace(**parts)


def public_model(num_items: int) -> tuple[Any, Any, Any]:
    """(model, loss, sampler of negatives) with the sizes of the published configuration."""
    import torch

    parts = public()
    torch.manual_seed(SEED)
    embeddings = parts.embeddings.LocalEmbeddingModule(num_items=num_items, item_embedding_dim=WIDTH)
    model = parts.hstu.HSTU(
        max_sequence_len=MAX_HISTORY, max_output_len=EXTRA, embedding_dim=WIDTH, num_blocks=LAYERS, num_heads=HEADS,
        linear_dim=WIDTH // HEADS, attention_dim=WIDTH // HEADS, normalization="rel_bias", linear_config="uvqk",
        linear_activation="silu", linear_dropout_rate=DROPOUT, attn_dropout_rate=0.0, embedding_module=embeddings,
        similarity_module=parts.dot.DotProductSimilarity(),
        input_features_preproc_module=parts.inputs.LearnablePositionalEmbeddingInputFeaturesPreprocessor(
            max_sequence_len=MAX_HISTORY + EXTRA, embedding_dim=WIDTH, dropout_rate=DROPOUT
        ),
        output_postproc_module=parts.outputs.L2NormEmbeddingPostprocessor(embedding_dim=WIDTH, eps=1e-6),
        verbose=False,
    )  # fmt: skip
    loss = parts.softmax.SampledSoftmaxLoss(NEGATIVES, TEMPERATURE, model=model)
    sampler = parts.losses.LocalNegativesSampler(
        num_items, embeddings._item_emb, list(range(1, num_items + 1)), l2_norm=True, l2_norm_eps=1e-6
    )
    return model, loss, sampler


def as_public(batch: Any) -> dict[str, Any]:
    """One of our batches as the public code reads it: padded, the target behind the history, ids from 1."""
    import torch

    lengths, width = batch.lengths, MAX_HISTORY + EXTRA
    ids, times = (torch.zeros(len(lengths), width, dtype=torch.int64) for _ in range(2))
    rows, places = batch.events.row_ids, torch.arange(batch.num_events) - batch.events.offsets[batch.events.row_ids]
    ids[rows, places], times[rows, places] = batch.item_ids + 1, batch.events.times
    everyone, following = torch.arange(len(lengths)), batch.target_ids
    if batch.targets.kind == "event":  # one after every event
        following = following[batch.events.offsets[1:] - 1]
    ids[everyone, lengths], times[everyone, lengths] = following + 1, batch.requests.as_of
    return {"lengths": lengths, "ids": ids, "payloads": {"timestamps": times}}


def public_states(model: Any, rows: dict[str, Any]) -> tuple[Any, Any]:
    """((B, N, D) input vectors, (B, N, D) states), as the public trainer computes them."""
    vectors = model.get_item_embeddings(rows["ids"])
    return vectors, model(
        past_lengths=rows["lengths"], past_ids=rows["ids"], past_embeddings=vectors, past_payloads=rows["payloads"]
    )


def public_loss(parts: tuple[Any, Any, Any], rows: dict[str, Any]) -> Any:
    model, loss, sampler = parts
    vectors, states = public_states(model, rows)
    value, _ = loss(
        lengths=rows["lengths"], output_embeddings=states[:, :-1], supervision_ids=rows["ids"][:, 1:],
        supervision_embeddings=vectors[:, 1:], supervision_weights=(rows["ids"][:, 1:] != 0).float(),
        negatives_sampler=sampler, **rows["payloads"],
    )  # fmt: skip
    return value


def own_negatives_loss(model: Any, batch: Any) -> Any:
    """Our encoder under the public loss: 128 negatives for each target."""
    from sidera.nn.sampled_softmax import own_softmax

    targets = batch.target_ids
    return own_softmax(model.states(batch), model.item.weight, targets, NEGATIVES, TEMPERATURE) / len(targets)


def stepper(model: Any, loss: Callable[[Any], Any], batches: list[Any]) -> Callable[[], None]:
    """A call that takes the next training step."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    remaining: Iterator[Any] = iter([*batches[-1:], *batches])  # the first call warms up
    model.train()

    def step() -> None:
        loss(next(remaining)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def largest_difference(ours: Any, theirs: Any, batch: Any) -> float:
    """Of any number of the normalised states, with their weights copied into our model."""
    import torch
    import torch.nn.functional as F

    ours.eval(), theirs.eval()
    with torch.no_grad():
        ours.item.weight.copy_(theirs._embedding_module._item_emb.weight[1:])
        ours.encoder.position.weight.copy_(theirs._input_features_preproc._pos_emb.weight)
        for block, layer in zip(ours.encoder.blocks, theirs._hstu._attention_layers, strict=True):
            gate, value, query, key = layer._uvqk.chunk(4, dim=1)
            block.gate_query_key_value.weight.copy_(torch.cat((gate, query, key, value), dim=1).T)
            block.by_position.copy_(layer._rel_attn_bias._pos_w[: MAX_HISTORY + EXTRA].flip(0))
            block.by_time.copy_(layer._rel_attn_bias._ts_w)
            block.out.load_state_dict(layer._o.state_dict())
        rows, places = batch.events.row_ids, torch.arange(batch.num_events) - batch.events.offsets[batch.events.row_ids]
        _, states = public_states(theirs, as_public(batch))
        difference = F.normalize(ours.states(batch), dim=1) - states[rows, places]
    return float(difference.abs().max())


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__)
    single_thread()
    rounds = 2 if options.quick else 12
    batches, dataset, source = batches_of(rounds)
    num_items = dataset.num_items
    theirs = public_model(num_items)
    padded = [as_public(batch) for batch in batches]
    apart = largest_difference(our_model(num_items), theirs[0], batches[0])
    print(f"the same weights give the same states: largest difference {apart:.1e}")
    if not apart < 1e-4:
        sys.exit("the two models are not the same")
    ours, own, encoder = (our_model(num_items) for _ in range(3))
    dense = public_model(num_items)[0]
    seconds = interleaved(
        {
            "ours": stepper(ours, lambda batch: ours.loss(batch).total / batch.num_events, batches),
            "public": stepper(theirs[0], lambda rows: public_loss(theirs, rows), padded),
            "ours_own_negatives": stepper(own, lambda batch: own_negatives_loss(own, batch), batches),
            "ours_encoder": stepper(encoder, lambda batch: encoder.states(batch).sum(), batches),
            "public_encoder": stepper(dense, lambda rows: public_states(dense, rows)[1].sum(), padded),
        },
        rounds,
    )
    total = {name: sum(values) for name, values in seconds.items()}
    value = {
        "step": round(total["public"] / total["ours"], 2),
        "step_same_negatives": round(total["public"] / total["ours_own_negatives"], 2),
        "encoder": round(total["public_encoder"] / total["ours_encoder"], 2),
    }
    for name, spent in total.items():
        print(f"{name:20s} {1e3 * spent / rounds:8.1f} CPU-ms a step")
    context = {
        "seed": SEED, "data": source, "batch_size": BATCH_SIZE, "max_history": MAX_HISTORY, "steps": rounds,
        "events_per_step": round(sum(batch.num_events for batch in batches) / rounds), "num_items": num_items,
        "states_apart": apart, "cpu_seconds_per_step": {name: spent / rounds for name, spent in total.items()},
    }  # fmt: skip
    finish("hstu", value, BAR, value["step"] >= BAR["step"], context, options.quick, {"cpu_seconds": seconds})


if __name__ == "__main__":
    main()
