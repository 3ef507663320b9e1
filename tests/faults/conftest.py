"""One tree with short leases for most tests, and what an undisturbed job makes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dearkd.client import Json
from dearkd.specs import TeacherSpec
from tests.support.world import SHORT, TRAINING, World, world


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.faults)
            item.add_marker(pytest.mark.services)


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
