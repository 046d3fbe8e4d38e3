"""Pictures of a world: reproducible in any cut, frozen to the bit, and showing what they should and not more."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

from sidera.core import InputError
from small_world import small_world

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from world_images import SIDE, cover, frames, write_images

FROZEN = {"cover": "5d44c41f8645158f", "frames": "5b9b899e0b414d44"}


def test_a_picture_depends_on_world_and_item_alone() -> None:
    world = small_world()
    together = cover(world, np.arange(300))
    assert together.shape == (300, SIDE, SIDE, 3)
    assert together.dtype == np.uint8
    some = np.array([250, 3, 3, 140])
    assert np.array_equal(cover(world, some), together[some])
    assert not np.array_equal(cover(small_world(seed=1), some), together[some])
    stills = frames(world, some, 3)
    assert stills.shape == (4, 3, SIDE, SIDE, 3)
    assert np.array_equal(frames(world, some, 2), stills[:, :2])
    assert not np.array_equal(stills[:, 0], stills[:, 1])


def test_pictures_are_frozen_to_the_bit() -> None:
    world = small_world()
    drawn = {"cover": cover(world, np.arange(64)), "frames": frames(world, np.arange(16), 2)}
    assert {name: hashlib.sha256(pixels.tobytes()).hexdigest()[:16] for name, pixels in drawn.items()} == FROZEN


def accuracy(features: np.ndarray, labels: np.ndarray) -> float:
    """Of a ridge classifier fitted on the first two thirds, on the rest."""
    cut = len(features) * 2 // 3
    features = (features - features[:cut].mean(0)) / (features[:cut].std(0) + 1e-6)
    targets = np.eye(labels.max() + 1)[labels]
    gram = features[:cut].T @ features[:cut] + 30 * np.eye(features.shape[1])
    weights = np.linalg.solve(gram, features[:cut].T @ targets[:cut])
    return float(((features[cut:] @ weights).argmax(1) == labels[cut:]).mean())


def test_topic_clickbait_and_quality_show_and_topic_is_not_trivial() -> None:
    world = small_world(num_items=1500)
    pixels = cover(world, np.arange(1500)).reshape(1500, -1) / 255.0
    rough = pixels.reshape(1500, 16, 2, 16, 2, 3).mean((2, 4)).reshape(1500, -1)
    topic = accuracy(rough, world.items.topic)
    assert 0.3 < topic < 0.9  # chance is 1/8; a linear reader of pixels must not have it all
    loud = (world.items.clickbait > np.median(world.items.clickbait)).astype(np.int64)
    assert accuracy(rough, loud) > 0.75
    contrast = pixels.reshape(1500, SIDE, SIDE, 3)[:, 4:-4, 4:-4]
    grain = np.abs(np.diff(contrast, n=2, axis=1)).mean((1, 2, 3))
    assert np.corrcoef(grain, world.items.quality)[0, 1] < -0.5


def test_clickbait_is_on_covers_and_not_in_frames() -> None:
    world = small_world(num_items=600)
    order = np.argsort(world.items.clickbait)
    calm, loud = order[:100], order[-100:]
    red = np.array([1.0, -0.5, -0.5])

    def redness(pixels: np.ndarray) -> float:
        return float((pixels.reshape(-1, 3) / 255.0 @ red > 0.6).mean())

    assert redness(cover(world, loud)) > 1.5 * redness(cover(world, calm))
    assert redness(frames(world, loud, 1)) < 1.2 * redness(frames(world, calm, 1))


def test_files_are_named_by_item_key_and_hold_the_pictures(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    world = small_world(num_items=120)
    assert write_images(world, tmp_path / "images", count=2) == 240
    with image.open(tmp_path / "images" / "cover" / "v0000007.png") as picture:
        assert np.array_equal(np.asarray(picture), cover(world, np.array([7]))[0])
    with image.open(tmp_path / "images" / "frames" / "v0000007.png") as strip:
        stills = np.asarray(strip)
    assert np.array_equal(stills[:, SIDE:], frames(world, np.array([7]), 2)[0, 1])


@pytest.mark.parametrize("ids", [[-1], [300], [[0, 1]]])
def test_unknown_items_are_refused(ids: list) -> None:
    with pytest.raises(InputError, match="item numbers"):
        cover(small_world(), np.array(ids))


def test_no_frames_are_refused() -> None:
    with pytest.raises(InputError, match="count = 0"):
        frames(small_world(), np.arange(2), 0)
