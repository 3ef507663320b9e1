"""Workers of several kinds at one queue: each takes what it can, and a job that none can take says so."""

import random
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from rq import Worker
from rq.serializers import JSONSerializer

from dearkd.errors import InvalidInput, OutOfMemory
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import Job
from dearkd.jobs.offers import OFFER_SECONDS, Needs, Offer, advertise, offers
from dearkd.jobs.queue import ROUSE_SECONDS, queue, wake_missing
from dearkd.redis_client import job_key
from dearkd.settings import Settings
from dearkd.specs import SynthesisSpec, TrainingSpec
from dearkd.specs.dataset_facts import DatasetFacts
from dearkd.vision.devices import device_offer
from dearkd.work import own_offer as own
from dearkd.work.attempt import Attempt
from dearkd.work.own_offer import own_offer
from dearkd.work.worker import drain
from tests.support.ledger_steps import expire_all, make_shard, mark, synthesis
from tests.support.specs import FACTS, TEACHER, training_spec

GIB = 2**30
SMALL_CPU = Offer(device="cpu", name="small", memory_bytes=8 * GIB, compiler=False)
LARGE_CPU = Offer(device="cpu", name="large", memory_bytes=64 * GIB, compiler=True)
GPU = Offer(device="cuda", name="card", memory_bytes=24 * GIB, compiler=True)
DRIVER = SMALL_CPU.model_copy(update={"ray": True})
FLEET = (SMALL_CPU, LARGE_CPU, GPU)
RESOURCES: tuple[dict[str, Any] | None, ...] = (
    None,
    {},
    {"device": "cpu"},
    {"device": "cuda"},
    {"memory_bytes": 8 * GIB},
    {"memory_bytes": 8 * GIB + 1},
    {"device": "cuda", "memory_bytes": 24 * GIB},
    {"device": "cuda", "memory_bytes": 40 * GIB},
    {"device": "cpu", "memory_bytes": 65 * GIB},
)


def waiting(ledger: Ledger, identifier: str) -> str | None:
    return ledger.store.get(identifier).waiting_for


def wakes(ledger: Ledger) -> int:
    return queue(ledger.redis, "synth").count


@pytest.mark.parametrize("seed", range(5))
def test_each_worker_takes_the_first_job_that_it_can(ledger: Ledger, seed: int) -> None:
    chance = random.Random(seed)
    posted = [(chance.choice(RESOURCES), chance.random() < 0.3) for _ in range(12)]
    left = [(synthesis(ledger.store, 1, resources=asked, compile=compiled).id, asked or {}, compiled)
            for asked, compiled in posted]  # fmt: skip
    for _ in range(40):
        ledger.offer = chance.choice((None, *FLEET))
        expected = None
        for identifier, wanted, compiled in left:
            has = ledger.offer
            if has is None:
                can = not wanted and not compiled
            else:
                can = wanted.get("device", has.device) == has.device
                can = can and wanted.get("memory_bytes", 0) <= has.memory_bytes and (has.compiler or not compiled)
            if can:
                expected = identifier
                break
        found = ledger.claim("synthesis", 60.0)
        assert (found and found.job) == expected
        left = [job for job in left if job[0] != expected]
    for offer in FLEET:
        for asked, compiled in posted:
            needs = Needs.of_spec({"resources": asked, "compile": compiled})
            one = synthesis(ledger.store, 1, resources=asked, compile=compiled, priority="high")
            ledger.offer = offer
            found = ledger.claim("synthesis", 60.0)
            assert (found is not None and found.job == one.id) == offer.fits(needs), "Redis and Python agree"
            ledger.store.cancel(one.id)


def test_a_job_that_no_worker_can_take_says_so_and_wakes_nobody(ledger: Ledger) -> None:
    job = synthesis(ledger.store, 1, resources={"device": "cuda", "memory_bytes": 20 * GIB})
    queue(ledger.redis, "synth").empty()
    ledger.reap(max_deaths=3)
    assert waiting(ledger, job.id) == "a worker with a GPU and at least 20.0 GiB: none is there that says what it has"
    advertise(ledger.redis, "synth", SMALL_CPU)
    advertise(ledger.redis, "train", GPU)  # of another queue
    ledger.reap(max_deaths=3)
    told = waiting(ledger, job.id)
    assert told == ("a worker with a GPU and at least 20.0 GiB: those there are have no GPU, 8.0 GiB and no compiler")
    assert wakes(ledger) == 0
    advertise(ledger.redis, "synth", GPU)
    ledger.reap(max_deaths=3)
    assert waiting(ledger, job.id) is None
    assert wakes(ledger) == 1
    ledger.offer = GPU
    assert ledger.claim("synthesis", 60.0) is not None


@pytest.mark.parametrize("engine", ["local", "ray"])
@pytest.mark.parametrize(("device", "processes"), [(None, 1), (None, 4), ("cuda", 4), ("cuda", 5), ("cpu", 5)])
def test_a_run_of_several_processes_goes_to_a_worker_with_a_gpu_for_each(
    ledger: Ledger, device: str | None, processes: int, engine: str
) -> None:
    """On a CPU they share the machine; on a Ray cluster they are not on the worker's, which only drives them."""
    asked = {"device": device} if device else None
    posted = {"dataset": "ds", "processes": processes, "engine": engine, "resources": asked}
    spec = TrainingSpec.resolve(posted, FACTS, TEACHER, on_ray=True)
    for offer in (SMALL_CPU, GPU, GPU.model_copy(update={"devices": 4}), DRIVER):
        run = ledger.store.create_training(spec, epochs=1, waits_for=None)
        ledger.offer = offer
        claimed = ledger.claim("training", 60.0)
        expected = (
            offer.ray
            if engine == "ray"
            else (device in (None, offer.device) and (offer.device == "cpu" or processes <= offer.devices))
        )
        assert (claimed is not None) == expected == offer.fits(Needs.of_spec(run.spec))
        ledger.store.cancel(run.id)


def test_a_run_waits_for_a_worker_with_so_many_gpus(ledger: Ledger) -> None:
    advertise(ledger.redis, "train", GPU.model_copy(update={"devices": 2}))
    runs = [
        ledger.store.create_training(training_spec("ds", processes=4, **more), epochs=1, waits_for=None)
        for more in ({}, {"resources": {"device": "cuda"}})
    ]
    ledger.reap(max_deaths=3)
    there = "those there are have 2 GPUs, 24.0 GiB and a compiler"
    assert [waiting(ledger, run.id) for run in runs] == [
        f"a worker with 4 GPUs (or none), for `processes`: {there}",
        f"a worker with 4 GPUs: {there}",
    ]


def test_all_workers_are_woken_for_a_job_that_not_each_can_take(ledger: Ledger) -> None:
    """Else those that cannot, if they have waited longest, would take each wake-up of a job that another can do."""
    workers = [
        Worker([queue(ledger.redis, "synth")], connection=ledger.redis, serializer=JSONSerializer) for _ in range(5)
    ]
    for worker in workers:
        worker.register_birth()
        worker.heartbeat()
    advertise(ledger.redis, "synth", SMALL_CPU)
    advertise(ledger.redis, "synth", GPU)

    def roused() -> int:
        queue(ledger.redis, "synth").empty()
        wake_missing(ledger.redis, "synthesis")
        return wakes(ledger)

    def woken(job: Job) -> int:
        count = roused()
        ledger.store.cancel(job.id)
        return count

    assert woken(synthesis(ledger.store, 1)) == 1
    assert woken(synthesis(ledger.store, 1, resources={"device": "cuda"})) == 5
    assert woken(synthesis(ledger.store, 8, parallelism=7, compile=True)) == 7
    taken = synthesis(ledger.store, 3, resources={"device": "cuda"})
    ledger.offer = GPU
    assert ledger.claim("synthesis", 60.0) is not None
    assert woken(taken) == 0, "no more may work on it at once"
    newer = synthesis(ledger.store, 1)
    ledger.redis.hset(job_key(newer.id), "waiting_for", "a worker of a newer version: it needs one that reads schema 9")
    assert roused() == 5
    assert [roused() for _ in range(3)] == [1] * 3, "the one that can may be busy for hours"
    ledger.redis.delete(f"dearkd:roused:{newer.id}")  # as when its time is over
    assert 0 < ROUSE_SECONDS <= 30
    assert woken(newer) == 5


def test_a_job_that_waits_in_vain_hides_no_other(ledger: Ledger) -> None:
    synthesis(ledger.store, 1, compile=True, priority="high")
    ours = synthesis(ledger.store, 1)
    queue(ledger.redis, "synth").empty()
    advertise(ledger.redis, "synth", SMALL_CPU)
    wake_missing(ledger.redis, "synthesis")
    assert wakes(ledger) == 1
    ledger.offer = SMALL_CPU
    found = ledger.claim("synthesis", 60.0)
    assert found is not None
    assert found.job == ours.id


def test_an_offer_that_nobody_repeats_is_none(ledger: Ledger) -> None:
    advertise(ledger.redis, "synth", GPU)
    advertise(ledger.redis, "synth", GPU)
    assert offers(ledger.redis, "synth") == [GPU], "alike ones stand once"
    (member,) = ledger.redis.zrange("dearkd:offers:synth", 0, -1)
    ledger.redis.zincrby("dearkd:offers:synth", -OFFER_SECONDS - 1, member)
    assert offers(ledger.redis, "synth") == []
    advertise(ledger.redis, "synth", SMALL_CPU)
    assert ledger.redis.zcard("dearkd:offers:synth") == 1, "it is forgotten"


def test_an_offer_that_is_not_understood_hides_no_other(ledger: Ledger) -> None:
    """As of a newer worker, beside this version."""
    for text in ('{"device": "tpu", "name": "x", "memory_bytes": 1, "compiler": false}', '{"speed": 3}', "x"):
        ledger.redis.zadd("dearkd:offers:synth", {text: time.time()})
    advertise(ledger.redis, "synth", GPU)
    assert offers(ledger.redis, "synth") == [GPU]
    job = synthesis(ledger.store, 1, resources={"device": "cuda"})
    queue(ledger.redis, "synth").empty()
    ledger.reap(max_deaths=3)
    assert waiting(ledger, job.id) is None
    assert wakes(ledger) == 1


def test_a_unit_too_large_for_a_worker_goes_to_one_with_more_memory(ledger: Ledger, settings: Settings) -> None:
    held: list[tuple[str, int]] = []

    def work(memory_bytes: int) -> None:
        offer = own_offer(settings.model_copy(update={"memory_bytes": memory_bytes}))
        advertise(ledger.redis, "synth", offer)

        def perform(attempt: Attempt) -> None:
            held.append((attempt.claim.unit, memory_bytes))
            if memory_bytes < 20 * GIB:
                raise OutOfMemory("a batch does not fit: set batch_size to at most 2")
            if attempt.claim.unit != "finish":
                mark(attempt.ledger, attempt.claim)
            else:
                attempt.ledger.complete(attempt.claim, {"dataset": "ds"})

        drain("synthesis", perform, settings.model_copy(update={"memory_bytes": memory_bytes}))

    job = synthesis(ledger.store, 2)
    advertise(ledger.redis, "synth", own_offer(settings.model_copy(update={"memory_bytes": 24 * GIB})))
    work(8 * GIB)
    assert held == [("0", 8 * GIB)], "it is left alone after that, also by that worker"
    assert ledger.store.get(job.id).status == "queued"
    assert "to workers with more memory" in ledger.log.read(job.id)
    work(16 * GIB)
    work(24 * GIB)
    assert held[1:] == [("0", 16 * GIB), *((unit, 24 * GIB) for unit in ("0", "1", "finish"))]
    assert ledger.store.get(job.id).status == "succeeded"


def test_a_retry_goes_to_any_worker_that_the_spec_allows(ledger: Ledger) -> None:
    """Also where the one with more memory, to which the last attempt was left, is gone."""
    ledger.offer = LARGE_CPU
    asked = {"memory_bytes": 16 * GIB}
    jobs = {synthesis(ledger.store, 1, resources=resources).id: resources for resources in (None, asked)}
    for _ in jobs:
        held = ledger.claim("synthesis", 60.0)
        assert held is not None
        ledger.release(held, memory_bytes=65 * GIB)
    assert ledger.claim("synthesis", 60.0) is None
    for identifier in jobs:
        ledger.store.cancel(identifier)
        ledger.store.retry(identifier)
    ledger.offer = SMALL_CPU
    (small, large) = (ledger.claim("synthesis", 60.0), ledger.claim("synthesis", 60.0))
    assert small is not None
    assert (jobs[small.job], large) == (None, None)
    ledger.offer = LARGE_CPU
    large = ledger.claim("synthesis", 60.0)
    assert large is not None
    assert jobs[large.job] == asked


def test_the_largest_worker_that_is_there_says_that_it_is_too_large(ledger: Ledger, settings: Settings) -> None:
    def perform(attempt: Attempt) -> None:
        raise OutOfMemory("a batch does not fit: set batch_size to at most 2")

    advertise(ledger.redis, "synth", GPU.model_copy(update={"memory_bytes": 80 * GIB}))  # another sort of memory
    job = synthesis(ledger.store, 1)
    drain("synthesis", perform, settings.model_copy(update={"memory_bytes": 8 * GIB}))
    error = ledger.store.get(job.id).error
    assert error is not None
    assert error.code == "out_of_memory"
    assert "set batch_size" in error.message


def test_more_memory_is_looked_for_among_those_that_could_take_the_job(ledger: Ledger) -> None:
    plain, compiled = (synthesis(ledger.store, 1, compile=compiled) for compiled in (False, True))
    on_ray = plain.model_copy(update={"spec": plain.spec | {"engine": "ray"}})
    ledger.offer = SMALL_CPU.model_copy(update={"compiler": True})
    advertise(ledger.redis, "synth", LARGE_CPU.model_copy(update={"compiler": False}))
    found = [ledger.memory_beyond(job) for job in (plain, compiled, on_ray)]
    assert found == [8 * GIB + 1, None, None]
    advertise(ledger.redis, "synth", LARGE_CPU)
    assert ledger.memory_beyond(compiled) == 8 * GIB + 1


def test_a_worker_that_dies_early_is_no_death_of_a_job_that_it_could_not_take(ledger: Ledger) -> None:
    job = synthesis(ledger.store, 1, resources={"device": "cuda"})
    ledger.offer = SMALL_CPU
    ledger.blame("synthesis", "host/1", "was killed by SIGKILL")
    expire_all(ledger)
    ledger.reap(max_deaths=1)
    assert ledger.store.get(job.id).status == "queued"


def test_what_a_job_needs_survives_its_retry_and_the_loss_of_redis(ledger: Ledger) -> None:
    job = synthesis(ledger.store, 1, resources={"device": "cuda"})
    ledger.redis.flushall()
    ledger.store.retry(job.id)
    ledger.offer = LARGE_CPU
    assert ledger.claim("synthesis", 60.0) is None
    ledger.offer = GPU
    found = ledger.claim("synthesis", 60.0)
    assert found is not None
    ledger.done(found, make_shard(0))


@pytest.mark.parametrize(
    ("device", "expected"),
    [("nvidia0", True), ("dxg", True), ("kfd", True), ("nvidiactl", False), ("dri", False), ("null", False)],
)
def test_torch_is_asked_where_there_is_a_gpu_that_it_can_use(tmp_path: Path, device: str, expected: bool) -> None:
    """The last are a driver's own device, and the cards of any maker, which ROCm need not know."""
    assert not own.has_gpu(tmp_path)
    (tmp_path / device).touch()
    assert own.has_gpu(tmp_path) == expected


def test_the_own_offer_says_what_the_machine_has(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(own, "CONTAINER_LIMITS", (str(limit), str(tmp_path / "absent")))
    for text, expected in (("max\n", None), (f"{3 * 10**8}\n", 3 * 10**8)):
        limit.write_text(text)
        found = own_offer(settings)
        if found.device == "cpu":
            assert found.memory_bytes == (expected or psutil.virtual_memory().total)
    assert found.device == device_offer()["device"]
    assert own_offer(settings.model_copy(update={"memory_bytes": 5})).memory_bytes == 5
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not own_offer(settings).compiler


@pytest.mark.parametrize(
    ("resources", "pointer"),
    [
        ({"device": "tpu"}, "/resources/device"),
        ({"device": 1}, "/resources/device"),
        ({"memory_bytes": 0}, "/resources/memory_bytes"),
        ({"memory_bytes": "8GiB"}, "/resources/memory_bytes"),
        ({"memory_bytes": 2**53}, "/resources/memory_bytes"),
        ({"gpus": 1}, "/resources/gpus"),
        ("cuda", "/resources"),
        (["cuda"], "/resources"),
    ],
)
def test_resources_that_are_none_are_refused(resources: object, pointer: str) -> None:
    facts = DatasetFacts(num_samples=100, num_classes=10, in_chans=3, image_size=32, synthetic=True, mirrored=True)
    for refused in (
        lambda: SynthesisSpec.resolve({"teacher": "t", "resources": resources}, TEACHER),
        lambda: TrainingSpec.resolve({"dataset": "d", "resources": resources}, facts, TEACHER),
    ):
        with pytest.raises(InvalidInput) as caught:
            refused()
        assert [error.pointer for error in caught.value.errors] == [pointer]
