"""Write the README's results table from the committed result files: ``python benchmarks/tables.py``."""

from __future__ import annotations

from pathlib import Path

from harness import RESULTS

TABLES = (
    "beauty_generator", "beauty_onerec", "beauty_sasrec", "beauty_tiger", "beauty_temporal", "sports", "sports_onerec",
    "sports_tiger",
)  # fmt: skip


def result_files() -> list[Path]:
    """The result files that the README's table shows, in its order."""
    return [RESULTS / f"{name}.json" for name in TABLES]


def main() -> None:
    from sidera.eval.tables import update_document

    readme = Path(__file__).resolve().parents[1] / "README.md"
    print("README.md was current" if update_document(readme, result_files()) else "README.md updated")


if __name__ == "__main__":
    main()
