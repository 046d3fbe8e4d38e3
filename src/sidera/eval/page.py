"""The frame of the report: one light page, system fonts, readable on a phone, nothing fetched."""

from __future__ import annotations

import html

STYLE = """
:root { --ink: #1f2328; --soft: #57606a; --line: #e4e7eb; --paper: #ffffff; --wash: #f6f7f9; --blue: #2b5fc9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--wash); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 64px; }
header { margin-bottom: 20px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em; }
header p { margin: 0; color: var(--soft); }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 20px 24px;
  margin-top: 18px; }
h2 { font-size: 1.2rem; margin: 0 0 12px; }
h3 { font-size: 1rem; margin: 20px 0 8px; }
h3:first-of-type { margin-top: 0; }
h3 span { font-weight: 400; color: var(--soft); }
h4 { font-size: .75rem; text-transform: uppercase; letter-spacing: .06em; color: var(--soft); margin: 14px 0 4px; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 7px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; font-size: .8rem; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
tbody th { font-weight: 600; }
table.facts th, table.facts td { padding: 4px 7px; font-weight: 400; }
td small { display: block; color: var(--soft); font-size: .75rem; line-height: 1.2; }
td.best { font-weight: 700; color: var(--blue); }
td.best small { font-weight: 400; }
.protocol, .note { color: var(--soft); font-size: .85rem; margin: 10px 0 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 16px 28px;
  align-items: start; }
.figures > div { min-width: 0; }
figure { margin: 0; max-width: 560px; }
svg { width: 100%; height: auto; display: block; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 16px;
  margin-top: 12px; }
.card { border: 1px solid var(--line); border-radius: 10px; padding: 2px 16px 12px; font-size: .88rem;
  line-height: 1.4; overflow-wrap: anywhere; }
.card p { margin: 0; }
.card small { color: var(--soft); white-space: nowrap; }
ol { margin: 0; padding-left: 1.3em; }
ol.read { color: var(--soft); list-style: none; padding-left: 0; }
li { margin: 3px 0; }
li.hit, li.hit b { color: #1d7f52; font-weight: 600; }
code { font: .78em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; color: var(--soft); }
pre { background: var(--wash); border-radius: 8px; padding: 12px 14px; overflow-x: auto; margin: 0;
  font: .85rem/1.6 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media (max-width: 560px) { main { padding: 18px 10px 40px; } section { padding: 16px 14px; border-radius: 10px; }
  h1 { font-size: 1.4rem; } }
"""


def page(title: str, body: str, kind: str = "sidera run report") -> str:
    """A whole HTML document; ``body`` is HTML, ``title`` and ``kind``, the line below it, are text."""
    safe = html.escape(title)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{safe}</title><style>{STYLE}</style></head>"
        f"<body><main><header><h1>{safe}</h1><p>{html.escape(kind)}</p></header>{body}</main></body></html>\n"
    )
