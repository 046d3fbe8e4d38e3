"""A generator and a ranker that only this file knows go the whole way: log, catalogue, training, evaluation, answers.

Nothing of sidera.models is imported but the registry, and no line changes elsewhere.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.labelled_log import labelled_log
from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog
from sidera.cli import main
from sidera.data.batches import ExposureRows, RequestRows
from sidera.engine.recommender import Recommender
from sidera.engine.serving import ServeConfig
from sidera.models import MODELS
from sidera.ops.jagged import Jagged
from sidera.roles import Loss, StepOutput


@dataclass(frozen=True)
class Said:
    """A vector for each history."""

    users: Tensor  # (B, D)

    @property
    def num_histories(self) -> int:
        return len(self.users)

    @property
    def nbytes(self) -> int:
        return self.users.numel() * self.users.element_size()


def faded(vectors: Tensor, batch: Batch) -> Tensor:
    """(T, D) of the events -> (B, D), where an event counts half as much as the next one."""
    lengths = batch.lengths
    rows = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    back = batch.events.offsets[1:][rows] - 1 - torch.arange(len(rows))
    return torch.zeros(len(lengths), vectors.shape[1]).index_add(0, rows, vectors * 0.5 ** back[:, None])


class FadingCodes(nn.Module):
    """Writes codes from the faded sum of the history's codes and the codes written so far."""

    @dataclass(frozen=True)
    class Config:
        max_history: int = 6  # events read
        width: int = 16  # dims

        @property
        def reads(self) -> Reads:
            return Reads(self.max_history)  # the ranker behind it reads every event all the same

    role = "generator"
    feed = RequestRows

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config, self.reads = config, config.reads
        self.codebook_id, self.level_sizes = catalog.codebook_id, tuple(catalog.level_sizes)
        self.code = nn.ModuleList(nn.Embedding(size, config.width) for size in self.level_sizes)
        self.head = nn.ModuleList(nn.Linear(config.width, size) for size in self.level_sizes)

    def context(self, batch: Batch) -> Said:
        codes = batch.items.codes[batch.events.items]  # (T, L)
        return Said(faded(torch.stack([embed(codes[:, i]) for i, embed in enumerate(self.code)]).sum(0), batch))

    def code_logits(self, context: Said, sids: Tensor) -> list[Tensor]:
        state, found = context.users[:, None].expand(-1, sids.shape[1], -1), []
        for level, (embed, head) in enumerate(zip(self.code, self.head, strict=True)):
            found.append(head(state))
            state = state + embed(sids[..., level])
        return found

    def log_probs(self, context: Said, sids: Tensor) -> Tensor:
        logits = self.code_logits(context, sids)
        each = [part.log_softmax(-1).gather(-1, sids[..., i, None]) for i, part in enumerate(logits)]
        return torch.cat(each, dim=-1)

    def loss(self, batch: Batch) -> Loss:
        targets, users = batch.targets_of("request"), self.context(batch).users
        sids = batch.items.codes[targets.items][:, None]  # (targets, 1, L)
        log_p = self.log_probs(Said(users.repeat_interleave(targets.lengths, 0)), sids)
        return Loss(-log_p.sum(), len(sids))

    def new_cache(self, context: Said, width: int) -> dict[str, Tensor]:
        return {}

    def step(self, context: Said, cache: Any, level: int, codes: Tensor | None, parents: Tensor | None) -> StepOutput:
        if codes is None or parents is None:
            state = context.users[:, None]
        else:
            before = cache["state"].gather(1, parents[..., None].expand(-1, -1, self.config.width))
            state = before + self.code[level - 1](codes)
        cache["state"] = state
        return StepOutput(self.head[level](state))


class ClickOdds(nn.Module):
    """The chance of a click, from the faded sum of what was clicked before and the candidate's own vector."""

    @dataclass(frozen=True)
    class Config:
        max_history: int = 20  # exposures read
        width: int = 16  # dims

        @property
        def reads(self) -> Reads:
            return Reads(self.max_history, "all")

    role = "ranker"
    feed = ExposureRows
    tasks = ("click",)

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config, self.reads = config, config.reads
        self.read, self.item = (nn.Embedding(catalog.num_items, config.width) for _ in range(2))
        self.bias = nn.Embedding(catalog.num_items, 1)

    def context(self, batch: Batch) -> Said:
        return Said(faded(self.read(batch.item_ids) * batch.events.feedback["click"][:, None], batch))

    def logits(self, context: Said, candidates: Tensor) -> Tensor:
        return (self.item(candidates) * context.users[:, None]).sum(-1) + self.bias(candidates)[..., 0]

    def score(self, context: Said, candidates: Tensor) -> Tensor:
        return self.logits(context, candidates)[..., None].sigmoid()

    def labels(self, batch: Batch) -> dict[str, Tensor]:
        return {"click": batch.targets_of("exposure").feedback["click"]}

    def loss(self, batch: Batch) -> Loss:
        shown, mask = Jagged(batch.target_ids, batch.targets_of("exposure").offsets).pad()
        logits, came = self.logits(self.context(batch), shown)[mask], self.labels(batch)["click"]
        return Loss(F.binary_cross_entropy_with_logits(logits, came, reduction="sum"), len(came))


SHARED = """
[data]
positive = "click"
[catalog]
vectors = ["tfidf"]
vector_dim = 8
[catalog.quantizer]
num_levels = 2
codebook_size = 8
[eval]
bootstrap = 50
ks = [5]
beam = 16
wide_beam = 16
free_rows = 0
latency_rows = 2
samples = 1
"""


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "fading_codes", FadingCodes)
    monkeypatch.setitem(MODELS, "click_odds", ClickOdds)


def recipe(place: Path, model: str, fit: str) -> Path:
    file = place / f"{model}.toml"
    file.write_text(f'{SHARED}\n[model]\nname = "{model}"\nwidth = 8\n[fit]\n{fit}\n', encoding="utf-8")
    return file


def sidera(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.mark.usefixtures("registered")
def test_both_go_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelled_log(num_users=120).save(tmp_path / "data")
    data, policy, ranker = ("--data", tmp_path / "data"), tmp_path / "policy", tmp_path / "ranker"
    quick = 'epochs = 6\nbatch_size = 64\nlr = 1e-2\nwarmup_steps = 5\nprecision = "f32"'
    assert sidera("run", recipe(tmp_path, "fading_codes", quick), *data, "--out", policy) == 0
    assert sidera("run", recipe(tmp_path, "click_odds", quick.replace("= 6", "= 20")), *data, "--out", ranker) == 0
    out = capsys.readouterr()
    assert "95 % interval" in out.out + out.err
    assert (ranker / "report.html").stat().st_size > 1000

    capsys.readouterr()
    assert sidera("evaluate", ranker, *data, "--rows", "valid", "--json", "-q") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found["metrics"]["click"]) == {"auc", "gauc", "gauc_request", "ne", "calibration"}
    assert found["metrics"]["click"]["auc"]["value"] > 0.55  # keen users click their topic, wary ones anything
    assert found["protocol"]["which"] == "valid"

    recommender = Recommender.load(policy)
    history = [[f"i{item}" for item in (4, 8, 12)]]
    plain = recommender.recommend(history, k=5)[0]
    assert len(set(plain.item_keys)) == 5
    assert sidera("recommend", policy, "--history", "i4,i8,i12", "-k", 5) == 0
    shutil.copytree(ranker / "model", policy / "reward" / "model")
    with Recommender.load(policy, serve=ServeConfig(rerank=16, rerank_from="beam")) as served:
        reranked = served.recommend(history, k=5)[0]
    assert len(set(reranked.item_keys)) == 5
    assert list(reranked.scores) == sorted(reranked.scores, reverse=True)
    assert all(0 < score < 1 for score in reranked.scores)
    assert (plain.reranker_version, bool(reranked.reranker_version)) == ("", True)
