"""Datasets: manifest, shard writing, verification, registration.

A dataset is a folder of WebDataset shards (`train-000000.tar` …) with `_info.json` (for timm's `wds/` reader),
`dataset.json` (ours, written last: the dataset exists when it does), `preview.png` and `README.md` (the dataset card).
"""

import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from dearkd.data.image_files import is_grey, open_image
from dearkd.data.sample_labels import MAX_LABEL_BYTES, no_label, parse_label
from dearkd.errors import CorruptData, NotFound, reason
from dearkd.specs import DatasetFacts
from dearkd.specs.class_order import ClassOrder, is_counted
from dearkd.storage.catalog import Manifest, Shelf
from dearkd.storage.file_cache import FileCache
from dearkd.storage.objects import Storage

IMAGE_SUFFIXES = ("png", "webp", "jpg", "jpeg")
MAX_MEMBER_BYTES = 64 * 2**20
MAX_MEMBERS = 10_000_000
MAX_NAME = 1000
"""Bytes of a member's name, which a tar's extensions let be as long as the file."""
MAX_PARTS = 100
"""Members of one sample."""
LOOKED_AT = (*IMAGE_SUFFIXES, "cls")
MAX_ABOUT_BYTES = 2**20
"""Of the attributes or the long name of a member, which are read whole."""

_ABOUT_MEMBERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class DatasetClass(BaseModel):
    model_config = ConfigDict(frozen=True)

    index: int
    name: str
    samples: int


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


class DatasetManifest(Manifest):
    """`dataset.json`. `teacher` and `spec` are null for sets that were registered, not synthesised."""

    num_samples: int
    num_classes: int
    image_size: int | None
    """Side of the square images; None where they differ."""
    in_chans: int
    classes: list[DatasetClass]
    shards: list[Shard]
    prefix: str
    """Where the shards lie under the storage root."""
    teacher: str | None = None
    teacher_sha256: str | None = None
    spec: dict[str, Any] | None = None
    quality: dict[str, Any] | None = None
    class_order: ClassOrder | None = None
    """How whoever registered it says that its labels follow; None where nobody did."""
    converted: dict[str, int] = Field(default_factory=dict)
    """Images of other channels than `in_chans`, which readers convert as Pillow does, by what they are."""
    job: str | None = None
    seed: int | None = None
    made_with: dict[str, Any] | None = None
    """Code version, library versions, device and thread count: with the spec they decide every byte. None where the
    shards differ in them, or nothing is known: see each."""

    def conversions(self, in_chans: int) -> list[str]:
        """What becomes of images of other channels where they are read with so many, in words."""
        grey = self.num_samples if self.in_chans == 1 else self.converted.get("grey", 0)
        colour = self.num_samples - grey
        if in_chans == 3:
            return [f"{grey:,} grey images are made colour"] if grey else []
        return [f"{colour:,} colour images are made grey"] if colour else []

    @property
    def facts(self) -> DatasetFacts:
        spec = self.spec
        names = tuple(c.name for c in self.classes)
        return DatasetFacts(
            num_samples=self.num_samples,
            num_classes=self.num_classes,
            image_size=self.image_size,
            in_chans=self.in_chans,
            synthetic=spec is not None,
            # Made without mirroring: of things that a mirror changes. Of real sets, grey ones usually are such [R].
            mirrored=spec["flip"] > 0 if spec is not None else self.in_chans == 3,
            teacher=self.teacher,
            stored_logits=spec is not None and spec.get("store_logits", False),
            class_samples=tuple(c.samples for c in self.classes),
            # Of a synthesised set numbers are no names, but the outputs of a teacher that has none.
            class_names=None if spec is not None and is_counted(names) else names,
            class_order=self.class_order,
        )


def datasets(storage: Storage) -> Shelf[DatasetManifest]:
    return Shelf(storage, "datasets", "ds", "dataset.json", DatasetManifest)


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


@dataclass(slots=True)
class ShardContents:
    """What reading a shard found."""

    samples: int = 0
    classes: Counter[int] = field(default_factory=Counter)
    image_sizes: set[tuple[int, int]] = field(default_factory=set)
    modes: Counter[str] = field(default_factory=Counter)
    """Images that are grey (L) and that are of colour (RGB)."""


class _Member(tarfile.TarInfo):
    """Refuses, before it is read into memory, what a tar says of a member at more length than any needs."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0:
            raise tarfile.ReadError(f"a member is said to have {self.size} bytes")
        if self.type in _ABOUT_MEMBERS and self.size > MAX_ABOUT_BYTES:
            raise tarfile.ReadError(f"{self.size} bytes of attributes of one member; {MAX_ABOUT_BYTES} are read")
        found: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]  # meant to be overridden, but untyped
        return found


def read_members(path: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """The regular files of a tar that lies locally, counted and capped.

    Raises:
        CorruptData: if it is no tar, is cut short or damaged anywhere, or holds links, devices, sparse files, names
            that are not UTF-8, or too many or too large members.
    """
    count = 0
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:", tarinfo=_Member) as tar:
            for member in tar:
                count += 1
                _check_member(path, member, count=count, tar_bytes=size)
                if not member.isdir():
                    yield member, tar
                tar.members = []  # type: ignore[attr-defined]  # of each it would keep a kilobyte
            end = tar.offset
    # What tarfile raises by the kind of damage, besides its own errors.
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError, LookupError) as error:
        if packed := _packed_with(path):
            raise CorruptData(f"{path.name} is compressed with {packed}, not a plain tar: unpack it first") from None
        raise CorruptData(f"{path.name} is no readable tar: {reason(error):.200}") from None
    _check_end(path, end, size)


_PACKED = {b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}


def _packed_with(path: Path) -> str | None:
    with path.open("rb") as file:
        begin = file.read(8)
    return next((name for mark, name in _PACKED.items() if begin.startswith(mark)), None)


def _check_member(path: Path, member: tarfile.TarInfo, *, count: int, tar_bytes: int) -> None:
    name = f"{member.name!r:.300}"
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise CorruptData(f"{path.name} holds {name}, which is no regular file: only those are read")
    try:
        length = len(member.name.encode())
    except UnicodeEncodeError:
        raise CorruptData(f"{path.name} holds {name}, a name that is not UTF-8: pack it anew under another") from None
    if length > MAX_NAME:
        raise CorruptData(f"{path.name} holds a member whose name has {length} bytes, over {MAX_NAME}: {name}")
    if not 0 <= member.size <= MAX_MEMBER_BYTES or count > MAX_MEMBERS:
        raise CorruptData(
            f"{path.name}: member {name} of {member.size!s:.30} bytes is over the limits ({MAX_MEMBER_BYTES} bytes "
            f"each, {MAX_MEMBERS} members)"
        )
    if member.offset_data + member.size > tar_bytes:
        raise CorruptData(f"{path.name} ends in the middle of {name}: it is cut short")


def _check_end(path: Path, end: int, size: int) -> None:
    """Python's tarfile takes a missing end for an end, and so a header that is damaged: what follows would be lost.

    A whole tar closes with two blocks of zeros or more, and nothing comes behind them.
    """
    if size - end < 2 * tarfile.BLOCKSIZE:
        raise CorruptData(f"{path.name} has no end-of-archive mark: it is cut short")
    with path.open("rb") as file:
        file.seek(end)
        first = file.read(tarfile.BLOCKSIZE)
        if any(first):
            raise CorruptData(f"{path.name} is no readable tar: the header at byte {end} is damaged")
        while chunk := file.read(2**20):
            if chunk.strip(b"\0"):
                raise CorruptData(
                    f"{path.name} goes on behind its end-of-archive mark at byte {end}, where no reader looks (tars "
                    "that were joined?): pack its members into one"
                )


def inspect_shard(path: Path, *, num_classes: int | None = None) -> ShardContents:
    """Read a shard whole: every sample must have one image that opens and an integer label, its members together.

    Raises:
        CorruptData: naming the shard, the sample and what is wrong with it.
    """
    found = ShardContents()
    seen: set[str] = set()
    key, parts = "", {}  # type: str, dict[str, bytes]

    def close() -> None:
        if key and parts:
            _inspect_sample(path.name, key, parts, found, num_classes)

    for member, tar in read_members(path):
        stem, suffix = split_member(member.name)
        if not suffix:
            continue
        if stem != key:
            close()
            if stem in seen:
                raise CorruptData(
                    f"{path.name}: sample {stem!r} stands there twice, apart: its members must follow each other"
                )
            seen.add(stem)
            key, parts = stem, {}
        if suffix in parts:
            raise CorruptData(f"{path.name}: sample {stem!r} has two members .{suffix}")
        if len(parts) == MAX_PARTS:
            raise CorruptData(f"{path.name}: sample {stem!r} has more than {MAX_PARTS} members")
        # What is neither image nor label is not looked at: a sample may hold much of it.
        file = tar.extractfile(member) if suffix in LOOKED_AT else None
        parts[suffix] = b"" if file is None else file.read(MAX_LABEL_BYTES + 1 if suffix == "cls" else -1)
    close()
    if found.samples == 0:
        raise CorruptData(f"{path.name} holds no sample (an image with a .cls beside it)")
    return found


def split_member(name: str) -> tuple[str, str]:
    """WebDataset's key and suffix: the name is split at the first dot of its last segment, suffixes in lower case."""
    match = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]+)", name)
    return (match[1], match[2].lower()) if match else (name, "")


def _inspect_sample(
    shard: str, key: str, parts: dict[str, bytes], found: ShardContents, num_classes: int | None
) -> None:
    images = [suffix for suffix in parts if suffix in IMAGE_SUFFIXES]
    if len(images) != 1:
        raise CorruptData(
            f"{shard}: sample {key!r} has {len(images)} images ({', '.join(parts)}); it needs one of {IMAGE_SUFFIXES}"
        )
    try:
        label = parse_label(parts["cls"])
    except KeyError:
        raise CorruptData(f"{shard}: sample {key!r} {no_label(parts)}") from None
    except ValueError:
        raise CorruptData(
            f"{shard}: sample {key!r} has label {parts['cls'][:40]!r}, which is no whole number"
        ) from None
    if label < 0 or (num_classes is not None and label >= num_classes):
        bound = "" if num_classes is None else f" and below {num_classes}"
        bound += ": they count from 0, not from 1" * (label == num_classes)
        raise CorruptData(f"{shard}: sample {key!r} has label {label}; labels are at least 0{bound}")
    try:
        with open_image(parts[images[0]]) as image:
            image.load()
            found.image_sizes.add(image.size)
            found.modes["L" if is_grey(image) else "RGB"] += 1
    except CorruptData as error:
        raise CorruptData(f"{shard}: sample {key!r} does not open: {error.message}") from None
    found.samples += 1
    found.classes[label] += 1


def fetch_shard(storage: Storage, dataset: DatasetManifest, shard: Shard, cache: FileCache) -> Path:
    """A verified local copy, which stays until the cache is closed.

    Raises:
        CorruptData: naming the shard and what differs from the manifest.
    """
    key = f"{dataset.prefix}/{shard.name}"
    try:
        return cache.fetch(storage, key, name=shard.name, sha256=shard.sha256, size=shard.bytes)
    except NotFound:
        raise CorruptData(f"{dataset.id}: {shard.name} is named by the manifest, but gone from storage") from None


def info_json(shards: Iterable[Shard]) -> bytes:
    """`_info.json`, as timm's `wds/` reader wants it."""
    listed = list(shards)
    train = {
        "name": "train",
        "num_samples": sum(shard.samples for shard in listed),
        "filenames": [shard.name for shard in listed],
        "shard_lengths": [shard.samples for shard in listed],
    }
    return (json.dumps({"splits": {"train": train}}, indent=2) + "\n").encode()


def count_classes(shards: Iterable[Shard], names: list[str] | None, num_classes: int) -> list[DatasetClass]:
    counts: Counter[int] = Counter()
    for shard in shards:
        counts.update(shard.classes)
    return [DatasetClass(index=i, name=names[i] if names else str(i), samples=counts[i]) for i in range(num_classes)]
