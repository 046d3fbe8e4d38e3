"""HSTU, the public HSTU code and SASRec on MovieLens-1M: the same sample of 1,500 users, the same split and budget.

    PYTHONPATH=peers/site:peers/generative-recommenders python benchmarks/ml1m_hstu.py [--quick] [--epochs N]

How to get the peer: benchmarks/hstu.py. Protocol: ratings of 4 and more; 1,500 users drawn at random; leave-one-out;
windows of at most 200 events; full ranking of the whole catalogue with all items of the history left out; item-level
hits; fitted without the validation item, which the history of the test contains. All three have width 50, 2 blocks, one
head, dropout 0.2, a sampled softmax with 128 negatives, AdamW with lr 1e-3, 32 windows a step, and as many epochs. Each
takes its best epoch of every fourth by NDCG@10 of validation. Differences between them: the public code draws its
negatives for each target, and so does `hstu_own`, where `hstu` and SASRec share them in a batch; SASRec scores by dot
products, has a feed-forward and reads no times. There is no bar: a log of 1,500 users carries no claim about an
architecture.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness import arguments, finish, single_thread, tuned_allocator
from hstu import MAX_HISTORY, WIDTH, as_public, our_model, public_loss, public_model, public_states

SEED, NUM_USERS, BATCH_SIZE, EVERY = 0, 1_500, 32, 4
ML1M = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "ml-1m"


@dataclass(frozen=True)
class Contestant:
    model: Any
    loss: Callable[[Any], Any]  # batch -> mean over its targets
    scores: Callable[[Any], Any]  # batch -> (B, N)


def contestants(num_items: int) -> dict[str, Contestant]:
    import torch
    import torch.nn.functional as F

    from sidera.models.retrievers.sasrec import SASRec

    hstu, own = our_model(num_items), our_model(num_items, "own")
    catalog: Any = SimpleNamespace(item_keys=range(num_items))
    torch.manual_seed(SEED)
    sasrec = SASRec(SASRec.Config(MAX_HISTORY, WIDTH, 2, 1, dropout=0.2, num_negatives=128), catalog)
    theirs = public_model(num_items)

    def public_scores(batch: Any) -> Any:
        rows = as_public(batch)
        _, states = public_states(theirs[0], rows)
        items = F.normalize(theirs[0].get_item_embeddings(torch.arange(1, num_items + 1)), dim=1)
        return states[torch.arange(batch.num_histories), batch.lengths - 1] @ items.T

    return {
        "hstu": Contestant(hstu, lambda batch: hstu.loss(batch).total / batch.num_events, hstu.item_scores),
        "hstu_own": Contestant(own, lambda batch: own.loss(batch).total / batch.num_events, own.item_scores),
        "sasrec": Contestant(sasrec, lambda batch: sasrec.loss(batch).total / batch.num_events, sasrec.item_scores),
        "public_hstu": Contestant(theirs[0], lambda batch: public_loss(theirs, as_public(batch)), public_scores),
    }


def ranks(one: Contestant, reading: Any, rows: Any) -> Any:
    """(R,) place of each target among the items that its history lacks, from 1."""
    import numpy as np
    import torch

    from sidera.data.batches import eval_batches

    one.model.eval()
    found = np.zeros(len(rows), dtype=np.int64)
    dataset = reading.dataset
    with torch.inference_mode():
        for index, batch in eval_batches(reading, rows, 128):
            scores = one.scores(batch)
            for row, place in enumerate(index):
                target = int(rows.target_ids[place])
                own = scores[row, target].clone()
                seen = dataset.item_ids[rows.starts[place] : rows.ends[place]]
                scores[row, torch.from_numpy(seen)] = -torch.inf
                found[place] = 1 + int((scores[row] >= own).sum()) - int(scores[row, target] >= own)
    return found


def ndcg(places: Any) -> Any:
    """(R,) NDCG@10"""
    import numpy as np

    return np.where(places <= 10, 1 / np.log2(places + 1), 0.0)


def trained(name: str, one: Contestant, source: Any, split: Any, epochs: int) -> dict[str, Any]:
    """Train, keep the best of every fourth epoch, and rank the test rows with it."""
    import copy

    import torch

    torch.manual_seed(SEED)
    optimizer = torch.optim.AdamW(one.model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    started, best, weights, best_epoch = time.process_time(), -1.0, None, 0
    for epoch in range(1, epochs + 1):
        one.model.train()
        for batch in source.batches(epoch):
            one.loss(batch).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if epoch % EVERY == 0 or epoch == epochs:
            valid = float(ndcg(ranks(one, source.reading, split.valid)).mean())
            print(f"{name} epoch {epoch}: validation NDCG@10 {valid:.4f}", flush=True)
            if valid > best:
                best, best_epoch, weights = valid, epoch, copy.deepcopy(one.model.state_dict())
    spent = time.process_time() - started
    one.model.load_state_dict(weights)
    places = ranks(one, source.reading, split.test)
    return {"places": places, "valid_ndcg": best, "best_epoch": best_epoch, "cpu_minutes": spent / 60}


def data(num_users: int = NUM_USERS) -> tuple[Any, Any]:
    """(batches of the sampled users, split)"""
    import numpy as np

    from sidera.batch import Reads
    from sidera.data.batches import PackedSequences
    from sidera.data.config import load_dataset, make_split
    from sidera.data.features import FeatureSchema
    from sidera.data.items import ItemTable
    from sidera.data.reading import Reading

    if not ML1M.exists():
        sys.exit(f"no data at {ML1M.name}")
    dataset = load_dataset(ML1M)
    chosen = np.random.default_rng(SEED).choice(dataset.num_users, num_users, replace=False)
    dataset = dataset.keep(np.isin(dataset.event_users, chosen))
    split = make_split(dataset)
    reading = Reading(FeatureSchema(), ItemTable.plain(dataset.num_items), Reads(MAX_HISTORY)).over(dataset)
    return PackedSequences(reading, split, BATCH_SIZE, seed=SEED), split


def main() -> None:
    tuned_allocator()
    options = arguments(
        __doc__, lambda parser: parser.add_argument("--epochs", type=int, default=16, help="passes over the data")
    )
    single_thread()
    from sidera.eval.bootstrap import intervals, paired_test

    source, split = data(150 if options.quick else NUM_USERS)
    num_items, epochs = source.reading.dataset.num_items, 1 if options.quick else options.epochs
    results = {name: trained(name, one, source, split, epochs) for name, one in contestants(num_items).items()}
    users = split.test.user_ids
    value = {}
    for name, result in results.items():
        places = result.pop("places")
        result["ndcg"] = ndcg(places)
        found = intervals({"ndcg@10": result["ndcg"], "recall@10": (places <= 10) * 1.0}, users)
        value[name] = {metric: asdict(estimate) for metric, estimate in found.items()} | {
            key: result[key] for key in ("best_epoch", "cpu_minutes")
        }
    for ours in ("hstu", "hstu_own"):
        value[f"{ours}_minus"] = {
            name: asdict(paired_test(results[ours]["ndcg"], results[name]["ndcg"], users))
            for name in ("sasrec", "public_hstu")
        }
    context = {
        "seed": SEED, "users": len(users), "items": num_items, "epochs": epochs, "batch_size": BATCH_SIZE,
        "protocol": " ".join((__doc__ or "").split("Protocol:")[1].split()),
    }  # fmt: skip
    finish("ml1m_hstu", value, None, None, context, options.quick)


if __name__ == "__main__":
    main()
