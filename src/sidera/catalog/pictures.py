"""Pictures of items out of a folder: ``cover/KEY.png`` and ``frames/KEY.png`` (square frames side by side).

KEY is the item's key, percent-encoded where a file name could not hold it; .png, .jpg, .jpeg and .webp are read. A
picture of any size and colour kind is made square RGB of one size. A picture that cannot be read is named, with its
item's key and the reason, and counted; the item goes without, like items that have none. Pillow (extra
``pictures``) is imported only here and only when pictures are asked for.

Shape legend: N items · P pictures of an item · S side in pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from sidera.core import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
COLOURS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")  # 8 bits a channel
MAX_FRAMES = 64
NAMED = 20  # problems that a report spells out


@dataclass(frozen=True)
class Pictures:
    pixels: Tensor  # (N, P, S, S, 3) uint8
    mask: Tensor  # (N, P) bool, True = there
    problems: list[str] = field(default_factory=list)  # "item KEY: FILE: why", one per picture that was not read
    num_missing: int = 0  # items without a file

    def report(self) -> dict[str, object]:
        return {
            "items_with": int(self.mask.any(1).sum()),
            "items_without_file": self.num_missing,
            "unreadable": len(self.problems),
            "unreadable_named": self.problems[:NAMED],
        }


def read_pictures(folder: str | Path, kind: str, item_keys: Sequence[str] | np.ndarray, size: int) -> Pictures:
    """``kind`` "cover" (P = 1) or "frames". InputError when the folder is missing or no item has a readable picture."""
    files = picture_files(folder, kind)
    wanted = [files.get(quote(str(key), safe="")) for key in item_keys]
    read: list[np.ndarray | None] = []
    problems = []
    for key, file in zip(item_keys, wanted, strict=True):
        found = None
        if file is not None:
            try:
                found = _frames_of(file, size) if kind == "frames" else _square(file, size)[None]
            except (OSError, ValueError, SyntaxError) as error:
                problems.append(f"item {str(key)!r}: {file.name}: {str(error) or type(error).__name__}")
        read.append(found)
    most = max((len(found) for found in read if found is not None), default=0)
    if not most:
        raise InputError(
            f"no item has a readable picture in {str(Path(folder) / kind)!r} ({len(files)} files,"
            f" {len(problems)} unreadable{': ' + problems[0] if problems else ''})",
            allowed="files named by item key, such as " + quote(str(item_keys[0]), safe="") + ".png",
        )
    pixels = np.zeros((len(read), most, size, size, 3), np.uint8)
    mask = np.zeros((len(read), most), bool)
    for row, found in enumerate(read):
        if found is not None:
            pixels[row, : len(found)], mask[row, : len(found)] = found, True
    num_missing = sum(file is None for file in wanted)
    return Pictures(torch.from_numpy(pixels), torch.from_numpy(mask), problems, num_missing)


def picture_files(folder: str | Path, kind: str) -> dict[str, Path]:
    """File stem -> file."""
    place = Path(folder) / kind
    if not place.is_dir():
        raise InputError(
            f"no picture folder at {str(place)!r}", fix="check [catalog.contrastive] image_folder and inputs"
        )
    return {file.stem: file for file in sorted(place.iterdir()) if file.suffix.lower() in SUFFIXES}


def pictures_digest(folder: str | Path, kinds: Sequence[str]) -> str:
    """Names the content of the files, wherever they lie."""
    sha = hashlib.sha256()
    for kind in kinds:
        for name, file in picture_files(folder, kind).items():
            sha.update(f"{kind}/{name}".encode() + hashlib.sha256(file.read_bytes()).digest())
    return sha.hexdigest()[:16]


def _open(file: Path):  # type: ignore[no-untyped-def]  # Pillow is not there to name a type
    try:
        from PIL import Image
    except ImportError:
        raise InputError("pictures need Pillow, which is not installed", fix="pip install pillow") from None
    try:
        picture = Image.open(file)
        picture.load()
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None
    if picture.mode not in COLOURS:
        raise ValueError(f"colour kind {picture.mode} (8 bits a channel are read)")
    return picture.convert("RGB")


def _square(file: Path, size: int) -> np.ndarray:
    """(S, S, 3), the middle of a picture that is not square."""
    picture = _open(file)
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return np.asarray(picture.resize((size, size), box=(left, top, left + side, top + side)))


def _frames_of(file: Path, size: int) -> np.ndarray:
    """(P, S, S, 3) of a strip whose width is a multiple of its height."""
    picture = _open(file)
    count, rest = divmod(picture.width, picture.height)
    if rest or not 1 <= count <= MAX_FRAMES:
        raise ValueError(f"{picture.width} x {picture.height} pixels are not 1 to {MAX_FRAMES} square frames")
    side = picture.height
    return np.stack(
        [np.asarray(picture.resize((size, size), box=(n * side, 0, (n + 1) * side, side))) for n in range(count)]
    )
