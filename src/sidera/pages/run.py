"""The page about one run or several: what they find, example answers, tables, slices, curves, codes, latency.

    sidera report runs/mine                       # again what `sidera run` wrote
    sidera report runs/mine runs/sasrec --out both.html

Made from what the run folders hold: artifacts of kind "evaluation" and "catalog" at any depth, and ``metrics.jsonl``
files of trainings. A part whose input is missing says so on the page instead of vanishing.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sidera.catalog.catalog import Catalog
from sidera.eval.evaluation import Evaluation
from sidera.pages import charts
from sidera.pages.charts import Figure
from sidera.pages.cold import cold_sections
from sidera.pages.headline import headline, main_k
from sidera.pages.names import data_title
from sidera.pages.ranker import ranker_evaluations, write_ranker_page
from sidera.pages.render import write_page
from sidera.pages.results import metric_name, overview, protocol, tables
from sidera.pages.runs import Measured, holds_lists, read_runs

SLICE_ORDER = {"popularity": ("head", "mid", "tail", "cold"), "history": ("0", "1-4", "5-9", "10-19", "20-49", "50+")}
SLICE_TITLES = {"popularity": "target by training events", "history": "events in the history"}
MIN_SLICE_ROWS = 30  # the interval of fewer rows would be wider than the plot


def write_report(run_dirs: str | Path | Sequence[str | Path], out_html: str | Path, *, title: str = "") -> Path:
    """Write the page about one run folder, or several side by side, to ``out_html`` and return its path."""
    paths = [run_dirs] if isinstance(run_dirs, str | Path) else list(run_dirs)
    if not any(holds_lists(path) for path in paths) and (rankers := ranker_evaluations(paths)):
        return write_ranker_page(rankers, out_html, title=title)
    runs = read_runs(paths)
    groups = runs.groups()
    first = groups[0]
    return write_page(
        out_html,
        "run.html",
        title=title or _title(first),
        headline=headline(first),
        overview=overview(first),
        protocol=protocol(first),
        examples=_examples(first),
        groups=[{"which": group[0].run.protocol["which"], "tables": tables(group), "notes": _notes(group)}
                for group in groups],
        slices=_slices(first),
        training=_training(runs.trainings),
        catalogs=_catalogs(runs.catalogs),
        latency=_latency(runs.measured),
        cold=cold_sections(runs.cold),
        serve=_serve(first[0]),
    )  # fmt: skip


def _title(measured: Sequence[Measured]) -> str:
    own = [one.label for one in measured if not one.baseline]
    what = own[0] if len(own) == 1 else f"{len(own)} runs"
    return f"{data_title(measured[0].run.protocol['dataset'])} · {what}"


def _examples(measured: Sequence[Measured]) -> dict[str, Any]:
    """Of the first run that kept some: histories, what came next, what was answered."""
    one = next((one for one in measured if one.run.samples and not one.baseline), None)
    if one is None:
        return {"label": "", "samples": [], "which": ""}
    return {"label": one.label, "samples": one.run.samples, "which": one.run.protocol["which"]}


def _notes(measured: Sequence[Measured]) -> list[str]:
    notes = []
    for one in measured:
        if one.run.legality:
            shares = {
                int(name.partition("@")[2]): 100 * value for name, value in one.run.legality.items() if name != "rows"
            }
            words = ", ".join(
                f"{share:.1f} % of the {f'best {beams} beams' if beams > 1 else 'best beams'}"
                for beams, share in shares.items()
            )
            notes.append(
                f"Free generation by {one.label} (no trie, {one.run.legality['rows']:.0f} rows): {words} are items "
                "that exist. Served answers come from the trie: all of them exist."
            )
        notes += _shared_ids(one)
    return notes


def _shared_ids(one: Measured) -> list[str]:
    """What the served order inside shared semantic IDs is worth, where there are such."""
    seen = one.run.protocol["seen"][0]
    metrics = one.run.metrics[seen]
    pairs = [
        f"{metric_name(name)} {metrics[name].value:.4f} served, {metrics[f'expected_{name}'].value:.4f} expected"
        for name in metrics
        if f"expected_{name}" in metrics and abs(metrics[name].value - metrics[f"expected_{name}"].value) > 1e-9
    ]
    if not pairs:
        return []
    return [
        f"Items share semantic IDs in {one.label} (seen = {seen}). In the served order and as expected over all orders "
        f"inside an ID: {'; '.join(pairs)}."
    ]


def _slices(measured: Sequence[Measured]) -> dict[str, Any]:
    """Recall by the target's popularity and by the history's length, in the first seen mode."""
    seen = measured[0].run.protocol["seen"][0]
    metric = f"recall@{main_k(measured[0].run)}"
    shown = [one for one in measured if _has_slices(one.run, seen, metric)]
    if not shown:
        return {"figures": [], "protocol": "", "head": 0, "tail": 0, "small": ""}
    figures = [_slice_figure(shown, seen, kind, metric) for kind in SLICE_ORDER]
    small = [
        f"{name} ({part.rows} rows, {part.metrics[metric].value:.3f})"
        for kind in SLICE_ORDER
        for name, part in shown[0].run.slices[seen][kind].items()
        if name not in drawn_slices([one.run for one in shown], seen, kind)
    ]
    first = shown[0].run.protocol
    return {
        "figures": figures,
        "protocol": protocol(shown, seen),
        "head": first["head_min_events"],
        "tail": first["tail_max_events"],
        "small": f"Too few rows to draw: {', '.join(small)} for {shown[0].label}." if small else "",
    }


def _has_slices(run: Evaluation, seen: str, metric: str) -> bool:
    parts = run.slices.get(seen, {}).get("popularity", {})
    return any(metric in part.metrics for part in parts.values())


def _slice_figure(shown: Sequence[Measured], seen: str, kind: str, metric: str) -> Figure:
    names = drawn_slices([one.run for one in shown], seen, kind)
    slices = {one.label: one.run.slices[seen][kind] for one in shown}
    rows = {name: max(parts[name].rows for parts in slices.values() if name in parts) for name in names}
    values = {
        label: [
            (parts[name].metrics[metric].value, parts[name].metrics[metric].low, parts[name].metrics[metric].high)
            if name in parts
            else None
            for name in names
        ]
        for label, parts in slices.items()
    }
    title = f"{metric_name(metric)} by {'target popularity' if kind == 'popularity' else 'history length'}"
    ticks = [f"{name}\n{rows[name]:,} rows" for name in names]
    return charts.groups(title, ticks, values, SLICE_TITLES[kind], metric_name(metric))


def drawn_slices(runs: Sequence[Evaluation], seen: str, kind: str) -> list[str]:
    """Slices with enough rows to be drawn; all of them when none has."""
    measured = [name for name in SLICE_ORDER[kind] if any(name in run.slices[seen][kind] for run in runs)]
    rows = {
        name: max(run.slices[seen][kind][name].rows for run in runs if name in run.slices[seen][kind])
        for name in measured
    }
    return [name for name in measured if rows[name] >= MIN_SLICE_ROWS] or measured


def _training(trainings: Mapping[str, list[dict[str, Any]]]) -> list[Figure]:
    losses: dict[str, charts.Curves] = {}
    checks: dict[str, charts.Curves] = {}
    for label, lines in trainings.items():
        trained = [line for line in lines if "loss" in line and line.get("event", "train") == "train"]
        if trained:
            losses[label] = {"": ([line["step"] for line in trained], [line["loss"] for line in trained])}
        watched = {}
        for metric, name in (("ndcg@10", "keep"), ("filter_ndcg@10", "filter")):
            checked = [line for line in lines if metric in line]
            if checked:
                watched[name] = ([line["step"] for line in checked], [line[metric] for line in checked])
        if watched:
            checks[label] = watched
    figures = []
    if losses:
        figures.append(charts.curves("Training loss", losses, "optimizer step", "loss"))
    if checks:
        title = "Validation during training"
        figures.append(charts.curves(title, checks, "optimizer step", "NDCG@10, validation rows", markers=True))
    return figures


def _catalogs(catalogs: Mapping[str, Catalog]) -> list[dict[str, Any]]:
    """One figure and table for each codebook: models of one run often share it."""
    distinct = {catalog.codebook_id: (label, catalog) for label, catalog in catalogs.items() if catalog.has_codes}
    described = []
    for label, catalog in distinct.values():
        title = "Code usage" if len(distinct) == 1 else f"Code usage: {label}"
        coded = catalog.codes.ndim == 2 and catalog.codes.shape[1] > 0
        sids = len(np.unique(catalog.codes, axis=0)) if coded else 0
        described.append({
            "figures": [charts.code_usage(title, np.asarray(catalog.codes), catalog.level_sizes)] if coded else [],
            "facts": _facts(catalog.report),
            "note": f"{f'{label}: ' if len(distinct) > 1 else ''}{catalog.num_items:,} items, "
            + (f"{sids:,} distinct semantic IDs of {catalog.num_levels} codes; " if coded else "no codes; ")
            + f"codebook {catalog.codebook_id}, items version {catalog.items_version}",
        })  # fmt: skip
    return described


def _facts(report: Mapping[str, Any]) -> dict[str, float | int]:
    """The single numbers of a catalogue's report; nested ones as "part: name"."""
    flat: dict[str, Any] = {}
    for key, value in report.items():
        flat |= {f"{key}: {inner}": one for inner, one in value.items()} if isinstance(value, Mapping) else {key: value}
    return {key.replace("_", " "): value for key, value in flat.items() if isinstance(value, int | float)}


def _latency(measured: Sequence[Measured]) -> dict[str, Any] | None:
    timed = [one for one in measured if one.run.latency.get("cpu_ms")]
    if not timed:
        return None
    values = {
        one.label: (
            f"{one.label}: median {one.run.latency['cpu_ms_p50']:.2f}, p95 {one.run.latency['cpu_ms_p95']:.2f} ms",
            one.run.latency["cpu_ms"],
        )
        for one in timed
    }
    figure = charts.histogram("Latency of one request", values, "CPU milliseconds for one request", "requests")
    return {"figure": figure, "rows": [(one.label, one.run.latency) for one in timed], "first": timed[0].run.latency}


def _serve(one: Measured) -> list[str]:
    samples = one.run.samples
    history = ",".join(item["key"] for item in samples[0]["history"]) if samples else "ITEM,ITEM"
    folder = shlex.quote(str(one.folder))
    return [
        f"sidera recommend {folder} --history {shlex.quote(history)} -k 10",
        f"sidera serve {folder} --port 8000",
    ]
