"""A storage that is away, full or read-only: 503 that says which, and nothing of the machine's insides."""

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dearkd.settings import Settings
from dearkd.storage.marker import KEY
from tests.support.api_contents import put_teacher
from tests.support.services import Api, database, eventually, serving

pytestmark = pytest.mark.services


@contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode != 0:
        pytest.skip("only who may mount a tmpfs can fill a disk, or take it away")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_storage_that_is_moved_away_answers_503_and_is_not_made_anew(api: Api) -> None:
    teacher = put_teacher(api)
    job = api.http.post("/v1/synthesis-jobs", json={"teacher": teacher, "images_per_class": 1})
    assert job.status_code == 202, job.text
    ready = api.http.get("/readyz")
    assert ready.json() == {"status": "ready", "workers": {"synth": 0, "inspect": 0, "trainer": 0}}
    root = Path(api.settings.storage_url.removeprefix("file://"))
    away = root.with_name("away")
    root.rename(away)
    try:
        for state in ("moved", "a mount point"):
            if state != "moved":
                root.mkdir()
            answers = [api.http.get(path) for path in ("/readyz", "/v1/teachers", f"/v1/teachers/{teacher}")]
            answers += [api.http.get(path) for path in ("/v1/datasets", "/v1/models")]
            answers.append(api.http.post("/v1/synthesis-jobs", json={"teacher": teacher, "images_per_class": 1}))
            answers.append(api.http.post("/v1/datasets", json={"prefix": "real/x", "name": "x"}))
            answers.append(api.http.delete(f"/v1/teachers/{teacher}"))
            for answer in answers:
                assert answer.status_code == 503, (state, answer.request.url, answer.text)
                assert answer.headers["retry-after"]
                assert KEY in answer.json()["detail"]
                assert str(root.parent) not in answer.text
            assert answers[0].json()["down"] == ["storage"]
            assert not root.exists() or list(root.iterdir()) == []
    finally:
        if root.exists():
            root.rmdir()
        away.rename(root)
    assert api.http.get("/readyz").status_code == 200
    assert api.http.get(f"/v1/teachers/{teacher}").status_code == 200
    assert api.http.get(f"/v1/synthesis-jobs/{job.json()['id']}").json()["status"] == "queued"


def test_a_full_and_a_read_only_disk_show_in_readyz(redis_server: str, tmp_path: Path) -> None:
    with disk(tmp_path / "disk") as folder:
        settings = Settings(
            redis_url=database(redis_server, 5), storage_url=f"file://{folder}", cache_dir=tmp_path / "c"
        )
        with serving(settings, tmp_path) as api:

            def becomes(status: int, word: str) -> None:
                eventually(lambda: api.http.get("/readyz").status_code == status)
                assert word in api.http.get("/readyz").text
                assert str(tmp_path) not in api.http.get("/readyz").text

            becomes(200, "ready")
            with (folder / "filler").open("wb", buffering=0) as filler, suppress(OSError):
                while filler.write(bytes(4096)):
                    pass
            becomes(503, "full")
            os.unlink(folder / "filler")
            becomes(200, "ready")
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
            becomes(503, "read-only")
            subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
            becomes(200, "ready")
            assert [path.name for path in folder.rglob("*") if path.is_file()] == [KEY]


def test_what_a_service_makes_only_its_owner_may_read(redis_server: str, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        settings = Settings(
            redis_url=database(redis_server, 6),
            storage_url=f"file://{tmp_path}/storage",
            cache_dir=tmp_path / "cache",
        )
        with serving(settings, tmp_path) as api:
            assert api.http.get("/readyz").status_code == 200
            # What the service itself wrote: the weights of an upload, and the marker.
            api.http.post(
                "/v1/teachers", files={"teacher": (None, "{}"), "weights": ("w.safetensors", bytes(100))}, timeout=90
            )
            root = tmp_path / "storage"
            assert stat.S_IMODE(root.stat().st_mode) == 0o700
            for path in root.rglob("*"):
                assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
            assert (root / KEY).exists()
    finally:
        os.umask(before)
