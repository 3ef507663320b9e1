"""timm's parts, made from a spec: optimiser, schedule, averaging, transforms, mixing of images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import torch
from timm.data import Mixup, create_transform
from timm.data.auto_augment import AugmentOp, AugMixAugment, AutoAugment, RandAugment
from timm.data.mixup import mixup_target
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision import transforms

from dearkd.errors import InvalidInput
from dearkd.specs import AugmentationSpec, OptimizerSpec, Precision
from dearkd_trainer.data.loader import Transform
from dearkd_trainer.model.student import Student

DEIT_CROP_PCT = 0.875
"""The part of the resized image's side that evaluation looks at in DeiT, which trains on random crops [P]."""


def create_optimizer(student: Student, aligners: nn.Module | None, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """One optimiser for student and aligners. Biases, norms, tokens and positional weights are not decayed.

    With `layer_decay` a block's learning rate is that of the next one times it (timm's `param_groups_layer_decay`,
    after BEiT, Bao et al., 2022). The aligners' groups come last, marked, so that `drop_aligners` finds them.
    """
    decay, exempt = spec.weight_decay, student.no_weight_decay()
    if spec.layer_decay is None:
        groups = param_groups_weight_decay(student, decay, no_weight_decay_list=exempt)
    else:
        groups = param_groups_layer_decay(student, decay, no_weight_decay_list=exempt, layer_decay=spec.layer_decay)
    if aligners is not None:
        groups += [{**group, "of_aligners": True} for group in param_groups_weight_decay(aligners, decay)]
    optimizer: torch.optim.Optimizer = create_optimizer_v2(groups, opt=spec.opt, lr=spec.lr)
    return optimizer


def drop_aligners(optimizer: torch.optim.Optimizer) -> None:
    """Forget the aligners' weights and their moments."""
    for group in [group for group in optimizer.param_groups if group.get("of_aligners")]:
        for parameter in group["params"]:
            optimizer.state.pop(parameter, None)
        optimizer.param_groups.remove(group)


def create_schedule(
    optimizer: torch.optim.Optimizer,
    spec: OptimizerSpec,
    *,
    epochs: int,
    steps_per_epoch: int,
    restart_at: float | None = None,
) -> Scheduler:
    """Linear warm-up, then a cosine over the rest of the epochs, set anew each step by `step_update(step)`.

    The learning rate is a function of the step alone: there is nothing to save.

    Args:
        optimizer: its groups' learning rates are set.
        spec: warm-up, peak and end.
        epochs: of the cosine, warm-up included.
        steps_per_epoch: turns epochs into steps.
        restart_at: the peak of a cosine without warm-up, which follows on an earlier one; None for the first.
    """
    if restart_at is not None:
        for group in optimizer.param_groups:
            group["initial_lr"] = restart_at
    schedule: Scheduler
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=spec.sched,
        num_epochs=epochs,
        warmup_epochs=spec.warmup_epochs if restart_at is None else 0,  # type: ignore[arg-type]  # fractions are fine
        warmup_lr=spec.warmup_lr,
        min_lr=spec.min_lr,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    return schedule


def create_average(student: nn.Module, half_life: float | None, steps_per_epoch: int) -> ModelEmaV3 | None:
    """An exponential moving average of the weights, or None where none is asked for.

    Args:
        student: its weights are averaged.
        half_life: in epochs; after it, a weight's old value counts half. Early on the average forgets faster (timm's
            warm-up: decay `1 - (1 + step)^(-2/3)` until that reaches the half-life's).
        steps_per_epoch: turns epochs into steps.
    """
    if half_life is None:
        return None
    return ModelEmaV3(student, decay=0.5 ** (1 / (half_life * steps_per_epoch)), use_warmup=True)


def train_transform(spec: AugmentationSpec, *, image_size: int, mean: list[float], std: list[float]) -> Transform:
    """timm's training transform, after a random affine one where degrees, translate or shear are set.

    Pixels that a rotation brings in from outside the image are black, as in torchvision. Where `hflip` is None, nothing
    is mirrored: who trains with a teacher asks it first.

    Raises:
        InvalidInput: if `aa` is not timm's notation.
    """
    try:
        augment = create_transform(
            image_size,
            is_training=True,
            scale=(spec.scale[0], spec.scale[1]),
            ratio=(spec.ratio[0], spec.ratio[1]),
            hflip=spec.hflip or 0.0,
            color_jitter=spec.color_jitter or None,  # type: ignore[arg-type]  # None means none
            auto_augment=spec.aa,
            interpolation="bicubic",
            mean=tuple(mean),
            std=tuple(std),
            re_prob=spec.reprob,
            re_mode="pixel",
        )
    except (AssertionError, ValueError) as error:
        if spec.aa is None:
            raise
        raise InvalidInput.at("/augmentation/aa", f"timm does not take {spec.aa!r}: {error}") from error
    for part in augment.transforms:
        if isinstance(part, RandAugment | AugMixAugment):
            _keep_a_bit(part.ops)
        elif isinstance(part, AutoAugment):
            _keep_a_bit([operation for pair in part.policy for operation in pair])
    if spec.degrees or spec.translate or spec.shear:
        affine = transforms.RandomAffine(
            spec.degrees,
            translate=(spec.translate, spec.translate),
            shear=spec.shear,
            interpolation=transforms.InterpolationMode.BILINEAR,
        )
        augment = transforms.Compose([affine, *augment.transforms])
    return cast(Transform, augment)


def _keep_a_bit(operations: Sequence[AugmentOp]) -> None:
    """timm posterises to 0 bits at the largest magnitude, which Pillow refuses since version 13."""
    for operation in operations:
        if operation.level_fn is not None and operation.name.startswith("Posterize"):
            operation.level_fn = partial(_at_least_one_bit, operation.level_fn)


def _at_least_one_bit(bits: Callable[[float, Any], tuple[int]], level: float, hparams: Any) -> tuple[int]:
    return (max(1, *bits(level, hparams)),)


def eval_crop_pct(spec: AugmentationSpec) -> float:
    """The part of the resized image's side that evaluation looks at: 1 if training too sees whole images [R].

    Images of the student's size are taken whole in any case.
    """
    return DEIT_CROP_PCT if spec.scale[0] < 1 else 1.0


def eval_transform(image_size: int, crop_pct: float) -> Transform:
    """timm's evaluation transform to uint8 pixels (C, image_size, image_size), for images of another size.

    Args:
        image_size: side of the result in pixels.
        crop_pct: the shorter side becomes `image_size / crop_pct` pixels before the centre is cut out.
    """
    return cast(Transform, create_transform(image_size, crop_pct=crop_pct, interpolation="bicubic", normalize=False))


class Mixing:
    """timm's Mixup and CutMix of a batch with its mirror order, by NumPy's global generator.

    Args:
        spec: strengths; with both 0 batches stay as they are.
        num_classes: K.
    """

    def __init__(self, spec: AugmentationSpec, num_classes: int) -> None:
        self.mixup: Mixup | None = None
        self.smoothing = spec.smoothing
        self.num_classes = num_classes
        if spec.mixup or spec.cutmix:
            self.mixup = Mixup(  # type: ignore[no-untyped-call]  # timm's
                spec.mixup, spec.cutmix, label_smoothing=spec.smoothing, num_classes=num_classes
            )

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W), changed in place, and either the labels (B,) or smoothed probabilities (B, K).

        The last image of an odd batch stays unmixed, since mixing goes by pairs.
        """
        if self.mixup is None:
            return images, labels
        even = len(images) // 2 * 2
        targets: list[Tensor] = []
        if even:
            images[:even], mixed = self.mixup(images[:even], labels[:even])
            targets.append(mixed)
        if even < len(images):
            alone = mixup_target(  # type: ignore[no-untyped-call]  # timm's
                labels[even:], self.num_classes, smoothing=self.smoothing
            )
            targets.append(alone)
        return images, torch.cat(targets)


@contextmanager
def autocast(device: torch.device, precision: Precision) -> Iterator[None]:
    """Compute the block in bfloat16 where that is safe, or in float32 throughout.

    On a CPU attention that learns goes by plain products then: backward through torch's fused kernel takes four times
    as long in bfloat16 as in float32 (benchmarks/LOG.md).
    """
    narrow = precision == "bfloat16"
    plain = narrow and device.type == "cpu" and torch.is_grad_enabled()
    with (
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=narrow),
        sdpa_kernel(SDPBackend.MATH) if plain else nullcontext(),
    ):
        yield
