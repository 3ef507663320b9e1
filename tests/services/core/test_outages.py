"""What jobs and leases suffer from a Redis or a store that is away, or whose answer is lost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from dearkd.errors import Unavailable
from dearkd.jobs import settlement
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import Job
from dearkd.jobs.reaper import LOCK, Reaper
from dearkd.jobs.scripts import Transition
from dearkd.jobs.settlement import UNSETTLED
from dearkd.jobs.store import JobStore, refusal_key
from dearkd.local.embedded_redis import free_port
from dearkd.settings import Settings
from dearkd.storage.objects import Storage
from dearkd.work.attempt import Attempt
from dearkd.work.worker import drain, open_ledger
from tests.support.ledger_steps import claim, mark, synthesis
from tests.support.services import eventually
from tests.support.specs import training_spec


class LostAnswers(Storage):
    """A bucket whose first answer to a create is lost: what asks again finds its own object there, or gives up."""

    gives_up = False

    def create(self, key: str, data: bytes | Path) -> None:
        super().create(key, data)
        if self.gives_up:
            raise Unavailable("the connection was reset")
        super().create(key, data)


def test_a_lost_answer_of_storage_neither_refuses_a_job_nor_leaves_one_that_was_refused(
    store: JobStore, settings: Settings
) -> None:
    store.storage = storage = LostAnswers.open(settings)
    assert isinstance(storage, LostAnswers)
    accepted = synthesis(store)
    assert store.get(accepted.id).status == "queued"
    storage.gives_up = True
    with pytest.raises(Unavailable):
        synthesis(store)
    assert [stored.key for stored in storage.objects("jobs")] == [f"jobs/{accepted.id}/job.json"]
    assert [job.id for job in store.page("synthesis")[0]] == [accepted.id]


class SecondAnswers(JobStore):
    """A Redis whose reply to a step is lost: the client sends it again, and hears what comes of it then."""

    def _woken(self, step: Transition, job: Job, args: dict[str, Any]) -> list[str]:
        super()._woken(step, job, args)
        return super()._woken(step, job, args)


def test_a_lost_reply_of_redis_neither_refuses_a_job_nor_forgets_what_was_asked_for(settings: Settings) -> None:
    store = SecondAnswers(open_ledger(settings).redis, Storage.open(settings))
    store.redis.flushall()
    job = synthesis(store)
    assert store.get(job.id) == job
    assert store.storage.exists(f"jobs/{job.id}/job.json")
    assert not store.storage.exists(refusal_key(job.id))


def test_runs_that_were_released_are_woken_though_the_process_ended_before_it_did_so(
    ledger: Ledger, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = synthesis(store, shards=1)
    run = store.create_training(training_spec(job.id), epochs=1, waits_for=job.id)
    mark(ledger, claim(ledger))
    ledger.redis.delete("rq:queue:train")
    with monkeypatch.context() as ends:
        ends.setattr(settlement, "wake", Mock(side_effect=SystemExit))
        with pytest.raises(SystemExit):
            ledger.complete(claim(ledger), {"dataset": "ds"})
    assert store.get(run.id).status == "queued"
    assert ledger.redis.llen("rq:queue:train") == 0
    ledger.reap(max_deaths=3)
    assert ledger.redis.llen("rq:queue:train") == 1


class LostRecords(JobStore):
    """A Redis that carries out what it was sent, and is lost before it says so."""

    def _record(self, *args: Any, **options: Any) -> Job:
        super()._record(*args, **options)
        raise Unavailable("Redis does not answer", code="redis_unavailable")


def drained(settings: Settings) -> list[str]:
    """The jobs that a worker performs until there are no more."""
    found: list[str] = []

    def perform(attempt: Attempt) -> None:
        found.append(attempt.job.id)
        attempt.publish(lambda: attempt.ledger.complete(attempt.claim, {}))

    drain("synthesis", perform, settings)
    return found


def test_a_job_whose_answer_was_an_error_is_forgotten_though_redis_has_its_record(
    store: JobStore, settings: Settings
) -> None:
    with pytest.raises(Unavailable):
        synthesis(LostRecords(store.redis, store.storage))
    ((ghost,), _) = store.page("synthesis")
    assert not store.storage.exists(f"jobs/{ghost.id}/job.json")
    assert drained(settings) == []
    assert store.page("synthesis")[0] == []
    assert list(store.storage.objects("tmp")) == []


def test_an_accepted_job_is_not_forgotten_for_what_storage_lacks(store: JobStore, settings: Settings) -> None:
    job = synthesis(store, shards=1)
    store.storage.delete_prefix(f"jobs/{job.id}")
    assert drained(settings) == [job.id]
    assert store.get(job.id).status == "succeeded"
    assert store.storage.exists(f"jobs/{job.id}/job.json")


def reap_until(reaper: Reaper, condition: Callable[[], bool]) -> None:
    def found() -> bool:
        reaper.step()
        return condition()

    eventually(found)


def test_after_an_outage_the_living_may_prolong_their_leases_before_the_silent_are_taken_for_dead(
    ledger: Ledger, store: JobStore, settings: Settings
) -> None:
    silent, dead = synthesis(store, shards=1, priority="high"), synthesis(store, shards=1)
    gone = open_ledger(settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_port()}/0"}))
    patient = Reaper(ledger, settings.model_copy(update={"lease_seconds": 3600.0}))
    assert ledger.claim("synthesis", 0.001, who="host/1/2") is not None
    assert ledger.claim("synthesis", 3600.0, who="host/3/4") is not None
    ledger.expire("host/3", "was killed")
    reap_until(patient, lambda: store.get(dead.id).status == "queued")
    assert store.get(silent.id).status == "running", "one that has just begun cannot know of an outage"

    ledger.redis.delete(LOCK)
    quick = Reaper(ledger, settings.model_copy(update={"lease_seconds": 0.5}))
    reap_until(quick, lambda: store.get(silent.id).status == "queued")
    assert ledger.claim("synthesis", 0.001, who="host/1/2") is not None
    quick.ledger = gone
    reap_until(quick, lambda: quick._reached_since is None)
    quick.ledger, quick.settings = ledger, patient.settings
    reap_until(quick, lambda: quick._reached_since is not None)
    assert store.get(silent.id).status == "running"


def test_a_record_that_cannot_be_read_does_not_end_the_reaper(
    ledger: Ledger, store: JobStore, settings: Settings
) -> None:
    job = synthesis(store, shards=1)
    strange = synthesis(store, shards=1).id
    ledger.redis.hset(f"dearkd:job:{strange}", "status", "of a later version")
    ledger.redis.sadd(UNSETTLED, strange)
    for _ in range(2):
        assert ledger.claim("synthesis", 3600.0, who="host/3/4") is not None
        ledger.expire("host/3", "was killed")
        reap_until(Reaper(ledger, settings), lambda: ledger.redis.zcard("dearkd:leases") == 0)
        ledger.redis.delete(LOCK)
    assert store.get(job.id).attempt == 3
