"""The rq worker forks: whatever its work-horses die of, the next one works, since nothing in it has threads."""

import io
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from dearkd.data.shard_files import Sample, write_shard
from dearkd.data.tar_members import MAX_MEMBER_BYTES
from dearkd.errors import Unavailable
from dearkd.identifiers import new_id
from dearkd.jobs.inspections import OPEN, Inspections, Ticket
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import Job
from dearkd.jobs.queue import QueueName, require_worker
from dearkd.settings import Settings
from dearkd.vision import inspector as vision_inspector
from dearkd.work import listener
from dearkd.work.worker import WorkerKind
from tests.services.core.conftest import ledger, redis_url, settings
from tests.support.ledger_steps import synthesis
from tests.support.services import Api, environment, eventually, process, serving
from tests.support.specs import training_spec

__all__ = ["ledger", "redis_url", "settings"]

pytestmark = [pytest.mark.faults, pytest.mark.services, pytest.mark.timeout(600)]

WORKS = """
import os, time
from dearkd.work import worker
from dearkd.errors import InvalidInput
def perform(attempt):
    storage = attempt.storage
    storage.put("begun/" + str(os.getpid()), b"x")
    while storage.exists("hold"):
        attempt.check()
        time.sleep(0.05)
    raise InvalidInput("done with it", code="done")
def drain(job):
    worker.drain(KIND, perform)
"""
"""A unit that touches storage, waits while there is an object `hold`, and then ends its job with the code `done`."""


@contextmanager
def worker(kind: WorkerKind, settings: Settings, folder: Path) -> Iterator[psutil.Process]:
    """A real worker whose jobs only touch storage."""
    for module, name in (("dearkd_synth", "synthesis"), ("dearkd_trainer", "training")):
        service = folder / "code" / module / "service"
        service.mkdir(parents=True)
        for package in (service.parent, service):
            (package / "__init__.py").touch()
        (service / "job.py").write_text(WORKS.replace("KIND", repr(name)))
    command = f"import sys; from dearkd.work.worker import main; sys.exit(main({kind!r}))"
    # Threads take memory: as many as there are cores would make a limit another on each machine.
    code = f"{folder / 'code'}:{os.environ.get('PYTHONPATH', '')}"
    env = environment(settings, PYTHONPATH=code, OPENBLAS_NUM_THREADS="2")
    with process("-c", command, env=env, log=folder / "worker.log") as started:
        yield psutil.Process(started.pid)


def listeners(supervisor: psutil.Process) -> list[psutil.Process]:
    return [child for child in supervisor.children() if "--multiprocessing-fork" in child.cmdline()]


def horses(supervisor: psutil.Process) -> list[psutil.Process]:
    return [
        horse
        for listening in listeners(supervisor)
        for horse in listening.children()
        if horse.status() != psutil.STATUS_ZOMBIE
    ]


def has_one_thread(listening: psutil.Process) -> bool:
    return listening.num_threads() == 1


def post(ledger: Ledger, queue: QueueName) -> Job:
    if queue == "synth":
        return synthesis(ledger.store, shards=1)
    return ledger.store.create_training(training_spec("ds"), epochs=1, waits_for=None)


@pytest.mark.parametrize(("kind", "queue"), [("synth", "synth"), ("trainer", "train")])
def test_after_each_death_of_a_horse_the_same_worker_goes_on(
    ledger: Ledger, settings: Settings, tmp_path: Path, kind: WorkerKind, queue: QueueName
) -> None:
    storage = ledger.store.storage
    storage.put("hold", b"x")
    with worker(kind, settings, tmp_path) as supervisor:
        job = post(ledger, queue)
        before: list[psutil.Process] = []
        for deaths in range(1, 3):
            eventually(lambda deaths=deaths: len(list(storage.objects("begun"))) >= deaths)
            before = before or listeners(supervisor)
            (horse,) = horses(supervisor)
            horse.kill()
            eventually(lambda deaths=deaths: ledger.log.read(job.id).count("was killed by SIGKILL") >= deaths)
        storage.delete("hold")
        eventually(lambda: ledger.store.get(job.id).terminal)
        again = post(ledger, queue)
        eventually(lambda: ledger.store.get(again.id).terminal)
        for ended in (job, again):
            error = ledger.store.get(ended.id).error
            assert error is not None
            assert error.code == "done"
        assert listeners(supervisor) == before  # none was restarted
        assert all(map(has_one_thread, before))


# --- the inspector ----------------------------------------------------------------------------------------------------


@contextmanager
def inspector(settings: Settings, folder: Path) -> Iterator[tuple[Api, psutil.Process]]:
    with serving(settings, folder) as api, worker("synth", settings, folder) as supervisor:

        def listens() -> bool:
            try:
                require_worker(api.store.redis, "inspect")
            except Unavailable:
                return False
            return len(listeners(supervisor)) == 2

        eventually(listens)
        yield api, supervisor


def put_shard(api: Api, folder: Path, prefix: str, samples: int, *, image: bytes | None = None) -> None:
    path = folder / f"{prefix}.tar"
    image = image or _png()
    made = (Sample(f"{i:06d}", image, "png", 0, {}) for i in range(samples))
    write_shard(path, made)
    api.storage.put(f"{prefix}/{path.name}", path)


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    return file.getvalue()


def _greedy_image() -> bytes:
    """As many pixels as an image may have, which Pillow holds in 64 MiB, in a file of nearly the largest size."""
    file = io.BytesIO()
    Image.new("RGB", (4096, 4096)).save(file, "PNG")
    return file.getvalue().ljust(MAX_MEMBER_BYTES - 2**20, b"\0")


def register(api: Api, prefix: str) -> httpx.Response:
    answer = api.http.post("/v1/datasets", json={"prefix": prefix})
    assert "location" in answer.headers, answer.text
    return answer


@pytest.fixture
def hasty(ledger: Ledger, settings: Settings) -> Settings:
    """Answers 202 at once, so that the test can act meanwhile."""
    return settings.model_copy(update={"inspect_seconds": 0.001})


def test_after_each_death_of_an_inspector_the_next_registration_works_also_one_whose_wake_up_was_lost(
    ledger: Ledger, hasty: Settings, tmp_path: Path
) -> None:
    with inspector(hasty, tmp_path) as (api, supervisor):
        put_shard(api, tmp_path, "large", 20_000)
        put_shard(api, tmp_path, "small", 3)
        before = listeners(supervisor)
        for _ in range(2):
            place = register(api, "large").headers["location"]
            identifier = place.rpartition("/")[2]
            eventually(lambda key=identifier: (t := _ticket(api, key)) is not None and t.state == "inspecting")
            for horse in horses(supervisor):
                horse.kill()
            eventually(lambda place=place: api.http.get(place).json()["status"] == "failed")
            error = api.http.get(place).json()["error"]
            assert (error["code"], error["retryable"]) == ("worker_died", True)
            assert "was killed by SIGKILL" in error["message"]  # not found out by a lease that ran out
            again = register(api, "small")
            assert again.status_code in (201, 202)
            where = again.headers["location"]
            eventually(lambda where=where: api.http.get(where).json()["status"] == "ready")
        assert listeners(supervisor) == before
        assert all(map(has_one_thread, before))
        assert list(api.storage.objects("tmp")) == []
        assert ledger.redis.smembers(OPEN) == set()

        ticket = Ticket(id=new_id("ds"), request={"prefix": "small", "name": None})
        # As it stands when the rq worker took the task and was killed with its horse, a while ago.
        ledger.redis.set(f"dearkd:inspection:{ticket.id}", ticket.model_dump_json())
        ledger.redis.sadd(OPEN, ticket.id)
        eventually(lambda: (t := _ticket(api, ticket.id)) is not None and t.state == "ready")


def _ticket(api: Api, identifier: str) -> Ticket | None:
    return Inspections(api.store.redis, api.storage).get(identifier)


def test_nobody_need_ask_for_an_upload_to_go_when_its_inspector_died(ledger: Ledger, settings: Settings) -> None:
    from dearkd.jobs.deaths import InspectorDeath, note_inspector_death
    from dearkd.jobs.inspections import upload_key

    inspections = Inspections(ledger.redis, ledger.store.storage)
    ticket = Ticket(id=new_id("tch"), request={})
    ledger.store.storage.put(upload_key(ticket.id), b"weights")
    inspections.open(ticket)
    note_inspector_death(ledger.redis, ticket.id, InspectorDeath(cause="was killed"))
    inspections.sweep()
    assert list(ledger.store.storage.objects("tmp")) == []
    assert ledger.redis.smembers(OPEN) == set()


class Panic(BaseException):
    """Raised by native code that cannot start a thread."""


@pytest.mark.parametrize(("allowed", "code"), [(400 * 2**20, "too_large_to_inspect"), (2**40, "worker_died")])
def test_an_end_near_the_limit_of_memory_is_put_down_to_it(
    ledger: Ledger, settings: Settings, monkeypatch: pytest.MonkeyPatch, allowed: int, code: str
) -> None:
    monkeypatch.setattr(listener, "BROKEN_SECONDS", 0.0)
    inspections = Inspections(ledger.redis, ledger.store.storage)
    ticket = Ticket(id=new_id("ds"), request={"prefix": "there"})
    inspections.open(ticket)
    resident = np.ones(400 * 2**20, np.uint8)  # so much at least this process has had
    limited = settings.model_copy(update={"inspect_memory_bytes": allowed})
    task = SimpleNamespace(args=[ticket.id])
    listener._blame_task("inspect", ledger.redis, limited, task, Panic, Panic("thread: EAGAIN"), None)
    assert resident.all()
    closed = inspections.get(ticket.id)
    assert closed is not None
    assert closed.refusal is not None
    assert closed.refusal.code == code
    assert "Panic: thread: EAGAIN" in closed.refusal.message

    error = vision_inspector._refusal_of(RuntimeError("odd"), ticket, limited)
    assert error.code == ("too_large_to_inspect" if code == "too_large_to_inspect" else "internal_error")


def test_only_one_inspector_takes_a_ticket(ledger: Ledger, settings: Settings) -> None:
    inspections = Inspections(ledger.redis, ledger.store.storage)
    ticket = Ticket(id=new_id("tch"), request={})
    inspections.open(ticket)
    assert inspections.take(ticket.id, settings) == ticket
    assert inspections.take(ticket.id, settings) is None
    with inspections.inspecting(ticket, settings):
        assert inspections.take(ticket.id, settings) is None


def test_a_listener_ends_with_its_supervisor(ledger: Ledger, settings: Settings, tmp_path: Path) -> None:
    with worker("trainer", settings, tmp_path) as supervisor:
        eventually(lambda: listeners(supervisor))
        left = listeners(supervisor)
        os.kill(supervisor.pid, signal.SIGKILL)
        eventually(lambda: not any(child.is_running() for child in left))


def test_what_takes_too_much_memory_or_time_is_refused_and_the_next_works(
    ledger: Ledger, hasty: Settings, tmp_path: Path
) -> None:
    limited = hasty.model_copy(
        update={"inspect_memory_bytes": 440 * 2**20, "inspect_timeout_seconds": 45.0, "lease_seconds": 300.0}
    )
    with inspector(limited, tmp_path) as (api, supervisor):
        put_shard(api, tmp_path, "small", 3)
        put_shard(api, tmp_path, "large", 20_000)

        def refusal(place: str) -> tuple[str, str]:
            eventually(lambda: api.http.get(place).json()["status"] == "failed")
            shown = api.http.get(place).json()
            error = shown["error"]
            assert [field["pointer"] for field in error["errors"]] == ["/prefix"], error
            assert list(api.storage.objects(f"datasets/{shown['id']}")) == []
            return error["code"], error["message"]

        put_shard(api, tmp_path, "greedy", 1, image=_greedy_image())
        code, message = refusal(register(api, "greedy").headers["location"])
        assert code == "too_large_to_inspect", message
        assert "DEARKD_INSPECT_MEMORY_BYTES" in message

        eventually(lambda: not horses(supervisor))
        place = register(api, "large").headers["location"]
        eventually(lambda: horses(supervisor))
        (horse,) = horses(supervisor)
        horse.suspend()  # so that nothing in it can end it
        code, message = refusal(place)
        assert code == "too_large_to_inspect"
        assert "longer than 45 s" in message
        assert not horse.is_running() or horse.status() == psutil.STATUS_ZOMBIE

        where = register(api, "small").headers["location"]
        eventually(lambda: api.http.get(where).json()["status"] == "ready")
