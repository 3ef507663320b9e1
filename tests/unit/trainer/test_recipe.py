"""Optimiser, schedule, averaging, transforms and mixing against what they are said to do."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from dearkd.errors import InvalidInput
from dearkd.specs import AugmentationSpec, OptimizerSpec, Precision
from dearkd_trainer.data.loader import seed_generators
from dearkd_trainer.data.recipe import (
    Mixing,
    autocast,
    create_average,
    create_optimizer,
    create_schedule,
    drop_aligners,
    eval_crop_pct,
    eval_transform,
    train_transform,
)
from dearkd_trainer.model.dearkd_vit import DearKDViT
from dearkd_trainer.train.aligner import Aligner, Stage  # type: ignore[attr-defined]

OPTIMIZER = OptimizerSpec(
    opt="adamw", lr=1e-2, weight_decay=0.05, sched="cosine", warmup_epochs=2.0, warmup_lr=1e-4, min_lr=1e-3
)


def augmentation(**changes: object) -> AugmentationSpec:
    none = AugmentationSpec(
        scale=[1.0, 1.0],
        ratio=[1.0, 1.0],
        hflip=0.0,
        color_jitter=0.0,
        reprob=0.0,
        mixup=0.0,
        cutmix=0.0,
        smoothing=0.1,
        aug_repeats=0,
        degrees=0.0,
        translate=0.0,
        shear=0.0,
    )
    return none.model_copy(update=changes)


def student() -> DearKDViT:
    return DearKDViT(
        img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=8, depth=2, num_heads=2, mhca_blocks=1
    )


def test_matrices_decay_and_nothing_else_does() -> None:
    model = student()
    aligners = nn.ModuleList([Aligner(8, Stage(1, 4, 2, 2, 4))])
    optimizer = create_optimizer(model, aligners, OPTIMIZER)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in [*model.named_parameters(), *aligners.named_parameters()]:
        matrix = parameter.ndim > 1 and not any(
            word in name for word in ("pos_embed", "token", "position_weight", "prefix_logit")
        )
        assert (id(parameter) in decayed) == matrix, name


def test_dropping_the_aligners_leaves_the_student_and_its_moments() -> None:
    model = student()
    aligners = nn.ModuleList([Aligner(8, Stage(1, 4, 2, 2, 4))])
    optimizer = create_optimizer(model, aligners, OPTIMIZER)
    for parameter in [*model.parameters(), *aligners.parameters()]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = optimizer.state[model.head.weight]["exp_avg"]
    drop_aligners(optimizer)
    assert {p for group in optimizer.param_groups for p in group["params"]} == set(model.parameters())
    assert set(optimizer.state) == set(model.parameters())
    assert optimizer.state[model.head.weight]["exp_avg"] is moments


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    optimizer = create_optimizer(student(), None, OPTIMIZER)
    schedule = create_schedule(optimizer, OPTIMIZER, epochs=10, steps_per_epoch=5)
    for step in range(50):
        schedule.step_update(step)
        if step < 10:
            expected = 1e-4 + (1e-2 - 1e-4) * step / 10
        else:
            expected = 1e-3 + (1e-2 - 1e-3) * (1 + math.cos(math.pi * step / 50)) / 2
        assert all(group["lr"] == pytest.approx(expected) for group in optimizer.param_groups)


def test_a_restarted_schedule_is_a_cosine_of_its_own_without_warm_up() -> None:
    optimizer = create_optimizer(student(), None, OPTIMIZER)
    first = create_schedule(optimizer, OPTIMIZER, epochs=10, steps_per_epoch=5)
    first.step_update(50)
    second = create_schedule(optimizer, OPTIMIZER, epochs=4, steps_per_epoch=5, restart_at=5e-3)
    for step in range(20):
        second.step_update(step)
        expected = 1e-3 + (5e-3 - 1e-3) * (1 + math.cos(math.pi * step / 20)) / 2
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected] * 2)


def test_with_layer_decay_each_block_is_slower_than_the_next() -> None:
    model = DearKDViT(
        img_size=8,
        patch_size=4,
        in_chans=1,
        num_classes=3,
        embed_dim=8,
        depth=2,
        num_heads=2,
        mhca_blocks=1,
        distilled=True,
    )
    aligners = nn.ModuleList([Aligner(8, Stage(1, 4, 2, 2, 4))])
    spec = OPTIMIZER.model_copy(update={"layer_decay": 0.5})
    optimizer = create_optimizer(model, aligners, spec)
    create_schedule(optimizer, spec, epochs=10, steps_per_epoch=5).step_update(10)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    fastest = rates[id(model.head.weight)]
    for name, parameter in model.named_parameters():
        block = int(name.split(".")[1]) if name.startswith("blocks.") else None
        stem = name.startswith(("cls_token", "dist_token", "pos_embed", "patch_embed"))
        # Stem, two blocks (the last with the norm), heads.
        above = 3 if stem else 2 if block == 0 else 1 if block == 1 or name.startswith("norm.") else 0
        assert rates[id(parameter)] == pytest.approx(fastest * 0.5**above), name
        decays = next(g["weight_decay"] for g in optimizer.param_groups if any(parameter is p for p in g["params"]))
        assert decays == (0.05 if parameter.ndim > 1 and name not in model.no_weight_decay() else 0)
    assert {rates[id(parameter)] for parameter in aligners.parameters()} == {fastest}


def test_after_its_half_life_a_weight_counts_half() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = create_average(model, half_life=2.0, steps_per_epoch=10)
    assert average is not None
    nn.init.ones_(model.weight)
    warm = 10_000  # far behind the warm-up of the average
    average.module.load_state_dict(model.state_dict())
    nn.init.zeros_(model.weight)
    for step in range(20):
        average.update(model, warm + step)
    assert average.module.weight.item() == pytest.approx(0.5, rel=1e-4)


def test_early_on_the_average_follows_the_weights() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = create_average(model, half_life=100.0, steps_per_epoch=100)
    assert average is not None
    nn.init.ones_(model.weight)
    average.update(model, 1)
    assert average.module.weight.item() == 1.0
    nn.init.zeros_(model.weight)
    average.update(model, 2)
    assert average.module.weight.item() == pytest.approx(1 - 2 ** (-2 / 3))
    assert create_average(model, None, 100) is None


def noise(size: int, channels: int = 1) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, channels), dtype=np.uint8)
    return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_without_augmentation_images_are_only_normalised(channels: int) -> None:
    image = noise(16, channels)
    mean, std = [0.4, 0.5, 0.6][:channels], [0.2, 0.3, 0.4][:channels]
    result = train_transform(augmentation(), image_size=16, mean=mean, std=std)(image)
    pixels = torch.from_numpy(np.array(image).reshape(16, 16, channels)).permute(2, 0, 1) / 255
    for channel in range(channels):
        torch.testing.assert_close(result[channel], (pixels[channel] - mean[channel]) / std[channel])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_whole_recipe_of_deit_runs_on_grey_and_colour(channels: int) -> None:
    spec = augmentation(
        scale=[0.08, 1.0], ratio=[0.75, 1.33], hflip=0.5, aa="rand-m9-mstd0.5-inc1", color_jitter=0.3, reprob=0.25
    )
    transform = train_transform(spec, image_size=24, mean=[0.5] * channels, std=[0.2] * channels)
    seed_generators(0)
    results = [transform(noise(40, channels)) for _ in range(30)]
    assert {result.shape for result in results} == {(channels, 24, 24)}
    assert all(torch.isfinite(result).all() for result in results)


def test_the_largest_magnitude_is_not_refused_by_pillow() -> None:
    transform = train_transform(augmentation(aa="rand-m10-n200-inc1"), image_size=24, mean=[0.5], std=[0.2])
    seed_generators(0)
    assert transform(noise(24)).shape == (1, 24, 24)  # after 200 operations of 15 kinds, so that all were made


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "notation",
    [
        *("rand-m999-n60-mmax999-p1", "rand-n14-tweights-p1.0", "rand-n14-t3aw-mstd101", "rand-t3a-inc0"),
        *("augmix", "augmix-m999-w20-d9-a0.1-b1-mstd0", "augmix-d0-a100"),
        *("original", "originalr-mstd5", "v0", "v0r-mstd0.5", "v0-mstd5", "3a-mstd1"),
    ],
)
def test_what_the_spec_lets_in_augments(notation: str, channels: int) -> None:
    spec = AugmentationSpec.check(augmentation().model_dump() | {"aa": notation})
    transform = train_transform(spec, image_size=8, mean=[0.5] * channels, std=[0.2] * channels)
    seed_generators(0)
    results = [transform(noise(8, channels)) for _ in range(100)]
    assert all(result.shape == (channels, 8, 8) and torch.isfinite(result).all() for result in results)
    assert len({tuple(result.flatten().tolist()) for result in results}) > 3


@pytest.mark.parametrize("notation", ["nonsense", "rand-m9-x5", "rand-m9.5", "random-m9", "augmix-x1", "v1", "v0-m3"])
def test_what_timm_does_not_take_is_told_as_such(notation: str) -> None:
    with pytest.raises(InvalidInput) as error:
        train_transform(augmentation(aa=notation), image_size=8, mean=[0.5], std=[0.2])
    assert [e.pointer for e in error.value.errors] == ["/augmentation/aa"]


def test_affine_augmentation_moves_the_image() -> None:
    dot = np.zeros((17, 17), dtype=np.uint8)
    dot[8, 8] = 255
    transform = train_transform(augmentation(translate=0.25), image_size=17, mean=[0.0], std=[1.0])
    seed_generators(0)
    places = [divmod(int(transform(Image.fromarray(dot)).argmax()), 17) for _ in range(60)]
    assert len(set(places)) > 10
    assert all(abs(row - 8) <= 4 and abs(column - 8) <= 4 for row, column in places)


def test_evaluation_resizes_and_crops_the_centre() -> None:
    pixels = np.zeros((64, 48), dtype=np.uint8)
    pixels[16:48, 8:40] = 255
    result = eval_transform(28, 0.875)(Image.fromarray(pixels))
    assert result.dtype == torch.uint8
    assert result.shape == (1, 28, 28)
    # The shorter side of 48 px becomes 28 / 0.875 = 32 px; the white square of 32 px is then 21.3 px wide, centred.
    assert result[0, 14, 4:24].min() > 200
    assert result[0, 14, :3].max() < 50


@pytest.mark.parametrize("shape", [(40, 40), (40, 28), (21, 32)])
def test_where_training_sees_whole_images_so_does_evaluation(shape: tuple[int, int]) -> None:
    whole, cropped = augmentation(), augmentation(scale=[0.5, 1.0])
    assert (eval_crop_pct(whole), eval_crop_pct(cropped)) == (1.0, 0.875)
    rows, columns = np.indices(shape)
    image = Image.fromarray((127 + 60 * np.sin(rows / 5) + 60 * np.cos(columns / 4)).astype(np.uint8))
    trained_on = train_transform(whole, image_size=16, mean=[0.0], std=[1.0])(image)
    # Not the same to the bit: where the sides differ, timm rounds to whole pixels at another place.
    gaps = [
        (eval_transform(16, crop_pct)(image) / 255 - trained_on).abs().mean().item()
        for crop_pct in (eval_crop_pct(whole), 0.875)
    ]
    assert gaps[0] < min(0.02, gaps[1] / 2)


@pytest.mark.parametrize("size", [6, 7, 1])
def test_mixing_goes_by_pairs_and_smooths_every_target(size: int) -> None:
    mixing = Mixing(augmentation(mixup=0.8), num_classes=4)
    images = torch.arange(size).float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    labels = torch.arange(size) % 4
    before = images.clone()
    seed_generators(0)
    mixed, targets = mixing(images, labels)
    assert targets.shape == (size, 4)
    torch.testing.assert_close(targets.sum(1), torch.ones(size))
    smooth = torch.full((size, 4), 0.1 / 4)
    smooth[torch.arange(size), labels] += 0.9
    even = size // 2 * 2
    # Images and targets are mixed with their mirror images in the same proportion, found from the first image.
    share = 1 - (mixed[0, 0, 0, 0] / max(1, even - 1)).item() if even else 1.0
    torch.testing.assert_close(mixed[:even], share * before[:even] + (1 - share) * before[:even].flip(0))
    torch.testing.assert_close(targets[:even], share * smooth[:even] + (1 - share) * smooth[:even].flip(0))
    torch.testing.assert_close(mixed[even:], before[even:])
    torch.testing.assert_close(targets[even:], smooth[even:])


def test_without_mixing_labels_stay_labels() -> None:
    images, labels = torch.ones(3, 1, 2, 2), torch.tensor([0, 1, 2])
    mixed, targets = Mixing(augmentation(), num_classes=4)(images, labels)
    assert mixed is images
    assert targets is labels


def test_attention_that_learns_in_bfloat16_on_a_cpu_is_not_fused_and_is_that_of_float32() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 3, 17, 8)

    def attend(precision: Precision) -> tuple[Tensor, Tensor]:
        own = tokens.clone().requires_grad_()
        with autocast(torch.device("cpu"), precision):
            out = F.scaled_dot_product_attention(own @ torch.eye(8), own @ torch.eye(8), own)
        (out.float() ** 2).sum().backward()
        assert own.grad is not None
        return out, own.grad

    narrow, wide = attend("bfloat16"), attend("float32")
    assert (narrow[0].dtype, wide[0].dtype) == (torch.bfloat16, torch.float32)
    fused = "ScaledDotProductFlashAttentionForCpuBackward0"
    assert wide[0].grad_fn is not None
    assert wide[0].grad_fn.name() == fused
    assert narrow[0].grad_fn is not None
    assert narrow[0].grad_fn.name() != fused
    for found, wanted in zip(narrow, wide, strict=True):
        torch.testing.assert_close(found.float(), wanted, rtol=0.03, atol=0.03)
    # Without gradients the fused kernel is the faster one there too, and it is left as it was behind each block.
    with torch.no_grad(), autocast(torch.device("cpu"), "bfloat16"):
        assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
