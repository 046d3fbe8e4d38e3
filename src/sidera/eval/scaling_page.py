"""What ``sidera scale`` leaves behind: ``scaling.json`` (runs and fits), ``scaling.png`` and ``scaling.html``."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sidera.artifacts import write_text
from sidera.core import ArtifactError
from sidera.eval.bootstrap import Estimate
from sidera.eval.page import page
from sidera.eval.plots import COLORS
from sidera.eval.scaling import PowerLaw, Scaling, SizeRun

JSON, PNG, HTML = "scaling.json", "scaling.png", "scaling.html"


def write_scaling(
    result: Scaling, runs: Sequence[SizeRun], facts: Sequence[Mapping[str, Any]], context: Mapping[str, Any], out: Path
) -> list[Path]:
    """Write the three files to ``out``; their paths, the page last."""
    record = {
        "context": dict(context),
        "fit": result.to_json(),
        "facts": list(facts),
        "runs": [run.to_json() for run in runs],
    }
    write_text(out / JSON, json.dumps(record, indent=1) + "\n")
    draw(result, runs, out / PNG)
    write_text(out / HTML, page("Scaling law", _body(result, runs, facts, context)))
    return [out / JSON, out / PNG, out / HTML]


def read_runs(path: str | Path) -> list[SizeRun]:
    """The runs of a ``scaling.json``."""
    try:
        return [SizeRun.from_json(values) for values in json.loads(Path(path).read_text(encoding="utf-8"))["runs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} holds no runs: {error}", fix="write it anew with `sidera scale`") from None


def draw(result: Scaling, runs: Sequence[SizeRun], path: Path) -> None:
    """L(N) with the foretold largest size, and L(C) with the learning curves, side by side as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 4.2), layout="constrained", dpi=130)
    by_size, by_compute = figure.subplots(1, 2)
    _draw_sizes(by_size, result, runs)
    _draw_compute(by_compute, result, runs)
    for axes, title in ((by_size, "Loss by size"), (by_compute, "Loss by training compute")):
        axes.set_xscale("log")
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color="#1f2328")
        axes.grid(color="#e4e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="upper right" if axes is by_size else "lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _draw_sizes(axes: Any, result: Scaling, runs: Sequence[SizeRun]) -> None:
    fitted, foretold = [run for run in runs if run.name != result.prediction.name], result.prediction
    x = np.geomspace(min(run.parameters for run in runs) / 1.3, foretold.parameters * 1.3, 200)
    law = PowerLaw(**{name: estimate.value for name, estimate in result.held_out.items()})
    label = f"{law.E:.3f} + {law.A:.3g} / N^{law.a:.3f}"
    axes.plot(x, law(x), color=COLORS[0], label=f"fit without the largest: {label}")
    axes.plot([r.parameters for r in fitted], [r.loss for r in fitted], "o", color=COLORS[0], ms=5, label="fitted runs")
    left_out = [run for run in runs if run.name == foretold.name]
    axes.plot(
        [r.parameters for r in left_out], [r.loss for r in left_out], "D", color=COLORS[1], ms=6,
        label=f"largest, left out: {foretold.observed:.4f}, foretold {foretold.predicted.value:.4f}",
    )  # fmt: skip
    axes.set_xlabel("parameters without embeddings")
    axes.set_ylabel("loss of the later slice, nats per code")


def _draw_compute(axes: Any, result: Scaling, runs: Sequence[SizeRun]) -> None:
    names = list(dict.fromkeys(run.name for run in sorted(runs, key=lambda run: run.parameters)))
    for place, name in enumerate(names):
        shade = 0.25 + 0.75 * place / max(1, len(names) - 1)
        for number, run in enumerate(run for run in runs if run.name == name):
            flops, losses = zip(*run.curve, strict=True)
            axes.plot(flops, losses, ".-", color=COLORS[2], alpha=shade, lw=1, label=None if number else name)
    law = PowerLaw(**{name: estimate.value for name, estimate in result.compute_law.items()})
    x = np.geomspace(result.frontier[0][0], result.frontier[-1][0], 200)
    label = f"frontier: {law.E:.3f} + {law.A:.3g} / C^{law.a:.3f}"
    axes.plot(x, law(x), color="#30343a", linestyle="--", label=label)
    axes.set_xlabel("FLOPs of the training so far")
    axes.set_ylabel("loss of the validation slice, nats per code")


def _body(
    result: Scaling, runs: Sequence[SizeRun], facts: Sequence[Mapping[str, Any]], context: Mapping[str, Any]
) -> str:
    sentence = html.escape(result.prediction.summary()) + "."
    laws = "".join(
        f"<tr><th scope='row'>{title}</th>" + "".join(f"<td>{_estimate(part)}</td>" for part in law.values()) + "</tr>"
        for title, law in (
            ("L(N), all sizes", result.law),
            ("L(N) without the largest", result.held_out),
            ("L(C) on the frontier", result.compute_law),
        )
    )
    table = f"<table><thead><tr><th></th><th>E</th><th>A</th><th>a</th></tr></thead><tbody>{laws}</tbody></table>"
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(run.name)}</th><td>{run.seed}</td><td>{run.parameters:,}</td>"
        f"<td>{run.flops:.3g}</td><td>{run.loss:.4f}</td><td>{fact['lr']:.2e}</td><td>{fact['cpu_seconds']:,.0f}</td>"
        "</tr>"
        for run, fact in zip(runs, facts, strict=True)
    )
    head = "".join(f"<th>{name}</th>" for name in ("size", "seed", "N", "FLOPs", "loss", "lr", "CPU s"))
    runs_table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    note = (
        f"{context['rows']:,} rows, each seen once in the order of time; loss of {context['slice_targets']:,} targets "
        "of a later slice; in brackets 95 % intervals from redrawn users and runs."
    )
    return (
        f"<section><h2>Loss by size and compute</h2><img src='{PNG}' alt='loss by size and compute' width='100%'>"
        f"<p>{sentence}</p><p class='note'>{note}</p></section>"
        f"<section><h2>E + A / x^a</h2><div class='scroll'>{table}</div></section>"
        f"<section><h2>Runs</h2><div class='scroll'>{runs_table}</div></section>"
    )


def _estimate(found: Estimate) -> str:
    return f"{found.value:.4g} [{found.low:.4g}, {found.high:.4g}]"
