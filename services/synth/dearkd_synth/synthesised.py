"""The progress reports of the inversion, and its results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dearkd_synth.snapshots import Camera


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The progress after a step; cheap to make, so that it can be reported at every one."""

    shard: int | None
    """The shard's index; None for a batch outside any shard."""
    batch: int
    """The batch's number in the shard, from 0."""
    iteration: int
    """Steps done of this batch, over all phases."""
    iterations: int
    """Steps of this batch in all."""
    share: float
    """The fraction of this batch's work that is done, in [0, 1]; a step counts by the pixels shown to the teacher."""
    images: int
    """Images in this batch."""
    images_done: int
    """Images of this shard finished before this batch."""
    losses: Mapping[str, float]
    """The terms by name, not weighted, and their weighted sum as `total`; as last read, at most 25 steps ago."""
    restarts: int = 0
    """Times this batch was started again, each at a lower learning rate."""
    camera: Camera | None = field(default=None, compare=False, repr=False)
    """Takes snapshots of the batch while the callback runs; costs nothing where nobody asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisedBatch:
    """Finished images and the teacher's answers to exactly these pixels. All tensors are on the CPU."""

    images: Tensor
    """(N, C, image_size, image_size), uint8: what a reader of the stored files sees."""
    labels: Tensor
    """(N,), int64: the classes that were asked for."""
    predicted: Tensor
    """(N,), int64: the classes that the teacher predicts."""
    confidence: Tensor
    """(N,): the teacher's probability of the label."""
    margin: Tensor
    """(N,): the label's logit minus the largest other; positive where the prediction is the label."""
    features: Tensor
    """(N, D), float32: the teacher's pooled penultimate features."""
    logits: Tensor
    """(N, num_classes), float32: the teacher's."""
    batch_norm_distance: float
    """The objective's BatchNorm term of these pixels, not weighted."""
    class_batch_norm_distance: Mapping[int, float]
    """The same for the images of each class alone, by class index: the distance of a class from all together."""
    first_layer_variance: float
    """Variance of the first BatchNorm layer's input, as a multiple of its running variance: of the median channel."""
    losses: Mapping[str, float]
    """The losses of the last step, as in `Step.losses`."""
    restarts: int = 0
    """Times it diverged and was started again, each at a lower learning rate."""
    files: Sequence[bytes] | None = None
    """The image files of a lossy format, since encoding `images` again would give other pixels; else None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisedShard:
    """The batches of a shard, and their tensors end to end."""

    index: int
    samples: range
    """Global indices of the samples: row i of every tensor is sample `samples[i]`."""
    batches: Sequence[SynthesisedBatch] = field(repr=False)
    halved: int = 0
    """Times a batch was cut in two because the device had no memory for it."""

    @property
    def images(self) -> Tensor:
        return torch.cat([batch.images for batch in self.batches])

    @property
    def labels(self) -> Tensor:
        return torch.cat([batch.labels for batch in self.batches])

    @property
    def predicted(self) -> Tensor:
        return torch.cat([batch.predicted for batch in self.batches])

    @property
    def confidence(self) -> Tensor:
        return torch.cat([batch.confidence for batch in self.batches])

    @property
    def margin(self) -> Tensor:
        return torch.cat([batch.margin for batch in self.batches])

    @property
    def features(self) -> Tensor:
        return torch.cat([batch.features for batch in self.batches])

    @property
    def logits(self) -> Tensor:
        return torch.cat([batch.logits for batch in self.batches])
