"""The HTML pages: run reports, online tests, alignment, scaling laws. Each is one file that fetches nothing.

``render.py`` holds the Jinja2 environment, ``templates/`` the markup and the one style sheet, ``axes.py`` and
``charts.py`` draw inline SVG, and a file per page turns results into what its template shows. Measuring lives in
``sidera.eval``: nothing here computes a figure that an artifact does not
hold, but for paired differences of saved ranks.
"""

from sidera.pages.run import write_report

__all__ = ["write_report"]
