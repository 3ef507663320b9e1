"""Job records in Redis, and their shadow in storage.

Our record is the truth about a job; rq's own status is advisory. Every step is one atomic action on Redis: a Lua script
(`scripts`), or WATCH + MULTI where it also enqueues. `jobs/{id}/job.json` in storage says what was asked for and is
written before a job is accepted, `final.json` how it ended: with Redis lost, they tell what had not ended.
"""

import json
from contextlib import suppress
from typing import cast

from pydantic import BaseModel
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError, WatchError

from dearkd.errors import Conflict, DearKDError, NotFound, Unavailable
from dearkd.identifiers import new_id
from dearkd.jobs import scripts
from dearkd.jobs.admission import refusal, too_many
from dearkd.jobs.model import ACTIVE, Job, Kind, Progress, Status, dataset_of, kind_of, now, units_of
from dearkd.jobs.queue import QUEUES, wake
from dearkd.jobs.records import add_event, at, parse
from dearkd.jobs.references import reads
from dearkd.jobs.restarts import delete_made, forget_progress, starting_over, under_way
from dearkd.jobs.settlement import RANKS, UNSETTLED, WATCH_TRIES, Settlement, final_key, read_job
from dearkd.redis_client import job_index, job_key, reachable
from dearkd.storage.objects import AlreadyExists, Storage

MAX_WAKES = 8
DELETION_SECONDS = 600
"""No request takes longer between looking a resource up and creating a job on it."""


class JobStore(Settlement):
    """What clients ask of jobs.

    Every method raises `Unavailable` (`redis_unavailable`) when Redis cannot be reached, and those that name a job
    `NotFound` when there is none of that id.
    """

    def __init__(self, redis: Redis, storage: Storage) -> None:
        super().__init__(redis, storage)
        self._creation = redis.register_script(scripts.CREATE)
        self._cancel = redis.register_script(scripts.CANCEL)

    # --- asking -----------------------------------------------------------------------------------------------------

    def create_synthesis(
        self, spec: BaseModel, *, images: int, shards: int, max_queued: int | None = None, owner: str | None = None
    ) -> Job:
        """Accept a synthesis job of `shards` shards: record, index, wake-ups, all or nothing.

        Args:
            spec: of the job.
            images: that it is to make.
            shards: that it cuts them into.
            max_queued: how many jobs of both kinds, and of this owner, may wait before another is refused; None: any
                number.
            owner: whose it is; None: everyone's.

        Raises:
            LimitReached: `too_many_jobs`.
            InvalidInput: if what it refers to is being deleted.
        """
        job = self._new("synthesis", spec, Progress(total=images, unit="images"), owner)
        wakes = min(int(job.spec["parallelism"]), shards, MAX_WAKES)
        return self._create(job, units_of(job), wakes=wakes, max_queued=max_queued)

    def create_training(
        self,
        spec: BaseModel,
        *,
        epochs: int,
        waits_for: str | None,
        max_queued: int | None = None,
        owner: str | None = None,
    ) -> Job:
        """Accept a training run, `blocked` if the synthesis job that it waits for is not finished.

        Deciding that and a job's completion look at the same record, so no wake-up is lost between them.

        Raises:
            Conflict: `dataset_failed`, if that job failed or was canceled.
            LimitReached: `too_many_jobs`.
            InvalidInput: if what it refers to is being deleted.
        """
        job = self._new("training", spec, Progress(total=epochs, unit="epochs"), owner)
        return self._create(job, ["run"], waits_for=waits_for, max_queued=max_queued)

    def announce_deletion(self, identifier: str) -> None:
        """No job that refers to this resource is accepted from now on, for as long as a request may take."""
        with reachable():
            self.redis.set(_deleting(identifier), 1, ex=DELETION_SECONDS)

    def withdraw_deletion(self, identifier: str) -> None:
        """It stays, or there is one of that id again."""
        with reachable():
            self.redis.delete(_deleting(identifier))

    def require_visible(self, identifier: str, owner: str | None) -> None:
        """Raises `NotFound` if there is no job that `owner` may see, known to Redis or to storage alone."""
        if owner is None:
            return
        try:
            self.get(identifier, owner=owner)
        except NotFound:
            self._stored(identifier, owner)

    # --- steering ---------------------------------------------------------------------------------------------------

    def cancel(self, identifier: str) -> Job:
        """Ask a job to end. Queued and blocked ones end at once, running ones through `canceling`.

        Raises:
            Conflict: `already_finished`.
        """
        self.get(identifier)
        with reachable():
            status = cast(bytes, self._cancel(args=[identifier, at()])).decode()
        job = self.get(identifier)
        if status == "finished":
            raise Conflict(f"{identifier} has {job.status} already: only a job that has not ended can be canceled")
        self.settle(job)
        return job

    def retry(self, identifier: str, *, owner: str | None = None, from_beginning: bool = False) -> Job:
        """Start a failed or canceled job again, from its finished shards or last checkpoint.

        So is one that Redis has lost, unless it succeeded before. One that `owner` may not see is not found.

        Args:
            identifier: of the job.
            owner: who asks.
            from_beginning: what it made so far is deleted first, and nothing of it is gone on with.

        Raises:
            Conflict: if it is in any other state, or its dataset failed; with `from_beginning` also if what it makes
                is there already.
        """
        if not from_beginning:
            return self._retry(identifier, owner, from_beginning=False)
        # Held until the record says that the job is queued: nobody else may start it while its objects go.
        with reachable():
            held = self.redis.set(starting_over(identifier), 1, ex=DELETION_SECONDS, nx=True)
        if not held:
            raise under_way(identifier)
        try:
            return self._retry(identifier, owner, from_beginning=True)
        finally:
            with suppress(RedisError):  # it runs out by itself
                self.redis.delete(starting_over(identifier))

    def _retry(self, identifier: str, owner: str | None, *, from_beginning: bool) -> Job:
        try:
            self.get(identifier, owner=owner)
        except NotFound:
            return self._restore(self._stored(identifier, owner), from_beginning=from_beginning)
        with reachable():
            for _ in range(WATCH_TRIES):
                with self.redis.pipeline(transaction=True) as pipe:
                    try:
                        pipe.watch(job_key(identifier), starting_over(identifier))
                        if bool(pipe.exists(starting_over(identifier))) != from_beginning:
                            raise under_way(identifier)
                        values = cast("dict[bytes, bytes]", pipe.hgetall(job_key(identifier)))
                        job = parse(values)
                        if job.status not in ("failed", "canceled"):
                            raise Conflict(
                                f"{identifier} is {job.status}: only a failed or canceled job can be retried"
                            )
                        waits_for = values.get(b"waits_for", b"").decode() or None
                        dependency = self._dependency(pipe, waits_for)
                        if dependency in ("failed", "canceled"):
                            raise Conflict(
                                f"{waits_for}, which makes its dataset, is {dependency}: retry that first",
                                code="dataset_failed",
                            )
                        blocked = dependency in ACTIVE
                        if from_beginning:
                            delete_made(self.storage, job)
                        kept, gone = self._checked(job)
                        # Before the record says so: without `final.json` nothing of the job can be cleaned away.
                        self.storage.delete(final_key(identifier))
                        pipe.multi()
                        if gone:
                            pipe.hdel(f"{job_key(identifier)}:done", *gone)
                        pipe.hset(job_key(identifier), "done_samples", sum(kept.values()))
                        if from_beginning:
                            forget_progress(pipe, job)
                        self._restart(
                            pipe, job, values[b"priority"].decode(), set(kept), waits_for if blocked else None
                        )
                        pipe.execute()
                        return self.get(identifier)
                    except WatchError:
                        continue
        raise Unavailable(f"{identifier} changes too quickly to retry it; try again")

    # --- inside -----------------------------------------------------------------------------------------------------

    def _new(self, kind: Kind, spec: BaseModel, progress: Progress, owner: str | None) -> Job:
        return Job(
            id=new_id("syn" if kind == "synthesis" else "run"),
            kind=kind,
            status="queued",
            spec=spec.model_dump(mode="json"),
            progress=progress,
            created_at=now(),
            owner=owner,
        )

    def _create(
        self,
        job: Job,
        units: list[str],
        *,
        waits_for: str | None = None,
        wakes: int = 1,
        max_queued: int | None = None,
    ) -> Job:
        """`job.json`, then the record with all that belongs to it in one step; without the record neither stays.

        Where Redis is lost in between, it may have made the record all the same: that nobody accepted it is written.
        """
        if max_queued is not None:
            self._require_room(max_queued, job.owner)  # so that what is refused in numbers costs no write
        key = f"jobs/{job.id}/job.json"
        try:
            with suppress(AlreadyExists):  # of this very request, whose first answer was lost: the id is new
                self.storage.create(key, job.model_dump_json(indent=2).encode())
            return self._record(job, units, waits_for=waits_for, wakes=wakes, max_queued=max_queued)
        except BaseException as error:
            if isinstance(error, Unavailable) and error.code == "redis_unavailable":
                self.storage.put(refusal_key(job.id), b"the answer to who asked was an error")
            self.storage.delete_prefix(f"jobs/{job.id}")
            raise

    def _record(
        self, job: Job, units: list[str], *, waits_for: str | None, wakes: int, max_queued: int | None = None
    ) -> Job:
        priority = str(job.spec["priority"])
        fields = {
            "attempt": str(job.attempt),
            "spec": json.dumps(job.spec),
            "progress": job.progress.model_dump_json(),
            "created_at": job.created_at.isoformat(),
            "priority": priority,
            "rank": str(RANKS[priority]),
            "parallelism": str(job.spec.get("parallelism", 1)),
            "student_every": str(job.spec.get("adaptive_every") or ""),
        }
        named = sorted(reads(job))
        args: list[str | int] = [
            job.id,
            job.kind,
            at(),
            max_queued or 0,
            waits_for or "",
            job.owner or "",
            len(units),
            *units,
            len(named),
            *named,
        ]
        with reachable():
            pipe = self.redis.pipeline(transaction=True)
            pipe.multi()  # said aloud, or rq would say it after our first command
            self._creation(args=[*args, *(part for pair in fields.items() for part in pair)], client=pipe)
            # Of a job that is refused or blocked they are superfluous, which does no harm.
            for _ in range(wakes):
                wake(self.redis, QUEUES[job.kind], job.id, pipeline=pipe)
            outcome = [part.decode() for part in cast("list[bytes]", pipe.execute()[0])]
        if outcome[0] == "ok":
            return job.model_copy(update={"status": outcome[1]})
        raise refusal(job, waits_for, *outcome)

    def _require_room(self, max_queued: int, owner: str | None) -> None:
        with reachable():
            pipe = self.redis.pipeline(transaction=False)
            for kind in QUEUES:
                pipe.zcard(job_index(kind, "queued", owner))
                pipe.zcard(job_index(kind, "blocked", owner))
            waiting = sum(pipe.execute())
        if waiting >= max_queued:
            raise too_many(waiting)

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
            key = f"{prefix}/{made['name']}"
            if sizes.get(key) == made["bytes"]:
                kept[unit.decode()] = made.get("samples", 0)
            else:
                self.storage.delete(key)
                gone.add(unit.decode())
        return kept, gone

    def _stored(self, identifier: str, owner: str | None) -> Job:
        """As it was accepted, which storage knows even where Redis lost it."""
        missing = NotFound(f"there is no job {identifier!r}")
        try:
            job = read_job(self.storage, f"jobs/{identifier}/job.json")
        except NotFound:
            raise missing from None
        if not job.visible_to(owner):
            raise missing
        return job

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
        units = ["run"] if job.kind == "training" else units_of(job)
        try:
            self._record(job, units, waits_for=waits_for, wakes=1)
        except DearKDError:
            if final is not None:
                self.storage.put(final_key(identifier), final)
            raise
        return self.get(identifier)

    def _dependency(self, pipe: "Pipeline", waits_for: str | None) -> Status | None:
        """Watch the synthesis record that a run waits for; its status, or None if there is nothing to wait for."""
        if waits_for is None:
            return None
        pipe.watch(job_key(waits_for))
        status = cast("bytes | None", pipe.hget(job_key(waits_for), "status"))
        return cast(Status, status.decode()) if status else None

    def _restart(self, pipe: "Pipeline", job: Job, priority: str, done: set[str], waits_for: str | None) -> None:
        status: Status = "blocked" if waits_for else "queued"
        key = job_key(job.id)
        pipe.hdel(key, "error", "finished_at", "started_at", "result")
        pipe.hset(key, mapping={"status": status, "attempt": job.attempt + 1})
        pipe.delete(f"{key}:claims", f"{key}:deaths", f"{key}:partial")
        pipe.srem(UNSETTLED, job.id)
        for owner in {None, job.owner}:
            pipe.zrem(job_index(job.kind, job.status, owner), job.id)
            pipe.zadd(job_index(job.kind, status, owner), {job.id: 0})
        add_event(pipe, job.id, "status", {"status": status})
        if job.kind == "training":
            self._start_or_wait(pipe, job.id, priority, waits_for)
            return
        left = [unit for unit in units_of(job) if unit not in done]
        self._open(pipe, job.id, priority, left or ["finish"], job.spec.get("adaptive_every"))
        for _ in range(min(int(job.spec["parallelism"]), max(1, len(left)), MAX_WAKES)):
            wake(self.redis, QUEUES["synthesis"], job.id, pipeline=pipe)


def refusal_key(identifier: str) -> str:
    """Where it is written that a job was not accepted, though Redis may have its record."""
    return f"tmp/{identifier}/refused"


def _deleting(identifier: str) -> str:
    return f"dearkd:deleting:{identifier}"
