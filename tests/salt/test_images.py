"""Start pictures in every form: 16 bits, EXIF, sizes that a file only claims, and what is refused."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from salt.errors import InputError
from salt.io.video import read_image
from salt.pipeline.start_image import start_pixels

RAMP = np.linspace(0, 65535, 64 * 32).reshape(32, 64).astype(np.uint16)


def start(image):
    return start_pixels(image, (32, 64), 1)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".PNG"])
def test_16_bit_greys_are_kept(tmp_path, suffix):
    path = tmp_path / f"ramp{suffix}"
    Image.fromarray(RAMP).save(path)
    expected = torch.from_numpy(RAMP.astype(np.float32) / 32767.5 - 1).expand(1, 3, 1, 32, 64)
    torch.testing.assert_close(read_image(path), expected)
    torch.testing.assert_close(start(path), expected)
    torch.testing.assert_close(start(Image.open(path)), expected)


def test_big_endian_16_bits_are_read(tmp_path):
    picture = Image.frombytes("I;16B", (64, 32), RAMP.astype(">u2").tobytes())
    assert abs(float(start(picture).mean())) < 0.01


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bits_have_no_known_range(dtype):
    with pytest.raises(InputError, match="image cannot be used .found 32 bits a pixel .*expected 8 or 16"):
        start(Image.fromarray(RAMP.astype(dtype)))


def test_exif_turns_a_picture_given_in_any_form(tmp_path):
    orientation = Image.Exif()
    orientation[0x0112] = 6  # stored turned by 90 degrees
    red_left = np.zeros((32, 64, 3), np.uint8)
    red_left[:, :32, 0] = 255
    path = tmp_path / "phone.JPG"
    Image.fromarray(red_left).save(path, exif=orientation, quality=100, subsampling=0)
    for image in (path, str(path), Image.open(path)):
        pixels = start_pixels(image, (64, 32), 1)
        assert pixels[0, 0, 0, :30].min() > 0.8 and pixels[0, 0, 0, 34:].max() < -0.8  # red is on top


def test_tensors_on_another_scale_are_refused():
    picture = torch.rand(3, 32, 64)
    assert start(picture).shape == (1, 3, 1, 32, 64)
    for wrong, found in (
        (picture * 255, "values up to 25"),
        ((picture * 255).byte(), "uint8"),
        (picture * float("nan"), "values up to nan"),
    ):
        with pytest.raises(InputError, match=rf"image: found {found}.*, expected floats in \[-1, 1\]"):
            start(wrong)
    with pytest.raises(InputError, match="image: found ndarray, expected a path, a PIL image or a tensor"):
        start(picture.numpy())


@pytest.mark.parametrize("side, found", [(60000, "could be decompression bomb"), (12000, "found 12000x12000 pixels")])
def test_a_size_that_is_only_claimed_is_refused(tmp_path, side, found):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(ValueError, match=f"bomb.png: cannot be read as an image .*{found}") as error:
        read_image(path)
    assert len(str(error.value)) < 400
