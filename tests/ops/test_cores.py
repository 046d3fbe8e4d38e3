"""Limits of control groups, faked as files, and what the libraries are told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sidera.ops import cores
from sidera.ops.cores import PASSIVE, POOLS, available_cores, cpu_quota, library_threads

V1_MOUNT = "31 23 0:27 {root} /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct"
V1_OTHER = "32 23 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
V2_MOUNT = "30 23 0:26 {root} /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate"


def fake(root: Path, groups: str, mounts: list[str], files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": groups, "proc/self/mountinfo": "\n".join(mounts), **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000", 8),
        ("50000 100000", 1),  # half a core
        ("250000 100000", 2),  # rounded down
        ("400000 100000", 4),
        ("1600000 100000", 8),  # more than the affinity
        ("nonsense", 8),
        ("", 8),
    ],
)
def test_version_2(text: str, cores: int, tmp_path: Path) -> None:
    root = fake(tmp_path, "0::/box", [V2_MOUNT.format(root="/")], {"sys/fs/cgroup/box/cpu.max": text})
    assert available_cores(root) == cores


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("50000", 1), ("250000", 2), ("900000", 8)])
def test_version_1(quota: str, cores: int, tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us": quota, "sys/fs/cgroup/cpu/a/b/cpu.cfs_period_us": "100000"}
    mounts = [V1_OTHER, V1_MOUNT.format(root="/")]
    root = fake(tmp_path, "5:memory:/x\n4:cpu,cpuacct:/a/b\n0::/", mounts, files)
    assert available_cores(root) == cores


def test_the_narrowest_of_the_groups_around_counts(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/cpu.max": "max 100000",
        "sys/fs/cgroup/outer/cpu.max": "150000 100000",
        "sys/fs/cgroup/outer/inner/cpu.max": "300000 100000",
    }
    assert cpu_quota(fake(tmp_path, "0::/outer/inner", [V2_MOUNT.format(root="/")], files)) == 1.5


@pytest.mark.parametrize("path", ["/docker/abc", "/../../docker/abc", "/elsewhere"])
def test_inside_a_container_the_mount_is_the_group(path: str, tmp_path: Path) -> None:
    """The path is the host's, the mounted folder is the container's own group."""
    mounts = [V2_MOUNT.format(root="/docker/abc")]
    assert cpu_quota(fake(tmp_path, f"0::{path}", mounts, {"sys/fs/cgroup/cpu.max": "20000 10000"})) == 2.0


def test_without_control_groups_affinity_is_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu_quota(tmp_path) is None
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert available_cores(tmp_path) == 1
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_cores(tmp_path) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores(tmp_path) == 1


def clear(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PASSIVE, *POOLS):
        monkeypatch.delenv(name, raising=False)


def test_libraries_are_told_and_the_environment_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clear(monkeypatch)
    monkeypatch.setattr(cores, "cpu_quota", lambda root=None: 0.5)
    with library_threads():
        assert os.environ["OMP_NUM_THREADS"] == "1"  # the quota, though nobody asked
        assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    with library_threads(3):
        assert {os.environ[name] for name in POOLS} == {"3"}
    assert not {*PASSIVE, *POOLS} & set(os.environ)
    monkeypatch.setattr(cores, "cpu_quota", lambda root=None: None)
    with library_threads():
        assert "OMP_NUM_THREADS" not in os.environ  # no limit: the libraries know the cores themselves


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    clear(monkeypatch)
    monkeypatch.setattr(cores, "cpu_quota", lambda root=None: 4.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    with library_threads():
        assert os.environ["OMP_NUM_THREADS"] == "7"
        assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
        assert "GOMP_SPINCOUNT" not in os.environ  # it would overrule the policy
    with library_threads(2):  # --threads is the newer word
        assert os.environ["OMP_NUM_THREADS"] == "2"
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_libraries_that_are_loaded_are_told_too() -> None:
    before = torch.get_num_threads()
    with library_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sidera.cli, sidera.ops.cores, sys; print({'torch', 'numpy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
