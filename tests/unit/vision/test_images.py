"""Pixels to the teacher's input and back, and to files and back."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dearkd.errors import CorruptData
from dearkd.specs import TeacherSpec
from dearkd.vision.images import decode, encode, pixel_range, quantise, to_input

TEACHER = TeacherSpec(
    name="t",
    architecture="resnet10t",
    num_classes=2,
    in_chans=3,
    image_size=16,
    mean=[0.485, 0.456, 0.406],
    std=[0.229, 0.224, 0.225],
)


def noise(channels: int, size: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (channels, size, size), dtype=torch.uint8, generator=generator)


def test_normalisation_is_per_channel() -> None:
    x = to_input(torch.full((1, 3, 2, 2), 51, dtype=torch.uint8), TEACHER)
    assert x.dtype == torch.float32
    expected = [(0.2 - mean) / std for mean, std in zip(TEACHER.mean, TEACHER.std, strict=True)]
    torch.testing.assert_close(x[0, :, 1, 1], torch.tensor(expected))
    torch.testing.assert_close(to_input(torch.full((1, 3, 2, 2), 0.2, dtype=torch.float64), TEACHER).float(), x)


def test_every_pixel_value_survives_normalisation_and_quantisation() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(quantise(to_input(pixels, TEACHER), TEACHER), pixels)


def test_quantisation_rounds_and_clips() -> None:
    grey = TEACHER.model_copy(update={"in_chans": 1, "mean": [0.0], "std": [1.0]})
    values = torch.tensor([-0.5, 0.4 / 255, 0.6 / 255, 254.4 / 255, 7.0]).view(1, 1, 1, 5)
    assert quantise(values, grey).flatten().tolist() == [0, 0, 1, 254, 255]


def test_pixel_range_is_that_of_black_and_white() -> None:
    black, white = pixel_range(TEACHER, torch.empty(0))
    torch.testing.assert_close(black, to_input(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), TEACHER))
    torch.testing.assert_close(white, to_input(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), TEACHER))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_lossless_formats_give_every_pixel_back(channels: int, image_format: str) -> None:
    image = noise(channels)
    data = encode(image, image_format)
    assert data == encode(image, image_format)
    assert torch.equal(decode(data, channels), image)


def test_jpeg_keeps_colour_at_full_resolution() -> None:
    """Stripes of colour, one pixel wide: what chroma subsampling would smear."""
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    image[0, :, ::2] = 255
    image[2, :, 1::2] = 255
    data = encode(image, "jpeg")
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "JPEG"
        assert [(across, down) for _, across, down, _ in picture.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]
        # ITU T.81's example table for luminance, (200 − 2·95) % of it, as the IJG's code counts quality.
        luminance = [(entry * 10 + 50) // 100 for entry in (16, 11, 10, 16, 24, 40, 51, 61)]
        assert picture.quantization[0][:8] == luminance  # type: ignore[attr-defined]
    assert (decode(data, 3).int() - image.int()).abs().max() < 5


def test_other_readers_see_the_same_pixels() -> None:
    image = noise(3)
    read = np.asarray(Image.open(io.BytesIO(encode(image, "png"))))
    np.testing.assert_array_equal(read, image.permute(1, 2, 0).numpy())


def test_decoding_converts_to_the_channels_asked_for() -> None:
    grey = noise(1)
    assert decode(encode(grey, "png")).shape == (1, 16, 16)
    assert torch.equal(decode(encode(grey, "png"), 3), grey.expand(3, -1, -1))
    assert decode(encode(noise(3), "png")).shape == (3, 16, 16)
    file = io.BytesIO()
    Image.new("RGBA", (4, 6), (255, 0, 0, 128)).save(file, "PNG")
    assert decode(file.getvalue()).shape == (3, 6, 4)


def test_grey_of_16_bits_becomes_the_nearest_of_8() -> None:
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    expected = torch.from_numpy(np.round(values / 65535 * 255).astype(np.uint8))[None]
    assert torch.equal(decode(file.getvalue()), expected)
    assert torch.equal(decode(file.getvalue(), 1), expected)
    assert torch.equal(decode(file.getvalue(), 3), expected.expand(3, -1, -1))


def test_grey_with_alpha_is_grey() -> None:
    file = io.BytesIO()
    Image.new("LA", (4, 6), (77, 128)).save(file, "PNG")
    assert torch.equal(decode(file.getvalue()), torch.full((1, 6, 4), 77, dtype=torch.uint8))


@pytest.mark.parametrize("image_format", ["GIF", "BMP", "TIFF"])
def test_formats_off_the_list_are_not_opened(image_format: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, image_format)
    with pytest.raises(CorruptData, match="not a readable PNG"):
        decode(file.getvalue())


@pytest.mark.parametrize("keep", [0, 20, 0.5, 0.9])
def test_truncated_files_are_refused(keep: float) -> None:
    data = encode(noise(3, size=64), "png")
    with pytest.raises(CorruptData, match="not a readable PNG") as caught:
        decode(data[: int(keep if keep > 1 else keep * len(data))])
    assert " object at 0x" not in caught.value.message


def test_what_is_no_image_is_told_by_its_first_bytes() -> None:
    with pytest.raises(CorruptData, match=r"none is found in its 15 bytes, which begin with b'<html>no'$"):
        decode(b"<html>no image!")


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    file = io.BytesIO()
    Image.new("1", (3000, 3000)).save(file, "PNG")
    assert len(file.getvalue()) < 20_000
    with pytest.raises(CorruptData, match="3000×3000"):
        decode(file.getvalue(), max_pixels=1_000_000)
