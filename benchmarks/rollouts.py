"""Claim `rollouts`: sampling G semantic IDs of one request, our engine's sampler against transformers' `generate`.

    python benchmarks/rollouts.py [--quick]

TIGER of 12 k items on 4 x 256 codes, 80 encoder tokens, f32, one thread, one allocator for both, the same weights in a
transformers T5. The peer samples with `generate(do_sample=True, num_return_sequences=G, top_k=0)` and returns, as ours
does, the probability of every code (its scores, renormalised). Two variants, each with its twin:

* constrained: `prefix_allowed_tokens_fn` walking a nested dictionary, against mode `masked` (inside the trie it makes
  no difference whether a softmax ran over a level's codes or over the vocabulary);
* free: no constraint on the peer, which then samples among all tokens, against mode `free`, among a level's.

The bars hold for both variants; the value is the smaller ratio. Before the clock runs both samplers' frequencies of
first codes are compared with exact probabilities, so that what is timed is the same distribution.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from decode import BEGIN, NUM_HISTORIES, SMALL, Case, World, next_history
from harness import arguments, finish, interleaved, single_thread, tuned_allocator
from t5_twin import as_t5, event_tokens

SEED = 0
BARS = {128: 6.0, 512: 10.0}
ROUNDS = {128: 9, 512: 5}


@dataclass(frozen=True)
class Contest:
    """One pair: ours against transformers at G samples."""

    mode: str  # masked | free
    count: int


class Samplers:
    """Both contestants over one catalogue and the same weights."""

    def __init__(self) -> None:
        import torch

        self.world = World(Case("12k", *SMALL, 1, "level", 0.0, 0, True))
        self.t5 = as_t5(self.world.model).eval()
        self.root = self.world.token_dictionary()
        self.starts = torch.tensor(self.world.model.level_starts)
        self.seed = 0

    def ours(self, batch: Any, mode: str, count: int) -> Any:
        from sidera.decode.sample import sample

        self.seed += 1
        return sample(self.world.model, batch, self.world.trie, count=count, mode=mode, seed=self.seed)  # type: ignore[arg-type]

    def peer(self, batch: Any, mode: str, count: int) -> tuple[Any, Any]:
        """(G, L) codes, (G, L) log-probabilities."""
        import torch

        tokens = event_tokens(self.world.model, batch).view(1, -1)
        with torch.inference_mode():
            found = self.t5.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=True,
                top_k=0,
                num_return_sequences=count,
                max_new_tokens=len(self.starts),
                min_new_tokens=len(self.starts),
                decoder_start_token_id=BEGIN,
                prefix_allowed_tokens_fn=self.allowed if mode == "masked" else None,
                return_dict_in_generate=True,
                output_scores=True,
            )
            written = found.sequences[:, 1:]
            log_p = [scores.log_softmax(-1).gather(1, written[:, [level]]) for level, scores in enumerate(found.scores)]
        return written - self.starts, torch.cat(log_p, dim=1)

    def allowed(self, batch_id: int, tokens: Any) -> list[int]:
        node = self.root
        for token in tokens.tolist()[1:]:
            node = node[token]
        return list(node)

    def agreement(self) -> dict[str, float]:
        """Both samplers' first codes against the model's probabilities: chi-square over its degrees of freedom.

        And the largest difference between the peer's log-probabilities and ours of the codes that it drew.
        """
        import torch

        from sidera.decode.sample import masked_log_probs

        model, batch, trie = self.world.model, self.world.batches[0], self.world.trie
        sids, log_p = self.peer(batch, "masked", 512)
        with torch.inference_mode():
            context = model.context(batch)
            known = masked_log_probs(model, context, sids[None], trie)[0]
            logits = model.code_logits(context, sids[None, :1])[0][0, 0]
        legal = torch.from_numpy(trie.tokens[0].astype("int64"))
        expected = logits[legal].softmax(0)
        report = {"largest_log_prob_difference": float((known - log_p).abs().max())}
        for name in ("ours", "peer"):
            draws = [
                self.ours(batch, "masked", 512).sids[0] if name == "ours" else self.peer(batch, "masked", 512)[0]
                for _ in range(4)
            ]
            counts = torch.bincount(torch.cat(draws)[:, 0], minlength=len(logits))[legal]
            wanted = expected * counts.sum()
            often = wanted >= 5  # the usual condition of the test; the rest is one cell
            cells = [(counts[often], wanted[often]), (counts[~often].sum()[None], wanted[~often].sum()[None])]
            chi_square = sum(float(((seen - due) ** 2 / due.clamp(min=1e-9)).sum()) for seen, due in cells)
            report[f"chi_square_per_freedom_{name}"] = round(chi_square / int(often.sum()), 3)
        return report


def run(samplers: Samplers, contest: Contest, rounds: int) -> dict[str, Any]:
    """CPU-ms of both and their ratio, the median over rounds."""
    batches = samplers.world.batches

    def call(of: Callable[..., Any]) -> Callable[[], Any]:
        return next_history(batches, lambda batch: of(batch, contest.mode, contest.count))

    seconds = interleaved({"ours": call(samplers.ours), "peer": call(samplers.peer)}, rounds)
    ratios = [peer / ours for ours, peer in zip(seconds["ours"], seconds["peer"], strict=True)]
    row = {
        "ours_ms": round(1e3 * statistics.median(seconds["ours"]), 2),
        "peer_ms": round(1e3 * statistics.median(seconds["peer"]), 2),
        "ratio": round(statistics.median(ratios), 2),
        "lowest_ratio": round(min(ratios), 2),
        "rounds": rounds,
    }
    print(contest, row, flush=True)
    return row


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__)
    single_thread()
    import torch

    torch.manual_seed(SEED)
    samplers = Samplers()
    agreement = samplers.agreement()
    print(agreement, flush=True)
    rows: dict[str, Any] = {}
    for count in BARS:
        for mode in ("masked", "free"):
            rounds = 3 if options.quick else ROUNDS[count]
            rows[f"{mode}_G{count}"] = run(samplers, Contest(mode, count), rounds)
    value: dict[str, float] = {
        f"ratio_G{count}": min(rows[f"masked_G{count}"]["ratio"], rows[f"free_G{count}"]["ratio"]) for count in BARS
    }
    value |= {"log_prob_difference": agreement["largest_log_prob_difference"]}
    bar = {f"ratio_G{count}": limit for count, limit in BARS.items()} | {"log_prob_difference": 1e-3}
    passed = all(value[name] >= limit for name, limit in bar.items() if name.startswith("ratio"))
    passed = passed and value["log_prob_difference"] <= bar["log_prob_difference"]
    context = {"seed": SEED, "histories": NUM_HISTORIES, "rows": rows, "agreement": agreement}
    finish("rollouts", value, bar, passed, context, options.quick)


if __name__ == "__main__":
    main()
