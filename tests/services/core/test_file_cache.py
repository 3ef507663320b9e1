"""The shared cache of local copies: bounded, least recently used first, and nothing in use is ever removed."""

import hashlib
import multiprocessing
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dearkd.errors import CorruptData
from dearkd.settings import Settings
from dearkd.storage.file_cache import FileCache
from dearkd.storage.objects import Storage

SIZE = 1000


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage.open(Settings(storage_url=f"file://{tmp_path}/objects"))
    for number in range(12):
        storage.put(str(number), content(number))
    return storage


def content(number: int) -> bytes:
    return bytes([number]) * SIZE


def fetch(cache: FileCache, storage: Storage, number: int) -> Path:
    sha256 = hashlib.sha256(content(number)).hexdigest()
    return cache.fetch(storage, str(number), name="x.tar", sha256=sha256, size=SIZE)


def held(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / "files").rglob("*") if path.is_file())


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders whose entries were read, one after another."""
    found: list[str] = []
    scandir = os.scandir

    def noted(path: Any = ".") -> Any:
        found.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", noted)
    return found


def fetch_each(root: Path, room: int, copies: range) -> None:
    """Fetch these copies one after another, each by a user of its own, as the shards of a dataset are."""
    for number in copies:
        data = number.to_bytes(2, "big") * (SIZE // 2)
        with FileCache(root, room * SIZE) as cache:
            cache.obtain(
                lambda path, data=data: path.write_bytes(data),
                name="x.tar",
                sha256=hashlib.sha256(data).hexdigest(),
                size=SIZE,
            )


def test_least_recently_used_copies_go_and_those_in_use_stay(storage: Storage, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    with FileCache(root, 4 * SIZE) as using:
        kept = fetch(using, storage, 0)
        paths = []
        for number in (1, 2, 3):
            with FileCache(root, 4 * SIZE) as cache:
                paths.append(fetch(cache, storage, number))
                os.utime(paths[-1].parent, ns=(number, number))  # a clock too coarse to tell them apart does not matter
        with FileCache(root, 4 * SIZE) as cache:
            fetch(cache, storage, 1)  # used again: 2 is the oldest now
            fetch(cache, storage, 4)
        assert [path.exists() for path in paths] == [True, False, True]
        assert kept.read_bytes() == content(0)
        assert held(root) == 4 * SIZE
    with FileCache(root, SIZE) as cache:
        assert fetch(cache, storage, 5).read_bytes() == content(5)
    assert held(root) == SIZE


def test_a_copy_costs_no_more_looks_where_there_are_many(looks: list[str], tmp_path: Path) -> None:
    """With a look at every copy for each that comes, a dataset of twice the shards takes four times as long."""
    for number in (50, 100, 200):
        fetch_each(tmp_path / str(number), 1000, range(number))
    few, more, many = (sum(f"{tmp_path}/{number}/" in look for look in looks) for number in (50, 100, 200))
    assert many - more <= 2.2 * (more - few)


def test_a_full_cache_costs_no_more_looks_where_it_is_large(looks: list[str], tmp_path: Path) -> None:
    for room in (40, 160):
        fetch_each(tmp_path / str(room), room, range(room))
        del looks[:]
        fetch_each(tmp_path / str(room), room, range(room, room + 100))
        assert len(looks) <= 100 * 30
        # The last that came are all there, but for what went so that not each that comes needs a look.
        assert room * 0.9 * SIZE <= held(tmp_path / str(room)) <= room * SIZE


def test_what_is_gone_though_it_was_counted_takes_no_room(storage: Storage, tmp_path: Path) -> None:
    """Removed by hand, or by a crash while it came; and no number, or none that is one, is made anew."""
    root = tmp_path / "cache"
    with FileCache(root, 3 * SIZE) as cache:
        paths = [fetch(cache, storage, number) for number in range(3)]
    for path in paths[1:]:
        path.unlink()
    for number, tally in ((3, None), (4, b""), (5, b"3k")):
        if tally is not None:
            (root / "room.lock").write_bytes(tally)
        with FileCache(root, 3 * SIZE) as cache:
            fetch(cache, storage, number)
        assert held(root) == min(number - 1, 3) * SIZE
    assert not paths[0].exists()


def test_what_is_in_use_may_exceed_the_bound_until_it_is_not(
    storage: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "cache"
    with FileCache(root, 2 * SIZE) as cache:
        paths = [fetch(cache, storage, number) for number in range(4)]
        assert [path.read_bytes() for path in paths] == [content(number) for number in range(4)]
    assert "DEARKD_CACHE_BYTES" in caplog.text
    assert held(root) == 2 * SIZE
    with FileCache(root, SIZE) as first, FileCache(root, SIZE) as second:
        kept = fetch(first, storage, 0)
        fetch(second, storage, 1)
        second.close()
        assert kept.exists()
        assert held(root) == SIZE


def test_a_copy_that_went_bad_is_fetched_again_and_a_bad_original_refused(storage: Storage, tmp_path: Path) -> None:
    with FileCache(tmp_path / "cache", 2**20) as cache:
        fetch(cache, storage, 1).write_bytes(b"rot")
        assert fetch(cache, storage, 1).read_bytes() == content(1)
        storage.put("2", b"rot")
        with pytest.raises(CorruptData, match="2 has sha256"):
            fetch(cache, storage, 2)
        assert not [path for path in (tmp_path / "cache").rglob("x.tar") if path.read_bytes() == b"rot"]


def test_scratch_folders_of_the_living_stay_and_those_of_the_dead_go(storage: Storage, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    code = (
        "import sys; from pathlib import Path; from dearkd.storage.file_cache import FileCache\n"
        f"with FileCache(Path({str(root)!r}), 10).scratch('run') as folder:\n"
        "    (folder / 'big').write_bytes(bytes(9)); print(folder, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    theirs = Path(other.stdout.readline().strip())
    with FileCache(root, 10).scratch("run") as mine:
        assert theirs.exists()
        assert mine != theirs
    assert not mine.exists()
    other.kill()
    other.wait()
    assert theirs.exists()
    with FileCache(root, 10).scratch("run"):
        assert not theirs.exists()


def test_processes_at_once_never_lose_what_they_use(storage: Storage, tmp_path: Path) -> None:
    """Four processes fetch at random under a bound of three files; each finds its own whole while it uses it."""
    root = tmp_path / "cache"
    seeds = random.Random(0).sample(range(1000), 4)
    users = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.cache_user", str(root), f"file://{tmp_path}/objects", str(seed)],
            cwd=Path(__file__).parents[3],
        )
        for seed in seeds
    ]
    assert [user.wait(240) for user in users] == [0] * 4
    assert held(root) <= 3 * SIZE


def test_those_who_want_the_same_copy_at_once_fetch_it_once(tmp_path: Path) -> None:
    fetched = []

    def download(path: Path) -> None:
        fetched.append(path)
        time.sleep(0.2)
        path.write_bytes(content(1))

    def use(_: int) -> bytes:
        with FileCache(tmp_path / "cache", SIZE) as cache:
            sha256 = hashlib.sha256(content(1)).hexdigest()
            return cache.obtain(download, name="x.tar", sha256=sha256, size=SIZE).read_bytes()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(use, range(4))) == [content(1)] * 4
    assert len(fetched) == 1


def test_a_copy_under_way_counts_for_those_who_fetch_beside_it(storage: Storage, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    with FileCache(root, 2 * SIZE) as cache:
        old = fetch(cache, storage, 0)
    digest = hashlib.sha256(content(1)).hexdigest()

    def beside(path: Path) -> None:
        """Before the first byte of one copy has arrived, another is fetched."""
        assert old.exists()
        fetch(other, storage, 2)
        assert not old.exists()
        path.write_bytes(content(1))

    with FileCache(root, 2 * SIZE) as cache, FileCache(root, 2 * SIZE) as other:
        cache.obtain(beside, name="x.tar", sha256=digest, size=SIZE)
        assert sum(path.stat().st_size for path in root.rglob("x.tar")) == 2 * SIZE
    # A download that failed leaves nothing reserved: what it made room for is free again.
    with FileCache(root, 2 * SIZE) as cache:
        with pytest.raises(CorruptData, match="truncated or altered"):
            cache.obtain(lambda path: path.touch(), name="x.tar", sha256="0" * 64, size=SIZE)
        assert len(list(root.rglob("x.tar"))) == 1
        fetch(cache, storage, 3)
        assert len(list(root.rglob("x.tar"))) == 2


def test_what_was_let_go_may_be_removed_though_a_process_was_forked_meanwhile(storage: Storage, tmp_path: Path) -> None:
    """As the loader's of a run are, which live on with what its cache had open."""
    ended = multiprocessing.get_context("fork").Event()
    with FileCache(tmp_path / "cache", SIZE) as cache:
        old = fetch(cache, storage, 1)
        forked = multiprocessing.get_context("fork").Process(target=ended.wait)
        forked.start()
    try:
        with FileCache(tmp_path / "cache", SIZE) as cache:
            fetch(cache, storage, 2)
        assert not old.exists()
        assert held(tmp_path / "cache") == SIZE
    finally:
        ended.set()
        forked.join()
