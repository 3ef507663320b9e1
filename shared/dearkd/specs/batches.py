"""The batches of a training run: their default size, and the sizes with which a run would fail."""

from collections.abc import Collection

from dearkd.errors import FieldError
from dearkd.specs.dataset_facts import DatasetFacts, TrainedImages
from dearkd.specs.recipes import RECIPES
from dearkd.specs.training import TrainingSpec


def smallest_batch(images: int, batch_size: int) -> int:
    """Images in the smallest batch of an epoch, whose batches differ in size by one at most."""
    return images // -(-images // batch_size)


def default_batch_size(spec: TrainingSpec, dataset: DatasetFacts) -> int:
    """The recipe's batch, halved until an epoch has at least eight of them; the processes share it evenly."""
    images = dataset.trained_images(spec.fraction, spec.holdout)
    step = spec.processes * spec.grad_accum_steps
    batch = RECIPES[spec.recipe](dataset).batch_size
    while batch > step and batch * 8 > images.expected:
        batch //= 2
    batch = max(step, batch - batch % step)
    # An image for each process is too few, but where they divide all images: the smaller batches would have fewer.
    now, doubled = (_fault(size, spec.processes, images) for size in (batch, 2 * batch))
    return 2 * batch if now is not None and doubled is None else batch


def batch_refusals(spec: TrainingSpec, given: Collection[str], dataset: DatasetFacts) -> list[FieldError]:
    """Find what stands against the batches of a training spec.

    Args:
        spec: the complete one.
        given: the fields that were asked for: where a default does not work, one of these is told.
        dataset: to train on.
    """
    batch, processes, parts = spec.batch_size, spec.processes, spec.grad_accum_steps
    if batch % processes:
        return [FieldError("/batch_size", f"{batch} is not a multiple of processes ({processes})")]
    if batch // processes % parts:
        each = batch // processes
        return [FieldError("/batch_size", f"{each} a process is not a multiple of grad_accum_steps ({parts})")]
    fault = _fault(batch, processes, dataset.trained_images(spec.fraction, spec.holdout))
    if fault is None:
        return []
    if "batch_size" in given:
        return [FieldError("/batch_size", f"{batch}, but {fault}: set another, or leave it out")]
    field = _to_blame(spec, given, dataset)
    remedy = "leave more images to train on, or set fewer processes and parts"
    return [FieldError(f"/{field}", f"with {getattr(spec, field)} a batch of {batch} is tried, but {fault}: {remedy}")]


def _fault(batch: int, processes: int, images: TrainedImages) -> str | None:
    minimum, maximum = max(1, images.minimum), max(1, images.maximum)
    if batch > maximum:
        return f"only {images.maximum} images are trained on"
    smallest = min(smallest_batch(count, batch) for count in range(minimum, maximum + 1))
    if smallest >= processes:
        return None
    count = f"{minimum}" if minimum == maximum else f"{minimum} to {maximum}"
    return f"of {count} images a batch may get {smallest}, and each of {processes} processes needs one"


def _to_blame(spec: TrainingSpec, given: Collection[str], dataset: DatasetFacts) -> str:
    """The given field without which the default batch would do."""
    for field, without in (("holdout", 0.0), ("fraction", 1.0)):
        if field in given:
            other = spec.model_copy(update={field: without})
            images = dataset.trained_images(other.fraction, other.holdout)
            if _fault(default_batch_size(other, dataset), spec.processes, images) is None:
                return field
    return "processes" if spec.processes > 1 else "grad_accum_steps"
