"""Pages of what is stored: bounded in bytes, not only in number."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from dearkd.data.manifests import DatasetManifest, datasets
from dearkd.data.shard_files import Shard
from dearkd.identifiers import new_id
from dearkd.settings import Settings
from dearkd.storage import catalog
from dearkd.storage.objects import Storage


def put(storage: Storage, shards: int) -> str:
    identifier = new_id("ds")
    listed = [
        Shard(name=f"train-{n:06d}.tar", bytes=1, sha256="0" * 64, samples=1, classes={0: 1}) for n in range(shards)
    ]
    datasets(storage).create(
        DatasetManifest(
            id=identifier,
            created_at=datetime.now(UTC),
            num_samples=shards,
            num_classes=1,
            image_size=8,
            in_chans=1,
            classes=[],
            shards=listed,
            prefix=f"datasets/{identifier}",
        )
    )
    return identifier


def test_a_page_of_large_manifests_is_shorter_and_nothing_is_lost_between_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage.open(Settings(storage_url=f"file://{tmp_path}"))
    made = [put(storage, shards) for shards in (1, 40, 1, 40, 40, 1, 1)]
    size = storage.size(f"datasets/{made[1]}/dataset.json")
    monkeypatch.setattr(catalog, "MAX_PAGE_BYTES", size + size // 2)
    read: list[str] = []
    monkeypatch.setattr(storage, "read", lambda key: (read.append(key), Storage.read(storage, key))[1])
    pages: list[list[str]] = []
    more, after = True, None
    while more:
        read.clear()
        found, more = datasets(storage).page(limit=5, after=after)
        assert len(read) <= len(found) + 1
        pages.append([one.id for one in found])
        after = pages[-1][-1]
    assert [one for page in pages for one in page] == made[::-1]
    assert [len(page) for page in pages] == [3, 2, 2]


def test_a_manifest_above_the_bound_is_a_page_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage.open(Settings(storage_url=f"file://{tmp_path}"))
    older, newer = put(storage, 5), put(storage, 5)
    monkeypatch.setattr(catalog, "MAX_PAGE_BYTES", 1)
    first, more = datasets(storage).page(limit=5)
    assert ([one.id for one in first], more) == ([newer], True)
    last, more = datasets(storage).page(limit=5, after=newer)
    assert ([one.id for one in last], more) == ([older], False)
