"""Catalogues of a run's versions, each with the messages up to a record: to swap back is to take in what came since.

Versions whose catalogue is one artifact share it. An index of titles stays beside each: to place new items in other
codes needs it, and to make it is a large part of a swap.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from sidera.artifacts import read_manifest
from sidera.catalog.catalog import Catalog
from sidera.catalog.newcomers import TextNeighbours
from sidera.engine.items_log import ItemsLog
from sidera.engine.living import catalog_now, replayed
from sidera.engine.versions import folder_of

MOST = 3  # catalogues that are kept


@dataclass
class _Kept:
    catalog: Catalog
    place: int  # record of the log up to which it has taken in all
    texts: TextNeighbours | None = None  # grows with the catalogue

    def index(self) -> TextNeighbours:
        if self.texts is None or self.texts.num_items != self.catalog.num_items:
            self.texts = TextNeighbours(self.catalog.titles.tolist())
        return self.texts


class VersionCatalogs:
    """One thread at a time for each artifact; any number for several."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}  # by the artifact's digest, the one that was used longest ago first
        self._lock = threading.Lock()  # of the dictionary

    def of(self, run: Path, number: int, log: ItemsLog) -> Catalog:
        """A version's items of now."""
        digest = digest_of(run, number)
        kept = self._kept.get(digest)
        if kept is None:
            kept = self.keep(digest, *catalog_now(run, number, log))
        elif records := log.after(kept.place):
            kept = self.keep(digest, replayed(kept.catalog, records, kept.index()), records[-1].number)
        return kept.catalog

    def keep(self, digest: str, catalog: Catalog, place: int) -> _Kept:
        """The catalogue of an artifact after the messages up to ``place``."""
        with self._lock:
            before = self._kept.pop(digest, None)
            kept = self._kept[digest] = _Kept(catalog, place, None if before is None else before.texts)
            while len(self._kept) > MOST:
                del self._kept[next(iter(self._kept))]
        return kept

    def index(self, digest: str, catalog: Catalog, place: int) -> TextNeighbours:
        """Of the titles of the artifact's catalogue after the messages up to ``place``; it takes in what is added."""
        return self.keep(digest, catalog, place).index()


def digest_of(run: Path, number: int) -> str:
    return read_manifest(folder_of(run, number) / "catalog", "catalog").digest
