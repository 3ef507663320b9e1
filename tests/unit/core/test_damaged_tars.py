"""Tars that are none, or lie: each is refused by name, and nothing of it is lost in silence."""

import random
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from dearkd.data.shard_reader import inspect_shard
from dearkd.errors import CorruptData
from tests.support.damaged_tars import KINDS, header, last_header, named, tar


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_tar_is_named_and_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "train-000007.tar"
    path.write_bytes(KINDS[kind]())
    with pytest.raises(CorruptData, match=r"train-000007\.tar") as refused:
        inspect_shard(path)
    refused.value.message.encode()  # as answers and logs will
    assert len(refused.value.message) < 1000


@pytest.mark.parametrize("kind", [b"L", b"x", b"g", b"K"])
def test_what_is_said_of_a_member_at_vast_length_is_not_read(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "shard.tar"
    length = 300 * 2**20
    data = tar(named("long"))
    place = last_header(data)
    with path.open("wb") as file:
        file.write(header(data, place, type=kind, size=b"%011o\0" % length)[: place + 512])
        file.truncate(place + length + 10240)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptData, match=f"{length} bytes of attributes"):
            inspect_shard(path)
        assert tracemalloc.get_traced_memory()[1] < length / 10
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("attributes", [False, True])
@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_whole_ones_of_every_kind_are_read(tmp_path: Path, kind: int, attributes: bool) -> None:
    path = tmp_path / "shard.tar"
    if kind == tarfile.USTAR_FORMAT:
        path.write_bytes(tar(named("folder", type=tarfile.DIRTYPE), kind=tarfile.GNU_FORMAT))
    else:
        path.write_bytes(tar(named("folder", type=tarfile.DIRTYPE), kind=kind, attributes=attributes))
    assert inspect_shard(path).samples == 2


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_is_refused_or_harmless_and_never_a_fault(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = tmp_path / "shard.tar"
    refused = 0
    for number in range(300):
        whole = tar(kind=tarfile.PAX_FORMAT if number % 2 else tarfile.GNU_FORMAT, attributes=True)
        match rng.randrange(3):
            case 0:
                data = whole[: rng.randrange(len(whole) - 10240 % len(whole))]
            case 1:
                changed = bytearray(whole)
                for _ in range(rng.randrange(1, 6)):
                    changed[rng.randrange(len(changed))] = rng.randrange(256)
                data = bytes(changed)
            case _:
                place = 512 * rng.randrange(len(whole) // 512)
                field = rng.choice(["name", "size", "type", "magic", "linkname"])
                data = header(whole, place, **{field: rng.randbytes(1 if field == "type" else 8)})
        path.write_bytes(data)
        try:
            inspect_shard(path)
        except CorruptData:
            refused += 1
    assert refused > 100
