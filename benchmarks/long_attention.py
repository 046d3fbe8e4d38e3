"""What each kind of attention costs on long histories: CPU time of a training step of one block, one thread, f32.

    python benchmarks/long_attention.py [--quick]

Width 64, two heads, default sizes of SASRec's kinds, histories of one length; a step is forward and backward of the
attention and its projections. The value is the time of full attention over that of each kind, for each length. There is
no bar: it says from which length on a kind is worth its loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness import arguments, finish, interleaved, single_thread, tuned_allocator

SEED, WIDTH, HEADS, EVENTS = 0, 64, 2, 4_096  # EVENTS: of all histories of a step


def stepper(kind: Any, length: int) -> Callable[[], None]:
    """A call that takes a step over histories of ``length`` events."""
    import torch

    from sidera.nn.attention_kinds import AttentionKind
    from sidera.ops.attention import layout_of

    torch.manual_seed(SEED)
    module = AttentionKind(kind).build(WIDTH, HEADS)
    rows = max(EVENTS // length, 1)
    layout = layout_of(torch.arange(rows + 1) * length)
    x = torch.randn(rows * length, WIDTH, requires_grad=True)

    def step() -> None:
        module(x, layout).square().mean().backward()

    return step


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__)
    single_thread()
    lengths, rounds = ((64, 1024), 2) if options.quick else ((64, 256, 1024, 4096), 8)
    value, spent = {}, {}
    for length in lengths:
        kinds = ("full", "linear", "mla", "sparse")
        seconds = interleaved({kind: stepper(kind, length) for kind in kinds}, rounds)
        total = {kind: sum(values) / rounds for kind, values in seconds.items()}
        spent[length] = total
        value[length] = {kind: round(total["full"] / total[kind], 2) for kind in kinds if kind != "full"}
        print(length, {kind: f"{1e3 * mean:.1f} CPU-ms" for kind, mean in total.items()}, flush=True)
    context = {"seed": SEED, "width": WIDTH, "heads": HEADS, "events_per_step": EVENTS, "cpu_seconds": spent}
    finish("long_attention", value, None, None, context, options.quick)


if __name__ == "__main__":
    main()
