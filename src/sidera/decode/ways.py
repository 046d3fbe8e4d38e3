"""The ways in which a generator can be searched, by name. ``[eval] search`` and ``Recommender.search`` choose one.

A model class lists what it offers as ``ways``, the usual one first; one that lists nothing is searched by a beam.

| way | what it does |
|---|---|
| beam | code after code inside the trie: ``decode.beam`` |
| exact | scores of all items, from codes that are written at once: ``decode.parallel.ExactSearch`` |
| draft | items that a cheap reader names, scored exactly by the full model: ``decode.drafted`` |
| unmask | the surest code first, over the items that exist: ``decode.unmask`` |
| graph | a walk over items with like codes: ``decode.parallel.GraphSearch`` |

"auto" is the model's usual way, and the graph in place of ``exact`` above ``EXACT_ITEMS`` semantic IDs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sidera.core import InputError
from sidera.decode.beam import Beams
from sidera.decode.drafted import DraftSearch
from sidera.decode.parallel import ExactSearch, GraphSearch
from sidera.decode.unmask import UnmaskSearch
from sidera.ops.trie import CodeTrie
from sidera.roles import Generator

AUTO = "auto"
EXACT_ITEMS = 100_000  # semantic IDs up to which all are scored
Search = Callable[..., Beams]


def way_of(model: Any, search: str, trie: CodeTrie) -> str:
    """The way that ``search`` names. InputError where the model does not offer it."""
    ways = tuple(getattr(model, "ways", ("beam",)))
    if search == AUTO:
        return "graph" if ways[0] == "exact" and "graph" in ways and trie.num_leaves > EXACT_ITEMS else ways[0]
    if search not in ways:
        raise InputError(f"search = {search!r}, which this model cannot be", allowed=", ".join((AUTO, *ways)))
    return search


def search_by(way: str, model: Any, writing: Callable[[Any], Generator], trie: CodeTrie) -> Search:
    """A search other than a beam's. ``writing``: a generator as it writes late items too."""
    if way == "draft":
        return DraftSearch(model, writing, trie)
    if way == "unmask":
        return UnmaskSearch(model, trie)
    if way == "exact":
        return ExactSearch(model, trie)
    if way == "graph":
        return GraphSearch(model, trie)
    raise InputError(f"search = {way!r} is not known", allowed="beam, draft, unmask, exact, graph")
