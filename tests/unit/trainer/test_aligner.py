"""Aligners and the pairs they bridge, for several families of CNNs; features against hooks on timm's `feature_info`."""

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dearkd.errors import InvalidInput
from dearkd.specs import TeacherSpec
from dearkd_trainer.model.dearkd_vit import DearKDViT
from dearkd_trainer.train.aligner import Aligner, choose_pairs
from dearkd_trainer.train.teacher import FrozenTeacher, Stage

FAMILIES = ["resnet10t", "regnety_002", "mobilenetv3_small_050", "repvgg_a0", "dla46_c"]


def student(image_size: int, patch_size: int, depth: int = 4, mhca_blocks: int = 2) -> DearKDViT:
    return DearKDViT(
        img_size=image_size, patch_size=patch_size, embed_dim=16, depth=depth, num_heads=2, mhca_blocks=mhca_blocks
    )


def teacher(name: str, image_size: int) -> FrozenTeacher:
    torch.manual_seed(0)
    return of(timm.create_model(name, num_classes=4).eval(), image_size)


def of(module: nn.Module, image_size: int) -> FrozenTeacher:
    spec = TeacherSpec(
        name="t", architecture="a", num_classes=4, in_chans=3, image_size=image_size, mean=[0.5] * 3, std=[0.5] * 3
    )
    return FrozenTeacher(module, spec)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("image_size", "patch_size"), [(32, 8), (64, 8)])
def test_every_pair_has_maps_of_the_teachers_shape(name: str, image_size: int, patch_size: int) -> None:
    cnn, vit = teacher(name, image_size), student(image_size, patch_size)
    images = torch.randn(2, 3, image_size, image_size)
    pairs = choose_pairs(vit, cnn.stages())
    assert pairs
    _, features = cnn.forward(images, [pair.stage.index for pair in pairs])
    output = vit.forward_training(images, [pair.block for pair in pairs])
    for pair, hidden, feature in zip(pairs, output.hidden, features, strict=True):
        assert Aligner(16, pair.stage)(hidden).shape == feature.shape


@pytest.mark.parametrize("name", FAMILIES)
def test_features_and_logits_come_from_one_forward(name: str) -> None:
    frozen = teacher(name, 64)
    cnn, images = frozen.module, torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    seen: list[Tensor] = []
    for index in (1, 2):
        module = cnn.get_submodule(cnn.feature_info[index]["module"])
        module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    logits, features = frozen.forward(images, [1, 2])
    assert not logits.requires_grad
    assert len(seen) == 2
    for feature, hooked in zip(features, seen, strict=True):
        torch.testing.assert_close(feature, hooked)
    torch.testing.assert_close(logits, cnn(images))


def test_an_aligner_computes_its_form() -> None:
    torch.manual_seed(0)
    aligner = Aligner(4, Stage(index=1, channels=6, height=5, width=7, stride=4))
    for parameter in aligner.parameters():
        nn.init.normal_(parameter)
    tokens = torch.randn(2, 4, 3, 3)
    by_hand = reference(aligner, tokens)
    torch.testing.assert_close(aligner(tokens), by_hand, rtol=1e-4, atol=1e-5)


def reference(aligner: Aligner, tokens: Tensor) -> Tensor:
    """Pixel by pixel: resized map → its 3×3 neighbourhood, a filter a channel → normalised → GELU → a linear map."""
    resized = F.pad(F.interpolate(tokens, (5, 7), mode="bilinear"), (1, 1, 1, 1))
    result = torch.zeros(2, 6, 5, 7)
    for row in range(5):
        for column in range(7):
            window = resized[:, :, row : row + 3, column : column + 3]
            x = (window * aligner.depthwise.weight[:, 0]).sum((2, 3)) + aligner.depthwise.bias
            x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
            x = F.gelu(x * aligner.norm.weight + aligner.norm.bias)
            result[:, :, row, column] = x @ aligner.project.weight[:, :, 0, 0].T + aligner.project.bias
    return result


def stages(*strides: int, image_size: int) -> list[Stage]:
    return [Stage(i, 8 * (i + 1), image_size // s, image_size // s, s) for i, s in enumerate(strides)]


@pytest.mark.parametrize(
    ("vit", "strides", "expected"),
    [
        pytest.param((224, 16, 12, 4), (2, 4, 8, 16, 32), [(0, 1), (2, 2), (3, 3)], id="three stages over four blocks"),
        pytest.param((32, 8, 4, 2), (2, 4, 8, 16, 32), [(0, 1), (1, 2)], id="one each"),
        pytest.param((64, 8, 4, 2), (1, 2, 4, 8, 16), [(0, 2), (1, 3)], id="the stem is left out"),
        pytest.param((32, 8, 4, 1), (2, 4, 8, 16), [(0, 2)], id="more stages than blocks"),
        pytest.param((32, 8, 6, 0), (2, 4, 8, 16), [(0, 1), (1, 2)], id="no MHCA: the first third"),
        pytest.param((32, 2, 4, 2), (4, 8, 16), [(1, 0)], id="tokens finer than any stage"),
        pytest.param((32, 2, 4, 2), (2, 4, 8), [(1, 0)], id="only the stem is fine enough"),
    ],
)
def test_pairs_follow_from_strides(
    vit: tuple[int, int, int, int], strides: tuple[int, ...], expected: list[tuple[int, int]]
) -> None:
    pairs = choose_pairs(student(*vit), stages(*strides, image_size=vit[0]))
    assert [(pair.block, pair.stage.index) for pair in pairs] == expected


def test_a_teacher_whose_features_cannot_be_read_is_refused() -> None:
    with pytest.raises(InvalidInput, match="forward_intermediates") as caught:
        of(nn.Sequential(nn.Conv2d(3, 4, 3)), 32).stages()
    assert caught.value.errors[0].pointer == "/stage_one/weights/hidden"


def test_a_teacher_that_cannot_take_the_size_is_refused_with_its_reason() -> None:
    # Built for one size, as window transformers are.
    teacher = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3).eval()
    with pytest.raises(InvalidInput, match=r"no feature maps of an image of 40×40 pixels: Input height") as caught:
        of(teacher, 40).stages()
    assert [error.pointer for error in caught.value.errors] == ["/stage_one/weights/hidden"]
