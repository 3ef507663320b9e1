"""What the endpoints work on: storage, the job store, the three catalogs of resources, and pending registrations."""

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Annotated, cast

import anyio
from fastapi import Depends, Request

from dearkd.data.manifests import DatasetManifest, datasets
from dearkd.jobs.log import JobLog
from dearkd.jobs.registration import Registrations
from dearkd.jobs.store import JobStore
from dearkd.redis_client import connect
from dearkd.settings import Settings
from dearkd.storage.catalog import Catalog, Model, Teacher, models, teachers
from dearkd.storage.objects import Storage
from dearkd_api.keys import Keys
from dearkd_api.verification import Verification

UPLOADS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Backend:
    """Opened once an application; all of it may be used from several threads."""

    settings: Settings
    keys: Keys
    storage: Storage
    store: JobStore
    log: JobLog
    registrations: Registrations
    teachers: Catalog[Teacher]
    datasets: Catalog[DatasetManifest]
    models: Catalog[Model]
    verification: Verification
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when the server was asked to end: whoever waits for something answers at once."""
    upload_limiter: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(UPLOADS_AT_ONCE))
    """Threads of uploads, which slow clients hold for long; other requests have their own."""
    upload_places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(UPLOADS_AT_ONCE))
    """One for each of those threads: who waits for a place waits in the event loop, and not for ever."""

    @classmethod
    def open(cls, settings: Settings) -> "Backend":
        """Connects to nothing yet: what cannot be reached is said by the request that needs it.

        Raises:
            InvalidInput: if the storage URL is none, or a key breaks a rule.
        """
        redis = connect(settings)
        storage = Storage.open(settings, redis)
        return cls(
            settings=settings,
            keys=Keys.configured(settings),
            storage=storage,
            store=JobStore(redis, storage),
            log=JobLog(redis, storage),
            registrations=Registrations(redis, storage),
            teachers=teachers(storage),
            datasets=datasets(storage),
            models=models(storage),
            verification=Verification(storage),
        )


async def _backend(request: Request) -> Backend:
    return cast(Backend, request.app.state.backend)


Uses = Annotated[Backend, Depends(_backend)]
