"""The rules that a store must keep, each tried with real calls on objects of the trial's own, which are deleted again.

A rule is tried by the very calls that depend on it. Nothing here knows a provider: what is in front of a store, a
gateway or a proxy, counts as much as the store.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import httpx

from dearkd.errors import DearKDError, NotFound
from dearkd.identifiers import new_id
from dearkd.local.findings import Finding
from dearkd.storage.objects import AlreadyExists, Storage

RACERS, RACES = 8, 3
PART_BYTES = 6 * 2**20
"""More than obstore sends in one part, so that two of them are an upload in parts."""
URL_SECONDS = 60

_ANOTHER = "use a store that does, or a newer version of it; see the table of stores in docs/deployment.md"


class BrokenRule(DearKDError):
    """A store that answers, but not as it must."""

    default_code = "storage_unavailable"


class LooseRule(BrokenRule):
    """A rule that a store keeps less strictly than it should, and that nothing is lost by."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that a store must do.

    Attributes:
        promise: what it does, as the end of a sentence that begins with the store.
        attempt: tries it on objects under a prefix; raises BrokenRule saying what came instead.
        remedy: what to do where it does not.
        buckets_only: whether dearkd asks it of buckets alone.
    """

    promise: str
    attempt: Callable[[Storage, str], None]
    remedy: str
    buckets_only: bool = False


def try_rules(storage: Storage, rules: tuple[Rule, ...] | None = None) -> Iterator[Finding]:
    """Try all rules, and yield what was found of each; none raises, and nothing stays in the store."""
    for rule in RULES if rules is None else rules:
        if rule.buckets_only and storage.is_local:
            continue
        prefix = f"tmp/{new_id('tmp')}"
        try:
            try:
                rule.attempt(storage, prefix)
            finally:
                storage.delete_prefix(prefix)
        except DearKDError as error:
            cause = f" ({error.cause})" if error.cause else ""
            state: Literal["remark", "problem"] = "remark" if isinstance(error, LooseRule) else "problem"
            yield Finding("storage", state, f"{rule.promise}: no; {error.message}{cause}", rule.remedy)
        else:
            yield Finding("storage", "ok", rule.promise)


def _returns_what_was_written(storage: Storage, prefix: str) -> None:
    for data in (b"first", b"another"):
        storage.put(f"{prefix}/object", data)
        _require_bytes(storage.read(f"{prefix}/object"), data)
        _require(storage.size(f"{prefix}/object") == len(data), "it tells another size than was written")


def _tells_versions_apart(storage: Storage, prefix: str) -> None:
    storage.put(f"{prefix}/object", b"first")
    before = storage.version(f"{prefix}/object")
    _require(storage.version(f"{prefix}/object") == before, "an object that nobody touched has another ETag or time")
    storage.put(f"{prefix}/object", b"other")
    _require(
        storage.version(f"{prefix}/object") != before, "an object that was written anew has the same ETag and time"
    )


def _creates_once(storage: Storage, prefix: str) -> None:
    storage.create(f"{prefix}/object", b"first")
    try:
        storage.create(f"{prefix}/object", b"second")
    except AlreadyExists:
        _require_bytes(storage.read(f"{prefix}/object"), b"first")
        return
    raise BrokenRule("it lets an object be created twice, and so cannot keep two workers apart")


def _lets_one_racer_win(storage: Storage, prefix: str) -> None:
    most = 0
    with ThreadPoolExecutor(RACERS) as pool:
        for number in range(RACES):
            key, start = f"{prefix}/race-{number}", threading.Barrier(RACERS)

            def create(racer: int, key: str = key, start: threading.Barrier = start) -> bool:
                start.wait(URL_SECONDS)
                try:
                    storage.create(key, bytes([racer]) * 50_000)
                except AlreadyExists:
                    return False
                return True

            won = [racer for racer, first in enumerate(pool.map(create, range(RACERS))) if first]
            found = storage.read(key)
            _require(bool(won), f"of {RACERS} that created one object at once none was told that it did")
            _require(found in [bytes([racer]) * 50_000 for racer in won], "there lie bytes of none that won")
            most = max(most, len(won))
    if most > 1:
        raise LooseRule(
            f"of {RACERS} that created one object at once {most} were told that they did: it looks before it writes. "
            "Leases keep workers apart all the same; a second writer may replace an object by the same bytes"
        )


def _lists_at_once(storage: Storage, prefix: str) -> None:
    keys = [f"{prefix}/a/one", f"{prefix}/b/two"]
    for key in keys:
        storage.put(key, b"1")
    _require([o.key for o in storage.objects(prefix)] == keys, "a listing lacks what was just written")
    _require(storage.children(prefix) == ["a", "b"], "a listing by folders lacks what was just written")
    storage.delete(keys[0])
    _require([o.key for o in storage.objects(prefix)] == keys[1:], "a listing shows what was just deleted")
    storage.delete(keys[0])  # of what is not there is no error
    with suppress(NotFound):
        storage.read(keys[0])
        raise BrokenRule("what was deleted can be read")
    storage.delete_prefix(f"{prefix}/a")  # of a file system's own folders only so
    folders = storage.children(prefix)
    _require("b" in folders, "a listing by folders lacks one that holds an object")
    if folders != ["b"]:
        raise LooseRule(
            "a listing by folders names one whose objects were all deleted. Nothing is taken to be in it, but every "
            "list asks for it again until the store forgets it"
        )


def _reads_ranges(storage: Storage, prefix: str) -> None:
    data = os.urandom(100_000)
    storage.put(f"{prefix}/object", data)
    for start, end in ((0, 1), (500, 70_000), (99_999, None)):
        _require_bytes(b"".join(storage.stream(f"{prefix}/object", start=start, end=end)), data[start:end])


def _joins_parts(storage: Storage, prefix: str) -> None:
    parts = [os.urandom(PART_BYTES), os.urandom(PART_BYTES)]
    storage.put(f"{prefix}/object", iter(parts))
    _require_bytes(storage.read(f"{prefix}/object"), b"".join(parts))


def _drops_unfinished_parts(storage: Storage, prefix: str) -> None:
    def broken_off() -> Iterator[bytes]:
        yield from (os.urandom(PART_BYTES), os.urandom(PART_BYTES))
        raise _BrokenOff

    # obstore gives the upload up where what it is given raises; a store that refuses that is not told of by it.
    with suppress(_BrokenOff):
        storage.put(f"{prefix}/object", broken_off())
    _require(not storage.exists(f"{prefix}/object"), "an upload that was broken off left an object")
    _require(not list(storage.objects(prefix)), "an upload that was broken off is listed")


class _BrokenOff(Exception):
    """The end of what feeds an upload, in its midst."""


def _copies(storage: Storage, prefix: str) -> None:
    storage.put(f"{prefix}/object", b"what is copied")
    storage.copy(f"{prefix}/object", f"{prefix}/copy")
    _require_bytes(storage.read(f"{prefix}/copy"), b"what is copied")


def _signs_downloads(storage: Storage, prefix: str) -> None:
    data = bytes(range(200))
    storage.put(f"{prefix}/object", data)
    url = storage.presign(f"{prefix}/object", seconds=URL_SECONDS)
    _require(url is not None, "it signs no URL")
    try:
        whole = httpx.get(str(url), timeout=URL_SECONDS)
        part = httpx.get(str(url), headers={"range": "bytes=10-19"}, timeout=URL_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # not its text, which may hold the URL
        raise BrokenRule(f"a signed URL does not answer: {type(error).__name__}") from None
    except (ImportError, ValueError) as error:
        raise BrokenRule(f"the proxy that HTTPS_PROXY or ALL_PROXY names cannot be used: {error}") from None
    _require(whole.status_code == 200, f"a signed URL answers {whole.status_code}")
    _require_bytes(whole.content, data)
    _require(part.status_code == 206 and part.content == data[10:20], f"of a range it answers {part.status_code}")


def _require(kept: bool, instead: str) -> None:
    if not kept:
        raise BrokenRule(instead)


def _require_bytes(found: bytes, written: bytes) -> None:
    _require(found == written, f"it returned {len(found)} bytes that are not the {len(written)} that were written")


RULES: tuple[Rule, ...] = (
    Rule("returns what was written last", _returns_what_was_written, f"caches in front of it must be off; {_ANOTHER}"),
    Rule("tells an object written anew by ETag or time", _tells_versions_apart, _ANOTHER),
    Rule("creates an object only once", _creates_once, f"it must honour If-None-Match: * on PUT: {_ANOTHER}"),
    Rule(
        "lets one win of several that create an object at once",
        _lets_one_racer_win,
        f"it must honour If-None-Match: * atomically: {_ANOTHER}",
    ),
    Rule("lists what was written, and not what was deleted", _lists_at_once, f"listing must be consistent: {_ANOTHER}"),
    Rule("reads ranges of bytes", _reads_ranges, _ANOTHER),
    Rule("joins an upload in parts", _joins_parts, f"allow multipart uploads: {_ANOTHER}"),
    Rule("shows nothing of an upload that was broken off", _drops_unfinished_parts, _ANOTHER),
    Rule("copies an object", _copies, "let the key read and write (s3:GetObject, s3:PutObject)"),
    Rule(
        "signs URLs for downloads",
        _signs_downloads,
        "clients fetch from this address: the endpoint must be reachable by this name, and keys must be able to sign "
        "(Azure: an account key; GCS: a service account's key)",
        buckets_only=True,
    ),
)
