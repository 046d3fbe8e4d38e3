"""Files on systems that this one is not: the modules and functions that differ are put in by hand."""

from __future__ import annotations

import ast
import errno
import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sidera import disk

ROOT = Path(__file__).resolve().parents[1]


def test_a_lock_is_held_once_and_until_the_file_is_closed(tmp_path: Path) -> None:
    with (tmp_path / "LOCK").open("a") as first, (tmp_path / "LOCK").open("a") as second:
        assert disk.try_lock(first)
        assert not disk.try_lock(second)
        first.close()
        assert disk.try_lock(second)


def test_without_fcntl_the_lock_is_that_of_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: set[str] = set()

    def locking(handle: int, mode: int, num_bytes: int) -> None:
        assert (mode, num_bytes) == (2, 1)
        name = os.readlink(f"/proc/self/fd/{handle}") if os.path.exists("/proc/self/fd") else "LOCK"
        if name in held:
            raise OSError(errno.EDEADLK, "Resource deadlock avoided")
        held.add(name)

    monkeypatch.setattr(disk, "fcntl", None)
    monkeypatch.setattr(disk, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    with (tmp_path / "LOCK").open("a") as file:
        assert disk.try_lock(file)
        assert not disk.try_lock(file)


def test_without_fcntl_a_lock_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals, calls = [1, 1, 1], []

    def locking(handle: int, mode: int, num_bytes: int) -> None:
        calls.append(mode)
        if mode == 2 and refusals:
            refusals.pop()
            raise OSError(13, "Permission denied")

    monkeypatch.setattr(disk, "fcntl", None)
    monkeypatch.setattr(disk, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2, LK_UNLCK=0))
    with (tmp_path / "LOCK").open("a") as file, disk.wait_for_lock(file):
        assert calls == [2, 2, 2, 2]
    assert calls == [2, 2, 2, 2, 0]


def test_windows_syncs_no_folder_and_opens_files_for_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    opened: list[tuple[str, int]] = []
    really = os.open

    def watched(path: Any, flags: int, *rest: Any) -> int:
        opened.append((Path(path).name, flags))
        return really(path, flags, *rest)

    monkeypatch.setattr(disk, "WINDOWS", True)
    monkeypatch.setattr(os, "open", watched)
    disk.sync(tmp_path)
    disk.sync(tmp_path / "file")
    assert opened == [("file", os.O_RDWR)]


def test_an_appended_record_is_binary_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[int] = []
    monkeypatch.setattr(os, "O_BINARY", 0x8000, raising=False)
    monkeypatch.setattr(os, "open", lambda path, given, mode: flags.append(given) or 7)
    assert disk.open_to_append(tmp_path / "log") == 7
    assert flags[0] & 0x8000


def calls_without_encoding(file: Path) -> list[str]:
    """Text that is read or written in the system's own encoding, which on Windows is not UTF-8."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or any(one.arg == "encoding" for one in node.keywords):
            continue
        called, builtin = node.func, isinstance(node.func, ast.Name)
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        if name == "write_text" and (builtin or "artifacts" in ast.unparse(called)):  # that one writes UTF-8
            continue
        given = [*node.args[1 if builtin else 0 :], *(one.value for one in node.keywords if one.arg == "mode")]
        modes = [one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        text = name in ("read_text", "write_text")
        text |= name == "open" and ((builtin and not modes) or any(set(mode) <= set("rwaxt+") for mode in modes))
        if text:
            found.append(f"{file.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:60]}")
    return found


@pytest.mark.parametrize("folder", ["src", "benchmarks", "examples"])
def test_every_text_names_its_encoding(folder: str) -> None:
    assert [line for file in (ROOT / folder).rglob("*.py") for line in calls_without_encoding(file)] == []


def test_the_search_for_encodings_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "x.py").write_text(
        "a.read_text()\nb.write_text(x)\nopen('f')\nc.open('w')\nopen('g', 'rb')\nc.open('rb')\nExposures.open(d)\n"
        "a.read_text(encoding='utf-8')\n",
        encoding="utf-8",
    )
    assert [int(line.split(":")[1]) for line in calls_without_encoding(tmp_path / "x.py")] == [1, 2, 3, 4]


@pytest.mark.parametrize("folder", ["src/sidera"])
def test_no_module_needs_what_only_one_system_has(folder: str) -> None:
    """Nothing that Windows lacks is imported when a module is loaded; no process is forked."""
    lacking = {"fcntl", "resource", "pwd", "grp", "termios", "multiprocessing"}
    found = []
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{file.name}: {name}" for name in names if name.partition(".")[0] in lacking]
    assert found == []


def test_letters_that_a_terminal_lacks_end_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from sidera.cli import show_all_letters

    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="cp1252", errors="strict"))
    show_all_letters()
    print("té 茶", flush=True)
    assert raw.getvalue() == "té \\u8336\n".encode("cp1252")
