"""The verb ``report``: one run's page again, or several runs on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sidera import console
from sidera.cli.parsing import Arguments, Verbs, add_verb
from sidera.core import InputError


def report_verb(arguments: Arguments) -> dict[str, Any]:
    """The page about evaluated runs, side by side."""
    from sidera.pages.run import write_report

    repeated = [run for position, run in enumerate(arguments.runs) if Path(run).resolve() in
                {Path(other).resolve() for other in arguments.runs[:position]}]  # fmt: skip
    if repeated:
        raise InputError(f"{repeated[0]!r} is named twice", fix="name every run once")
    several = len(arguments.runs) > 1
    out = Path(arguments.out or ("report.html" if several else Path(arguments.runs[0]) / "report.html"))
    if out.suffix != ".html":
        raise InputError(f"--out {arguments.out!r} is no page", allowed="a path that ends in .html")
    console.result(f"report: {write_report(arguments.runs, out)}")
    return {"runs": arguments.runs, "report": out}


def add_report(verbs: Verbs) -> None:
    parser = add_verb(verbs, "report", report_verb, "the page about a run, or about several side by side")
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folder; several have to be measured on the same rows"
    )
    parser.add_argument("--out", help="page to write (.html); else RUN/report.html, of several report.html")
