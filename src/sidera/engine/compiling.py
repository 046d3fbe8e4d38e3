"""`sidera export RUN`: what an answer costs as native code, made here, held against the model, and signed.

    RUN/compiled/context.pt2, search.pt2, searches.pt2     programs of ``decode/compiled.py`` (AOTInductor)
    RUN/compiled/manifest.json                             their digests, the weights, the processor, what parity gave

A program is code: whoever loads it runs it. So it is opened only with a signature (HMAC) of a key that this machine
has: its own, made at the first export and readable by its owner alone, or one that is given (``--key``) to both the
machine that exports and those that serve. A program is also of one torch, one kind of processor and one set of weights.
Where any of these differs, or a file was changed, answers are computed step by step and the server says why.

An export is refused unless the programs answer what the model does: the ten best items equal in 99 % of sampled
requests, and no score off by more than ``TOLERANCE``. Compiling runs in a process of its own, which is ended with its
compilers when the time is over.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

import torch

from sidera import artifacts
from sidera.core import ArtifactError, InputError
from sidera.decode.compiled import NAMES, Asked, CompiledSearch, Program, SearchShape, direct, item_tables
from sidera.engine.parity import EQUAL, TOLERANCE, Parity, parity_of, sample_of
from sidera.engine.snapshot import Snapshot

FOLDER, KIND = "compiled", "compiled"
MOST_BYTES = 1 << 30  # of a program
KEY_BYTES = 32
FORMAT = "2"  # of what a program takes and gives; 2: item tables are inputs
WORTH = 0.95  # of the time of the steps, that a program may take at most


@dataclass(frozen=True)
class Exported:
    """What `sidera export` made."""

    out: str
    programs: tuple[str, ...]
    refused: dict[str, str]  # programs that this model has not, and why
    parity: Parity
    bytes: int


@dataclass(frozen=True)
class _Made:
    """What a manifest says of its programs."""

    model: str  # version of the weights
    codebook_id: str
    asked: dict[str, int]
    sizes: tuple[int, ...]
    first: int
    shared: bool
    programs: dict[str, str]  # name -> SHA-256
    refused: dict[str, str]
    tag: dict[str, str]
    parity: dict[str, float] = field(default_factory=dict)

    @property
    def shape(self) -> SearchShape:
        return SearchShape(Asked(**self.asked), tuple(self.sizes), self.first, self.shared)

    def signed(self, key: bytes) -> str:
        return hmac.new(key, json.dumps(asdict(self), sort_keys=True).encode(), "sha256").hexdigest()


# -- exporting -------------------------------------------------------------------------------------------------------


def export_run(
    run: str | Path, snapshot: Snapshot, asked: Asked, *, minutes: float = 20.0, requests: int = 200,
    key: str | Path | None = None,
) -> Exported:  # fmt: skip
    """Write ``RUN/compiled``. InputError where this machine or this model cannot, and when the time is over;
    ArtifactError, with nothing written, where the programs answer something else than the model."""
    run, secret = Path(run), _key(key, make=True)
    check_exportable(snapshot)
    with tempfile.TemporaryDirectory(prefix="sidera-export-") as scratch:
        refused = _compiled_aside(run, Path(scratch), asked, minutes)
        names = [name for name in NAMES if (Path(scratch) / f"{name}.pt2").is_file()]
        if not names:
            why = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
            raise InputError(f"nothing of {run} can be exported ({why})", fix="serve it as it is: answers are equal")
        files = {name: Path(scratch) / f"{name}.pt2" for name in names}
        shape = SearchShape.of(snapshot.catalog.trie, asked)
        programs = {name: _loaded(file.read_bytes()) for name, file in files.items()}
        parity = _tried(run, snapshot, opened(snapshot, programs, shape), requests)
        if not parity.holds:
            raise ArtifactError(
                f"the programs of {run} answer {parity.equal:.1%} of {parity.requests} requests as the model does, with"
                f" scores off by up to {parity.off:.1e}; nothing was written",
                allowed=f"{EQUAL:.0%} or more, and {TOLERANCE:.0e}",
                fix="serve it as it is, and report the model and the processor",
            )
        for name, ratio in parity.times.items():  # a program has the most candidates of all; steps only those there are
            if ratio > WORTH and name in files:
                refused[name] = f"slower here: {ratio:.2f} times the time of the steps"
                names.remove(name)
                files.pop(name).unlink()
        if not names:
            why = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
            raise InputError(f"no program of {run} pays ({why})", fix="serve it as it is: answers are equal")
        made = _Made(
            snapshot.version, snapshot.catalog.codebook_id, asdict(asked), shape.sizes, shape.first, shape.shared,
            {name: _digest(file.read_bytes()) for name, file in files.items()}, refused, hardware_tag(), asdict(parity),
        )  # fmt: skip
        manifest = artifacts.Manifest(
            KIND, _digest(json.dumps(asdict(made), sort_keys=True).encode()), {"model": snapshot.version},
            info={**asdict(made), "signature": made.signed(secret)},
        )  # fmt: skip
        with artifacts.writing(run / FOLDER, manifest) as folder:
            for file in files.values():
                shutil.copyfile(file, folder / file.name)
    size = sum(file.stat().st_size for file in (run / FOLDER).glob("*.pt2"))
    return Exported(str(run / FOLDER), tuple(names), refused, parity, size)


def _tried(run: Path, snapshot: Snapshot, compiled: CompiledSearch, requests: int) -> Parity:
    """ArtifactError where a program refuses a request, or was never asked: it would be opened untried."""
    try:
        parity = parity_of(snapshot, compiled, requests)
    except RuntimeError as error:
        why = str(error).splitlines()[0]
    else:
        untried = [name for name in compiled.programs if not compiled.calls[name]]
        if not untried:
            return parity
        why = f"{', '.join(untried)} answered none of {requests} requests"
    raise ArtifactError(
        f"the programs of {run} do not run: {why}; nothing was written", allowed="20 requests or more (--requests)",
        fix="serve it as it is, and report the model and the processor",
    )  # fmt: skip


def check_exportable(snapshot: Snapshot) -> None:
    """InputError unless there is something to compile, and something that compiles it."""
    if not snapshot.generates or snapshot.writes_lists:
        kind = "a scorer: its answer is two products" if not snapshot.generates else "a writer of lists"
        raise InputError(f"the model is {kind}", allowed="generators of items", fix="serve it as it is")
    if snapshot.way != "beam":
        raise InputError(f"the model is searched by {snapshot.way}", allowed="beam", fix="serve it as it is")
    if torch.device(snapshot.device).type != "cpu":
        raise InputError(f"device {snapshot.device}", allowed="cpu: a GPU's searches are recorded as graphs")
    if not hasattr(torch._inductor, "aoti_compile_and_package"):
        raise InputError(f"torch {torch.__version__} has no AOTInductor packages", fix="install a newer torch")
    compilers = [os.environ.get("CXX", ""), "g++", "clang++"]
    if not any(name and shutil.which(name) for name in compilers):
        raise InputError("no C++ compiler is here", fix="apt-get install g++, or set CXX")


def _compiled_aside(run: Path, out: Path, asked: Asked, minutes: float) -> dict[str, str]:
    """Compile in another process -> programs that could not be made, and why."""
    words = [sys.executable, "-m", "sidera.engine.compiling_worker", str(run), str(out), *map(str, astuple(asked))]
    with (out / "log").open("wb") as log:
        worker = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            worker.wait(60 * minutes)
        except subprocess.TimeoutExpired:
            raise InputError(
                f"compiling took longer than {minutes:g} minutes and was ended", fix="give it more: --minutes 60"
            ) from None
        finally:
            _end(worker)
    try:
        refused: dict[str, str] = json.loads((out / "refused.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        last = (out / "log").read_text(encoding="utf-8", errors="replace").strip().split("\n")[-1][:300]
        raise InputError(f"compiling failed: {last}", fix="serve the run as it is: answers are equal") from None
    return refused


def _end(worker: subprocess.Popen[bytes]) -> None:
    """The worker and the compilers that it started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
    elif worker.poll() is None:
        worker.kill()
    worker.wait()


# -- opening ---------------------------------------------------------------------------------------------------------


def open_compiled(run: Path, snapshot: Snapshot, asked: Asked, key: str | Path | None = None) -> CompiledSearch | str:
    """The programs of a run folder, or why answers are computed step by step; "" where there are none."""
    folder = run / FOLDER
    if not folder.exists():
        return ""
    try:
        manifest = artifacts.read_manifest(folder, KIND)
        info = dict(manifest.info)
        signature, made = info.pop("signature"), _Made(**info)
        secret = _key(key, make=False)
        if secret is None or not hmac.compare_digest(made.signed(secret), str(signature)):
            return f"{folder} is not signed by a key that this machine has"
        why = _why_not(made, snapshot, asked)
        if why:
            return why
        programs = {}
        for name, digest in made.programs.items():
            content = artifacts.file_of(folder, manifest, f"{name}.pt2").read_bytes()
            if _digest(content) != digest:
                return f"{folder / name}.pt2 was changed"
            programs[name] = _loaded(content)
        return opened(snapshot, programs, made.shape)
    except (ArtifactError, OSError, TypeError, KeyError, ValueError, RuntimeError) as error:
        return f"{folder} cannot be opened ({str(error).splitlines()[0] if str(error) else type(error).__name__})"


def opened(snapshot: Snapshot, programs: Mapping[str, Program], shape: SearchShape) -> CompiledSearch:
    return CompiledSearch(programs, shape, sample_of(snapshot), item_tables(snapshot.generator))


def _why_not(made: _Made, snapshot: Snapshot, asked: Asked) -> str:
    """Why these programs are not this snapshot's; "" where they are."""
    here = hardware_tag()
    pairs: list[tuple[str, Any, str]] = [
        ("weights", made.model, snapshot.version),
        ("a search of", str(Asked(**made.asked)), str(asked)),
        ("codebook", made.codebook_id, snapshot.catalog.codebook_id),
    ]
    pairs += [(name, made.tag.get(name), value) for name, value in here.items()]
    for name, theirs, ours in pairs:
        if theirs != ours:
            return f"exported for {name} {theirs}, this is {ours}: run `sidera export` again"
    return ""


def hardware_tag() -> dict[str, str]:
    """What a program's code depends on, and what it is asked for."""
    flags = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text(encoding="utf-8").split("\n") if line.startswith(("flags", "Feat"))]
        flags = " ".join(sorted(lines[0].split(":", 1)[1].split())) if lines else ""
    return {
        "programs": FORMAT,
        "torch": torch.__version__,
        "system": platform.system(),
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "flags": _digest(flags.encode())[:16],
    }


def _loaded(content: bytes) -> Program:
    """The program in these bytes: they were checked, a file might change until it is read."""
    if len(content) > MOST_BYTES:
        raise ValueError(f"a program of {len(content):,} bytes")
    with tempfile.TemporaryDirectory(prefix="sidera-program-") as folder:
        file = Path(folder) / "program.pt2"
        file.write_bytes(content)
        return direct(torch._inductor.aoti_load_package(str(file)))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _key(file: str | Path | None, make: bool) -> Any:
    """The key that signs: a file's, or this machine's own, made where there is none and ``make``; else None."""
    place = own_key() if file is None else Path(file)
    if file is None and make and not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new:
                new.write(secrets.token_hex(KEY_BYTES).encode())
        except FileExistsError:
            pass  # another export made it meanwhile
    try:
        content = place.read_bytes().strip()
    except FileNotFoundError:
        if file is None and not make:
            return None
        raise InputError(f"no key at {str(place)!r}", fix="head -c 32 /dev/urandom | base64 > FILE") from None
    if len(content) < KEY_BYTES:
        raise InputError(f"the key in {str(place)!r} has {len(content)} bytes", allowed=f"{KEY_BYTES} or more")
    return content


def own_key() -> Path:
    """Where this user's key of this machine lies."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "sidera" / "export.key"
