"""The unit that trains a job's own student, and the loading of that student for the job's other shards."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dearkd import tracing
from dearkd.data.shard_files import Shard
from dearkd.errors import CorruptData, NotFound
from dearkd.jobs.model import dataset_of
from dearkd.specs import SynthesisSpec
from dearkd.storage.catalog import StoredFile, Teacher, describe_file
from dearkd.vision.shards import Indices, ShardDataset
from dearkd.work.attempt import Attempt
from dearkd_synth.student.adaptive_student import (
    AdaptiveStudent,
    agreement,
    load_adaptive_student,
    save_adaptive_student,
    train_adaptive_student,
)

UNIT = "student"
NAME = "adaptive_student.safetensors"
MAX_IMAGES = 10_000
MAX_BYTES = 2**30
"""The most bytes of the images it is trained on (and `MAX_IMAGES` their number), since all are in memory: 7133 colour
images of 224 px."""


def make_student(attempt: Attempt, spec: SynthesisSpec, teacher: Teacher, network: nn.Module) -> StoredFile:
    """Train the student on the first shards and store it; adopt it if storage has it already.

    Args:
        attempt: the attempt at the unit `student`.
        spec: the job's spec.
        teacher: the teacher's manifest.
        network: the teacher itself, frozen, on the device to compute on.
    """
    if attempt.storage.exists(_key(attempt)):
        return _adopt(attempt, teacher)
    images = stored_images(attempt, teacher, spec.student_shards, max_images=MAX_IMAGES, max_bytes=MAX_BYTES)
    device = next(network.parameters()).device

    def on_step(done: int, loss: float) -> None:
        attempt.check()
        # No images are made here, so the bar stands still.
        attempt.progress(0, None, {"student_iteration": done, "student_loss": loss})

    with tracing.span("train student", {"dearkd.images": len(images)}):
        student = train_adaptive_student(network, teacher.spec, spec, images, device=device, on_step=on_step)
    agrees = agreement(network, student.to(device), teacher.spec, images, batch_size=spec.batch_size)
    attempt.note(
        f"the student is trained on {len(images)} images of {len(spec.student_shards)} shard(s): it agrees with the "
        f"teacher on {agrees:.1%} of them"
    )
    with attempt.cache.scratch("student") as folder:
        path = folder / NAME
        save_adaptive_student(student.cpu(), path)
        made = describe_file(path)
        return attempt.publish(
            lambda: attempt.storage.create_or_adopt(_key(attempt), path, made, lambda: _adopt(attempt, teacher))
        )


def fetch_student(attempt: Attempt, teacher: Teacher) -> AdaptiveStudent:
    """The student of a claimed shard's job, from a verified local copy.

    Raises:
        CorruptData: if the stored file is gone, or not the one that its unit recorded.
    """
    marked = StoredFile.model_validate_json(_payload(attempt, UNIT))
    try:
        path = attempt.cache.fetch(attempt.storage, _key(attempt), name=NAME, sha256=marked.sha256, size=marked.bytes)
    except NotFound:
        raise CorruptData(f"{_key(attempt)} is gone from storage: retry the job, and it is made again") from None
    return load_adaptive_student(path, teacher.spec)


def _adopt(attempt: Attempt, teacher: Teacher) -> StoredFile:
    with attempt.cache.scratch("student") as folder:
        path = folder / NAME
        attempt.storage.download(_key(attempt), path)
        load_adaptive_student(path, teacher.spec)
        stored = describe_file(path)
    attempt.note("the student lies in storage already: verified and adopted")
    return stored


def stored_images(
    attempt: Attempt, teacher: Teacher, made: Sequence[int], *, max_images: int, max_bytes: int
) -> Tensor:
    """Stored images (N, C, H, W), uint8, of these shards, equally many of each class of each.

    Args:
        attempt: the attempt at a unit behind these.
        teacher: of the job.
        made: indices of shards.
        max_images: the most images.
        max_bytes: the most bytes of them.
    """
    shape = (teacher.in_chans, teacher.image_size, teacher.image_size)
    max_images = max(1, min(max_images, max_bytes // (shape[0] * shape[1] * shape[2])))
    shards = evenly(made, max_images)
    each = max_images // len(shards)
    images, filled = torch.empty(max_images, *shape, dtype=torch.uint8), 0
    for index in shards:
        attempt.check()
        shard = Shard.model_validate_json(_payload(attempt, str(index)))
        with attempt.cache.scratch("student") as folder:
            path = folder / shard.name
            attempt.storage.download(f"datasets/{dataset_of(attempt.job.id)}/{shard.name}", path, sha256=shard.sha256)
            samples = ShardDataset([path], num_classes=teacher.num_classes, in_chans=1 if teacher.in_chans == 1 else 3)
            for sample in of_each_class(samples.labels, each):
                images[filled] = samples[int(sample)][0]
                filled += 1
    return images[:filled]


def evenly(values: Sequence[int], count: int) -> list[int]:
    """Up to `count` of the values, evenly spread."""
    count = min(count, len(values))
    return [values[i * len(values) // count] for i in range(count)]


def of_each_class(labels: Indices, count: int) -> Indices:
    """Up to `count` sample numbers, ascending: the first few of each class, as many of each to within one.

    With more classes than `count`, evenly spread classes give one each.

    Args:
        labels: (N,) class indices.
        count: of samples in all; from N on, all are taken.
    """
    if count >= len(labels):
        return np.arange(len(labels))
    classes = np.unique(labels)
    shares = np.diff(np.arange(len(classes) + 1) * count // len(classes))
    picked = [np.flatnonzero(labels == label)[:share] for label, share in zip(classes, shares, strict=True)]
    return np.sort(np.concatenate(picked))


def _payload(attempt: Attempt, unit: str) -> bytes:
    payload = attempt.ledger.payload(attempt.job.id, unit)
    assert payload is not None, f"unit {unit} is not done, but this one was opened"
    return payload


def _key(attempt: Attempt) -> str:
    return f"datasets/{dataset_of(attempt.job.id)}/{NAME}"
