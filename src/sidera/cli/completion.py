"""The verb ``completion``: a script that lets bash, zsh or fish finish verbs, flags, recipe names and folders.

    eval "$(sidera completion bash)"          # in ~/.bashrc;  zsh the same in ~/.zshrc
    sidera completion fish | source           # in ~/.config/fish/config.fish

The scripts are made from the parser itself, so a flag that exists can be completed. They hold the words and start no
Python while somebody types.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sidera import console
from sidera.cli.parsing import Arguments, Verbs, add_verb

FOLDERS = ("run", "runs", "a", "b", "arms", "reranked", "data", "out", "start", "store", "exposures", "fill")
RECIPES = ("recipe", "show", "write", "toml")


@dataclass(frozen=True)
class Verb:
    """What can stand behind a verb."""

    name: str
    help: str
    flags: dict[str, argparse.Action]  # "--out" -> its action
    positionals: list[argparse.Action]
    seconds: list[str] = field(default_factory=list)  # second words: `sidera catalog add`

    @property
    def words(self) -> list[str]:
        """What the positional arguments can be, beside files and folders."""
        return [*self.seconds, *(word for action in self.positionals for word in words_for(action))]


def verbs_of(parser: argparse.ArgumentParser) -> list[Verb]:
    (action,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
    verbs: list[Verb] = []
    for name, below in action.choices.items():
        flags = {flag: one for one in below._actions for flag in one.option_strings}
        first, _, second = name.partition(" ")
        if second:  # of two words: the second one, and its flags, stand behind the first
            owner = next(verb for verb in verbs if verb.name == first)
            owner.seconds.append(second)
            owner.flags.update({flag: one for flag, one in flags.items() if flag not in owner.flags})
            continue
        verbs.append(Verb(name, helps[name], flags, [one for one in below._actions if not one.option_strings]))
    return verbs


def words_for(action: argparse.Action) -> list[str]:
    """The words that an argument takes; none: a file, a folder, a number."""
    from sidera.recipes import ANY, recipe_names

    if action.choices:
        return [str(choice) for choice in action.choices]
    if action.dest in RECIPES:
        return [name.removeprefix(f"{ANY}/") for name in recipe_names()]
    return []


def takes_value(action: argparse.Action) -> bool:
    return action.nargs != 0


def bash_script(parser: argparse.ArgumentParser) -> str:
    """Completes ``sidera VERB --flag value`` by plain word lists."""
    verbs = verbs_of(parser)
    cases, values = [], []
    for verb in verbs:
        cases.append(f"    {verb.name}) words={shlex.quote(' '.join([*verb.flags, *verb.words]))} ;;")
        for flag, action in verb.flags.items():
            if not takes_value(action):
                continue
            words = words_for(action)
            kind = "-W " + shlex.quote(" ".join(words)) if words else "-d" if action.dest in FOLDERS else "-f"
            extra = " -f" if action.dest in RECIPES else ""
            values.append(f'    "{verb.name} {flag}") COMPREPLY=($(compgen {kind}{extra} -- "$current")); return ;;')
    names = shlex.quote(" ".join([*(verb.name for verb in verbs), "--help", "--version"]))
    return "\n".join(
        [
            '# completion of sidera for bash: eval "$(sidera completion bash)"',
            "_sidera() {",
            '  local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}"',
            '  local verb="${COMP_WORDS[1]}" words',
            "  COMPREPLY=()",
            '  if [ "$COMP_CWORD" -eq 1 ]; then',
            f'    COMPREPLY=($(compgen -W {names} -- "$current")); return',
            "  fi",
            '  case "$verb $previous" in',
            *values,
            "  esac",
            '  case "$verb" in',
            *cases,
            "    *) return ;;",
            "  esac",
            '  case "$current" in',
            '    -*) COMPREPLY=($(compgen -W "$words" -- "$current")) ;;',
            '    *) COMPREPLY=($(compgen -W "$words" -- "$current") $(compgen -f -- "$current")) ;;',
            "  esac",
            "}",
            "complete -o filenames -F _sidera sidera",
            "",
        ]
    )


def zsh_script(parser: argparse.ArgumentParser) -> str:
    """zsh runs bash's script by its own emulation."""
    head = '# completion of sidera for zsh: eval "$(sidera completion zsh)"\n'
    return (
        head
        + "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
        + bash_script(parser)
    )


def fish_script(parser: argparse.ArgumentParser) -> str:
    lines = ["# completion of sidera for fish: sidera completion fish | source", "complete -c sidera -f"]
    for verb in verbs_of(parser):
        lines.append(f"complete -c sidera -n __fish_use_subcommand -a {verb.name} -d {_fish(verb.help)}")
        here = f"complete -c sidera -n '__fish_seen_subcommand_from {verb.name}'"
        if verb.words:
            lines.append(f"{here} -a {_fish(' '.join(verb.words))}")
        if any(action.dest in (*FOLDERS, *RECIPES, "events") for action in verb.positionals):
            lines.append(f"{here} -F")
        for flag, action in verb.flags.items():
            name = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            words = words_for(action)
            value = "" if not takes_value(action) else f" -x -a {_fish(' '.join(words))}" if words else " -r -F"
            lines.append(f"{here} {name}{value} -d {_fish((action.help or '').replace('%(default)s', ''))}")
    return "\n".join(lines) + "\n"


SHELLS: dict[str, Callable[[argparse.ArgumentParser], str]] = {
    "bash": bash_script,
    "zsh": zsh_script,
    "fish": fish_script,
}


def completion_verb(arguments: Arguments) -> dict[str, Any]:
    """Print the script."""
    from sidera.cli import build_parser

    script = SHELLS[arguments.shell](build_parser())
    console.result(script.rstrip("\n"))
    return {"shell": arguments.shell, "script": script}


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def add_completion(verbs: Verbs) -> None:
    text = 'print a completion script: eval "$(sidera completion bash)"'
    parser = add_verb(verbs, "completion", completion_verb, text)
    parser.add_argument("shell", choices=tuple(SHELLS), help="the shell that will read it")
