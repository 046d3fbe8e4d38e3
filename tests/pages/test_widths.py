"""Nothing is cut: a browser lays a page out at the widths of a laptop and of a phone, in light and in dark."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from page_checks import check_page
from test_other_pages import online
from test_report import make_run

from sidera.pages.online import write_online_page
from sidera.pages.run import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# what sticks out of the window and stands in no box that scrolls
PROBE = """<script>addEventListener("load", () => {
  const wide = [...document.querySelectorAll("body *")].filter(one => !one.closest(".scroll, pre") &&
    one.getBoundingClientRect().right > document.documentElement.clientWidth + 1);
  document.title = ["probed", document.documentElement.clientWidth, document.documentElement.scrollWidth, wide.length,
    getComputedStyle(document.body).backgroundColor].join("|"); });</script></body>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pages")
    run = make_run(folder / "run")
    return [write_report(run, folder / "report.html"), write_online_page(online(), folder / "online.html")]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_no_page_is_wider_than_the_window(pages: list[Path], width: int, dark: bool) -> None:
    for page in pages:
        text = page.read_text()
        check_page(text)
        framed = page.with_name(f"{page.stem}-probe.html")
        framed.write_text(text.replace("</body>", PROBE))
        # a headless window is at least 500 wide: a frame is as narrow as it is told to be
        outer = page.with_name(f"{page.stem}-{width}-frame.html")
        outer.write_text(
            f'<iframe src="{framed.name}" style="width:{width}px;height:900px;border:0"></iframe><script>'
            'addEventListener("load", () => document.title = frames[0].document.title)</script>'
        )
        command = [
            str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000",
            "--allow-file-access-from-files", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--virtual-time-budget=3000", "--dump-dom", outer.as_uri(),
        ]  # fmt: skip
        found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        title = re.search(r"<title>probed\|(\d+)\|(\d+)\|(\d+)\|(.*?)</title>", found.stdout)
        assert title is not None, found.stderr[-500:]
        inner, content, wide = map(int, title.groups()[:3])
        assert width - 20 <= inner <= width
        assert content <= inner
        assert wide == 0
        assert (title[4] == "rgb(18, 21, 26)") == dark
