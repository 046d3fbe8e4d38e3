"""Claim `decode`: TIGER's constrained beam search against transformers' `generate` with a trie of dictionaries.

    python benchmarks/decode.py [--quick]

One request at a time, 80 encoder tokens (78 with three levels), one thread, one allocator for both, the same random
weights. The peer is `generate(num_beams=B, prefix_allowed_tokens_fn=...)` walking a nested dictionary, as public
constrained decoders do. Rows:

* parity: f32, scores over the whole vocabulary as T5 has them: the same ten items, scores within 1e-4; and its ratio;
* the ratios with level heads (softmax over a level's codes), f32;
* absolute CPU-ms per request at 12 k items and 50 beams, for TIGER and for sidera's generator (its own tree of 256
  clusters, the same 20 items of history, seen items left out);
* growth: the same TIGER and beams over 12 k, 1 M and 10 M items on 256^4 codes.

The last line's `value` and `bar` hold every row by name. In the context: level heads in bfloat16, where the processor
has it, with the share of the ten items that stay; and int8, which no model here answers with: the time of PyTorch's
int8 products beside f32, and the lists that stay when TIGER's weights alone, not what they are multiplied with, are
rounded to 8 bits a row.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from types import SimpleNamespace
from typing import Any

from harness import NEEDS_BF16, arguments, finish, has_bf16, interleaved, single_thread, tuned_allocator
from t5_twin import BEGIN, as_t5, event_tokens
from trie import skewed_codes

SEED, NUM_RESULTS, ENCODER_TOKENS, NUM_HISTORIES = 0, 10, 80, 8


@dataclass(frozen=True)
class Case:
    name: str
    num_items: int
    level_sizes: tuple[int, ...]
    width: int  # beams
    normalize: str
    bar: float  # HF's CPU time / ours
    rounds: int
    quick: bool


SMALL, LARGE = (12_000, (256,) * 4), (1_000_000, (8192,) * 3)
CASES = (
    Case("12k_B50_vocabulary", *SMALL, 50, "vocabulary", 0.0, 9, True),
    Case("12k_B50", *SMALL, 50, "level", 6.0, 15, True),
    Case("12k_B512", *SMALL, 512, "level", 8.0, 7, False),
    Case("1M_B512", *LARGE, 512, "level", 15.0, 5, False),
)
GROWTH = 1.3  # time of a request over the largest catalogue, of what it takes over 12,000 items
TIGER_MILLISECONDS, SIDERA_MILLISECONDS = 35.0, 15.0  # at 12 k items, 50 beams


def batch_of(codes: Any, item_ids: Any, offsets: Any, target_ids: Any = None) -> Any:
    """Histories over items of which the codes (N, L) are known; ``target_ids``: one a history."""
    from sidera.batch import Reads
    from sidera.data.features import FeatureSchema
    from sidera.data.items import ItemTable
    from sidera.data.reading import Reading, Wanted

    reading = Reading(FeatureSchema(), ItemTable(codes), Reads(max_events=1 << 30))
    wanted = None if target_ids is None else Wanted("history", target_ids)
    return reading.batch(item_ids, offsets, wanted=wanted)


class World:
    """A catalogue, a Tiger with spread-out random weights, and histories; models share nothing between cases."""

    def __init__(self, case: Case) -> None:
        import numpy as np
        import torch

        from sidera.models.generators.tiger import Tiger
        from sidera.ops.trie import CodeTrie

        torch.manual_seed(SEED)
        self.case, num_levels = case, len(case.level_sizes)
        self.codes = skewed_codes(case.num_items, case.level_sizes, SEED)
        self.trie = CodeTrie.build(self.codes, case.level_sizes)
        catalog: Any = SimpleNamespace(codes=self.codes, level_sizes=case.level_sizes, codebook_id="benchmark")
        history = ENCODER_TOKENS // num_levels
        config = Tiger.Config(max_history=history, normalize=case.normalize, dropout=0.0)  # type: ignore[arg-type]
        self.model = Tiger(config, catalog).eval()
        with torch.no_grad():  # fresh weights give nearly equal scores: sharpen them, and make every norm count
            for name, weight in self.model.named_parameters():
                if "norm" in name:
                    weight.uniform_(0.5, 1.5)
            self.model.decoder.norm.weight.mul_(3.0)
        offsets = np.array([0, history])
        drawn = [torch.randint(case.num_items, (history,)).numpy() for _ in range(NUM_HISTORIES)]
        self.batches = [batch_of(self.codes, item_ids, offsets) for item_ids in drawn]

    def ours(self, batch: Any) -> Any:
        from sidera.decode.beam import beam_search

        return beam_search(self.model, batch, self.trie, width=self.case.width, num_results=NUM_RESULTS)

    def peer(self) -> Callable[..., Any]:
        """transformers' constrained beam search with our weights: call(batch, **settings)."""
        import torch

        t5, starts = as_t5(self.model).eval(), self.model.level_starts
        root: dict[int, Any] = self.token_dictionary()

        def allowed(batch_id: int, tokens: Any) -> list[int]:
            node: Any = root
            for token in tokens.tolist()[1:]:
                node = node.get(token)
                if node is None:  # a beam that generate keeps for want of others
                    return [0]
            return list(node)

        def call(batch: Any, **settings: Any) -> Any:
            tokens = event_tokens(self.model, batch).view(1, -1)
            with torch.inference_mode():
                return t5.generate(
                    input_ids=tokens,
                    attention_mask=torch.ones_like(tokens),
                    num_beams=self.case.width,
                    num_return_sequences=NUM_RESULTS,
                    max_new_tokens=len(starts),
                    do_sample=False,
                    length_penalty=0.0,
                    early_stopping=False,
                    decoder_start_token_id=BEGIN,
                    prefix_allowed_tokens_fn=allowed,
                    **settings,
                )

        return call

    def token_dictionary(self) -> dict[int, Any]:
        """The usual trie: token -> dictionary of the tokens that may follow."""
        root: dict[int, Any] = {}
        for start in range(0, len(self.codes), 10_000):
            for sid in (self.codes[start : start + 10_000] + list(self.model.level_starts)).tolist():
                node = root
                for token in sid:
                    node = node.setdefault(token, {})
        return root

    def agreement(self, peer: Callable[..., Any]) -> dict[str, float]:
        """Share of histories whose ten semantic IDs are the peer's in the peer's order, and the scores' distance."""
        import torch

        same, distance = [], 0.0
        for batch in self.batches:
            theirs = peer(batch, return_dict_in_generate=True, output_scores=True)
            sids = theirs.sequences[:, 1:] - torch.tensor(self.model.level_starts)
            wide = beams_of_sids(self.ours(batch))
            same.append(torch.equal(wide[0][: len(sids)], sids[: len(wide[0])]))
            distance = max(distance, float((wide[1] - theirs.sequences_scores[: len(wide[1])]).abs().max()))
        return {"same_top10": sum(same) / len(same), "largest_score_difference": distance}


def beams_of_sids(beams: Any) -> tuple[Any, Any]:
    """Distinct semantic IDs of an answer, best first, and their scores: two items may share one, `generate` cannot."""
    first = [
        0,
        *(place for place in range(1, NUM_RESULTS) if beams.leaf_ids[0, place] not in beams.leaf_ids[0, :place]),
    ]
    return beams.sids[0, first], beams.scores[0, first]


def next_history(batches: Sequence[Any], call: Callable[[Any], Any]) -> Callable[[], Any]:
    """Answer another history at every call; contestants see the same ones in the same order."""
    order = cycle(batches)
    return lambda: call(next(order))


def run(case: Case) -> dict[str, Any]:
    """One row: CPU-ms of both, their ratio (median of the rounds' ratios) and what was checked."""
    import torch

    world = World(case)
    peer = world.peer()
    row: dict[str, Any] = {"items": case.num_items, "width": case.width, "normalize": case.normalize}
    if case.normalize == "vocabulary":
        row |= world.agreement(peer)
    elif not has_bf16():
        row["bf16_ms"] = row["bf16_top10_kept"] = NEEDS_BF16
    else:  # what bfloat16 would keep
        exact = [world.ours(batch).item_ids for batch in world.batches]
        world.model.prepare(torch.bfloat16)
        close = [world.ours(batch).item_ids for batch in world.batches]
        halved = interleaved({"bf16": next_history(world.batches, world.ours)}, case.rounds)["bf16"]
        row["bf16_ms"] = round(1e3 * statistics.median(halved), 2)
        kept = [len(set(a[0].tolist()) & set(b[0].tolist())) for a, b in zip(exact, close, strict=True)]
        row["bf16_top10_kept"] = sum(kept) / (NUM_RESULTS * len(kept))
        world.model.prepare(torch.float32)
    contestants = {"ours": next_history(world.batches, world.ours), "peer": next_history(world.batches, peer)}
    seconds = interleaved(contestants, case.rounds)
    ratios = [peer / ours for ours, peer in zip(seconds["ours"], seconds["peer"], strict=True)]
    row |= {
        "ours_ms": round(1e3 * statistics.median(seconds["ours"]), 2),
        "peer_ms": round(1e3 * statistics.median(seconds["peer"]), 2),
        "ratio": round(statistics.median(ratios), 2),
        "rounds": case.rounds,
    }
    print(case.name, row, flush=True)
    return row


def run_sidera(num_items: int = 12_000, num_clusters: int = 256, width: int = 50, rounds: int = 50) -> dict[str, Any]:
    """CPU-ms of one request to sidera's generator: 20 items of history, untrained weights, seen items left out."""
    import numpy as np
    import torch

    from sidera.decode.beam import beam_search
    from sidera.models.generators.sidera import SideraGenerator
    from sidera.ops.trie import CodeTrie

    torch.manual_seed(SEED)
    codes = np.stack(np.divmod(np.arange(num_items), -(-num_items // num_clusters)), axis=1).astype(np.int32)
    level_sizes = (num_clusters, int(codes[:, 1].max()) + 1)
    trie = CodeTrie.build(codes, level_sizes)
    catalog: Any = SimpleNamespace(
        codes=codes, level_sizes=level_sizes, codebook_id="benchmark", item_keys=np.arange(num_items).astype(str)
    )
    model = SideraGenerator(SideraGenerator.Config(), catalog).eval()
    history = 20
    drawn = [torch.randint(num_items, (history,)).numpy() for _ in range(NUM_HISTORIES)]
    batches = [batch_of(codes, item_ids, np.array([0, history])) for item_ids in drawn]

    def ours(batch: Any) -> Any:
        exclude = (batch.item_ids, batch.events.offsets)
        return beam_search(model, batch, trie, width=width, num_results=NUM_RESULTS, exclude=exclude)

    seconds = interleaved({"ours": next_history(batches, ours)}, rounds)["ours"]
    row = {"items": num_items, "width": width, "ours_ms": round(1e3 * statistics.median(seconds), 2), "rounds": rounds}
    print("sidera_12k_B50", row, flush=True)
    return row


def run_growth(sizes: tuple[int, ...], width: int = 50, rounds: int = 15) -> dict[str, Any]:
    """CPU-ms of one request to one TIGER over catalogues of several sizes on the same codes, in turns; the model's own
    work is the same in all of them."""
    import numpy as np
    import torch

    from sidera.decode.beam import beam_search
    from sidera.models.generators.tiger import Tiger
    from sidera.ops.trie import CodeTrie

    torch.manual_seed(SEED)
    level_sizes = (256,) * 4
    rng = np.random.default_rng(SEED)
    catalog: Any = SimpleNamespace(codes=np.zeros((1, 4)), level_sizes=level_sizes, codebook_id="benchmark")
    model = Tiger(Tiger.Config(max_history=20, dropout=0.0), catalog).eval()
    calls = {}
    for size in sizes:
        codes = rng.integers(0, 256, (size, 4), dtype=np.int32)
        trie = CodeTrie.build(codes, level_sizes)
        batches = [batch_of(codes, rng.integers(0, size, 20), np.array([0, 20])) for _ in range(NUM_HISTORIES)]

        def ours(batch: Any, trie: Any = trie) -> Any:
            return beam_search(model, batch, trie, width=width, num_results=NUM_RESULTS)

        calls[str(size)] = next_history(batches, ours)
    seconds = interleaved(calls, rounds)
    first = seconds[str(sizes[0])]
    row: dict[str, Any] = {"width": width, "rounds": rounds}
    for size in sizes:
        own = seconds[str(size)]
        ratios = [spent / base for spent, base in zip(own, first, strict=True)]
        row[f"ms_{size}"] = round(1e3 * statistics.median(own), 2)
        row[f"ratio_{size}"] = round(statistics.median(ratios), 3)
    print("growth", row, flush=True)
    return row


INT8_SHAPES = ((50, 128, 1024), (50, 1024, 128), (50, 128, 384), (50, 64, 256))  # rows, inputs, outputs


def run_int8(rounds: int = 9) -> dict[str, Any]:
    """What int8 would bring, and what it would cost. The shapes: TIGER's feed-forward and attention at 50 beams, and
    the largest of sidera's generator."""
    import warnings

    import torch

    row: dict[str, Any] = {}
    torch.manual_seed(SEED)
    for rows, inputs, outputs in INT8_SHAPES:
        exact, x = torch.nn.Sequential(torch.nn.Linear(inputs, outputs, bias=False)), torch.randn(rows, inputs)
        with warnings.catch_warnings(action="ignore"):
            rounded = torch.ao.quantization.quantize_dynamic(exact, {torch.nn.Linear}, dtype=torch.qint8)

        def repeated(product: Any, x: Any = x) -> Callable[[], Any]:
            return lambda: [product(x) for _ in range(100)]

        with torch.inference_mode():
            seconds = interleaved({"f32": repeated(exact), "int8": repeated(rounded)}, rounds)
        times = [f32 / int8 for f32, int8 in zip(seconds["f32"], seconds["int8"], strict=True)]
        row[f"f32 / int8, {rows} x {inputs} x {outputs}"] = round(statistics.median(times), 2)
    world = World(CASES[1])
    before = [world.ours(batch).item_ids[0] for batch in world.batches]
    with torch.no_grad():
        for layer in (one for one in world.model.modules() if isinstance(one, torch.nn.Linear)):
            scale = layer.weight.abs().amax(1, keepdim=True) / 127
            layer.weight.copy_((layer.weight / scale).round() * scale)
    world.model.prepare(torch.float32)
    after = [world.ours(batch).item_ids[0] for batch in world.batches]
    pairs = list(zip(before, after, strict=True))
    row["same_lists"] = sum(torch.equal(a, b) for a, b in pairs) / len(pairs)
    row["top10_kept"] = sum(len({*a.tolist()} & {*b.tolist()}) for a, b in pairs) / (NUM_RESULTS * len(pairs))
    print("int8", row, flush=True)
    return row


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__)
    single_thread()
    cases = [case for case in CASES if case.quick or not options.quick]
    rows = {case.name: run(case) for case in cases}
    parity = rows["12k_B50_vocabulary"]
    value: dict[str, Any] = {"same_top10": parity["same_top10"], "score_difference": parity["largest_score_difference"]}
    value |= {f"ratio_{case.name}": rows[case.name]["ratio"] for case in cases}
    rows["sidera_12k_B50"] = run_sidera()
    if not options.quick:
        rows["int8"] = run_int8()
    sizes = (12_000, 1_000_000) if options.quick else (12_000, 1_000_000, 10_000_000)
    rows["growth"] = run_growth(sizes)
    value["growth"] = rows["growth"][f"ratio_{sizes[-1]}"]
    value["tiger_ms_12k_B50"] = rows["12k_B50"]["ours_ms"]
    value["sidera_ms_12k_B50"] = rows["sidera_12k_B50"]["ours_ms"]
    bar: dict[str, float] = {"same_top10": 1.0, "score_difference": 1e-4, "tiger_ms_12k_B50": TIGER_MILLISECONDS}
    bar["sidera_ms_12k_B50"] = SIDERA_MILLISECONDS
    bar |= {f"ratio_{case.name}": case.bar for case in cases if case.bar}
    bar["growth"] = GROWTH
    at_most = ("growth", "score_difference", "tiger_ms_12k_B50", "sidera_ms_12k_B50")
    passed = all(value[name] <= limit if name in at_most else value[name] >= limit for name, limit in bar.items())
    context = {"seed": SEED, "encoder_tokens": ENCODER_TOKENS, "num_results": NUM_RESULTS, "rows": rows}
    finish("decode", value, bar, passed, context, options.quick)


if __name__ == "__main__":
    main()
