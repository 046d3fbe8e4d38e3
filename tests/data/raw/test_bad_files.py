"""What is wrong with a raw file is counted line by line, or refused in one line; nothing crashes, nothing swells."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from published import write
from test_formats import ALL, REVIEWS_2014, amazon2014

from sidera.core import InputError
from sidera.data.raw import convert
from sidera.data.raw import lines as reading
from sidera.data.raw.conversion import Options

DEEP = "[" * 100_000


LITERALS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(), LITERALS, max_size=4))
@example({"a": [1e16, -1e-7, -3, "it's \"x\" \\\\ {'", None, True]})
def test_every_literal_is_read_as_python_and_as_json(record: dict[str, object]) -> None:
    """Whatever stands in the texts: quotes, brackets, backslashes, words of Python."""
    assert reading.parse_literal(repr(record)) == record
    assert reading.parse_literal(f"  {record!r} ") == record
    assert reading.parse_record(json.dumps(record)) == record


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="[](){}'\"\\\\-+,: 01eEuNonTrue\n", max_size=60))
def test_no_line_raises_anything_but_a_value_error(line: str) -> None:
    try:
        found = reading.parse_record(line)
    except ValueError:
        return
    assert isinstance(found, dict)


@pytest.mark.parametrize(
    "line",
    [
        DEEP,
        '{"reviewerID": ' + DEEP + "]" * 100_000 + "}",
        "{'reviewerID': " + "-" * 100_000 + "1}",
        "{'a': __import__('os').system('true')}",
        "{'a': " + "not " * 50_000 + "1}",
        "{'a': 1 if 1 else 2}",
        "{'a': 'open}",
        "{'reviewerID': 'A1', 'asin': 'B1'}",
        '{"reviewerID": "", "asin": "B1", "unixReviewTime": 1}',
        '{"reviewerID": "A1", "asin": ["B1"], "unixReviewTime": 1}',
        '{"reviewerID": "A1", "asin": "B1", "unixReviewTime": -1}',
        '{"reviewerID": "A1", "asin": "B1", "unixReviewTime": NaN}',
        '{"reviewerID": "A1", "asin": "B1", "unixReviewTime": 1, "overall": Infinity}',
        '{"reviewerID": "A1", "asin": "B1", "unixReviewTime": 1, "overall": "five"}',
        '{"reviewerID": "A1", "asin": "B1", "unixReviewTime": ' + "9" * 10_000 + "}",
        '["reviewerID"]',
        "\0\0\0",
        "{'reviewerID': 'A1', 'asin': 'B1', 'unixReviewTime': " + "(" * 40 + "1" + ")" * 40 + "}",
    ],
)
def test_a_bad_line_is_counted_and_more_than_the_share_refused(tmp_path: Path, line: str) -> None:
    good = [json.dumps({"reviewerID": f"A{n}", "asin": "B1", "unixReviewTime": n + 1}) for n in range(150)]
    path = write(tmp_path / "reviews_X_5.json", [*good[:70], line, *good[70:]])
    made = convert("amazon2014", [path], ALL)
    assert made.num_events == 150
    assert made.notes["lines_left_out"] == {str(path): "1 of 151 lines"}
    path = write(tmp_path / "reviews_X_5.json", [*good[:90], line])
    with pytest.raises(
        InputError, match=r"1 of 91 lines cannot be understood \(line 91: .*allowed: at most 1\.0%"
    ) as error:
        convert("amazon2014", [path], ALL)
    assert len(str(error.value)) < 600
    assert convert("amazon2014", [path], Options(max_bad=0.05)).num_events == 90


@pytest.mark.parametrize(
    "row", ["A1,B1,5.0", "A1,B1,5.0,1,2", "A1,B1,five,1", "A1,B1,5.0,never", ",B1,5.0,1", "A1, ,5.0,1", "A1,B1,nan,1"]
)
def test_bad_rows_of_a_table(tmp_path: Path, row: str) -> None:
    good = [f"A{n},B1,5.0,{n + 1}" for n in range(150)]
    path = write(tmp_path / "ratings_X.csv", [*good[:70], row, *good[70:]])
    made = convert("amazon2014", [path], ALL)
    assert made.num_events == 150
    assert made.notes["lines_left_out"] == {str(path): "1 of 151 lines"}
    with pytest.raises(InputError, match=r"1 of 4 lines cannot be understood \(line 3: "):
        convert("amazon2014", [write(tmp_path / "ratings_X.csv", [*good[:2], row, good[3]])], ALL)


def test_blocks_are_cut_between_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the pieces that are read: no row is lost, none is cut, and bad lines keep their numbers."""
    rows = [f"A{n % 7},B{n % 5},{n % 5 + 1}.0,{n + 1}" for n in range(300)]
    rows[123] = "A1,B1"
    path = write(tmp_path / "ratings_X.csv", rows)
    whole = convert("amazon2014", [path], ALL)
    monkeypatch.setattr(reading, "BLOCK", 50)
    pieces = convert("amazon2014", [path], ALL)
    assert whole.digest == pieces.digest
    assert whole.num_events == 299
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert convert("amazon2014", [path], ALL).digest == whole.digest
    with pytest.raises(InputError, match=r"1 of 300 lines cannot be understood \(line 124: 2 columns"):
        convert("amazon2014", [path], Options(max_bad=0.0))


def test_files_of_another_kind_are_told(tmp_path: Path) -> None:
    reviews, meta = amazon2014(tmp_path)
    whole = reviews.read_bytes()
    reviews.write_bytes(whole[:-20])
    with pytest.raises(InputError, match=r"reviews_Beauty_5\.json\.gz is cut short or damaged"):
        convert("amazon2014", [reviews, meta], ALL)
    (tmp_path / "z.zip").write_bytes(b"PK\3\4broken")
    with pytest.raises(InputError, match=r"z\.zip is cut short or damaged"):
        convert("movielens", [tmp_path / "z.zip"])
    with pytest.raises(InputError, match="no file at"):
        convert("movielens", [tmp_path / "nothing.zip"])
    with pytest.raises(InputError, match=r"no ratings among the files .*allowed: u\.data or ratings\.dat"):
        convert("movielens", [meta])
    with pytest.raises(InputError, match="0 files may be the log"):
        convert("amazon2014", [meta])
    reviews.write_bytes(whole)
    other = write(tmp_path / "reviews_Toys_5.json", REVIEWS_2014)
    with pytest.raises(InputError, match="2 files may be the log"):
        convert("amazon2014", [reviews, other, meta])
    with pytest.raises(InputError, match=r"'amazon2015' is not known \(did you mean 'amazon20"):
        convert("amazon2015", [reviews])
    empty = write(tmp_path / "UserBehavior.csv", [])
    empty.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        convert("taobao", [empty])
    with pytest.raises(InputError, match=r"log_standard_x\.csv has no column 'user_id' \(its first line: a, b\)"):
        convert("kuairand", [write(tmp_path / "k" / "log_standard_x.csv", ["a,b", "1,2"])])


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    """64 MB of zeros in one line, 60 kB packed: read in pieces, counted as one bad line."""
    import tracemalloc

    path = tmp_path / "reviews_X_5.json.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for _ in range(64):
            stream.write(b"\0" * (1 << 20))
    tracemalloc.start()
    with pytest.raises(InputError, match="1 of 1 lines cannot be understood"):
        convert("amazon2014", [path], ALL)
    (tmp_path / "UserBehavior.csv.gz").write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="longer than 4,194,304 bytes"):
        convert("taobao", [tmp_path / "UserBehavior.csv.gz"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 << 20
