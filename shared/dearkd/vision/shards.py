"""Verified shards that lie locally, as a torch dataset: images and labels by sample number."""

import hashlib
import io
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dearkd.data.shard_files import LOGITS
from dearkd.data.shard_reader import Reader
from dearkd.errors import CorruptData
from dearkd.specs.dataset_facts import kept_samples
from dearkd.vision.images import decode

Indices = NDArray[np.int64]


class Held(Iterator[None]):
    """An iterator over batches that waits for the shards of each; those of local files are always there."""

    def __next__(self) -> None:
        return None

    def close(self) -> None:
        """Let all shards go. Another thread that waits for some gets an error."""


class ShardDataset(Dataset[tuple[Tensor, int]]):
    """The samples of some shards, in the shards' order. Indexing reads labels only; images are decoded when asked for.

    Args:
        paths: tars whose size and sha256 were checked already (`dearkd.data.manifests.fetch_shard`), in the
            manifest's order; each is read before the next is asked for.
        num_classes: labels must be below it.
        in_chans: images are converted to grey (1) or RGB (3).

    Raises:
        CorruptData: naming the shard and the sample, if a tar cannot be read, or a sample has no label, no image, two
            of either, or a label out of range.
    """

    def __init__(self, paths: Iterable[Path], *, num_classes: int, in_chans: Literal[1, 3]) -> None:
        self.in_chans = in_chans
        self.num_classes = num_classes
        self._paths: list[Path] = []
        keys, tables = [np.empty(0, dtype="S1")], [np.empty((5, 0), dtype=np.int64)]
        for path in paths:
            self._paths.append(path)
            found, table = index_shard(path, num_classes)
            keys.append(found)
            tables.append(table)
        # Arrays, not objects: a forked loader worker touches the reference count of every object that it looks at,
        # and so copies it.
        self._keys = np.concatenate(keys)
        table = np.concatenate(tables, axis=1)
        self.labels: Indices = table[0]
        """(N,) class indices."""
        self.shards: Indices = np.repeat(np.arange(len(self._paths)), [each.shape[1] for each in tables[1:]])
        """(N,) the number of each sample's shard."""
        self._offsets, self._sizes, self._logits_offsets, self._logits_sizes = table[1:]
        self._pixels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image (C, H, W), uint8, and its class index.

        Raises:
            CorruptData: naming the shard and the sample, if the image does not open.
        """
        image = self._decode(index) if self._pixels is None else self._pixels[index]
        return image, int(self.labels[index])

    @property
    def has_logits(self) -> bool:
        """True if the teacher's logits lie beside every image."""
        return bool((self._logits_sizes > 0).all())

    def logits(self, index: int) -> Tensor:
        """The teacher's logits of a sample's pixels, (num_classes,), float32.

        Raises:
            CorruptData: naming the shard and the sample, if there are none, or they are no finite numbers, one a class.
        """
        data = self._read(index, self._logits_offsets[index], self._logits_sizes[index])
        try:
            values = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise CorruptData(f"{self.name(index)}: its {LOGITS} cannot be read: {error}") from None
        if values.shape != (self.num_classes,) or values.dtype.kind != "f" or not np.isfinite(values).all():
            raise CorruptData(
                f"{self.name(index)}: its {LOGITS} is {values.dtype} of shape {values.shape}, not "
                f"{self.num_classes} finite numbers"
            )
        return torch.from_numpy(values.astype(np.float32))

    def fingerprint(self) -> str:
        """16 hex digits of a SHA-256 over key, label and image size in bytes of each sample, in order.

        It tells datasets apart without reading their images: other pixels in a file of the same size go unnoticed.
        """
        digest = hashlib.sha256()
        for values in (self._keys, self.labels, self._sizes):
            digest.update(values.tobytes())
        return digest.hexdigest()[:16]

    def preload(self, max_bytes: int = 2**28) -> bool:
        """Decode all images once, if they are of one size and take no more memory than this; says whether it did.

        Loader workers that are forked afterwards share them.
        """
        if self._pixels is not None or len(self) == 0:
            return self._pixels is not None
        first = self._decode(0)
        if first.numel() * len(self) > max_bytes:
            return False
        pixels = torch.empty(len(self), *first.shape, dtype=torch.uint8)
        for index in range(len(self)):
            image = self._decode(index)
            if image.shape != first.shape:
                return False
            pixels[index] = image
        self._pixels = pixels
        return True

    def hold(self, batches: Iterable[Indices], *, max_shards: int = 2, workers: int = 0) -> Held:
        """Keep the shards of each batch here while it is read, and fetch those of the next. Close what is returned.

        Args:
            batches: sample numbers.
            max_shards: the most shards that are kept at a time.
            workers: of the DataLoader that reads the batches; it must ask for each before it hands it out.
        """
        return Held()

    def visit(self, places: Indices) -> Iterator[int]:
        """Yield sample numbers, each while its shard is here."""
        with closing(self.hold(places[:, None])) as held:
            for place, _ in zip(places, held, strict=False):
                yield int(place)

    def name(self, index: int) -> str:
        """The shard and key of a sample, for messages."""
        return f"{self._paths[self.shards[index]].name}: sample {self._keys[index].decode()!r}"

    def _decode(self, index: int) -> Tensor:
        data = self._read(index, self._offsets[index], self._sizes[index])
        try:
            return decode(data, self.in_chans)
        except CorruptData as error:
            raise CorruptData(f"{self.name(index)}: {error.message}") from None

    def _read(self, index: int, offset: int, size: int) -> bytes:
        with self._paths[int(self.shards[index])].open("rb") as file:
            file.seek(offset)
            return file.read(size)


def index_shard(path: Path, num_classes: int) -> tuple[NDArray[np.bytes_], Indices]:
    """Read the keys (N,) of a shard's samples, and (5, N) of label, offset and size of the image, those of the logits.

    Offsets and sizes are bytes within the shard; they are 0 where there are no logits.

    Raises:
        CorruptData: as `ShardDataset`.
    """
    records = list(Reader(path, num_classes=num_classes))
    rows = [(record.label, *record.image, *(record.logits or (0, 0))) for record in records]
    keys = np.array([record.key.encode() for record in records], dtype=np.bytes_)
    return keys, np.array(rows, dtype=np.int64).reshape(-1, 5).T


def split(labels: Indices, *, fraction: float, holdout: float, seed: int) -> tuple[Indices, Indices]:
    """Sample numbers to train on and to hold out, both ascending; together they are `fraction` of every class.

    For one seed, what a smaller fraction trains on is a subset of what a larger one does, and so is what it holds out:
    each class is shuffled once, the fraction is its beginning, and every (1/holdout)-th sample of it is held out. Only
    where that would hold out all that is left of a class, its first sample is trained on, which a larger fraction may
    hold out. `DatasetFacts.trained_images` tells how many are trained on.

    Args:
        labels: (N,) class indices.
        fraction: in (0, 1]; at least one sample of each class stays.
        holdout: in [0, 1), of the fraction; at least one sample of each class is trained on.
        seed: of the shuffle.
    """
    train: list[Indices] = []
    held: list[Indices] = []
    # Sorted once: to look for each class among all samples would take classes times samples.
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    for label, ascending in zip(present, np.split(order, starts)[1:], strict=True):
        generator = np.random.default_rng([seed, int(label)])
        members = generator.permutation(ascending)
        members = members[: kept_samples(len(members), fraction)]
        # A random phase, or else classes of fewer than 1/holdout samples would never hold any out.
        ticks = np.floor(np.arange(len(members) + 1) * holdout + generator.random())
        is_held = np.diff(ticks) > 0
        is_held[0] &= not is_held.all()
        train.append(members[~is_held])
        held.append(members[is_held])
    return _merged(train), _merged(held)


def _merged(parts: list[Indices]) -> Indices:
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, dtype=np.int64)
