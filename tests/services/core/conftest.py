"""A real Redis for the session, emptied for each test, and a real store on disk."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dearkd.jobs.ledger import Ledger
from dearkd.jobs.store import JobStore
from dearkd.local.embedded_redis import embedded_redis
from dearkd.settings import Settings
from dearkd.work.worker import open_ledger
from tests.support.s3 import S3Server


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with embedded_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=["file", *(pytest.param(name, marks=pytest.mark.services) for name in ("s3", "seaweed"))])
def storage_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of an empty storage of each sort."""
    settings = Settings(storage_url=f"file://{tmp_path}/objects", cache_dir=tmp_path / "cache")
    if request.param == "file":
        return settings
    server: S3Server = request.getfixturevalue(request.param)
    return server.settings(tmp_path.name, settings)


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    return Settings(
        redis_url=redis_url, storage_url=f"file://{tmp_path}/storage", cache_dir=tmp_path / "cache", lease_seconds=15
    )


@pytest.fixture
def ledger(settings: Settings) -> Ledger:
    ledger = open_ledger(settings)
    ledger.redis.flushall()
    return ledger


@pytest.fixture
def store(ledger: Ledger) -> JobStore:
    return ledger.store
