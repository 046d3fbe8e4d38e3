"""Hand-made samples in each publisher's format, with the oddities that the real files have."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from published import write

from sidera.cli import main
from sidera.core import InputError
from sidera.data.config import load_dataset
from sidera.data.dataset import Dataset
from sidera.data.raw import RAW_FORMATS, convert
from sidera.data.raw.conversion import Options

ALL = Options()  # nothing thinned


def events(dataset: Dataset) -> list[tuple[str, str, int]]:
    """(user, item, time) in the order of the Dataset."""
    users, items = dataset.user_keys[dataset.event_users], dataset.item_keys[dataset.item_ids]
    return list(zip(users.tolist(), items.tolist(), dataset.times.tolist(), strict=True))


# ---- Amazon

REVIEWS_2014 = [
    '{"reviewerID": "A1", "asin": "B2", "reviewerName": "J. \\"X\\"", "helpful": [0, 0], "reviewText": "it\'s {fine}",'
    ' "overall": 5.0, "summary": "s", "unixReviewTime": 1390694400, "reviewTime": "01 26, 2014"}',
    "{'reviewerID': 'A1', 'asin': 'B1', 'overall': 1.0, 'unixReviewTime': 1390694400, 'reviewText': \"it's\"}",
    '{"reviewerID": "A2", "asin": "B1", "overall": 4.0, "unixReviewTime": 1357430400}',
    '{"reviewerID": "A2", "asin": "B1", "overall": 4.0, "unixReviewTime": 1357430400, "reviewText": "told again"}',
]
META_2014 = [
    "{'asin': 'B0', 'title': 'Nobody bought me', 'price': 1.0}",
    "{'asin': 'B1', 'title': \"Bob's &amp; Co <b>Shampoo</b>\", 'price': 3.49, 'imUrl': 'http://x.jpg', 'brand': 'Bob',"
    " 'related': {'also_bought': ['B2']}, 'salesRank': {'Beauty': 3}, 'description': 'Good.\\nVery good.',"
    " 'categories': [['Beauty', 'Hair Care', 'Shampoos'], ['Beauty', 'Hair Care', 'Sets'], ['Health']]}",
    '{"asin": "B2", "brand": "Unknown", "categories": [["Beauty"]]}',
]


def amazon2014(folder: Path) -> list[Path]:
    return [write(folder / "reviews_Beauty_5.json.gz", REVIEWS_2014), write(folder / "meta_Beauty.json.gz", META_2014)]


def test_amazon2014(tmp_path: Path) -> None:
    made = convert("amazon2014", amazon2014(tmp_path), ALL)
    again = ("A2", "B1", 1357430400)
    assert events(made) == [("A1", "B2", 1390694400), ("A1", "B1", 1390694400), again, again]  # ties as in the file
    assert made.feedback["rating"].tolist() == [5, 1, 4, 4]
    assert made.items.to_pylist() == [
        {
            "key": "B1",
            "title": "Bob's & Co Shampoo",
            "brand": "Bob",
            "categories": ["Hair Care", "Shampoos", "Sets"],
            "description": "Good.\nVery good.",
            "price": 3.49,
            "text": "Bob's & Co Shampoo. Brand: Bob. Categories: Hair Care, Shampoos, Sets",
        },
        {"key": "B2", "title": None, "brand": None, "categories": [], "description": None, "price": None, "text": None},
    ]


def test_options_thin_in_a_fixed_order_and_are_counted(tmp_path: Path) -> None:
    files = amazon2014(tmp_path)
    made = convert("amazon2014", files, Options(dedupe="exact"))
    assert made.notes["events_repeated"] == 1
    made = convert("amazon2014", files, Options(min_rating=4, until="2014-01-01"))
    assert events(made) == [("A2", "B1", 1357430400)] * 2
    assert (made.notes["events_out_of_period"], made.notes.get("events_rated_lower")) == (2, None)
    made = convert("amazon2014", files, Options(since="2014-01-01", min_rating=4))
    assert events(made) == [("A1", "B2", 1390694400)]
    made = convert("amazon2014", files, Options(rare=2))
    assert made.items["brand"].null_count == made.items.num_rows if "brand" in made.items.column_names else True
    with pytest.raises(InputError, match=r"none of 4 events .* is left \(events_outside_5_core 4\); fix: lower --core"):
        convert("amazon2014", files, Options(core=5))
    for options, named in (
        (Options(core=-1), "--core -1"),
        (Options(max_bad=1.0), "--max-bad 1.0"),
        (Options(since="yesterday"), "'yesterday' cannot be read"),
        (Options(rare=-2), "--rare -2"),
    ):
        with pytest.raises(InputError, match=named):
            convert("amazon2014", files, options)


def test_a_k_core_is_repeated_until_it_is_stable(tmp_path: Path) -> None:
    """u3 falls out, then c has one event and falls out, then u2 has one and falls out: one pass would keep u2."""
    pairs = ["u0,a", "u0,b", "u1,a", "u1,b", "u2,a", "u2,c", "u3,c"]
    log = write(tmp_path / "ratings_X.csv", [f"{pair},5.0,{1_400_000_000 + n}" for n, pair in enumerate(pairs)])
    made = convert("amazon2014", [log], Options(core=2))
    assert {(user, item) for user, item, _ in events(made)} == {("u0", "a"), ("u0", "b"), ("u1", "a"), ("u1", "b")}
    assert made.notes["events_outside_2_core"] == 3


def test_amazon_ratings_files_name_the_user_first_in_2014_and_second_in_2018(tmp_path: Path) -> None:
    first = write(tmp_path / "ratings_Beauty.csv", ["A1,B1,5.0,1400000000", "A2,B1,2.0,1300000000"])
    second = write(tmp_path / "Beauty.csv", ["B1,A1,5.0,1400000000", "B1,A2,2.0,1300000000"])
    expected = [("A1", "B1", 1400000000), ("A2", "B1", 1300000000)]
    assert events(convert("amazon2014", [first], ALL)) == expected
    assert events(convert("amazon2018", [second], ALL)) == expected


def test_amazon2018(tmp_path: Path) -> None:
    reviews = [
        '{"overall": 5.0, "vote": "5", "verified": true, "reviewTime": "01 1, 2018", "reviewerID": "A1", "asin": "B1",'
        ' "style": {"Size:": " Large"}, "reviewText": "x", "unixReviewTime": 1514764800}'
    ] * 2
    meta = [
        json.dumps(
            {
                "category": ["Industrial &amp; Scientific", "Tapes", "</span></span></span>"],
                "description": ["<p>Sticks.</p>", "", "A &lt;b&gt; tape"],
                "title": 'Duct <span class="a-size-medium">Tape</span>',
                "also_buy": ["B9"],
                "brand": "Duck",
                "price": "$1,012.50",
                "asin": "B1",
            }
        )
    ]
    files = [write(tmp_path / "X_5.json.gz", reviews), write(tmp_path / "meta_X.json.gz", meta)]
    made = convert("amazon2018", files, Options(dedupe="exact"))
    assert made.num_events == 1
    (item,) = made.items.to_pylist()
    assert item["title"] == "Duct Tape"
    assert item["categories"] == ["Industrial & Scientific", "Tapes"]
    assert item["description"] == "Sticks. A <b> tape"
    assert item["price"] == 1012.5
    assert set(item) == {"key", "title", "brand", "categories", "description", "price", "text"}
    script = json.dumps({"asin": "B1", "title": "var aPageStart = (new Date()).getTime();", "price": ".a-box { }"})
    files[1] = write(tmp_path / "meta_X.json.gz", [script])
    assert convert("amazon2018", files, ALL).items.column_names == ["key", "categories", "text"]


def test_amazon2023(tmp_path: Path) -> None:
    review = {"rating": 4.0, "title": "t", "text": "x", "images": [], "asin": "B1RED", "parent_asin": "B1"}
    review |= {"user_id": "AE1", "timestamp": 1588687728923, "helpful_vote": 0, "verified_purchase": True}
    meta = {
        "main_category": "Beauty",
        "title": "Brush",
        "average_rating": 4.9,
        "rating_number": 1000,
        "store": "Brushes",
    }
    meta |= {"features": ["Soft"], "description": ["For hair."], "price": 7.5, "categories": ["Beauty", "Hair"]}
    log = write(tmp_path / "All_Beauty.jsonl.gz", [json.dumps(review)])
    content = write(tmp_path / "meta_All_Beauty.jsonl.gz", [json.dumps({**meta, "parent_asin": "B1"})])
    made = convert("amazon2023", [log, content], ALL)
    assert events(made) == [("AE1", "B1", 1588687728)]
    text = "Brush. Brand: Brushes. Categories: Beauty, Hair. Soft For hair"
    assert made.items["text"].to_pylist() == [text]
    assert not {"average_rating", "rating_number"} & set(made.items.column_names)
    rows = ["user_id,parent_asin,rating,timestamp", "AE1,B1,4.0,1588687728923"]
    table = convert("amazon2023", [write(tmp_path / "All_Beauty.csv.gz", rows), content], ALL)
    assert table.digest == made.digest


# ---- MovieLens

FILMS = ["1::Toy Story (1995)::Animation|Comedy", "2::Misérables, Les (1995)::Drama|Musical", "3::Nobody (1990)::War"]
RATINGS = ["1::2::5::978300760", "1::1::4::978300760", "2::1::3::978302109", "2::2::4::978301968"]


def test_movielens_1m_in_a_zip_and_in_latin_1(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m/ratings.dat", "\n".join(RATINGS) + "\n")
        archive.writestr("ml-1m/movies.dat", "\n".join(FILMS).encode("latin-1"))
        archive.writestr("ml-1m/users.dat", "1::F::1::10::48067\n2::M::56::16::70072\n9::M::56::16::70072\n")
        archive.writestr("ml-1m/README", "text")
        archive.writestr("__MACOSX/ml-1m/._ratings.dat", "\0")
    made = convert("movielens", [tmp_path / "ml-1m.zip"])
    assert events(made) == [("1", "2", 978300760), ("1", "1", 978300760), ("2", "2", 978301968)]
    assert made.items["title"].to_pylist() == ["Toy Story (1995)", "Misérables, Les (1995)"]
    assert made.items["text"][1].as_py() == "Misérables, Les (1995). Genres: Drama, Musical"
    assert made.items["year"].to_pylist() == [1995, 1995]
    assert made.users.to_pylist()[0] == {"key": "1", "gender": "F", "age_bucket": 1, "occupation": 10, "zip": "48067"}
    assert made.notes["events_rated_lower"] == 1


def test_movielens_100k_and_csv(tmp_path: Path) -> None:
    write(tmp_path / "k" / "u.data", ["196\t242\t3\t881250949", "186\t302\t3\t891717742", "196\t302\t5\t881250950"])
    flags = ["0|0|0|0|0|1" + "|0" * 13, "0" + "|0" * 18]
    write(
        tmp_path / "k" / "u.item",
        [f"242|Kolya (1996)|24-Jan-1997||http://x|{flags[0]}", f"302|Lé (1997)|||http://x|{flags[1]}"],
        "latin-1",
    )
    write(tmp_path / "k" / "u.user", ["196|49|M|writer|55105", "186|39|F|executive|00000"])
    write(tmp_path / "k" / "u1.base", ["196\t242\t3\t881250949"])
    made = convert("movielens", [tmp_path / "k"], ALL)
    assert made.num_events == 3
    assert made.items["genres"].to_pylist() == [["Comedy"], []]
    assert made.items["title"].to_pylist() == ["Kolya (1996)", "Lé (1997)"]
    assert made.users["zip"].to_pylist() == ["55105", "00000"]

    write(tmp_path / "c" / "ratings.csv", ["userId,movieId,rating,timestamp", "1,31,2.5,1260759144", "1,10,4.5,1"])
    quoted = '31,"American President, The (1995)",Comedy|Drama'
    write(tmp_path / "c" / "movies.csv", ["movieId,title,genres", quoted, '10,"A ""B""",(no genres listed)'])
    made = convert("movielens", [tmp_path / "c"], ALL)
    assert made.feedback["rating"].tolist() == [4.5, 2.5]
    assert made.items["title"].to_pylist() == ["American President, The (1995)", 'A "B"']
    assert made.items["genres"].to_pylist() == [["Comedy", "Drama"], []]


# ---- Yelp, Steam


def test_yelp(tmp_path: Path) -> None:
    review = {"review_id": "r", "user_id": "u", "business_id": "b", "stars": 3.0, "useful": 0, "text": "\n"}
    review["date"] = "2018-07-07 22:09:11"
    business = {"business_id": "b", "name": "Bar &amp; Grill", "city": "Tampa", "stars": 4.5, "review_count": 9}
    business |= {"categories": "Bars, Grills , Food", "attributes": None}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, record in (("review", review), ("business", business), ("user", {"user_id": "u"})):
            content = (json.dumps(record) + "\n").encode()
            entry = tarfile.TarInfo(f"yelp_academic_dataset_{name}.json")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    (tmp_path / "yelp_dataset.tar").write_bytes(buffer.getvalue())
    made = convert("yelp", [tmp_path / "yelp_dataset.tar"], ALL)
    assert events(made) == [("u", "b", 1531001351)]
    assert made.items.to_pylist() == [
        {
            "key": "b",
            "title": "Bar & Grill",
            "categories": ["Bars", "Grills", "Food"],
            "city": "Tampa",
            "text": "Bar & Grill. Categories: Bars, Grills, Food",
        }
    ]
    with pytest.raises(InputError, match="none of 1 events"):
        convert("yelp", [tmp_path / "yelp_dataset.tar"], Options(since="2019-01-01", until="2020-01-01"))


def test_steam(tmp_path: Path) -> None:
    review = "{u'username': u'Chaos\\u2122', u'hours': 0.1, u'products': 41, u'product_id': u'725280',"
    review += " u'page_order': 0, u'date': u'2017-12-17', u'text': u\"It's\", u'early_access': False, u'page': 1}"
    game = "{u'publisher': u'K', u'genres': [u'Action', u'Indie'], u'app_name': u'L', u'title': u'L&amp;M',"
    game += " u'tags': [u'Fun'], u'price': 4.99, u'id': u'725280', u'developer': u'K Studio', u'sentiment': u'Mixed'}"
    no_id = "{u'app_name': u'nameless'}"
    files = [
        write(tmp_path / "steam_reviews.json.gz", [review]),
        write(tmp_path / "steam_games.json.gz", [no_id, game]),
    ]
    made = convert("steam", files, ALL)
    assert events(made) == [("Chaos™", "725280", 1513468800)]
    assert made.items["text"].to_pylist() == ["L&M. Brand: K Studio. Categories: Action, Indie"]
    assert not made.feedback  # hours are those until the crawl
    old = "{'user_id': '7656', 'user_url': 'http://x', 'reviews': ["
    old += "{'funny': '', 'posted': 'Posted November 5, 2011.', 'item_id': '1250', 'recommend': True, 'review': 'A'},"
    old += "{'funny': '', 'posted': 'Posted June 24.', 'item_id': '22200', 'recommend': False, 'review': \"B's\"}]}"
    log = write(tmp_path / "old" / "australian_user_reviews.json.gz", [old, "{'user_id': 'x', 'reviews': []}"])
    made = convert("steam", [log], ALL)
    assert events(made) == [("7656", "1250", 1320451200)]
    assert made.feedback["recommend"].tolist() == [True]
    assert made.notes["events_without_year"] == 1
    with pytest.raises(InputError, match="has no times"):
        convert("steam", [write(tmp_path / "items" / "australian_users_items.json.gz", ["{}"])])


# ---- tables


def test_lastfm_taobao_kuairand(tmp_path: Path) -> None:
    lines = ["userID\tartistID\ttagID\ttimestamp", "2\t52\t13\t1238536800000", "2\t52\t15\t1238536800000"]
    write(tmp_path / "l" / "user_taggedartists-timestamps.dat", [*lines, "2\t9\t1\t-428720400000"])
    write(tmp_path / "l" / "artists.dat", ["id\tname\turl\tpictureURL", "52\tMórrison\thttp://x\thttp://y"])
    made = convert("lastfm", [tmp_path / "l"])
    assert events(made) == [("2", "52", 1238536800)]
    assert made.items.to_pylist() == [{"key": "52", "title": "Mórrison", "text": "Mórrison"}]
    assert (made.notes["events_out_of_period"], made.notes["events_repeated"]) == (1, 1)

    rows = ["1,2268318,2520377,pv,1511544070", "1,2268318,2520377,buy,1511544071", "2,5,7,cart,2146123320"]
    made = convert("taobao", [write(tmp_path / "UserBehavior.csv", rows)])
    assert [name for name, values in made.feedback.items() if values[1]] == ["buy"]
    assert made.items.to_pylist() == [{"key": "2268318", "tags": "2520377", "text": None}]
    assert made.notes["events_out_of_period"] == 1

    header = "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    header += "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
    row = "0,3784,20220408,1900,1649417271991,1,0,0,0,0,0,1,24566,24566,0,0,0,0,1"
    early = row.replace("1649417271991", "1649417271990").replace("3784", "9")
    write(tmp_path / "q" / "log_standard_4_08_to_4_21_pure.csv", [header, row, early])
    made = convert("kuairand", [tmp_path / "q"])
    assert [item for _, item, _ in events(made)] == ["9", "3784"]  # a millisecond decides
    assert made.feedback["click"].dtype == bool
    assert made.feedback["watch_time"].tolist() == pytest.approx([24.566] * 2)


# ---- the verb


def test_convert_writes_a_data_folder_and_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(path) for path in amazon2014(tmp_path)]
    out = tmp_path / "beauty"
    assert main(["convert", "amazon2014", *files, "--out", str(out), "--core", "0", "--min-rating", "2"]) == 0
    shown = capsys.readouterr().out
    assert "events read: 4" in shown
    assert "events rated lower: 1" in shown
    assert "events repeated: 1" in shown
    assert shown.strip().endswith("2 events of 2 users on 2 items")
    saved = load_dataset(out)
    assert (saved.name, saved.num_events) == ("beauty", 2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert main(["convert", "amazon2014", *files, "--out", str(tmp_path / "mine")]) == 2
    assert "would be replaced" in capsys.readouterr().err
    assert main(["convert", "criteo", files[0], "--out", str(tmp_path / "c")]) == 2
    assert "without a user and an item" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_defaults_are_stated() -> None:
    """What makes the published figures; docs/evidence/public_data.md tells them."""
    page = (Path(__file__).resolve().parents[3] / "docs" / "evidence" / "public_data.md").read_text()
    for name, found in RAW_FORMATS.items():
        options = found.options
        rating = "-" if options.min_rating is None else f"{options.min_rating:g}"
        row = f"| `{name}` | {options.core or '-'} | {rating} | {options.dedupe} | {options.rare or '-'} |"
        assert row in page, row


def test_digest_does_not_depend_on_how_the_files_lie(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain", tmp_path / "packed.tar.gz"
    reviews, meta = write(plain / "reviews_B_5.json", REVIEWS_2014), write(plain / "meta_B.json", META_2014)
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(meta, "data/meta_B.json")
        archive.add(reviews, "data/reviews_B_5.json")
    digests = {convert("amazon2014", paths, ALL).digest for paths in ([plain], [packed], [meta, reviews])}
    assert len(digests) == 1
    assert isinstance(convert("amazon2014", [plain], ALL).items, pa.Table)
