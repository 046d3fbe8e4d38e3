"""The transition expert of a run: counts of the training events, and weights that validation rows taught.

    sidera run recipes/any/generator.toml --data data/mine --out runs/mine     # [expert] enabled = true

Each validation row gives a pool: the search's items and the best counted ones, scored by the generator. A listwise
softmax over the pool with the row's target as the positive learns the weights. It is convex, its penalty pulls towards
the generator alone, and a bucket of history lengths is pulled towards the weights of all. Counts hold training events
only, as the generator does, so a row's target is in neither.

What is learned is judged by cross-fitting: users are halved, each half is judged with the weights of the other. Three
designs compete (log p and one count; all features; all features for each length of history). The best of them answers
where its NDCG@10, mean of seen items kept and filtered, gains more than two standard errors over the generator alone.
Where none does, the expert is off and the report says so.

Shape legend: R rows whose target is in their pool · C items of a pool · F features · K buckets.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sidera import artifacts
from sidera.config import digest
from sidera.core import InputError
from sidera.data.config import View
from sidera.data.dataset import Dataset
from sidera.data.split import EvalRows, fitted_sequences, train_sequences
from sidera.decode.eligible import NEG_INF
from sidera.engine.expert import FEATURES, FOLDER, KIND, Expert, ExpertConfig, Pool
from sidera.engine.pipeline import Query, search
from sidera.engine.recommender import Recommender
from sidera.eval.ranking import questions, sample_rows
from sidera.fit import distributed
from sidera.models.retrievers.pair_counts import PairCounts
from sidera.stage import stage
from sidera.train.recipe import Recipe

K = 10  # of the NDCG that decides
BATCH = 256
FIRST = {"forward_half": 0.3, "together": 3.0, "seen_often": 1.0}  # what proposes items before weights are learned
PROPOSED = 100  # counted items of a lesson: an answer looks at more, and a row's lesson is in the first
PENALTY, BUCKET_PENALTY = 1.0, 30.0  # of weights of scaled features; of what a bucket differs by
SURE = 2.0  # standard errors that a gain on held-out rows must exceed
FEWEST = 20  # rows of a half whose target is in their pool: fewer teach nothing
SEARCH_ALONE = "generator alone"
DESIGNS: dict[str, tuple[tuple[str, ...], bool]] = {  # features beside log p; a set of weights for each bucket
    "log p and one count": (("forward_half",), False),
    "all features": (FEATURES, False),
    "all features by length of history": (FEATURES, True),
}


@dataclass(frozen=True, eq=False)
class Lessons:
    """The pools of validation rows whose target is in one."""

    features: Tensor  # (R, C, 1 + F): log p first; 0 in empty places
    none_mask: Tensor  # (R, C)
    seen_mask: Tensor  # (R, C) items of the history
    targets: Tensor  # (R,) place of the target
    buckets: Tensor  # (R,)
    halves: Tensor  # (R,) 0 or 1, by user
    num_rows: int  # asked: those without their target count as misses

    def of(self, mask: Tensor) -> Lessons:
        columns = {name: value[mask] for name, value in vars(self).items() if name != "num_rows"}
        return Lessons(**columns, num_rows=int(mask.sum()))


def expert_of(trained: object) -> Expert | None:
    """What stands beside a recommender, where something does."""
    return trained.serving.expert if isinstance(trained, Recommender) else None


def expert_stage(
    recipe: Recipe, view: View, positives: View, data_digest: str, trained: object, out: Path,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Put the run's expert beside what it trained -> ``out/expert``; away with it where the recipe wants none.

    ``view``: what the model reads, whose validation rows teach. ``positives``: what is counted. InputError where the
    model was refitted without one: it knows the answers of the rows.
    """
    path = out / FOLDER
    if not isinstance(trained, Recommender):
        return
    if not recipe.expert.enabled:
        if distributed.rank() == 0 and path.is_dir():
            artifacts.check_replaceable(path)
            shutil.rmtree(path)
        return
    version = trained.version

    def make(wanted: str) -> Expert:
        if recipe.fit.refit:
            raise InputError(
                f"the model in {out} was refitted without an expert: it knows the answers of the validation rows",
                fix="train into a new folder, or --set expert.enabled=false",
            )
        begun = time.process_time()
        expert = fit_expert(trained, view, positives, recipe.expert, recipe.eval.seed)
        info = {
            **(expert.info or {}),
            "counted_until": counted_until(view.dataset),
            "cpu_seconds": round(time.process_time() - begun, 1),
        }
        expert = replace(expert, version=wanted, info=info)
        expert.save(path, digest=wanted, parents={"model": version, "data": data_digest})
        return expert

    if distributed.rank() > 0:  # one process of a torchrun makes it
        distributed.barrier()
        expert = Expert.load(path, trained.catalog)
    else:
        inputs, said = _inputs(recipe, data_digest, version), f"expert: reused ({path})"
        expert = stage(path, KIND, inputs, make, lambda: Expert.load(path, trained.catalog), reused=lambda: say(said))
        distributed.barrier()
    say(f"expert: {'on' if expert.is_on else 'off'}; {(expert.info or {}).get('why')}")
    if expert.is_on:
        trained.parts = replace(trained.parts, steps=(expert.to(trained.device), *trained.parts.steps))


def counted_until(dataset: Dataset) -> int | None:
    """The second of a log's newest event: a store's events behind it are no part of the log. None: times are an
    order."""
    return None if dataset.time_kind == "order" else int(dataset.times.max(initial=0))


def recount_stage(
    recipe: Recipe, view: View, positives: View, data_digest: str, chosen: object, version: str, out: Path,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """The expert of a refit that gets this ``version``: weights learned with the model that validation ``chosen``, and
    counts of the validation events too."""
    if not recipe.expert.enabled or not isinstance(chosen, Recommender):
        return
    first, path = replace(recipe, fit=replace(recipe.fit, refit=False)), out / FOLDER
    expert_stage(first, view, positives, data_digest, chosen, out, say)
    if distributed.rank() == 0:
        wanted = digest(_inputs(recipe, data_digest, version))
        sequences = fitted_sequences(positives.dataset, positives.split, "train+valid")
        expert = Expert.load(path, chosen.catalog).recounted(*sequences, chosen.catalog.num_items, wanted)
        expert.save(path, digest=wanted, parents={"model": version, "data": data_digest})
    distributed.barrier()


def _inputs(recipe: Recipe, data_digest: str, version: str) -> list[Any]:
    """What decides the expert of the weights ``version``."""
    return [version, data_digest, asdict(recipe.expert), recipe.eval.beam, recipe.eval.seed, list(FEATURES)]


def fit_expert(recommender: Recommender, view: View, positives: View, config: ExpertConfig, seed: int = 0) -> Expert:
    """Counts of ``positives``' training events, and weights from the validation rows of ``view``. ``info`` of the
    result says what each design was worth on held-out rows; ``info["on"]`` whether it answers.

    The recommender must know nothing of the rows' targets: a refit comes later (:meth:`Expert.recounted`).
    """
    item_ids, offsets = train_sequences(positives.dataset, positives.split)
    counts = PairCounts.of(item_ids, offsets, recommender.catalog.num_items, config.neighbours)
    dataset, rows = view.dataset, view.split.valid
    lengths = rows.ends - rows.starts
    quarters = np.quantile(lengths, (0.25, 0.5, 0.75), method="inverted_cdf") if len(rows) else np.zeros(0)
    edges = torch.from_numpy(np.unique(quarters[quarters > lengths.min(initial=0)]).astype(np.int64))
    weights = torch.zeros(len(edges) + 1, 1 + len(FEATURES))
    weights[:, 0] = 1.0
    for name, value in FIRST.items():
        weights[:, 1 + FEATURES.index(name)] = value
    expert = Expert(config, counts, edges, weights).to(recommender.device)
    if not len(rows):
        return _off(expert, "there are no validation rows to learn from", {})
    lessons = lessons_of(expert, recommender, dataset, sample_rows(rows, config.max_rows, seed))
    alone = torch.zeros(2, lessons.num_rows)
    alone[:, : len(lessons.targets)] = gains(lessons, torch.eye(1, 1 + len(FEATURES)))
    trials = {SEARCH_ALONE: {"keep": float(alone[0].mean()), "filter": float(alone[1].mean())}}
    fewest = min(int((lessons.halves == half).sum()) for half in (0, 1))
    if fewest < FEWEST:
        why = f"{fewest} validation rows of a half have their target among the candidates, {FEWEST} teach"
        return _off(expert, why, trials)
    best, most = "", (0.0, 0.0)
    for name, (features, by_bucket) in DESIGNS.items():
        held_out = torch.zeros(2, lessons.num_rows)
        for half in (0, 1):
            learned = learn(lessons.of(lessons.halves != half), features, by_bucket, len(edges) + 1)
            mine = torch.nonzero(lessons.halves == half)[:, 0]
            held_out[:, mine] = gains(lessons.of(lessons.halves == half), learned)
        gain = (held_out - alone).mean(0)  # (rows,) of both modes
        error = float(gain.std() / len(gain) ** 0.5)
        trials[name] = {"keep": float(held_out[0].mean()), "filter": float(held_out[1].mean()),
                        "gain": float(gain.mean()), "standard_error": error}  # fmt: skip
        if float(gain.mean()) > max(most[0], SURE * error):
            best, most = name, (float(gain.mean()), error)
    if not best:
        return _off(expert, f"no design gains more than {SURE:g} standard errors on held-out validation rows", trials)
    weights = learn(lessons, *DESIGNS[best], len(edges) + 1).to(recommender.device)
    info = {"on": True, "why": f"{best}: NDCG@{K} {most[0]:+.4f} on held-out validation rows", "design": best}
    return replace(expert, weights=weights, info={**info, "trials": trials, "rows": lessons.num_rows})


def _off(expert: Expert, why: str, trials: dict[str, Any]) -> Expert:
    return replace(expert, info={"on": False, "why": why, "design": SEARCH_ALONE, "trials": trials})


def lessons_of(
    expert: Expert, recommender: Recommender, dataset: Dataset, rows: EvalRows,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Lessons:  # fmt: skip
    """Pools of these rows by the weights that the expert has."""
    halves = np.random.default_rng(0).permutation(dataset.num_users) % 2
    beam, snapshot = recommender.beam, recommender.snapshot
    parts: list[dict[str, Tensor]] = []
    for index, batch in questions(recommender, dataset, rows, BATCH):
        with torch.inference_mode():
            query = Query(snapshot, batch.to(snapshot.device), beam, beam=beam)
            proposals = expert.proposals(query)[:, :PROPOSED] if snapshot.generates else None
            pool = expert.pool(query, search(query, beam, proposals))
        parts.append(_lesson(pool, torch.from_numpy(rows.target_ids[index]).to(snapshot.device)))
        parts[-1]["halves"] = torch.from_numpy(halves[rows.user_ids[index]])[parts[-1].pop("is_there").cpu()]
        progress(int(index[-1]) + 1, len(rows))
    width = max(part["none_mask"].shape[1] for part in parts)
    fill = {"none_mask": 1, "features": 0, "seen_mask": 0}
    columns = {
        name: torch.cat([_wide(part[name], width, fill[name]) if name in fill else part[name] for part in parts])
        for name in parts[0]
    }
    return Lessons(**columns, num_rows=len(rows))


def _lesson(pool: Pool, targets: Tensor) -> dict[str, Tensor]:
    """Of the histories of a batch whose target is in their pool."""
    none_mask = (pool.item_ids < 0) | (pool.log_probs == NEG_INF)
    hits = (pool.item_ids == targets[:, None]) & ~none_mask
    there = hits.any(1)
    features = torch.cat((pool.log_probs[..., None], pool.features), dim=2).masked_fill(none_mask[..., None], 0.0)
    columns = {
        "features": features, "none_mask": none_mask, "targets": hits.int().argmax(1), "buckets": pool.buckets,
        "seen_mask": pool.features[..., FEATURES.index("seen")] > 0,
    }  # fmt: skip
    return {name: column[there].cpu() for name, column in columns.items()} | {"is_there": there}


def _wide(table: Tensor, width: int, fill: int) -> Tensor:
    """(r, C, ...) -> (r, width, ...)"""
    wide = table.new_full((len(table), width, *table.shape[2:]), fill)
    wide[:, : table.shape[1]] = table
    return wide


def learn(lessons: Lessons, names: tuple[str, ...], by_bucket: bool, num_buckets: int) -> Tensor:
    """(K, 1 + F) weights, 0 for features that are not named."""
    used = torch.tensor([0, *(1 + FEATURES.index(name) for name in names)])
    features = lessons.features[..., used]  # (R, C, f)
    real = ~lessons.none_mask
    centred = features - (features.sum(1) / real.sum(1, keepdim=True))[:, None]
    spread = (centred.square() * real[..., None]).sum((0, 1)).div(real.sum()).sqrt()
    scale = torch.where(spread > 1e-6, spread, 1.0)
    scaled, prior = features / scale, torch.zeros(len(used))
    prior[0] = scale[0]  # log p as it is
    buckets = lessons.buckets if by_bucket else torch.zeros_like(lessons.buckets)
    number = num_buckets if by_bucket else 0
    shared, own = prior.clone().requires_grad_(), torch.zeros(number, len(used), requires_grad=True)
    optimizer = torch.optim.LBFGS([shared, own] if number else [shared], max_iter=200, line_search_fn="strong_wolfe",
                                    tolerance_grad=1e-4, tolerance_change=1e-7)  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        weights = shared + own[buckets] if number else shared.expand(len(buckets), -1)  # (R, f)
        scores = torch.einsum("rcf,rf->rc", scaled, weights).masked_fill(lessons.none_mask, NEG_INF)
        total = torch.nn.functional.cross_entropy(scores, lessons.targets, reduction="sum")
        total = total + PENALTY / 2 * (shared - prior).square().sum() + BUCKET_PENALTY / 2 * own.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    weights = torch.zeros(num_buckets, 1 + len(FEATURES))
    weights[:, used] = ((shared + own if number else shared.expand(num_buckets, -1)) / scale).detach()
    return weights


def gains(lessons: Lessons, weights: Tensor) -> Tensor:
    """(2, R) NDCG@10 of each row's target, seen items kept and filtered. Equal scores: the pool's order."""
    chosen = weights[lessons.buckets] if len(weights) > 1 else weights.expand(len(lessons.buckets), -1)
    scores = torch.einsum("rcf,rf->rc", lessons.features, chosen).masked_fill(lessons.none_mask, NEG_INF)
    own = scores.gather(1, lessons.targets[:, None])
    places = torch.arange(scores.shape[1])
    above = (scores > own) | ((scores == own) & (places < lessons.targets[:, None]))
    target_seen = lessons.seen_mask.gather(1, lessons.targets[:, None])[:, 0]
    found = []
    for rank in (above.sum(1), (above & ~lessons.seen_mask).sum(1).masked_fill(target_seen, K)):
        found.append(torch.where(rank < K, 1 / (rank + 2.0).log2(), 0.0))
    return torch.stack(found)
