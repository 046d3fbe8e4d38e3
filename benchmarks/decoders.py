"""Claim `decoders`: every way to decode on one quality/latency plot, Amazon Beauty, equal training.

    python benchmarks/decoders.py [--quick] [--minutes 6] [--runs FOLDER] [--only RUN ...] [--rows 10000]

Each generator is trained with one seed and the same processor time (catalogue and training, one thread); the distilled
MLPs get it a second time behind their teacher's. Trainings lie in ``--runs`` and are reused; ``--only`` trains these
and measures nothing. Then every way to search every generator answers the same test rows: NDCG@10 and Recall@10 with
bootstrap intervals, and CPU-ms per answer for batches of 1 and of 64, round after round, everyone once per round. A
training that is absent leaves its rows empty. The picture is ``docs/pictures/decoders.svg``.

Bars: RPG R@10 .076 and NDCG@10 .043 (filter; the published figures are .0809 and .0464); the MLPs at least 95 % of
their teacher's NDCG@10 in at most 40 % of its time for an answer.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from accuracy import DATA, ROOT
from harness import arguments, finish, interleaved, single_thread, tuned_allocator

PICTURE = ROOT / "docs" / "pictures" / "decoders.svg"
K, BEAM, SEED = 10, 50, 0
BATCHES = (1, 64)
TIGER = (
    "model.width=64", "model.num_layers=4", "model.num_heads=4", "model.head_width=16", "model.ff_width=256",
    'catalog.collision="greedy"', "catalog.quantizer.num_levels=3", "catalog.quantizer.codebook_size=256",
    "catalog.quantizer.balanced=true", "fit.batch_size=256", "fit.lr=3e-3", "fit.warmup_steps=200",
)  # fmt: skip
PARALLEL = ('catalog.quantizer.name="opq"', "catalog.quantizer.codebook_size=256", "catalog.quantizer.rotations=2")
QUICK = {"minutes": 0.1, "rows": 300}


@dataclass(frozen=True)
class Run:
    """One training."""

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    teacher: str = ""  # a run that is trained before


@dataclass(frozen=True)
class Row:
    """One way to search one training: a point of the plot."""

    label: str
    run: str
    search: str = "auto"


RUNS = (
    Run("tiger", "any/tiger.toml", TIGER),
    Run("tiger_mlp", "any/tiger_mlp.toml", TIGER, teacher="tiger"),
    Run("tiger_mtp", "any/tiger_mtp.toml", TIGER),
    Run("rpg", "any/rpg.toml", (*PARALLEL, "catalog.quantizer.num_levels=8")),
    Run("masked_codes", "any/masked_codes.toml", (*PARALLEL, "catalog.quantizer.num_levels=4")),
    Run("sidera", "beauty/generator.toml"),
    Run("liger", "beauty/liger.toml"),
    Run("cobra", "beauty/cobra.toml"),
)
ROWS = (
    Row("TIGER, beam", "tiger"),
    Row("TIGER's MLPs, distilled", "tiger_mlp", "beam"),
    Row("MLPs draft, TIGER checks", "tiger_mlp", "draft"),
    Row("TIGER with MTP, beam", "tiger_mtp", "beam"),
    Row("MTP drafts, TIGER checks", "tiger_mtp", "draft"),
    Row("MTP heads alone", "tiger_mtp", "exact"),
    Row("RPG, exact", "rpg", "exact"),
    Row("RPG, graph", "rpg", "graph"),
    Row("RPG, beam", "rpg", "beam"),
    Row("masked diffusion, surest first", "masked_codes", "unmask"),
    Row("masked diffusion, left to right", "masked_codes", "beam"),
    Row("sidera's generator, beam", "sidera"),
    Row("LIGER", "liger"),
    Row("COBRA", "cobra"),
)
SAME = (  # answers that should be equal: (row, the row that it stands for)
    ("MLPs draft, TIGER checks", "TIGER, beam"),
    ("MTP drafts, TIGER checks", "TIGER with MTP, beam"),
    ("RPG, graph", "RPG, exact"),
    ("RPG, beam", "RPG, exact"),
)
BARS = {"rpg/recall@10": 0.076, "rpg/ndcg@10": 0.043, "mlp/ndcg_share": 0.95, "mlp/time_share": 0.40}


def recipe_of(one: Run, minutes: float, folder: Path, quick: bool) -> Any:
    """The recipe with the common budget; None where the project has none of this name."""
    from sidera.train.recipe import Recipe

    path = ROOT / "recipes" / one.recipe
    if not path.exists():
        return None
    vectors = '["tfidf", "behaviour"]' if quick else '["text", "behaviour"]'
    common = [
        f"catalog.vectors={vectors}", f"fit.max_minutes={minutes}", 'fit.clock="cpu"', "fit.num_threads=1",
        'fit.precision="f32"', "fit.patience=0", "fit.epochs=500", "fit.eval_every_epochs=0", "fit.eval_every_steps=0",
        f"fit.seed={SEED}", "eval.valid_rows=1000", "eval.ks=[5, 10]", "eval.max_rows=10000",
    ]  # fmt: skip
    if quick:
        common += ["catalog.quantizer.codebook_size=64", "catalog.quantizer.rotations=0"]
    if one.teacher:
        common.append(f'model.teacher="{folder / one.teacher}"')
    return Recipe.read(path, [*one.overrides, *common])


def train_missing(names: Sequence[str], minutes: float, folder: Path, data: Path, quick: bool) -> dict[str, str]:
    """Train what is absent, teachers first; -> run -> why there is none."""
    from sidera.core import InputError
    from sidera.train.stages import train

    failed: dict[str, str] = {}
    for one in RUNS:
        if one.name not in names or (folder / one.name / "model" / "manifest.json").exists():
            continue
        try:
            recipe = recipe_of(one, minutes, folder, quick)
            if recipe is None:
                failed[one.name] = f"no recipe {one.recipe}"
                continue
            train(recipe, data, folder / one.name)
        except InputError as error:
            failed[one.name] = str(error)
    return failed


class Asked:
    """A row's recommender and the rows that it is asked about."""

    def __init__(self, row: Row, folder: Path, data: Path, rows: int) -> None:
        from sidera.engine.recommender import Recommender
        from sidera.eval.ranking import sample_rows
        from sidera.train.recipe import Recipe
        from sidera.train.stages import prepare

        self.row = row
        self.prepared = prepare(Recipe.of_run(folder / row.run), data, say=lambda text: None)
        self.recommender = Recommender.load(folder / row.run, beam=BEAM)
        self.recommender.search = row.search
        self.rows = sample_rows(self.prepared.split.test, rows, SEED)
        self.ids: Any = None  # (rows, K) in the order of the rows, seen items kept

    def measured(self, bootstrap: int) -> dict[str, Any]:
        """Both modes' figures with intervals."""
        import numpy as np

        from sidera.eval.bootstrap import intervals
        from sidera.eval.metrics import row_metrics, target_ranks
        from sidera.eval.ranking import questions

        flat: dict[str, Any] = {}
        for seen in ("keep", "filter"):
            ids = np.full((len(self.rows), K), -1)
            for index, batch in questions(self.recommender, self.prepared.dataset, self.rows, 128):
                ranked = self.recommender.rank(batch, K, beam=BEAM, filter_seen=seen == "filter")
                ids[index] = ranked.item_ids.numpy()
            self.ids = ids if seen == "keep" else self.ids
            means = row_metrics(target_ranks(ids, self.rows.target_ids), [K])
            flat |= {f"{seen}/{name}": means[name] for name in (f"recall@{K}", f"ndcg@{K}")}
        found = intervals(flat, self.rows.user_ids, resamples=bootstrap, seed=SEED)
        return {name: [round(float(x), 5) for x in (e.value, e.low, e.high)] for name, e in found.items()}

    def batches(self, size: int, number: int) -> list[Any]:
        """The same histories for every row, of all lengths."""
        import numpy as np

        from sidera.eval.ranking import questions

        few = self.rows.take(np.arange(min(len(self.rows), size * number)))
        every = [batch for _, batch in questions(self.recommender, self.prepared.dataset, few, size)]
        return [every[at] for at in np.random.default_rng(SEED).permutation(len(every))]

    def answer(self, batch: Any) -> Any:
        return self.recommender.rank(batch, K, beam=BEAM)


def milliseconds(asked: Sequence[Asked], size: int, rounds: int) -> dict[str, float]:
    """CPU-ms of one answer of each row, in batches of ``size``: the median of the rounds, rows interleaved."""
    number = rounds if size > 1 else 4 * rounds
    calls: dict[str, Callable[[], Any]] = {}
    for one in asked:
        order = cycle(one.batches(size, number))
        calls[one.row.label] = partial(lambda one, order: one.answer(next(order)), one, order)
    seconds = interleaved(calls, number)
    return {label: round(1e3 * statistics.median(spent) / size, 3) for label, spent in seconds.items()}


def searching_share(mlp: Asked, teacher: Asked, rounds: int) -> float:
    """Time of the search alone, the history being encoded: the MLPs' share of their teacher's, one history a call."""
    import torch

    calls: dict[str, Callable[[], Any]] = {}
    for one in (mlp, teacher):
        snapshot = one.recommender.snapshot
        with torch.inference_mode():
            contexts = [snapshot.generator.context(snapshot.readable(batch)) for batch in one.batches(1, 2 * rounds)]
        calls[one.row.label] = partial(
            lambda snapshot, order: snapshot.beams(next(order), width=BEAM, num_results=K), snapshot, cycle(contexts)
        )
    seconds = interleaved(calls, 2 * rounds)
    first, second = (statistics.median(seconds[one.row.label]) for one in (mlp, teacher))
    return round(first / second, 3)


def equal_share(one: Asked, other: Asked) -> dict[str, float]:
    """Of the rows whose ten items are the other's: in the same order, and as a set."""
    import numpy as np

    same = (one.ids == other.ids).all(1)
    sets = (np.sort(one.ids, axis=1) == np.sort(other.ids, axis=1)).all(1)
    return {"same_order": round(float(same.mean()), 4), "same_items": round(float(sets.mean()), 4)}


def draw(table: dict[str, dict[str, Any]]) -> None:
    """NDCG@10 with its interval over CPU-ms of an answer: for one request, and for a batch of 64."""
    from sidera.pages.axes import axis
    from sidera.pages.charts import SERIES, WIDTH, Frame, Key
    from sidera.pages.standalone import write_svg

    there = {label: row for label, row in table.items() if "filter/ndcg@10" in row}
    heights = [x for row in there.values() for x in row["filter/ndcg@10"]]
    figures = []
    for size in BATCHES:
        times = [row[f"ms@{size}"] for row in there.values()]
        frame = Frame(axis(times, log=True, margin=0.12), axis(heights, margin=0.08), height=360)
        frame.grid("CPU-ms for an answer", "NDCG@10, seen items filtered")
        legend = []
        for number, (label, row) in enumerate(there.items()):
            style, (value, low, high) = f"s{number % SERIES}", row["filter/ndcg@10"]
            x = frame.px(row[f"ms@{size}"])
            frame.line((x, frame.py(low)), (x, frame.py(high)), f"span {style}")
            frame.dot(x, frame.py(value), style)
            frame.text(min(x + 6, WIDTH - 14), frame.py(value) - 5, str(number + 1), "tick")
            legend.append(Key(number % SERIES, 0, f"{number + 1}: {label}"))
        title = "one request at a time" if size == 1 else f"batches of {size}"
        figures.append(frame.figure(f"Amazon Beauty, {title}", legend))
    write_svg(figures, PICTURE)


def bars_reached(table: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """What the bars are compared with; None where it was not measured."""
    value: dict[str, float | None] = dict.fromkeys(BARS)
    rpg, mlp, teacher = (table.get(label, {}) for label in ("RPG, exact", "TIGER's MLPs, distilled", "TIGER, beam"))
    if "filter/ndcg@10" in rpg:
        value |= {f"rpg/{name}": rpg[f"filter/{name}"][0] for name in ("recall@10", "ndcg@10")}
    if "keep/ndcg@10" in mlp and teacher.get("keep/ndcg@10", [0])[0]:
        value["mlp/ndcg_share"] = round(mlp["keep/ndcg@10"][0] / teacher["keep/ndcg@10"][0], 3)
        value["mlp/time_share"] = round(mlp["ms@1"] / teacher["ms@1"], 3)
    return value


def reached(name: str, found: float | None) -> bool:
    """Whether a figure is there and within its bar: of a share of time from below."""
    return found is not None and (found <= BARS[name] if name == "mlp/time_share" else found >= BARS[name])


def main() -> None:
    def flags(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--minutes", type=float, default=6.0, help="processor time of each training")
        parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "decoders", help="folder of the trainings")
        parser.add_argument("--only", nargs="*", default=[], help="train these and measure nothing")
        parser.add_argument("--rows", type=int, default=10_000, help="test rows that are ranked")

    options = arguments(__doc__, flags)
    tuned_allocator()
    single_thread()
    data, folder, names = DATA / "amazon2014_beauty", options.runs, options.only or [one.name for one in RUNS]
    minutes, rows, rounds, rows_shown = options.minutes, options.rows, 15, list(ROWS)
    if options.quick:
        minutes, rows, rounds, folder = QUICK["minutes"], int(QUICK["rows"]), 2, folder / "quick"
        names = ["rpg"]
        rows_shown = [row for row in ROWS if row.run == "rpg"]
    failed = train_missing(names, minutes, folder, data, options.quick)
    if options.only:
        print(failed or "trained")
        return
    asked: list[Asked] = []
    table: dict[str, dict[str, Any]] = {row.label: {} for row in rows_shown}
    for row in rows_shown:
        if not (folder / row.run / "model" / "manifest.json").exists():
            table[row.label] = {"absent": failed.get(row.run, "not trained")}
            continue
        asked.append(Asked(row, folder, data, rows))
        table[row.label] = asked[-1].measured(200 if options.quick else 1000)
        print(row.label, table[row.label], flush=True)
    for size in BATCHES:
        for label, spent in milliseconds(asked, size, rounds).items():
            table[label][f"ms@{size}"] = spent
    by_label = {one.row.label: one for one in asked}
    pairs = [(a, b) for a, b in SAME if a in by_label and b in by_label]
    shares: dict[str, Any] = {f"{a} = {b}": equal_share(by_label[a], by_label[b]) for a, b in pairs}
    for one in asked:
        search: Any = one.recommender.snapshot.searcher if one.row.search == "draft" else None
        if search is not None:
            shares[f"{one.row.label}: searched again"] = round(search.again / max(1, search.histories), 4)
    mlp, teacher = by_label.get("TIGER's MLPs, distilled"), by_label.get("TIGER, beam")
    if mlp is not None and teacher is not None:
        shares["mlp/search_alone_time_share"] = searching_share(mlp, teacher, rounds)
    value = bars_reached(table)
    passed = all(reached(name, value[name]) for name in BARS)
    if not options.quick:
        draw(table)
    context = {
        "seed": SEED, "minutes": minutes, "rows": rows, "beam": BEAM, "k": K, "rows_of_the_plot": table,
        "equal_answers": shares, "trained": trained(folder), "picture": "docs/pictures/decoders.svg",
    }  # fmt: skip
    finish("decoders", value, BARS, passed, context, options.quick)


def trained(folder: Path) -> dict[str, Any]:
    """Steps, CPU-minutes and parameters of every training that is there."""
    from sidera.loading import open_artifact

    found = {}
    for one in RUNS:
        if (folder / one.name / "model" / "manifest.json").exists():
            info = open_artifact(folder / one.name / "model", "model").info("training", dict)
            found[one.name] = {key: info.get(key) for key in ("steps", "cpu_minutes", "parameters")}
    return found


if __name__ == "__main__":
    main()
