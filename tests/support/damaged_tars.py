"""Shards that are no tars, or lie: one of each kind."""

import io
import random
import tarfile
from collections.abc import Callable

from PIL import Image


def png() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), 3).save(file, "PNG")
    return file.getvalue()


def tar(*extra: tarfile.TarInfo, samples: int = 2, kind: int = tarfile.GNU_FORMAT, attributes: bool = False) -> bytes:
    """A shard that is right, with these members, of no content, at its end."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as made:
        for number in range(samples):
            for name, data in ((f"{number:05d}.cls", b"1"), (f"{number:05d}.png", png())):
                member = tarfile.TarInfo(name if number else name.rjust(150, "x"))
                member.size = len(data)
                if attributes:
                    member.pax_headers = {"comment": "é"}
                made.addfile(member, io.BytesIO(data))
        for member in extra:
            made.addfile(member)
    return file.getvalue()


def header(data: bytes, place: int, **fields: bytes) -> bytes:
    """With other fields in the header at a place, and the checksum that belongs to it."""
    starts = {"name": 0, "mode": 100, "size": 124, "mtime": 136, "type": 156, "linkname": 157, "magic": 257}
    block = bytearray(data[place : place + 512])
    for field, value in fields.items():
        block[starts[field] : starts[field] + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return data[:place] + bytes(block) + data[place + 512 :]


def last_header(data: bytes) -> int:
    with tarfile.open(fileobj=io.BytesIO(data)) as made:
        return made.getmembers()[-1].offset


def named(name: str, **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def pax(**attributes: str) -> bytes:
    """One more member, whose attributes say this."""
    member = named("zzz.txt", pax_headers=attributes)
    return tar(member, kind=tarfile.PAX_FORMAT)


def sparse() -> bytes:
    """A member of GNU's sparse kind."""
    data = tar(named("zzz.bin"))
    return header(data, last_header(data), type=b"S")


def chain(kind: bytes, links: int) -> bytes:
    """So many headers of long names, each about the next."""
    about = header(tar(named("a" * 99)), last_header(tar(named("a" * 99))), type=kind, size=b"00000000001\0")
    place = last_header(tar(named("a" * 99)))
    one = about[place : place + 512] + b"a".ljust(512, b"\0")
    return about[:place] + one * links + bytes(1024)


def damaged_in_the_middle() -> bytes:
    data = bytearray(tar())
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as made:
        data[made.getmembers()[2].offset + 148] ^= 1
    return bytes(data)


LAST = last_header(tar())
KINDS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "zeros": lambda: bytes(10240),
    "noise": lambda: random.Random(0).randbytes(20_000),
    "text": lambda: b"version https://git-lfs.github.com/spec/v1\n" * 40,
    "cut in a header": lambda: tar()[: LAST + 100],
    "cut in a member": lambda: tar()[: LAST + 520],
    "cut before its end": lambda: tar()[: LAST + 1024],
    "one block of zeros": lambda: tar()[: LAST + 1024 + 512],
    "checksum": lambda: tar()[:LAST] + b"!" + tar()[LAST + 1 :],
    "checksum in the middle": damaged_in_the_middle,
    "two tars": lambda: tar() + tar(),
    "something behind": lambda: tar() + b"x",
    "negative size": lambda: header(tar(), LAST, size=b"\xff" * 12),
    "vast size": lambda: header(tar(), LAST, size=b"\x80" + b"\xff" * 11),
    "size that is none": lambda: header(tar(), LAST, size=b"-0000000001\0"),
    "size in attributes": lambda: pax(size="-512"),
    "vast size in attributes": lambda: pax(size="9" * 4000),
    "sparse by attributes": lambda: pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
    "sparse of 10 TB": lambda: pax(**{"GNU.sparse.size": "1" + "0" * 13, "GNU.sparse.map": "0,1"}),
    "sparse map that is none": lambda: pax(**{"GNU.sparse.map": "a,b,c"}),
    "sparse": sparse,
    "name that is not UTF-8": lambda: tar(named("\udcff\udcfe.cls")),
    "very long name": lambda: tar(named("n" * 5000 + ".cls")),
    "link": lambda: tar(named("zzz.cls", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
    "device": lambda: tar(named("zzz.cls", type=tarfile.CHRTYPE)),
    "unknown kind": lambda: header(tar(), LAST, type=b"\xee"),
    "chain of long names": lambda: chain(b"L", 5000),
    "chain of attributes": lambda: chain(b"x", 5000),
}
