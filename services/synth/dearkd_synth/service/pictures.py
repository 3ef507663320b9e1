"""Pictures that a job stores for people, beside its shards: the grid of its images, and the map of their features.

Either is joined of what each shard left when it was made. It only serves people: a failure is noted, and fails no job.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256

from dearkd.data.feature_maps import FEATURE_MAP
from dearkd.data.shard_files import Shard
from dearkd.errors import NotFound, Unavailable
from dearkd.jobs.model import dataset_of
from dearkd.specs import SynthesisSpec
from dearkd.storage.catalog import Teacher
from dearkd.work.attempt import Attempt
from dearkd_synth.feature_map import feature_map, mapped_shards
from dearkd_synth.service.preview import compose_preview

log = logging.getLogger(__name__)

MAX_STRIPS = 64
"""The first shards, which leave strips for the grid."""


def update_preview(attempt: Attempt, spec: SynthesisSpec, teacher: Teacher, marked: int | None = None) -> None:
    """Compose and store the grid of the shards done so far, from their strips.

    It only serves people: a failure is noted, and does not fail the job.

    Args:
        attempt: the attempt at a unit of the job.
        spec: the job's spec.
        teacher: names the classes.
        marked: index of the shard that was just finished; does nothing if it is beyond those that the grid shows.
    """
    if marked is not None and marked >= MAX_STRIPS:
        return
    try:
        store_preview(attempt, spec, teacher, _strips(attempt, range(min(spec.num_shards, MAX_STRIPS))))
    except Unavailable:
        raise  # storage or Redis is away, which ends no job
    except Exception as error:
        log.exception("the preview of %s", attempt.job.id)
        attempt.note(f"the preview could not be made: {type(error).__name__}: {error}")


def store_preview(
    attempt: Attempt, spec: SynthesisSpec, teacher: Teacher, strips: Iterable[tuple[bytes, Shard]]
) -> None:
    names = [teacher.class_name(label) for label in range(teacher.num_classes)]
    grid = compose_preview(strips, names, classes=len(spec.classes), images_per_class=spec.images_per_class)
    if grid is not None:
        attempt.storage.put(f"datasets/{dataset_of(attempt.job.id)}/preview.png", grid)
        attempt.announce("preview", {"bytes": len(grid), "sha256": sha256(grid).hexdigest()})


def _strips(attempt: Attempt, indices: range) -> Iterator[tuple[bytes, Shard]]:
    """The strips of the finished ones among these shards, one at a time."""
    for index in indices:
        payload = attempt.ledger.payload(attempt.job.id, str(index))
        if payload is None:
            continue
        shard = Shard.model_validate_json(payload)
        with suppress(NotFound):  # of an adopted shard, whose maker left none
            yield attempt.storage.read(side_key(attempt, shard, "png")), shard


def store_map(attempt: Attempt, spec: SynthesisSpec, shards: Sequence[Shard]) -> None:
    """Join what the shards of a dataset left of its feature map, and store it."""
    parts = []
    try:
        for index in mapped_shards(spec.num_shards):
            if index < len(shards):  # a job with a budget may have ended early
                with suppress(NotFound):  # of an adopted shard, whose maker left none
                    parts.append(attempt.storage.read(side_key(attempt, shards[index], "safetensors")))
        found = feature_map(parts)
    except Unavailable:
        raise
    except Exception as error:
        log.exception("the feature map of %s", attempt.job.id)
        attempt.note(f"the feature map could not be made: {type(error).__name__}: {error}")
        return
    if found is not None:
        attempt.storage.put(f"datasets/{dataset_of(attempt.job.id)}/{FEATURE_MAP}", found.model_dump_json().encode())


def side_key(attempt: Attempt, shard: Shard, suffix: str) -> str:
    """The storage key of a shard's description (`json`), strip (`png`) or part of the map (`safetensors`).

    It is beside the job, not among the shards.

    It holds the shard's hash, so that a worker that made other bytes, too late to store them, overwrites nothing.
    """
    stem = shard.name.removesuffix(".tar")
    return f"jobs/{attempt.job.id}/shards/{stem}-{shard.sha256[:16]}.{suffix}"
