"""Covers and frames of a world's items, drawn on demand: what an image encoder may learn from, and nothing more.

    covers = cover(world, np.arange(64))             # (64, 32, 32, 3) uint8
    stills = frames(world, np.arange(64), count=3)   # (64, 3, 32, 32, 3) uint8
    write_images(world, "data/world/images")         # cover/KEY.png and frames/KEY.png (frames side by side)

What shows, and how:

* main topic: hue and outline (number of lobes) of the large figure; sub-topic: its stripes;
* second topic: a small figure of its own, as large as the topic's weight (which no text tells), and a tint of the
  background; in frames it takes the main figure's place as often as its weight says;
* creator: two frame colours and their dashes, the hue near to that of the creator's region;
* clickbait: covers only: a loud arrow and a staring face, the larger the more it promises; frames show what is there;
* quality: contrast, sharpness and little noise.

Place, size and turn of the figures, light and background are luck. Everything is drawn from (seed, item) with the
world's counters and from +, -, *, / and square roots alone (outlines by powers of a complex number, turns by random
unit vectors), so pictures are the same to the bit on every machine, like the log (:mod:`sidera.sim.portable`).

Shape legend: n items · S side of a picture in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from sidera.core import InputError
from sidera.sim.portable import Floats, sigmoid
from sidera.sim.randomness import Bits, bits, bits_table, keys, normal, sub_keys, uniform
from sidera.sim.world import World

SIDE = 32
FRAMES = 3
BLOCK = 128  # items drawn side by side: canvases stay in the processor's cache
MAX_FRAMES = 64
Pixels = NDArray[np.uint8]
_HALF, _ONE, _TWO = np.float32(0.5), np.float32(1), np.float32(2)


def cover(world: World, item_ids: NDArray[np.integer]) -> Pixels:
    """(n,) item numbers -> (n, S, S, 3)."""
    ids = _checked(world, item_ids)
    parts = [_draw(world, part, keys(world.seed, "covers", part), loud=True) for part in _blocks(ids)]
    return np.concatenate([np.empty((0, SIDE, SIDE, 3), np.uint8), *parts])


def frames(world: World, item_ids: NDArray[np.integer], count: int = FRAMES) -> Pixels:
    """(n,) item numbers -> (n, count, S, S, 3); frame j is the same whatever ``count``."""
    if not 1 <= count <= MAX_FRAMES:
        raise InputError(f"count = {count!r} frames", allowed=f"whole numbers from 1 to {MAX_FRAMES}")
    ids = _checked(world, item_ids)
    shots = []
    for number in range(count):
        parts = [
            _draw(world, part, sub_keys(keys(world.seed, "frames", part), number), loud=False) for part in _blocks(ids)
        ]
        shots.append(np.concatenate([np.empty((0, SIDE, SIDE, 3), np.uint8), *parts]))
    return np.stack(shots, axis=1)


def write_images(world: World, folder: str | Path, count: int = FRAMES) -> int:
    """PNG files named by item key, ``cover/KEY.png`` and ``frames/KEY.png``; returns the number of files.

    Keys are percent-encoded where a file name could not hold them. ``count`` 0 writes covers only.
    """
    try:
        from PIL import Image  # nothing else here needs it
    except ImportError:
        raise InputError("pictures need Pillow, which is not installed", fix="pip install pillow") from None

    folder, names, written = Path(folder), [quote(key, safe="") for key in world.item_keys()], 0
    for kind in ("cover", "frames")[: 1 + (count > 0)]:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for ids in _blocks(np.arange(world.items.num_items)):
        drawn = {"cover": cover(world, ids)}
        if count:
            stills = frames(world, ids, count)  # side by side: (n, S, count * S, 3)
            drawn["frames"] = stills.transpose(0, 2, 1, 3, 4).reshape(len(ids), SIDE, count * SIDE, 3)
        for kind, pictures in drawn.items():
            for item, picture in zip(ids.tolist(), pictures, strict=True):
                Image.fromarray(picture).save(folder / kind / f"{names[item]}.png", compress_level=1)
                written += 1
    return written


def _checked(world: World, item_ids: NDArray[np.integer]) -> NDArray[np.int64]:
    ids = np.asarray(item_ids, dtype=np.int64)
    limit = world.items.num_items
    if ids.ndim != 1 or (len(ids) and not 0 <= ids.min() <= ids.max() < limit):
        raise InputError(f"item numbers of shape {ids.shape}", allowed=f"a list of numbers from 0 to {limit - 1}")
    return ids


def _blocks(ids: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(ids), BLOCK):
        yield ids[start : start + BLOCK]


def _draw(world: World, ids: NDArray[np.int64], luck: Bits, loud: bool) -> Pixels:
    """One picture per item; ``luck`` has its key, ``loud`` adds what clickbait adds to covers."""
    items, config = world.items, world.config
    shift = uniform(bits_table(luck, 0, 16))  # (n, 16) of this picture
    main, second, weight = items.topic[ids], items.second_topic[ids], items.main_weight[ids]
    if not loud:  # a frame shows one of its topics
        swapped = shift[:, 15] > weight
        main, second = np.where(swapped, second, main), np.where(swapped, main, second)
    brightness = np.float32(0.25) + np.float32(0.35) * shift[:, 0]
    canvas = _background(_hues(world, second), brightness, _unit_vectors(luck, 16))
    turn = _unit_vectors(luck, 17)
    size = np.float32(0.42) + np.float32(0.16) * shift[:, 1]
    spot = np.float32(0.5) * (shift[:, 2:4] - _HALF)
    _figure(canvas, world, main, spot, size, turn, items.subtopic[ids])
    corner = np.float32(0.62) * np.sign(shift[:, 4:6] - _HALF)
    _figure(canvas, world, second, corner, np.float32(0.7) * (_ONE - weight), _unit_vectors(luck, 18), None)
    if loud:
        bait = sigmoid(np.float32(2) * items.clickbait[ids] / np.float32(max(config.clickbait_std, 1e-6)))
        _arrow(canvas, spot, bait * (np.float32(0.7) + np.float32(0.3) * shift[:, 6]))
        _face(canvas, -corner, bait * (np.float32(0.7) + np.float32(0.3) * shift[:, 7]))
    _border(canvas, world, ids)
    return _developed(canvas, world, ids, luck)


def _grid() -> tuple[Floats, Floats]:
    """x and y of every pixel, (1, S, S) each, -1 .. 1."""
    line = (_TWO * np.arange(SIDE, dtype=np.float32) + _ONE) / np.float32(SIDE) - _ONE
    return np.broadcast_to(line, (1, SIDE, SIDE)), np.broadcast_to(line[:, None], (1, SIDE, SIDE))


def _wide(values: Floats) -> Floats:
    """(n,) -> (n, 1, 1)."""
    return np.asarray(values, dtype=np.float32)[:, None, None]


def _unit_vectors(luck: Bits, counter: int) -> Floats:
    """(n, 2) random directions."""
    pair: Floats = normal(bits_table(luck, 2 * counter, 2).ravel()).reshape(-1, 2)
    length: Floats = np.sqrt(pair[:, :1] * pair[:, :1] + pair[:, 1:] * pair[:, 1:] + np.float32(1e-12))
    return pair / length


def _colours(hue: Floats, saturation: float = 0.8) -> Floats:
    """(n,) hues, whole turns -> (n, 3) of full value."""
    turns = hue[:, None] + np.array([0, 2 / 3, 1 / 3], dtype=np.float32)
    wave = np.abs(np.float32(6) * (turns - np.floor(turns)) - np.float32(3)) - _ONE
    return _ONE - np.float32(saturation) * (_ONE - np.clip(wave, np.float32(0), _ONE))


def _hues(world: World, topics: NDArray[np.integer]) -> Floats:
    """(n,) hue of each topic: golden-ratio steps from a start that belongs to the world."""
    start = uniform(bits(keys(world.seed, "palette", np.zeros(1, np.int64)), 0))
    return start + np.multiply(topics, np.float32(0.618034), dtype=np.float32)


def _paint(canvas: Floats, mask: Floats, colours: Floats) -> None:
    """Lay colours (n, 3) over the canvas (n, 3, S, S) where the mask (n, S, S) is 1."""
    for channel in range(3):
        canvas[:, channel] += mask * (_wide(colours[:, channel]) - canvas[:, channel])


def _background(hue: Floats, brightness: Floats, direction: Floats) -> Floats:
    """(n, 3, S, S): a dim slope of a neighbouring hue."""
    x, y = _grid()
    slope = _wide(direction[:, 0]) * x + _wide(direction[:, 1]) * y
    light = _wide(brightness) * (_ONE + np.float32(0.4) * slope)
    return light[:, None] * _colours(hue + np.float32(0.1), 0.45)[:, :, None, None]


def _figure(
    canvas: Floats,
    world: World,
    topics: NDArray[np.integer],
    spot: Floats,
    size: Floats,
    turn: Floats,
    subtopic: NDArray[np.integer] | None,
) -> None:
    """A figure with 2 .. 7 lobes, striped as its sub-topic asks."""
    x, y = _grid()
    x, y = x - _wide(spot[:, 0]), y - _wide(spot[:, 1])
    u = _wide(turn[:, 0]) * x - _wide(turn[:, 1]) * y
    v = _wide(turn[:, 1]) * x + _wide(turn[:, 0]) * y
    radius = np.sqrt(u * u + v * v) + np.float32(1e-6)
    lobes = 2 + topics % 6
    cosine = _lobe_cosine(u / radius, v / radius, lobes)
    depth = np.float32(0.25) + np.float32(0.1) * (topics // 6 % 3).astype(np.float32)
    outline = _wide(size) * (_ONE - _wide(depth) + _wide(depth) * cosine)
    mask = np.clip(np.float32(SIDE / 3) * (outline - radius), np.float32(0), _ONE)
    colours = _colours(_hues(world, topics))
    _paint(canvas, mask, colours)
    if subtopic is not None:
        _paint(canvas, mask * _stripes(world, u, v, subtopic), np.float32(0.15) * colours)


def _lobe_cosine(c: Floats, s: Floats, lobes: NDArray[np.integer]) -> Floats:
    """cos(k * angle) from cos and sin of the angle, by multiplying complex numbers; k per item, at most 7."""
    real, imaginary, result = c, s, c
    for power in range(2, 8):
        real, imaginary = real * c - imaginary * s, real * s + imaginary * c
        result = np.where((lobes >= power)[:, None, None], real, result)
    return result


def _stripes(world: World, u: Floats, v: Floats, subtopic: NDArray[np.integer]) -> Floats:
    """(n, S, S) 0 .. 1: direction, width and crossing of the stripes belong to the sub-topic, drawn by the world."""
    own = keys(world.seed, "stripes", subtopic.astype(np.int64))
    direction = _unit_vectors(own, 0)
    per_width = np.float32(1.5) + np.float32(2.5) * uniform(bits(own, 8))  # stripes per half picture
    along = _wide(direction[:, 0]) * u + _wide(direction[:, 1]) * v
    across = _wide(direction[:, 0]) * v - _wide(direction[:, 1]) * u
    crossed = _wide((uniform(bits(own, 9)) > _HALF).astype(np.float32))
    return np.maximum(_wave(_wide(per_width) * along), crossed * _wave(_wide(per_width) * across))


def _wave(phase: Floats) -> Floats:
    """1 on a third of every period, 0 on the rest, with soft edges."""
    saw = np.abs(phase - np.floor(phase) - _HALF)
    return np.clip(np.float32(8) * (np.float32(0.17) - saw), np.float32(0), _ONE)


def _arrow(canvas: Floats, spot: Floats, loudness: Floats) -> None:
    """A red arrow from above to the main figure, as long and thick as it is loud."""
    x, y = _grid()
    x, y = x - _wide(spot[:, 0]), _wide(spot[:, 1]) - y  # y grows upwards from the tip
    size = _wide(loudness)
    head = np.minimum(np.float32(0.7) * y - np.abs(x), np.float32(0.45) * size - y)
    shaft = np.minimum(np.float32(0.14) * size - np.abs(x), np.minimum(y - np.float32(0.3) * size, size - y))
    mask = np.clip(np.float32(SIDE / 2) * np.maximum(head, shaft), np.float32(0), _ONE)
    mask *= np.clip(np.float32(4) * (size - np.float32(0.25)), np.float32(0), _ONE)
    _paint(canvas, mask, np.broadcast_to(np.array([1, 0.1, 0.05], np.float32), (len(canvas), 3)))


def _face(canvas: Floats, spot: Floats, loudness: Floats) -> None:
    """A pale disc with two wide eyes and an open mouth."""
    x, y = _grid()
    x, y = x - _wide(spot[:, 0]), y - _wide(spot[:, 1])
    size = np.float32(0.5) * _wide(loudness)
    shown = np.clip(np.float32(4) * (_wide(loudness) - np.float32(0.3)), np.float32(0), _ONE)
    eye = np.abs(x) - np.float32(0.4) * size
    discs = (  # distance from the centre, radius in sizes, colour
        (np.sqrt(x * x + y * y), 1.0, (1.0, 0.85, 0.65)),
        (np.sqrt(eye * eye + (y + np.float32(0.25) * size) ** 2), 0.26, (0.05, 0.05, 0.1)),
        (np.sqrt(x * x + (y - np.float32(0.45) * size) ** 2), 0.28, (0.6, 0.05, 0.1)),
    )
    for distance, share, colour in discs:
        mask = shown * np.clip(np.float32(SIDE / 2) * (np.float32(share) * size - distance), np.float32(0), _ONE)
        _paint(canvas, mask, np.broadcast_to(np.array(colour, np.float32), (len(canvas), 3)))


def _border(canvas: Floats, world: World, ids: NDArray[np.int64]) -> None:
    """Two pixels of the creator's colours, dashed."""
    items = world.items
    own = keys(world.seed, "brands", items.creator[ids].astype(np.int64))
    of_region = items.region[ids].astype(np.float32) / np.float32(world.config.num_regions)
    first = _colours(of_region + np.float32(0.12) * (uniform(bits(own, 0)) - _HALF))
    other = _colours(uniform(bits(own, 1)), 0.6) * (np.float32(0.3) + np.float32(0.7) * uniform(bits(own, 2)))[:, None]
    period = np.float32(2) + np.float32(6) * uniform(bits(own, 3))
    x, y = _grid()
    dash = _wave((x + y) * _wide(period) * _HALF)
    edge = (np.maximum(np.abs(x), np.abs(y)) > np.float32(1 - 4 / SIDE)).astype(np.float32)
    _paint(canvas, np.broadcast_to(edge, (len(canvas), SIDE, SIDE)), first)
    _paint(canvas, edge * dash, other)


def _developed(canvas: Floats, world: World, ids: NDArray[np.int64], luck: Bits) -> Pixels:
    """Contrast, sharpness and noise by the item's quality; then bytes."""
    items, config = world.items, world.config
    spread = np.float32(max(config.quality_std, 1e-6))
    grade = sigmoid(np.float32(1.5) * items.quality[ids] / spread + np.float32(0.5) * normal(bits(luck, 60)))  # (n,)
    grade_wide = grade[:, None, None, None]
    padded = np.pad(canvas, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    blurred = padded[:, :, :-2, 1:-1] + padded[:, :, 2:, 1:-1] + padded[:, :, 1:-1, :-2] + padded[:, :, 1:-1, 2:]
    blurred = (blurred + canvas) * np.float32(0.2)
    canvas = blurred + grade_wide * (canvas - blurred)
    canvas = _HALF + (np.float32(0.6) + np.float32(0.6) * grade_wide) * (canvas - np.float32(0.45))
    grain = bits_table(luck, 128, SIDE * SIDE).reshape(-1, 1, SIDE, SIDE)
    noise = uniform(grain) + uniform(grain << np.uint64(21)) - _ONE  # triangular, -1 .. 1
    canvas += np.float32(0.25) * (_ONE - grade_wide) * noise
    bytes_ = np.floor(np.clip(canvas, np.float32(0), _ONE) * np.float32(255.999)).astype(np.uint8)
    return np.ascontiguousarray(bytes_.transpose(0, 2, 3, 1))
