"""What a soak accounts for at its end: each job's one end, storage byte for byte, leases, and what was done twice."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from dearkd.data.manifests import datasets
from dearkd.errors import NotFound
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import Job, dataset_of, model_of
from dearkd.local.garbage import ABANDONED_SECONDS, Collector
from dearkd.storage.catalog import models
from dearkd.storage.objects import Storage

BESIDE = {
    "datasets": {"dataset.json", "_info.json", "preview.png", "timelapse.webp", "README.md"},
    "models": {"model.json"},
}
"""What lies beside the files that a manifest names."""
MAY_LIE_BESIDE = {"datasets": {"feature_map.json"}, "models": set[str]()}
"""What is left out where a shard was adopted whose maker left no part of it."""


@dataclass
class Report:
    """What went wrong; nothing, if all is well."""

    wrong: list[str] = field(default_factory=list)

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.wrong.append(otherwise)


def account_for_jobs(ledger: Ledger, accepted: list[str], found: Report) -> tuple[list[Job], Counter[str]]:
    """Every accepted job has one end, with a cause where it failed, and storage says the same."""
    jobs: list[Job] = []
    outcomes: Counter[str] = Counter()
    storage = ledger.store.storage
    for identifier in accepted:
        try:
            job = ledger.store.get(identifier)
        except NotFound:
            found.wrong.append(f"{identifier} is lost")
            continue
        jobs.append(job)
        outcomes[job.status if job.error is None else f"{job.status}: {job.error.code}"] += 1
        found.expect(job.terminal, f"{identifier} has not ended: it is {job.status}")
        if not job.terminal:
            continue
        found.expect(job.status != "canceled", f"{identifier} was canceled by nobody")
        found.expect((job.status == "failed") == (job.error is not None), f"{identifier} is {job.status}: {job.error}")
        if job.error is not None:
            stated = job.error.code in ("worker_died", "dataset_failed") and bool(job.error.message)
            found.expect(stated, f"{identifier} failed for another reason: {job.error}")
        final = f"jobs/{identifier}/final.json"
        found.expect(storage.exists(final), f"{identifier} has no final.json")
        if storage.exists(final):
            said = Job.model_validate_json(storage.read(final)).status
            found.expect(said == job.status, f"{identifier} is {job.status}, its final.json says {said}")
        made = _made(job)
        catalog = datasets(storage) if job.kind == "synthesis" else models(storage)
        there = catalog.exists(made)
        found.expect(
            there == (job.status == "succeeded"), f"{identifier} {job.status}: the manifest of {made} is {there}"
        )
    return jobs, outcomes


def _made(job: Job) -> str:
    return dataset_of(job.id) if job.kind == "synthesis" else model_of(job.id)


def compare_storage(storage: Storage, jobs: list[Job], found: Report) -> int:
    """After the clean-up, exactly what the manifests name, byte for byte; how many objects went."""
    now = datetime.now(UTC) + timedelta(seconds=2 * ABANDONED_SECONDS)
    collector = Collector(storage, retention_seconds=0, now=now)
    removed = sum(collector.remove(garbage) for garbage in list(collector.find()))
    for root, kind in (("datasets", "synthesis"), ("models", "training")):
        expected: dict[str, tuple[int, str] | None] = {}
        allowed: set[str] = set()
        for job in jobs:
            if job.kind != kind or job.status != "succeeded":
                continue
            made = _made(job)
            expected |= {f"{root}/{made}/{name}": None for name in BESIDE[root]}
            allowed |= {f"{root}/{made}/{name}" for name in MAY_LIE_BESIDE[root]}
            named: Any = datasets(storage).get(made).shards if root == "datasets" else models(storage).get(made).files
            expected |= {f"{root}/{made}/{file.name}": (file.bytes, file.sha256) for file in named}
        stored = {one.key for one in storage.objects(root)}
        for key in sorted(stored - expected.keys() - allowed):
            found.wrong.append(f"{key} is in storage, but no manifest names it")
        for key in sorted(expected.keys() - stored):
            found.wrong.append(f"{key} is not in storage")
        for key, facts in expected.items():
            if facts is not None and key in stored:
                data = storage.read(key)
                same = (len(data), hashlib.sha256(data).hexdigest()) == facts
                found.expect(same, f"{key} is not what its manifest says")
    for root in ("tmp",):
        found.expect(not list(storage.objects(root)), f"{root}/ is not empty")
    return removed


def look_for_leases(ledger: Ledger, found: Report) -> None:
    redis = ledger.redis
    for key in ("dearkd:leases", "dearkd:open:synthesis", "dearkd:open:training"):
        left: Any = redis.zrange(key, 0, -1)
        found.expect(not left, f"{key} still holds {left}")
    unsettled: Any = redis.smembers("dearkd:unsettled")
    found.expect(not unsettled, f"unsettled: {unsettled}")


def redone(ledger: Ledger, jobs: list[Job]) -> tuple[int, int, Counter[str]]:
    """Attempts that began, units there were, and how often each sort of end of an attempt was noted."""
    begun = 0
    causes: Counter[str] = Counter()
    for job in jobs:
        for line in ledger.log.read(job.id).splitlines():
            begun += " begins on " in line
            if " lost its worker: " in line:
                causes["fell silent" if "fell silent" in line else "seen by who watched it"] += 1
            causes["came back too late"] += "published nothing more" in line
            causes["adopted"] += "verified and adopted" in line
    units = sum(3 if job.kind == "synthesis" else 1 for job in jobs if job.status == "succeeded")
    return begun, units, causes
