"""What the inversion tells while it works, and what it hands over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Where the work stands after a step; cheap to make, so that it can be told at every one."""

    shard: int | None
    """None for a batch outside any shard."""
    batch: int
    iteration: int
    """Steps done of this batch, over all phases."""
    iterations: int
    share: float
    """Of this batch's work that is done, from 0 to 1: a step counts by the pixels that the teacher is shown."""
    images: int
    """In this batch."""
    images_done: int
    """Finished before this batch, in this shard."""
    losses: Mapping[str, float]
    """The terms by name, not weighted, and their weighted sum as `total`; as last read, at most 25 steps ago."""
    restarts: int = 0
    """How often this batch has started again, at a lower learning rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisedBatch:
    """Finished images and what the teacher says about exactly these pixels. All tensors are on the CPU."""

    images: Tensor
    """(N, C, image_size, image_size), uint8: what a reader of the stored files sees."""
    labels: Tensor
    """(N,), int64: what was asked for."""
    predicted: Tensor
    """(N,), int64: what the teacher sees."""
    confidence: Tensor
    """(N,): the teacher's probability of the label."""
    margin: Tensor
    """(N,): the label's logit minus the largest other; positive where the prediction is the label."""
    features: Tensor
    """(N, D), float32: the teacher's pooled penultimate features."""
    logits: Tensor
    """(N, num_classes), float32: the teacher's."""
    batch_norm_distance: float
    """The objective's statistics term of these pixels, not weighted."""
    class_batch_norm_distance: Mapping[int, float]
    """The same of each class's images alone: how far the class lies from all classes together."""
    losses: Mapping[str, float]
    """As in `Step.losses`, at the last step."""
    restarts: int = 0
    """How often it started again, at a lower learning rate, because it diverged."""
    files: Sequence[bytes] | None = None
    """The image files, where their format loses something, so that encoding `images` again would make others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisedShard:
    """The batches of a shard, and their tensors end to end."""

    index: int
    samples: range
    """Global indices of the samples: row i of every tensor is sample `samples[i]`."""
    batches: Sequence[SynthesisedBatch] = field(repr=False)
    halved: int = 0
    """How often a batch was cut in two because the device had no memory for it."""

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
