"""The spec of a training run: student, two stages, optimiser, augmentation."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from dearkd.errors import FieldError, InvalidInput
from dearkd.specs.auto_augment import check_auto_augment
from dearkd.specs.base import FIRST_ERROR, Name, Precision, Priority, Spec, overlay, require_object
from dearkd.specs.batches import batch_refusals, default_batch_size
from dearkd.specs.class_order import count_remedy
from dearkd.specs.dataset_facts import DatasetFacts
from dearkd.specs.geometry import choose_image_size, choose_patch_size
from dearkd.specs.recipes import STUDENTS, Recipe, choose_recipe, recipe_defaults
from dearkd.specs.schedules import fitting_schedule, schedule_refusals
from dearkd.specs.stored_logits import refusals, wants_stored_logits, with_stored_logits
from dearkd.specs.teacher import TeacherSpec

Fraction = Annotated[float, Field(ge=0, le=1)]


MAX_PATCHES = 2**14
"""Of a student: 128×128, such as 2048 px by 16."""


class StudentSpec(Spec):
    """A DearKD-ViT. `mhca_blocks` is the number of early blocks with MHCA; 0 is a plain ViT."""

    architecture: str
    image_size: int = Field(ge=8, le=4096)
    patch_size: int = Field(ge=1)
    embed_dim: int = Field(ge=8, le=8192)
    depth: int = Field(ge=1, le=200)
    num_heads: int = Field(ge=1, le=256)
    mhca_blocks: int = Field(ge=0)
    drop_path_rate: float = Field(ge=0, lt=1)
    distilled: bool
    """Whether the student has a distillation token beside its class token."""
    mhca_mix: Literal["logits", "probabilities"] = "logits"
    """How MHCA joins content and position: one softmax over their sum, or the mean of two softmaxes [R]."""
    mhca_locality: float = Field(default=1.0, gt=0)
    """How narrow MHCA is at the start: a Gaussian over token distances δ, exp(-mhca_locality·‖δ-Δ‖²) [R]."""
    mhca_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Of MHCA's positional logits, against attention that stays too local [R]."""


DIMENSIONS = ("architecture", "patch_size", "embed_dim", "depth", "num_heads", "mhca_blocks", "mhca_mix", "distilled")
"""Fields of a student that decide which weights it has, and what they mean, but for its image size."""


class StageOneWeights(Spec):
    classification: float = Field(ge=0)
    distillation: float = Field(ge=0)
    hidden: float = Field(ge=0)


class PairSpec(Spec):
    """A student block whose patch tokens learn to foretell a feature map of the teacher."""

    block: int = Field(ge=0)
    """Counted from 0."""
    stage: int = Field(ge=0)
    """Index in timm's `forward_intermediates` of the teacher; 0 is the finest."""


class StageOneSpec(Spec):
    """Distillation from the teacher's logits and early features. A weight of 0 means that the term is not computed."""

    epochs: int = Field(ge=0)
    distillation: Literal["hard", "soft", "none"]
    temperature: float = Field(gt=0)
    """Of the soft distillation; its KL is scaled by the square of it."""
    weights: StageOneWeights
    teacher_logits: Literal["computed", "stored"] = "computed"
    """`stored`: those beside the images are learnt from, and the teacher is not asked. They are of unchanged pixels, so
    nothing augments those then, and no features are learnt."""
    pairs: Annotated[list[PairSpec], FIRST_ERROR] | None = Field(default=None, min_length=1, max_length=1000)
    """What the hidden term compares; None: the teacher's early stages by their strides, onto the MHCA blocks [R]."""


class StageTwoSpec(Spec):
    """Classification alone: the teacher is gone."""

    epochs: int = Field(ge=0)
    distillation: Literal["none"]
    schedule: Literal["continues", "restarts"] = "continues"
    """Whether the learning rate goes on along one cosine over both stages, or each stage has a cosine of its own, the
    second without warm-up [R]."""
    lr: float | None = Field(default=None, gt=0)
    """Where a schedule that restarts begins; None: at `optimizer.lr` [R]."""


class OptimizerSpec(Spec):
    """timm's names. `lr` is the value used, already scaled to the batch."""

    opt: Literal["adamw", "sgd", "lamb", "adam"]
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    sched: Literal["cosine"]
    warmup_epochs: float = Field(ge=0)
    warmup_lr: float = Field(ge=0)
    min_lr: float = Field(ge=0)
    clip_grad: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient."""
    model_ema_half_life: float | None = Field(default=None, gt=0)
    """In epochs; with one set, the averaged weights are evaluated and exported. None: no averaging."""
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """For fine-tuning: a block's learning rate is the next block's times this (BEiT: 0.65 to 0.75). None: one rate."""


class AugmentationSpec(Spec):
    """timm's names for its transforms and Mixup; torchvision's for the affine part."""

    scale: Annotated[list[float], FIRST_ERROR] = Field(min_length=2, max_length=2)
    """Range of the random crop's area; [1, 1] crops nothing."""
    ratio: Annotated[list[float], FIRST_ERROR] = Field(min_length=2, max_length=2)
    hflip: Fraction
    aa: Annotated[str, Field(max_length=200), AfterValidator(check_auto_augment)] | None = None
    """RandAugment and its kin, in timm's notation; where set, colour jitter is off."""
    color_jitter: float = Field(ge=0)
    reprob: Fraction
    mixup: float = Field(ge=0)
    cutmix: float = Field(ge=0)
    smoothing: float = Field(ge=0, lt=1)
    aug_repeats: int = Field(ge=0, le=16)
    degrees: float = Field(ge=0, le=180)
    translate: Fraction
    shear: float = Field(ge=0, lt=90)


class TrainingSpec(Spec):
    """Everything that decides a run, filled in. Only `dataset` is required of a posted spec."""

    dataset: str
    """A dataset's id, or that of the synthesis job which makes it; kept as posted."""
    fraction: float = Field(gt=0, le=1)
    """Of each class's images that are trained on."""
    teacher: str | None = None
    init: str | None = None
    """A stored model's id, whose weights the student begins with, for fine-tuning. It is of that model's dimensions; to
    another image size they are resampled, and for another number of classes it gets new heads."""
    recipe: Recipe
    student: StudentSpec
    stage_one: StageOneSpec
    stage_two: StageTwoSpec
    optimizer: OptimizerSpec
    augmentation: AugmentationSpec
    batch_size: int = Field(ge=1)
    """Global: the sum over all processes and over the parts of `grad_accum_steps`."""
    shuffle_shards: int | None = Field(default=None, ge=1, le=100_000)
    """For a dataset that does not fit into the workers' cache: an epoch goes through the shards in a random order, and
    shuffles the samples of so many shards at a time; the cache must hold twice as many, or with several processes three
    times. Few mix badly where a shard holds few classes, as in synthesised sets. None: all samples are shuffled
    together, and must fit."""
    grad_accum_steps: int = Field(default=1, ge=1, le=1024)
    """Parts in which each process computes the gradient of its share of the batch, where that does not fit into memory
    at once. The result is the same up to the order of sums, but for dropout and drop-path, which differ."""
    processes: int = Field(ge=1, le=1024)
    engine: Literal["local", "ray"]
    precision: Precision
    holdout: float = Field(ge=0, lt=1)
    """Part of the training images on which `best` is chosen; they are not trained on [R]."""
    eval_dataset: str | None = None
    eval_every: int = Field(ge=1)
    """Epochs between evaluations; the last epoch is always evaluated."""
    checkpoint_every: int = Field(ge=1)
    """Epochs between checkpoints."""
    checkpoint_seconds: float = Field(default=900.0, gt=0)
    """Within an epoch too a checkpoint is made, once the last one is this old [our choice]."""
    keep_checkpoints: int = Field(default=1, ge=1, le=100)
    """How many of the last checkpoints are kept, beside the best weights [our choice]."""
    workers: int = Field(ge=0, le=64)
    """Loader workers of each process; no result depends on it."""
    priority: Priority
    seed: int = Field(ge=0, lt=2**63)
    name: Name | None = Field(default=None, max_length=200)

    @classmethod
    def resolve(
        cls, posted: Any, dataset: DatasetFacts, teacher: TeacherSpec | None, initial: StudentSpec | None = None
    ) -> "TrainingSpec":
        """The complete spec for a posted JSON object; explicit fields win over the recipe's.

        Args:
            posted: the request's body.
            dataset: what is known of `posted["dataset"]`.
            teacher: the teacher that the run will use: the one named, else the dataset's, else None.
            initial: the dimensions of the model that `posted["init"]` names, if it names one.

        Raises:
            InvalidInput: with a pointer for every field that is unknown, of the wrong type or out of range, alone or
                together with the others.
        """
        body = dict(require_object(posted))
        posted_student = body.get("student")
        student: dict[str, Any] = posted_student if isinstance(posted_student, dict) else {}
        if initial is not None and isinstance(body.get("student", {}), dict):
            student = initial.model_dump(include=set(DIMENSIONS)) | student
            body["student"] = student
        size = _image_size(student, (teacher and teacher.image_size) or dataset.image_size or 224)
        recipe = body.get("recipe") or choose_recipe(size)
        if recipe not in ("deit", "small"):
            raise InvalidInput.at("/recipe", f"unknown recipe {recipe!r}; there are deit and small")
        batch = body.get("batch_size")
        common = _common(dataset)
        if not isinstance(batch, int) or batch < 1:
            batch = default_batch_size(recipe, common | body, dataset)
        defaults = common | recipe_defaults(
            recipe, batch_size=batch, synthetic=dataset.synthetic, mirrored=dataset.mirrored
        )
        defaults |= {"recipe": recipe, "batch_size": batch}
        if wants_stored_logits(body):
            defaults = with_stored_logits(defaults)
        stage_one = body.get("stage_one", {})
        if isinstance(stage_one, dict):
            if teacher is None and not wants_stored_logits(body):
                _require_no_distillation(body)
            if stage_one.get("distillation") == "none":
                # Nothing else shares the loss then: a weight below 1 would only shrink the gradient.
                defaults["stage_one"]["weights"] |= {"classification": 1.0, "distillation": 0.0}
        if isinstance(body.get("optimizer", {}), dict):
            defaults["optimizer"] |= fitting_schedule(overlay(defaults, body))
        filled = overlay(defaults, {k: v for k, v in body.items() if not (k in ("recipe", "teacher") and v is None)})
        filled["student"] = _student(filled.get("student"), student, size)
        spec = cls.check(filled)
        spec._check_against(dataset, teacher, posted=body)
        if initial is not None:
            spec._check_begins_from(initial)
        return spec

    @property
    def units(self) -> list[list[str]]:
        """Names of the job's units of work, in groups as of a synthesis job: it is one piece."""
        return [["run"]]

    @property
    def epochs(self) -> int:
        return self.stage_one.epochs + self.stage_two.epochs

    @property
    def needs_teacher(self) -> bool:
        """Whether stage one looks at the teacher at all."""
        one = self.stage_one
        asks = one.distillation != "none" and one.weights.distillation > 0 and one.teacher_logits == "computed"
        return one.epochs > 0 and (asks or one.weights.hidden > 0)

    @property
    def reads_logits(self) -> bool:
        """Whether stage one learns from logits that lie beside the images."""
        return self.stage_one.epochs > 0 and self.stage_one.teacher_logits == "stored"

    def _check_begins_from(self, initial: StudentSpec) -> None:
        errors = [
            FieldError(
                f"/student/{name}",
                f"{getattr(self.student, name)!r}, but the model to begin from has {getattr(initial, name)!r}",
            )
            for name in DIMENSIONS
            if getattr(self.student, name) != getattr(initial, name)
        ]
        if errors:
            raise InvalidInput("; ".join(f"{e.pointer}: {e.detail}" for e in errors), errors=errors)

    def _check_against(self, dataset: DatasetFacts, teacher: TeacherSpec | None, *, posted: Mapping[str, Any]) -> None:
        errors: list[FieldError] = []

        def refuse(pointer: str, detail: str) -> None:
            errors.append(FieldError(pointer, detail))

        student = self.student
        if student.image_size % student.patch_size:
            refuse("/student/patch_size", f"{student.patch_size} does not divide image_size ({student.image_size})")
        elif (patches := (student.image_size // student.patch_size) ** 2) > MAX_PATCHES:
            refuse(
                "/student/patch_size",
                f"{student.patch_size} makes {patches} patches of an image of {student.image_size} pixels a side, and "
                f"attention takes the square of them; at most {MAX_PATCHES} are allowed: set a larger patch_size, or "
                "an image_size that has one as a divisor",
            )
        if student.embed_dim % student.num_heads:
            refuse("/student/num_heads", f"{student.num_heads} does not divide embed_dim ({student.embed_dim})")
        if student.mhca_blocks > student.depth:
            refuse("/student/mhca_blocks", f"{student.mhca_blocks}, but the student has {student.depth} blocks")
        if self.stage_one.weights.hidden > 0 and self.stage_one.epochs and student.depth < 1:
            refuse("/stage_one/weights/hidden", "the student has no block to align")
        if (
            self.stage_one.epochs
            and not self.stage_one.weights.classification
            and not (self.needs_teacher or self.reads_logits)
        ):
            refuse("/stage_one/weights", "no term that is computed has a weight above 0: nothing would be trained")
        if self.epochs == 0:
            refuse("/stage_one/epochs", "0, and so are those of stage_two: nothing would be trained")
        for place, pair in enumerate(self.stage_one.pairs or ()):
            if pair.block >= student.depth:
                refuse(f"/stage_one/pairs/{place}/block", f"{pair.block}, but the student has {student.depth} blocks")
        errors += schedule_refusals(self.model_dump())
        errors += batch_refusals(self.model_dump(), posted, dataset)
        for field in ("scale", "ratio"):
            low, high = getattr(self.augmentation, field)
            if not 0 < low <= high or (field == "scale" and high > 1):
                refuse(
                    f"/augmentation/{field}",
                    f"[{low}, {high}] is no range of positive numbers" + (" up to 1" * (field == "scale")),
                )
        if teacher is not None:
            if teacher.num_classes != dataset.num_classes:
                refuse(
                    "/teacher",
                    f"it has {teacher.num_classes} classes, the dataset {dataset.num_classes}: "
                    f"{count_remedy(teacher.class_names, dataset.class_names or ())} (class_names.json beside the "
                    "images), and add the dataset again",
                )
            if teacher.in_chans != dataset.in_chans:
                refuse("/teacher", f"it takes {teacher.in_chans} channels, the dataset has {dataset.in_chans}")
        elif dataset.num_classes < 2:
            refuse("/dataset", "it has one class, and one class teaches nothing: name a dataset of two at least")
        if self.stage_one.teacher_logits == "stored":
            errors += refusals(self.model_dump(), has_logits=dataset.stored_logits, teacher=dataset.teacher)
        if errors:
            raise InvalidInput("; ".join(f"{e.pointer}: {e.detail}" for e in errors), errors=errors)
        if self.engine != "local":
            raise InvalidInput.at(
                "/engine", f"{self.engine} is not built into this server: use local", code="engine_unavailable"
            )


def _common(dataset: DatasetFacts) -> dict[str, Any]:
    return {
        "fraction": 1.0,
        "teacher": dataset.teacher,
        "processes": 1,
        "engine": "local",
        "precision": "float32",
        "holdout": 0.05,
        "eval_dataset": None,
        "eval_every": 5,
        "checkpoint_every": 5,
        "workers": 1,
        "priority": "normal",
        "seed": 0,
    }


def _image_size(student: Mapping[str, Any], near: int) -> int:
    """The one that is posted, else one near the teacher's; of what is refused later, with a pointer, a stand-in."""
    posted, patch = student.get("image_size"), student.get("patch_size")
    if posted is not None:
        return posted if isinstance(posted, int) and 8 <= posted <= 4096 else 224
    return choose_image_size(near, patch if isinstance(patch, int) and 1 <= patch <= 4096 else None)


def _student(filled: Any, posted: Mapping[str, Any], image_size: int) -> Any:
    if not isinstance(filled, dict):
        return filled
    size = STUDENTS.get(filled["architecture"]) if isinstance(filled["architecture"], str) else None
    if size is None:
        raise InvalidInput.at(
            "/student/architecture", f"unknown student {filled['architecture']!r}; there are {', '.join(STUDENTS)}"
        )
    depth = posted.get("depth", size.depth)
    dims = {
        "image_size": image_size,
        "patch_size": None if posted.get("patch_size") is not None else choose_patch_size(image_size),
        "embed_dim": size.embed_dim,
        "depth": size.depth,
        "num_heads": size.num_heads,
        "mhca_blocks": min(size.mhca_blocks, depth) if isinstance(depth, int) and depth > 0 else size.mhca_blocks,
    }
    return dims | {key: value for key, value in filled.items() if value is not None}


def _require_no_distillation(body: Mapping[str, Any]) -> None:
    stage_one = body.get("stage_one", {})
    weights = stage_one.get("weights", {})
    if stage_one.get("epochs") == 0:
        return
    hidden = weights.get("hidden") if isinstance(weights, Mapping) else None
    if stage_one.get("distillation") != "none" or hidden != 0:
        raise InvalidInput.at(
            "/teacher",
            "the dataset has no teacher and none is named, but stage one distils: name a teacher, or set "
            "stage_one.distillation to none and stage_one.weights.hidden to 0",
        )
