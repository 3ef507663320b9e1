"""What clients, workers and the clock do to jobs, in one call each."""

from dearkd.data.shard_files import Shard
from dearkd.jobs.ledger import Claim, Ledger
from dearkd.jobs.model import Job, dataset_of
from dearkd.jobs.store import JobStore
from dearkd.storage.catalog import StoredFile
from tests.support.specs import synthesis_spec

LEASE = 60.0
STUDENT = StoredFile(name="adaptive_student.safetensors", bytes=1, sha256="0" * 64)
ADAPTIVE = {"weights": {"adaptive": 1.0}, "adaptive_every": 2}
"""Of three shards 0 and 2 come first, then the student, then 1."""


def make_shard(index: int, samples: int = 10) -> Shard:
    return Shard(name=f"train-{index:06d}.tar", bytes=1, sha256="0" * 64, samples=samples, classes={0: samples})


def synthesis(store: JobStore, shards: int = 3, owner: str | None = None, **fields: object) -> Job:
    spec = synthesis_spec(images_per_class=shards, batch_size=10, shard_samples=10, **fields)
    assert spec.num_shards == shards
    return store.create_synthesis(spec, images=spec.num_samples, owner=owner)


def claim(ledger: Ledger, kind: str = "synthesis") -> Claim:
    found = ledger.claim(kind, LEASE)  # the literal is the caller's
    assert found is not None
    return found


def mark(ledger: Ledger, unit: Claim) -> None:
    """What a worker does: the shard, or the student, goes to storage, then the unit is marked."""
    made = STUDENT if unit.unit == "student" else make_shard(int(unit.unit))
    ledger.store.storage.put(f"datasets/{dataset_of(unit.job)}/{made.name}", b"x")
    ledger.done(unit, made)


def expire_all(ledger: Ledger) -> None:
    """What the clock does: every lease runs out."""
    for member in ledger.redis.zrange("dearkd:leases", 0, -1):
        ledger.redis.zadd("dearkd:leases", {member: 0})  # type: ignore[type-var]  # redis-py bounds it by bytes alone


def let_retries_begin(ledger: Ledger) -> None:
    """What the clock does: every wait for a next try is over, and somebody reaps."""
    for job in ledger.redis.zrange("dearkd:retries", 0, -1):
        ledger.redis.zadd("dearkd:retries", {job: 0})  # type: ignore[type-var]  # redis-py bounds it by bytes alone
    ledger.reap(max_deaths=3)
