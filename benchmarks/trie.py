"""Claim `trie`: a million items become a constraint index in 0.2 s of CPU time and 13 MB, serving order included.

    python benchmarks/trie.py [--quick]

Skewed synthetic codes (three levels of 8,192 codes, code of rank r drawn with probability ~ r^-0.5), built under the
tuned allocator; the median of several builds. Beside it, in a full run: the nested dictionary of the same items that
public constrained decoders use, and what beam search costs outside the model, its logits computed beforehand.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from harness import arguments, finish, interleaved, single_thread, tuned_allocator

SEED = 0
BAR = {"build_cpu_seconds": 0.2, "megabytes": 13.0}
LARGE = (1_000_000, (8192, 8192, 8192))  # items, codes of each level
SMALL = (12_000, (256, 256, 256, 256))


def skewed_codes(num_items: int, level_sizes: Sequence[int], seed: int) -> Any:
    """(N, L) int32 codes, each level drawn by itself with Zipf-like frequencies."""
    import numpy as np

    rng = np.random.default_rng(seed)
    columns = []
    for size in level_sizes:
        share = np.arange(1, size + 1) ** -0.5
        columns.append(rng.permutation(size)[rng.choice(size, num_items, p=share / share.sum())])
    return np.stack(columns, axis=1).astype(np.int32)


def nested_dictionary(codes: Any) -> dict[int, Any]:
    """The usual trie: prefix walked code by code, item ids at the end."""
    root: dict[int, Any] = {}
    for start in range(0, len(codes), 10_000):  # in parts, so that the codes as Python lists do not count as its memory
        for item, sid in enumerate(codes[start : start + 10_000].tolist(), start):
            node = root
            for code in sid[:-1]:
                node = node.setdefault(code, {})
            node.setdefault(sid[-1], []).append(item)
    return root


class Precomputed:
    """A generator whose steps cost nothing: what remains is the decoder's own work."""

    def __init__(self, level_sizes: tuple[int, ...], width: int, normalised: bool) -> None:
        import torch

        random = torch.Generator().manual_seed(SEED)
        self.codebook_id, self.level_sizes = "precomputed", level_sizes
        widths = [1] + [width] * (len(level_sizes) - 1)
        self.logits = [
            2 * torch.randn(1, beams, size, generator=random) for beams, size in zip(widths, level_sizes, strict=True)
        ]
        self.log_norm = [logits.logsumexp(-1) if normalised else None for logits in self.logits]

    def new_cache(self, context: Any, width: int) -> None:
        return None

    def step(self, context: Any, cache: Any, level: int, codes: Any, parents: Any) -> Any:
        from sidera.roles import StepOutput

        log_norm, width = self.log_norm[level], 1 if codes is None else codes.shape[1]
        return StepOutput(self.logits[level][:, :width], None if log_norm is None else log_norm[:, :width])


def bookkeeping(tries: dict[str, Any], rounds: int) -> dict[str, float]:
    """CPU-ms of one beam search less the model, one request, 50 excluded items."""
    import torch

    from sidera.decode.beam import beam_search

    context, seen = SimpleNamespace(num_histories=1), (torch.arange(50), torch.tensor([0, 50]))

    def search(generator: Precomputed, trie: Any, width: int) -> Any:
        return lambda: beam_search(generator, context, trie, width=width, num_results=10, exclude=seen)  # type: ignore[arg-type]

    contestants = {}
    for name, trie in tries.items():
        for width in (50, 512):
            for softmax, normalised in (("softmax here", False), ("softmax in the model", True)):
                generator = Precomputed(trie.level_sizes, width, normalised)
                contestants[f"{name}, beam {width}, {softmax}"] = search(generator, trie, width)
    seconds = interleaved(contestants, rounds)
    return {name: round(1000 * statistics.median(times), 2) for name, times in seconds.items()}


def dictionary_details(codes: Any) -> dict[str, float]:
    """Build time and growth of the peak resident memory of the nested dictionary."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    root = nested_dictionary(codes)
    seconds = time.process_time() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"build_cpu_seconds": round(seconds, 2), "megabytes": round(grown / 1024, 0), "roots": len(root)}


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__)
    single_thread()
    import numpy as np

    from sidera.ops.trie import CodeTrie

    codes = skewed_codes(*LARGE, seed=SEED)
    details: dict[str, Any] = {} if options.quick else {"nested dictionary": dictionary_details(codes)}
    seconds = interleaved({"build": lambda: CodeTrie.build(codes, LARGE[1])}, 5 if options.quick else 21)["build"]
    trie = CodeTrie.build(codes, LARGE[1])
    if not np.array_equal(trie.find(codes), trie.leaf_of_item()):
        raise AssertionError("the trie does not find its own items")
    small = CodeTrie.build(skewed_codes(*SMALL, seed=SEED), SMALL[1])
    details["builds_cpu_seconds"] = [round(value, 4) for value in seconds]
    details["beam search less the model, CPU-ms"] = bookkeeping(
        {"12k items, 4 x 256": small, "1M items, 3 x 8192": trie}, 3 if options.quick else 21
    )
    for name, value in details["beam search less the model, CPU-ms"].items():
        print(f"{name:<50} {value:>7.2f} CPU-ms")
    value = {"build_cpu_seconds": round(statistics.median(seconds), 4), "megabytes": round(trie.nbytes / 1e6, 2)}
    context = {
        "seed": SEED,
        "items": LARGE[0],
        "level_sizes": LARGE[1],
        "nodes": sum(trie.num_nodes),
        "shared_leaves": trie.shared_leaves.size,
        "counted": "codes, offsets, items in serving order, shared leaves",
    }
    passed = all(value[key] <= BAR[key] for key in BAR)
    finish("trie", value, BAR, passed, context, quick=options.quick, details=details)


if __name__ == "__main__":
    main()
