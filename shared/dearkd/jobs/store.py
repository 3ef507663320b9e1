"""Job records in Redis, and their shadow in storage.

Our record is the truth about a job; rq's own status is advisory. Every step is one transition (`scripts`).
`jobs/{id}/job.json` in storage says what was asked for and is written before a job is accepted, `final.json` how it
ended: with Redis lost, they tell what had not ended.
"""

import json
from contextlib import suppress
from typing import Any, cast

from pydantic import BaseModel

from dearkd import tracing
from dearkd.choices import Kind
from dearkd.errors import Conflict, DearKDError, NotFound, Unavailable
from dearkd.identifiers import new_id
from dearkd.jobs.admission import refusal, retry_refusal
from dearkd.jobs.deliveries import webhook_field
from dearkd.jobs.model import Job, Progress, dataset_of, kind_of, now, planned_of, units_of
from dearkd.jobs.offers import Needs
from dearkd.jobs.queue import QUEUES, wake
from dearkd.jobs.records import at
from dearkd.jobs.references import reads
from dearkd.jobs.restarts import delete_made, starting_over
from dearkd.jobs.scripts import Transition, answer
from dearkd.jobs.settlement import Settlement, final_key, read_job
from dearkd.redis_client import Redis, job_key
from dearkd.specs.base import Priority
from dearkd.specs.webhook import WebhookRequest
from dearkd.storage.objects import AlreadyExists, Storage

RANKS = {"high": 0, "normal": 1, "low": 2}
"""Places of the priorities among jobs that wait."""
MAX_WAKES = 8
DELETION_SECONDS = 600
"""No request takes longer between looking a resource up and creating a job on it."""


class JobStore(Settlement):
    """Requests of clients about jobs: to create, cancel, retry, delete.

    Every method raises `Unavailable` (`redis_unavailable`) when Redis cannot be reached, and those that name a job
    `NotFound` when there is none of that id.
    """

    def __init__(self, redis: Redis, storage: Storage) -> None:
        super().__init__(redis, storage)
        self._create_record = Transition(redis, "create")
        self._cancel = Transition(redis, "cancel")
        self._start_again = Transition(redis, "retry")
        self._pause = Transition(redis, "pause")
        self._resume = Transition(redis, "resume")
        self._set_priority = Transition(redis, "set_priority")

    # --- asking -----------------------------------------------------------------------------------------------------

    def create_synthesis(
        self,
        spec: BaseModel,
        *,
        images: int,
        max_queued: int | None = None,
        owner: str | None = None,
        identifier: str | None = None,
        webhook: WebhookRequest | None = None,
    ) -> Job:
        """Accept a synthesis job: record, index, wake-ups, all or nothing.

        Args:
            spec: the complete spec of the job.
            images: number of images to make.
            max_queued: how many jobs of both kinds, and of this owner, may wait before another is refused; None: any
                number.
            owner: whose it is; None: everyone's.
            identifier: the id that it is to have, new by default; a job of that id that is there already is the answer.
            webhook: whom it tells, with the secret, which stays in Redis: a job that Redis loses tells nobody.

        Raises:
            LimitReached: `too_many_jobs`.
            InvalidInput: if what it refers to is being deleted.
        """
        job = self._new("synthesis", spec, Progress(total=images, unit="images"), owner, identifier)
        return self._create(job, None, max_queued, webhook)

    def create_training(
        self,
        spec: BaseModel,
        *,
        epochs: int,
        waits_for: str | None,
        max_queued: int | None = None,
        owner: str | None = None,
        identifier: str | None = None,
        webhook: WebhookRequest | None = None,
    ) -> Job:
        """Accept a training run, `blocked` if the synthesis job that it waits for is not finished.

        Deciding that and a job's completion look at the same record, so no wake-up is lost between them.

        Raises:
            Conflict: `dataset_failed`, if that job failed or was canceled.
            LimitReached: `too_many_jobs`.
            InvalidInput: if what it refers to is being deleted.
        """
        job = self._new("training", spec, Progress(total=epochs, unit="epochs"), owner, identifier)
        return self._create(job, waits_for, max_queued, webhook)

    def announce_deletion(self, identifier: str) -> None:
        """No job that refers to this resource is accepted from now on, for as long as a request may take."""
        self.redis.set(_deleting(identifier), 1, ex=DELETION_SECONDS)

    def withdraw_deletion(self, identifier: str) -> None:
        """It stays, or there is one of that id again."""
        self.redis.delete(_deleting(identifier))

    def require_visible(self, identifier: str, owner: str | None) -> None:
        """Raises `NotFound` if there is no job that `owner` may see, known to Redis or to storage alone."""
        if owner is None:
            return
        try:
            self.get(identifier, owner=owner)
        except NotFound:
            self.accepted(identifier, owner)

    def accepted(self, identifier: str, owner: str | None) -> Job:
        """The job as it was accepted: storage knows that even where Redis has lost the record. Raises `NotFound`."""
        missing = NotFound(f"there is no job {identifier!r}")
        try:
            job = read_job(self.storage, f"jobs/{identifier}/job.json")
        except NotFound:
            raise missing from None
        if not job.visible_to(owner):
            raise missing
        return job

    def ended(self, identifier: str) -> Job | None:
        """The job as it ended, which storage knows likewise; None where it has not."""
        with suppress(NotFound):
            return read_job(self.storage, final_key(identifier))
        return None

    # --- steering ---------------------------------------------------------------------------------------------------

    def cancel(self, identifier: str) -> Job:
        """Ask a job to end. Queued and blocked ones end at once, running ones through `canceling`.

        Raises:
            Conflict: `already_finished`.
        """
        self.get(identifier)
        status = self._cancel(id=identifier, at=at())
        job = self.get(identifier)
        if status == "finished":
            raise Conflict(f"{identifier} has {job.status} already: only a job that has not ended can be canceled")
        self.settle(job)
        return job

    def pause(self, identifier: str) -> Job:
        """Let a job stand still until it is resumed: it holds no worker, and what it has made stays.

        A worker that is at it gives its unit back within `heartbeat_seconds`, a training run with a checkpoint.

        Raises:
            Conflict: if it has ended, or is being canceled.
        """
        self.get(identifier)
        if isinstance(outcome := self._pause(id=identifier, at=at()), list):
            raise Conflict(f"{identifier} is {outcome[1]}: only a job that waits or runs can be paused")
        return self.get(identifier)

    def resume(self, identifier: str) -> Job:
        """Let a paused job go on.

        Raises:
            Conflict: if it is not paused; `dataset_failed` if the job that makes its dataset has failed meanwhile.
        """
        job = self.get(identifier)
        outcome, *details = self._woken(self._resume, job, {"id": identifier, "at": at()})
        if outcome == "dead":
            raise retry_refusal(identifier, outcome, *details)
        if outcome == "refused":
            raise Conflict(f"{identifier} is {details[0]}: only a paused job can be resumed")
        return self.get(identifier)

    def set_priority(self, identifier: str, priority: Priority) -> Job:
        """Change the place of a job among those that wait; what is at work is not disturbed.

        Raises:
            Conflict: if it has ended.
        """
        spec = self.get(identifier).spec | {"priority": priority}
        outcome = self._set_priority(id=identifier, priority=priority, rank=RANKS[priority], spec=json.dumps(spec))
        if isinstance(outcome, list):
            raise Conflict(f"{identifier} has {outcome[1]} already: its priority says nothing any more")
        return self.get(identifier)

    def retry(self, identifier: str, *, owner: str | None = None, from_beginning: bool = False) -> Job:
        """Start a failed or canceled job again, from its finished shards or last checkpoint.

        So is one that Redis has lost, unless it succeeded before. One that `owner` may not see is not found.

        Args:
            identifier: the job's id.
            owner: the key that asks.
            from_beginning: delete first what it made so far, and use nothing of it.

        Raises:
            Conflict: if it is in any other state, or its dataset failed; with `from_beginning` also if what it makes
                is there already.
        """
        if not from_beginning:
            return self._retry(identifier, owner, from_beginning=False)
        # Held until the record says that the job is queued: nobody else may start it while its objects go.
        if not self.redis.set(starting_over(identifier), 1, ex=DELETION_SECONDS, nx=True):
            raise retry_refusal(identifier, "under_way")
        try:
            return self._retry(identifier, owner, from_beginning=True)
        finally:
            with suppress(Unavailable):  # it runs out by itself
                self.redis.delete(starting_over(identifier))

    def _retry(self, identifier: str, owner: str | None, *, from_beginning: bool) -> Job:
        try:
            job = self.get(identifier, owner=owner)
        except NotFound:
            return self._restore(self.accepted(identifier, owner), from_beginning=from_beginning)
        step: dict[str, Any] = {"id": identifier, "attempt": job.attempt, "from_beginning": from_beginning}
        outcome, *details = self._start_again(**step, only_ask=True)
        if outcome == "ok":
            if from_beginning:
                delete_made(self.storage, job)
            kept, gone = self._checked(job)
            # Before the record says so: without `final.json` nothing of the job can be cleaned away.
            self.storage.delete(final_key(identifier))
            step |= {"at": at(), "gone": sorted(gone), "done_samples": sum(kept.values())}
            step["memory_bytes"] = Needs.of_spec(job.spec).memory_bytes
            fresh = Progress(total=planned_of(job), unit=job.progress.unit)
            if from_beginning:
                step["groups"] = units_of(job)
            outcome, *details = self._woken(self._start_again, job, step | {"progress": fresh.model_dump_json()})
            if outcome != "ok":  # somebody else was faster
                self.settle(self.get(identifier))
        if outcome == "changed":
            return self._retry(identifier, owner, from_beginning=from_beginning)
        if outcome != "ok":
            raise retry_refusal(identifier, outcome, *details)
        return self.get(identifier)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _new(self, kind: Kind, spec: BaseModel, progress: Progress, owner: str | None, identifier: str | None) -> Job:
        return Job(
            id=identifier or new_id("syn" if kind == "synthesis" else "run"),
            kind=kind,
            status="queued",
            spec=spec.model_dump(mode="json"),
            progress=progress,
            created_at=now(),
            schema_version=Job.newest,
            owner=owner,
            traceparent=tracing.traceparent(),
        )

    def _create(self, job: Job, waits_for: str | None, max_queued: int | None, webhook: WebhookRequest | None) -> Job:
        """`job.json`, then the record with all that belongs to it in one step; without the record neither stays.

        Where Redis is lost in between, it may have made the record all the same: that nobody accepted it is written.
        """
        asked = _asked(job, waits_for, max_queued)
        # So that what is refused costs no write.
        answered = self._create_record(**asked, only_ask=True)
        if answered[0] == "exists":  # asked for twice, with the same id
            return self.get(job.id, owner=job.owner)
        self._require_ok(job, waits_for, answered)
        try:
            with suppress(AlreadyExists):  # of this very request, whose first answer was lost: the id is new
                self.storage.create(f"jobs/{job.id}/job.json", job.model_dump_json(indent=2).encode())
            told = {} if webhook is None else {"webhook": webhook_field(webhook)}
            return self._record(job, waits_for, asked, told, new=True)
        except BaseException as error:
            if isinstance(error, Unavailable) and error.code == "redis_unavailable":
                self.storage.put(refusal_key(job.id), b"the answer to who asked was an error")
            self.storage.delete_prefix(f"jobs/{job.id}")
            raise

    def _record(
        self, job: Job, waits_for: str | None, asked: dict[str, Any], more: dict[str, str], *, new: bool
    ) -> Job:
        """Write the record; the one of a `new` job that is there already is its own, of which the answer was lost."""
        priority = str(job.spec["priority"])
        minutes = (job.spec.get("budget") or {}).get("minutes")
        fields = {
            "attempt": str(job.attempt),
            "spec": json.dumps(job.spec),
            "progress": job.progress.model_dump_json(),
            "created_at": job.created_at.isoformat(),
            "priority": priority,
            "rank": str(RANKS[priority]),
            "schema_version": str(Job.newest),
            "at_once": str(job.spec.get("parallelism", 1)),
            "parallelism": "0",  # workers of before there were schemas look here, and leave the job alone
            "timeout": str(job.spec.get("timeout_seconds") or ""),
            "stops_after": str(60 * minutes) if minutes else "",
            "max_retries": str(job.spec.get("max_retries") or 0),
            **Needs.of_spec(job.spec).as_record(),
        } | more
        if job.traceparent is not None:
            fields["traceparent"] = job.traceparent
        answered = self._woken(self._create_record, job, asked | {"fields": fields, "groups": units_of(job)})
        if new and answered[0] == "exists":
            return self.get(job.id)
        return job.model_copy(update={"status": self._require_ok(job, waits_for, answered)})

    def _require_ok(self, job: Job, waits_for: str | None, answered: list[str]) -> str:
        """The status of a job that is accepted; raises the error that says why it is not."""
        if answered[0] != "ok":
            raise refusal(job, waits_for, *answered)
        return answered[1]

    def _woken(self, step: Transition, job: Job, args: dict[str, Any]) -> list[str]:
        """Take a step that opens units, and wake workers for them, both or neither; returns the step's answer."""
        pipe = self.redis.pipeline(transaction=True)
        pipe.multi()  # said aloud, or rq would say it after our first command
        step.within(pipe, **args)
        # Of a job that is refused or blocked they are superfluous, which does no harm.
        largest = max(len(group) for group in units_of(job))
        for _ in range(min(int(job.spec.get("parallelism", 1)), largest, MAX_WAKES)):
            wake(self.redis, QUEUES[job.kind], job.id, pipeline=pipe)
        return cast("list[str]", answer(pipe.execute()[0]))

    def _checked(self, job: Job) -> tuple[dict[str, int], set[str]]:
        """The marked units of a synthesis job whose file is in storage, with their samples; and those where it is gone.

        What has another size than was marked is deleted, and counts as gone.
        """
        marked = cast("dict[bytes, bytes]", self.redis.hgetall(f"{job_key(job.id)}:done"))
        kept: dict[str, int] = {}
        gone: set[str] = set()
        if job.kind == "training" or not marked:
            return kept, gone
        prefix = f"datasets/{dataset_of(job.id)}"
        sizes = {stored.key: stored.size for stored in self.storage.objects(prefix)}
        for unit, payload in marked.items():
            made = json.loads(payload)
            if "name" not in made:  # it left no file
                kept[unit.decode()] = 0
                continue
            key = f"{prefix}/{made['name']}"
            if sizes.get(key) == made["bytes"]:
                kept[unit.decode()] = made.get("samples", 0)
            else:
                self.storage.delete(key)
                gone.add(unit.decode())
        return kept, gone

    def _restore(self, job: Job, *, from_beginning: bool) -> Job:
        """Write the record of a job that storage knows and Redis does not (any more); its units find what they made."""
        identifier = job.id
        final: bytes | None = None
        with suppress(NotFound):
            final = self.storage.read(final_key(identifier))
            ended = read_job(self.storage, final_key(identifier))
            if ended.status == "succeeded":
                raise Conflict(f"{identifier} has succeeded: only a failed, canceled or lost job can be retried")
            job = job.model_copy(update={"attempt": ended.attempt})
        job = job.model_copy(update={"attempt": job.attempt + 1})
        named = str(job.spec.get("dataset"))
        waits_for = named if kind_of(named) == "synthesis" else None
        if waits_for is not None and self.storage.exists(f"datasets/{dataset_of(waits_for)}/dataset.json"):
            waits_for = None
        if from_beginning:
            delete_made(self.storage, job)
        self.storage.delete(final_key(identifier))
        try:
            self._record(job, waits_for, _asked(job, waits_for, None), {}, new=False)
        except DearKDError:
            if final is not None:
                self.storage.put(final_key(identifier), final)
            raise
        return self.get(identifier)


def refusal_key(identifier: str) -> str:
    """The object in storage that says that a job was not accepted, though Redis may have its record."""
    return f"tmp/{identifier}/refused"


def _deleting(identifier: str) -> str:
    return f"dearkd:deleting:{identifier}"


def _asked(job: Job, waits_for: str | None, max_queued: int | None) -> dict[str, Any]:
    """The arguments of `create.lua` by which it decides whether a job is accepted."""
    return {
        "id": job.id,
        "kind": job.kind,
        "at": at(),
        "limit": max_queued,
        "awaited": waits_for,
        "owner": job.owner,
        "reads": sorted(reads(job)),
    }
