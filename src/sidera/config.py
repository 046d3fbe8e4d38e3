"""Recipes: TOML files that become frozen dataclasses, checked key by key.

A recipe has the sections ``[data] [catalog] [model] [fit] [expert] [eval]``, and ``[align] [rewards]`` where it is
aligned. Each room declares its own section as a frozen dataclass; :func:`parse_section` fills one from a mapping and
refuses unknown keys and wrong types by name. A command line override is ``--set fit.lr=3e-4``. ``base = "other.toml"``
on top takes the sections of another recipe in the same folder, key by key under what is written here."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sidera.bounds import MAX_DEPTH, check_depth, read_regular, shown
from sidera.core import InputError

Section = TypeVar("Section")
LARGEST = 2**53  # of a whole number: every one below is exact as a float, and times a thousand still fits 64 bits
MAX_RECIPE_BYTES = 2**20
# What a whole number may be at most, by its key, where memory or time follows it: a slip of the finger must not take
# the machine. Whether a model fits this machine is another question, asked when it is built (``models.build_model``).
MOST = {
    **dict.fromkeys(("width", "head_width", "hidden", "tower_width", "num_learned", "num_experts"), 2**16),
    **dict.fromkeys(("num_layers", "encoder_layers", "decoder_layers", "lifelong_layers", "ff_multiple"), 1000),
    **dict.fromkeys(("num_heads", "num_kv_groups", "num_kernels", "num_queries", "num_shared", "image_size"), 4096),
    **dict.fromkeys(("max_history", "short_term", "positive_length", "num_lifelong_queries", "ff_width"), 2**20),
    **dict.fromkeys(("expert_width", "num_negatives", "batch_size", "accumulate"), 2**20),
    **dict.fromkeys(("beam", "wide_beam", "list_beam", "window", "max_words", "max_categories", "samples"), 2**16),
    **dict.fromkeys(("neighbours", "recent", "vocabulary", "max_user_items", "max_item_users"), 2**24),
    **dict.fromkeys(("bootstrap", "latency_rows", "caption_items", "requests", "ntp_batch"), 2**20),
    "num_user_tokens": 2**31 - 1,
    "num_threads": 4096,
}
SECTIONS = ("data", "catalog", "model", "fit", "expert", "eval", "align", "rewards")


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file; InputError when it is missing or malformed."""
    path = Path(path)
    try:
        return parse_toml(read_regular(path, MAX_RECIPE_BYTES).decode())
    except FileNotFoundError:
        raise InputError(f"no recipe at {str(path)!r}", fix="give the path of a .toml file") from None
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are some
        raise InputError(f"{path} is not valid TOML: {error}", fix="mend the line named") from None
    except OSError as error:
        raise InputError(f"cannot read recipe {str(path)!r}: {error.strerror}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """ValueError when it is malformed, or lists and tables stand too deep inside one another."""
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    check_depth(values)
    return values


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """A recipe (a TOML file, or its sections) as nested dictionaries, overrides applied, section names checked.

    ``overrides`` are ``section.key=value`` strings; the value is read as TOML (``3e-4``, ``true``, ``[1, 2]``), and as
    plain text when it is not TOML.
    """
    if isinstance(source, Mapping):
        written, path = source, "recipe"
    else:
        written, path = read_toml(source), str(source)
    base = written.get("base")
    if base is not None and not isinstance(source, Mapping):
        if not isinstance(base, str) or Path(base).name != base:
            raise InputError(f"{path}: base = {base!r}", allowed="the name of a recipe in the same folder")
        below = load_recipe(Path(source).parent / base)
        above = {name: section for name, section in written.items() if name != "base"}
        for name, section in above.items():
            above[name] = _over(below.get(name, {}), section) if isinstance(section, Mapping) else section
        written = {**below, **above}
    for name, section in written.items():
        if name not in SECTIONS:
            problem = f"{path}: unknown section [{shown(name)[1:-1]}]{closest(name, SECTIONS)}"
            raise InputError(problem, allowed=", ".join(SECTIONS))
        if not isinstance(section, Mapping):
            raise InputError(f"{path}: {name!r} must be a section", fix=f"write it as [{name}] with keys below")
    recipe = {name: dict(section) for name, section in written.items()}
    for override in overrides:
        key, equals, text = override.partition("=")
        section_name, *inner, key_name = (*key.strip().split("."), "")[: max(2, key.count(".") + 1)]
        if not (equals and key_name and all(inner)) or section_name not in SECTIONS:
            form = f"SECTION.KEY=VALUE with SECTION one of {', '.join(SECTIONS)}"
            raise InputError(f"--set {override!r} is not an override", allowed=form)
        section = recipe.setdefault(section_name, {})
        for name in inner:  # a section inside a section, such as [catalog.contrastive]
            section[name] = dict(section[name]) if isinstance(section.get(name), Mapping) else {}
            section = section[name]
        section[key_name] = override_value(text.strip())
    return {name: dict(recipe.get(name, {})) for name in SECTIONS}


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``below`` with the keys of ``above``, and likewise in the sections inside."""
    merged = {**below, **above}
    for name, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(name), Mapping):
            merged[name] = _over(below[name], value)
    return merged


def parse_section(cls: type[Section], values: Mapping[str, Any], where: str) -> Section:
    """Fill the frozen dataclass ``cls`` from ``values``; ``where`` names the place in messages ("[fit]")."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    filled: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise InputError(f"{where} has no key {shown(key)}{closest(key, fields)}", allowed=", ".join(fields))
        filled[key] = _typed(value, hints[key], f"{where} {key}")
    missing = [
        name
        for name, field in fields.items()
        if name not in filled and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(f"{where} lacks {', '.join(missing)}", fix="add the key to the recipe")
    return cls(**filled)


def check_value(where: str, name: str, value: Any, good: bool, allowed: str) -> None:
    """InputError naming the key and its value, unless ``good``; for ``__post_init__`` of section dataclasses."""
    if not good:
        raise InputError(f"{where} {name} = {shown(value)} is out of range", allowed=allowed)


def check_counts(where: str, section: Any, *names: str, low: int = 1) -> None:
    """InputError unless these keys of a section hold whole numbers from ``low`` to what ``MOST`` says."""
    for name in names:
        value, high = getattr(section, name), MOST.get(name, LARGEST)
        good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        check_value(where, name, value, good, f"whole numbers from {low} to {high:,}")


def digest(value: Any) -> str:
    """16 hex digits that name a value made of dataclasses, mappings, sequences, numbers and strings."""

    def plain(item: Any) -> Any:
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return dataclasses.asdict(item)
        raise TypeError(f"cannot digest a {type(item).__name__}")

    text = json.dumps(value, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def later(default: Any) -> Any:
    """A key that a section got after runs had been made with it: at its default it is not written down, so recipes and
    artifacts of before keep their digests."""
    return dataclasses.field(default=default, metadata={"later": True})


def written(section: Any) -> dict[str, Any]:
    """A section dataclass as a dictionary, without the :func:`later` keys that are at their defaults."""
    left_out = {
        field.name
        for field in dataclasses.fields(section)
        if field.metadata.get("later") and getattr(section, field.name) == field.default
    }
    return {name: value for name, value in dataclasses.asdict(section).items() if name not in left_out}


def closest(name: str, known: Any) -> str:
    """The words \"did you mean\" in brackets when a known name is near, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def override_value(text: str) -> Any:
    """What a ``--set`` gives: TOML where it is TOML, else plain text."""
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


def _typed(value: Any, hint: Any, where: str) -> Any:
    """``value`` as the type that ``hint`` names; ints pass for floats, lists become tuples."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        inner = [argument for argument in arguments if argument is not type(None)]
        for argument in inner:
            try:
                return _typed(value, argument, where)
            except InputError:
                continue
        raise _wrong_type(value, hint, where)
    if origin is typing.Literal:
        if value not in arguments:
            options = ", ".join(repr(argument) for argument in arguments)
            close = closest(value, map(str, arguments)) if isinstance(value, str) else ""
            raise InputError(f"{where} = {shown(value)} is not known{close}", allowed=options)
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong_type(value, hint, where)
        return tuple(_typed(item, arguments[0], f"{where}[{position}]") for position, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong_type(value, hint, where)
        return {str(key): _typed(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):  # a section inside a section
        if not isinstance(value, Mapping):
            raise _wrong_type(value, hint, where)
        return parse_section(hint, value, f"[{where.replace('[', '').replace('] ', '.')}]")  # type: ignore[arg-type]
    if hint is Any:
        return value
    if isinstance(value, bool) and hint is not bool:
        raise _wrong_type(value, hint, where)
    if isinstance(value, int) and hint in (int, float) and not -LARGEST <= value <= LARGEST:
        raise InputError(f"{where} = {shown(value)} is out of range", allowed=f"-{LARGEST} to {LARGEST}")
    if hint is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, hint):
        raise _wrong_type(value, hint, where)
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} = {value!r} is out of range", allowed="a finite number")
    return value


def _wrong_type(value: Any, hint: Any, where: str) -> InputError:
    name = getattr(hint, "__name__", None) if not typing.get_args(hint) else str(hint).replace("typing.", "")
    return InputError(f"{where} = {shown(value)} is a {type(value).__name__}", allowed=str(name))
