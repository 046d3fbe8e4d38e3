"""One file over HTTP: resumed after a cut, retried, checked for its length, whole under its name or not there at all.

While it comes it is called ``NAME.part``; ``NAME.part.json`` beside it remembers the address and the version (ETag or
Last-Modified) that the bytes are of. A second try asks for the rest of that version only (``If-Range``): where the file
has changed, or the server knows no ranges or names no version, it comes from the beginning.

Certificates are checked. A redirect may lead to http and https, and never from https to http. Proxies are those of the
environment (``https_proxy``, ``http_proxy``, ``no_proxy``).
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sidera.core import InputError
from sidera.disk import try_lock

BLOCK = 1 << 18  # bytes read at a time
SPARE = 1 << 24  # bytes of the disk left free
MAGIC = {".gz": b"\x1f\x8b", ".tgz": b"\x1f\x8b", ".zip": b"PK"}
RETRIED = (408, 425, 429, 500, 502, 503, 504)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Patience:
    """How long a download is tried."""

    tries: int = 5  # in a row without a new byte
    timeout: float = 30.0  # seconds without a byte
    first_wait: float = 1.0  # seconds before the second try; doubled each time
    say_every: float = 5.0  # seconds between two lines of progress


PATIENT = Patience()


def download(
    url: str, path: Path, say: Say, patience: Patience = PATIENT, accept: Callable[[Path], None] | None = None
) -> None:
    """Write the file at ``url`` to ``path``; InputError says what stood in the way. What has come is kept for later.

    ``accept`` sees the whole file before it takes its name; where it raises, the file is thrown away.
    """
    check_address(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        with _alone(part) as stream:
            _persist(url, path, part, stream, say, patience)
            _check_kind(url, path, stream)
            os.fsync(stream.fileno())
        if accept is not None:
            accept(part)
    except Unwanted:
        _forget(part)
        raise
    except InputError:
        if part.is_file() and not part.stat().st_size:
            _forget(part)
        raise
    os.replace(part, path)
    _memo(part).unlink(missing_ok=True)


def _persist(url: str, path: Path, part: Path, stream: IO[bytes], say: Say, patience: Patience) -> None:
    failures, had = 0, -1
    while True:
        try:
            _attempt(url, stream, part, say, patience)
            return
        except _Retry as problem:
            size = stream.seek(0, os.SEEK_END)
            failures = 1 if size > had else failures + 1
            had = max(had, size)
            if failures >= patience.tries:
                raise InputError(
                    f"cannot fetch {url}: {problem} ({failures} tries)",
                    fix=f"give the same command again, it goes on after {size:,} bytes; or use --from MIRROR",
                ) from None
            wait = max(problem.wait, patience.first_wait * 2 ** (failures - 1))
            say(f"{path.name}: {problem}; trying again in {wait:.0f} s")
            time.sleep(wait)


def part_of(path: Path) -> Path:
    """What a file is called until it is whole."""
    return path.with_name(path.name + ".part")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _memo(part).unlink(missing_ok=True)


def check_address(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(f"address {url!r} cannot be fetched", allowed="http:// and https:// addresses")


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Unwanted(InputError):
    """The whole file is here and is not the one that was wanted: keeping its bytes would not help."""


class _Retry(Exception):
    """Something that may be better next time."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = (urllib.parse.urlsplit(address).scheme for address in (req.full_url, newurl))
        if new not in ("http", "https") or (old == "https" and new == "http"):
            raise InputError(
                f"{req.full_url} redirects to {newurl!r}",
                allowed="http and https, and no step from https to http",
                fix="give a mirror with --from ADDRESS",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _attempt(url: str, stream: IO[bytes], part: Path, say: Say, patience: Patience) -> None:
    """One request; returns when the file is whole, raises _Retry when it is not."""
    have, version = stream.seek(0, os.SEEK_END), _version_of(part, url)
    headers = {"User-Agent": "sidera", "Accept-Encoding": "identity"}
    if have and version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    try:
        answer = _opener().open(urllib.request.Request(url, headers=headers), timeout=patience.timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and error.headers.get("Content-Range", "").strip() == f"bytes */{have}":
                return  # all of it was here already
            _refused(error, url, stream)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        _lost(error, url)
    with answer:
        begin, total = _where(answer, have)
        stream.truncate(begin)
        stream.seek(begin)
        if not begin:
            _remember(part, url, answer.headers)
        _check_space(part, total, begin)
        _copy(answer, stream, begin, total, _Progress(part.name.removesuffix(".part"), begin, total, say, patience))


def _opener() -> urllib.request.OpenerDirector:
    context = urllib.request.HTTPSHandler(context=ssl.create_default_context())
    return urllib.request.build_opener(_Redirects(), context)


def _where(answer: Any, have: int) -> tuple[int, int | None]:
    """(place of the first byte that comes, size of the whole file if the server says it)."""
    length = answer.headers.get("Content-Length")
    coming = int(length) if length and length.isdigit() else None
    if answer.status != 206:
        return 0, coming
    match = _RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    if match is None or int(match[1]) != have:
        raise _Retry("the server sent another part than was asked for")
    return have, int(match[3]) if match[3] != "*" else None if coming is None else have + coming


def _copy(answer: Any, stream: IO[bytes], begin: int, total: int | None, progress: _Progress) -> None:
    size = begin
    try:
        while block := answer.read(BLOCK):
            stream.write(block)
            size += len(block)
            progress.at(size)
    except (http.client.HTTPException, OSError) as error:
        if isinstance(error, OSError) and error.errno == 28:  # the disk is full
            raise
        raise _Retry(f"the connection broke after {size:,} bytes ({type(error).__name__})") from None
    finally:
        stream.flush()
    if total is not None and size < total:
        raise _Retry(f"the connection ended after {size:,} of {total:,} bytes")
    if total is not None and size > total:
        stream.truncate(0)
        raise _Retry(f"{size:,} bytes came where {total:,} were announced")
    progress.done(size)


def _refused(error: urllib.error.HTTPError, url: str, stream: IO[bytes]) -> None:
    if error.code == 416:  # what is here is longer than the file: it is another one
        stream.truncate(0)
        raise _Retry("the file has changed")
    if error.code in RETRIED:
        after = error.headers.get("Retry-After", "")
        raise _Retry(f"the server answers {error.code}", min(float(after), 120) if after.isdigit() else 0.0)
    fix = "the address may have moved: see the page that `sidera fetch --list` names, and give --from ADDRESS"
    raise InputError(f"{url} answers {error.code} {error.reason}", fix=fix) from None


def _lost(error: Exception, url: str) -> None:
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        raise InputError(
            f"the certificate of {urllib.parse.urlsplit(url).netloc} is not valid ({reason.verify_message})",
            fix="set SSL_CERT_FILE where your network has its own certificate, or give a mirror with --from ADDRESS",
        ) from None
    raise _Retry(f"no connection ({reason or type(error).__name__})") from None


def _check_space(part: Path, total: int | None, begin: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - begin + SPARE > free:
        need = f"{(total - begin) / 1e6:,.0f} MB"
        raise InputError(
            f"{part.name.removesuffix('.part')} needs {need}, {part.parent} has {free / 1e6:,.0f} MB free",
            fix="free space, or give --out a folder on another disk",
        )


def _check_kind(url: str, path: Path, stream: IO[bytes]) -> None:
    """A page that asks to log in comes with code 200, too."""
    magic = MAGIC.get(path.suffix.lower())
    stream.seek(0)
    start = stream.read(64)
    if magic is not None and not start.startswith(magic):
        raise Unwanted(
            f"what {url} gives is no {path.suffix} file (it begins with {start[:20]!r})",
            fix="open the address in a browser: the publisher may ask for an account; or give --from ADDRESS",
        )


def _memo(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _remember(part: Path, url: str, headers: Any) -> None:
    version = headers.get("ETag") or ""
    if not version or version.startswith("W/"):  # a weak tag is not allowed in If-Range
        version = headers.get("Last-Modified") or ""
    _memo(part).write_text(json.dumps({"url": url, "version": version}), encoding="utf-8")


def _version_of(part: Path, url: str) -> str:
    """The version that the bytes at hand are of; "" when it is not known."""
    try:
        memo = json.loads(_memo(part).read_text(encoding="utf-8"))
        return str(memo["version"]) if memo["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[IO[bytes]]:
    """The part file, open for reading and writing by this process alone."""
    with part.open("a+b") as made:
        made.flush()
    with part.open("r+b") as stream:
        if not try_lock(stream):
            raise InputError(f"{part} is being fetched by another process", fix="wait for it")
        yield stream


class _Progress:
    """A line of progress every few seconds."""

    def __init__(self, name: str, begin: int, total: int | None, say: Say, patience: Patience) -> None:
        self.name, self.begin, self.total, self.say, self.every = name, begin, total, say, patience.say_every
        self.started = self.said = time.monotonic()
        if begin:
            say(f"{name}: going on after {begin / 1e6:,.1f} MB")

    def at(self, size: int) -> None:
        now = time.monotonic()
        if now - self.said < self.every:
            return
        self.said = now
        speed = (size - self.begin) / max(now - self.started, 1e-9)
        rest = f", {max(self.total - size, 0) / max(speed, 1):,.0f} s left" if self.total else ""
        whole = f" of {self.total / 1e6:,.1f}" if self.total else ""
        self.say(f"{self.name}: {size / 1e6:,.1f}{whole} MB, {speed / 1e6:,.1f} MB/s{rest}")

    def done(self, size: int) -> None:
        self.say(f"{self.name}: {size:,} bytes")
