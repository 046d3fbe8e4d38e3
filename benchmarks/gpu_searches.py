"""What a search on a CUDA device answers, held equal to the CPU's and to exact scoring: for ``benchmarks/gpu.py``.

Like the checks of ``gpu_bodies.py``: 0 is right. ``list_decoder`` gives an error of log-probabilities.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpu_numbers import differs, distance, random
from sidera.batch import Batch, Reads
from sidera.data.features import FeatureSchema
from sidera.data.items import ItemTable
from sidera.data.reading import Reading
from sidera.decode.beam import beam_search
from sidera.decode.eligible import Allowed
from sidera.decode.exact import score_all_leaves
from sidera.decode.sample import sample
from sidera.decode.select import best_first, best_positions
from sidera.decode.session import session_beam_search
from sidera.nn.code_decoder import DecoderSize
from sidera.nn.list_decoder import ListDecoder
from sidera.ops.trie import CodeTrie
from sidera.roles import StepOutput

SIZES = (6, 5, 4)


class Tables:
    """A generator without a network: the logits of every prefix stand in tables of whole 1/1024ths, so that sums are
    exact, equal scores are equal on every device, and only the search is looked at. ``items`` > 1: lists of so many."""

    codebook_id = "tables"

    def __init__(self, histories: int, device: str, items: int = 1, ties: bool = False) -> None:
        self.level_sizes, self.session_length, self.list_beam = SIZES, items, 4
        self.device, self.stream, prefixes = device, SIZES * items, 1
        self.tables = []
        for place, size in enumerate(self.stream):
            table = random(histories, prefixes, size, seed=place)
            self.tables.append((table.round() if ties else (table * 1024).round() / 1024).to(device))
            prefixes *= size

    def context(self, batch: Batch) -> Any:
        class Context:
            num_histories, nbytes = batch.num_histories, 0

        return Context()

    def new_cache(self, context: Any, width: int) -> dict[str, Any]:
        return {"place": 0, "prefix": torch.zeros(context.num_histories, 1, dtype=torch.long, device=self.device)}

    def step(
        self, context: Any, cache: dict[str, Any], level: int, codes: Tensor | None, parents: Tensor | None
    ) -> StepOutput:
        place = cache["place"]
        if codes is not None and parents is not None:
            cache["prefix"] = cache["prefix"].gather(1, parents) * self.stream[place - 1] + codes
        cache["place"] += 1
        each = torch.arange(context.num_histories, device=self.device)[:, None]
        logits = self.tables[place][each, cache["prefix"]]
        return StepOutput(logits, torch.zeros(logits.shape[:2], device=self.device))


def _catalogue() -> tuple[CodeTrie, Batch, tuple[Tensor, Tensor]]:
    """90 items that share some of 120 semantic IDs, a few of them gone; 5 histories, each with two items barred."""
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, size, 90) for size in SIZES], axis=1)
    trie = CodeTrie.build(codes, SIZES, order=rng.permutation(90), alive=rng.random(90) < 0.9)
    barred = torch.from_numpy(rng.integers(0, 90, 10))
    reading = Reading(FeatureSchema(), ItemTable(codes), Reads(1))
    return trie, reading.batch(np.arange(5), np.arange(6)), (barred, torch.arange(6) * 2)


def trie_tables(device: str, dtype: torch.dtype) -> float:
    trie = _catalogue()[0]
    tables, leaves = trie.tensors(device), np.arange(trie.num_leaves)
    asked = torch.from_numpy(leaves).to(device)
    wrong = [
        differs(tables.leaf_codes(asked), torch.from_numpy(trie.leaf_codes(leaves))),
        differs(tables.leaf_starts(asked).long(), torch.from_numpy(np.asarray(trie.leaf_starts(leaves))).long()),
    ]
    return max(wrong)


def best_of_many(device: str, dtype: torch.dtype) -> float:
    """Selection with many equal scores: positions are the CPU's, also where nothing is read back from the device."""
    scores = (random(7, 500) * 2).round().to(dtype)
    return max(
        differs(function(scores.to(device), 20, fixed), function(scores, 20))
        for function in (best_positions, best_first)
        for fixed in (False, True)
    )


def beams(device: str, dtype: torch.dtype) -> float:
    """Beam search: the CPU's answers to the bit, ties, exclusion and masks included; all beams: the exact order."""
    trie, batch, exclude = _catalogue()
    wrong = 0.0
    masks = Allowed.of_items(trie, np.random.default_rng(1).random((5, 90)) < 0.4)
    for ties, allowed in ((False, None), (True, None), (True, masks)):
        here, there = Tables(5, "cpu", ties=ties), Tables(5, device, ties=ties)
        for width in (1, 4, 1000):
            settings: dict[str, Any] = {"width": width, "num_results": 12, "exclude": exclude, "allowed": allowed}
            wanted = beam_search(here, batch, trie, **settings)  # type: ignore[arg-type]
            found = beam_search(there, batch.to(device), trie, **settings)  # type: ignore[arg-type]
            for name in ("item_ids", "leaf_ids", "scores", "sids", "valid_mask"):
                wrong = max(wrong, differs(getattr(found, name), getattr(wanted, name)))
    leaves = score_all_leaves(there, batch.to(device), trie)  # type: ignore[arg-type]
    everything = beam_search(there, batch.to(device), trie, width=1000, num_results=1)  # type: ignore[arg-type]
    return max(wrong, differs(everything.scores[:, 0], leaves.max(1).values))


def lists(device: str, dtype: torch.dtype) -> float:
    """Search over lists of two items: the CPU's answers to the bit."""
    trie, batch, exclude = _catalogue()
    settings: dict[str, Any] = {"length": 2, "width": 6, "code_width": 9, "num_results": 4, "exclude": exclude}
    wanted = session_beam_search(Tables(5, "cpu", items=2), batch, trie, **settings)  # type: ignore[arg-type]
    found = session_beam_search(Tables(5, device, items=2), batch.to(device), trie, **settings)  # type: ignore[arg-type]
    return max(differs(getattr(found, name), getattr(wanted, name)) for name in ("item_ids", "scores", "valid_mask"))


def samples(device: str, dtype: torch.dtype) -> float:
    """The same draws as on the CPU, masked and free; a draw may fall on the other side of a rounded edge."""
    trie, batch, _ = _catalogue()
    share = 1.0
    for mode in ("masked", "free"):
        settings: dict[str, Any] = {"count": 200, "mode": mode, "seed": 3}
        wanted = sample(Tables(5, "cpu"), batch, trie, **settings)  # type: ignore[arg-type]
        found = sample(Tables(5, device), batch.to(device), trie, **settings)  # type: ignore[arg-type]
        share = min(share, float((found.leaf_ids.cpu() == wanted.leaf_ids).double().mean()))
    return float(share < 0.995)


def list_decoder(device: str, dtype: torch.dtype) -> float:
    """A list written step by step has the log-probability that the whole list has at once, and that of the CPU."""
    torch.manual_seed(0)
    decoder = ListDecoder(DecoderSize(32, 2, 4, 4, 48, 0.0), SIZES, 2).eval()
    keys = random(3, 4, 5, 8, seed=1)
    mask = torch.arange(5) < torch.tensor([5, 2, 1])[:, None]
    sids = torch.stack([torch.randint(k, (3, 1, 2), generator=torch.Generator().manual_seed(k)) for k in SIZES], -1)
    with torch.inference_mode():
        wanted = decoder.list_log_probs(sids, [(keys, keys)] * 2, mask)
        decoder, keys, mask, sids = decoder.to(device), keys.to(device), mask.to(device), sids.to(device)
        kvs = [(keys, keys)] * 2
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype != torch.float32):
            whole = decoder.list_log_probs(sids, kvs, mask)
            cache, codes, found = decoder.new_cache(3, 1), None, []
            parents = torch.zeros(3, 1, dtype=torch.long, device=device)
            for item in range(2):
                for level in range(len(SIZES)):
                    logits = decoder.step(cache, kvs, mask, level, codes, None if codes is None else parents)
                    codes = sids[:, :, item, level]
                    found.append(logits.float().log_softmax(-1).gather(-1, codes[..., None])[..., 0])
    stepped = torch.stack(found, -1).view_as(whole)
    return max(distance(whole, wanted), distance(stepped, wanted))


SEARCHES = (trie_tables, best_of_many, beams, lists, samples, list_decoder)
EXACT = ("trie_tables", "beams", "lists", "samples")  # nothing of these is in another number format
