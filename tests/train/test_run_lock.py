"""Two writers of one run folder: the second is refused by name, a dead one stands in nobody's way."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import pytest

from sidera.core import InputError
from sidera.data.tiny import tiny_log
from sidera.train import run_lock as lock_module
from sidera.train.run_lock import NAME, one_writer, run_lock

HOLD = """
import sys, time
from sidera.train.run_lock import run_lock
with run_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that has the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has none."""
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_second_process_is_refused_and_after_a_kill_it_is_not(tmp_path: Path) -> None:
    first = holder(tmp_path / "run")
    try:
        wanted = rf"run' is being written by process {first.pid}; fix: wait"
        with pytest.raises(InputError, match=wanted), run_lock(tmp_path / "run"):
            pass
        with run_lock(tmp_path / "other"):
            pass
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    with run_lock(tmp_path / "run"):
        assert (tmp_path / "run" / NAME).read_text() == f"{os.getpid()}\n"


def test_the_command_line_refuses_in_one_line_and_writes_nothing(tmp_path: Path) -> None:
    tiny_log(60, 48).save(tmp_path / "data")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[model]\nname = "popularity"\n')
    first = holder(tmp_path / "run")
    try:
        for verb in ("run", "catalog"):
            command = [sys.executable, "-m", "sidera", verb, str(recipe), "--data", str(tmp_path / "data")]
            found = subprocess.run([*command, "--out", str(tmp_path / "run")], capture_output=True, text=True)
            assert found.returncode == 2
            assert f"is being written by process {first.pid}" in found.stderr
            assert len(found.stderr.splitlines()) == 1
        assert [path.name for path in (tmp_path / "run").iterdir()] == [NAME]
    finally:
        first.kill()
        first.wait()


def test_a_stage_inside_a_run_takes_the_lock_again(tmp_path: Path) -> None:
    @one_writer
    def stage(out: Path) -> str:
        return out.name

    @one_writer
    def whole(name: str, out: Path) -> str:
        return name + stage(out)

    assert whole("a", out=tmp_path / "b") == "ab"
    assert whole("a", tmp_path / "b") == "ab"


def test_another_thread_of_the_process_is_refused(tmp_path: Path) -> None:
    said: list[str] = []

    def try_it() -> None:
        try:
            with run_lock(tmp_path):
                said.append("taken")
        except InputError as error:
            said.append(str(error))

    with run_lock(tmp_path):
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
    assert "is being written by" in said[0]


@pytest.mark.usefixtures("without_locks")
def test_without_locks_the_number_of_a_living_process_refuses_and_a_dead_one_is_taken_over(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / NAME).write_text(f"{gone.pid}\n")
    with run_lock(tmp_path):
        assert (tmp_path / NAME).read_text() == f"{os.getpid()}\n"
    assert not (tmp_path / NAME).exists()
    (tmp_path / NAME).write_text(f"{os.getppid()}\n")
    with pytest.raises(InputError, match=f"process {os.getppid()}"), run_lock(tmp_path):
        pass
    for text in ("", "not a number\n", f"{os.getpid()}\n"):  # the last: left by an earlier process of this number
        (tmp_path / NAME).write_text(text)
        with run_lock(tmp_path):
            pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"), run_lock(tmp_path / "file" / "run"):
        pass


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bad input"), run_lock(tmp_path / "new" / "run"):
        raise InputError("bad input")
    assert not (tmp_path / "new" / "run").exists()
    with run_lock(tmp_path / "run"):
        (tmp_path / "run" / "result").write_text("")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["result"]


def test_a_lock_file_that_its_holder_removed_meanwhile_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = lock_module._take
    removed: list[Path] = []

    def slow(file: IO[str]) -> bool:
        found = taken(file)
        if not removed:
            removed.append(tmp_path / NAME)
            removed[0].unlink()
        return found

    monkeypatch.setattr(lock_module, "_take", slow)
    with run_lock(tmp_path):
        assert (tmp_path / NAME).read_text() == f"{os.getpid()}\n"
    assert removed


def test_is_alive_asks_and_ends_nothing() -> None:
    assert lock_module._is_alive(os.getpid())
    assert lock_module._is_alive(1)
