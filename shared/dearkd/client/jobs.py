"""Calls on jobs: submitted, looked at, waited for, followed, steered."""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from math import inf
from pathlib import Path
from typing import Any

from dearkd.answers import Checkpoint, JobView, MetricsRow, SynthesisPlan, TrainingPlan
from dearkd.choices import Kind, Status
from dearkd.client.bodies import request_body
from dearkd.client.paths import JOBS, job_path, segment
from dearkd.client.sending import RETRY_PAUSES, Sender, sent
from dearkd.client.transfers import OnBytes, download, fetch_whole
from dearkd.errors import TooSlow, Unavailable
from dearkd.jobs.model import Delivery, Event, Job
from dearkd.specs import Priority, SynthesisRequest, SynthesisSpec, TrainingRequest, TrainingSpec
from dearkd.specs.requests import PriorityRequest

OUTAGE_SECONDS = 60.0
"""Seconds for which the API may be out of reach while it is waited for a job or its events."""
LONGEST_WAIT = 60.0
"""The most seconds that the API holds back an answer."""


class JobCalls(Sender):
    """The calls on synthesis jobs and training runs."""

    async def create_synthesis_job(
        self, request: SynthesisRequest | SynthesisSpec | Mapping[str, Any] | None = None, /, **fields: Any
    ) -> JobView:
        """Let a dataset be made from a teacher.

        Args:
            request: what is asked for; as an object it is the API alone that checks it, which may know more fields.
            fields: of a `SynthesisRequest`, in place of one.

        Raises:
            InvalidInput: with a pointer for each field that breaks a rule.
        """
        body = request_body(SynthesisRequest, request, fields)
        return await self._create(JobView, "/v1/synthesis-jobs", json=body)

    async def plan_synthesis_job(
        self, request: SynthesisRequest | SynthesisSpec | Mapping[str, Any] | None = None, /, **fields: Any
    ) -> SynthesisPlan:
        """A dry run: the filled-in spec, teacher passes, images, shards and estimated bytes; creates nothing."""
        body = request_body(SynthesisRequest, request, fields)
        return await self._post(SynthesisPlan, "/v1/synthesis-jobs", params={"dry_run": "true"}, json=body)

    async def create_training_run(
        self, request: TrainingRequest | TrainingSpec | Mapping[str, Any] | None = None, /, **fields: Any
    ) -> JobView:
        """Let a student be trained; arguments as of `create_synthesis_job`, with the fields of a `TrainingRequest`."""
        body = request_body(TrainingRequest, request, fields)
        return await self._create(JobView, "/v1/training-runs", json=body)

    async def plan_training_run(
        self, request: TrainingRequest | TrainingSpec | Mapping[str, Any] | None = None, /, **fields: Any
    ) -> TrainingPlan:
        """A dry run: the filled-in spec, images, epochs and steps; creates nothing."""
        body = request_body(TrainingRequest, request, fields)
        return await self._post(TrainingPlan, "/v1/training-runs", params={"dry_run": "true"}, json=body)

    async def get_job(self, identifier: str, *, wait: float = 0) -> JobView:
        """A job. With `wait` (seconds, up to 60) the answer comes on a change of status, or when they are over."""
        return await self._get(JobView, job_path(identifier), params={"wait": f"{wait:g}"} if wait else None)

    def list_jobs(
        self, kind: Kind, *, status: Status | None = None, labels: str | None = None
    ) -> AsyncIterator[JobView]:
        """Jobs of one kind, newest first; `labels` is a filter such as `team=vision,round=3`."""
        return self._pages(JobView, f"/v1/{JOBS[kind]}", status=status, labels=labels)

    async def cancel_job(self, identifier: str) -> JobView:
        return await self._post(JobView, f"{job_path(identifier)}/cancel")

    async def pause_job(self, identifier: str) -> JobView:
        return await self._post(JobView, f"{job_path(identifier)}/pause")

    async def resume_job(self, identifier: str) -> JobView:
        return await self._post(JobView, f"{job_path(identifier)}/resume")

    async def set_job_priority(self, identifier: str, priority: Priority) -> JobView:
        """Change the place of a job among those that wait: `low`, `normal` or `high`."""
        body = request_body(PriorityRequest, None, {"priority": priority})
        return await self._post(JobView, f"{job_path(identifier)}/priority", json=body)

    async def retry_job(self, identifier: str, *, from_beginning: bool = False) -> JobView:
        """Let a failed or canceled job go on, or start over: then what it made so far is deleted."""
        body = {"json": {"from": "beginning"}} if from_beginning else {}
        return await self._create(JobView, f"{job_path(identifier)}/retry", **body)

    async def wait(
        self,
        job: Job | str,
        *,
        timeout: float | None = None,
        on_progress: Callable[[JobView], None] | None = None,
        interval: float = 1.0,
        patience: float = OUTAGE_SECONDS,
    ) -> JobView:
        """Wait until a job has ended, whether it succeeded or not, and return it.

        Args:
            job: the job, or its id.
            timeout: seconds to wait at most; None: for as long as it takes.
            on_progress: called with the job at each update.
            interval: the longest time between two updates, in seconds up to 60; a change of status comes at once.
            patience: once the API has answered, how long it may be out of reach, in seconds.

        Raises:
            TooSlow: `still_running`, if it has not ended in time; it goes on.
            Unavailable: if the API is out of reach for longer than `patience`.
        """
        identifier = job if isinstance(job, str) else job.id
        until = inf if timeout is None else time.monotonic() + timeout
        found = await self.get_job(identifier)
        seen = time.monotonic()
        while True:
            if on_progress is not None:
                on_progress(found)
            if found.terminal:
                return found
            found, seen = await self._next(identifier, found, seen, until, interval, patience)

    async def _next(
        self, identifier: str, last: JobView, seen: float, until: float, interval: float, patience: float
    ) -> tuple[JobView, float]:
        """The job as it is next, and when that was heard."""
        while True:
            left = until - time.monotonic()
            if left <= 0:
                raise TooSlow(
                    f"{identifier} is still {last.status}, and the time to wait is over: wait again, or cancel it",
                    code="still_running",
                )
            try:
                found = await self.get_job(identifier, wait=min(interval, left, LONGEST_WAIT))
            except Unavailable:
                if time.monotonic() - seen > patience:
                    raise
                await self._transport.sleep(min(interval, left))
            else:
                return found, time.monotonic()

    def list_events(self, identifier: str) -> AsyncIterator[Event]:
        return self._pages(Event, f"{job_path(identifier)}/events")

    async def events(self, job: Job | str | None = None, *, after: str | None = None) -> AsyncIterator[Event]:
        """Events of a job as they come, until it has ended; or, without end, of all jobs, each with its `job`.

        A connection that breaks is opened again where it was: no event is missed, and none comes twice.

        Args:
            job: the job, or its id; by default all, from now on.
            after: the id of the last event received.

        Raises:
            Unavailable: if the API cannot be reached for longer than `OUTAGE_SECONDS`.
        """
        identifier = job.id if isinstance(job, Job) else job
        path = "/v1/events" if identifier is None else f"{job_path(identifier)}/events"
        seen = time.monotonic()
        while True:
            try:
                async with aclosing(self._event_stream(path, after)) as stream:
                    async for event in stream:
                        seen = time.monotonic()
                        if event is not None:
                            after = event.id
                            yield event
                if identifier is not None and (await self.get_job(identifier)).terminal:
                    async for event in self._pages(Event, path, after=after):
                        yield event
                    return
            except Unavailable:
                if time.monotonic() - seen > OUTAGE_SECONDS:
                    raise
            await self._transport.sleep(RETRY_PAUSES[-1])

    def list_deliveries(self, identifier: str) -> AsyncIterator[Delivery]:
        """List what the job's webhook is told, oldest first, with each attempt."""
        return self._pages(Delivery, f"{job_path(identifier)}/deliveries")

    async def redeliver(self, identifier: str, delivery: str) -> Delivery:
        """Tell a job's webhook again; returns the delivery."""
        return await self._post(Delivery, f"{job_path(identifier)}/deliveries/{segment(delivery)}/redeliver")

    async def get_log(self, identifier: str) -> str:
        """A job's log: notes of its attempts and why they ended, a line each."""
        return (await sent(self._transport, "GET", f"{job_path(identifier)}/log")).text

    def list_metrics(self, identifier: str) -> AsyncIterator[MetricsRow]:
        """The rows of a training run, one an epoch."""
        return self._pages(MetricsRow, f"{job_path(identifier)}/metrics")

    def list_checkpoints(self, identifier: str) -> AsyncIterator[Checkpoint]:
        """The checkpoints that a training run keeps, newest first."""
        return self._pages(Checkpoint, f"{job_path(identifier)}/checkpoints")

    async def download_checkpoint_file(
        self,
        identifier: str,
        checkpoint: str,
        name: str,
        path: Path,
        *,
        on_progress: OnBytes | None = None,
        resume: bool = True,
    ) -> None:
        """Fetch a file of a run's checkpoint to a local file, whole or not at all, as files of models are fetched.

        Raises:
            NotFound: if the run does not keep it any more.
        """
        url = f"{job_path(identifier)}/checkpoints/{segment(checkpoint)}/files/{segment(name)}"
        await download(self._transport, url, path, on_progress=on_progress, resume=resume)

    async def download_preview(self, identifier: str, path: Path) -> None:
        """Fetch the grid of a synthesis job's images so far: before the first shard is done, of those at work."""
        await fetch_whole(self._transport, f"{job_path(identifier)}/preview.png", path)

    async def download_timelapse(self, identifier: str, path: Path) -> None:
        """Fetch an animated WebP of a synthesis job's first batch, from noise to images."""
        await fetch_whole(self._transport, f"{job_path(identifier)}/timelapse.webp", path)

    async def get_live_preview(self, identifier: str) -> bytes:
        """A PNG of the images that a synthesis job is optimising, as they were a few seconds ago.

        Raises:
            NotFound: while there is none yet, and once the job has ended.
        """
        return (await sent(self._transport, "GET", f"{job_path(identifier)}/live.png")).content
