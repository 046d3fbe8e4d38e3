"""Charts as SVG files of their own, side by side, for documents: they carry their colours, light and dark."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from sidera.artifacts import write_text
from sidera.pages.charts import WIDTH, Figure
from sidera.pages.render import environment

GAP, TITLE, KEY = 28, 30, 18  # space between figures, above them, and for a line of the legend


def write_svg(figures: list[Figure], path: str | Path) -> Path:
    """One SVG of all figures in a row, each with its title above and its legend below."""
    height = max(TITLE + figure.height + KEY * len(figure.legend) for figure in figures)
    width = WIDTH * len(figures) + GAP * (len(figures) - 1)
    positions = [(position * (WIDTH + GAP), figure) for position, figure in enumerate(figures)]
    template = environment().get_template("chart.svg")
    text = template.render(width=width, height=height + 8, positions=positions, title_height=TITLE, key_height=KEY,
                           label=Markup("; ").join(figure.title for figure in figures))  # fmt: skip
    write_text(path, text)
    return Path(path)
