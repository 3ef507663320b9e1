"""The state that endpoints share: storage, job store, the three catalogs of resources, pending inspections."""

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Annotated, cast

import anyio
from fastapi import Depends, Request

from dearkd.data.manifests import DatasetManifest, datasets
from dearkd.jobs.deliveries import Deliveries
from dearkd.jobs.idempotency import Answers
from dearkd.jobs.inspections import Inspections
from dearkd.jobs.log import JobLog
from dearkd.jobs.quotas import KeyQuotas
from dearkd.jobs.records import JobRecords
from dearkd.jobs.store import JobStore
from dearkd.redis_client import connect
from dearkd.settings import Settings
from dearkd.storage.api_keys import KeyRecords
from dearkd.storage.audit import AuditLog
from dearkd.storage.catalog import Catalog, Model, Teacher, models, teachers
from dearkd.storage.objects import Storage
from dearkd_api.event_listener import EventListener
from dearkd_api.key_failures import KeyFailures
from dearkd_api.keys import KeyRing, Keys
from dearkd_api.metrics import Metrics
from dearkd_api.sample_files import SampleFiles
from dearkd_api.sessions import Sessions
from dearkd_api.verification import Verification

UPLOADS_AT_ONCE = 8
SHARDS_AT_ONCE = 4
"""Requests that read samples of shards at once; a shard that is opened may have to be fetched first."""


@dataclass(frozen=True, slots=True)
class Backend:
    """The state that endpoints share; opened once for each application, usable from several threads."""

    settings: Settings
    keys: KeyRing
    key_records: KeyRecords
    key_failures: KeyFailures
    sessions: Sessions
    quotas: KeyQuotas
    audit: AuditLog
    storage: Storage
    store: JobStore
    log: JobLog
    inspections: Inspections
    answers: Answers
    deliveries: Deliveries
    teachers: Catalog[Teacher]
    datasets: Catalog[DatasetManifest]
    models: Catalog[Model]
    verification: Verification
    samples: SampleFiles
    listener: EventListener
    stopping: threading.Event
    """Set when the server is asked to stop: every request that waits then answers at once."""
    upload_limiter: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(UPLOADS_AT_ONCE))
    """The threads for uploads, which slow clients occupy for long; other requests have threads of their own."""
    upload_places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(UPLOADS_AT_ONCE))
    """One place for each of those threads; requests wait for a place in the event loop, for a limited time."""
    shard_limiter: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(SHARDS_AT_ONCE))
    """The threads for galleries, of which one that opens a large shard keeps all who look at it waiting."""

    @classmethod
    def open(cls, settings: Settings, metrics: Metrics) -> "Backend":
        """Make the backend without connecting: a service that cannot be reached fails the requests that need it.

        Raises:
            InvalidInput: if the storage URL is invalid, or a key breaks a rule.
        """
        redis = connect(settings, observer=metrics.redis)
        storage = Storage.open(settings, redis, observer=metrics.storage)
        key_records = KeyRecords(storage)
        stopping = threading.Event()
        return cls(
            settings=settings,
            keys=KeyRing(Keys.configured(settings), key_records),
            key_records=key_records,
            key_failures=KeyFailures(settings.max_key_failures),
            sessions=Sessions(redis),
            quotas=KeyQuotas(redis),
            audit=AuditLog(storage),
            storage=storage,
            store=JobStore(redis, storage),
            log=JobLog(redis, storage),
            inspections=Inspections(redis, storage),
            answers=Answers(redis),
            deliveries=Deliveries(redis),
            teachers=teachers(storage),
            datasets=datasets(storage, remember=True),
            models=models(storage),
            verification=Verification(storage),
            samples=SampleFiles(storage, settings),
            # Unobserved: that it waits for events is no latency.
            listener=EventListener(JobRecords(connect(settings)), stopping),
            stopping=stopping,
        )


async def _backend(request: Request) -> Backend:
    return cast(Backend, request.app.state.backend)


Uses = Annotated[Backend, Depends(_backend)]
