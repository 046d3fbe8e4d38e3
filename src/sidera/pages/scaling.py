"""The page that ``sidera scale`` ends with: ``scaling.html``, and its two charts as ``scaling.svg``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from sidera.eval.bootstrap import Estimate
from sidera.eval.scaling import PowerLaw, Prediction
from sidera.pages import charts
from sidera.pages.charts import Figure
from sidera.pages.render import write_page
from sidera.pages.standalone import write_svg

HTML, SVG = "scaling.html", "scaling.svg"


def write_scaling_page(record: Mapping[str, Any], out: Path) -> Path:
    """Write both files into the folder ``out`` from what ``scaling.json`` holds; the page's path."""
    figures = draw(record)
    write_svg(figures, out / SVG)
    fit = record["fit"]
    laws = [
        (title, {part: _estimate(estimate) for part, estimate in law.items()})
        for title, law in (
            ("L(N), all sizes", fit["law"]),
            ("L(N) without the largest", fit["held_out"]),
            ("L(C) on the frontier", fit["compute_law"]),
        )
    ]
    return write_page(
        out / HTML,
        "scaling.html",
        title="Scaling law",
        sentence=_prediction(fit["prediction"]).summary() + ".",
        figures=figures,
        context=record["context"],
        laws=laws,
        runs=list(zip(record["runs"], record["facts"], strict=True)),
    )


def draw(record: Mapping[str, Any]) -> list[Figure]:
    """L(N) with the predicted largest size, and L(C) with the learning curves."""
    return [_by_size(record), _by_compute(record)]


def _by_size(record: Mapping[str, Any]) -> Figure:
    fit, runs = record["fit"], record["runs"]
    prediction = _prediction(fit["prediction"])
    law = _law(fit["held_out"])
    ends = min(run["parameters"] for run in runs) / 1.3, prediction.parameters * 1.3
    x = np.geomspace(*ends, 120)
    fitted = sorted((run["parameters"], run["loss"]) for run in runs if run["name"] != prediction.name)
    largest = [(run["parameters"], run["loss"]) for run in runs if run["name"] == prediction.name]
    lines: dict[str, charts.Curves] = {
        f"fit without the largest: {law.E:.3f} + {law.A:.3g} / N^{law.a:.3f}": {"": (x.tolist(), law(x).tolist())}
    }
    points = {
        "fitted runs": fitted,
        f"largest, left out: {prediction.observed:.4f}, predicted {prediction.predicted.value:.4f}": largest,
    }
    return charts.fitted("Loss by size", lines, points, "parameters without embeddings", "loss, nats per code")


def _by_compute(record: Mapping[str, Any]) -> Figure:
    fit, runs = record["fit"], record["runs"]
    lines: dict[str, charts.Curves] = {}
    law = _law(fit["compute_law"])
    frontier = [point[0] for point in fit["frontier"]]
    x = np.geomspace(frontier[0], frontier[-1], 120)
    lines[f"frontier: {law.E:.3f} + {law.A:.3g} / C^{law.a:.3f}"] = {"": (x.tolist(), law(x).tolist())}
    for run in sorted(runs, key=lambda run: run["parameters"]):
        of_size = dict(lines.get(run["name"], {}))
        flops, losses = zip(*run["curve"], strict=True)
        lines[run["name"]] = {**of_size, "" if not of_size else f"seed {run['seed']}": (flops, losses)}
    return charts.fitted("Loss by training compute", lines, {}, "FLOPs of the training so far", "loss, nats per code")


def _prediction(values: Mapping[str, Any]) -> Prediction:
    plain = {field.name: values[field.name] for field in fields(Prediction)}
    return Prediction(**{**plain, "predicted": Estimate(**plain["predicted"]), "gap": Estimate(**plain["gap"])})


def _law(values: Mapping[str, Mapping[str, float]]) -> PowerLaw:
    return PowerLaw(**{name: estimate["value"] for name, estimate in values.items()})


def _estimate(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.4g} [{estimate['low']:.4g}, {estimate['high']:.4g}]"
