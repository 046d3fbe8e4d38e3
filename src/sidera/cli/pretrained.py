"""The verbs ``save-pretrained`` and ``from-pretrained``: runs as folders in the layout of Hugging Face, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sidera import console
from sidera.cli.parsing import Arguments, Verbs, add_verb


def save_verb(arguments: Arguments) -> dict[str, Any]:
    from sidera.engine.pretrained import save_pretrained, save_t5

    folder = (save_t5 if arguments.t5 else save_pretrained)(arguments.run, arguments.folder)
    opens = "T5ForConditionalGeneration.from_pretrained" if arguments.t5 else "sidera.from_pretrained"
    console.say(f"{folder}: {opens} opens it")
    return {"folder": str(folder), "files": sorted(path.name for path in folder.iterdir())}


def from_verb(arguments: Arguments) -> dict[str, Any]:
    from sidera.catalog.catalog import Catalog
    from sidera.core import InputError
    from sidera.engine.pretrained import run_of_pretrained, run_of_t5
    from sidera.engine.versions import current_folder

    if arguments.t5 and arguments.items is None:
        raise InputError("a T5 holds no items", fix="name the run whose catalogue it was trained with by --items RUN")
    if not arguments.t5 and arguments.items is not None:
        raise InputError("--items without --t5", fix="leave it out: the folder has its own catalogue")
    if arguments.t5:
        items = Path(arguments.items)
        catalog = Catalog.load((current_folder(items) if items.is_dir() else items) / "catalog")
        made = run_of_t5(arguments.folder, arguments.run, catalog, arguments.max_history)
    else:
        made = run_of_pretrained(arguments.folder, arguments.run)
    name = str(made.snapshot.section["name"])
    console.say(f"{arguments.run}: {name} over {made.catalog.num_items:,} items; sidera serve {arguments.run} opens it")
    return {"run": arguments.run, "model": name, "version": made.version, "num_items": made.catalog.num_items}


def add_pretrained(verbs: Verbs) -> None:
    text = "write a run as a folder in the layout of Hugging Face"
    parser = add_verb(verbs, "save-pretrained", save_verb, text)
    parser.add_argument("run", help="run folder")
    parser.add_argument("folder", help="folder to write: new, empty or written by this verb")
    parser.add_argument("--t5", action="store_true", help="of a TIGER: as a T5 of transformers")
    parser = add_verb(verbs, "from-pretrained", from_verb, "make a run folder of what save-pretrained wrote")
    parser.add_argument("folder", help="folder to read")
    parser.add_argument("run", help="run folder to write: new or empty")
    parser.add_argument("--t5", action="store_true", help="a T5 of transformers becomes a TIGER; give --items")
    parser.add_argument("--items", metavar="RUN", help="with --t5: run whose items and codes it writes")
    parser.add_argument(
        "--max-history", type=int, default=20, metavar="N", help="with --t5: newest items that it reads"
    )
