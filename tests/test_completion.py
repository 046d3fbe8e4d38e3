"""Completion as the shells do it: bash is run with the script, the others are checked for every verb and flag."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sidera.cli import build_parser, main
from sidera.cli.completion import SHELLS, verbs_of
from sidera.recipes import recipe_names


def complete(folder: Path, *words: str) -> list[str]:
    """What bash offers for the last of ``words``."""
    (folder / "script").write_text(SHELLS["bash"](build_parser()))
    line = " ".join(f"'{word}'" for word in words)
    code = f"source ./script; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _sidera; "
    code += "printf '%s\\n' \"${COMPREPLY[@]}\""
    found = subprocess.run(["bash", "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert found.stderr == ""
    return found.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_verbs_flags_recipes_choices_and_folders(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "mine.toml").write_text("")
    assert set(complete(tmp_path, "sidera", "re")) == {"recipes", "recommend"} | {
        verb.name for verb in verbs_of(build_parser()) if verb.name.startswith("re")
    }
    assert {verb.name for verb in verbs_of(build_parser())} <= set(complete(tmp_path, "sidera", ""))
    assert complete(tmp_path, "sidera", "run", "--max") == ["--max-minutes"]
    assert "generator" in complete(tmp_path, "sidera", "run", "gen")
    assert set(complete(tmp_path, "sidera", "run", "beauty/")) == {n for n in recipe_names() if n.startswith("beauty/")}
    assert complete(tmp_path, "sidera", "run", "mi") == ["mine.toml"]
    assert complete(tmp_path, "sidera", "run", "generator", "--data", "ru") == ["runs"]
    assert complete(tmp_path, "sidera", "run", "generator", "--data", "mi") == []  # a folder is wanted
    assert complete(tmp_path, "sidera", "evaluate", "runs", "--rows", "") == ["test", "valid"]
    assert complete(tmp_path, "sidera", "nothing", "") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_every_verb_and_flag_is_in_every_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for verb in verbs_of(build_parser()):
        assert verb.name in script
        for flag in verb.flags:
            assert flag in script or f"-l {flag[2:]} " in script or f"-s {flag[1:]} " in script, flag


def test_bash_can_read_the_script_of_zsh(tmp_path: Path) -> None:
    """Its body is bash's; the two lines above it are zsh's own."""
    lines = SHELLS["zsh"](build_parser()).splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["autoload", "autoload"]
    assert "\n".join(lines[3:]) + "\n" == SHELLS["bash"](build_parser())


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
def test_fish_reads_its_script(tmp_path: Path) -> None:
    (tmp_path / "script").write_text(SHELLS["fish"](build_parser()))
    subprocess.run(["fish", "--no-execute", str(tmp_path / "script")], check=True)
