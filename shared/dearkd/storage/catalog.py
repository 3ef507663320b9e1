"""Teachers and models in storage: their manifests, and how they are listed and deleted.

A resource is there when its manifest is; manifests are written last and deleted first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections import OrderedDict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import SkipJsonSchema

from dearkd.documents import Document, Unread, as_written, claimed, read_document
from dearkd.errors import CorruptData, NotFound, Unreadable
from dearkd.identifiers import Kind, is_id
from dearkd.specs import TeacherSpec

if TYPE_CHECKING:  # a client reads manifests, and has no storage
    from dearkd.storage.file_cache import FileCache
    from dearkd.storage.objects import Storage

log = logging.getLogger(__name__)

SHARED: Final = "shared"
MAX_PAGE_BYTES: Final = 2**24
"""The most stored bytes of the manifests of a page, if it has more than one: that of a dataset of thousands of shards
has megabytes."""


class Manifest(Document):
    """The fields that every manifest starts with. Unknown fields are ignored: a newer version may have written them."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    name: str | None = None
    created_at: datetime
    owner: SkipJsonSchema[str | None] = None
    """The owner, who alone sees it until it is shared, and may delete it; as for a job. None: everyone sees it, as what
    is older than this field. Clients do not see whose it is."""


class StoredFile(BaseModel):
    """A file of a resource: its name under the resource's prefix, bytes, and hexadecimal sha256."""

    model_config = ConfigDict(frozen=True)

    name: str
    bytes: int
    sha256: str


class Teacher(Manifest):
    """A registered CNN: its spec, and what the inspector found."""

    status: Literal["ready"] = "ready"
    name: str
    architecture: str
    model_args: dict[str, Any]
    num_classes: int
    in_chans: int
    image_size: int
    mean: list[float]
    std: list[float]
    class_names: list[str] | None = None
    sha256: str
    bytes: int
    parameters: int
    batch_norm_layers: int
    refused_input_sizes: list[int] = Field(default_factory=list)
    """Sides of images that it was found not to take; of other sizes than its image size and half of it nothing is
    known."""
    weights: str | None = None
    """The key of weights that were registered in their place, and not uploaded; they stay when it is deleted."""

    @property
    def spec(self) -> TeacherSpec:
        """The teacher's spec. Raises `Unreadable` if the manifest was altered into what no teacher is."""
        try:
            return TeacherSpec.stored(self.model_dump(include=set(TeacherSpec.model_fields)))
        except ValidationError as error:
            raise Unreadable(f"teachers/{self.id}/teacher.json", _remedy(self.id), error) from None

    def class_name(self, index: int) -> str:
        return self.class_names[index] if self.class_names else str(index)


class Accuracy(BaseModel):
    """Fractions in [0, 1], and the dataset they were measured on."""

    model_config = ConfigDict(frozen=True)

    top1: float
    top5: float
    dataset: str


class Model(Manifest):
    """A trained student: files under its prefix, and where it came from."""

    architecture: str
    num_classes: int
    in_chans: int
    image_size: int
    class_names: list[str] | None = None
    accuracy: Accuracy | None = None
    dataset: str
    teacher: str | None = None
    run: str
    spec: dict[str, Any]
    files: list[StoredFile] = Field(default_factory=list)


LARGE_BYTES: Final = 2**18
"""Manifests of so many stored bytes are worth remembering: reading them takes milliseconds, again for each shard of a
dataset that is fetched, and for each picture of its page."""
MAX_REMEMBERED_BYTES: Final = 2**24
"""Stored bytes of what a catalog remembers; in memory a manifest has about six times as many."""

ManifestT = TypeVar("ManifestT", bound=Manifest)


class Catalog(Generic[ManifestT]):
    """All resources of one sort: `{root}/{id}/{manifest}` and what lies beside it, such as `shared`, an empty object
    while all owners may see it. Usable from several threads.

    Args:
        storage: where they are.
        root: the folder of them all.
        kind: the beginning of their ids.
        manifest: the name of the file that is written last.
        model: what that file holds.
        remember: True to keep large manifests, for as long as storage says that they were not written anew.
    """

    def __init__(
        self, storage: Storage, root: str, kind: Kind, manifest: str, model: type[ManifestT], *, remember: bool = False
    ) -> None:
        self.storage = storage
        self.root = root
        self.kind: Kind = kind
        self.manifest = manifest
        self.model = model
        self._remember = remember
        self._remembered: OrderedDict[str, tuple[object, ManifestT, int]] = OrderedDict()
        self._mutex = threading.Lock()

    def key(self, identifier: str, name: str) -> str:
        """The storage key of a file of a resource.

        Raises:
            NotFound: if `identifier` cannot be one of this sort's, so that no odd text ever becomes part of a key.
        """
        if not is_id(identifier, self.kind):
            raise NotFound(f"there is no {identifier!r} in {self.root}")
        return f"{self.root}/{identifier}/{name}"

    def get(self, identifier: str, *, viewer: str | None = None) -> ManifestT:
        """Read the manifest of a resource.

        Args:
            identifier: of the resource.
            viewer: the owner who asks, for whom one that he may not see is as one that does not exist; None sees all.

        Raises:
            NotFound: if there is none.
            Unreadable: if it cannot be read; `NewerSchema` if a newer version wrote it.
        """
        return self._read(identifier, viewer)[0]

    def _read(self, identifier: str, viewer: str | None) -> tuple[ManifestT, int]:
        """The manifest and its stored bytes. Raises as `get`."""
        key = self.key(identifier, self.manifest)
        unknown = NotFound(f"there is no {identifier!r} in {self.root}")
        try:
            known = self._recall(key)
            if known is None:
                text = self.storage.read(key)
                version = None
                if self._remember and len(text) >= LARGE_BYTES:
                    # Its version first: of what is written in between the next look then finds another one.
                    version, text = self.storage.version(key), self.storage.read(key)
        except NotFound:
            raise unknown from None
        if known is None:
            try:
                known = read_document(self.model, text, key, _remedy(identifier)), len(text)
            except Unreadable:
                if viewer is not None and claimed(text, "owner") != viewer and not self.is_shared(identifier):
                    raise unknown from None
                raise
            if version is not None:
                self._keep(key, version, *known)
        if not self.is_visible(known[0], viewer):
            raise unknown
        return known

    def _recall(self, key: str) -> tuple[ManifestT, int] | None:
        """A manifest that was remembered and has not been written anew. Raises `NotFound` if it is gone."""
        with self._mutex:
            held = self._remembered.get(key)
        if held is None or self.storage.version(key) != held[0]:
            return None
        with self._mutex:
            if key in self._remembered:
                self._remembered.move_to_end(key)
        return held[1:]

    def _keep(self, key: str, version: object, manifest: ManifestT, size: int) -> None:
        with self._mutex:
            self._remembered[key] = version, manifest, size
            self._remembered.move_to_end(key)
            while sum(size for _, _, size in self._remembered.values()) > MAX_REMEMBERED_BYTES:
                self._remembered.popitem(last=False)

    def is_visible(self, item: ManifestT, viewer: str | None) -> bool:
        """Tell whether an owner may see a resource; None sees all."""
        return viewer is None or item.owner in (None, viewer) or self.is_shared(item.id)

    def is_shared(self, identifier: str) -> bool:
        """Tell whether a resource was shared with all owners."""
        return self.storage.exists(self.key(identifier, SHARED))

    def share(self, identifier: str, *, shared: bool) -> None:
        """Let all owners see a resource, or no other any more."""
        if shared:
            self.storage.put(self.key(identifier, SHARED), b"")
        else:
            self.storage.delete(self.key(identifier, SHARED))

    def exists(self, identifier: str) -> bool:
        return is_id(identifier, self.kind) and self.storage.exists(self.key(identifier, self.manifest))

    def page(
        self,
        *,
        limit: int,
        after: str | None = None,
        viewer: str | None = None,
        unread: list[Unread] | None = None,
    ) -> tuple[list[ManifestT], bool]:
        """Up to `limit` resources that `viewer` may see, newest first and older than `after`; whether there are more.

        Fewer where their manifests have more than `MAX_PAGE_BYTES`, but one at least. The viewer is as for `get`. Those
        among them that cannot be read are left out, and added to `unread`.
        """
        found: list[ManifestT] = []
        read = 0
        for identifier in reversed(self.storage.children(self.root)):
            if not is_id(identifier, self.kind) or (after is not None and identifier >= after):
                continue
            try:
                item, size = self._read(identifier, viewer)
            except NotFound:
                continue  # another's, not finished, or just deleted
            except CorruptData as error:
                log.error("left out of the list: %s", error)  # one bad manifest must not hide the others
                if unread is not None:
                    unread.append(Unread(id=identifier, reason=error.message))
                continue
            read += size
            if len(found) == limit or (found and read > MAX_PAGE_BYTES):
                return found, True
            found.append(item)
        return found, False

    def create(self, item: ManifestT) -> None:
        """Write the manifest, last of all.

        Raises:
            AlreadyExists: if another writer was first.
        """
        self.storage.create(self.key(item.id, self.manifest), manifest_bytes(as_written(item)))

    def delete(self, identifier: str) -> None:
        """Delete the manifest first, whatever it holds, then the objects. Raises `NotFound`."""
        if not self.exists(identifier):
            raise NotFound(f"there is no {identifier!r} in {self.root}")
        self.storage.delete(self.key(identifier, self.manifest))
        self.storage.delete_prefix(f"{self.root}/{identifier}")


def _remedy(identifier: str) -> str:
    return f"restore it from a backup, or delete {identifier} and make it again"


def teachers(storage: Storage) -> Catalog[Teacher]:
    return Catalog(storage, "teachers", "tch", "teacher.json", Teacher)


def models(storage: Storage) -> Catalog[Model]:
    # The manifest is a name of ours beside `config.json`, which is timm's.
    return Catalog(storage, "models", "mdl", "model.json", Model)


def manifest_bytes(item: BaseModel) -> bytes:
    return (json.dumps(item.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def describe_file(path: Path, name: str | None = None) -> StoredFile:
    """Name, size and sha256 of a local file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return StoredFile(name=name or path.name, bytes=path.stat().st_size, sha256=digest)


def fetch_weights(storage: Storage, teacher: Teacher, cache: FileCache) -> Path:
    """A verified local copy of a teacher's weights, which stays until the cache is closed.

    Raises:
        CorruptData: if what is stored is not what was registered.
    """
    name = "weights.safetensors"
    key = teacher.weights or f"teachers/{teacher.id}/{name}"
    return cache.fetch(storage, key, name=name, sha256=teacher.sha256, size=teacher.bytes)


def fetch_model_file(storage: Storage, model: Model, name: str, cache: FileCache) -> Path:
    """A verified local copy of a file of a model, which stays until the cache is closed.

    Raises:
        CorruptData: if what is stored is not what the manifest says, or it names no such file.
    """
    listed = next((file for file in model.files if file.name == name), None)
    if listed is None:
        raise CorruptData(f"{model.id} has no {name} among its files: {[file.name for file in model.files]}")
    return cache.fetch(storage, f"models/{model.id}/{name}", name=name, sha256=listed.sha256, size=listed.bytes)
