"""What people report about their logs: every case of ``cases/`` is right, and others of its kind with it.

Each folder of ``cases/`` has a README that says what is right.
"""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidera.core import InputError
from sidera.data.config import DataConfig, load_dataset, make_views
from sidera.data.dataset import Dataset
from sidera.data.importing import ImportMapping, import_log, parse_keep, read_log

CASES = Path(__file__).parent / "cases"
ROWS = [
    {"user": f"u{user}", "item": f"i{(user + step) % 7}", "time": 1_700_000_000 + 60 * user + 3600 * step}
    for user in range(4)
    for step in range(5)
]


def read(name: str | Path, items: str | Path | None = None, users: str | Path | None = None, **options: Any) -> Any:
    place = [path if path is None or Path(path).is_absolute() else CASES / path for path in (name, items, users)]
    assert place[0] is not None
    return read_log(place[0], "mine", place[1], place[2], ImportMapping(**options))


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(path: Path, names: str = "user,item,time", cut: str = ",", **columns: list[Any]) -> Path:
    """ROWS as delimited text, with more columns."""
    rows = [cut.join(str(value) for value in row.values()) for row in ROWS]
    for values in columns.values():
        rows = [f"{row}{cut}{values[place % len(values)]}" for place, row in enumerate(rows)]
    path.write_text("\n".join([cut.join([*names.split(","), *columns]), *rows]) + "\n")
    return path


def said(report: Any) -> str:
    return "\n".join([*report.lines(), *report.warnings])


SECONDS = read("iso_strings/events.csv")[0].times.tolist()


@pytest.mark.parametrize(
    "name",
    [
        *("iso_strings/micros.jsonl", "iso_strings/offset.parquet", "iso_strings/pandas_iso.jsonl"),
        *("iso_strings/space.parquet", "ok_times/fractions.csv", "ok_times/offsets.csv", "ok_times/scientific.csv"),
    ],
)
def test_times_of_any_form_are_the_same_seconds(name: str) -> None:
    dataset, report = read(name)
    assert dataset.time_kind == "seconds"
    assert dataset.times.tolist() == SECONDS
    assert report.period == ("2023-11-14 22:13:20", "2023-11-15 02:26:20")


MOMENTS = [datetime.datetime.fromtimestamp(row["time"], datetime.UTC) for row in ROWS]


@pytest.mark.parametrize(
    "form",
    [
        *("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S UTC", "%Y/%m/%d %H:%M:%S", "%Y-%m-%d %H:%M:%S+0000"),
        *("%Y-%m-%dT%H:%M:%S.123456789", "%Y%m%d%H%M%S", "%d/%m/%Y %H:%M:%S", "%m/%d/%Y %I:%M:%S %p"),
    ],
)
def test_more_forms_of_time(tmp_path: Path, form: str) -> None:
    rows = [{**row, "time": moment.strftime(form)} for row, moment in zip(ROWS, MOMENTS, strict=True)]
    dataset, _ = read(lines(tmp_path / "log.jsonl", rows))
    assert dataset.times.tolist() == [row["time"] for row in ROWS]


@pytest.mark.parametrize(("unit", "scale"), [("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_the_unit_of_numbers_is_found(tmp_path: Path, unit: str, scale: int) -> None:
    rows = [{**row, "time": row["time"] * scale} for row in ROWS]
    for options in ({}, {"time_unit": unit}):
        assert read(lines(tmp_path / "log.jsonl", rows), **options)[0].times.tolist() == [row["time"] for row in ROWS]


def test_numbers_of_two_units_are_refused(tmp_path: Path) -> None:
    rows = [{**row, "time": row["time"] * (1000 if place > 3 else 1)} for place, row in enumerate(ROWS)]
    with pytest.raises(InputError, match=r"not of one unit.*--time-unit"):
        read(lines(tmp_path / "log.jsonl", rows))


def test_small_whole_numbers_are_no_seconds_of_1970(tmp_path: Path) -> None:
    def log(times: list[int]) -> Path:
        return lines(tmp_path / "log.jsonl", [{"user": "u", "item": f"i{t}", "time": t} for t in times])

    dataset, report = read(log([16_000, 16_001, 16_003]))
    assert dataset.times.tolist() == [86_400 * day for day in (16_000, 16_001, 16_003)]
    assert "days since 1970" in report.time
    dataset, report = read(log([30, 1, 2]))
    assert dataset.time_kind == "order"
    assert dataset.times.tolist() == [1, 2, 30]
    assert "--time-unit d" in report.time
    assert read(log([30, 1, 2]), time_unit="d")[0].times.tolist() == [86_400, 2 * 86_400, 30 * 86_400]
    assert read(log([30, 1, 2]), time_unit="s")[0].times.tolist() == [1, 2, 30]
    dataset, report = read(log([20140301, 20140228]))
    assert dataset.times.tolist() == [1393545600, 1393632000]


def test_day_and_month_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    log = lines(tmp_path / "log.jsonl", [{"user": "u", "item": "i", "time": "03/04/2014"}])
    with pytest.raises(InputError, match=r"'03/04/2014' may be day/month or month/day.*--time-format"):
        read(log)
    assert read(log, time_format="%d/%m/%Y")[0].times.tolist() == [1396483200]


@pytest.mark.parametrize("name", ["user_twice", "other_twice"])
def test_a_header_with_one_name_twice_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"has the column '(user|r)' more than once"):
        read(f"duplicate_header/{name}.csv")


def test_more_names_that_stand_twice(tmp_path: Path) -> None:
    twice = pa.table(
        [pa.array(["u"]), pa.array(["i"]), pa.array([1]), pa.array([2])], names=["user", "item", "time", "time"]
    )
    pq.write_table(twice, tmp_path / "log.parquet")
    (tmp_path / "log.tsv").write_text("user\titem\titem\ttime\nu\ta\tb\t1\n")
    (tmp_path / "log.csv").write_text("user;item;time;;\nu;a;1;2;3\n")
    for name, words in (("log.parquet", "'time'"), ("log.tsv", "'item'"), ("log.csv", "without a name")):
        with pytest.raises(InputError, match=rf"{words} more than once"):
            read(tmp_path / name)
    (tmp_path / "ids.csv").write_text("user_id,userId,item,time\nu,v,a,1700000000\n")
    with pytest.raises(InputError, match=r"'userId' and 'user_id', both of which may be the user.*--user"):
        read(tmp_path / "ids.csv")


def test_repeats_are_counted_and_can_be_dropped() -> None:
    dataset, report = read("exact_duplicates/events.csv")
    assert (dataset.num_events, report.duplicates) == (210, 140)
    assert any("--drop-duplicates" in warning for warning in report.warnings)
    dropped, report = read("exact_duplicates/events.csv", drop_duplicates=True)
    assert (dropped.num_events, report.duplicates) == (70, 140)
    assert not report.warnings
    assert dropped.source == ""
    assert dropped.times.tolist() == SECONDS


def test_repeats_with_another_event_between_count_too(tmp_path: Path) -> None:
    rows = [{"user": "u", "item": item, "time": 1_700_000_000} for item in "abacb"]
    dataset, report = read(lines(tmp_path / "log.jsonl", rows), drop_duplicates=True)
    assert report.duplicates == 2
    assert dataset.item_keys[dataset.item_ids].tolist() == ["a", "b", "c"]


def test_whole_numbers_as_doubles_are_keys() -> None:
    assert set(read("float_ids/whole.parquet")[0].user_keys) == {str(user) for user in range(14)}
    with pytest.raises(InputError, match=r"row 33 of nan\.parquet has no user"):
        read("float_ids/nan.parquet")
    dataset, report = read("float_ids/nan.parquet", max_bad=0.02)
    assert dataset.num_events == 69
    assert "row 33" in report.bad_rows


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        (pa.array([1.0, 2.0, 1.0], pa.float32()), ["1", "2"]),
        (pa.array([decimal.Decimal("7"), decimal.Decimal("8"), decimal.Decimal("7")]), ["7", "8"]),
        (pa.array([2**63, 1, 2**63], pa.uint64()), [str(2**63), "1"]),
        (pa.array([b"a", b"b", b"a"]), ["a", "b"]),
        (pa.array(["a", "b", "a"], pa.large_string()), ["a", "b"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b"]),
    ],
)
def test_kinds_of_key_in_parquet(tmp_path: Path, keys: pa.Array, found: list[str]) -> None:
    pq.write_table(pa.table({"user": keys, "item": keys, "time": [1, 2, 3]}), tmp_path / "log.parquet")
    dataset, _ = read(tmp_path / "log.parquet")
    assert dataset.user_keys.tolist() == found


def test_a_number_beyond_what_a_double_holds_exactly_is_read(tmp_path: Path) -> None:
    for kind in (pa.int64(), pa.uint64()):
        price = pa.array([2**53 + 1, None, 7], kind)
        pq.write_table(pa.table({"user": ["a"] * 3, "item": list("xyz"), "time": [1, 2, 3], "price": price}),
                       tmp_path / "log.parquet")  # fmt: skip
        dataset, _ = read(tmp_path / "log.parquet")
        assert dataset.feedback["price"].tolist() == pytest.approx([2**53, np.nan, 7], nan_ok=True)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (pa.array([1.0, 2.5, 1.0]), r"'user' .* double, with the fraction 2\.5 \(row 1\)"),
        (pa.array([1.0, 2.0, float("inf")]), "endless"),
        (pa.array([True, False, True]), "'user' .* bool"),
        (pa.array([b"a", b"\xff", b"a"]), r"not UTF-8 \(row 1"),
        (pa.array([datetime.date(2020, 1, 1)] * 3), "date32"),
        (pa.array(["a", "x" * 2000, "a"]), r"2,000 bytes long; allowed: keys of up to 1,024"),
    ],
)
def test_kinds_of_key_that_are_refused(tmp_path: Path, keys: pa.Array, words: str) -> None:
    pq.write_table(pa.table({"user": keys, "item": ["a", "b", "c"], "time": [1, 2, 3]}), tmp_path / "log.parquet")
    with pytest.raises(InputError, match=words):
        read(tmp_path / "log.parquet")


def test_hints_can_be_typed() -> None:
    from sidera.cli import build_parser

    with pytest.raises(InputError) as caught:
        read("hints_that_fail/no_time.csv")
    flags = [word.strip("(),") for word in str(caught.value).split() if word.strip("(),").startswith("--")]
    assert flags == ["--time", "--position", "--order"]
    for flag in flags:
        value = "rows" if flag == "--order" else "rating"
        build_parser().parse_args(["import", "log.csv", "--out", "x", flag, value])
    dataset, _ = read("hints_that_fail/no_time.csv", order="rows")
    assert dataset.time_kind == "order"
    assert dataset.num_events == 70
    assert read("hints_that_fail/no_time.csv", columns={"position": "rating"})[0].time_kind == "order"
    with pytest.raises(InputError, match=r"without --strict \("):
        read("hints_that_fail/events.csv", "hints_that_fail/items.csv", strict_items=True)


def test_dates_of_items_and_users_can_be_loaded(tmp_path: Path) -> None:
    place = CASES / "item_datetime"
    made = import_log(place / "events.csv", tmp_path / "out", place / "items.jsonl", place / "users.csv")
    loaded = load_dataset(tmp_path / "out")
    assert loaded.digest == made.digest
    assert "released" in loaded.items.column_names
    make_views(loaded)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([datetime.datetime(2012, 1, 3, 10)] * 7, pa.timestamp("s")),
        pa.array([datetime.datetime(2012, 1, 3, 10)] * 7, pa.timestamp("ns", tz="Europe/Paris")),
        pa.array([datetime.date(2012, 1, 3)] * 7, pa.date64()),
        pa.array([datetime.time(10, 30)] * 7, pa.time32("s")),
        pa.array([[datetime.datetime(2012, 1, 3)]] * 7, pa.list_(pa.timestamp("s"))),
        pa.array([{"a": [1, 2], "b": {"c": "x"}}] * 7),
        pa.array([[("a", 1)]] * 7, pa.map_(pa.string(), pa.int64())),
        pa.array([decimal.Decimal("1.25")] * 7),
        pa.array([b"\xff\x00"] * 7),
        pa.array([1.5] * 7, pa.float16()),
    ],
    ids=lambda values: str(values.type),
)
def test_what_is_saved_is_what_was_measured(tmp_path: Path, values: pa.Array) -> None:
    from sidera.data.schema import build_dataset

    events = pa.table({name: [row[name] for row in ROWS] for name in ROWS[0]})
    items = pa.table({"key": [f"i{place}" for place in range(7)], "extra": values})
    users = pa.table({"key": [f"u{place}" for place in range(4)], "since": values[:4]})
    made = build_dataset("x", events, items, users)
    made.save(tmp_path / "x")
    assert Dataset.load(tmp_path / "x").digest == made.digest


@pytest.mark.parametrize(
    ("log", "items", "cause"),
    [("float_ids", "items", "'.0'"), ("no_zero", "items_zero", "leading zeros"), ("spaces", "items_i", "spaces")],
)
def test_a_join_that_finds_nothing_is_told(log: str, items: str, cause: str) -> None:
    _, report = read(f"join_finds_nothing/{log}.csv", f"join_finds_nothing/{items}.csv")
    assert (report.items_found, report.items_named) == (0, 12)
    assert len(report.warnings) == 1
    assert "12 of 12" in report.warnings[0]
    assert cause in report.warnings[0]


@pytest.mark.parametrize(
    ("write", "cause"),
    [(str.upper, "capital"), (lambda key: f"MOVIE_{key}", "prefix"), (lambda key: "ab" + key[::-1], "write both")],
)
def test_more_joins_that_find_nothing(tmp_path: Path, write: Any, cause: str) -> None:
    items = [{"item": write(f"i{place}"), "title": "T"} for place in range(7)]
    _, report = read(lines(tmp_path / "log.jsonl", ROWS), lines(tmp_path / "items.jsonl", items))
    assert report.items_found == 0
    assert cause in report.warnings[0]
    _, report = read(tmp_path / "log.jsonl", lines(tmp_path / "items.jsonl", [{"item": f"i{n}"} for n in range(7)]))
    assert report.items_found == 7
    assert not report.warnings


def test_western_letters_are_read_and_said() -> None:
    dataset, report = read("latin1_column/events.csv", "latin1_column/items.csv")
    assert dataset.items["author"].to_pylist() == ["Zoë"] * 12
    assert dataset.items["categories"].to_pylist() == ["Comédie"] * 12
    assert "line 2 is not UTF-8" in said(report)


@pytest.mark.parametrize(
    ("encoding", "told"),
    [
        ("utf-16", {}),
        ("utf-16-le", {}),
        ("utf-8-sig", {}),
        ("cp1251", {"encoding": "cp1251"}),
        ("gbk", {"encoding": "gbk"}),
    ],
)
def test_encodings(tmp_path: Path, encoding: str, told: dict[str, Any]) -> None:
    title = {"gbk": "红色陶瓷"}.get(encoding, "Чай")
    path = table(tmp_path / "log.csv", kind=[title])
    path.write_bytes(path.read_text().encode(encoding))
    dataset, report = read(path, columns={"event": "kind"}, **told)
    assert dataset.num_events == len(ROWS)
    assert report.kinds == {title: len(ROWS)}
    if told:
        with pytest.raises(InputError, match=r"line 2 is not UTF-8 text.*--encoding"):
            read(path)


def test_thresholds_come_from_training_events_only() -> None:
    dataset, _ = read("leak_threshold/events.csv")
    schema = make_views(dataset, DataConfig(positive="click"))[0].schema
    assert schema.long_view_seconds[5] == 5.0


@pytest.mark.parametrize("positive", ["click", "like"])
def test_thresholds_do_not_move_with_what_is_asked_or_later(positive: str) -> None:
    dataset, _ = read("leak_threshold/events.csv")
    marks = dataset.feedback["click"] if positive == "click" else np.arange(dataset.num_events) % 3 == 0
    dataset = dataset.with_feedback(positive, marks)
    config = DataConfig(positive=positive)
    view, _ = make_views(dataset, config)
    later = np.arange(dataset.num_events) >= view.split.train_ends[dataset.event_users]
    assert later.any()
    changed = dataset.with_feedback("watch_time", np.where(later, 1e5, dataset.feedback["watch_time"]))
    assert make_views(changed, config)[0].schema == view.schema


@pytest.mark.parametrize("name", ["events", "complete", "one_bucket"])
@pytest.mark.parametrize("positive", ["", "long_view"])
def test_a_missing_watch_time_moves_no_threshold(name: str, positive: str) -> None:
    dataset, _ = read(f"watch_time_missing/{name}.csv")
    found = make_views(dataset, DataConfig(positive=positive))[0].schema.long_view_seconds
    right = json.loads((CASES / "watch_time_missing/right.json").read_text())[f"{name}.csv"]
    for duration, threshold in right.items():
        assert found[int(np.log2(int(duration)))] == pytest.approx(threshold, abs=1e-4)


@pytest.mark.parametrize("bad", ["inf", "-5", "soon", "-inf", "1e400"])
@pytest.mark.parametrize("name", ["watch_time", "duration"])
def test_seconds_are_judged_at_the_door(tmp_path: Path, bad: str, name: str) -> None:
    other = "duration" if name == "watch_time" else "watch_time"
    log = table(tmp_path / "log.csv", **{name: ["3", bad, "4", "5"], other: ["9"]})
    with pytest.raises(InputError, match=rf"line 3 of log\.csv has .*{name}.*--max-bad"):
        read(log)
    dataset, report = read(log, max_bad=0.3)
    assert dataset.num_events == 15
    assert name in report.bad_rows


@pytest.mark.parametrize("missing", ["", "nan", "NA", "null", "None", "\\N"])
def test_seconds_that_are_missing_are_not_known(tmp_path: Path, missing: str) -> None:
    log = table(tmp_path / "log.csv", watch_time=["3", missing, "4", "5"], duration=["9"])
    dataset, _ = read(log)
    assert int(np.isnan(dataset.feedback["watch_time"]).sum()) == 5
    schema = make_views(dataset, DataConfig())[0].schema
    assert np.isfinite(schema.long_view_seconds).all()


def test_several_files_are_one_log(tmp_path: Path) -> None:
    for paths in (["spark.parquet"], ["day1.csv", "day2.csv"], ["day*.csv"]):
        dataset, _ = read_log([CASES / "many_files" / path for path in paths], "mine")
        assert dataset.times.tolist() == SECONDS
    folder = tmp_path / "events"
    (folder / "day=1").mkdir(parents=True)
    (folder / "day=2").mkdir()
    (folder / "_SUCCESS").touch()
    lines(folder / "day=1" / "a.jsonl", ROWS[:10])
    lines(folder / "day=2" / "a.jsonl", ROWS[10:])
    dataset, _ = read(folder)
    assert dataset.feedback["day"].tolist() == [1] * 10 + [2] * 10
    (tmp_path / "other.csv").write_text("user,thing,time\n")
    with pytest.raises(InputError, match="given twice"):
        read_log([CASES / "many_files/day1.csv"] * 2, "mine")
    table(tmp_path / "a.csv")
    table(tmp_path / "b.csv", names="user,item,when")
    with pytest.raises(InputError, match=r"b\.csv has other columns than a\.csv: it lacks 'time' and has 'when'"):
        read_log([tmp_path / "a.csv", tmp_path / "b.csv"], "mine")
    with pytest.raises(InputError, match="several kinds"):
        read_log([tmp_path / "a.csv", CASES / "many_files/spark.parquet"], "mine")


@pytest.mark.parametrize(
    ("name", "column", "right"),
    [("paths", "categories", ["Toys", "Puzzles", "Gifts"]), ("structs", "categories", ["Drama"])],
)
def test_nested_categories_become_lists_of_text(tmp_path: Path, name: str, column: str, right: list[str]) -> None:
    place = CASES / "nested_categories"
    import_log(place / "events.csv", tmp_path / "out", place / f"{name}.jsonl")
    dataset = load_dataset(tmp_path / "out")
    assert dataset.items[column].to_pylist() == [right] * 12
    assert not any(set(text) & set("[]{}'\"") for text in dataset.items["text"].to_pylist())
    schema = make_views(dataset)[0].schema
    assert [(each.name, each.vocabulary) for each in schema.owned("item")] == [(column, (right[0],))]


@pytest.mark.parametrize(
    "value",
    [
        *("Toys|Puzzles", "['Toys', 'Puzzles']", '["Toys", "Puzzles"]', "[Toys, Puzzles]", ["Toys", "Puzzles"]),
        *([["Toys", "Puzzles"], ["Toys"]], [{"name": "Toys"}, {"name": "Puzzles"}], "[['Toys', 'Puzzles']]"),
        *("[{'id': 1, 'name': 'Toys'}, {'id': 2, 'name': 'Puzzles'}]", [[["Toys"]], [["Puzzles"]]]),
    ],
)
def test_more_forms_of_categories(tmp_path: Path, value: Any) -> None:
    items = [{"item": f"i{place}", "genres": value} for place in range(7)]
    dataset, _ = read(lines(tmp_path / "log.jsonl", ROWS), lines(tmp_path / "items.jsonl", items))
    assert dataset.items["categories"].to_pylist() == [["Toys", "Puzzles"]] * 7
    if not isinstance(value, str):
        pq.write_table(pa.Table.from_pylist(items), tmp_path / "items.parquet")
        dataset, _ = read(tmp_path / "log.jsonl", tmp_path / "items.parquet")
        assert dataset.items["text"].to_pylist() == ["Categories: Toys, Puzzles"] * 7


def test_weird_ids_are_ids(tmp_path: Path) -> None:
    dataset = import_log(CASES / "ok_weird_ids/events.csv", tmp_path / "out")
    assert dataset.num_events == 70
    assert {"null", "NaN", "-1", "a,b", "new\nline", 'quo"te', "caf\u00e9", "cafe\u0301", " lead"} <= set(
        dataset.item_keys
    )
    assert load_dataset(tmp_path / "out").digest == dataset.digest
    dataset, _ = read("ok_zero_twins/events.csv")
    assert (dataset.num_items, dataset.num_users) == (3, 2)


def test_raw_files_are_read() -> None:
    names = {"column_names": ("user", "item", "rating", "time")}
    for name, options in (("mine.inter", {}), ("no_header.csv", names), ("ratings.dat", names)):
        dataset, _ = read(f"raw_formats/{name}", **options)
        assert (dataset.num_events, dataset.num_users, dataset.num_items) == (20, 4, 11), name
        assert dataset.feedback["rating"].sum() == 66, name
    dataset, report = read("raw_formats/ratings_semicolon.csv", order="rows")
    assert dataset.item_keys[0] == "000000000X"
    assert report.columns[:3] == ["user ← User-ID", "item ← ISBN", "rating ← Book-Rating"]
    dataset, _ = read("raw_formats/reviews.json", "raw_formats/meta_loose.jsonl")
    assert dataset.items["title"].to_pylist()[0] == "Bob's i00"
    for name in ("no_header.csv", "ratings.dat"):
        with pytest.raises(InputError, match=r"no header .*--columns user,item,rating,time"):
            read(f"raw_formats/{name}")


@pytest.mark.parametrize("cut", ["|", "\t", ";", "::", "||"])
def test_delimiters(tmp_path: Path, cut: str) -> None:
    log = table(tmp_path / "log.txt", cut=cut, rating=["4,5" if cut == ";" else "4.5"])
    dataset, _ = read(log, **({"delimiter": cut} if cut == "||" else {}))
    assert dataset.num_events == len(ROWS)
    assert dataset.feedback["rating"].tolist() == [4.5] * len(ROWS)


def test_json_arrays_and_pretty_objects(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    for text in (json.dumps(ROWS), json.dumps(ROWS, indent=2), "\n".join(json.dumps(row, indent=1) for row in ROWS)):
        path.write_text(text)
        assert read(path)[0].num_events == len(ROWS)
    path.write_text(json.dumps(ROWS)[:-40])
    with pytest.raises(InputError, match="is no JSON"):
        read(path)


@pytest.mark.parametrize("name", ["nested.jsonl", "lists.parquet"])
def test_sessions_are_unrolled(name: str) -> None:
    dataset, _ = read(f"sessions/{name}")
    assert dataset.times.tolist() == SECONDS
    assert dataset.item_keys[dataset.item_ids][:5].tolist() == ["i07", "i08", "i09", "i11", "i00"]


def test_more_nested_logs(tmp_path: Path) -> None:
    users = [
        {"user": f"u{n}", "item": [r["item"] for r in ROWS[n * 5 : n * 5 + 5]], "time": [1, 2, 3, 4, 5]}
        for n in range(4)
    ]
    dataset, report = read(lines(tmp_path / "log.jsonl", [{**user, "country": "fr", "tags": ["x"]} for user in users]))
    assert dataset.num_events == 20
    assert "tags" in said(report)
    events = [
        {
            "user_id": user["user"],
            "log": [{"item_id": i, "timestamp": t} for i, t in zip(user["item"], user["time"], strict=True)],
        }
        for user in users
    ]
    pq.write_table(pa.Table.from_pylist(events), tmp_path / "log.parquet")
    assert read(tmp_path / "log.parquet")[0].num_events == 20
    with pytest.raises(InputError, match="differ in length"):
        read(lines(tmp_path / "log.jsonl", [{**user, "time": [1]} for user in users]))
    with pytest.raises(InputError, match="no user"):
        read(lines(tmp_path / "log.jsonl", [{**user, "user": None} for user in users]))


def test_kinds_of_event_are_marks_weights_and_positives() -> None:
    name = "text_columns_dropped/event_types.csv"
    dataset, report = read(name)
    assert report.kinds == {"view": 36, "addtocart": 17, "transaction": 17}
    assert "--keep" in said(report)
    assert dataset.feedback["is_transaction"].sum() == 17
    dataset, report = read(name, keep=parse_keep("transaction,addtocart"))
    assert dataset.num_events == 34
    assert "view 36" in report.events
    assert "weight" not in dataset.feedback
    dataset, _ = read(name, keep=parse_keep("transaction=3,addtocart=1,view=0"))
    assert dataset.num_events == 70
    assert dataset.feedback["positive"].sum() == 34
    assert dataset.feedback["weight"].sum() == 17 * 3 + 17
    every, positives = make_views(dataset)
    assert (every.dataset.num_events, positives.dataset.num_events) == (70, 34)
    with pytest.raises(InputError, match=r"--keep 'buy'.*view, addtocart, transaction|--keep 'buy'"):
        read(name, keep={"buy": 1.0})
    with pytest.raises(InputError, match="--event-column"):
        read("text_columns_dropped/text_rating.jsonl", keep={"buy": 1.0})


@pytest.mark.parametrize("name", ["text_rating.jsonl", "decimal_rating.parquet"])
def test_ratings_of_any_kind(name: str) -> None:
    dataset, report = read(f"text_columns_dropped/{name}")
    assert dataset.feedback["rating"].dtype == np.float64
    assert "--min-rating 4" in said(report)
    liked, _ = read(f"text_columns_dropped/{name}", min_rating=4.0)
    assert liked.num_events == (dataset.feedback["rating"] >= 4).sum() == 32


def test_every_column_that_is_left_out_is_named(tmp_path: Path) -> None:
    log = table(tmp_path / "log.csv", city=["Rome", "Oslo"], note=["a b"], price=["2.5"])
    dataset, report = read(log)
    assert set(dataset.feedback) == {"price"}
    assert [left.split(" ")[0] for left in report.left_out] == ["city", "note"]
    assert "--event-column city" in said(report)


def test_titles_with_open_quotes_keep_their_rows() -> None:
    dataset, report = read("tsv_open_quote/plays.tsv", "tsv_open_quote/items.tsv")
    assert dataset.num_events == 70
    assert dataset.items["title"].to_pylist()[3] == '"Heroes'
    assert (report.items_found, dataset.num_items) == (12, 12)


def test_titles_without_spaces_share_their_letters() -> None:
    from sidera.catalog.config import CatalogConfig
    from sidera.catalog.content import item_texts, tfidf_vectors

    shares = {}
    for language in ("en", "zh"):
        dataset, _ = read("cjk_titles/events.csv", f"cjk_titles/items_{language}.csv")
        vectors = tfidf_vectors(item_texts(dataset.items), CatalogConfig().vector_dim)
        kinds = [key[:2] for key in dataset.item_keys]
        nearest = (vectors @ vectors.T).fill_diagonal_(-1).topk(9).indices
        shares[language] = np.mean(
            [[kinds[other] == kinds[row] for other in near] for row, near in enumerate(nearest.tolist())]
        )
    assert shares["zh"] >= 0.95
    assert shares["en"] >= 0.95


@pytest.mark.parametrize(
    "titles",
    [
        ["赤いお茶", "青いお茶", "靴下"],
        ["เสื้อสีแดง", "เสื้อสีฟ้า", "รองเท้า"],
        ["紅茶 cup", "緑茶 cup", "くつ"],
        ["ﾃﾚﾋﾞ", "ﾃﾚﾋﾞ台", "いす"],
    ],
)
def test_more_scripts_without_spaces(titles: list[str]) -> None:
    from sidera.catalog.content import tfidf_vectors

    vectors = tfidf_vectors(titles, 8)
    near = vectors @ vectors.T
    assert near[0, 1] > near[0, 2] + 0.1


def test_texts_with_spaces_are_read_as_before() -> None:
    from sidera.catalog.tfidf import words_of

    assert words_of("The red Ceramic cup, x 2024") == ["red", "ceramic", "cup", "2024"]
