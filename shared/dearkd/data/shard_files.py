"""Samples, and the tars that hold them: what a shard says of itself, and how one is written without torch."""

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

IMAGE_SUFFIXES = ("png", "webp", "jpg", "jpeg")


class Shard(BaseModel):
    """One tar of a dataset, and what a reader must find in it."""

    model_config = ConfigDict(frozen=True)

    name: str
    bytes: int
    sha256: str
    samples: int
    classes: dict[int, int]
    """Samples of each class index."""
    quality: dict[str, Any] | None = None
    made_with: dict[str, Any] | None = None
    """As of the dataset; workers may differ."""


def shard_name(index: int) -> str:
    return f"train-{index:06d}.tar"


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its label, as it stands in a shard.

    `key` holds no dot, since WebDataset splits names at the first one; `fields` has the same names in every sample, and
    so has `arrays`, whose values are whole files by suffix (`logits.npy`).
    """

    key: str
    image: bytes
    suffix: str
    label: int
    fields: dict[str, Any]
    arrays: Mapping[str, bytes] = field(default_factory=dict)


def write_shard(path: Path, samples: Iterable[Sample]) -> Shard:
    """Write samples to a tar whose bytes depend on them alone (fixed times, owners and order), and describe it.

    The file is complete or absent: it is written beside and renamed.
    """
    classes: Counter[int] = Counter()
    part = path.with_name(path.name + ".part")
    try:
        with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                if "." in sample.key:
                    raise ValueError(f"sample key {sample.key!r} holds a dot, at which WebDataset would split it")
                meta = json.dumps(sample.fields, sort_keys=True, allow_nan=False).encode()
                _add(tar, f"{sample.key}.cls", str(sample.label).encode())
                _add(tar, f"{sample.key}.json", meta)
                for suffix, data in sorted(sample.arrays.items()):
                    _add(tar, f"{sample.key}.{suffix}", data)
                _add(tar, f"{sample.key}.{sample.suffix}", sample.image)
                classes[sample.label] += 1
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Shard(
        name=path.name,
        bytes=path.stat().st_size,
        sha256=digest,
        samples=classes.total(),
        classes=dict(sorted(classes.items())),
    )


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(data))
