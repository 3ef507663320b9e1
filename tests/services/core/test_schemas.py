"""Documents of older versions are read; those of newer ones are refused by name, and left to whoever can read them."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dearkd.data.json_files import read_json
from dearkd.data.manifests import DatasetManifest, datasets
from dearkd.documents import Document, Unread
from dearkd.errors import Conflict, NewerSchema, NotFound, Unreadable
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import Job, JobError
from dearkd.jobs.settlement import read_job
from dearkd.jobs.store import JobStore
from dearkd.local.doctor import check_documents
from dearkd.local.garbage import Collector
from dearkd.settings import Settings
from dearkd.storage.api_keys import KeyRecords
from dearkd.storage.catalog import models, teachers
from dearkd.storage.checkpoints import StoredCheckpoint, pointer_key, read_pointer
from dearkd.work.worker import drain
from tests.support.ledger_steps import claim, expire_all, mark, synthesis
from tests.support.rooms import load_records

Names = dict[str, str]


@pytest.fixture
def old(ledger: Ledger, settings: Settings) -> Names:
    """Ids of what the version after the rooms stored."""
    return load_records(ledger.redis, Path(settings.storage_url.removeprefix("file://")))


def make_newer(store: JobStore, key: str, **fields: Any) -> None:
    """Let an object be what a version two schemas ahead might have written: other fields, fewer of ours."""
    kept = json.loads(store.storage.read(key))
    kept = {name: kept[name] for name in ("id", "owner") if name in kept}
    store.storage.put(key, json.dumps(kept | {"schema_version": 7, **fields}).encode())


def make_record_newer(ledger: Ledger, identifier: str) -> None:
    ledger.redis.hset(f"dearkd:job:{identifier}", mapping={"schema_version": "7", "progress": "of another form"})


# --- older ones -------------------------------------------------------------------------------------------------------


def test_records_and_manifests_are_read(store: JobStore, old: Names) -> None:
    statuses = {"half": "running", "blocked": "blocked", "ended": "succeeded", "failed": "failed"}
    assert {name: store.get(old[name]).status for name in statuses} == statuses
    unread: list[Unread] = []
    assert len(store.page("synthesis", unread=unread)[0]) == len(store.page("training", unread=unread)[0]) == 2
    storage = store.storage
    assert teachers(storage).get(old["teacher"]).spec.num_classes == 10
    assert [one.name for one in datasets(storage).page(limit=9, unread=unread)[0]] == ["registered"]
    assert [one.id for one in models(storage).page(limit=9, unread=unread)[0]] == [old["model"]]
    assert unread == []
    for name in statuses:
        assert read_job(storage, f"jobs/{old[name]}/job.json").id == old[name]
    assert read_job(storage, f"jobs/{old['failed']}/final.json").status == "failed"


def test_an_old_job_goes_on_and_keeps_the_terms_that_it_was_accepted_on(
    ledger: Ledger, store: JobStore, old: Names
) -> None:
    spec = store.get(old["half"]).synthesis_spec
    assert spec.min_teacher_accuracy == 0, "no version of then looked at what the teacher says"
    assert spec.rounds == 1
    order = []
    while (unit := ledger.claim("synthesis", 60.0)) is not None:
        order.append(unit.unit)
        if unit.unit == "finish":
            ledger.complete(unit, {"dataset": old["unfinished"]})
        else:
            mark(ledger, unit)
    assert order == ["1", "finish"], "the shard that was made is not made again"
    assert store.get(old["blocked"]).status == "queued"
    assert claim(ledger, "training").job == old["blocked"]


def test_an_old_job_that_failed_or_was_lost_is_retried(ledger: Ledger, store: JobStore, old: Names) -> None:
    assert store.retry(old["failed"]).status == "queued"
    ledger.redis.flushall()
    assert store.retry(old["half"]).synthesis_spec.min_teacher_accuracy == 0
    assert claim(ledger).job == old["half"]


def test_once_a_worker_of_today_has_worked_on_it_no_older_one_does(ledger: Ledger, old: Names) -> None:
    """It finds `parallelism` 0 there; a worker of today counts by `at_once`."""
    ledger.release(claim(ledger))
    record = ledger.redis.hgetall(f"dearkd:job:{old['half']}")
    assert (record[b"parallelism"], record[b"at_once"], record[b"needs_schema"]) == (b"0", b"1", b"6")
    assert claim(ledger).job == old["half"]


# --- newer ones: jobs -------------------------------------------------------------------------------------------------


def test_a_newer_job_is_left_alone_and_says_what_it_waits_for(ledger: Ledger, store: JobStore) -> None:
    newer, ours = synthesis(store), synthesis(store)
    ledger.redis.hset(f"dearkd:job:{newer.id}", "needs_schema", Job.newest + 1)
    assert claim(ledger).job == ours.id
    assert ledger.claim("synthesis", 60.0) is None
    waiting = store.get(newer.id)
    assert waiting.status == "queued"
    assert waiting.waiting_for is not None
    assert f"reads schema {Job.newest + 1}" in waiting.waiting_for
    ledger.redis.hset(f"dearkd:job:{newer.id}", "needs_schema", Job.newest)  # as if a newer worker asked
    assert claim(ledger).job == newer.id
    assert store.get(newer.id).waiting_for is None


def test_a_job_that_is_canceled_waits_for_nothing(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store)
    ledger.redis.hset(f"dearkd:job:{job.id}", "needs_schema", Job.newest + 1)
    assert ledger.claim("synthesis", 60.0) is None
    assert store.cancel(job.id).waiting_for is None


def test_a_newer_record_is_named_and_hides_no_other(ledger: Ledger, store: JobStore) -> None:
    newer, ours = synthesis(store, owner="a"), synthesis(store, owner="a")
    make_record_newer(ledger, newer.id)
    with pytest.raises(NewerSchema, match=f"{newer.id} is of schema 7, and .* reads up to {Job.newest}: .*upgrade"):
        store.get(newer.id)
    with pytest.raises(NotFound):
        store.get(newer.id, owner="b")
    unread: list[Unread] = []
    jobs, more = store.page("synthesis", owner="a", limit=1, unread=unread)
    assert [job.id for job in jobs] == [ours.id]
    jobs, more = store.page("synthesis", owner="a", unread=unread)
    assert ([job.id for job in jobs], more) == ([ours.id], False)
    assert {one.id for one in unread} == {newer.id}
    assert "schema 7" in unread[0].reason
    with pytest.raises(Conflict, match=newer.id):  # what it uses is not known, so nothing may go
        list(store.active("synthesis"))


@pytest.mark.parametrize(
    "text", ["{", "[]", "null", "[" * 100_000, b"\xff"], ids=["cut", "list", "null", "deep", "no UTF-8"]
)
def test_a_damaged_record_is_named_too(ledger: Ledger, store: JobStore, text: str | bytes) -> None:
    job = synthesis(store)
    ledger.redis.hset(f"dearkd:job:{job.id}", "progress", text)
    with pytest.raises(Unreadable, match=f"{job.id} in Redis cannot be read.*dearkd retry {job.id}") as raised:
        store.get(job.id)
    assert raised.value.code == "corrupt_data"


def test_the_reaper_does_for_others_what_it_can(ledger: Ledger, store: JobStore) -> None:
    """A newer record holds up neither the leases nor the ends of other jobs; its own lease is over too."""
    newer, ours = synthesis(store, parallelism=2), synthesis(store)
    ledger.redis.zadd("dearkd:open:synthesis", {newer.id: -2, ours.id: -1})
    held, other = claim(ledger), claim(ledger)
    assert {held.job, other.job} == {newer.id, ours.id}
    ended = synthesis(store)
    ledger.fail(ended.id, JobError(code="x", message="x", retryable=False))
    ledger.redis.sadd("dearkd:unsettled", newer.id, ended.id)
    store.storage.delete(f"jobs/{ended.id}/final.json")
    make_record_newer(ledger, newer.id)
    expire_all(ledger)
    taken = ledger.reap(max_deaths=3)
    assert {one.job for one, _ in taken} == {held.job, other.job}
    assert store.storage.exists(f"jobs/{ended.id}/final.json")
    assert ledger.redis.smembers("dearkd:unsettled") == {newer.id.encode()}, "left to a reaper that can read it"


def test_a_unit_that_meets_a_newer_document_goes_back_to_newer_workers(
    ledger: Ledger, store: JobStore, settings: Settings, old: Names
) -> None:
    make_newer(store, f"teachers/{old['teacher']}/teacher.json")
    before = store.get(old["half"]).attempt

    def perform(attempt: Any) -> None:
        teachers(attempt.storage).get(attempt.job.spec["teacher"])

    assert drain("synthesis", perform, settings) == 1, "it is tried once, not again and again"
    job = store.get(old["half"])
    assert (job.status, job.error, job.attempt) == ("queued", None, before)
    assert job.waiting_for is not None
    assert "teacher.json is of schema 7" in ledger.log.read(job.id)


def test_a_lost_job_of_a_newer_version_is_not_restored_by_an_older_one(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store)
    make_newer(store, f"jobs/{job.id}/job.json")
    ledger.redis.flushall()
    with pytest.raises(NewerSchema, match=f"jobs/{job.id}/job.json is of schema 7"):
        store.retry(job.id)
    assert ledger.redis.keys("dearkd:job:*") == []


# --- newer ones: storage ----------------------------------------------------------------------------------------------


def test_every_reader_of_storage_names_what_is_newer(store: JobStore, settings: Settings, old: Names) -> None:
    storage = store.storage
    keys = {
        f"teachers/{old['teacher']}/teacher.json": lambda: teachers(storage).get(old["teacher"]),
        f"datasets/{old['registered']}/dataset.json": lambda: datasets(storage).get(old["registered"]),
        f"models/{old['model']}/model.json": lambda: models(storage).get(old["model"]),
        f"jobs/{old['ended']}/final.json": lambda: read_job(storage, f"jobs/{old['ended']}/final.json"),
        pointer_key(old["ended"]): lambda: read_pointer(storage, old["ended"]),
    }
    storage.put(pointer_key(old["ended"]), StoredCheckpoint().model_dump_json().encode())
    key, _ = KeyRecords(storage).create(
        name="k", scopes=["admin"], quotas=_quotas(), expires_at=None, at=datetime.now(UTC)
    )
    keys[f"keys/{key.id}.json"] = lambda: KeyRecords(storage).get(key.id)
    for place, read in keys.items():
        assert read()
        make_newer(store, place)
        with pytest.raises(NewerSchema, match=f"^{place} is of schema 7, and this version of dearkd reads up to"):
            read()
    assert KeyRecords(storage).all() == ([], True), "who cannot be read is let in by nobody, and nobody else is either"
    unread: list[Unread] = []
    assert datasets(storage).page(limit=9, unread=unread) == ([], False)
    assert [one.id for one in unread] == [old["registered"]]
    findings = list(check_documents(settings))
    named = {one.detail.partition(" ")[0] for one in findings if one.state == "problem" and "schema 7" in one.detail}
    assert named == keys.keys(), "doctor names each"


def test_what_is_written_says_its_schema(store: JobStore, old: Names) -> None:
    dataset = datasets(store.storage).get(old["registered"])
    assert dataset.schema_version == 1
    teacher = teachers(store.storage).get(old["teacher"])
    teachers(store.storage).delete(teacher.id)
    teachers(store.storage).create(teacher)
    assert json.loads(store.storage.read(f"teachers/{teacher.id}/teacher.json"))["schema_version"] == teacher.newest
    job = synthesis(store)
    assert json.loads(store.storage.read(f"jobs/{job.id}/job.json"))["schema_version"] == Job.newest
    store.cancel(job.id)
    assert json.loads(store.storage.read(f"jobs/{job.id}/final.json"))["schema_version"] == Job.newest


def test_nothing_is_collected_beside_a_newer_manifest(store: JobStore, old: Names) -> None:
    make_newer(store, f"datasets/{old['registered']}/dataset.json", shards=[])
    collector = Collector(store.storage, retention_seconds=0, now=datetime.now(UTC) + timedelta(days=365))
    with pytest.raises(NewerSchema, match=r"dataset\.json is of schema 7"):
        list(collector.find())


def test_a_file_of_a_newer_manifest_is_no_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(NewerSchema, match=r"^here is of schema 9"):
        read_json(DatasetManifest, b'{"schema_version": 9}', where="here", what="a manifest", remedy="remove it")


def test_a_schema_is_a_number_above_zero() -> None:
    for wrong in ("0", '"x"', "null", "1.5"):
        with pytest.raises(ValueError, match="schema_version"):
            Document.model_validate_json(f'{{"schema_version": {wrong}}}')


def _quotas() -> Any:
    from dearkd.specs.requests import Quotas

    return Quotas()
