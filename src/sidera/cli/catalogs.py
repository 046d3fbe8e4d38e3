"""The verbs of catalogues: ``catalog compare``, ``add``, ``remove``, ``diff`` and ``audit``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidera import console
from sidera.cli.parsing import Arguments, Verbs, add_threads_flag, add_verb
from sidera.core import InputError

if TYPE_CHECKING:
    from sidera.catalog.catalog import Catalog
    from sidera.engine.living import Applied

SHOWN = 5  # keys that a line names


def compare_verb(arguments: Arguments) -> dict[str, Any]:
    """One table over quantizers of a recipe and over catalogues that are there."""
    from sidera.catalog.compare import figures
    from sidera.train.quantizer_comparison import compare_quantizers
    from sidera.train.recipe import Recipe

    rows: list[dict[str, Any]] = []
    if arguments.recipe is not None:
        if arguments.data is None or arguments.out is None:
            raise InputError("a recipe was given without --data or --out", fix="name the data and a folder to write")
        recipe = Recipe.read(arguments.recipe, arguments.set)
        rows = compare_quantizers(
            recipe, arguments.data, arguments.out, arguments.quantizers, steps=arguments.steps,
            with_churn=not arguments.no_churn,
        )  # fmt: skip
    elif not arguments.runs:
        raise InputError("nothing to compare", fix="give a recipe with --data and --out, or --runs RUN RUN")
    rows += [{"quantizer": run, **figures(catalog_at(run))} for run in arguments.runs]
    console.result(comparison_table(rows))
    return {"catalogues": rows}


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A column a figure, a row a catalogue."""
    header = ("catalogue", "error", "used", "entropy", "collide", "largest", "overlap", "children", "nodes", "moved",
              "R@10", "cpu s")  # fmt: skip
    return console.table(header, [_table_row(row) for row in rows])


def _table_row(row: Mapping[str, Any]) -> list[Any]:
    downstream = row.get("downstream", {})
    recall = [metrics["recall@10"] for metrics in downstream.values() if "recall@10" in metrics]
    return [
        row["quantizer"], row["relative_error"], _listed(row["used"], 2), _listed(row["entropy_bits"], 1),
        row["collision_rate"], row["largest_bucket"], row["neighbour_overlap@10"], _listed(row["children"], 1),
        row["trie_nodes"], _listed(row.get("churn", ()), 2), max(recall, default=None), row["cpu_seconds"],
    ]  # fmt: skip


def _listed(values: Sequence[float | None], digits: int) -> str:
    """A figure a level on one line."""
    return " ".join("-" if value is None else f"{value:.{digits}f}" for value in values)


def add_items_verb(arguments: Arguments) -> dict[str, Any]:
    """Items of a table into a run, as POST /v1/items takes them."""
    from sidera.catalog.vectors_file import read_vectors
    from sidera.data.importing import read_items
    from sidera.engine.living import Delta, ItemChange, change_run

    check_run(arguments.run)
    table = read_items(arguments.items)
    keys = [str(key) for key in table["key"].to_pylist()]
    vectors = None if arguments.vectors is None else read_vectors(arguments.vectors, keys).tolist()
    titles = table["title"].to_pylist() if "title" in table.column_names else [None] * len(keys)
    rows = table.drop_columns([name for name in ("key", "title") if name in table.column_names]).to_pylist()
    upserts = []
    for place, (key, title) in enumerate(zip(keys, titles, strict=True)):
        fields = {name: value for name, value in rows[place].items() if value not in (None, "")} if rows else {}
        upserts.append(ItemChange(key, title or None, fields, None if vectors is None else vectors[place]))
    silent = [one.item for one in upserts if one.title is None and not one.fields and one.vector is None]
    if silent:
        raise InputError(
            f"nothing is said of item {silent[0]!r} ({len(silent)} of {len(keys)}): no text, no column, no vector",
            fix="fill the rows, leave them out, or give --vectors",
        )
    return _done(arguments.run, change_run(arguments.run, Delta(tuple(upserts), (), arguments.version)))


def remove_items_verb(arguments: Arguments) -> dict[str, Any]:
    """Items out of a run: never answered from now on."""
    from sidera.engine.living import Delta, change_run

    check_run(arguments.run)
    keys = list(arguments.keys)
    if arguments.file is not None:
        try:
            lines = Path(arguments.file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {arguments.file}: {error}", fix="give a text file, one key a line") from None
        keys += [line.strip() for line in lines if line.strip()]
    if not keys:
        raise InputError("no item to remove", fix="name their keys, or a --file with one key a line")
    done = change_run(arguments.run, Delta((), tuple(keys), arguments.version), arguments.absent_ok)
    return _done(arguments.run, done)


def _done(run: str, done: Applied) -> dict[str, Any]:
    counts = done.changes.counts()
    said = ", ".join(f"{number:,} {name}" for name, number in counts.items() if number) or "nothing changed"
    again = "" if done.new else " (this message was applied before)"
    console.say(f"{run}: {said}; items version {done.items_version}{again}")
    return {"run": run, "version": done.version, "applied": done.new, "items_version": done.items_version, **counts}


def diff_verb(arguments: Arguments) -> dict[str, Any]:
    """What changed between two catalogues."""
    from sidera.catalog.compare import churn

    found = churn(catalog_at(arguments.a), catalog_at(arguments.b))
    for name in ("added", "removed"):
        keys = found[name]
        shown = ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")
        console.result(f"{name}: {len(keys):,}" + (f" ({shown})" if keys else ""))
    console.result(
        f"in both: {found['common']:,} items; {'the same' if found['same_codebook'] else 'another'} codebook"
    )
    rows = [
        (f"level {level}", recoded, moved)
        for level, (recoded, moved) in enumerate(zip(found["recoded"], found["moved"], strict=True))
    ]
    console.result(console.table(("up to", "recoded", "moved"), rows))
    return {"a": arguments.a, "b": arguments.b, **found}


def audit_verb(arguments: Arguments) -> dict[str, Any]:
    """Whether a catalogue is sound."""
    from sidera.catalog.compare import audit

    found = audit(catalog_at(arguments.run))
    rows = [(name, _shown(value)) for name, value in found.items() if name != "problems"]
    console.result(console.table(("catalogue", ""), rows))
    if found["problems"]:
        raise InputError("; ".join(found["problems"]), fix="build the catalogue again, and report how it came to this")
    console.result("sound: every item can be written, and nothing else")
    return {"run": arguments.run, **found}


def _shown(value: Any) -> str:
    return " ".join(map(console.cell, value)) if isinstance(value, list) else console.cell(value)


def catalog_at(path: str) -> Catalog:
    """The catalogue that answers in a run folder, with the changes of its items; or a catalogue's own folder."""
    from sidera.catalog.catalog import Catalog
    from sidera.engine.living import catalog_now
    from sidera.engine.versions import current_number

    folder = Path(path)
    if (folder / "model").is_dir():
        return catalog_now(folder, current_number(folder))[0]
    return Catalog.load(folder / "catalog" if (folder / "catalog").is_dir() else folder)


def check_run(path: str) -> None:
    """InputError where no run folder with a model is: its items.sqlite is what changes."""
    if not (Path(path) / "model").is_dir():
        raise InputError(f"no run folder at {path!r}", fix="give a folder that `sidera run` wrote")


def add_catalogs(verbs: Verbs) -> None:
    numbered = "number of the message (else the next one): the same message again changes nothing"
    quantizers = ["rq_kmeans", "rq_kmeans,balanced=true", "rq_vae", "pq", "opq", "fsq", "rq_fsq", "lfq"]
    parser = add_verb(verbs, "catalog compare", compare_verb, "one table over several quantizers or catalogues")
    add = parser.add_argument
    add("recipe", nargs="?", help="name or TOML file: its items are coded by each of --quantizers")
    add("--data", help="data folder, with a recipe")
    add("--out", help="folder to write; catalogues in it are reused")
    add("--quantizers", nargs="+", default=quantizers, metavar="NAME,KEY=VALUE", help="of the recipe's vectors")
    add("--runs", nargs="+", default=[], metavar="RUN", help="run folders whose catalogues join the table")
    add("--steps", type=int, default=0, help="train the recipe's model so many steps on each and measure it; 0: no")
    add("--no-churn", action="store_true", help="do not build each again on a log without every user's last event")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a recipe key")
    add_threads_flag(parser)
    parser = add_verb(verbs, "catalog add", add_items_verb, "add items to a run, or describe otherwise what it has")
    parser.add_argument("run", help="run folder; a server of it with --watch follows")
    parser.add_argument("items", help="table of items (CSV, JSON Lines, Parquet): key, title and the columns it reads")
    parser.add_argument("--vectors", metavar="FILE", help="vectors of the items: Parquet, or safetensors and keys")
    parser.add_argument("--version", type=int, help=numbered)
    parser = add_verb(verbs, "catalog remove", remove_items_verb, "take items out of a run")
    parser.add_argument("run", help="run folder; a server of it with --watch follows")
    parser.add_argument("keys", nargs="*", metavar="KEY", help="items to remove")
    parser.add_argument("--file", help="text file with one key a line")
    parser.add_argument("--absent-ok", action="store_true", help="items that are not there are passed over")
    parser.add_argument("--version", type=int, help=numbered)
    parser = add_verb(verbs, "catalog diff", diff_verb, "what changed between two catalogues")
    parser.add_argument("a", help="run folder, or the folder of a catalogue")
    parser.add_argument("b", help="run folder, or the folder of a catalogue")
    parser = add_verb(verbs, "catalog audit", audit_verb, "legality, collisions, dead codes and trie of a catalogue")
    parser.add_argument("run", help="run folder, or the folder of a catalogue")
