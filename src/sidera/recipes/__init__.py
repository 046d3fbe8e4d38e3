"""The recipes that come with sidera: found by name, listed, copied.

    find_recipe("generator")          # any/generator
    find_recipe("beauty/onerec")
    find_recipe("mine.toml")          # a file is taken first

One copy serves both homes. In a checkout the files lie in ``recipes/<dataset>/<system>.toml`` at the top, where the
docs name them; building a wheel copies them beside this file (setup.py). Nothing here imports more than the standard
library, so that a wrong name is answered at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sidera.config import closest, read_toml
from sidera.core import InputError

ANY = "any"  # the recipes for any imported log: their names need no folder before them
TOP = "recipes"  # the folder of a checkout


@dataclass(frozen=True)
class RecipeCard:
    """What the list of recipes says of one."""

    name: str  # "any/generator"
    path: Path
    verb: str  # run, scale or align
    command: str  # the exact command, from the first line
    data: str  # the data it is for, from the comment below: what stands before the colon
    text: str  # what it is: what stands behind it
    model: str
    cost: str  # "" where the recipe does not say

    @property
    def short_name(self) -> str:
        """The shortest name that finds it."""
        return self.name.removeprefix(f"{ANY}/")


def recipes_folder() -> Path:
    """Where the recipes lie: beside this file in an installed package, at the top of a checkout."""
    here = Path(__file__).resolve().parent
    places = (here, here.parents[2] / TOP)
    for place in places:
        if (place / ANY).is_dir():
            return place
    raise InputError(
        f"this installation of sidera has no recipes (looked in {places[0]} and {places[1]})",
        fix="install it again, or give the path of a .toml file",
    )


def recipe_names() -> list[str]:
    """``dataset/system`` of every recipe, those for any log first."""
    folder = recipes_folder()
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("*/*.toml")]
    return sorted(names, key=lambda name: (not name.startswith(f"{ANY}/"), name))


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path that exists, else a name; InputError names the nearest.

    ``recipes/any/generator.toml``, as a checkout has it, names the same recipe where there is no checkout.
    """
    path = Path(name)
    if path.is_file():
        return path
    text = path.as_posix().removeprefix("./")
    asked = text.removeprefix(f"{TOP}/").removesuffix(".toml") if text.startswith(f"{TOP}/") else text
    names = recipe_names()
    for candidate in (asked, f"{ANY}/{asked}"):
        if candidate in names:
            return recipes_folder() / f"{candidate}.toml"
    if path.is_dir():
        raise InputError(f"recipe {text!r} is a folder", fix="name a .toml file in it, or see `sidera recipes`")
    if text.endswith(".toml") and not text.startswith(f"{TOP}/"):
        raise InputError(f"no recipe at {text!r}", fix="give the path of a .toml file, or a name of `sidera recipes`")
    short = [known.removeprefix(f"{ANY}/") for known in names]
    raise InputError(f"no recipe is called {text!r}{closest(asked, [*short, *names])}", fix="see `sidera recipes`")


def read_card(name: str) -> RecipeCard:
    """The recipe ``name`` (dataset/system) in a line's worth of words."""
    path = recipes_folder() / f"{name}.toml"
    comments = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comments.append(line.lstrip("# ").rstrip())
    cost = [line.removeprefix("Cost:").strip() for line in comments[1:] if line.startswith("Cost:")]
    text = " ".join(line for line in comments[1:] if not line.startswith("Cost:"))
    command, (data, _, what) = comments[0], text.partition(": ")
    return RecipeCard(name, path, command.split()[1], command, data, what, _model(path), " ".join(cost))


def recipe_text(name: str | Path) -> str:
    """The file as it is, with the sections of its ``base`` written out below a line that says so."""
    path = find_recipe(name)
    text = path.read_text(encoding="utf-8")
    base = re.search(r'(?m)^base\s*=\s*"([^"]+)"\s*$', text)
    if base is None:
        return text
    below = recipe_text(path.parent / base.group(1))
    lines = [line for line in below.splitlines() if not line.startswith("# sidera ")]
    return text.replace(base.group(0), "").rstrip() + f"\n\n# from {base.group(1)}:\n" + "\n".join(lines) + "\n"


def _model(path: Path) -> str:
    sections = read_toml(path)
    if "base" in sections:
        return _model(path.parent / sections["base"])
    return str(sections.get("model", {}).get("name", ""))
