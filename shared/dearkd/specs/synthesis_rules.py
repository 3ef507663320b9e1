"""The rules between a synthesis spec's fields, its teacher and the operator's limits, which no field can say alone."""

from collections.abc import Collection, Iterator

from dearkd.errors import FieldError, InvalidInput
from dearkd.specs.base import Limits
from dearkd.specs.cuts import MAX_SHARD_BYTES, sample_bytes
from dearkd.specs.synthesis import SynthesisSpec
from dearkd.specs.teacher import TeacherSpec


def check_synthesis(
    spec: SynthesisSpec, teacher: TeacherSpec, limits: Limits, refused_input_sizes: Collection[int]
) -> None:
    """Check a complete spec against its teacher and an operator's limits.

    Args:
        spec: whose fields hold each by itself.
        teacher: whose images are to be made.
        limits: the operator's.
        refused_input_sizes: sides of images that the teacher is known not to take.

    Raises:
        InvalidInput: with a pointer for every broken rule.
    """
    errors = [
        *_classes(spec, teacher, limits),
        *_phases(spec, teacher, limits, refused_input_sizes),
        *_optimisation(spec, limits),
        *_objective(spec, limits),
        *_shards(spec, teacher, limits),
    ]
    if errors:
        raise InvalidInput.all_of(errors)


def _classes(spec: SynthesisSpec, teacher: TeacherSpec, limits: Limits) -> Iterator[FieldError]:
    for i, label in enumerate(spec.classes):
        if not 0 <= label < teacher.num_classes:
            yield FieldError(
                f"/classes/{i}",
                f"class {label} is out of range: this teacher has classes 0 to {teacher.num_classes - 1}",
            )
    if len(set(spec.classes)) != len(spec.classes):
        yield FieldError("/classes", "a class is listed twice; list each once and raise images_per_class instead")
    if spec.num_samples > limits.max_images:
        yield FieldError(
            "/images_per_class", f"{spec.num_samples} images in all; this server allows {limits.max_images}"
        )
    if spec.classes_per_batch > len(spec.classes):
        yield FieldError(
            "/classes_per_batch", f"{spec.classes_per_batch}, but only {len(spec.classes)} classes are asked for"
        )
    if spec.batch_size % spec.classes_per_batch:
        yield FieldError(
            "/batch_size", f"{spec.batch_size} is not a multiple of classes_per_batch ({spec.classes_per_batch})"
        )


def _phases(
    spec: SynthesisSpec, teacher: TeacherSpec, limits: Limits, refused_input_sizes: Collection[int]
) -> Iterator[FieldError]:
    for i, phase in enumerate(spec.phases):
        if phase.resolution > phase.input_size:
            yield FieldError(
                f"/phases/{i}/resolution", f"{phase.resolution} is larger than input_size ({phase.input_size})"
            )
        if phase.input_size > limits.max_image_size:
            yield FieldError(
                f"/phases/{i}/input_size", f"{phase.input_size}; this server allows {limits.max_image_size}"
            )
        if phase.input_size in refused_input_sizes:
            yield FieldError(
                f"/phases/{i}/input_size",
                f"{teacher.architecture} cannot take images of {phase.input_size}×{phase.input_size} pixels, as "
                f"was found when it was registered: leave it out, and it is shown {teacher.image_size}",
            )
        if i and phase.resolution < spec.phases[i - 1].resolution:
            yield FieldError(
                f"/phases/{i}/resolution", f"{phase.resolution} is below the phase before: resolutions only grow"
            )
    if (passes := spec.budget and spec.budget.teacher_passes) and passes < spec.teacher_passes:
        yield FieldError(
            "/budget/teacher_passes",
            f"{passes}, but images_per_class and phases take {spec.teacher_passes}: "
            "leave them out, and they follow from the budget, or leave out the budget",
        )


def _optimisation(spec: SynthesisSpec, limits: Limits) -> Iterator[FieldError]:
    iterations = spec.iterations
    if iterations > limits.max_iterations:
        yield FieldError("/phases", f"{iterations} iterations in all; this server allows {limits.max_iterations}")
    if spec.jitter >= min(phase.input_size for phase in spec.phases):
        yield FieldError("/jitter", f"{spec.jitter} pixels is not below the smallest input_size")
    if not all(0 <= beta < 1 for beta in spec.betas):
        yield FieldError("/betas", f"{spec.betas}: Adam's betas lie in [0, 1)")
    if spec.warmup_iterations and spec.warmup_iterations >= iterations:
        yield FieldError("/warmup_iterations", f"{spec.warmup_iterations} leaves none of {iterations} iterations")
    if spec.unlabelled_iterations and spec.unlabelled_iterations >= iterations:
        yield FieldError(
            "/unlabelled_iterations",
            f"{spec.unlabelled_iterations} leaves none of {iterations} iterations in which images have labels",
        )
    if spec.unlabelled_iterations and spec.weights.batch_norm == 0:
        yield FieldError(
            "/unlabelled_iterations",
            f"{spec.unlabelled_iterations}, but weights.batch_norm is 0: without labels nothing says what the "
            "images should become; set it to 0",
        )
    least = min(phase.resolution for phase in spec.phases)
    if least >> (spec.pyramid_levels - 1) < 2:
        yield FieldError(
            "/pyramid_levels",
            f"{spec.pyramid_levels} levels of a tensor of {least} pixels end below 2 pixels: "
            f"set at most {least.bit_length() - 1}",
        )
    if spec.generator is not None:
        for pointer, given, wrong in (
            ("/phases", f"{len(spec.phases)} phases", len(spec.phases) > 1),
            ("/pyramid_levels", f"{spec.pyramid_levels}", spec.pyramid_levels > 1),
            ("/init", spec.init, spec.init != "noise"),
            ("/init_std", f"{spec.init_std}", spec.init_std != 1),
        ):
            if wrong:
                yield FieldError(
                    pointer,
                    f"{given}, but that is of pixels, and here a generator makes the images, at one resolution: "
                    "leave it out, or set generator to null",
                )
    if spec.init == "earlier_batch" and spec.shard_samples <= spec.batch_size:
        yield FieldError(
            "/init",
            f"earlier_batch, but a shard of {spec.shard_samples} images is made in one batch of {spec.batch_size}: "
            "leave out batch_size and shard_samples, or set shard_samples to several batches; a single image of a "
            "class has none before it",
        )


def _objective(spec: SynthesisSpec, limits: Limits) -> Iterator[FieldError]:
    if not any(spec.weights.model_dump().values()):
        yield FieldError("/weights", "all of them are 0, so that there is nothing to optimise: leave one above it")
    layers = spec.batch_norm_layer_weights
    if layers is not None and not any([spec.first_batch_norm_weight * sum(layers[:1]), *layers[1:]]):
        yield FieldError(
            "/batch_norm_layer_weights",
            "no layer weighs anything: leave one above 0; what turns the term off is weights.batch_norm 0",
        )
    if spec.weights.boundary > 0 and spec.has_lone_batch():
        yield FieldError(
            "/weights/boundary",
            f"{spec.weights.boundary}, but there is a batch with one image of each class at most, before any other "
            "of theirs in its shard, so that none has a positive: set it to 0, or raise batch_size / "
            "classes_per_batch and images_per_class to 2 or more and leave out shard_samples",
        )
    trains = spec.weights.adaptive > 0 and spec.adaptive_student is None
    if trains and spec.rounds > 1:
        yield FieldError(
            "/budget" if spec.budget else "/rounds",
            "weights.adaptive is above 0, and the student that it needs is trained on some of all shards, whose "
            "number several rounds leave open: name an adaptive_student, set the weight to 0, or give a budget of "
            "teacher_passes",
        )
    elif trains and spec.num_shards < 2:
        yield FieldError(
            "/weights/adaptive",
            f"{spec.weights.adaptive}, but there is one shard, and the student that it needs is trained on the "
            f"first: set shard_samples to at most {(spec.num_samples + 1) // 2}, raise images_per_class, name an "
            "adaptive_student, or set the weight to 0",
        )
    if trains and not any(weight for name, weight in spec.weights.model_dump().items() if name != "adaptive"):
        yield FieldError(
            "/weights",
            "all but adaptive are 0, which takes no part in the first shards, so that nothing is left to optimise: "
            "leave another above it, or name an adaptive_student",
        )
    if spec.adaptive_every is not None and not trains:
        why = "adaptive_student is named" if spec.weights.adaptive > 0 else "weights.adaptive is 0"
        yield FieldError(
            "/adaptive_every", f"{spec.adaptive_every}, but no student is trained along the way, since {why}"
        )
    if spec.adaptive_iterations > limits.max_iterations:
        yield FieldError(
            "/adaptive_iterations", f"{spec.adaptive_iterations}; this server allows {limits.max_iterations}"
        )
    if spec.adaptive_student is not None and spec.weights.adaptive == 0:
        yield FieldError("/adaptive_student", "a student is named, but weights.adaptive is 0: set both or neither")


def _shards(spec: SynthesisSpec, teacher: TeacherSpec, limits: Limits) -> Iterator[FieldError]:
    if spec.num_shards > (most := limits.max_shards):
        yield FieldError(
            "/shard_samples",
            f"{spec.shard_samples} cuts {spec.num_samples} images into {spec.num_shards} shards; this server "
            f"allows {most}: set it to at least {-(-spec.num_samples // most)}, and rounds to at most {most}",
        )
    each = sample_bytes(teacher, logits=spec.store_logits)
    if spec.shard_samples * each > MAX_SHARD_BYTES:
        yield FieldError(
            "/shard_samples",
            f"{spec.shard_samples} samples may take {spec.shard_samples * each} bytes; a shard is created in one "
            f"request of at most {MAX_SHARD_BYTES}: {MAX_SHARD_BYTES // each} samples fit",
        )
