"""Pages of what is stored: bounded in bytes, not only in number."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from dearkd.data.manifests import DatasetManifest, datasets
from dearkd.data.shard_files import Shard
from dearkd.errors import NotFound
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


def test_a_large_manifest_is_read_once_until_it_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the fetching of a dataset would read its manifest once for each of its shards."""
    storage = Storage.open(Settings(storage_url=f"file://{tmp_path}"))
    small, large, larger = put(storage, 1), put(storage, 30), put(storage, 40)
    key = f"datasets/{large}/dataset.json"
    text = storage.read(key)
    monkeypatch.setattr(catalog, "LARGE_BYTES", len(text))
    monkeypatch.setattr(catalog, "MAX_REMEMBERED_BYTES", 2 * len(text))
    read: list[str] = []
    monkeypatch.setattr(storage, "read", lambda key: (read.append(key), Storage.read(storage, key))[1])

    def reads(identifier: str, times: int = 4) -> int:
        read.clear()
        assert [known.get(identifier).id for _ in range(times)] == [identifier] * times
        return len(read)

    known = datasets(storage, remember=True)
    assert [reads(large), reads(large), reads(small)] == [2, 0, 4]
    assert [reads(larger), reads(larger, 1), reads(large, 1)] == [2, 0, 2], "both together are above the bound"
    storage.put(key, text.replace(b'"num_samples": 30', b'"num_samples": 31'))
    assert known.get(large).num_samples == 31
    known.delete(large)
    with pytest.raises(NotFound):
        known.get(large)
    known = datasets(storage)
    assert reads(larger) == 4
