"""The keys of a section dataclass as a person wants to read them: name, type, default, and the comment in its source.

    for key in keys_of(FitConfig): print(key.name, key.type, key.default, key.comment)

A key is documented where it is declared: by the comment behind its line, and by comment lines directly below. The
source is read once for each class, so there is one text and no second list that could go stale.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import json
import textwrap
import tokenize
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Key:
    name: str
    kind: str  # "whole number", "number or nothing", "cosine | linear", ...
    default: Any  # MISSING where it has to be given
    comment: str
    section: type | None = None  # the dataclass of a section inside the section, such as [catalog.contrastive]
    pick: Callable[[Mapping[str, Any]], type] | None = None  # that dataclass, where it depends on what is written

    @property
    def default_text(self) -> str:
        """As TOML writes it; TOML has no word for nothing."""
        if self.section is not None:
            return ""
        if self.default is dataclasses.MISSING:
            return "(must be given)"
        return toml(self.default) or "(none)"


@cache
def keys_of(cls: type) -> tuple[Key, ...]:
    """Every key of a section dataclass, in the order of its source."""
    comments = _comments(cls)
    hints = typing.get_type_hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        hint = hints[field.name]
        pick = field.metadata.get("section")
        section = pick({}) if pick else hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None
        kind = "section" if section else type_text(hint)
        found.append(Key(field.name, kind, default, comments.get(field.name, ""), section, pick))
    return tuple(found)


def type_text(hint: Any) -> str:
    """A type in words that somebody who writes TOML knows."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(str(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        inner = [type_text(argument) for argument in arguments if argument is not type(None)]
        return " or ".join(inner) + (" or nothing" if type(None) in arguments else "")
    if origin is tuple:
        return f"list of {_plural(type_text(arguments[0]))}"
    if origin is dict:
        return f"table of {_plural(type_text(arguments[1]))}"
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return "section"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return names.get(hint, "anything")


def toml(value: Any) -> str:
    """A value as TOML; "" for None, which TOML cannot write."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_bare(key)} = {toml(one)}" for key, one in value.items() if one is not None) + "}"
    return "[" + ", ".join(toml(one) for one in value) + "]"


def commented_toml(name: str, cls: type, written: Mapping[str, Any], first: Mapping[str, Any] | None = None) -> str:
    """A section with every key: those that ``written`` sets as they are, the others as comments at their defaults.

    ``first``: lines of the section that are no keys of the class, such as the name of a model. Reading the text back
    gives ``written``, and taking the marks of the comments away changes nothing either.
    """
    lines, written = [f"[{name}]"], dict(written)
    inner: list[str] = []
    lines += [f"{key} = {toml(value)}" for key, value in (first or {}).items()]
    for key in keys_of(cls):
        if key.section is not None:
            own = written.pop(key.name, {})
            inner.append(commented_toml(f"{name}.{key.name}", key.pick(own) if key.pick else key.section, own))
            continue
        comment = f"  # {key.comment}" if key.comment else ""
        if key.name in written:
            lines.append(f"{key.name} = {toml(written.pop(key.name))}{comment}")
        elif key.default is None or key.default is dataclasses.MISSING:
            lines.append(f"# {key.name} ={comment}")
        else:
            lines.append(f"# {key.name} = {toml(key.default)}{comment}")
    for key_name, value in written.items():  # what the class does not declare: tables below, such as [align.arms.safe]
        lines += _rest(name, key_name, value)
    return "\n".join([*lines, *(f"\n{text}" for text in inner)])


def _rest(section: str, name: str, value: Any) -> list[str]:
    if isinstance(value, Mapping) and all(isinstance(one, Mapping) for one in value.values()):
        lines = []
        for below, keys in value.items():
            lines += ["", f"[{section}.{name}.{_bare(below)}]", *(f"{key} = {toml(one)}" for key, one in keys.items())]
        return lines
    return [f"{name} = {toml(value)}"]


def _bare(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _plural(text: str) -> str:
    """whole number -> whole numbers, text -> texts; of choices the list speaks for itself."""
    return text if "|" in text or text.endswith("s") or " or " in text or text == "anything" else f"{text}s"


def _comments(cls: type) -> dict[str, str]:
    """Field -> its comment, of the class and the dataclasses that it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _own_comments(base)
    return found


def _own_comments(cls: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(cls))
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    comments = {
        token.start[0]: token.string.lstrip("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and not token.string.startswith("# fmt:")
    }
    found = {}
    for node in body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        last = node.end_lineno or node.lineno
        lines = [comments[line] for line in range(node.lineno, last + 1) if line in comments]
        below = last + 1
        while below in comments and not source.splitlines()[below - 1].split("#")[0].strip():
            lines.append(comments[below])
            below += 1
        found[node.target.id] = " ".join(lines)
    return found
