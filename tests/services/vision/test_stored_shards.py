"""A dataset that is larger than the cache: what is there when it is read, what is not, and storage that fails."""

import pickle
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dearkd.data.manifests import DatasetManifest, count_classes
from dearkd.data.shard_files import Sample, write_shard
from dearkd.errors import CorruptData, DiskFull, Unavailable
from dearkd.settings import Settings
from dearkd.storage import file_cache
from dearkd.storage.file_cache import FileCache
from dearkd.storage.objects import Storage
from dearkd.vision import stored_shards
from dearkd.vision.images import encode
from dearkd.vision.shards import ShardDataset
from dearkd.vision.stored_shards import HeldShards, StoredShards
from tests.support.s3 import S3Server
from tests.support.services import eventually

SHARDS, EACH = 5, 4


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.services)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    settings = Settings(storage_url=f"file://{tmp_path}/objects")
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3")
        settings = server.settings(tmp_path.name, settings)
    return Storage.open(settings)


@pytest.fixture
def manifest(storage: Storage, tmp_path: Path) -> DatasetManifest:
    """Images of one pixel, whose value is their number."""
    shards = []
    for number in range(SHARDS):
        pixels = torch.arange(EACH * number, EACH * (number + 1), dtype=torch.uint8)
        samples = (Sample(f"{n}", encode(x.view(1, 1, 1), "png"), "png", 0, {}) for n, x in enumerate(pixels))
        path = tmp_path / f"train-{number:06d}.tar"
        shards.append(write_shard(path, samples))
        storage.put(f"datasets/x/{path.name}", path)
    return DatasetManifest(
        id="ds-x",
        created_at=datetime.now(UTC),
        num_samples=SHARDS * EACH,
        num_classes=1,
        image_size=1,
        in_chans=1,
        classes=count_classes(shards, None, 1),
        shards=shards,
        prefix="datasets/x",
    )


@pytest.fixture
def bound(manifest: DatasetManifest) -> int:
    """Room for two shards."""
    return 2 * max(shard.bytes for shard in manifest.shards)


@pytest.fixture
def dataset(storage: Storage, manifest: DatasetManifest, bound: int, tmp_path: Path) -> StoredShards:
    return StoredShards(storage, manifest, lambda: FileCache(tmp_path / "cache", bound), num_classes=1, in_chans=1)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_shards, "FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of the cache at the end of each download, when they are most."""
    found: list[int] = []
    verify = file_cache.verify_copy

    def measure(*args: Any, **kwargs: Any) -> None:
        files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
        found.append(sum(path.stat().st_size for path in files))
        verify(*args, **kwargs)

    monkeypatch.setattr(file_cache, "verify_copy", measure)
    return found


def test_it_is_the_dataset_of_its_files_and_never_larger_than_the_cache(
    sizes: list[int], dataset: StoredShards, manifest: DatasetManifest, bound: int, tmp_path: Path
) -> None:
    files = ShardDataset([tmp_path / shard.name for shard in manifest.shards], num_classes=1, in_chans=1)
    assert dataset.fingerprint() == files.fingerprint()
    assert not dataset.preload()
    seen = []
    for place in dataset.visit(np.arange(len(dataset))):
        seen.append(int(dataset[place][0]))
        assert dataset.name(place) == files.name(place)
    assert seen == list(range(SHARDS * EACH))
    assert len(sizes) > SHARDS
    assert max(sizes) <= bound
    assert [int(files[place][0]) for place in files.visit(np.arange(len(files)))] == seen
    # What a loader's process gets where it is not forked.
    with closing(dataset.hold([np.array([7])])) as held:
        next(held)
        assert int(pickle.loads(pickle.dumps(dataset))[7][0]) == 7


class Counted(FileCache):
    """Holds nothing, and says when it is let go."""

    def __init__(self, shard: int, there: list[int]) -> None:
        self.shard, self.there = shard, there
        there.append(shard)

    def close(self) -> None:
        self.there.remove(self.shard)


@settings(max_examples=60)
@given(
    batches=st.lists(st.sets(st.integers(0, 6), min_size=1, max_size=3), max_size=12),
    max_shards=st.integers(1, 5),
    behind=st.integers(1, 4),
)
def test_what_is_at_work_is_held_and_no_more_than_asked(batches: list[set[int]], max_shards: int, behind: int) -> None:
    there: list[int] = []
    with closing(
        HeldShards(lambda shard: Counted(shard, there), batches, max_shards=max_shards, behind=behind)
    ) as held:
        for step, _ in enumerate(held):
            at_work = set().union(*batches[max(0, step - behind + 1) : step + 1])
            now = list(there)
            assert at_work <= set(now)
            assert len(now) == len(set(now)) <= max(max_shards, len(at_work))
        assert step + 1 == len(batches) if batches else True
    eventually(lambda: not there)


def test_shards_ahead_are_fetched_while_those_before_are_read(dataset: StoredShards) -> None:
    with closing(dataset.hold(np.arange(SHARDS * EACH)[:, None], max_shards=2)) as held:
        next(held)
        assert dataset._paths[0].exists()
        eventually(lambda: dataset._paths[1].exists())
        assert dataset._paths[0].exists()


@pytest.mark.parametrize("damage", ["altered", "gone"])
def test_a_shard_that_is_damaged_meanwhile_is_named(
    storage: Storage, dataset: StoredShards, manifest: DatasetManifest, damage: str
) -> None:
    key = f"datasets/x/{manifest.shards[2].name}"
    if damage == "altered":
        data = bytearray(storage.read(key))
        data[600] ^= 1
        storage.put(key, bytes(data))
    else:
        storage.delete(key)
    with closing(dataset.hold(np.arange(SHARDS * EACH)[:, None])) as held:
        for _ in range(2 * EACH):
            next(held)
        with pytest.raises(CorruptData, match=r"train-000002\.tar"):
            next(held)


def test_a_copy_that_goes_bad_in_the_cache_is_fetched_again(dataset: StoredShards, tmp_path: Path) -> None:
    copies = list((tmp_path / "cache").rglob("*.tar"))
    assert copies
    for path in copies:
        path.write_bytes(b"rot")
    assert [int(dataset[place][0]) for place in dataset.visit(np.arange(20))] == list(range(20))


def outage(dataset: StoredShards, monkeypatch: pytest.MonkeyPatch, error: Exception, times: int) -> list[int]:
    """Storage fails so often."""
    fetch, failed = dataset._fetch, list[int]()

    def fail(number: int) -> FileCache:
        if len(failed) < times:
            failed.append(number)
            raise error
        return fetch(number)

    monkeypatch.setattr(dataset, "_fetch", fail)
    return failed


def test_an_outage_of_storage_is_waited_out_but_not_for_ever(
    dataset: StoredShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = outage(dataset, monkeypatch, Unavailable("away"), 3)
    assert [int(dataset[place][0]) for place in dataset.visit(np.arange(20))] == list(range(20))
    assert failed == [0, 0, 0]
    monkeypatch.setattr(stored_shards, "PATIENCE_SECONDS", 0.1)
    outage(dataset, monkeypatch, Unavailable("away"), 10**6)
    with pytest.raises(Unavailable, match="away"):
        list(dataset.visit(np.arange(20)))
    failed = outage(dataset, monkeypatch, DiskFull("full"), 10**6)
    with pytest.raises(DiskFull):
        list(dataset.visit(np.arange(20)))
    assert set(failed) <= {0, 1}


def test_who_waits_is_woken_when_it_is_closed(dataset: StoredShards, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, begun = threading.Event(), threading.Event()
    fetch = dataset._fetch

    def slow(number: int) -> FileCache:
        begun.set()
        goes_on.wait()
        return fetch(number)

    monkeypatch.setattr(dataset, "_fetch", slow)
    held = dataset.hold([np.array([0])])
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(next, held)
        begun.wait()
        held.close()
        held.close()
        with pytest.raises(CancelledError):
            waits.result(60)
        goes_on.set()
    with pytest.raises(CancelledError):
        next(held)
    # What came too late is let go too.
    folder = dataset._paths[0].parent
    eventually(lambda: dataset._paths[0].exists())
    eventually(lambda: can_be_removed(folder))


def can_be_removed(folder: Path) -> bool:
    time.sleep(0.01)
    cache = FileCache(folder.parent.parent, 0)
    with cache.scratch("x"):
        return not folder.exists()
