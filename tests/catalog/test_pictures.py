"""Pictures from a folder: any size and colour kind is read, what cannot be read is named; local checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_folder import write_pictures

from sidera.catalog.picture_checkpoint import checkpoint_digest, load_picture_encoder, save_picture_encoder
from sidera.catalog.pictures import pictures_digest, read_pictures
from sidera.core import InputError
from sidera.nn.picture_encoder import PictureEncoder

Image = pytest.importorskip("PIL.Image")
KEYS = [f"i{item}" for item in range(8)]


def test_pictures_come_in_the_order_of_keys_whatever_their_size_and_colours(tmp_path: Path) -> None:
    write_pictures(tmp_path, 6)
    Image.new("L", (40, 20), 128).save(tmp_path / "cover" / "i6.jpg")
    Image.new("RGBA", (5, 9), (0, 0, 255, 10)).save(tmp_path / "cover" / "i7.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "cover" / "other.png")
    found = read_pictures(tmp_path, "cover", KEYS[::-1], 16)
    assert found.pixels.shape == (8, 1, 16, 16, 3)
    assert found.mask.all()
    assert found.problems == []
    means = found.pixels[:, 0].float().mean((1, 2))
    assert means[0].argmax() == 2  # i7
    assert (means[1] - 128).abs().max() < 2  # i6
    assert means[-1].argmax() == 0  # i0 is red


def test_frames_stand_side_by_side_and_items_may_have_fewer(tmp_path: Path) -> None:
    write_pictures(tmp_path, 4, kind="frames", count=3)
    Image.new("RGB", (32, 16)).save(tmp_path / "frames" / "i1.png")
    found = read_pictures(tmp_path, "frames", KEYS[:4], 8)
    assert found.mask.sum(1).tolist() == [3, 2, 3, 3]


def test_unreadable_pictures_are_named_counted_and_left_out(tmp_path: Path) -> None:
    write_pictures(tmp_path, 4)
    (tmp_path / "cover" / "i1.png").write_bytes(b"no picture at all")
    whole = (tmp_path / "cover" / "i2.png").read_bytes()
    (tmp_path / "cover" / "i2.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "cover" / "i3.png")
    found = read_pictures(tmp_path, "cover", KEYS[:6], 16)
    assert found.mask[:, 0].tolist() == [True, False, False, False, False, False]
    report = found.report()
    assert report["unreadable"] == 3
    assert report["items_without_file"] == 2
    assert [problem.split(":")[0] for problem in found.problems] == ["item 'i1'", "item 'i2'", "item 'i3'"]
    assert "I;16" in found.problems[2]


def test_a_strip_that_is_no_row_of_squares_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path, 2, kind="frames", count=2)
    Image.new("RGB", (37, 16)).save(tmp_path / "frames" / "i1.png")
    assert "37 x 16" in read_pictures(tmp_path, "frames", KEYS[:2], 8).problems[0]


def test_no_folder_and_no_picture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no picture folder"):
        read_pictures(tmp_path, "cover", KEYS, 8)
    (tmp_path / "cover").mkdir()
    (tmp_path / "cover" / "i0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"1 unreadable: item 'i0'"):
        read_pictures(tmp_path, "cover", KEYS, 8)


def test_digest_follows_the_content_of_the_files(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 3)
    write_pictures(tmp_path / "b", 3)
    assert pictures_digest(tmp_path / "a", ["cover"]) == pictures_digest(tmp_path / "b", ["cover"])
    Image.new("RGB", (8, 8)).save(tmp_path / "b" / "cover" / "i1.png")
    assert pictures_digest(tmp_path / "a", ["cover"]) != pictures_digest(tmp_path / "b", ["cover"])


def test_own_checkpoint_travels_and_is_refused_when_it_does_not_fit(tmp_path: Path) -> None:
    encoder = PictureEncoder(12, channels=4).eval()
    save_picture_encoder(encoder, 32, tmp_path / "own")
    pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    frozen = load_picture_encoder(tmp_path / "own")
    with torch.no_grad():
        torch.testing.assert_close(frozen.features(pixels), encoder(pixels))
    before = checkpoint_digest(tmp_path / "own")
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    (tmp_path / "own" / "config.json").write_text(json.dumps({**config, "width": 16}))
    assert checkpoint_digest(tmp_path / "own") != before
    with pytest.raises(InputError, match="does not fit its config"):
        load_picture_encoder(tmp_path / "own")
    with pytest.raises(InputError, match=r"config\.json is missing"):
        load_picture_encoder(tmp_path / "none")


@pytest.mark.slow  # importing the library takes seconds
def test_a_vision_model_of_transformers_is_read_from_its_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    model = transformers.ViTModel(transformers.ViTConfig(image_size=16, patch_size=4, **sizes))
    model.save_pretrained(tmp_path / "vit")
    frozen = load_picture_encoder(tmp_path / "vit")
    assert (frozen.image_size, frozen.width) == (16, 16)
    pixels = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    features = frozen.features(pixels)
    assert features.shape == (2, 16, 16)
    assert not torch.allclose(features[0], features[1])
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    (tmp_path / "vit" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(InputError, match="lacks"):
        load_picture_encoder(tmp_path / "vit")
