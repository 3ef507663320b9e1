"""Synthesised images written as a shard: a local tar, with what the teacher says of each."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dearkd.data.shard_files import LOGITS, Sample, Shard
from dearkd.specs import SynthesisSpec
from dearkd.vision.images import SUFFIXES, encode
from dearkd.vision.tar_writer import write_shard


class ImageBatch(Protocol):
    """Images (N, C, H, W), uint8, and their files where their format loses something: it would lose more again."""

    @property
    def images(self) -> Tensor: ...
    @property
    def files(self) -> Sequence[bytes] | None: ...


class JudgedImages(Protocol):
    """Images of a shard, in batches end to end, and what the teacher says of them: `SynthesisedShard` is one."""

    @property
    def samples(self) -> range:
        """Global indices of the samples."""

    @property
    def batches(self) -> Sequence[ImageBatch]: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def predicted(self) -> Tensor: ...
    @property
    def confidence(self) -> Tensor: ...
    @property
    def margin(self) -> Tensor: ...
    @property
    def logits(self) -> Tensor: ...


def sample_key(sample: int) -> str:
    """The key of a sample in its shard, by its global index."""
    return f"{sample:09d}"


def write_samples(path: Path, made: JudgedImages, spec: SynthesisSpec) -> Shard:
    """Write a shard's tar: `.cls`, `.json` (the same fields in every sample) and the image, keys by sample index.

    With `store_logits` also `.logits.npy`, (num_classes,) in half precision. One file is in memory at a time.
    """
    files = (
        file
        for batch in made.batches
        for file in batch.files or (encode(image, spec.image_format) for image in batch.images)
    )
    return write_shard(
        path,
        (
            Sample(
                key=sample_key(index),
                image=file,
                suffix=SUFFIXES[spec.image_format].removeprefix("."),
                label=label,
                fields={
                    "label": label,
                    "teacher_label": predicted,
                    "teacher_confidence": round(confidence, 6),
                    "teacher_margin": round(margin, 6),
                },
                arrays={LOGITS: _npy(logits)} if spec.store_logits else {},
            )
            for index, file, label, predicted, confidence, margin, logits in zip(
                made.samples,
                files,
                made.labels.tolist(),
                made.predicted.tolist(),
                made.confidence.tolist(),
                made.margin.tolist(),
                made.logits,
                strict=True,
            )
        ),
    )


def _npy(values: Tensor) -> bytes:
    file = io.BytesIO()
    # Beyond what half precision holds (65504), a logit says no more than that it is far away; inf no reader takes.
    largest = torch.finfo(torch.half).max
    np.save(file, values.clamp(-largest, largest).half().numpy(), allow_pickle=False)
    return file.getvalue()
