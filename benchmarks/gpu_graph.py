"""Beam searches recorded as CUDA graphs, held equal to the same searches step by step, and timed: for ``gpu.py``.

On the CPU a recording is a function that is called again, which checks the script and the padding, and nothing of CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from gpu_models import LARGE_HISTORY, SMALL, build, repeated, world_for
from sidera.decode.beam import beam_search
from sidera.decode.eligible import Allowed
from sidera.decode.graph import GraphedSearch

CLOSE = 1e-4  # of scores: padded shapes may be multiplied by another kernel


def again(call: Callable[[], None]) -> Callable[[], None]:
    call()
    return call


def recorded(name: str, device: str, batch_size: int, tiny: bool, seconds: float) -> dict[str, Any]:
    """Equality over batches of several lengths, with exclusions and masks; milliseconds by steps and recorded."""
    world, longest = world_for(name, 300 if tiny else 12_000), 6 if tiny else LARGE_HISTORY[name]
    model = build(name, world, max_history=longest, **(SMALL[name] if tiny else {})).to(device).eval()
    on_gpu = torch.device(device).type == "cuda"
    search = GraphedSearch(model, world.trie, None if on_gpu else again)
    settings: dict[str, Any] = {"width": 10 if tiny else 50, "num_results": 10}
    rng, problems, off, same = np.random.default_rng(0), [], 0.0, []
    for seed, share in ((5, None), (6, None), (7, 0.01 if not tiny else 0.3), (8, None)):
        batch = world.batch("history", batch_size, longest, seed=seed).to(device)
        chosen = None if share is None else rng.random((batch_size, world.trie.num_items)) < share
        bars: dict[str, Any] = {"exclude": (batch.item_ids, batch.events.offsets)} if seed % 2 else {}
        bars |= {} if chosen is None else {"allowed": Allowed.of_items(world.trie, chosen)}
        with torch.inference_mode():
            context = model.context(batch)
            for _ in range(2):
                found = search(context, **settings, **bars)
                expected = beam_search(model, context, world.trie, **settings, **bars)
                same.append(float((found.item_ids == expected.item_ids).double().mean()))
                both = found.valid_mask & expected.valid_mask
                off = max(off, float((found.scores - expected.scores)[both].abs().max()) if both.any() else 0.0)
    if search.reasons:
        problems.append(f"not recorded: {search.reasons}")
    if off > CLOSE * 20 or min(same) < 0.99:
        problems.append(f"scores differ by {off:.1e}, {min(same):.3f} of the places hold the same item")
    with torch.inference_mode():
        batch = world.batch("history", batch_size, longest, seed=5).to(device)
        context = model.context(batch)
        calls = {
            "context": partial(model.context, batch),
            "steps": partial(beam_search, model, context, world.trie, **settings),
            "graph": partial(search, context, **settings),
        }
        times = {
            f"{what}_ms": round(1e3 * float(np.median(repeated(call, device, seconds / 3, 100))), 3)
            for what, call in calls.items()
        }
    return {
        **times,
        "score_difference": off,
        "same_places": min(same),
        "plans": len(search._plans),
        "problems": problems,
    }
