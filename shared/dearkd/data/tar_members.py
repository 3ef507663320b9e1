"""The members of a tar that a stranger may have made: bounded, and refused where any of it is damaged."""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from dearkd.errors import CorruptData, reason

MAX_MEMBER_BYTES = 64 * 2**20
MAX_MEMBERS = 10_000_000
MAX_NAME = 1000
"""Bytes of a member's name, which a tar's extensions let be as long as the file."""
MAX_ABOUT_BYTES = 2**20
"""Of the attributes or the long name of a member, which are read whole."""

_ABOUT_MEMBERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


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


def split_member(name: str) -> tuple[str, str]:
    """WebDataset's key and suffix: the name is split at the first dot of its last segment, suffixes in lower case."""
    match = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]+)", name)
    return (match[1], match[2].lower()) if match else (name, "")
