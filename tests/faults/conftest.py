"""One tree with short leases for most tests, and what an undisturbed job makes."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dearkd.client import Json
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
            if job["status"] in ("queued", "blocked", "running"):
                with suppress(Conflict):
                    here.client.cancel_job(job["id"])


@pytest.fixture(scope="session")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("faults"), **SHORT) as found:
        yield found


@pytest.fixture(scope="session")
def teacher(shared_world: World, plain_teacher: tuple[TeacherSpec, Path]) -> str:
    return shared_world.upload(plain_teacher)


@pytest.fixture(scope="session")
def undisturbed(shared_world: World, teacher: str) -> Json:
    """A finished synthesis job of the spec that others disturb."""
    return shared_world.synthesise(teacher)


@pytest.fixture(scope="session")
def undisturbed_run(shared_world: World, undisturbed: Json) -> Json:
    run = shared_world.client.create_training_run({"dataset": undisturbed["result"]["dataset"], **TRAINING})
    ended: Json = shared_world.client.wait_for_job(run["id"])
    assert ended["status"] == "succeeded", ended["error"]
    return ended
