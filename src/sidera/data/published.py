"""The catalogue of ``sidera fetch``: published data sets, where their publishers keep them, and on which terms.

Terms are given in a sentence of our own; the publisher's page has the word that counts. Addresses and names are the
publishers'; the files have not been seen by this project, so no digest stands here: see ``fetch.py``.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from sidera.core import InputError


@dataclass(frozen=True)
class Published:
    """One data set."""

    name: str
    about: str
    page: str
    terms: str
    raw_format: str  # of ``sidera convert``
    files: tuple[str, ...] = ()  # addresses; the last part is the file's name
    by_hand: str = ""  # what to do where the publisher gives nothing without an account
    log: str = ""  # which of the files to convert, where not all of them


AMAZON_TERMS = "for research; cite the paper that the page names. The reviews belong to those who wrote them."
GROUPLENS_TERMS = "for research; cite the paper; no use for money and no passing on without leave of GroupLens."
AMAZON_2014 = (
    *("Amazon_Instant_Video", "Apps_for_Android", "Automotive", "Baby", "Beauty", "Books", "CDs_and_Vinyl"),
    *("Cell_Phones_and_Accessories", "Clothing_Shoes_and_Jewelry", "Digital_Music", "Electronics"),
    *("Grocery_and_Gourmet_Food", "Health_and_Personal_Care", "Home_and_Kitchen", "Kindle_Store", "Movies_and_TV"),
    *("Musical_Instruments", "Office_Products", "Patio_Lawn_and_Garden", "Pet_Supplies", "Sports_and_Outdoors"),
    *("Tools_and_Home_Improvement", "Toys_and_Games", "Video_Games"),
)
AMAZON_2018 = (
    *("AMAZON_FASHION", "All_Beauty", "Appliances", "Arts_Crafts_and_Sewing", "Automotive", "Books", "CDs_and_Vinyl"),
    *("Cell_Phones_and_Accessories", "Clothing_Shoes_and_Jewelry", "Digital_Music", "Electronics", "Gift_Cards"),
    *("Grocery_and_Gourmet_Food", "Home_and_Kitchen", "Industrial_and_Scientific", "Kindle_Store", "Luxury_Beauty"),
    *("Magazine_Subscriptions", "Movies_and_TV", "Musical_Instruments", "Office_Products", "Patio_Lawn_and_Garden"),
    *("Pet_Supplies", "Prime_Pantry", "Software", "Sports_and_Outdoors", "Tools_and_Home_Improvement"),
    *("Toys_and_Games", "Video_Games"),
)
AMAZON_2023 = (
    *("All_Beauty", "Amazon_Fashion", "Appliances", "Arts_Crafts_and_Sewing", "Automotive", "Baby_Products"),
    *("Beauty_and_Personal_Care", "Books", "CDs_and_Vinyl", "Cell_Phones_and_Accessories"),
    *("Clothing_Shoes_and_Jewelry", "Digital_Music", "Electronics", "Gift_Cards", "Grocery_and_Gourmet_Food"),
    *("Handmade_Products", "Health_and_Household", "Health_and_Personal_Care", "Home_and_Kitchen"),
    *("Industrial_and_Scientific", "Kindle_Store", "Magazine_Subscriptions", "Movies_and_TV", "Musical_Instruments"),
    *("Office_Products", "Patio_Lawn_and_Garden", "Pet_Supplies", "Software", "Sports_and_Outdoors"),
    *("Subscription_Boxes", "Tools_and_Home_Improvement", "Toys_and_Games", "Video_Games"),
)
SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
UCSD = "https://mcauleylab.ucsd.edu/public_datasets/data"
GROUPLENS = "https://files.grouplens.org/datasets"
ZENODO = "https://zenodo.org/records/10439422/files"


def _amazon() -> list[Published]:
    sets = []
    for category in AMAZON_2014:
        files = (f"{SNAP}/reviews_{category}_5.json.gz", f"{SNAP}/meta_{category}.json.gz")
        about, page = f"Amazon reviews to 2014, 5-core: {category}", "https://jmcauley.ucsd.edu/data/amazon/links.html"
        sets.append(Published(_slug("amazon2014", category), about, page, AMAZON_TERMS, "amazon2014", files))
    for category in AMAZON_2018:
        base = f"{UCSD}/amazon_v2"
        files = (f"{base}/categoryFilesSmall/{category}_5.json.gz", f"{base}/metaFiles2/meta_{category}.json.gz")
        about = f"Amazon reviews to 2018, 5-core: {category}"
        page = "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/"
        sets.append(Published(_slug("amazon2018", category), about, page, AMAZON_TERMS, "amazon2018", files))
    for category in AMAZON_2023:
        base = f"{UCSD}/amazon_2023"
        files = (
            f"{base}/benchmark/5core/rating_only/{category}.csv.gz",
            f"{base}/raw/meta_categories/meta_{category}.jsonl.gz",
        )
        about = f"Amazon reviews to 2023, 5-core ratings: {category}"
        page = "https://amazon-reviews-2023.github.io/"
        sets.append(Published(_slug("amazon2023", category), about, page, AMAZON_TERMS, "amazon2023", files))
    return sets


def _movielens() -> list[Published]:
    sizes = {
        "ml-100k": "100,000 ratings of 943 users",
        "ml-1m": "1,000,209 ratings of 6,040 users",
        "ml-10m": "10 million ratings",
        "ml-20m": "20 million ratings",
        "ml-25m": "25 million ratings",
        "ml-latest-small": "about 100,000 ratings; the file changes over time",
    }
    page = "https://grouplens.org/datasets/movielens/"
    return [
        Published(
            name, f"MovieLens, {size}", page, GROUPLENS_TERMS, "movielens", (f"{GROUPLENS}/movielens/{name}.zip",)
        )
        for name, size in sizes.items()
    ]


def _others() -> list[Published]:
    steam = "https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data"
    games = "https://cseweb.ucsd.edu/~wckang/steam_games.json.gz"
    kuairand = "CC BY-SA 4.0: name the source, share what is made of it alike."
    releases = [
        Published(
            "lastfm",
            "Last.fm of HetRec 2011: 1,892 users, 17,632 artists, tags with times",
            "https://grouplens.org/datasets/hetrec-2011/",
            "for research without money; cite HetRec 2011 and Last.fm.",
            "lastfm",
            (f"{GROUPLENS}/hetrec2011/hetrec2011-lastfm-2k.zip",),
        ),
        Published(
            "steam",
            "Steam reviews, version 2: 7.8 million reviews (1.3 GB)",
            steam,
            "for research; cite the paper that the page names.",
            "steam",
            ("https://cseweb.ucsd.edu/~wckang/steam_reviews.json.gz", games),
        ),
        Published(
            "steam-australia",
            "Steam reviews, version 1: Australian users, with recommend or not",
            steam,
            "for research; cite the paper that the page names.",
            "steam",
            (f"{UCSD}/steam/australian_user_reviews.json.gz", games),
        ),
        Published(
            "yelp",
            "Yelp Open Dataset",
            "https://business.yelp.com/data/resources/open-dataset/",
            "Yelp's own terms: for learning and research without money, nothing may be passed on.",
            "yelp",
            by_hand="accept the terms on the page, download the JSON archive and unpack it",
        ),
        Published(
            "taobao",
            "Taobao UserBehavior: 100 million page views, carts, favourites and purchases",
            "https://tianchi.aliyun.com/dataset/649",
            "for research without money, by the terms of Tianchi.",
            "taobao",
            by_hand="log in on the page and download UserBehavior.csv.zip",
        ),
        Published(
            "criteo",
            "Criteo display advertising: 45 million impressions",
            "https://ailab.criteo.com/ressources/",
            "for research without money, by Criteo's data terms.",
            "criteo",
            by_hand="accept the terms on the page and download the Kaggle display advertising data (train.txt)",
        ),
        Published(
            "avazu",
            "Avazu click-through rate: 40 million impressions",
            "https://www.kaggle.com/c/avazu-ctr-prediction/data",
            "by the rules of the competition.",
            "avazu",
            by_hand="accept the rules on the page with an account there and download train.gz",
        ),
    ]
    for size, about in (
        ("Pure", "1.4 million exposures, 7,583 videos"),
        ("1K", "1,000 users"),
        ("27K", "27,285 users"),
    ):
        files = (f"{ZENODO}/KuaiRand-{size}.tar.gz",)
        name = f"kuairand-{size.lower()}"
        releases.append(
            Published(name, f"KuaiRand-{size}: {about}", "https://kuairand.com/", kuairand, "kuairand", files)
        )
    return releases


def _slug(release: str, category: str) -> str:
    return f"{release}-{category.lower().replace('_', '-')}"


CATALOGUE = {found.name: found for found in (*_amazon(), *_movielens(), *_others())}


def published(name: str) -> Published:
    """InputError with near names where none is called so."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    plain = name.lower().replace("_", "-")
    close = [other for other in CATALOGUE if plain in other][:4] or difflib.get_close_matches(plain, CATALOGUE, n=4)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    raise InputError(f"no published set is called {name!r}{hint}", fix="see `sidera fetch --list`")
