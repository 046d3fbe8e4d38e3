"""Quotation marks: no row is ever swallowed, whatever stands in the values."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidera.core import InputError
from sidera.data.importing import read_log
from sidera.data.intake.quotes import judge_quotes

VALUES = st.text(alphabet="ab\" ,\n'", max_size=6)
FLAT = st.text(alphabet="ab\" '", max_size=6)


@given(rows=st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=12), size=st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_what_csv_writers_write_keeps_the_rule(rows: list[tuple[str, str]], size: int) -> None:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([("x", "y"), *rows])
    content = file.getvalue().encode()
    blocks = [content[start : start + size] for start in range(0, len(content), size)]
    quoting = judge_quotes(blocks, ",")
    assert quoting.holds
    assert quoting.over_lines == any("\n" in value for row in rows for value in row)


@given(titles=st.lists(FLAT, min_size=2, max_size=15))
@settings(max_examples=150, deadline=None)
def test_rows_are_never_fewer_than_lines_or_the_file_is_refused(
    tmp_path_factory: pytest.TempPathFactory, titles: list[str]
) -> None:
    """Values written raw between tabs: each line is one event, or the file is refused; never fewer events."""
    path: Path = tmp_path_factory.mktemp("quotes") / "log.tsv"
    rows = [f"u\ti{place}\t{1_700_000_000 + place}\t{title}" for place, title in enumerate(titles)]
    path.write_text("\n".join(["user\titem\ttime\ttitle", *rows]) + "\n")
    assert read_log(path, "x")[0].num_events == len(titles)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'a,b\n1,"x\n2,y\n3,z,z\n', 2),
        (b'a,b\n1,x\n2,"y"z\n3,w,w\n', 3),
        (b'a,b\n"1,x\n2,"y"\n3,w,w\n', 2),
    ],
)
def test_the_line_that_breaks_the_rule_is_named(tmp_path: Path, content: bytes, line: int) -> None:
    quoting = judge_quotes([content], ",")
    assert (quoting.holds, quoting.broken_line) == (False, line)
    path = tmp_path / "log.csv"
    path.write_bytes(content.replace(b"a,b", b"user,item"))
    with pytest.raises(InputError, match=rf"line {line} of .*log\.csv opens a quotation mark"):
        read_log(path, "x")


def test_marks_inside_values_are_letters() -> None:
    assert judge_quotes([b'a,b\n1,19" screen\n2,a 3" nail\n"3, 4",x\n'], ",").holds
