"""Registration of teachers and datasets, as the inspector does it: checked, then their manifests are written."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from dearkd.choices import ClassOrder
from dearkd.data.manifests import DatasetManifest, count_classes, datasets
from dearkd.data.shard_files import Shard
from dearkd.data.shard_info import CLASS_NAMES, INFO, MAX_CLASSES, info_json, read_class_names
from dearkd.data.shard_reader import ShardContents, inspect_shard
from dearkd.data.unregistered import listed_shards, read_beside_shards
from dearkd.errors import CorruptData, InvalidInput, NotFound
from dearkd.jobs.inspections import Ticket, upload_key
from dearkd.jobs.model import now
from dearkd.specs import TeacherSpec
from dearkd.specs.class_order import sorted_by
from dearkd.storage.catalog import Teacher, describe_file, teachers
from dearkd.storage.objects import Storage
from dearkd.vision.teachers import describe_teacher


def register_teacher(ticket: Ticket, storage: Storage, folder: Path) -> Teacher:
    """Load the weights into their architecture, try it out, and write its manifest.

    Args:
        ticket: its request holds `spec` and, of an upload, `sha256` and `bytes`; or `weights`, the key of a file that
            lies in storage already and stays where it is.
        storage: holds the weights.
        folder: for a local copy.

    Raises:
        InvalidInput: see `dearkd.vision.teachers.describe_teacher`; nothing was stored.
    """
    spec = TeacherSpec.check(ticket.request["spec"])
    weights = folder / "weights.safetensors"
    place: str | None = ticket.request.get("weights")
    storage.download(place or upload_key(ticket.id), weights, sha256=ticket.request.get("sha256"))
    file = describe_file(weights)
    description = describe_teacher(spec, weights)
    catalog = teachers(storage)
    teacher = Teacher(
        id=ticket.id,
        created_at=now(),
        owner=ticket.owner,
        sha256=file.sha256,
        bytes=file.bytes,
        weights=place,
        parameters=description.parameters,
        batch_norm_layers=description.batch_norm_layers,
        refused_input_sizes=description.refused_input_sizes,
        **spec.model_dump(),
    )
    try:
        if place is None:
            storage.copy(upload_key(ticket.id), catalog.key(ticket.id, "weights.safetensors"))
        catalog.create(teacher)
    except BaseException:
        storage.delete_prefix(f"{catalog.root}/{ticket.id}")
        raise
    return teacher


def register_dataset(
    ticket: Ticket, storage: Storage, folder: Path, step: Callable[[], None] = lambda: None
) -> DatasetManifest:
    """Read and check every shard under a prefix, and write the manifest.

    Args:
        ticket: its request holds `prefix`, `name` and, where it is known, `class_order`.
        storage: holds the shards.
        folder: for local copies, one at a time.
        step: called before each shard.

    Raises:
        InvalidInput: at `/prefix`, naming the shard and sample that is not as it must be; nothing was stored.
    """
    prefix: str = ticket.request["prefix"]
    names = _class_names(storage, prefix)
    shards: list[Shard] = []
    modes: Counter[str] = Counter()
    sizes: set[tuple[int, int]] = set()
    for name, length in listed_shards(storage, prefix).items():
        step()
        shard, found = _read_shard(storage, prefix, name, folder, names)
        if length is not None and length != shard.samples:
            raise InvalidInput.at(
                "/prefix",
                f"{prefix}/{INFO} says that {name} holds {length} samples, but it holds {shard.samples}: correct it, "
                "or remove it and every *.tar is taken",
            )
        shards.append(shard)
        modes += found.modes
        sizes |= found.image_sizes
    labels = {label for shard in shards for label in shard.classes}
    if names is None and 0 not in labels:
        raise InvalidInput.at(
            "/prefix",
            f"the labels in {prefix!r} run from {min(labels)} to {max(labels)}, and no sample has label 0: labels "
            f"count from 0, so subtract {min(labels)} from each; or, if class 0 just does not occur, name all classes "
            f"in a {CLASS_NAMES} beside the shards",
        )
    order: ClassOrder | None = ticket.request.get("class_order")
    _check_order(order, names)
    num_classes = len(names) if names else 1 + max(labels)
    in_chans = 3 if modes["RGB"] else 1
    width, height = next(iter(sizes))
    manifest = DatasetManifest(
        id=ticket.id,
        name=ticket.request["name"],
        created_at=now(),
        owner=ticket.owner,
        num_samples=sum(shard.samples for shard in shards),
        num_classes=num_classes,
        image_size=width if len(sizes) == 1 and width == height else None,
        in_chans=in_chans,
        classes=count_classes(shards, names, num_classes),
        shards=shards,
        prefix=prefix,
        class_order=order,
        converted={"grey": modes["L"]} if modes["L"] and modes["RGB"] else {},
    )
    catalog = datasets(storage)
    # With it, what the API serves of a dataset loads as it is in timm.
    info = catalog.key(ticket.id, INFO)
    lacks_info = not storage.exists(f"{prefix}/{INFO}")
    try:
        if lacks_info:
            storage.put(info, info_json(shards))
        catalog.create(manifest)
    except BaseException:
        if lacks_info:
            storage.delete(info)
        raise
    return manifest


def _check_order(order: ClassOrder | None, names: list[str] | None) -> None:
    """Raises `InvalidInput` at `/class_order` if the classes are in another order than is said."""
    if order is None or names is None:
        return
    try:
        wanted = sorted_by(order, names)
    except ValueError:
        raise InvalidInput.at("/class_order", "by number, but not every class is named by a number") from None
    if wanted != names:
        label = next(label for label, name in enumerate(names) if name != wanted[label])
        raise InvalidInput.at(
            "/class_order",
            f"{order}, but {CLASS_NAMES} has {names[label]!r} at label {label}, where that order has {wanted[label]!r}",
        )


def _read_shard(
    storage: Storage, prefix: str, name: str, folder: Path, names: list[str] | None
) -> tuple[Shard, ShardContents]:
    path = folder / Path(name).name  # as errors will call it
    storage.download(f"{prefix}/{name}", path)
    try:
        found = inspect_shard(path, num_classes=len(names) if names else MAX_CLASSES)
    except CorruptData as error:
        raise InvalidInput.at("/prefix", error.message, code="corrupt_shard") from None
    file = describe_file(path, name)
    path.unlink()
    shard = Shard(
        name=name,
        bytes=file.bytes,
        sha256=file.sha256,
        samples=found.samples,
        classes=dict(sorted(found.classes.items())),
    )
    return shard, found


def _class_names(storage: Storage, prefix: str) -> list[str] | None:
    where = f"{prefix}/{CLASS_NAMES}"
    try:
        return read_class_names(read_beside_shards(storage, prefix, CLASS_NAMES), where)
    except NotFound:
        return None
    except InvalidInput as error:
        if error.errors:
            raise
        raise InvalidInput.at("/prefix", error.message) from None
