"""Text files as streams of UTF-8: unpacked under a budget, their encoding found by one pass over the bytes.

The pass (:func:`survey`) reads the whole file once, in blocks, before anything is parsed. It decides the encoding: what
was said, else a byte order mark, else UTF-8 if every byte is, else UTF-16 by where its zero bytes stand, else Windows
Latin (cp1252) if foreign letters stand alone between ASCII ones, as they do in western languages; else the file is
refused, because a guess among the others would turn letters into other letters.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from sidera.core import InputError
from sidera.data.intake.sources import Source

BLOCK = 4 << 20  # bytes
SHORT = 64 << 10  # bytes: shorter lines are not measured
MAX_LINE = 32 << 20  # bytes of the longest line that is read
MARKS = (  # longest first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
PACKED_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error, OSError)


@dataclass(frozen=True)
class TextFile:
    """A text file that has been looked through."""

    source: Source
    encoding: str
    said: str  # what the reader should know of the encoding; "": nothing
    size: int  # bytes of UTF-8
    longest_line: int  # bytes
    quotes: int  # quotation marks
    head: str  # the first lines

    def open(self) -> BinaryIO:
        """A stream of UTF-8 without a byte order mark."""
        plain = self.encoding == "utf-8" and not self.source.compression
        if plain:
            file = self.source.path.open("rb")
            if file.read(3) != codecs.BOM_UTF8:
                file.seek(0)
            return file
        return io.BufferedReader(_Stream(self.blocks()), BLOCK)

    def blocks(self) -> Iterator[bytes]:
        """The content as UTF-8, in blocks."""
        return _decoded(self.source, self.encoding)


def survey(source: Source, encoding: str = "") -> TextFile:
    """Look a text file through; InputError when it is empty, packed badly, too large, or no text."""
    codec, said = (codecs.lookup(encoding).name, "") if encoding else _find_encoding(source)
    size = longest = current = quotes = lines = 0
    head = b""
    for block in _decoded(source, codec):
        if b"\0" in block:
            line = lines + block.count(b"\n", 0, block.index(b"\0")) + 1
            raise InputError(
                f"line {line} of {source.path} holds a zero byte: it is no text, or damaged",
                fix="write it again as UTF-8, or name its encoding (--encoding utf-16)",
            )
        if len(head) < BLOCK // 4:
            head += block[: BLOCK // 4]
        size, lines, quotes = size + len(block), lines + block.count(b"\n"), quotes + block.count(b'"')
        longest, current = _longest_line(block, longest, current)
        if max(longest, current) > MAX_LINE:
            raise InputError(
                f"{source.path} has a line of over {MAX_LINE >> 20} MiB (line {lines + 1} or before)",
                allowed="one event, item or user a line",
                fix="break it up; for JSON, write one object a line",
            )
    if not size:
        raise InputError(f"{source.path} is empty", allowed="a header and at least one row")
    text = head.decode("utf-8", errors="ignore")
    return TextFile(source, codec, said, size, max(longest, current), quotes, text)


def _longest_line(block: bytes, longest: int, current: int) -> tuple[int, int]:
    """-> (bytes of the longest whole line so far, at least :data:`SHORT`; bytes of the unfinished last one)."""
    first = block.find(b"\n")
    if first < 0:
        return longest, current + len(block)
    longest = max(longest, current + first, SHORT)
    position = first
    while position + SHORT < len(block):  # stride over whole lines as long as they are short
        end = block.rfind(b"\n", position + 1, position + SHORT + 1)
        if end < 0:
            end = block.find(b"\n", position + SHORT + 1)
            if end < 0:
                break
            longest = max(longest, end - position - 1)
        position = end
    return longest, len(block) - block.rfind(b"\n") - 1


def _find_encoding(source: Source) -> tuple[str, str]:
    blocks = _unpacked(source)
    first = next(blocks, b"")
    for mark, name in MARKS:
        if first.startswith(mark):
            return name, "" if name == "utf-8" else f"{name}, by its byte order mark"
    sample = first[: 64 << 10]
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if max(even, odd) > 0.3 * max(1, len(sample) // 2) and min(even, odd) < 0.05 * max(even, odd):
        name = "utf-16-le" if odd > even else "utf-16-be"
        return name, f"{name}, by where its zero bytes stand"
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines = 0
    bad_line = 0
    foreign = lonely = 0
    block: bytes | None = first
    while block is not None:
        if not bad_line and not (block.isascii() and not decoder.getstate()[0]):
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                bad_line = lines + block.count(b"\n", 0, error.start) + 1
        if bad_line:
            foreign += len(re.findall(rb"[\x80-\xff]", block))
            lonely += len(re.findall(rb"(?<![\x80-\xff])[\x80-\xff](?![\x80-\xff])", block))
        lines += block.count(b"\n")
        block = next(blocks, None)
    if not bad_line and decoder.getstate()[0]:
        bad_line = max(1, lines)
    if not bad_line:
        return "utf-8", ""
    if foreign and lonely >= 0.8 * foreign:
        return "cp1252", f"line {bad_line} is not UTF-8: read as Windows Latin (cp1252); --encoding says otherwise"
    raise InputError(
        f"cannot read {source.path}: line {bad_line} is not UTF-8 text",
        allowed="UTF-8, or an encoding that is named",
        fix="name it, e.g. --encoding cp1251, gbk, shift_jis, latin-1",
    )


def _decoded(source: Source, encoding: str) -> Iterator[bytes]:
    plain = codecs.lookup(encoding).name == "utf-8"
    decoder = codecs.getincrementaldecoder("cp1252" if encoding == "cp1252" else encoding)()
    started = False
    lines = 0
    try:
        for block in _unpacked(source):
            if plain and block.isascii() and not decoder.getstate()[0]:
                text = block
            elif encoding == "cp1252":  # five bytes have no letter in it
                text = "".join(map(_CP1252.__getitem__, block)).encode()
            else:
                text = decoder.decode(block).encode()
            if not started and text:
                text, started = text.removeprefix(codecs.BOM_UTF8), True
            lines += text.count(b"\n")
            if text:
                yield text
        decoder.decode(b"", final=True)
    except UnicodeError as error:
        raise InputError(
            f"cannot read {source.path} as {encoding}: after line {lines}, {str(error).splitlines()[0]}",
            fix="name its encoding (--encoding NAME)",
        ) from None


_CP1252 = [bytes([byte]).decode("cp1252", errors="ignore") or chr(byte) for byte in range(256)]


def _unpacked(source: Source) -> Iterator[bytes]:
    """The bytes of a file, unpacked; InputError at a damaged end or beyond the budget."""
    budget, size = source.budget, 0
    try:
        with _opened(source) as file:
            while block := file.read(BLOCK):
                size += len(block)
                if (source.compression and size > budget) or (source.max_bytes and size > source.max_bytes):
                    raise source.swollen(f"over {size:,} bytes")
                yield block
    except PACKED_ERRORS as error:
        if isinstance(error, FileNotFoundError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"cannot read {source.path}: {reason} (after {size:,} bytes)", fix="fetch or write the file again"
        ) from None


def _opened(source: Source) -> BinaryIO:
    path = source.path
    if source.compression == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if source.compression == ".bz2":
        return cast(BinaryIO, bz2.open(path, "rb"))
    if source.compression == ".zst":
        import pyarrow as pa

        return cast(BinaryIO, pa.input_stream(path, compression="zstd"))
    return path.open("rb")


class _Stream(io.RawIOBase):
    """Blocks of bytes as a readable stream."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.waiting = blocks
        self.block = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.block:
            self.block = memoryview(next(self.waiting, b""))
        size = min(len(buffer), len(self.block))
        buffer[:size] = self.block[:size]
        self.block = self.block[size:]
        return size
