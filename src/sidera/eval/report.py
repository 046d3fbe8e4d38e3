"""One HTML page about a run: results, curves, codes, slices, latency, example answers. ``sidera run`` writes it.

The page is self-contained (inline SVG and style, no script, nothing fetched) and made from what the run folder holds:
artifacts of kind "evaluation" and "catalog" at any depth, and ``metrics.jsonl`` files of trainings. A part whose input
is missing says so on the page instead of vanishing.
"""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidera.artifacts import MANIFEST, write_text
from sidera.catalog.catalog import Catalog
from sidera.core import InputError
from sidera.eval import plots
from sidera.eval.compare import SAME
from sidera.eval.evaluation import KIND, Evaluation, load_evaluation
from sidera.eval.page import page
from sidera.eval.tables import protocol_line

SEEN_MEANS = {
    "keep": "items of the history may be recommended again",
    "filter": "items of the history are left out",
}


@dataclass(frozen=True)
class RunFolder:
    """What was found under a run folder."""

    best: Path  # where the first evaluation's model lies: what the page says how to serve
    evaluations: list[Evaluation]  # test first, generators before scorers, then by name
    catalogs: dict[str, Catalog]
    trainings: dict[str, list[dict[str, Any]]]  # label -> lines of metrics.jsonl


def write_report(run_dir: str | Path, out_html: str | Path, *, title: str = "") -> Path:
    """Write the page about ``run_dir`` to ``out_html`` and return its path."""
    run = read_run(run_dir)
    heading = title or f"{run.evaluations[0].protocol['dataset']}: {run.evaluations[0].name}"
    parts = [
        *_results(run.evaluations),
        _section("Training", _training(run.trainings)),
        _section("Where the hits are", _slices(run.evaluations)),
        _section("Catalogue", _codes(run.catalogs)),
        _section("Latency", _latency(run.evaluations)),
        _section("Examples", _examples(run.evaluations[0])),
        _section("Serve it", _serve(run)),
    ]
    write_text(out_html, page(heading, "".join(parts)))
    return Path(out_html)


def read_run(run_dir: str | Path) -> RunFolder:
    """Read every evaluation, catalogue and training log below a folder; InputError when nothing was evaluated there."""
    path = Path(run_dir)
    if not path.is_dir():
        raise InputError(f"no run folder at {str(path)!r}", fix="give a folder that `sidera run` wrote")
    found, catalogs = [], {}
    for manifest in sorted(path.rglob(MANIFEST)):
        folder = manifest.parent
        if any(part.startswith(".") for part in folder.relative_to(path).parts):
            continue  # an artifact being written, or the remains of one
        kind = json.loads(manifest.read_text(encoding="utf-8")).get("kind")
        if kind == KIND:
            found.append((load_evaluation(folder), folder.parent))
        elif kind == "catalog":
            catalogs[_label(folder, path)] = Catalog.load(folder)
    if not found:
        raise InputError(f"{str(path)!r} holds no evaluation", fix="run `sidera evaluate` on it first")
    found.sort(
        key=lambda one: (one[0].protocol["which"] != "test", one[0].protocol["kind"] != "generator", one[0].name)
    )
    trainings = {_label(file.parent, path): _lines(file) for file in sorted(path.rglob("metrics.jsonl"))}
    return RunFolder(found[0][1], [run for run, _ in found], catalogs, trainings)


def _label(folder: Path, root: Path) -> str:
    """The part of the path that tells runs apart: runs/demo/tiger/train -> tiger."""
    return "/".join(folder.relative_to(root).parts[:-1]) or root.resolve().name


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def _results(evaluations: Sequence[Evaluation]) -> list[str]:
    """A table for each set of comparable evaluations and each seen mode, its protocol beside it."""
    groups: dict[str, list[Evaluation]] = {}
    for run in evaluations:
        groups.setdefault(json.dumps([run.protocol[key] for key in SAME]), []).append(run)
    sections = []
    for runs in groups.values():
        first = runs[0].protocol
        tables = [_table(runs, seen) for seen in SEEN_MEANS if any(seen in run.metrics for run in runs)]
        legal = "".join(
            f"<p class='note'>Free generation by {html.escape(run.name)} (no trie, {run.legality['rows']:.0f} rows): "
            f"{_legal(run.legality)} are items that exist. Served answers come from the trie: all of them exist.</p>"
            for run in runs
            if run.legality
        )
        notes = legal + "".join(_shared_ids(run) for run in runs)
        sections.append(_section(f"Results on {first['which']}", "".join(tables) + notes))
    return sections


def _shared_ids(run: Evaluation) -> str:
    """What the served order inside shared semantic IDs is worth, where there are such."""
    seen = run.protocol["seen"][0]
    pairs = [
        f"{name} {run.metrics[seen][name].value:.4f} served, {run.metrics[seen][f'expected_{name}'].value:.4f} expected"
        for name in run.metrics[seen]
        if f"expected_{name}" in run.metrics[seen]
        and abs(run.metrics[seen][name].value - run.metrics[seen][f"expected_{name}"].value) > 1e-9
    ]
    if not pairs:
        return ""
    return (
        f"<p class='note'>Items share semantic IDs in {html.escape(run.name)} (seen = {seen}). In the served order and "
        f"as expected over all orders inside an ID: {'; '.join(pairs)}.</p>"
    )


def _legal(legality: Mapping[str, float]) -> str:
    shares = {int(name.partition("@")[2]): 100 * value for name, value in legality.items() if name != "rows"}
    return ", ".join(
        f"{share:.1f} % of the {f'best {beams} beams' if beams > 1 else 'best beams'}"
        for beams, share in shares.items()
    )


def _table(runs: Sequence[Evaluation], seen: str) -> str:
    runs = [run for run in runs if seen in run.metrics]
    names = [name for name in runs[0].metrics[seen] if not name.startswith("expected_")]
    short_mrr = [name for name in names if name.startswith("mrr@")][:-1]  # the longest list's says the same and more
    names = [name for name in names if name not in short_mrr]
    lists = list(runs[0].lists[seen])
    best = {name: max(run.metrics[seen][name].value for run in runs if name in run.metrics[seen]) for name in names}
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ["model", *names, *lists])
    body = []
    for run in runs:
        cells = []
        for name in names:
            found = run.metrics[seen].get(name)
            if found is None:
                cells.append("<td>–</td>")
                continue
            strong = " class='best'" if found.value == best[name] and len(runs) > 1 else ""
            cells.append(f"<td{strong}>{found.value:.4f}<small>±{found.half_width:.4f}</small></td>")
        cells += [
            f"<td>{run.lists[seen][name]:.3f}</td>" if name in run.lists[seen] else "<td>–</td>" for name in lists
        ]
        body.append(f"<tr><th scope='row'>{html.escape(run.name)}</th>{''.join(cells)}</tr>")
    line = protocol_line(*({**run.protocol, "seen": [seen]} for run in runs))
    return (
        f"<h3>seen = {seen} <span>({SEEN_MEANS[seen]})</span></h3>"
        f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        f"<p class='protocol'>Protocol: {html.escape(line)}. ± is half of the 95 % interval over users; "
        f"the spread over training seeds comes on top. Best value of a column in bold.</p>"
    )


def _training(trainings: Mapping[str, list[dict[str, Any]]]) -> str:
    losses: dict[str, plots.Curves] = {}
    checks: dict[str, plots.Curves] = {}
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
        figures.append(plots.curves("Training loss", losses, "optimizer step", "loss"))
    if checks:
        title = "Validation during training"
        figures.append(plots.curves(title, checks, "optimizer step", "ndcg@10, sampled valid rows", markers=True))
    return _figures(figures, "No training log (metrics.jsonl) in this run: nothing here was trained step by step.")


def _slices(evaluations: Sequence[Evaluation]) -> str:
    """Runs on the same rows as the first, in its first seen mode and with its metric."""
    seen = evaluations[0].protocol["seen"][0]
    metric = next(iter(next(iter(evaluations[0].slices[seen]["popularity"].values())).metrics))
    comparable = [
        run
        for run in evaluations
        if all(run.protocol[key] == evaluations[0].protocol[key] for key in SAME)
        and metric in run.metrics.get(seen, {})
    ]
    figures = [
        plots.slice_bars(f"{metric} by target popularity (seen = {seen})", comparable, seen, "popularity", metric),
        plots.slice_bars(f"{metric} by history length (seen = {seen})", comparable, seen, "history", metric),
    ]
    protocol = evaluations[0].protocol
    note = (
        f"head: items with {protocol['head_min_events']:,} or more training events (the most popular fifth) · tail: at "
        f"most {protocol['tail_max_events']:,} (the least popular half) · cold: none. Bars: 95 % intervals over users."
    )
    line = html.escape(protocol_line(*({**run.protocol, "seen": [seen]} for run in comparable)))
    small = [
        f"{name} ({part.rows} rows, {part.metrics[metric].value:.3f})"
        for kind in ("popularity", "history")
        for name, part in comparable[0].slices[seen][kind].items()
        if name not in plots.drawn_slices(comparable, seen, kind)
    ]
    if small:
        note += f" Too few rows to draw: {', '.join(small)} for {html.escape(comparable[0].name)}."
    return _figures(figures, "") + f"<p class='note'>{note}</p><p class='protocol'>Protocol: {line}</p>"


def _codes(catalogs: Mapping[str, Catalog]) -> str:
    """One plot for each codebook: models of one run often share it."""
    distinct = {catalog.codebook_id: (label, catalog) for label, catalog in catalogs.items() if catalog.has_codes}
    figures, facts = [], []
    for label, catalog in distinct.values():
        title = "Code usage" if len(distinct) == 1 else f"Code usage: {label}"
        figures.append(plots.code_usage(title, catalog.codes, catalog.level_sizes))
        sids = len({tuple(code) for code in catalog.codes.tolist()})
        title = f"{label}: " if len(distinct) > 1 else ""
        fact = (
            f"{title}{catalog.num_items:,} items, {sids:,} distinct semantic IDs of {catalog.num_levels} codes; "
            f"codebook {catalog.codebook_id}, items version {catalog.items_version}"
        )
        facts.append(_fact_table(catalog.report) + f"<p class='note'>{html.escape(fact)}</p>")
    return _figures(figures, "No catalogue with codes in this run folder: the models score items.", "".join(facts))


def _fact_table(report: Mapping[str, Any]) -> str:
    """The single numbers of a catalogue's report; nested ones as "part: name"."""
    flat: dict[str, Any] = {}
    for key, value in report.items():
        flat |= {f"{key}: {inner}": one for inner, one in value.items()} if isinstance(value, Mapping) else {key: value}
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(key.replace('_', ' '))}</th>"
        f"<td>{f'{value:.3f}' if isinstance(value, float) else f'{value:,}'}</td></tr>"
        for key, value in flat.items()
        if isinstance(value, int | float)
    )
    return f"<table class='facts'><tbody>{rows}</tbody></table>" if rows else ""


def _latency(evaluations: Sequence[Evaluation]) -> str:
    timed = [run for run in evaluations if run.latency.get("cpu_ms")]
    if not timed:
        return _figures([], "Latency was not measured ([eval] latency_rows = 0).")
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(run.name)}</th>"
        + "".join(
            f"<td>{run.latency[key]:,.2f}</td>" for key in ("cpu_ms_p50", "cpu_ms_p95", "wall_ms_p50", "wall_ms_p95")
        )
        + f"<td>{run.latency['rows_per_s']:,.0f}</td></tr>"
        for run in timed
    )
    head = "".join(f"<th>{name}</th>" for name in ("model", "CPU p50", "CPU p95", "wall p50", "wall p95", "rows/s"))
    table = f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    first = timed[0].latency
    note = (
        f"Milliseconds of {first['requests']} single requests, one after the other, {first['threads']} thread(s), "
        "without HTTP; rows/s in batches."
    )
    aside = f"{table}<p class='note'>{note}</p>"
    return _figures([plots.latency_histogram("Latency of one request", timed)], "", aside)


def _examples(run: Evaluation) -> str:
    cards = []
    for sample in run.samples:
        read = "".join(f"<li>{_item(item)}</li>" for item in sample["history"])
        answer = "".join(
            f"<li class='hit'>{_item(item)} <b>✓</b></li>"
            if item["key"] == sample["target"]["key"]
            else f"<li>{_item(item)}</li>"
            for item in sample["answer"]
        )
        place = f"found at place {sample['rank']}" if sample["rank"] else "not in the list"
        cards.append(
            f"<div class='card'><h4>last read</h4><ol class='read'>{read}</ol><h4>came next</h4>"
            f"<p>{_item(sample['target'])} <small>{place}</small></p><h4>recommended</h4><ol>{answer}</ol></div>"
        )
    if not cards:
        return "<p class='note'>No examples were kept ([eval] samples = 0).</p>"
    intro = f"Random {run.protocol['which']} rows, answered by {html.escape(run.name)}."
    return f"<p class='note'>{intro}</p><div class='cards'>{''.join(cards)}</div>"


def _item(item: Mapping[str, Any]) -> str:
    key = html.escape(item["key"])
    return f"{html.escape(item['title'])} <code>{key}</code>" if item["title"] else f"<code>{key}</code>"


def _serve(run: RunFolder) -> str:
    samples = run.evaluations[0].samples
    history = ",".join(item["key"] for item in samples[0]["history"]) if samples else "ITEM,ITEM"
    commands = (
        f"sidera recommend {run.best} --history {shlex.quote(history)} -k 10\nsidera serve {run.best} --port 8000"
    )
    return f"<pre>{html.escape(commands)}</pre>"


def _figures(figures: Sequence[str], missing: str, aside: str = "") -> str:
    """Plots beside each other where the page is wide enough, ``aside`` (HTML) after the last."""
    if not figures:
        return f"<p class='note'>{html.escape(missing)}</p>"
    shown = "".join(f"<figure>{figure}</figure>" for figure in figures)
    return f"<div class='figures'>{shown}{f'<div>{aside}</div>' if aside else ''}</div>"
