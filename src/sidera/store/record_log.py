"""An append-only file of records that survives a crash: what was appended is read back, or was never acknowledged.

A record is a header (magic, kind, length, checksum of the payload, checksum of the header) and its payload. A power cut
can leave the last record half written; reading stops before it and says how many bytes it left out. Damage anywhere
else is no crash but an edit or a broken disk, and is refused.

Trap: after a failed write the file ends in half a record, and the next append would bury it. So a failed append cuts
the file back to where it was, and if even that fails the log refuses further appends.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from sidera.core import ArtifactError
from sidera.disk import open_to_append
from sidera.disk import sync as sync_place

MAGIC = b"SDR1"
HEADER = struct.Struct("<4sBIII")  # magic, kind, payload bytes, crc of the payload, crc of what stands before
Record = tuple[int, bytes]  # kind, payload


class RecordLog:
    """The writing end. ``sync``: an append returns when the record is on the disk, not when the kernel has it."""

    def __init__(self, path: Path, sync: bool) -> None:
        new = not path.exists()
        self.path, self.sync = path, sync
        self._handle = open_to_append(path)
        self._broken = False
        if new and sync:
            sync_place(path.parent)  # the name of the file, too

    def append(self, kind: int, payload: bytes) -> None:
        """Write one record; OSError, and the file as before, when the disk does not take it."""
        if self._broken:
            raise OSError(f"{self.path} ends in half a record after a failed write; open the store again")
        front = struct.pack("<4sBII", MAGIC, kind, len(payload), zlib.crc32(payload))
        rest = memoryview(front + struct.pack("<I", zlib.crc32(front)) + payload)
        size = os.fstat(self._handle).st_size
        try:
            while rest:
                rest = rest[os.write(self._handle, rest) :]
            if self.sync:
                os.fsync(self._handle)
        except BaseException:
            self._broken = True
            os.ftruncate(self._handle, size)
            self._broken = False
            raise

    def close(self) -> None:
        os.close(self._handle)
        self._handle = -1  # a number that some other file could take


def read_records(path: Path) -> tuple[list[Record], int]:
    """All whole records, and the number of bytes of a torn one at the end. ArtifactError for damage elsewhere."""
    data = path.read_bytes()
    records: list[Record] = []
    place = 0
    while place < len(data):
        front = data[place : place + HEADER.size]
        if len(front) < HEADER.size or not any(data[place:]):  # cut short, or blocks that were never filled
            break
        magic, kind, length, crc, header_crc = HEADER.unpack(front)
        if magic != MAGIC or zlib.crc32(front[:-4]) != header_crc:
            raise _damaged(path, place)
        end = place + HEADER.size + length
        payload = data[place + HEADER.size : end]
        if len(payload) < length or (zlib.crc32(payload) != crc and end == len(data)):
            break
        if zlib.crc32(payload) != crc:
            raise _damaged(path, place)
        records.append((kind, payload))
        place = end
    return records, len(data) - place


def cut(path: Path, torn: int) -> None:
    """Take a torn record off the end."""
    if torn:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - torn)
            os.fsync(file.fileno())


def _damaged(path: Path, place: int) -> ArtifactError:
    return ArtifactError(
        f"{path} is damaged at byte {place}", allowed="a torn record at the very end", fix="restore it from a backup"
    )
