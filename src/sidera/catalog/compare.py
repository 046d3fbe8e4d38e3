"""Catalogues side by side: the figures of one, what changed between two, and whether one is sound.

    figures(catalog)           # of its codes and its trie, and of its report
    churn(before, after)       # which items came, went, and stand elsewhere
    audit(catalog)             # {"problems": [...], ...}: empty where all is well

Shape legend: N items · L levels · n items that two catalogues share.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from sidera.catalog.catalog import Catalog
from sidera.catalog.collisions import bucket_ids
from sidera.catalog.report import level_use
from sidera.ops.trie import CodeTrie

FROM_REPORT = ("relative_error", "cosine", "collision_rate", "largest_bucket", "neighbour_overlap@10")


def figures(catalog: Catalog) -> dict[str, Any]:
    """What a comparison shows of one catalogue. Figures of the vectors come from its report, None where it has none."""
    catalog.check_codes("a comparison of codes")
    codes = np.asarray(catalog.codes)[~np.asarray(catalog.removed)]
    levels = [level_use(codes[:, level], size) for level, size in enumerate(catalog.level_sizes)]
    nodes = [1, *map(int, catalog.trie.num_nodes)]
    return {
        "num_items": len(codes),
        "level_sizes": list(catalog.level_sizes),
        **{name: catalog.report.get(name) for name in FROM_REPORT},
        "used": [level["used"] / level["size"] for level in levels],
        "entropy_bits": [level["entropy_bits"] for level in levels],
        "trie_nodes": sum(nodes[1:]),
        "children": [below / above for above, below in itertools.pairwise(nodes)],  # mean, of a prefix
        "cpu_seconds": catalog.report.get("build_seconds", {}).get("cpu"),
    }


def churn(before: Catalog, after: Catalog) -> dict[str, Any]:
    """Between two catalogues: keys that came and went, and of the items in both the share that stands elsewhere.

    ``recoded``: another code on a level or before it, level by level. ``moved``: the same when codes may be named
    otherwise: the groups of equal prefixes are matched, the largest overlap first, and who left his group counts. None
    for levels that one of the two lacks.
    """
    keys = [_alive_keys(catalog) for catalog in (before, after)]
    both = [key for key in keys[0] if key in keys[1]]
    codes = [np.asarray(catalog.codes)[catalog.ids_of(both)] for catalog in (before, after)]
    recoded: list[float | None] = []
    moved: list[float | None] = []
    for depth in range(1, max(before.num_levels, after.num_levels) + 1):
        if depth > min(before.num_levels, after.num_levels) or not both:
            recoded.append(None)
            moved.append(None)
            continue
        first, second = (each[:, :depth] for each in codes)
        recoded.append(float((first != second).any(axis=1).mean()))
        moved.append(1 - _matched(bucket_ids(first)[0], bucket_ids(second)[0]) / len(both))
    return {
        "added": [key for key in keys[1] if key not in keys[0]],
        "removed": [key for key in keys[0] if key not in keys[1]],
        "common": len(both),
        "recoded": recoded,
        "moved": moved,
        "same_codebook": before.codebook_id == after.codebook_id,
        "level_sizes": [list(before.level_sizes), list(after.level_sizes)],
    }


def _alive_keys(catalog: Catalog) -> dict[str, None]:
    alive = np.flatnonzero(~np.asarray(catalog.removed))
    return dict.fromkeys(catalog.item_keys[alive].tolist())


def _matched(first: np.ndarray, second: np.ndarray) -> int:
    """Items in matched groups: (n,) and (n,) group numbers, each group matched once, the largest overlap first."""
    pairs, counts = np.unique(np.stack([first, second], axis=1), axis=0, return_counts=True)
    taken: tuple[set[int], set[int]] = (set(), set())
    found = 0
    for place in np.argsort(-counts, kind="stable").tolist():
        one, other = pairs[place].tolist()
        if one not in taken[0] and other not in taken[1]:
            taken[0].add(one)
            taken[1].add(other)
            found += int(counts[place])
    return found


def audit(catalog: Catalog) -> dict[str, Any]:
    """Whether every item can be written, and nothing else. ``problems`` are lines for people; none: it is sound."""
    catalog.check_codes("an audit")
    codes, removed = np.asarray(catalog.codes), np.asarray(catalog.removed)
    problems = []
    illegal = np.any((codes < 0) | (codes >= np.array(catalog.level_sizes)), axis=1)
    if illegal.any():
        text = f"{int(illegal.sum())} items have a code that is none of their level"
        problems.append(f"{text}, first {_first(catalog, illegal)}")
    buckets, counts = bucket_ids(codes)
    shared = counts[buckets] > 1
    if catalog.collision != "share" and shared.any():
        text = f"{int(shared.sum())} items share their semantic ID although collision = {catalog.collision!r}"
        problems.append(f"{text}, first {_first(catalog, shared)}")
    if removed.all():
        problems.append("every item is removed: nothing can be answered")
    elif not illegal.any():
        problems += _trie_problems(catalog, codes, removed)
    alive = codes[~removed]
    uses = [level_use(alive[:, level], size) for level, size in enumerate(catalog.level_sizes) if len(alive)]
    return {
        "num_items": int((~removed).sum()),
        "num_removed": int(removed.sum()),
        "num_semantic_ids": len(np.unique(alive, axis=0)),
        "num_sharing": int((shared & ~removed).sum()),
        "largest_bucket": int(counts.max()) if len(codes) else 0,
        "dead_codes": [use["size"] - use["used"] for use in uses],
        "trie_nodes": [] if problems else list(map(int, catalog.trie.num_nodes)),
        "problems": problems,
    }


def _trie_problems(catalog: Catalog, codes: np.ndarray, removed: np.ndarray) -> list[str]:
    """Where the trie that serves differs from one built of the items that are there."""
    trie, alive = catalog.trie, np.flatnonzero(~removed)
    fresh = CodeTrie.build(codes, catalog.level_sizes, order=catalog.serving_order, alive=~removed)
    problems = []
    listed = np.sort(trie.leaf_items)
    if not np.array_equal(listed, alive):
        lost, strange = len(np.setdiff1d(alive, listed)), len(np.setdiff1d(listed, alive))
        problems.append(f"the trie lacks {lost} items and holds {strange} that are removed")
    for level, (one, other) in enumerate(zip(trie.tokens, fresh.tokens, strict=True)):
        if not np.array_equal(one, other):
            problems.append(f"level {level} of the trie holds {len(one)} codes, the items need {len(other)}")
    if not problems and not np.array_equal(trie.leaf_items, fresh.leaf_items):
        problems.append("the trie holds items under semantic IDs that are not theirs")
    return problems


def _first(catalog: Catalog, mask: np.ndarray) -> str:
    return repr(str(catalog.item_keys[int(np.argmax(mask))]))
