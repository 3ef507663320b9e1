"""A work-horse that is killed costs what it was at; its rq worker, which forks the next, goes on unharmed."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from dearkd.answers import JobView
from dearkd.errors import Unavailable
from dearkd.specs import TeacherSpec
from tests.support.services import eventually
from tests.support.world import World, kill, workers

pytestmark = pytest.mark.timeout(900)


def runtime_threads(pid: int) -> int:
    """Threads of object storage's runtime in a process."""
    names = [(task / "comm").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(name.startswith("tokio") for name in names)


def rq_workers(here: World) -> list[int]:
    """The processes of a tree that fork work-horses."""
    heads = [psutil.Process(family.head) for family in here.tree._families.values()]
    spawned = [process for head in heads for process in head.children()]
    return [process.pid for process in spawned if "--multiprocessing-fork" in process.cmdline()]


def test_an_upload_whose_inspector_is_killed_is_refused_and_the_next_is_taken(
    shared_world: World, plain_teacher: tuple[TeacherSpec, Path]
) -> None:
    here = shared_world
    with ThreadPoolExecutor(1) as pool:
        for _ in range(2):  # in a row: the first death is what used to spoil the worker
            eventually(lambda: not workers())
            before = len(list(here.client.list_teachers()))
            upload = pool.submit(here.upload, plain_teacher)
            # Whoever is at work: a horse of another queue, which finds nothing to do, may be there for a moment.
            eventually(lambda upload=upload: upload.done() or kill(*(found.horse for found in workers())))
            with pytest.raises(Unavailable, match="killed by SIGKILL") as refusal:
                upload.result(timeout=120)
            assert refusal.value.code == "worker_died"
            assert len(list(here.client.list_teachers())) == before
            assert not list(here.storage.objects("tmp"))
    assert here.client.get_teacher(here.upload(plain_teacher)).status == "ready"


def test_what_forks_has_none_of_the_threads_that_a_fork_would_lose(
    shared_world: World, teacher: str, undisturbed_run: JobView, plain_teacher: tuple[TeacherSpec, Path]
) -> None:
    """Also once it has imported what its work-horses need, which it does before it forks the second one that works."""
    here = shared_world
    for _ in range(2):
        here.upload(plain_teacher)
    eventually(lambda: not workers())
    here.synthesise(teacher)
    forking = rq_workers(here)
    assert len(forking) == 3, "one a queue: synth, inspect, train"
    (api,) = [family.head for name, family in here.tree._families.items() if name == "api"]
    assert runtime_threads(api) > 0, "where storage is used, its threads are seen"
    assert {pid: runtime_threads(pid) for pid in forking} == dict.fromkeys(forking, 0)
    assert {pid: psutil.Process(pid).num_threads() for pid in forking} == dict.fromkeys(forking, 1)
    with_torch = [pid for pid in forking if "libtorch" in Path(f"/proc/{pid}/maps").read_text()]
    assert len(with_torch) >= 2, "synth and inspect have forked for the second time"
