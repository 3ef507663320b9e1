"""Files on their way to the API and from it: uploads that tell how far they are, downloads that are verified.

A download comes into `NAME.DIGEST.part` beside its place and is moved there once all of it has come and has the sha256
that the API says. The digest in that name, which is of what is asked for, lets who asks again go on from what an
interrupted one has left, also of a process that was killed, and never mixes two files of one name.
"""

import fcntl
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dearkd.client.problems import no_api, raise_for_status
from dearkd.client.sending import FINAL, RETRY_PAUSES, sent
from dearkd.client.transport import Streamed, Transport
from dearkd.errors import Conflict, CorruptData, DearKDError, Unavailable
from dearkd.identifiers import new_id

OnBytes = Callable[[int, int | None], None]
"""Called with the bytes that are done, and all that there are; None where that is not known."""

# A range of what was compressed on the way would be no range of the file.
_PLAIN = {"Accept-Encoding": "identity"}


class Upload(io.BufferedReader):
    """A file that tells how much of it was read.

    Args:
        path: of the file.
        on_progress: told after each part; again from the beginning where the file is sent again.
    """

    def __init__(self, path: Path, on_progress: OnBytes | None) -> None:
        super().__init__(io.FileIO(path))
        self._total = os.fstat(self.fileno()).st_size
        self._on_progress = on_progress

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if data and self._on_progress is not None:
            self._on_progress(self.tell(), self._total)
        return data


async def download(
    transport: Transport, url: str, path: Path, *, on_progress: OnBytes | None = None, resume: bool = True
) -> None:
    """Fetch a file that the API serves, whole or not at all; a broken connection is opened again where it was.

    Args:
        transport: to the API.
        url: the file's path in the API.
        path: of the local file, which is replaced if it exists.
        on_progress: told of what has come, with what an earlier download had left.
        resume: False to begin anew and to leave nothing, where nobody will ask for the same `path` again.

    Raises:
        Unavailable: if the API is out of reach and a few tries bring nothing more.
        CorruptData: if what came is not what the API says that it has.
        Conflict: if another process is fetching the same file to the same place.
    """
    listed = await _listed(transport, url)
    if listed is None:
        await fetch_whole(transport, url, path, on_progress=on_progress)
        return
    with _part_of(path, listed, resume=resume) as part:
        await transport.apart(part.read_again)
        while True:
            kept = part.done
            await _receive_rest(transport, url, part, on_progress)
            if part.digest.hexdigest() == listed.sha256:
                part.file.flush()
                part.path.replace(path)
                return
            part.restart()
            if not kept:
                raise CorruptData(
                    f"{path.name} did not come as the API's manifest has it (sha256 {listed.sha256}): fetch it again; "
                    "where that does not help, ask who runs the API"
                )


async def fetch_whole(transport: Transport, url: str, path: Path, *, on_progress: OnBytes | None = None) -> None:
    """Fetch what the API serves without a list of it, whole or not at all, and in one go."""
    part = path.with_name(f"{path.name}.{new_id('tmp')}")
    try:
        async with transport.stream("GET", url, headers=_PLAIN, follow_redirects=True) as answer:
            await _require_ok(answer)
            length = answer.response.headers.get("content-length", "")
            total = int(length) if length.isdecimal() else None
            done = 0
            with part.open("wb") as file:
                async for chunk in answer.chunks():
                    done += file.write(chunk)
                    if on_progress is not None:
                        on_progress(done, total)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Listed:
    """Size in bytes and sha256 of a file, as a manifest lists them."""

    bytes: int
    sha256: str


class _Part:
    """The part of a file that has come."""

    def __init__(self, path: Path, file: io.BufferedRandom, size: int) -> None:
        self.path = path
        self.file = file
        self.size = size
        self.done = 0
        self.digest: Any = hashlib.sha256()

    def read_again(self) -> None:
        """Count and hash what an earlier download has left."""
        self.file.seek(0)
        self.digest = hashlib.file_digest(self.file, "sha256")
        self.done = self.file.tell()
        if self.done > self.size:
            self.restart()

    def restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.digest = hashlib.sha256()
        self.done = 0

    def add(self, chunk: bytes) -> None:
        self.file.write(chunk)
        self.digest.update(chunk)
        self.done += len(chunk)


@contextmanager
def _part_of(path: Path, listed: _Listed, *, resume: bool) -> Iterator[_Part]:
    """The file beside `path` into which it comes, kept from other processes while the block runs."""
    suffix = f"{listed.sha256[:16]}.part" if resume else new_id("tmp")
    place = path.with_name(f"{path.name}.{suffix}")
    try:
        with _locked(place) as file:
            yield _Part(place, file, listed.bytes)
    finally:
        if not resume:
            place.unlink(missing_ok=True)


@contextmanager
def _locked(place: Path) -> Iterator[io.BufferedRandom]:
    while True:
        with os.fdopen(os.open(place, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict(
                    f"{place} is being written by another process, which fetches the same file: let that end"
                ) from None
            # Whoever held it before may have moved it to its place meanwhile.
            if place.exists() and os.fstat(file.fileno()).st_ino == place.stat().st_ino:
                yield file
                return


async def _listed(transport: Transport, url: str) -> _Listed | None:
    """Size and sha256 of a file, from the API itself, also where it lies in a bucket; None where it lists none."""
    try:
        head = await sent(transport, "HEAD", url, headers=_PLAIN)
    except DearKDError as error:
        if error.code.startswith("http_"):
            return None  # an answer to HEAD has no body: that to the GET which follows says what is wrong
        raise
    tag = re.fullmatch(r'"([0-9a-f]{64})"', head.headers.get("etag", ""))
    length = head.headers.get("content-length", "")
    return _Listed(int(length), tag[1]) if tag is not None and length.isdecimal() else None


async def _receive_rest(transport: Transport, url: str, part: _Part, on_progress: OnBytes | None) -> None:
    pauses = iter(RETRY_PAUSES)
    while part.done < part.size:
        before = part.done
        try:
            await _receive(transport, url, part, on_progress)
        except Unavailable as error:
            if part.done > before:
                pauses = iter(RETRY_PAUSES)
            pause = None if error.code in FINAL else next(pauses, None)
            if pause is None:
                raise
            await transport.sleep(pause)


async def _receive(transport: Transport, url: str, part: _Part, on_progress: OnBytes | None) -> None:
    """Receive what one connection brings."""
    wanted = {"Range": f"bytes={part.done}-"} if part.done else {}
    async with transport.stream("GET", url, headers=_PLAIN | wanted, follow_redirects=True) as answer:
        await _require_ok(answer)
        said = answer.response.headers.get("content-range", "")
        if answer.response.status_code == 200:
            part.restart()  # who takes no ranges sends the whole
        elif not said.startswith(f"bytes {part.done}-"):
            raise no_api(transport.url, f"it was asked for the bytes from {part.done} and answered {said!r:.80}")
        async for chunk in answer.chunks():
            part.add(chunk)
            if on_progress is not None:
                on_progress(part.done, part.size)
            if part.done > part.size:
                break
    if part.done != part.size:
        raise CorruptData(f"{url} has {part.done} bytes or more; the API's manifest says {part.size}")


async def _require_ok(answer: Streamed) -> None:
    if answer.response.is_error:
        await answer.read()
    raise_for_status(answer.response)
