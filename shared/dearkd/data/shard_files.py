"""Shards: tars of samples as WebDataset has them, their description, and a writer that needs no torch.

The form of a sample is known here, where samples become files, and in `shard_reader`, where files become samples.
"""

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict

SHARD_FORMAT = 2
"""The order of a sample's members: by suffix, as webdataset writes them. Format 1 put the image last, which makes a
difference to JPEG alone (`jpg` before `json`); readers take any order."""

IMAGE_SUFFIXES = ("png", "webp", "jpg", "jpeg")
LABEL = "cls"
"""Suffix of the member with the class index, in plain digits."""
FIELDS = "json"
"""Suffix of the member with a JSON object of figures about the sample, which readers may leave out."""
LOGITS = "logits.npy"
"""Suffix of the member with the teacher's logits, (num_classes,), where they are stored."""


class Shard(BaseModel):
    """The description of one tar of a dataset, which its readers verify it by."""

    model_config = ConfigDict(frozen=True)

    name: str
    bytes: int
    sha256: str
    samples: int
    classes: dict[int, int]
    """Samples of each class index."""
    quality: dict[str, Any] | None = None
    made_with: dict[str, Any] | None = None
    """Versions, device and threads of the worker that made it (`dearkd.vision.devices.made_with`)."""


def shard_name(index: int) -> str:
    return f"train-{index:06d}.tar"


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its label, as it is stored in a shard.

    Args:
        key: its name in the shard, without dots, since WebDataset splits names at the first one.
        image: the image file.
        suffix: of the image file, without a dot; one of `IMAGE_SUFFIXES`.
        label: class index.
        fields: figures about it, by the same names in every sample of a dataset.
        arrays: more files by suffix (`logits.npy`), likewise.
    """

    key: str
    image: bytes
    suffix: str
    label: int
    fields: dict[str, Any]
    arrays: Mapping[str, bytes] = field(default_factory=dict)

    def members(self) -> dict[str, bytes]:
        """Its files in the shard, by suffix."""
        return {
            **self.arrays,
            LABEL: str(self.label).encode(),
            FIELDS: json.dumps(self.fields, sort_keys=True, allow_nan=False).encode(),
            self.suffix: self.image,
        }


Pack = Callable[[BinaryIO, Iterable[Sample]], None]
"""Writes samples to an open file as a tar whose bytes depend on them alone."""


def pack(file: BinaryIO, samples: Iterable[Sample]) -> None:
    """Write a tar with the standard library: the same bytes as `dearkd.vision.tar_writer.pack`, without torch."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for sample in samples:
            for suffix, data in sorted(sample.members().items()):
                member = tarfile.TarInfo(f"{sample.key}.{suffix}")
                member.size = len(data)
                member.mode = 0o644
                tar.addfile(member, io.BytesIO(data))


def write_shard(path: Path, samples: Iterable[Sample], pack: Pack = pack) -> Shard:
    """Write samples to a tar and describe it. The file is complete or absent: it is written beside, and renamed.

    Args:
        path: of the tar; its name becomes the shard's.
        samples: in the order in which they are to be stored; one is in memory at a time.
        pack: the writer.

    Raises:
        ValueError: if a sample's key holds a dot, or a field is NaN or infinite.
    """
    classes: Counter[int] = Counter()

    def counted() -> Iterator[Sample]:
        for sample in samples:
            if "." in sample.key:
                raise ValueError(f"sample key {sample.key!r} holds a dot, at which WebDataset would split it")
            classes[sample.label] += 1
            yield sample

    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            pack(file, counted())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    with path.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    return Shard(
        name=path.name,
        bytes=path.stat().st_size,
        sha256=digest,
        samples=classes.total(),
        classes=dict(sorted(classes.items())),
    )
