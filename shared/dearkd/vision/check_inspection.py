"""A teacher's check on a registered dataset, as the inspector does it."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from dearkd.data.manifests import DatasetManifest, datasets, fetch_shard
from dearkd.jobs.inspections import Ticket
from dearkd.specs import TeacherSpec
from dearkd.storage.catalog import fetch_weights, teachers
from dearkd.storage.file_cache import FileCache
from dearkd.storage.objects import Storage
from dearkd.vision.check_bench import figures_of
from dearkd.vision.image_sample import evenly, few_shards, fitted, require_classes, sample_of_shards, spread
from dearkd.vision.images import to_input
from dearkd.vision.shards import ShardDataset
from dearkd.vision.teacher_check import check_on_images
from dearkd.vision.teachers import load_teacher

TRIED = 256
"""Images on which the usual mistakes are made good in turn, which takes a dozen passes over them."""
PIXELS_AT_ONCE = 2**22
"""The most numbers in a batch's input."""


def check_on_dataset(ticket: Ticket, storage: Storage, cache: FileCache, step: Callable[[], None]) -> dict[str, Any]:
    """Measure a teacher on up to so many images of a dataset, spread over its classes.

    Args:
        ticket: its request holds `teacher`, `dataset` and `images`.
        storage: holds both.
        cache: for verified copies.
        step: called before each batch.

    Returns:
        `images`; the figures of `teacher_check.Figures`; `classes` with `index`, `name`, `images` and `top1` (null
        without images); and `diagnosis`, `TeacherCheck` on `TRIED` of the images, whose `together` says what to change
        where the teacher was described wrongly.

    Raises:
        InvalidInput: if the dataset has another number of classes.
        NotFound: if one of them was deleted meanwhile.
        CorruptData: if stored files are not what their manifests say.
    """
    teacher = teachers(storage).get(ticket.request["teacher"])
    dataset = datasets(storage).get(ticket.request["dataset"])
    spec, names = teacher.spec, dataset.class_names
    require_classes(dataset.id, names, spec)
    weights = fetch_weights(storage, teacher, cache)
    network = load_teacher(spec, weights, "cpu")
    found, wanted = list[Tensor](), list[Tensor]()
    with torch.inference_mode():
        for pixels, labels in _batches(dataset, spec, ticket.request["images"], storage, cache):
            step()
            # A network that is fed what it was never made for may leave the finite numbers, which JSON has not.
            found.append(network(to_input(pixels, spec)).float().nan_to_num())
            wanted.append(labels)
    logits, labels = torch.cat(found), torch.cat(wanted)
    right = logits.argmax(1) == labels
    paths = [fetch_shard(storage, dataset, shard, cache) for shard in few_shards(dataset.shards, TRIED)]
    step()
    diagnosis = asdict(
        check_on_images(spec, weights, sample_of_shards(paths, spec, TRIED, names), on_answers=lambda _: step())
    )
    del diagnosis["answers"]
    return {
        "images": len(labels),
        **asdict(figures_of(logits, labels)),
        "classes": [
            {
                "index": label,
                "name": name,
                "images": int((labels == label).sum()),
                "top1": right[labels == label].double().mean().item() if (labels == label).any() else None,
            }
            for label, name in enumerate(names)
        ],
        "diagnosis": diagnosis,
    }


def _batches(
    dataset: DatasetManifest, teacher: TeacherSpec, count: int, storage: Storage, cache: FileCache
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels (B, C, S, S), uint8, and labels (B,), of images that lie evenly in each class; a shard at a time."""
    quotas = spread([one.samples for one in dataset.classes], count)
    missing = {one.index: set(evenly(one.samples, quota)) for one, quota in zip(dataset.classes, quotas, strict=True)}
    seen = dict.fromkeys(missing, 0)
    at_once = max(1, PIXELS_AT_ONCE // (teacher.in_chans * teacher.image_size**2))
    for shard in dataset.shards:
        chosen: dict[int, list[int]] = {}
        for label, samples in shard.classes.items():
            places = [place - seen[label] for place in missing[label] if 0 <= place - seen[label] < samples]
            chosen[label] = sorted(places)
            seen[label] += samples
        if not any(chosen.values()):
            continue
        with FileCache(cache.root, cache.max_bytes) as passing:
            path = fetch_shard(storage, dataset, shard, passing)
            data = ShardDataset([path], num_classes=teacher.num_classes, in_chans=teacher.in_chans)
            members = {label: (data.labels == label).nonzero()[0] for label in chosen}
            places = sorted(int(members[label][place]) for label, found in chosen.items() for place in found)
            for start in range(0, len(places), at_once):
                part = places[start : start + at_once]
                pixels = torch.stack([fitted(data[place][0], teacher.image_size) for place in part])
                yield pixels, torch.from_numpy(data.labels[part])
