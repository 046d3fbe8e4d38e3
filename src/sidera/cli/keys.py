"""The verb ``keys``: every key of a recipe with its type, default and comment, and recipes with all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sidera import console
from sidera.cli.parsing import Arguments, Verbs, add_verb
from sidera.core import InputError


def keys_verb(arguments: Arguments) -> dict[str, Any]:
    """Print the keys of all sections, of one section or model, or one key."""
    from sidera.config import closest
    from sidera.keys import Key, keys_of

    if arguments.toml:
        if arguments.what:
            raise InputError("--toml writes whole recipes", fix=f"sidera keys --toml {arguments.toml}")
        text = whole_recipe(arguments.toml)
        console.result(text.rstrip("\n"))
        return {"name": str(arguments.toml), "text": text}
    classes, what = section_classes(), arguments.what
    chosen: list[tuple[str, list[Key]]]
    if what is None:
        chosen = [(name, list(keys_of(cls))) for name, cls in classes.items() if name != "world"]
    elif what.strip("[]") in classes:
        chosen = [(what.strip("[]"), list(keys_of(classes[what.strip("[]")])))]
    else:
        section, _, key_name = what.rpartition(".")
        chosen = [
            (name, matches)
            for name, cls in classes.items()
            if not section or name == section
            if (matches := [key for key in keys_of(cls) if key.name == key_name])
        ]
    if not chosen:
        known = [*classes, *(key.name for cls in classes.values() for key in keys_of(cls))]
        raise InputError(
            f"no section, model or key is called {what!r}{closest(what, known)}", allowed=", ".join(classes)
        )
    for position, (name, keys) in enumerate(chosen):
        rows = [(key.name, key.kind, key.default_text, key.comment) for key in keys]
        table = console.table(("key", "type", "default", "what it is"), rows, left=4)
        console.result(("\n" if position else "") + f"{title(name)}\n{table}")
    console.say("\none section: sidera keys fit   one model: sidera keys tiger   one key: sidera keys fit.lr")
    console.say("a recipe with every key: sidera keys --toml generator")
    return {
        "sections": [
            {
                "section": name,
                "keys": [
                    {
                        "key": key.name,
                        "type": key.kind,
                        "default": None if key.default_text == "(must be given)" else key.default,
                        "required": key.default_text == "(must be given)",
                        "comment": key.comment,
                    }
                    for key in keys
                    if key.section is None
                ],
            }
            for name, keys in chosen
        ]
    }


def section_classes() -> dict[str, type]:
    """Section or model name -> its dataclass, in the order of a recipe. Models are imported for it."""
    from sidera.align.config import AlignConfig
    from sidera.align.recipe import RewardsConfig
    from sidera.catalog.config import CatalogConfig, ContrastiveConfig
    from sidera.catalog.quantizers import QUANTIZERS
    from sidera.data.config import DataConfig
    from sidera.data.feature import FeatureConfig
    from sidera.engine.expert import ExpertConfig
    from sidera.eval.config import EvalConfig
    from sidera.fit.config import FitConfig
    from sidera.models import MODELS
    from sidera.sim.config import WorldConfig

    return {
        "data": DataConfig,
        "data.features": FeatureConfig,
        "catalog": CatalogConfig,
        "catalog.contrastive": ContrastiveConfig,
        **{name: quantizer.Config for name, quantizer in QUANTIZERS.items()},
        **{name: model.Config for name, model in MODELS.items()},
        "fit": FitConfig,
        "expert": ExpertConfig,
        "eval": EvalConfig,
        "align": AlignConfig,
        "rewards": RewardsConfig,
        "world": WorldConfig,
    }


def title(name: str) -> str:
    """The section as a recipe has it."""
    from sidera.catalog.quantizers import QUANTIZERS
    from sidera.models import MODELS

    section = "catalog.quantizer" if name in QUANTIZERS else "model" if name in MODELS else None
    return f"[{name}]" if section is None else f'[{section}] name = "{name}"'


def whole_recipe(name: str | Path) -> str:
    """A recipe with every key: what it sets as it stands, the rest as comments at their defaults."""
    from sidera.config import load_recipe
    from sidera.keys import commented_toml
    from sidera.recipes import find_recipe

    path, classes = find_recipe(name), section_classes()
    sections = load_recipe(path)
    first = path.read_text(encoding="utf-8").splitlines()
    parts = ["\n".join(line for line in first[:3] if line.startswith("#"))]
    for section, values in sections.items():
        written: Mapping[str, Any] = dict(values)
        if section == "model":
            model = str(values.get("name", ""))
            if model not in classes:
                raise InputError(f"{path}: [model] name = {model!r} is not known", allowed="see `sidera keys`")
            inner = {key: value for key, value in written.items() if key != "name"}
            parts.append(commented_toml("model", classes[model], inner, first={"name": model}))
        elif values or section not in ("align", "rewards"):
            parts.append(commented_toml(section, classes[section], written))
    return "\n\n".join(parts) + "\n"


def add_keys(verbs: Verbs) -> None:
    parser = add_verb(verbs, "keys", keys_verb, "every key of a recipe: type, default, what it is")
    parser.add_argument("what", nargs="?", help="section (fit), model (tiger) or key (fit.lr); else all sections")
    parser.add_argument("--toml", metavar="RECIPE", help="print this recipe with every key, defaults as comments")
