"""One tree with short leases for most tests, one with leases by default, and what an undisturbed job makes."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dearkd.answers import JobView
from dearkd.errors import Conflict
from dearkd.specs import TeacherSpec
from tests.support.world import SHORT, TRAINING, WORLDS, World, world


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.faults)
            item.add_marker(pytest.mark.services)


@pytest.fixture(autouse=True)
def no_job_goes_on() -> Iterator[None]:
    """A test that fails in its midst leaves no job at work, for which those after it would wait in vain."""
    yield
    for here in WORLDS:
        here.proxy.release()
        for job in [job for kind in ("synthesis", "training") for job in here.client.list_jobs(kind)]:
            if job.status in ("queued", "blocked", "running"):
                with suppress(Conflict):
                    here.client.cancel_job(job.id)


@pytest.fixture(scope="session")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("faults"), **SHORT) as found:
        yield found


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 8 MB, if this process may mount one; a folder otherwise."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    try:
        yield folder
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def patient_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One with the leases that it has by itself, and its storage on a small disk, but for what teachers need."""
    folder = tmp_path_factory.mktemp("patient")
    with small_disk(folder / "small") as disk:
        for name in ("teachers", "tmp"):
            (folder / name).mkdir()
            (disk / name).symlink_to(folder / name)
        with world(folder, DEARKD_STORAGE_URL=f"file://{disk}", DEARKD_TORCH_THREADS="1") as found:
            yield found


@pytest.fixture(scope="session")
def patient_teacher(patient_world: World, plain_teacher: tuple[TeacherSpec, Path]) -> str:
    return patient_world.upload(plain_teacher)


@pytest.fixture(scope="session")
def teacher(shared_world: World, plain_teacher: tuple[TeacherSpec, Path]) -> str:
    return shared_world.upload(plain_teacher)


@pytest.fixture(scope="session")
def undisturbed(shared_world: World, teacher: str) -> JobView:
    """A finished synthesis job of the spec that others disturb."""
    return shared_world.synthesise(teacher)


@pytest.fixture(scope="session")
def undisturbed_run(shared_world: World, undisturbed: JobView) -> JobView:
    run = shared_world.client.create_training_run({"dataset": undisturbed.result["dataset"], **TRAINING})
    ended: JobView = shared_world.client.wait(run.id)
    assert ended.status == "succeeded", ended.error
    return ended
