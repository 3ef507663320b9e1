"""The batches of a training run: their default size, and the sizes with which a run would fail."""

from collections.abc import Mapping
from typing import Any

from dearkd.errors import FieldError
from dearkd.specs.dataset_facts import DatasetFacts, TrainedImages
from dearkd.specs.recipes import Recipe, recipe_batch_size


def smallest_batch(images: int, batch_size: int) -> int:
    """Images in the smallest batch of an epoch, whose batches differ in size by one at most."""
    return images // -(-images // batch_size)


def default_batch_size(recipe: Recipe, body: Mapping[str, Any], dataset: DatasetFacts) -> int:
    """The recipe's batch, halved until an epoch has at least eight of them; the processes share it evenly.

    Args:
        recipe: whose batch.
        body: a training spec, not checked yet: what is out of range in it counts as if it were not there.
        dataset: to train on.
    """
    fraction, holdout = body["fraction"], body["holdout"]
    images = dataset.trained_images(
        fraction if isinstance(fraction, float | int) and 0 < fraction <= 1 else 1.0,
        holdout if isinstance(holdout, float | int) and 0 <= holdout < 1 else 0.0,
    )
    processes, parts = (
        value if isinstance(value := body.get(field, 1), int) and value > 0 else 1
        for field in ("processes", "grad_accum_steps")
    )
    step = processes * parts
    batch = recipe_batch_size(recipe)
    while batch > step and batch * 8 > images.expected:
        batch //= 2
    batch = max(step, batch - batch % step)
    # An image for each process is too few, but where they divide all images: the smaller batches would have fewer.
    twice_is_better = _fault(batch, processes, images) is not None and _fault(2 * batch, processes, images) is None
    return 2 * batch if twice_is_better else batch


def batch_refusals(spec: Mapping[str, Any], posted: Mapping[str, Any], dataset: DatasetFacts) -> list[FieldError]:
    """What stands against the batches of a filled-in training spec.

    Args:
        spec: as JSON.
        posted: what was asked for: where a default does not work, the field that was is told.
        dataset: to train on.
    """
    batch, processes, parts = spec["batch_size"], spec["processes"], spec["grad_accum_steps"]
    if batch % processes:
        return [FieldError("/batch_size", f"{batch} is not a multiple of processes ({processes})")]
    if batch // processes % parts:
        each = batch // processes
        return [FieldError("/batch_size", f"{each} a process is not a multiple of grad_accum_steps ({parts})")]
    fault = _fault(batch, processes, dataset.trained_images(spec["fraction"], spec["holdout"]))
    if fault is None:
        return []
    if "batch_size" in posted:
        return [FieldError("/batch_size", f"{batch}, but {fault}: set another, or leave it out")]
    field = _to_blame(spec, posted, dataset)
    remedy = "leave more images to train on, or set fewer processes and parts"
    return [FieldError(f"/{field}", f"with {spec[field]} a batch of {batch} is tried, but {fault}: {remedy}")]


def _fault(batch: int, processes: int, images: TrainedImages) -> str | None:
    fewest, most = max(1, images.fewest), max(1, images.most)
    if batch > most:
        return f"only {images.most} images are trained on"
    smallest = min(smallest_batch(count, batch) for count in range(fewest, most + 1))
    if smallest >= processes:
        return None
    count = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return f"of {count} images a batch may get {smallest}, and each of {processes} processes needs one"


def _to_blame(spec: Mapping[str, Any], posted: Mapping[str, Any], dataset: DatasetFacts) -> str:
    """The posted field without which the default batch would do."""
    for field, without in (("holdout", 0.0), ("fraction", 1.0)):
        if field in posted:
            other = {**spec, field: without}
            images = dataset.trained_images(other["fraction"], other["holdout"])
            if _fault(default_batch_size(spec["recipe"], other, dataset), spec["processes"], images) is None:
                return field
    return "processes" if spec["processes"] > 1 else "grad_accum_steps"
