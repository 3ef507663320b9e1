"""The unit that trains a job's own student, and the student as the job's other shards get it."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from dearkd.attempt import Attempt
from dearkd.datasets import Shard
from dearkd.errors import CorruptData, NotFound
from dearkd.jobs import dataset_of
from dearkd.resources import StoredFile, Teacher, describe_file
from dearkd.specs import SynthesisSpec
from dearkd.storage import AlreadyExists
from dearkd.vision.shards import ShardDataset
from dearkd_synth.competitor import Competitor, agreement, load_competitor, save_competitor, train_competitor

UNIT = "student"
NAME = "adaptive_student.safetensors"
MAX_IMAGES = 10_000
"""It is trained on at most so many, the first of each shard: they are all in memory."""


def make_student(attempt: Attempt, spec: SynthesisSpec, teacher: Teacher, network: nn.Module) -> StoredFile:
    """Train the student on the first shards and store it, or adopt the one that lies there.

    Args:
        attempt: at the unit `student`.
        spec: of the job.
        teacher: its record.
        network: the teacher itself, frozen, on the device to compute on.
    """
    if attempt.storage.exists(_key(attempt)):
        attempt.note("the student lies in storage already: verified and adopted")
        return _adopt(attempt, teacher)
    images = _images(attempt, spec, teacher)
    device = next(network.parameters()).device

    def on_step(done: int, loss: float) -> None:
        attempt.check()
        # No images are made here, so the bar stands still.
        attempt.progress(0, None, {"student_iteration": done, "student_loss": loss})

    student = train_competitor(network, teacher.spec, spec, images, device=device, on_step=on_step)
    agrees = agreement(network, student.to(device), teacher.spec, images, batch_size=spec.batch_size)
    attempt.note(
        f"the student is trained on {len(images)} images of {len(spec.student_shards)} shard(s): it agrees with the "
        f"teacher on {agrees:.1%} of them"
    )
    with tempfile.TemporaryDirectory(prefix="dearkd-student-") as folder:
        path = Path(folder) / NAME
        save_competitor(student.cpu(), path)
        return attempt.publish(lambda: _publish(attempt, teacher, path))


def fetch_student(attempt: Attempt, teacher: Teacher) -> Competitor:
    """The student of a claimed shard's job, from a verified local copy.

    Raises:
        CorruptData: if what is stored is not what was marked, or is gone.
    """
    payload = attempt.ledger.payloads(attempt.job.id)[UNIT]
    marked = StoredFile.model_validate_json(payload)
    try:
        path = attempt.cache.fetch(attempt.storage, _key(attempt), name=NAME, sha256=marked.sha256, size=marked.bytes)
    except NotFound:
        raise CorruptData(f"{_key(attempt)} is gone from storage: retry the job, and it is made again") from None
    return load_competitor(path, teacher.spec)


def _publish(attempt: Attempt, teacher: Teacher, path: Path) -> StoredFile:
    try:
        attempt.storage.create(_key(attempt), path)
    except AlreadyExists:
        attempt.note("the student lay in storage before this upload ended: verified and adopted")
        return _adopt(attempt, teacher)
    return describe_file(path)


def _adopt(attempt: Attempt, teacher: Teacher) -> StoredFile:
    with tempfile.TemporaryDirectory(prefix="dearkd-student-") as folder:
        path = Path(folder) / NAME
        attempt.storage.download(_key(attempt), path)
        load_competitor(path, teacher.spec)
        return describe_file(path)


def _images(attempt: Attempt, spec: SynthesisSpec, teacher: Teacher) -> Tensor:
    """(N, C, H, W), uint8: the first images of each of the first shards, as they are stored and marked."""
    payloads = attempt.ledger.payloads(attempt.job.id)
    each = max(1, MAX_IMAGES // len(spec.student_shards))
    images: list[Tensor] = []
    with tempfile.TemporaryDirectory(prefix="dearkd-student-") as folder:
        for index in spec.student_shards:
            attempt.check()
            shard = Shard.model_validate_json(payloads[str(index)])
            path = Path(folder) / shard.name
            attempt.storage.download(f"datasets/{dataset_of(attempt.job.id)}/{shard.name}", path, sha256=shard.sha256)
            samples = ShardDataset([path], num_classes=teacher.num_classes, in_chans=1 if teacher.in_chans == 1 else 3)
            images += [samples[i][0] for i in range(min(each, len(samples)))]
            path.unlink()
    return torch.stack(images)


def _key(attempt: Attempt) -> str:
    return f"datasets/{dataset_of(attempt.job.id)}/{NAME}"
