"""Verified local copies of stored files, shared by all workers of a host and bounded (`DEARKD_CACHE_BYTES`).

    {cache}/files/{sha256}/{name}   a copy: keyed by content, so that datasets and teachers never mix
    {cache}/scratch/{id}/           a unit's own files while it is at work
    {cache}/room.lock               held by the one process that makes room; says how many bytes all copies have

Who uses a folder holds a shared lock on it (`flock`, which ends with the process however it ends); who removes one
needs the exclusive lock. So nothing in use is ever removed, and what a dead process left is. Least recently used copies
go first. Where everything else is in use, what is needed may exceed the bound until it is let go: a job that runs is
worth more than the bound.

The copies are looked through only when there is no room by that number, and then a few more of them go: with a look for
each copy that is fetched, a dataset of twice the shards took four times as long.
"""

import fcntl
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from dearkd.errors import CorruptData
from dearkd.folders import private_folder
from dearkd.identifiers import new_id
from dearkd.storage.objects import Storage

log = logging.getLogger(__name__)

RESERVED = "filling.lock"
"""Held by the one process that fills a folder, so that a copy is fetched once; says how many bytes it will have."""

SPARED_SHARE = 16
"""One copy in so many goes beyond those that must, so that not every copy that comes next needs a look at all [R]."""


class FileCache:
    """A user of the cache: files that are fetched through it stay until it is closed. Others may use the same files.

    Args:
        root: the folder that the processes of this host share.
        max_bytes: what all copies and scratch folders together should not exceed.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self._held: list[int] = []
        self._folders = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the files that were fetched be removed, and remove them where those in use had exceeded the bound."""
        self._folders.close()
        if not self._held:
            return
        while self._held:
            _let_go(self._held.pop())
        # Whoever comes next may find all he needs, and then makes no room. What fails here fails nobody's work.
        with suppress(OSError), self._room() as tally:
            self._make_room(tally, 0)

    def place(self, *, name: str, sha256: str) -> Path:
        """The path of a copy, if there is one."""
        return self.root / "files" / sha256 / name

    def fetch(self, storage: Storage, key: str, *, name: str, sha256: str, size: int) -> Path:
        """A verified copy of a stored object; it stays where it is until the cache is closed.

        Args:
            storage: where the object is.
            key: of the object.
            name: of the copy.
            sha256: that the object must have, hexadecimal.
            size: of it in bytes, for which room is made.

        Raises:
            CorruptData: if what is stored is something else.
            NotFound: if nothing is.
        """
        return self.obtain(lambda path: storage.download(key, path, sha256=sha256), name=name, sha256=sha256, size=size)

    def obtain(self, download: Callable[[Path], None], *, name: str, sha256: str, size: int) -> Path:
        """Fetch like `fetch`, through a `download` that writes to the path it is given, whole or not at all.

        Raises:
            CorruptData: if that is something else, or `name` and `sha256`, which may be a stranger's, are no such.
        """
        if Path(name).name != name or re.fullmatch(r"[0-9a-f]{64}", sha256) is None:
            raise CorruptData(f"a manifest names a file {name!r} with sha256 {sha256!r}: that is no name or no digest")
        path = self.place(name=name, sha256=sha256)
        folder = path.parent
        descriptor = _hold(folder)
        try:
            if not _is_whole(path, sha256):
                with _locked(folder / RESERVED) as reserved:
                    if not _is_whole(path, sha256):
                        self._fill(path, download, sha256=sha256, size=size, reserved=reserved)
            os.utime(folder)
        except BaseException:
            _let_go(descriptor)
            raise
        self._held.append(descriptor)
        return path

    def _fill(self, path: Path, download: Callable[[Path], None], *, sha256: str, size: int, reserved: int) -> None:
        """Download a copy beside its place and move it there once it is whole and verified; a bad one is replaced."""
        with self._room() as tally:
            self._make_room(tally, size)
            # Counts for others from here on, however little of the copy has arrived.
            os.pwrite(reserved, str(size).encode(), 0)
        part = path.with_name(new_id("tmp"))
        try:
            download(part)
            verify_copy(part, name=path.name, sha256=sha256, size=size)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
            os.ftruncate(reserved, 0)

    @contextmanager
    def scratch(self, purpose: str) -> Iterator[Path]:
        """An empty folder for as long as the context lasts; one that a killed process left is removed later."""
        folder = self.root / "scratch" / f"{purpose}-{new_id('tmp')}"
        descriptor = _hold(folder)
        try:
            with self._room() as tally:
                self._make_room(tally, 0)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            _let_go(descriptor)

    def folder(self, purpose: str) -> Path:
        """An empty folder that stays until the cache is closed."""
        return self._folders.enter_context(self.scratch(purpose))

    @contextmanager
    def _room(self) -> Iterator[int]:
        """Let one process at a time count and take what is free, so that no two take the same; the tally."""
        private_folder(self.root)
        with _locked(self.root / "room.lock") as descriptor:
            yield descriptor

    def _make_room(self, tally: int, size: int) -> None:
        """Remove what dead processes left, then copies that nobody uses, until `size` bytes more fit; tally those."""
        scratch = _folders(self.root / "scratch")
        for folder in scratch:
            _remove_unused(folder)
        room = self.max_bytes - size - sum(_bytes(folder) for folder in scratch)
        copies = _read_count(tally)
        # Too high where a copy did not arrive or was removed by hand: then they are counted anew, before any goes.
        if copies is None or copies > room:
            copies = self._remove_copies(room)
            if copies > room:
                log.warning(
                    "%s holds %d bytes that are in use and %d more are needed, but DEARKD_CACHE_BYTES is %d: raise it",
                    self.root,
                    copies + self.max_bytes - size - room,
                    size,
                    self.max_bytes,
                )
        _write_count(tally, copies + size)

    def _remove_copies(self, room: int) -> int:
        """Remove the copies that were unused for longest until those that stay fit; the bytes of these."""
        found = []
        for folder in _folders(self.root / "files"):
            with suppress(FileNotFoundError):
                found.append((folder.stat().st_mtime_ns, folder, _bytes(folder)))
        total = sum(held for _, _, held in found)
        spared = len(found) // SPARED_SHARE if total > room else 0
        for _, folder, held in sorted(found):
            if total <= room:
                if not spared:
                    break
                spared -= 1
            if _remove_unused(folder):
                total -= held
        return total


def verify_copy(path: Path, *, name: str, sha256: str, size: int) -> None:
    """Check a local file against its manifest before anything reads it.

    Raises:
        CorruptData: naming the file and what differs.
    """
    found = path.stat().st_size
    if found != size:
        raise CorruptData(f"{name} has {found} bytes, the manifest says {size}: it is truncated or altered")
    digest = _digest(path)
    if digest != sha256:
        raise CorruptData(f"{name} has sha256 {digest}, the manifest says {sha256}: it was altered")


def is_copy(path: Path, *, name: str, sha256: str, size: int) -> bool:
    """Tell whether a local file is there and as its manifest says."""
    if not path.is_file():
        return False
    try:
        verify_copy(path, name=name, sha256=sha256, size=size)
    except CorruptData:
        return False
    return True


def _hold(folder: Path) -> int:
    """Make a folder where there is none and lock it against removal; the descriptor holds the lock."""
    while True:
        # Removed by another process between the attempt to make it and the look at what is there: neither is an error.
        with suppress(FileExistsError):
            private_folder(folder)
        with suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            # It may have been removed, and made again, before the lock was ours.
            with suppress(FileNotFoundError):
                if os.fstat(descriptor).st_ino == folder.stat().st_ino:
                    return descriptor
            os.close(descriptor)


def _let_go(descriptor: int) -> None:
    """Unlock and close: closing alone leaves the lock to processes that were forked meanwhile, such as a loader's."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Let one process at a time hold a file, which is made where there is none; its descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        _let_go(descriptor)


def _remove_unused(folder: Path) -> bool:
    """Remove a folder that nobody holds; says whether it did."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        # By its old name nobody finds a half-removed copy.
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == folder.stat().st_ino:
                shutil.rmtree(folder)
                return True
        return False
    finally:
        _let_go(descriptor)


def _read_count(descriptor: int) -> int | None:
    """The bytes of all copies, by who made room last; None where nobody has said so."""
    text = os.pread(descriptor, 32, 0)
    return int(text) if text.isdigit() else None


def _write_count(descriptor: int, copies: int) -> None:
    text = str(copies).encode()
    os.pwrite(descriptor, text, 0)
    os.ftruncate(descriptor, len(text))


def _folders(parent: Path) -> list[Path]:
    with suppress(FileNotFoundError):
        return [Path(entry.path) for entry in os.scandir(parent) if entry.is_dir(follow_symlinks=False)]
    return []


def _bytes(folder: Path) -> int:
    """The bytes that a folder holds, or will once the copy that is under way in it has arrived."""
    total = reserved = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                file = Path(path, name)
                if name == RESERVED:
                    reserved += int(file.read_text() or 0)
                else:
                    total += file.lstat().st_size
    return max(total, reserved)


def _is_whole(path: Path, sha256: str) -> bool:
    return path.exists() and _digest(path) == sha256


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
