"""Evaluation of a model on a dataset: accuracy, calibration, confusion."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from dearkd.errors import InvalidInput
from dearkd.specs import Precision
from dearkd.vision.calibration import expected_calibration_error
from dearkd.vision.shards import Indices, ShardDataset
from dearkd_trainer.data.loader import Batch, read, to_picture
from dearkd_trainer.data.recipe import autocast, eval_transform
from dearkd_trainer.data.world import World

MAX_SAMPLE_BYTES = 2**28
"""The largest size of `normalised_sample`'s images."""
MAX_CONFUSION_CLASSES = 2000
"""The most classes of a confusion matrix, which has their square as entries, each a Python float."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The results of an evaluation. Accuracies are fractions in [0, 1]."""

    samples: int
    top1: float
    top5: float
    """1 where there are fewer than five classes."""
    loss: float
    """Mean cross-entropy."""
    expected_calibration_error: float
    """In [0, 1], over 15 bins; see `expected_calibration_error`."""
    per_class: list[float | None]
    """Accuracy of each class; None where the data have no image of it."""
    confusion: list[list[float]] | None
    """Row: true class, column: predicted class; a row sums to 1, or is 0 where the data have no image of the class.
    None where it was not asked for, or there are more than `MAX_CONFUSION_CLASSES`."""


class WholeImages(Dataset[tuple[Tensor, int]]):
    """Pixels (C, image_size, image_size), uint8, without anything random."""

    def __init__(self, dataset: ShardDataset, indices: Indices, image_size: int, crop_pct: float) -> None:
        self.dataset = dataset
        self.indices = indices
        self.image_size = image_size
        self.resize = eval_transform(image_size, crop_pct)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        image, label = self.dataset[int(self.indices[place])]
        if image.shape[1:] != (self.image_size, self.image_size):
            image = self.resize(to_picture(image))
        return image, label


def normalised_sample(
    data: ShardDataset,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    crop_pct: float = 1.0,
    count: int = 256,
    indices: Indices | None = None,
) -> Tensor:
    """Take up to `count` images (N, C, image_size, image_size), spread evenly over a dataset, as the model takes them.

    Of all samples, or of those at `indices`. They are fewer where so many would take more than `MAX_SAMPLE_BYTES`.
    """
    samples = np.arange(len(data)) if indices is None else np.sort(indices)
    places = samples[sample_places(len(samples), data.in_chans, image_size, count=count)]
    images = WholeImages(data, places, image_size, crop_pct)
    pixels = torch.stack([images[place][0] for place, _ in enumerate(data.visit(places))])
    return normalised(pixels, mean, std)


def sample_places(total: int, in_chans: int, image_size: int, *, count: int = 256) -> Indices:
    """Spread up to `count` places evenly over `total`, ascending; fewer where so many images took more memory.

    That is `MAX_SAMPLE_BYTES`, for float32 images (in_chans, image_size, image_size).
    """
    count = max(1, min(count, MAX_SAMPLE_BYTES // (4 * in_chans * image_size**2)))
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))


def normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn pixels (N, C, H, W), uint8, into a model's input; mean and std are per channel, of pixels in [0, 1]."""
    shift, scale = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return (pixels.float() / 255 - shift) / scale


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: ShardDataset,
    *,
    indices: Indices | None = None,
    image_size: int,
    mean: list[float],
    std: list[float],
    crop_pct: float = 1.0,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
    workers: int = 0,
    world: World | None = None,
    confusion: bool = True,
    look: Callable[[Tensor], None] = lambda pixels: None,
) -> Evaluation:
    """Run the model, in eval mode, over a dataset.

    Args:
        model: from normalised images (B, C, H, W) to logits (B, num_classes); left in the mode it was in.
        dataset: images of another size than `image_size` are resized and centre-cropped (`crop_pct`). Its labels are
            looked at once its images have been.
        indices: samples to look at; None means all.
        image_size: side of the model's input in pixels.
        mean, std: per channel, of pixels in [0, 1].
        crop_pct: as in `recipe.eval_transform`, and in a model's `config.json`.
        batch_size: images at once.
        device: where the model is.
        precision: of the forward; the loss is computed in float32.
        workers: processes that decode.
        world: of the processes that share the images, and call this together; each gets the whole result.
        confusion: True to compute the confusion matrix, and not only its diagonal.
        look: called with each batch's pixels (B, C, H, W), uint8, once the model has answered, in order.

    Raises:
        InvalidInput: if there is no sample.
        CorruptData: naming the image that does not open.
    """
    places = torch.arange(len(dataset)).numpy() if indices is None else indices
    if len(places) == 0:
        raise InvalidInput("there is no image to evaluate on: the dataset, or the part of it that was chosen, is empty")
    device = torch.device(device)
    world = world or World()
    # As many for each, some looked at twice, since what is gathered must be of one shape.
    mine = np.resize(places, -(-len(places) // world.size) * world.size)[world.rank :: world.size]
    images = WholeImages(dataset, mine, image_size, crop_pct)
    # Read shard by shard, so that few need to be there at a time, but computed in batches that know no shards.
    own = dataset.shards[mine]
    ends = np.union1d(np.arange(batch_size, len(mine), batch_size), np.flatnonzero(np.diff(own)) + 1)
    parts = np.split(np.arange(len(mine)), ends)
    scale = torch.tensor(std, device=device).view(1, -1, 1, 1) * 255
    shift = torch.tensor(mean, device=device).view(1, -1, 1, 1) * 255
    training = model.training
    model.eval()
    outputs: list[Tensor] = []
    try:
        with closing(dataset.hold((mine[part] for part in parts), workers=workers)) as held:
            gated = (part.tolist() for part, _ in zip(parts, held, strict=False))
            for pixels in _joined(read(images, batch_sampler=gated, num_workers=workers), batch_size):
                with autocast(device, precision):
                    outputs.append(model((pixels.to(device) - shift) / scale).float())
                look(pixels)
    finally:
        model.train(training)
    logits = world.gather(torch.cat(outputs))[: len(places)]
    labels = torch.from_numpy(dataset.labels[places]).to(device)
    return _summarise(logits, labels, confusion and logits.shape[1] <= MAX_CONFUSION_CLASSES)


def _joined(batches: Iterator[Batch], size: int) -> Iterator[Tensor]:
    """Join successive batches into batches of `size` images."""
    parts: list[Tensor] = []
    for images, _ in batches:
        parts.append(images)
        if sum(map(len, parts)) == size:
            yield torch.cat(parts)
            parts.clear()
    if parts:
        yield torch.cat(parts)


def _summarise(logits: Tensor, labels: Tensor, with_confusion: bool) -> Evaluation:
    num_classes = logits.shape[1]
    ranked = logits.topk(min(5, num_classes), dim=1).indices
    hits = ranked == labels[:, None]
    confidences = logits.softmax(dim=1).gather(1, ranked[:, :1])[:, 0]
    totals = torch.bincount(labels, minlength=num_classes)
    right = torch.bincount(labels[hits[:, 0]], minlength=num_classes)
    confusion = None
    if with_confusion:
        counts = torch.bincount(labels * num_classes + ranked[:, 0], minlength=num_classes**2).view(num_classes, -1)
        confusion = (counts / totals[:, None].clamp(min=1)).tolist()
    return Evaluation(
        samples=len(labels),
        top1=hits[:, 0].double().mean().item(),
        top5=hits.any(dim=1).double().mean().item(),
        loss=F.cross_entropy(logits, labels).item(),
        expected_calibration_error=expected_calibration_error(confidences, hits[:, 0]),
        per_class=[
            correct / total if total else None for correct, total in zip(right.tolist(), totals.tolist(), strict=True)
        ],
        confusion=confusion,
    )
