"""The verbs that tell what there is: ``recipes`` and ``keys``. They import nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sidera import console
from sidera.cli.parsing import Arguments, Verbs, add_verb
from sidera.core import InputError


def recipes_verb(arguments: Arguments) -> dict[str, Any]:
    """List the recipes, print one, or write a copy of one."""
    from sidera.recipes import read_card, recipe_names, recipe_text

    if arguments.show and arguments.write:
        raise InputError("--show and --write ask for two things", fix="give one of them")
    if arguments.show:
        text = recipe_text(arguments.show)
        console.result(text.rstrip("\n"))
        return {"name": arguments.show, "text": text}
    if arguments.write:
        name, path = arguments.write
        return {"name": name, "path": str(write_recipe(name, Path(path)))}
    cards = [read_card(name) for name in recipe_names()]
    rows = [
        (card.short_name, card.verb, card.data, card.text + (f" {card.cost}" if card.cost else "")) for card in cards
    ]
    console.result(console.table(("name", "verb", "data", "what it is"), rows, left=4))
    console.say("\nrun one:    sidera run generator --data DATA --out RUN\nsee it:     sidera recipes --show generator")
    console.say("change it:  sidera recipes --write generator mine.toml, or --set fit.lr=1e-3; keys: sidera keys")
    keys = ("name", "verb", "model", "data", "text", "cost", "command")
    return {"recipes": [{key: getattr(card, key) for key in keys} for card in cards]}


def write_recipe(name: str, path: Path) -> Path:
    """A copy of a recipe at ``path``; what is there already is not replaced."""
    from sidera.artifacts import write_text
    from sidera.recipes import recipe_text

    text = recipe_text(name)
    if path.is_dir():
        path = path / f"{Path(name).stem}.toml"
    if path.suffix != ".toml":
        raise InputError(f"{str(path)!r} is no recipe's name", allowed="a path that ends in .toml")
    if path.exists():
        raise InputError(f"{str(path)!r} is there already", fix="name another file, or remove it")
    write_text(path, text)
    console.say(f"{path}: a copy of {name}; change it and give `sidera run {path} --data DATA --out RUN`")
    return path


def add_recipes(verbs: Verbs) -> None:
    text = "the recipes that come with sidera: list, print or copy them"
    parser = add_verb(verbs, "recipes", recipes_verb, text)
    parser.add_argument("--show", metavar="NAME", help="print this recipe")
    parser.add_argument("--write", nargs=2, metavar=("NAME", "PATH"), help="write a copy of a recipe to a .toml file")
