"""How much of ``[fit] max_minutes`` is left to train in."""

from __future__ import annotations

from collections.abc import Callable

from sidera.catalog.catalog import Catalog
from sidera.fit.config import FitConfig

LEAST_TRAINED = 0.1  # of a budget that the catalogue used up


def spent_seconds(catalog: Catalog, config: FitConfig, say: Callable[[str], None]) -> float:
    """Seconds of [fit] max_minutes that the catalogue took, also one that is reused; a tenth is left to train in."""
    if config.max_minutes is None:
        return 0.0
    seconds = float(catalog.report.get("build_seconds", {}).get(config.clock, 0.0))
    most = LEAST_TRAINED * 60 * config.max_minutes
    if seconds > 60 * config.max_minutes - most:
        say(
            f"train: the catalogue took {seconds / 60:.1f} of the {config.max_minutes:g} minutes of [fit] max_minutes;"
            f" {most / 60:.1f} minutes of training follow all the same"
        )
    return min(seconds, 60 * config.max_minutes - most)
