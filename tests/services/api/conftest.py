"""One API for all tests of it, on a Redis database and a storage that are empty at the start of each."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dearkd.settings import Settings
from tests.support.services import Api, database, redis_server, serving

__all__ = ["redis_server"]


@pytest.fixture(scope="session")
def _shared_api(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    settings = Settings(
        redis_url=database(redis_server, 2),
        storage_url=f"file://{folder}/storage",
        cache_dir=folder / "cache",
        max_body_bytes=100_000,
        max_upload_bytes=3_000_000,
        max_images=2000,
        max_queued_jobs=200,
    )
    with serving(settings, folder) as api:
        yield api


@pytest.fixture
def api(_shared_api: Api) -> Api:
    _shared_api.store.redis.flushdb()
    root = Path(_shared_api.settings.storage_url.removeprefix("file://"))
    # The marker stays: without it this would be a storage that was unmounted.
    for child in root.iterdir() if root.exists() else ():
        if child.is_dir():
            shutil.rmtree(child)
    return _shared_api
