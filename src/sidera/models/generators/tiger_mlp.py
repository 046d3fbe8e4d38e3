"""A small MLP a level in place of TIGER's decoder, distilled from it (Hinton et al. 2015, arXiv 1503.02531).

    sidera run recipes/any/tiger_mlp.toml --data data/mine --out runs/any-tiger-mlp

The encoder is the teacher's. Each level has a few learned queries that read the encoder's states into one summary, once
per request; the MLP of a level turns the summary and the vectors of the codes so far into the scores of the next code.
A beam therefore costs two small matrix products a level, and no attention.

It learns the teacher's distribution after every prefix that a search would stand on: the target's own codes and the
best prefixes that the teacher writes (a free beam of ``num_prefixes``), by KL divergence, and the target itself with
``label_weight``. ``teacher = "runs/any-tiger"`` takes a trained TIGER, whose weights then rest; without one, the
teacher is trained in the same steps.

The teacher stays inside: ``[eval] search = "draft"`` lets the MLPs name items and the teacher score these exactly.

Shape legend: T tokens · B histories · W beams or prefixes · L levels · K codes of a level · Q queries of a level ·
H heads · D width of the teacher · F width inside an MLP.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.batch import Batch
from sidera.catalog.catalog import Catalog
from sidera.config import check_counts, check_value
from sidera.core import InputError
from sidera.data.batches import PrefixRows
from sidera.data.config import View
from sidera.loading import open_artifact
from sidera.models.generators.tiger import Tiger
from sidera.models.generators.tiger_decode import PaddedContext, TigerContext
from sidera.nn.counters import FIRST, TRAINING, attention_flops, matmul_flops
from sidera.ops.jagged import with_copies
from sidera.roles import Loss, StepOutput


@dataclass(frozen=True)
class SummaryContext:
    """What the MLPs read of each history, and the teacher's context that it was made of."""

    summaries: Tensor  # (B, L, F): the part of each level's first product that does not depend on codes
    own: TigerContext | PaddedContext  # the teacher's

    @property
    def num_histories(self) -> int:
        return self.summaries.shape[0]

    @property
    def nbytes(self) -> int:
        return self.summaries.nbytes + self.own.nbytes

    @property
    def length(self) -> int:
        return 1

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.summaries,)

    def padded_to(self, num_histories: int, length: int) -> SummaryContext:
        """See :class:`sidera.decode.graph.Paddable`; a recorded search reads the summaries alone."""
        return SummaryContext(with_copies(self.summaries, num_histories - self.num_histories), self.own)


@dataclass
class PrefixCache:
    """The sum of what the codes so far add to each level's MLP."""

    inputs: Tensor | None = None  # (B, W, L, F)


class Summary(nn.Module):
    """Learned queries of every level over a history's encoder states."""

    def __init__(self, width: int, num_levels: int, num_queries: int, inside: int) -> None:
        super().__init__()
        self.num_levels, self.num_queries = num_levels, num_queries
        self.query = nn.Parameter(torch.randn(num_levels * num_queries, width) * width**-0.5)
        self.value = nn.Linear(width, width, bias=False)
        read = num_queries * width
        self.project = nn.Parameter(torch.randn(num_levels, read, inside) * read**-0.5)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """(B, S, D), mask (B, S) True = token -> (B, L, F)"""
        scores = states @ self.query.T  # (B, S, L*Q)
        if mask is not None:
            scores = scores.masked_fill(~mask[..., None], float("-inf"))
        read = scores.softmax(1).transpose(1, 2) @ self.value(states)  # (B, L*Q, D)
        read = read.view(len(read), self.num_levels, -1)
        return torch.bmm(read.transpose(0, 1), self.project).transpose(0, 1)


class TigerMLP(nn.Module):
    """Writes the codes of the next item with one MLP a level."""

    @dataclass(frozen=True)
    class Config(Tiger.Config):
        teacher: str = ""  # run folder of a trained TIGER over the same catalogue; "": trained in the same steps
        inside: int = 256  # dims inside an MLP
        num_queries: int = 4  # learned queries that a level reads the history with
        num_prefixes: int = 8  # of the teacher's best prefixes that are learned from, beside the target's own
        label_weight: float = 0.3  # of -log p(target) beside the divergence from the teacher

        def __post_init__(self) -> None:
            super().__post_init__()
            check_counts("[model]", self, "inside", "num_queries", "num_prefixes")
            check_value("[model]", "label_weight", self.label_weight, 0 <= self.label_weight <= 10, "0 to 10")
            fits = self.normalize == "level"
            check_value("[model]", "normalize", self.normalize, fits, '"level": an MLP scores the codes of a level')

        @property
        def inputs(self) -> list[str]:
            """Digests of what a training reads beside its catalogue: the run that teaches."""
            return [open_artifact(Path(self.teacher) / "model", "model").manifest.digest] if self.teacher else []

    role = "generator"
    feed = PrefixRows
    ways = ("beam", "draft")

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config, self.reads = config, config.reads
        own = {field.name: getattr(config, field.name) for field in fields(Tiger.Config)}
        self.teacher = Tiger(Tiger.Config(**own), catalog)
        self.teacher.requires_grad_(not config.teacher)
        self.codebook_id, self.level_sizes = self.teacher.codebook_id, self.teacher.level_sizes
        levels, width, inside = len(self.level_sizes), config.width, config.inside
        self.summary = Summary(width, levels, config.num_queries, inside)
        earlier = list(enumerate(self.level_sizes))[:-1]  # levels that a later one reads
        self.code = nn.ModuleList(nn.Embedding(size, (levels - at - 1) * inside) for at, size in earlier)
        for table in self.code.parameters():
            nn.init.normal_(table, std=0.3)
        self.hidden = nn.ModuleList(nn.Linear(inside, inside) for _ in self.level_sizes)
        self.head = nn.ModuleList(nn.Linear(inside, size) for size in self.level_sizes)
        self.norms = nn.ModuleList(nn.LayerNorm(inside) for _ in self.level_sizes)
        self.register_buffer("taught", torch.tensor(False))  # the teacher's weights are those of its run
        self.taught: Tensor

    # -- the teacher -----------------------------------------------------------------------------------------------

    def fit_once(self, view: View) -> None:
        """Take the trained teacher that the config names. InputError where it does not fit."""
        if not self.config.teacher or bool(self.taught):
            return
        opened = open_artifact(Path(self.config.teacher) / "model", "model")
        section, named = opened.recipe("model", dict), f"the teacher in {self.config.teacher}"
        if opened.info("codebook_id", str) != self.codebook_id:
            raise InputError(f"{named} writes other codes than this catalogue's", fix="use the teacher's [catalog]")
        wrong = [
            field.name
            for field in fields(Tiger.Config)
            if field.name in section and section[field.name] != getattr(self.config, field.name)
        ]
        if section.get("name") != "tiger" or wrong:
            found = ", ".join(f"{name} = {section[name]}" for name in wrong) or f"name = {section.get('name')!r}"
            raise InputError(f"{named} has {found}", fix="give [model] the teacher's own keys, and a TIGER")
        with opened.believed():
            self.teacher.load_state_dict(opened.tensors("weights"))
        self.taught.fill_(True)

    def teacher_context(self, context: SummaryContext) -> TigerContext | PaddedContext:
        return context.own

    def train(self, mode: bool = True) -> TigerMLP:
        """A teacher whose weights rest is never in training."""
        super().train(mode)
        self.teacher.train(mode and not self.config.teacher)
        return self

    # -- training --------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Loss:
        """Sum over histories of the divergence from the teacher, a mean over its prefixes, and of the weighted
        -log p(target); with the teacher's own loss where it is trained too."""
        targets = batch.targets_of("history").items
        parts: dict[str, float] = {}
        total = self.summary.query.new_zeros(())
        if not self.config.teacher:
            taught = self.teacher.loss(batch)
            total, parts["teacher"] = taught.total, float(taught.total.detach()) / taught.count
        training = self.teacher.training
        self.teacher.eval()
        with torch.no_grad():
            own = self.teacher.context(batch)
            prefixes = self._prefixes(own, batch.items.codes[targets])
        context = SummaryContext(self._summaries(own), own)
        cache, kl, label = PrefixCache(), total.new_zeros(()), total.new_zeros(())
        for level, (wanted, codes, parents) in enumerate(prefixes):
            log_p = self._logits(context, cache, level, codes, parents).log_softmax(-1)  # (B, W, K)
            kl = kl + F.kl_div(log_p, wanted, reduction="none", log_target=True).sum(-1).mean(1).sum()
            own_codes = batch.items.codes[targets][:, level]
            label = label - log_p[:, 0].gather(1, own_codes[:, None]).sum()  # beam 0 is the target's
        self.teacher.train(training)
        count = targets.numel()
        parts |= {"kl": float(kl.detach()) / count, "label": float(label.detach()) / count}
        return Loss(total + kl + self.config.label_weight * label, count, parts)

    def _prefixes(self, own: TigerContext, target_codes: Tensor) -> list[tuple[Tensor, Tensor | None, Tensor | None]]:
        """Per level the teacher's log-probabilities (B, W, K) after its prefixes, their last codes and parents.

        Beam 0 stands on the target's codes, the others on the best prefixes of a free beam.
        """
        cache = self.teacher.new_cache(own, 1 + self.config.num_prefixes)
        output, found, scores = self.teacher.step(own, cache, 0, None, None), [], None
        codes: Tensor | None = None
        parents: Tensor | None = None
        for level, size in enumerate(self.level_sizes):
            log_p = output.logits.float().log_softmax(-1)  # (B, W, K)
            found.append((log_p, codes, parents))
            if level + 1 == len(self.level_sizes):
                break
            free = log_p if scores is None else log_p[:, 1:] + scores[..., None]
            number = min(self.config.num_prefixes, free[0].numel())
            scores, best = free.flatten(1).topk(number, dim=1)
            parents = torch.div(best, size, rounding_mode="floor") + (level > 0)  # beam 0 is not among them
            codes = torch.cat([target_codes[:, level, None], best % size], dim=1)
            parents = F.pad(parents, (1, 0))
            output = self.teacher.step(own, cache, level + 1, codes, parents)
        return found

    def flops_per_batch(self, batch: Batch) -> float:
        """FLOPs of one training step on this batch, forward and backward; a teacher that rests only writes prefixes."""
        tokens, rows = float(batch.lengths.sum()) * len(self.level_sizes), self._prefix_rows(batch.num_histories)
        queries = self.summary.query.numel()
        own = FIRST * (matmul_flops(self.summary.value, tokens) + 2.0 * tokens * queries)
        own += TRAINING * 2.0 * (tokens * queries + batch.num_histories * self.summary.project.numel())
        for number, *layers in zip(rows, self.hidden, self.head, strict=True):
            own += TRAINING * sum(matmul_flops(layer, number) for layer in layers)
        trained = 0.0 if self.config.teacher else self.teacher.flops_per_batch(batch)
        return own + trained + self._taught_flops(batch.lengths, rows)

    def _prefix_rows(self, num_histories: int) -> list[int]:
        """Prefixes of every level that are learned from."""
        rows, last = [num_histories], 1
        for size in self.level_sizes[:-1]:
            last = min(self.config.num_prefixes, last * size)
            rows.append(num_histories * (1 + last))
        return rows

    def _taught_flops(self, lengths: Tensor, rows: list[int]) -> float:
        """Of the teacher's one reading of histories (B,) and its steps over so many prefixes of every level."""
        teacher, layers, width = self.teacher, self.config.num_layers, self.config.width
        tokens = lengths.double() * len(rows) + (self.config.num_user_tokens > 0)  # (B,)
        inner, keys = self.config.num_heads * self.config.head_width, layers * self.config.num_heads * width
        total, mean = float(tokens.sum()), float(tokens.mean())
        read = matmul_flops(teacher.encoder, total) + layers * attention_flops(float((tokens**2).sum()), inner)
        read += 2 * 2.0 * total * keys * width  # every head's keys and values, folded into the decoder's width
        step = matmul_flops(teacher.decoder, 1) + attention_flops(mean, keys)
        for layer in teacher.decoder.layers:
            step -= matmul_flops(layer.cross, 1)  # type: ignore[arg-type]
        heads = sum(2.0 * number * size * width for number, size in zip(rows, self.level_sizes, strict=True))
        return read + step * sum(rows) + heads

    # -- answering -------------------------------------------------------------------------------------------------

    def context(self, batch: Batch) -> SummaryContext:
        """Encode every history once, and read it into the levels' summaries."""
        own = self.teacher.context(batch)
        return SummaryContext(self._summaries(own), own)

    def _summaries(self, own: TigerContext) -> Tensor:
        states, mask = own.padded()
        found: Tensor = self.summary(states.float(), mask)
        return found

    def new_cache(self, context: SummaryContext, width: int) -> PrefixCache:
        return PrefixCache()

    def step(
        self, context: SummaryContext, cache: PrefixCache, level: int, codes: Tensor | None, parents: Tensor | None
    ) -> StepOutput:
        return StepOutput(self._logits(context, cache, level, codes, parents))

    def _logits(
        self, context: SummaryContext, cache: PrefixCache, level: int, codes: Tensor | None, parents: Tensor | None
    ) -> Tensor:
        """(B, W, K); the cache then stands on these beams."""
        levels = len(self.level_sizes)
        if codes is None or parents is None:
            cache.inputs = None
            return self._scored(context.summaries[:, None, 0], level)
        added = self.code[level - 1](codes).unflatten(-1, (levels - level, -1))  # (B, W, later levels, F)
        if cache.inputs is not None:  # what earlier codes added to the levels from here on
            index = parents[..., None, None].expand(-1, -1, *cache.inputs.shape[2:])
            added = added + cache.inputs.gather(1, index)[:, :, 1:]
        cache.inputs = added
        return self._scored(context.summaries[:, None, level] + added[:, :, 0], level)

    def _scored(self, inputs: Tensor, level: int) -> Tensor:
        x = F.gelu(self.norms[level](inputs))
        scores: Tensor = self.head[level](x + F.gelu(self.hidden[level](x)))
        return scores

    def code_logits(self, context: SummaryContext, sids: Tensor) -> list[Tensor]:
        """(B, G, L) codes -> per level (B, G, K), with gradient."""
        cache, found = PrefixCache(), []
        same = torch.arange(sids.shape[1], device=sids.device).expand(sids.shape[:2])
        for level in range(len(self.level_sizes)):
            codes = sids[..., level - 1] if level else None
            logits = self._logits(context, cache, level, codes, same if level else None)
            found.append(logits.expand(-1, sids.shape[1], -1))
        return found
