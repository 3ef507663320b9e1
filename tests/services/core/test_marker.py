"""A storage root proves that it is the one that is known; what is missing in any other is an outage, not an answer."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from redis import Redis

from dearkd.errors import NotFound, Unavailable
from dearkd.jobs.ledger import Ledger
from dearkd.local import doctor
from dearkd.local.embedded_redis import embedded_redis
from dearkd.settings import Settings
from dearkd.storage.marker import KEY, REDIS_KEY
from dearkd.storage.objects import Storage
from dearkd.work.worker import _accepted, open_ledger
from tests.support.ledger_steps import synthesis


@pytest.fixture
def redis(redis_url: str) -> Redis:
    redis = Redis.from_url(redis_url)
    redis.flushall()
    return redis


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "storage"


def opened(root: Path, redis: Redis | None) -> Storage:
    return Storage.open(Settings(storage_url=f"file://{root}"), redis)


def identifier(root: Path) -> str:
    return str(json.loads((root / KEY).read_bytes())["id"])


ACTS: dict[str, Callable[[Storage], object]] = {
    "read": lambda storage: storage.read("jobs/x/job.json"),
    "exists": lambda storage: storage.exists("jobs/x/job.json"),
    "size": lambda storage: storage.size("jobs/x/job.json"),
    "stream": lambda storage: storage.stream("jobs/x/job.json"),
    "objects": lambda storage: list(storage.objects("jobs")),
    "children": lambda storage: storage.children("jobs"),
    "put": lambda storage: storage.put("jobs/x/job.json", b"2"),
    "create": lambda storage: storage.create("jobs/y/job.json", b"2"),
    "copy": lambda storage: storage.copy("jobs/x/job.json", "jobs/y/job.json"),
    "delete": lambda storage: storage.delete("jobs/x/job.json"),
    "delete_prefix": lambda storage: storage.delete_prefix("jobs"),
    "leftovers": lambda storage: list(storage.leftovers()),
    "ping": lambda storage: storage.ping(),
}


@pytest.mark.services
@pytest.mark.parametrize("lost", ["moved", "emptied", "unmarked", "another"])
@pytest.mark.parametrize("with_redis", [True, False])
def test_a_storage_that_was_lost_answers_nothing_and_is_not_made_anew(
    redis: Redis, root: Path, lost: str, with_redis: bool
) -> None:
    storage = opened(root, redis if with_redis else None)
    storage.put("jobs/x/job.json", b"1")
    storage.ping()
    shutil.copytree(root, root.with_name("kept"))
    if lost == "unmarked":
        (root / KEY).unlink()
    else:
        shutil.rmtree(root)
        if lost != "moved":
            root.mkdir()
        if lost == "another":
            opened(root, None).put("jobs/x/job.json", b"other")
    before = sorted(root.rglob("*"))
    # One that was open, and of a service one that is opened now.
    for looking in [storage, *([opened(root, redis)] if with_redis else [])]:
        for name, act in ACTS.items():
            with pytest.raises(Unavailable, match="adopt-storage") as caught:
                act(looking)
            assert caught.value.code == "storage_unavailable", name
            assert str(root) not in caught.value.message
            if lost == "another":
                assert identifier(root) in caught.value.message
                assert identifier(root.with_name("kept")) in caught.value.message
    assert sorted(root.rglob("*")) == before
    shutil.rmtree(root, ignore_errors=True)
    root.with_name("kept").rename(root)
    assert storage.read("jobs/x/job.json") == b"1"
    assert storage.children("jobs") == ["x"]


@pytest.mark.services
def test_an_empty_root_becomes_a_storage_once_and_only_by_a_write(redis: Redis, root: Path) -> None:
    storage = opened(root, redis)
    assert storage.children("jobs") == []
    with pytest.raises(NotFound):
        storage.read("jobs/x")
    assert not root.exists()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: opened(root, redis).put(f"tmp/{number}", b"1"), range(16)))
    assert redis.get(REDIS_KEY) == identifier(root).encode()
    assert len(list(storage.objects("tmp"))) == 16
    assert root.stat().st_mode & 0o777 == 0o700


@pytest.mark.services
@pytest.mark.parametrize("folder", ["teachers", "datasets", "models", "jobs", "runs", "tmp"])
def test_a_root_from_before_there_were_markers_is_adopted(redis: Redis, root: Path, folder: str) -> None:
    (root / folder / "x").mkdir(parents=True)
    (root / folder / "x" / "object").write_bytes(b"1")
    (root / "mine").mkdir()
    storage = opened(root, redis)
    assert storage.children(folder) == ["x"]
    assert redis.get(REDIS_KEY) == identifier(root).encode()


@pytest.mark.services
def test_a_redis_that_was_lost_learns_the_storage_again(redis: Redis, root: Path) -> None:
    opened(root, redis).put("tmp/x", b"1")
    redis.flushall()
    assert opened(root, redis).read("tmp/x") == b"1"
    assert redis.get(REDIS_KEY) == identifier(root).encode()


@pytest.mark.services
def test_a_folder_of_others_is_taken_only_on_purpose_and_a_fresh_disk_is_empty(redis: Redis, root: Path) -> None:
    (root / "photos").mkdir(parents=True)
    for act in (Storage.ping, lambda storage: storage.put("tmp/x", b"1")):
        with pytest.raises(Unavailable, match="photos"):
            act(opened(root, redis))
    (root / "photos").rename(root / "lost+found")
    (root / ".DS_Store").write_bytes(b"")
    opened(root, redis).put("tmp/x", b"1")
    assert identifier(root)


@pytest.mark.services
def test_a_broken_marker_is_an_outage(redis: Redis, root: Path) -> None:
    storage = opened(root, redis)
    storage.put("tmp/x", b"1")
    for broken in (b"", b'{"id"', b"[]", b"{}", b"\xff\xfe"):
        (root / KEY).write_bytes(broken)
        with pytest.raises(Unavailable, match="cannot be read"):
            storage.read("tmp/x")


@pytest.mark.services
def test_another_storage_is_adopted_on_purpose(tmp_path: Path) -> None:
    with embedded_redis(tmp_path / "redis") as url:
        settings = Settings(redis_url=url, storage_url=f"file://{tmp_path}/one")
        open_ledger(settings).store.storage.put("tmp/x", b"1")
        shutil.rmtree(tmp_path / "one")
        (finding, *_) = doctor.check_storage(settings)
        assert finding.state == "problem"
        assert "--adopt-storage" in finding.detail
        assert doctor.adopt(settings).state == "ok"
        (finding, *_) = doctor.check_storage(settings)
        assert finding.state == "ok", finding
        open_ledger(settings).store.storage.ping()


@pytest.mark.services
def test_a_worker_forgets_no_job_because_its_storage_is_away(ledger: Ledger, settings: Settings, root: Path) -> None:
    job = synthesis(ledger.store)
    claim = ledger.claim("synthesis", 15)
    assert claim is not None
    root.rename(root.with_name("away"))
    for looking in (ledger, open_ledger(settings)):
        for left in ("nothing", "a mount point"):
            if left == "a mount point":
                root.mkdir(exist_ok=True)
            with pytest.raises(Unavailable):
                _accepted(claim, looking)
    assert list(root.iterdir()) == []
    root.rmdir()
    root.with_name("away").rename(root)
    accepted = _accepted(claim, ledger)
    assert accepted is not None
    assert accepted.id == job.id


@pytest.mark.services
def test_an_empty_root_is_no_new_storage_where_redis_knows_jobs(ledger: Ledger, settings: Settings, root: Path) -> None:
    synthesis(ledger.store)
    ledger.redis.delete(REDIS_KEY)  # as an older dearkd left it
    root.rename(root.with_name("away"))
    with pytest.raises(Unavailable, match="Redis knows jobs"):
        open_ledger(settings).store.storage.ping()
    assert not root.exists()
