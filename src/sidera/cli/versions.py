"""``sidera --version``: what a bug report needs, read without importing what it names."""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from sidera import __version__

PACKAGES = ("numpy", "pyarrow", "safetensors", "fastapi", "uvicorn", "tqdm", "sentence-transformers", "tensorboard")


class ShowVersion(argparse.Action):
    """Prints one line and ends; with ``-v`` beside it every dependency and what torch can use here."""

    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        super().__init__(
            option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=settings.get("help")
        )

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        print(version_line())
        if {"-v", "--verbose"} & set(sys.argv[1:]):
            print("\n".join(details()))
        parser.exit(0)


def version_line() -> str:
    """``sidera 0.1.0 (ca2175c), Python 3.11.7, torch 2.13.0``; the commit where this is a checkout."""
    commit = commit_of(Path(__file__).resolve().parents[3])
    python = f"Python {platform.python_version()}"
    return f"sidera {__version__}{f' ({commit})' if commit else ''}, {python}, torch {version_of('torch')}"


def details() -> list[str]:
    """Versions of the dependencies, and processors that torch sees (which imports it)."""
    import torch

    lines = [f"{name} {version_of(name)}" for name in PACKAGES]
    devices = [torch.cuda.get_device_name(position) for position in range(torch.cuda.device_count())]
    lines.append(f"system {platform.system()} {platform.machine()}, {torch.get_num_threads()} threads")
    lines.append(f"processor {torch.backends.cpu.get_cpu_capability()}, CUDA {', '.join(devices) or 'none'}")
    return lines


def version_of(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit_of(root: Path) -> str:
    """The first digits of the checkout's commit, with "+" when files differ from it; "" where this is no checkout."""
    if not (root / ".git").exists() or not (root / "src" / "sidera").is_dir():
        return ""
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True, text=True, timeout=5, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return described if re.fullmatch(r"[0-9a-f]{7,40}\+?", described) else ""
