"""What pages call models and data sets."""

from __future__ import annotations

import re
from collections.abc import Sequence

MODELS = {
    "sidera": "generator",
    "tiger": "TIGER",
    "onerec": "OneRec",
    "onerec_v1": "OneRec v1",
    "onerec_v2": "OneRec-V2",
    "tiger_mlp": "TIGER's MLPs",
    "tiger_mtp": "TIGER, codes at once",
    "liger": "LIGER",
    "cobra": "COBRA",
    "decoder_only": "decoder-only",
    "rpg": "RPG",
    "masked_codes": "masked codes",
    "sasrec": "SASRec",
    "hstu": "HSTU",
    "kuaiformer": "KuaiFormer",
    "item_knn": "item-kNN",
    "transitions": "transitions",
    "transitions_text": "transitions and titles",
    "content_knn": "content-kNN",
    "als": "ALS",
    "bpr": "BPR",
    "popularity": "popularity",
}


def model_title(name: str) -> str:
    base, *rest = name.split(" ", 1)
    return " ".join([MODELS.get(base, base), *rest])


def data_title(name: str) -> str:
    """``amazon2014_beauty`` -> ``Amazon Beauty 2014``, ``ml-1m`` -> ``MovieLens 1M``.

    ``world-<digest>`` is a ``Simulated app``. Other names stay as they are.
    """
    if match := re.fullmatch(r"amazon(20\d\d)_([a-z0-9_]+)", name):
        return f"Amazon {match[2].replace('_', ' ').title()} {match[1]}"
    if match := re.fullmatch(r"ml-(\d+[km]|latest-small)(-\d+)?", name):
        return f"MovieLens {match[1].upper() if match[1][0].isdigit() else match[1].replace('-', ' ')}"
    return "Simulated app" if re.fullmatch(r"world-[0-9a-f]{16}", name) else name


def distinct(titles: Sequence[str], folders: Sequence[str]) -> list[str]:
    """The titles, with the folder behind those that several runs share."""
    return [
        f"{title} ({folder})" if titles.count(title) > 1 and folder else title
        for title, folder in zip(titles, folders, strict=True)
    ]
