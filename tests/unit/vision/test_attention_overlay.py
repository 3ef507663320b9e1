"""The heat map over an image: warm where the share is, the image elsewhere."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dearkd.vision.attention_overlay import attention_overlay


@pytest.mark.parametrize(("chans", "side", "shown"), [(1, 32, 224), (3, 32, 224), (3, 224, 224), (3, 300, 300)])
def test_it_is_warm_where_the_share_is_and_the_image_elsewhere(chans: int, side: int, shown: int) -> None:
    pixels = torch.randint(0, 255, (chans, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shares = torch.zeros(4, 4)
    shares[0, 3] = 1.0
    with Image.open(io.BytesIO(attention_overlay(pixels, shares))) as opened:
        assert (opened.format, opened.size) == ("PNG", (shown, shown))
        drawn = np.asarray(opened).astype(int)
    image = np.kron(pixels.permute(1, 2, 0).numpy(), np.ones((shown // side, shown // side, 1))).astype(int)
    quarter = shown // 4
    assert (drawn[2 * quarter :, : 2 * quarter] == image[2 * quarter :, : 2 * quarter]).all()
    hot = drawn[: quarter // 4, -quarter // 4 :].mean((0, 1))
    assert hot[0] > 180
    assert hot[0] > 2 * hot[2]


def test_no_share_at_all_leaves_the_image() -> None:
    pixels = torch.full((1, 224, 224), 7, dtype=torch.uint8)
    with Image.open(io.BytesIO(attention_overlay(pixels, torch.zeros(2, 2)))) as opened:
        assert (np.asarray(opened) == 7).all()
