"""The exposure log: what was shown to whom, by which policy with what probability, and what came of it.

    log = ExposureLog.open("exposures", codebook_id=catalog.codebook_id, num_levels=3)
    log.append(shown)                       # a table of exposures; returns when it is on the disk
    log.follow(outcomes)                    # clicks and seconds arrive later, by (request, slot)
    table = log.read(policies=["ecpo-300"])
    dataset = build_dataset("own exposures", as_dataset_events(table), items)  # P-Score refreshed from it, GBPO on it

OneRec-V2 (2508.20900, 5.1) needs the probabilities that were in force when an item was written: per-token
log-probabilities for ratios of policies, and the propensity of the whole choice (slot given the ones above it) for
off-policy estimates. Nobody can recompute them once weights and catalogue have moved, so they are logged with both
versions. A log belongs to one codebook; another one is refused by name, since its codes' log-probabilities would be
read as those of other items.

``parts.py`` keeps the rows. Trap: a part costs about 700 bytes beside its rows. Append the answers of a batch at once,
and compact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidera.core import ArtifactError, CatalogMismatch, InputError
from sidera.store.folder import MANIFEST, Durability
from sidera.store.parts import TableParts, parts_plan

PLAN = parts_plan(
    "exposure-log",
    2,
    older="give an empty folder; docs/use/behaviour_store.md says how an older log's Parquet parts are appended to it",
)
SHOWN, FOLLOWED = "shown", "followed"  # the two kinds of parts
PLACE = ("request", "slot")  # name an exposure


class ExposureLog:
    """A folder of exposures of one codebook."""

    def __init__(self, parts: TableParts, codebook_id: str, num_levels: int) -> None:
        self.path, self.codebook_id, self.num_levels = parts.path, codebook_id, num_levels
        self._parts = parts
        log_probs = [(f"log_prob_{level}", pa.float32()) for level in range(num_levels)]
        self.schema = pa.schema(
            [
                ("request", pa.string()),  # unique in the log
                ("slot", pa.int16()),  # place in the answer
                ("user", pa.string()),
                ("item", pa.string()),
                ("time", pa.int64()),  # unix seconds
                ("policy", pa.string()),  # version of the weights that answered
                ("items_version", pa.int64()),  # of the catalogue
                ("propensity", pa.float32()),  # of the item in this slot, given the ones above it; null: unknown
                *log_probs,  # of each code when it was written; null: the item was not generated
            ]
        )
        self._types = {field.name: field.type for field in self.schema}

    @classmethod
    def open(
        cls, path: str | Path, *, codebook_id: str, num_levels: int, must_exist: bool = False,
        durability: Durability = "disk",
    ) -> ExposureLog:  # fmt: skip
        """The log at ``path``, made where there is none unless it must exist. It needs no closing unless it is held.

        CatalogMismatch when it was written with other codes.
        """
        path = Path(path)
        if must_exist and not (path / MANIFEST).is_file() and not any(path.glob("*")):
            raise InputError(f"no exposure log at {str(path)!r}", fix="check the path, or serve with --exposures")
        parts = TableParts(path, PLAN, durability)
        for name, value in (("codebook_id", codebook_id), ("num_levels", str(num_levels))):
            settled = parts.settled(name, value)
            if settled != value:
                raise CatalogMismatch(
                    f"{path} was written with {name} {settled}, this catalogue has {value}",
                    fix="open a new log for the new codes",
                )
        return cls(parts, codebook_id, num_levels)

    @classmethod
    def at(cls, path: str | Path) -> ExposureLog:
        """The log that is at ``path``, of whatever codes."""
        if not (Path(path) / MANIFEST).is_file():
            raise InputError(f"no exposure log at {str(path)!r}", fix="check the path, or serve with --exposures")
        parts = TableParts(Path(path), PLAN)
        codebook_id, num_levels = parts.settled("codebook_id"), parts.settled("num_levels")
        if codebook_id is None or num_levels is None:
            raise ArtifactError(f"{path} does not say of which codes it is", fix="restore it from a copy")
        return cls(parts, codebook_id, int(num_levels))

    def append(self, exposures: pa.Table | Mapping[str, Sequence[Any]]) -> int:
        """Write exposures; returns their number once they are durable. Columns beyond the schema are refused."""
        table = self.checked(exposures)
        self._parts.append(SHOWN, table)
        return table.num_rows

    def checked(self, exposures: pa.Table | Mapping[str, Sequence[Any]]) -> pa.Table:
        """The exposures as :meth:`append` takes them, or InputError."""
        columns = self._typed(exposures)
        for name in ("request", "slot", "user", "item", "time", "policy", "items_version"):
            if columns[name].null_count:
                raise InputError(f"exposures lack {name!r} in {columns[name].null_count} rows", allowed="a value each")
        propensity = _known(columns["propensity"])
        if not ((propensity > 0) & (propensity <= 1)).all():
            bad = propensity[~((propensity > 0) & (propensity <= 1))][0]
            raise InputError(f"propensity {bad} of an exposure", allowed="above 0, at most 1; null where unknown")
        for level in range(self.num_levels):
            values = _known(columns[f"log_prob_{level}"])
            if not (np.isfinite(values) & (values <= 0)).all():
                raise InputError(f"log_prob_{level} holds {values[~(values <= 0)][:1]}", allowed="finite, 0 or less")
        return pa.Table.from_arrays(list(columns.values()), schema=self.schema)

    def follow(self, outcomes: pa.Table | Mapping[str, Sequence[Any]]) -> int:
        """Write what came of exposures: ``request``, ``slot`` and numeric columns. What comes last counts."""
        table = self.checked_outcomes(outcomes)
        self._parts.append(FOLLOWED, table)
        return table.num_rows

    def checked_outcomes(self, outcomes: pa.Table | Mapping[str, Sequence[Any]]) -> pa.Table:
        """The outcomes as :meth:`follow` takes them, or InputError."""
        table = outcomes if isinstance(outcomes, pa.Table) else pa.table(dict(outcomes))
        for name in PLACE:
            if name not in table.column_names:
                raise InputError(f"outcomes lack the column {name!r}", allowed="request, slot, and feedback columns")
        for name in table.column_names:
            kind = table[name].type
            number = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
            if name in self.schema.names and name not in PLACE:
                raise InputError(f"outcomes hold {name!r}, which belongs to the exposure", fix="leave it out")
            if name not in PLACE and not number:
                raise InputError(f"outcome {name!r} holds {kind}", allowed="numbers, true and false")
        for name in PLACE:
            cast = table[name].cast(self.schema.field(name).type)
            table = table.set_column(table.column_names.index(name), name, cast)
        return table

    def read(
        self, policies: Sequence[str] | None = None, items_version: int | None = None, codebook_id: str | None = None
    ) -> pa.Table:
        """Every exposure with what followed (null where nothing came yet), in the order of writing.

        InputError, naming both, when another policy, catalogue version or codebook than asked for wrote some of them.
        """
        if codebook_id is not None and codebook_id != self.codebook_id:
            raise CatalogMismatch(f"{self.path} was written with codebook {self.codebook_id}, asked for {codebook_id}")
        table = self._all(SHOWN) or self.schema.empty_table()
        for name, wanted in (
            ("policy", policies), ("items_version", None if items_version is None else [items_version])
        ):  # fmt: skip
            others = [] if wanted is None else [v for v in pc.unique(table[name]).to_pylist() if v not in wanted]
            if others:
                raise InputError(
                    f"exposures of {name} {others[0]!r} are in {self.path},"
                    f" asked for {', '.join(map(repr, wanted or []))}",
                    fix="keep those rows with `only`, or name the version",
                )
        return self._with_outcomes(table)

    def only(self, policies: Sequence[str], items_version: int | None = None) -> pa.Table:
        """The exposures of these policies (and this catalogue version), the others left out."""
        table = self._with_outcomes(self._all(SHOWN) or self.schema.empty_table())
        kept = pc.is_in(table["policy"], value_set=pa.array(list(policies), type=pa.string()))
        if items_version is not None:
            kept = pc.and_(kept, pc.equal(table["items_version"], items_version))
        return table.filter(kept)

    def _with_outcomes(self, table: pa.Table) -> pa.Table:
        outcomes = self._all(FOLLOWED)
        if outcomes is None or not table.num_rows:
            return table
        last = {place: row for row, place in enumerate(_places(outcomes))}  # what comes last counts
        rows = pa.array([last.get(place) for place in _places(table)], type=pa.int64())
        for name in outcomes.column_names:
            if name not in PLACE:
                table = table.append_column(name, outcomes[name].combine_chunks().take(rows))
        return table

    def _typed(self, exposures: pa.Table | Mapping[str, Sequence[Any]]) -> dict[str, pa.Array]:
        """Every column of the schema, in its order."""
        names = exposures.column_names if isinstance(exposures, pa.Table) else list(exposures)
        unknown = [name for name in names if name not in self._types]
        if unknown:
            raise InputError(f"exposures hold the column {unknown[0]!r}", allowed=", ".join(self._types))
        number = exposures.num_rows if isinstance(exposures, pa.Table) else len(next(iter(exposures.values()), []))
        columns: dict[str, pa.Array] = {}
        for name, kind in self._types.items():
            if name not in names:
                columns[name] = pa.nulls(number, kind)
                continue
            values = exposures[name]
            column = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else pa.array(values)
            columns[name] = column if column.type == kind else column.cast(kind)
        return columns

    def compact(self, rest: float = 0.0) -> None:
        """Join small parts. Others may append and read meanwhile; ``rest`` seconds between two parts leave them the
        interpreter."""
        self._parts.compact((SHOWN, FOLLOWED), together, rest)

    def retain(self, since: int | None = None, most_bytes: int | None = None) -> int:
        """Let the oldest exposures go, with what followed on them -> how many.

        Those that are older than ``since`` go, and, where the log holds more than ``most_bytes``, whole parts, the
        oldest first, until it holds a tenth less.
        """
        total = sum(size for kind in (SHOWN, FOLLOWED) for _, size in self._parts.sizes(kind))
        least = total if most_bytes is None or total <= most_bytes else int(0.9 * most_bytes)
        requests, numbers, rows = set[str](), list[int](), 0

        def goes(table: pa.Table) -> pa.ChunkedArray:
            return pc.is_in(table["request"], value_set=pa.array(sorted(requests), type=pa.string()))

        for number, size in self._parts.sizes(SHOWN):
            if (table := self._parts.table(SHOWN, number)) is None:
                continue
            if total > least:
                total, old = total - size, table
            else:
                old = table.slice(0, 0) if since is None else table.filter(pc.less(table["time"], since))
            if not old.num_rows:
                break
            requests.update(pc.unique(old["request"]).to_pylist())
            numbers.append(number)
            rows += old.num_rows
        if numbers:
            self._parts.remove((FOLLOWED,), lambda _, table: goes(table))
            for number in numbers:
                self._parts.replace(SHOWN, number, goes)
        return rows

    def erase(self, user: str) -> int:
        """Take a user's exposures and what followed on them out of the log -> how many exposures. They are in no file
        when this returns."""
        requests: set[str] = set()

        def theirs(kind: str, table: pa.Table) -> pa.ChunkedArray:
            if kind == FOLLOWED:
                return pc.is_in(table["request"], value_set=pa.array(sorted(requests), type=pa.string()))
            mine = pc.equal(table["user"], user)
            requests.update(pc.unique(table["request"].filter(mine)).to_pylist())
            return mine

        return self._parts.remove((SHOWN, FOLLOWED), theirs)[SHOWN]

    def hold(self) -> ExposureLog:
        """Keep the files open until :meth:`close`, so that an append does not open them."""
        self._parts.hold()
        return self

    def close(self) -> None:
        self._parts.close()

    def _all(self, kind: str) -> pa.Table | None:
        tables = self._parts.tables(kind)
        return together(tables) if tables else None


def _known(column: pa.Array) -> np.ndarray:
    """(n,) the values that are there."""
    if column.null_count == len(column):
        return np.empty(0, dtype=np.float32)
    values: np.ndarray = (column.drop_null() if column.null_count else column).to_numpy()
    return values


def logs_at(path: str | Path) -> list[ExposureLog]:
    """The log at ``path`` and those beside it (``PATH-CODEBOOK``) that are of other codes."""
    path = Path(path)
    others = sorted(other for other in path.parent.glob(f"{path.name}-*") if (other / MANIFEST).is_file())
    return [ExposureLog.at(one) for one in (path, *others)]


def together(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables after each other. A column that is marks in one and numbers in another becomes numbers; absent: null."""
    if all(table.schema.equals(tables[0].schema) for table in tables):
        return pa.concat_tables(tables)
    kinds: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for field in table.schema:
            kinds.setdefault(field.name, set()).add(field.type)
    mixed = [name for name, found in kinds.items() if len(found) > 1 and name not in _OWN]
    for name in mixed:
        tables = [
            table.set_column(table.column_names.index(name), name, table[name].cast(pa.float64(), safe=False))
            if name in table.column_names
            else table
            for table in tables
        ]
    return pa.concat_tables(tables, promote_options="permissive")


def as_dataset_events(table: pa.Table) -> pa.Table:
    """Exposures as the events of a data set: requests numbered, versions left to the log, unknown outcomes dropped.

    Rows of which nothing followed yet are left out: an outcome that is not known is not a view that went badly.
    """
    outcomes = [name for name in table.column_names if name not in _OWN and not name.startswith("log_prob_")]
    if not outcomes:
        raise InputError("nothing followed on these exposures yet", fix="write the outcomes with `follow` first")
    for name in outcomes:
        table = table.filter(pc.is_valid(table[name]))
    numbers = pc.dictionary_encode(table["request"].combine_chunks()).indices
    table = table.set_column(table.column_names.index("request"), "request", numbers)
    return table.drop_columns(["policy", "items_version"])


_OWN = ("request", "slot", "user", "item", "time", "policy", "items_version", "propensity")


def _places(table: pa.Table) -> list[tuple[str, int]]:
    return list(zip(table["request"].to_pylist(), table["slot"].to_pylist(), strict=True))
