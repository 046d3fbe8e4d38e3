"""OneRec v1's session reward R(u, S): what a whole list of items is worth to a user (2502.18965, 3.3).

    scores = network.session_scores(batch, sessions)        # (B, G, m) items of G lists each -> (B, G)

Each item is read together with the history (e_i, the target attention of
:class:`~sidera.models.rankers.pscore.PScore`), the items of a list attend to each other, their sum goes through four
towers: *swt* session watch time, *vtr* share viewed, *wtr* follow, *ltr* like. Trained with the sum of their BCEs on
the lists that were shown: a request's exposures.

Fusion, which the paper leaves open: R = sum of weight x chance over the towers, all weights 1 by default. Targets where
the paper names only the tower: swt the mean over items of "watched longer than this share of views of like duration";
vtr the share of items with a long view (a click where the log has none); wtr and ltr whether any item was followed or
liked. A log without a signal has no such tower.

Trap: self-attention and the sum see *which* items stand together and not their order, as in the paper; and a list of
another length than those of the log is judged by extrapolation.

Shape legend: B requests · G lists · m items of a list · D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog
from sidera.config import check_value
from sidera.core import InputError
from sidera.data.batches import ExposureRows
from sidera.data.config import View
from sidera.models.rankers.pscore import WATCH, PScore, PScoreContext
from sidera.nn.counters import TRAINING, attention_flops, matmul_flops
from sidera.ops.jagged import Jagged
from sidera.roles import Loss

TOWERS = ("swt", "vtr", "wtr", "ltr")


class SessionReward(nn.Module):
    """Towers over lists of items."""

    @dataclass(frozen=True)
    class Config:
        item: PScore.Config = field(default_factory=PScore.Config)  # how an item is read against the history
        num_heads: int = 2  # of the attention between the items of a list
        tower_width: int = 32  # dims inside a tower
        weights: dict[str, float] = field(default_factory=dict)  # of towers in R; 1 where not named

        def __post_init__(self) -> None:
            fits = self.item.hidden % self.num_heads == 0
            check_value("[model]", "num_heads", self.num_heads, fits, f"a divisor of {self.item.hidden}")
            for name in self.weights:
                if name not in TOWERS:
                    raise InputError(f"[model] weights names {name!r}", allowed=", ".join(TOWERS))

        @property
        def reads(self) -> Reads:
            return self.item.reads

    role = "reward"
    feed = ExposureRows

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config, self.reads = config, config.reads
        self.reader = PScore(config.item, catalog)
        there = (
            ("swt", self.reader.has_seconds),
            ("vtr", bool({"long_view", "click"} & set(self.reader.given))),
            ("wtr", "follow" in self.reader.given),
            ("ltr", "like" in self.reader.given),
        )
        self.tasks = tuple(name for name, present in there if present)
        if not self.tasks:
            raise InputError("the log has none of watch time, long view, click, follow, like: no session can be judged")
        weights = torch.tensor([config.weights.get(name, 1.0) for name in self.tasks])
        self.register_buffer("weights", weights, persistent=False)
        width = config.item.hidden
        self.attention = nn.MultiheadAttention(width, config.num_heads, batch_first=True)
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, config.tower_width), nn.LeakyReLU(), nn.Linear(config.tower_width, 1))
            for _ in self.tasks
        )

    def fit_once(self, view: View) -> None:
        self.reader.fit_once(view)

    def loss(self, batch: Batch) -> Loss:
        """Sum over requests of the towers' BCEs, on the list that each request showed."""
        items, mask = Jagged(batch.target_ids, batch.targets_of("exposure").offsets).pad()
        logits = self.logits(self.reader.context(batch), items[:, None], mask[:, None])[:, 0]  # (B, tasks)
        labels = torch.stack(list(self.labels(batch).values()), dim=1)
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        means = losses.detach().mean(0).tolist()
        return Loss(losses.sum(), len(logits), dict(zip(self.tasks, means, strict=True)))

    def labels(self, batch: Batch) -> dict[str, Tensor]:
        """task -> (B,) 0 to 1: what the request's list came to."""
        targets = batch.targets_of("exposure")
        each, mask = Jagged(self.reader.label_table(targets.feedback), targets.offsets).pad()  # (B, m, objectives)
        column = {name: each[..., place] * mask for place, name in enumerate(self.reader.objectives)}
        sizes = mask.sum(1).clamp(min=1)
        viewed = "long_view" if "long_view" in column else "click"
        found = {
            "swt": lambda: column[WATCH].sum(1) / sizes,
            "vtr": lambda: column[viewed].sum(1) / sizes,
            "wtr": lambda: column["follow"].amax(1),
            "ltr": lambda: column["like"].amax(1),
        }
        return {name: found[name]() for name in self.tasks}

    def flops_per_batch(self, batch: Batch) -> float:
        """FLOPs of one training step on this batch, forward and backward; padding does not count."""
        if batch.targets is None:
            return 0.0
        sizes, width = batch.targets.lengths.double(), self.config.item.hidden
        forward = 8.0 * float(sizes.sum()) * width**2 + attention_flops(float((sizes**2).sum()), width)
        forward += matmul_flops(self.towers, batch.num_histories)
        return self.reader.reading_flops(batch) + TRAINING * forward

    def context(self, batch: Batch) -> PScoreContext:
        """The user's side, shared by all lists."""
        return self.reader.context(batch)

    def logits(self, context: PScoreContext, sessions: Tensor, mask: Tensor) -> Tensor:
        """(B, G, m) item ids and mask (B or 1, G, m), True = an item -> (B, G, tasks)."""
        batch, lists, size = sessions.shape
        hidden = self.reader.hidden(context, sessions.clamp(min=0).flatten(1))  # (B, G*m, hidden)
        hidden = hidden.unflatten(1, (lists, size)).flatten(0, 1)  # (B*G, m, hidden)
        flat = mask.expand(batch, lists, size).flatten(0, 1)
        empty = ~flat.any(1, keepdim=True)  # attention over nothing is NaN: let such a list look at its first place
        ignored = ~flat & ~(empty & (torch.arange(size, device=flat.device) == 0))
        attended, _ = self.attention(hidden, hidden, hidden, key_padding_mask=ignored, need_weights=False)
        pooled = ((hidden + attended) * flat[..., None]).sum(1)  # (B*G, hidden)
        return torch.cat([tower(pooled) for tower in self.towers], dim=-1).unflatten(0, (batch, lists))

    def score(self, context: PScoreContext, sessions: Tensor) -> Tensor:
        """(B, G, m) item ids, -1 where a list is shorter -> (B, G, tasks) chances."""
        return self.logits(context, sessions, sessions >= 0).sigmoid()

    def session_scores(self, batch: Batch, sessions: Tensor) -> Tensor:
        """(B, G) R of each list."""
        return self.score(self.context(batch), sessions) @ cast(Tensor, self.weights)
