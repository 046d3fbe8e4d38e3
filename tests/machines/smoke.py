"""What an other processor is asked for, in one process: python smoke.py RUN_FOLDER -> one JSON object.

Answers of a run that was trained elsewhere, and the losses of a tiny TIGER trained here in both number formats, and
what it answers.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch

from sidera.data.reading import Reading, Wanted
from sidera.decode.beam import beam_search
from sidera.engine.recommender import Recommender
from sidera.models import build_model, parse_model

SECTION = {
    "name": "tiger", "width": 32, "num_layers": 1, "num_heads": 2, "head_width": 16, "ff_width": 64, "dropout": 0.0,
    "max_history": 4,
}  # fmt: skip
STEPS = 8


def trained(catalog: Any, bf16: bool) -> tuple[list[float], torch.nn.Module]:
    """Losses of a few steps, and the model."""
    model = build_model(*parse_model(SECTION), catalog, 0)
    items = torch.randint(catalog.num_items, (32, 3), generator=torch.Generator().manual_seed(1))
    reading = Reading(catalog.schema, catalog.items, model.reads)  # answer the last item
    offsets, wanted = np.arange(33) * 3, Wanted("history", items[:, -1].numpy())
    batch = reading.batch(items.flatten().numpy(), offsets, wanted=wanted)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model.loss(batch)
        (loss.total / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.total.detach()) / loss.count)
    return losses, model.eval()


def main() -> None:
    torch.set_num_threads(1)
    recommender = Recommender.load(sys.argv[1])
    catalog = recommender.catalog
    histories = [["item0003", "item0007"], ["item0001"], []]
    found: dict[str, Any] = {"capability": torch.backends.cpu.get_cpu_capability()}
    found["answers"] = [[answer.item_keys, answer.scores] for answer in recommender.recommend(histories, 5)]
    for bf16 in (False, True):
        losses, model = trained(catalog, bf16)
        model.prepare(torch.bfloat16 if bf16 else torch.float32)
        batch = Reading(catalog.schema, catalog.items, model.reads).batch(np.array([3, 7]), np.array([0, 2]))
        beams = beam_search(model, batch, catalog.trie, width=10, num_results=3)  # type: ignore[arg-type]
        found["bf16" if bf16 else "f32"] = {"losses": losses, "items": beams.item_ids.tolist()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
