"""``scaling.json``: the runs of ``sidera scale`` and the laws fitted to them, as plain numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sidera.artifacts import write_text
from sidera.core import ArtifactError
from sidera.eval.scaling import Scaling, SizeRun

JSON = "scaling.json"


def scaling_record(
    result: Scaling, runs: Sequence[SizeRun], facts: Sequence[Mapping[str, Any]], context: Mapping[str, Any]
) -> dict[str, Any]:
    """What the page shows and what a later fit starts from."""
    record = {
        "context": dict(context),
        "fit": result.to_json(),
        "facts": list(facts),
        "runs": [run.to_json() for run in runs],
    }
    return json.loads(json.dumps(record))


def save_record(record: Mapping[str, Any], out: Path) -> Path:
    write_text(out / JSON, json.dumps(record, indent=1) + "\n")
    return out / JSON


def read_record(path: str | Path) -> dict[str, Any]:
    """ArtifactError when the file holds no runs."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        _ = [SizeRun.from_json(values) for values in record["runs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} holds no runs: {error}", fix="write it again with `sidera scale`") from None
    return record


def read_runs(path: str | Path) -> list[SizeRun]:
    """The runs of a ``scaling.json``."""
    return [SizeRun.from_json(values) for values in read_record(path)["runs"]]
