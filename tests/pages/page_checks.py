"""What every page has to be: one well-formed file that asks nobody for anything."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "link", "img", "hr"}


def check_page(text: str) -> None:
    assert not re.search(r"(src|href)=[\"'](?!#)", text)
    assert not re.search(r"https?://", text.replace("http://www.w3.org/2000/svg", ""))
    assert "@import" not in text
    assert "url(" not in text
    assert "<script" not in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    stack: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in VOID:
                stack.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert stack.pop() == tag

    Balance().feed(text)
    assert stack == []
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for table in re.findall(r"<table(?! class=\"facts\").*?</table>", text, flags=re.DOTALL):
        before = text[: text.index(table)].rstrip()
        assert re.search(r'<div class="scroll" tabindex="0" role="region" aria-label="[^"]+">$', before), table[:200]
