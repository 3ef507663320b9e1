"""The request for a training run, with almost everything left out, and the spec that it becomes with a dataset."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from pydantic import Field

from dearkd.choices import Recipe
from dearkd.errors import FieldError, InvalidInput
from dearkd.specs.base import Spec, fields_of, overlay
from dearkd.specs.batches import batch_refusals, default_batch_size
from dearkd.specs.class_order import count_remedy
from dearkd.specs.dataset_facts import DatasetFacts
from dearkd.specs.geometry import choose_image_size, choose_patch_size
from dearkd.specs.recipes import RECIPES, STUDENTS, choose_recipe
from dearkd.specs.schedules import fitting_schedule, schedule_refusals
from dearkd.specs.stored_logits import STORED_LOGITS, stored_logits_refusals
from dearkd.specs.teacher import TeacherSpec
from dearkd.specs.training import StudentSpec, TrainingSpec
from dearkd.specs.webhook import WebhookRequest

MAX_PATCHES = 2**14
"""The most patches of a student: 128×128, such as 2048 px in patches of 16 px."""

DIMENSIONS = ("architecture", "patch_size", "embed_dim", "depth", "num_heads", "mhca_blocks", "mhca_mix", "distilled")
"""Fields of a student that decide which weights it has, and what they mean, but for its image size."""

NO_DISTILLATION = {"stage_one": {"weights": {"classification": 1.0, "distillation": 0.0}}}
"""Nothing else shares the loss then: a weight below 1 would only shrink the gradient."""


@fields_of(
    StudentSpec,
    nullable={
        *("image_size", "patch_size", "embed_dim", "depth", "num_heads", "mhca_blocks"),
        *("mhca_mix", "mhca_locality", "mhca_dropout"),
    },
)
class StudentRequest(Spec):
    """A DearKD-ViT; its dimensions are by default those of its architecture, fitted to the images."""


@fields_of(TrainingSpec)
class TrainingRequest(Spec):
    """A training run as it is asked for. Only `dataset` is required; the recipe says the rest."""

    dataset: str
    """A dataset's id, or that of the synthesis job which makes it; kept as posted."""
    teacher: str | None = None
    """The teacher's id; None: the dataset's teacher."""
    init: str | None = None
    """A stored model's id, whose weights the student begins with, for fine-tuning. It is of that model's dimensions; to
    another image size they are resampled, and for another number of classes it gets new heads."""
    recipe: Recipe | None = None
    """The recipe; None: the one for the student's image size."""
    eval_dataset: str | None = None
    """The id of a dataset to evaluate on."""
    webhook: WebhookRequest | None = None
    """Whom the run tells of its steps."""
    student: StudentRequest = Field(default_factory=StudentRequest)

    def complete(
        self,
        dataset: DatasetFacts,
        teacher: TeacherSpec | None,
        initial: StudentSpec | None = None,
        *,
        on_ray: bool = False,
    ) -> TrainingSpec:
        """The spec of the recipe, over it what is given, and defaults that fit to what is given.

        Args:
            dataset: what is known of the one that is named.
            teacher: the teacher that the run will use: the one named, else the dataset's, else None.
            initial: the dimensions of the model that `init` names, if it names one.
            on_ray: whether there is a Ray cluster for `engine: ray`.

        Raises:
            InvalidInput: with a pointer for every rule that the fields break together, or with dataset and teacher.
        """
        asked = self.model_dump(exclude_unset=True)
        given = {name: value for name, value in asked.items() if value is not None or name not in ("recipe", "teacher")}
        student = initial.model_dump(include=set(DIMENSIONS)) if initial is not None else {}
        student |= {name: value for name, value in given.pop("student", {}).items() if value is not None}
        near = (teacher and teacher.image_size) or dataset.image_size or 224
        image_size = student.get("image_size") or choose_image_size(near, student.get("patch_size"))
        recipe = RECIPES[self.recipe or choose_recipe(image_size)](dataset)
        defaults = recipe.model_dump() | {"student": _student(recipe.student, student, image_size)}
        stage_one = given.get("stage_one", {})
        if stage_one.get("teacher_logits") == "stored":
            defaults = overlay(defaults, STORED_LOGITS)
        if stage_one.get("distillation") == "none":
            defaults = overlay(defaults, NO_DISTILLATION)
        spec = _fit(TrainingSpec.check(overlay(defaults, given)), given, dataset)
        _check_against(spec, dataset, teacher, given=given)
        if spec.engine == "ray" and not on_ray:
            raise InvalidInput.at(
                "/engine",
                "ray, but this server knows no Ray cluster: use local, or name one by DEARKD_RAY_ADDRESS to the API "
                "and its trainers",
                code="engine_unavailable",
            )
        if spec.engine == "ray" and spec.resources is not None and spec.resources.memory_bytes is not None:
            raise InvalidInput.at(
                "/resources/memory_bytes",
                f"{spec.resources.memory_bytes}, but a Ray cluster is not asked for memory: leave it out, or use the "
                "engine local",
            )
        if initial is not None:
            _check_begins_from(spec.student, initial)
        return spec


def _student(recipe: StudentSpec, given: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """The recipe's student with what is given, and the dimensions of its architecture fitted to that."""
    architecture = given.get("architecture", recipe.architecture)
    if architecture not in STUDENTS:
        raise InvalidInput.at(
            "/student/architecture", f"unknown student {architecture!r}; there are {', '.join(STUDENTS)}"
        )
    size = STUDENTS[architecture]
    fitted = {
        "image_size": image_size,
        "patch_size": given.get("patch_size") or choose_patch_size(image_size),
        "mhca_blocks": min(size.mhca_blocks, given.get("depth", size.depth)),
    }
    return recipe.model_dump() | asdict(size) | fitted | dict(given)


def _fit(spec: TrainingSpec, given: Mapping[str, Any], dataset: DatasetFacts) -> TrainingSpec:
    """Bend those defaults that were not asked for to those fields that were, so that every default works."""
    optimizer = given.get("optimizer", {})
    recipe_batch = RECIPES[spec.recipe](dataset).batch_size
    batch = spec.batch_size if "batch_size" in given else default_batch_size(spec, dataset)
    if "lr" not in optimizer:
        rate = spec.optimizer.lr * batch / recipe_batch
        spec = spec.model_copy(update={"optimizer": spec.optimizer.model_copy(update={"lr": rate})})
    fitting = {name: value for name, value in fitting_schedule(spec).items() if name not in optimizer}
    augmentation = spec.augmentation
    if augmentation.hflip is None and not spec.needs_teacher:  # nobody to ask; real photographs have colour, as a rule
        photographs = dataset.in_chans == 3 and not dataset.synthetic
        augmentation = augmentation.model_copy(update={"hflip": 0.5 if photographs else 0.0})
    return spec.model_copy(
        update={
            "batch_size": batch,
            "optimizer": spec.optimizer.model_copy(update=fitting),
            "augmentation": augmentation,
        }
    )


def _check_against(
    spec: TrainingSpec, dataset: DatasetFacts, teacher: TeacherSpec | None, *, given: Collection[str]
) -> None:
    errors: list[FieldError] = []

    def refuse(pointer: str, detail: str) -> None:
        errors.append(FieldError(pointer, detail))

    student, one = spec.student, spec.stage_one
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
    if one.weights.hidden > 0 and one.epochs and student.depth < 1:
        refuse("/stage_one/weights/hidden", "the student has no block to align")
    if one.epochs and not one.weights.classification and not (spec.needs_teacher or spec.reads_logits):
        refuse("/stage_one/weights", "no term that is computed has a weight above 0: nothing would be trained")
    if spec.epochs == 0:
        refuse("/stage_one/epochs", "0, and so are those of stage_two: nothing would be trained")
    for place, pair in enumerate(one.pairs or ()):
        if pair.block >= student.depth:
            refuse(f"/stage_one/pairs/{place}/block", f"{pair.block}, but the student has {student.depth} blocks")
    errors += schedule_refusals(spec)
    errors += batch_refusals(spec, given, dataset)
    for field in ("scale", "ratio"):
        low, high = getattr(spec.augmentation, field)
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
    if one.teacher_logits == "stored":
        errors += stored_logits_refusals(spec, dataset)
    elif teacher is None and one.epochs and (one.distillation != "none" or one.weights.hidden):
        refuse(
            "/teacher",
            "the dataset has no teacher and none is named, but stage one distils: name a teacher, or set "
            "stage_one.distillation to none and stage_one.weights.hidden to 0",
        )
    if errors:
        raise InvalidInput.all_of(errors)


def _check_begins_from(student: StudentSpec, initial: StudentSpec) -> None:
    errors = [
        FieldError(
            f"/student/{name}",
            f"{getattr(student, name)!r}, but the model to begin from has {getattr(initial, name)!r}",
        )
        for name in DIMENSIONS
        if getattr(student, name) != getattr(initial, name)
    ]
    if errors:
        raise InvalidInput.all_of(errors)
