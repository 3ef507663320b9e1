"""Recipes of a training run: complete specs for a dataset, the defaults of what a request leaves out.

The student of such a spec has its native image size, the learning rate is that of its batch size, and `dataset` is
empty: a request names it.

Published [P]: DeiT's hyperparameters and the student sizes. Reconstructed [R]: epochs of each stage, hidden weight,
which blocks carry MHCA, and the whole of `small`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from dearkd.choices import Recipe
from dearkd.specs.dataset_facts import DatasetFacts
from dearkd.specs.training import (
    AugmentationSpec,
    OptimizerSpec,
    StageOneSpec,
    StageOneWeights,
    StageTwoSpec,
    StudentSpec,
    TrainingSpec,
)


@dataclass(frozen=True, slots=True)
class StudentSize:
    """Dimensions of a registered architecture; `patch_size` and `image_size` are its native ones."""

    embed_dim: int
    depth: int
    num_heads: int
    mhca_blocks: int
    patch_size: int
    image_size: int


STUDENTS: dict[str, StudentSize] = {
    # DeiT's three sizes [P]; MHCA in the first third of the blocks [R].
    "dearkd_tiny_patch16_224": StudentSize(192, 12, 3, 4, 16, 224),
    "dearkd_small_patch16_224": StudentSize(384, 12, 6, 4, 16, 224),
    "dearkd_base_patch16_224": StudentSize(768, 12, 12, 4, 16, 224),
    # For images up to 64 px and a CPU [R].
    "dearkd_micro_patch8_32": StudentSize(128, 4, 4, 2, 8, 32),
}


def choose_recipe(image_size: int) -> Recipe:
    """`small` up to 64 px, else `deit` [R]."""
    return "small" if image_size <= 64 else "deit"


HFLIP = {True: 0.5, False: 0.0, None: None}
"""The probability of mirrored views by whether a mirror leaves an image its class; None: for the teacher to say."""


def deit(dataset: DatasetFacts) -> TrainingSpec:
    """DeiT's recipe [P] with DearKD's two stages: 250 + 50 epochs [R].

    Cost and result are the paper's: DearKD-Ti reaches 74.8 % on ImageNet after 300 epochs on 8 GPUs. Not run here.
    """
    return TrainingSpec(
        dataset="",
        teacher=dataset.teacher,
        recipe="deit",
        student=native_student("dearkd_tiny_patch16_224", drop_path_rate=0.1, distilled=True),
        stage_one=StageOneSpec(
            epochs=250,
            distillation="soft",
            temperature=3.0,
            weights=StageOneWeights(classification=0.5, distillation=0.5, hidden=0.2),
        ),
        stage_two=StageTwoSpec(epochs=50, distillation="none"),
        optimizer=OptimizerSpec(
            opt="adamw",
            lr=1e-3,  # 5e-4 for 512 images
            weight_decay=0.05,
            sched="cosine",
            warmup_epochs=5,
            warmup_lr=1e-6,
            min_lr=1e-5,
        ),
        augmentation=AugmentationSpec(
            scale=[0.08, 1.0],
            ratio=[3 / 4, 4 / 3],
            hflip=HFLIP[dataset.mirrored],
            aa="rand-m9-mstd0.5-inc1",
            color_jitter=0.3,
            reprob=0.25,
            mixup=0.8,
            cutmix=1.0,
            smoothing=0.1,
            aug_repeats=0 if dataset.synthetic else 3,
            degrees=0.0,
            translate=0.0,
            shear=0.0,
        ),
        batch_size=1024,
    )


SEEN_IMAGES = 192_000
"""Images that a student of `small` sees in training, however few there are, within the bounds on epochs [R]."""
MIN_EPOCHS, MAX_EPOCHS = 36, 300


def small_epochs(num_samples: int) -> tuple[int, int]:
    """Epochs of both stages of `small` by the number of images; stage two has a twelfth [R].

    2,000 digits made without data, one seed: 95.9 % after 36 epochs, 98.0 % after 60 (benchmarks/LOG.md).
    """
    epochs = min(MAX_EPOCHS, max(MIN_EPOCHS, round(SEEN_IMAGES / num_samples)))
    second = round(epochs / 12)
    return epochs - second, second


def small(dataset: DatasetFacts) -> TrainingSpec:
    """The recipe for images up to 64 px [R]: gentle geometry instead of crops, no mixing of images, a short schedule.

    Measured on a part of the digits' training split, 2,000 synthetic images, one seed (benchmarks/LOG.md): batches of
    128 left the student undertrained (91.5 % against 98.0 % with 32); without a distillation token the class head
    itself learns from the teacher's soft labels, on which a data-free student depends; a stage two of 8 epochs cost
    three points, one of 3 or 4 next to nothing.
    """
    first, second = small_epochs(dataset.num_samples)
    return TrainingSpec(
        dataset="",
        teacher=dataset.teacher,
        recipe="small",
        student=native_student("dearkd_micro_patch8_32", drop_path_rate=0.0, distilled=False),
        stage_one=StageOneSpec(
            epochs=first,
            distillation="soft",
            temperature=3.0,
            weights=StageOneWeights(classification=0.1, distillation=0.9, hidden=0.2),
        ),
        stage_two=StageTwoSpec(epochs=second, distillation="none"),
        optimizer=OptimizerSpec(
            opt="adamw",
            lr=1e-3,
            weight_decay=0.05,
            sched="cosine",
            warmup_epochs=3,
            warmup_lr=1e-6,
            min_lr=1e-5,
            clip_grad=1.0,
            model_ema_half_life=2.0,
        ),
        augmentation=AugmentationSpec(
            scale=[1.0, 1.0],
            ratio=[1.0, 1.0],
            hflip=HFLIP[dataset.mirrored],
            aa=None,
            color_jitter=0.0,
            reprob=0.0,
            mixup=0.0,
            cutmix=0.0,
            smoothing=0.1,
            aug_repeats=0,
            degrees=15.0,
            translate=0.1,
            shear=5.0,
        ),
        batch_size=32,
    )


RECIPES: dict[Recipe, Callable[[DatasetFacts], TrainingSpec]] = {"deit": deit, "small": small}


def native_student(architecture: str, *, drop_path_rate: float, distilled: bool) -> StudentSpec:
    """A registered student of its native image size."""
    size = asdict(STUDENTS[architecture])
    return StudentSpec(architecture=architecture, drop_path_rate=drop_path_rate, distilled=distilled, **size)
