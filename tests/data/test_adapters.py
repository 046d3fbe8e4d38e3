"""Published data sets: figures as published, order as published, nothing read that must not be."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hand_made import read_log
from sidera.core import ArtifactError, InputError
from sidera.data.adapters import ADAPTERS, detect
from sidera.data.batches import PackedSequences
from sidera.data.config import DataConfig, load_dataset, make_split
from sidera.data.dataset import Dataset
from sidera.data.tiny import tiny_log
from yardstick import yardstick

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")

FIGURES = {  # users, items, events as in the README of the data
    "amazon2014_beauty": ("amazon", 22_363, 12_101, 198_502),
    "amazon2014_sports": ("amazon", 35_598, 18_357, 296_337),
    "amazon2018_scientific": ("amazon", 8_317, 4_344, 58_492),
    "ml-1m": ("movielens", 5_398, 3_522, 518_897),
    "ml-100k": ("movielens", 942, 1_447, 55_375),
    "ml-latest-small-2016": ("movielens", 671, 6_170, 51_568),
}


@needs_shared
@pytest.mark.parametrize("name", FIGURES)
def test_figures_and_detection(name: str) -> None:
    adapter, *figures = FIGURES[name]
    assert detect(SHARED / name) == adapter
    dataset = load_dataset(SHARED / name)
    assert [dataset.num_users, dataset.num_items, dataset.num_events] == figures
    assert "items_without_content" not in dataset.notes
    split = make_split(dataset)
    assert len(split.test) == int((np.diff(dataset.offsets) >= 3).sum())
    if dataset.time_kind == "seconds":
        assert len(make_split(dataset, DataConfig(split="temporal")).test) > 0


@needs_shared
def test_beauty_keeps_the_published_order_and_its_last_item_is_the_target() -> None:
    folder = SHARED / "amazon2014_beauty"
    raw = pq.read_table(folder / "interactions.parquet", columns=["user_id", "item_id", "position"]).to_pydict()
    published: dict[str, list[str]] = {}
    for user, item, position in zip(raw["user_id"], raw["item_id"], raw["position"], strict=True):
        assert len(published.setdefault(user, [])) == position
        published[user].append(item)
    dataset = load_dataset(folder)
    keys = dataset.item_keys[dataset.item_ids]
    for user, low, high in zip(dataset.user_keys, dataset.offsets[:-1], dataset.offsets[1:], strict=True):
        assert keys[low:high].tolist() == published[user]
    split = make_split(dataset)
    targets = dataset.item_keys[split.test.target_ids].tolist()
    assert targets == [published[user][-1] for user in dataset.user_keys]
    assert len(targets) == 22_363


@needs_shared
def test_beauty_loads_and_batches_fast() -> None:
    unit = yardstick()
    before = time.process_time()
    dataset = load_dataset(SHARED / "amazon2014_beauty")
    split = make_split(dataset)
    assert time.process_time() - before < 20 * unit
    before = time.process_time()
    targets = sum(batch.item_ids.numel() for batch in PackedSequences(read_log(dataset, 50), split, 256).batches(0))
    assert targets == 198_502 - 3 * 22_363
    assert time.process_time() - before < 5 * unit


@needs_shared
def test_what_others_computed_is_read_only_when_named() -> None:
    plain = load_dataset(SHARED / "amazon2014_sports")
    assert plain.items.column_names == ["key", "brand", "categories", "text"]
    asked = load_dataset(SHARED / "amazon2014_sports", DataConfig(text_fields=("idgenrec_text_id", "brand")))
    assert "idgenrec_text_id" in asked.items.column_names
    assert "gram_keywords" not in asked.items.column_names
    for name in FIGURES:
        columns = set(load_dataset(SHARED / name).items.column_names)
        assert not columns & {"n_interactions", "attribute_ids", "item_idx", "gram_keywords"}


@needs_shared
def test_movielens_keeps_ratings_of_four_and_more() -> None:
    assert load_dataset(SHARED / "ml-100k").feedback["rating"].min() == 4
    whole = load_dataset(SHARED / "ml-100k", DataConfig(min_rating=0))
    assert (whole.num_users, whole.num_items, whole.num_events) == (943, 1_682, 100_000)
    assert whole.items["text"][0].as_py() == "Toy Story (1995). Genres: Animation, Children's, Comedy"


def interactions(folder: Path, **columns: list[object]) -> Path:
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "interactions.parquet")
    return folder


def amazon_like(folder: Path) -> Path:
    """Three events of one day whose published order is not their row order."""
    interactions(
        folder,
        user_id=["u", "u", "u"],
        item_id=["a", "b", "c"],
        user_idx=[1, 1, 1],
        item_idx=[1, 2, 3],
        position=[2, 0, 1],
        timestamp=[86_400] * 3,
    )
    items = {
        "item_id": ["c", "a", "b"],
        "title": ["C", "A", None],
        "n_interactions": [9, 9, 9],
        "gram_keywords": [["x"], ["y"], ["z"]],
    }
    pq.write_table(pa.table(items), folder / "items.parquet")
    return folder


def test_position_is_the_tie_rule_of_a_day(tmp_path: Path) -> None:
    dataset = load_dataset(amazon_like(tmp_path / "shop"))
    assert dataset.item_keys[dataset.item_ids].tolist() == ["b", "c", "a"]
    assert dataset.item_keys.tolist() == ["c", "a", "b"]
    assert dataset.items.column_names == ["key", "title", "text"]


TEXTS = {
    "title": ["Castle", "Robot", "Kite"],
    "brand": ["Bricks", None, "Fly"],
    "categories": [["Building"], ["Figures", "Robots"], []],
    "description": ["Of 300 parts.", "It walks.", None],
}
CASTLE = "Castle. Brand: Bricks. Categories: Building. Of 300 parts"


@pytest.mark.parametrize(
    "columns",
    [
        ("user_id", "item_id", "user_idx", "item_idx", "position", "timestamp"),
        ("user_id", "item_id", "user_idx", "item_idx", "position"),
        ("user_id", "item_id", "timestamp"),
        ("user_id", "item_id", "timestamp", "rating"),
        ("user_idx", "item_idx", "position", "timestamp"),
        ("user_idx", "item_idx", "position"),
        ("user_id", "item_idx", "position", "split"),
    ],
)
@pytest.mark.parametrize("lists", [True, False])
def test_amazon_layouts_get_their_text_whatever_their_year(
    tmp_path: Path, columns: tuple[str, ...], lists: bool
) -> None:
    """Toys: text columns beside the ids of one release and the order of another; categories also as plain text."""
    every = {
        "user_id": ["A1", "A1", "A2"],
        "item_id": ["B1", "B2", "B3"],
        "user_idx": [1, 1, 2],
        "item_idx": [1, 2, 3],
        "position": [0, 1, 0],
        "timestamp": [86_400, 86_400, 86_400],
        "rating": [5.0, 2.0, 4.0],
        "split": ["train", "valid", "train"],
    }
    folder = interactions(tmp_path / "toys", **{name: every[name] for name in columns})
    texts = dict(TEXTS) if lists else {**TEXTS, "categories": ["Building", "Figures, Robots", ""]}
    if "split" in columns:
        texts["gram_keywords"] = [["a"], ["b"], ["c"]]
    pq.write_table(pa.table({"item_id": every["item_id"], "item_idx": [1, 2, 3], **texts}), folder / "items.parquet")
    said: list[str] = []
    dataset = load_dataset(folder, say=said.append)
    assert dataset.items["text"].to_pylist() == [
        CASTLE,
        "Robot. Categories: Figures, Robots. It walks",
        "Kite. Brand: Fly",
    ]
    assert dataset.item_keys.tolist() == (["B1", "B2", "B3"] if "item_id" in columns else ["1", "2", "3"])
    assert "items_without_content" not in dataset.notes
    assert dataset.time_kind == ("seconds" if "timestamp" in columns else "order")
    (line,) = said
    assert "read as Amazon" in line
    assert "text of title, brand, categories, description" in line
    if "rating" in columns:
        assert load_dataset(folder, DataConfig(min_rating=3)).num_events == 2


def test_a_ready_text_is_read_and_other_texts_are_named(tmp_path: Path) -> None:
    folder = interactions(tmp_path / "toys", user_id=["u"], item_id=["a"], position=[0])
    pq.write_table(pa.table({"item_id": ["a"], "text": ["All of it"], "blurb": ["no"]}), folder / "items.parquet")
    said: list[str] = []
    assert load_dataset(folder, say=said.append).items["text"].to_pylist() == ["All of it"]
    assert said[0].endswith("text of text; not read: blurb")


def test_feedback_that_is_left_out_is_named(tmp_path: Path) -> None:
    folder = interactions(tmp_path / "videos", user_id=[1], item_id=[2], timestamp=[3], is_click=[1])
    with pytest.raises(InputError, match="no adapter knows"):  # without an items table
        load_dataset(folder)
    pq.write_table(pa.table({"item_id": [2], "title": ["Cat"]}), folder / "items.parquet")
    said: list[str] = []
    load_dataset(folder, say=said.append)
    assert said[0].endswith("text of title; not read: is_click")


def test_movielens_like(tmp_path: Path) -> None:
    folder = interactions(
        tmp_path / "films",
        user_id=[1, 1, 1, 2],
        item_id=[7, 8, 9, 8],
        rating=[4.0, 3.5, 5.0, 1.0],
        timestamp=[30, 20, 10, 5],
        position=[2, 1, 0, 0],
    )
    pq.write_table(
        pa.table({"item_id": [9, 8, 7], "title": ["Nine", "Eight", "Seven"], "genres": [["X"], [], []]}),
        folder / "items.parquet",
    )
    pq.write_table(pa.table({"user_id": [1, 2], "age": [20, 30], "zip": ["0", "1"]}), folder / "users.parquet")
    dataset = load_dataset(folder)
    assert dataset.items["text"].to_pylist() == ["Nine. Genres: X", "Seven"]
    assert dataset.times.tolist() == [10, 30]
    assert dataset.users.to_pylist() == [{"key": "1", "age": 20, "zip": "0"}]
    assert load_dataset(folder, DataConfig(min_rating=1)).num_items == 3


def test_canonical_folder(tmp_path: Path) -> None:
    made = tiny_log(num_users=20, num_items=40)
    made.save(tmp_path / "tiny")
    assert detect(tmp_path / "tiny") == "canonical"
    assert load_dataset(tmp_path / "tiny").digest == made.digest
    with pytest.raises(InputError, match=r"tiny has no rating; allowed: feedback columns: none"):
        load_dataset(tmp_path / "tiny", DataConfig(min_rating=3))
    with pytest.raises(InputError, match="'blurb' is not in the items table"):
        load_dataset(tmp_path / "tiny", DataConfig(text_fields=("blurb",)))


def test_bad_folders_and_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data folder at"):
        load_dataset(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no adapter knows .*holds nothing.*allowed: canonical, amazon, amazon2014"):
        load_dataset(tmp_path / "empty")
    with pytest.raises(InputError, match=r"adapter = 'shop' is not known; allowed: auto, canonical"):
        load_dataset(tmp_path / "empty", DataConfig(adapter="shop"))
    with pytest.raises(ArtifactError, match="no dataset at"):
        load_dataset(tmp_path / "empty", DataConfig(adapter="canonical"))
    for name in ("amazon2014", "amazon2018", "movielens"):
        with pytest.raises(InputError, match=r"has no interactions\.parquet"):
            ADAPTERS[name](tmp_path / "empty", None, ())
    folder = amazon_like(tmp_path / "shop")
    with pytest.raises(InputError, match=r"lacks the column 'rating' \(found: user_id, item_id"):
        load_dataset(folder, DataConfig(adapter="movielens"))
    with pytest.raises(InputError, match=r"min_rating = 4.*no ratings"):
        load_dataset(folder, DataConfig(min_rating=4))
    (folder / "items.parquet").write_bytes(b"PAR1broken")
    with pytest.raises(InputError, match=r"cannot read .*items\.parquet"):
        load_dataset(folder)


def test_tiny_log_is_the_same_for_a_seed_and_rewards_sequence() -> None:
    assert tiny_log(seed=1).digest == tiny_log(seed=1).digest != tiny_log(seed=2).digest
    dataset = tiny_log()
    assert (dataset.num_users, dataset.num_items) == (400, 300)
    assert all(dataset.items["title"].to_pylist())
    split = make_split(dataset)
    transitions = np.zeros((dataset.num_items, dataset.num_items))
    for low, high in zip(dataset.offsets[:-1], split.train_ends, strict=True):
        np.add.at(transitions, (dataset.item_ids[low : high - 1], dataset.item_ids[low + 1 : high]), 1)
    popularity = transitions.sum(axis=0)
    last = dataset.item_ids[split.test.ends - 1]
    recall = {}
    for name, scores in (("popularity", np.tile(popularity, (len(last), 1))), ("last item", transitions[last])):
        top = np.argsort(-scores, axis=1, kind="stable")[:, :10]
        recall[name] = (top == split.test.target_ids[:, None]).any(axis=1).mean()
    assert recall["popularity"] < 0.15 < 0.5 < recall["last item"], recall


@pytest.mark.parametrize(("num_users", "num_items"), [(1, 1), (3, 5), (5, 13)])
def test_tiny_log_of_any_size(num_users: int, num_items: int) -> None:
    dataset = tiny_log(num_users, num_items)
    assert isinstance(dataset, Dataset)
    assert (dataset.num_users, dataset.num_items) == (num_users, num_items)
