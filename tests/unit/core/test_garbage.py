"""What may be removed, against a brute-force reading of the rule on storages that Hypothesis makes up."""

import json
import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from dearkd.data.manifests import DatasetManifest
from dearkd.data.shard_files import Shard
from dearkd.identifiers import new_id, sibling
from dearkd.jobs.model import Job, Progress
from dearkd.local.garbage import ABANDONED_SECONDS, Collector
from dearkd.settings import Settings
from dearkd.storage.catalog import Model, StoredFile, manifest_bytes
from dearkd.storage.objects import Storage

NOW = datetime.now(UTC)
RETENTION = timedelta(days=7)
OLD = ABANDONED_SECONDS * 2


@dataclass(frozen=True)
class MadeUp:
    """A job, how it ended (None: it did not) and how long ago, whether its result has a manifest, and what is old."""

    kind: str
    status: str | None
    days: float
    manifest: bool
    record: bool
    """Whether the job's own objects are there at all: without, the files are somebody's."""


JOBS = st.builds(
    MadeUp,
    kind=st.sampled_from(["syn", "run"]),
    status=st.sampled_from([None, "succeeded", "failed", "canceled"]),
    days=st.sampled_from([0.0, 6.9, 7.1, 400.0]),
    manifest=st.booleans(),
    record=st.booleans(),
)


def make(storage: Storage, made_up: MadeUp) -> tuple[list[str], bool]:
    """Put a job's leavings into storage; those that may go by the rule, and whether its notes are among them."""
    job = new_id(made_up.kind)  # drawn from the kinds
    result = sibling(job, "ds" if made_up.kind == "syn" else "mdl")
    root = "datasets" if made_up.kind == "syn" else "models"
    files = [f"{root}/{result}/{name}" for name in ("train-000000.tar", "train-000001.tar", "README.md")]
    others = [f"runs/{job}/checkpoints/x-last.pt", f"runs/{job}/metrics.jsonl"] if made_up.kind == "run" else []
    notes = [f"jobs/{job}/shards/000000.json", f"jobs/{job}/live.png"]
    for key in files + others + notes:
        storage.put(key, b"x")
    if made_up.manifest:
        named = [key.rpartition("/")[2] for key in files[:2]]
        common = {"id": result, "created_at": NOW.isoformat()}
        content = (
            DatasetManifest(
                **common,
                num_samples=2,
                num_classes=1,
                image_size=8,
                in_chans=1,
                classes=[],
                prefix=f"{root}/{result}",
                shards=[Shard(name=name, bytes=1, sha256="", samples=1, classes={}) for name in named],
            )
            if made_up.kind == "syn"
            else Model(
                **common,
                architecture="a",
                num_classes=1,
                in_chans=1,
                image_size=8,
                dataset="ds",
                run=job,
                spec={},
                files=[StoredFile(name=name, bytes=1, sha256="") for name in named],
            )
        )
        storage.put(f"{root}/{result}/{'dataset' if made_up.kind == 'syn' else 'model'}.json", manifest_bytes(content))
    if not made_up.record:
        return [], False
    record = Job(
        id=job,
        kind="synthesis" if made_up.kind == "syn" else "training",
        status=made_up.status or "queued",
        spec={},
        progress=Progress(unit="images"),
        created_at=NOW,
        finished_at=NOW - timedelta(days=made_up.days),
    )
    storage.put(f"jobs/{job}/job.json", record.model_dump_json().encode())
    storage.put(f"jobs/{job}/log.txt", b"x")
    if made_up.status is None:
        return [], False
    storage.put(f"jobs/{job}/final.json", record.model_dump_json().encode())
    if made_up.status == "succeeded":
        return notes, True
    if made_up.days < 7:
        return [], False
    return ([] if made_up.manifest else files) + others + notes, True


@settings(max_examples=40)
@given(jobs=st.lists(JOBS, max_size=5), uploads=st.lists(st.booleans(), max_size=3), dry=st.booleans())
def test_exactly_what_the_rule_names_is_found_and_removed(jobs: list[MadeUp], uploads: list[bool], dry: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage.open(Settings(storage_url=f"file://{folder}"))
        expected: set[str] = set()
        for made_up in jobs:
            expected |= set(make(storage, made_up)[0])
        for old in uploads:
            for key in (f"tmp/{new_id('tch')}/weights.safetensors", f"teachers/{new_id('tch')}/weights.safetensors"):
                storage.put(key, b"x")
                if old:
                    age(Path(folder) / key)
                    expected.add(key)
        registered = f"teachers/{new_id('tch')}"
        for name in ("weights.safetensors", "teacher.json"):
            storage.put(f"{registered}/{name}", b"x")
            age(Path(folder) / registered / name)
        storage.put("real/digits/train-000000.tar", b"x")
        everything = {stored.key for stored in storage.objects("")}
        collector = Collector(storage, retention_seconds=RETENTION.total_seconds(), now=NOW)
        found = list(collector.find())
        assert {garbage.key for garbage in found} == expected
        assert len(found) == len(expected)
        if not dry:
            assert all(collector.remove(garbage) for garbage in found)
            assert {stored.key for stored in storage.objects("")} == everything - expected


def age(path: Path) -> None:
    then = NOW.timestamp() - OLD
    os.utime(path, (then, then))


def test_a_job_that_is_retried_meanwhile_keeps_what_it_has(tmp_path: Path) -> None:
    storage = Storage.open(Settings(storage_url=f"file://{tmp_path}"))
    garbage, _ = make(storage, MadeUp("syn", "failed", 400.0, manifest=False, record=True))
    collector = Collector(storage, retention_seconds=0, now=NOW)
    found = list(collector.find())
    assert len(found) == len(garbage)
    (final,) = (stored.key for stored in storage.objects("jobs") if stored.key.endswith("final.json"))
    storage.delete(final)
    assert not any(collector.remove(one) for one in found)
    assert all(storage.exists(key) for key in garbage)


def test_what_another_manifest_names_stays(tmp_path: Path) -> None:
    storage = Storage.open(Settings(storage_url=f"file://{tmp_path}"))
    garbage, _ = make(storage, MadeUp("syn", "canceled", 400.0, manifest=False, record=True))
    shard = next(key for key in garbage if key.endswith("train-000001.tar"))
    prefix, _, name = shard.rpartition("/")
    content = {"id": "x", "prefix": prefix, "shards": [{"name": name}]}
    storage.put(f"datasets/{new_id('ds')}/dataset.json", json.dumps(content).encode())
    found = {one.key for one in Collector(storage, retention_seconds=0, now=NOW).find()}
    assert found == set(garbage) - {shard}


def test_a_file_that_was_never_written_to_its_end_goes(tmp_path: Path) -> None:
    storage = Storage.open(Settings(storage_url=f"file://{tmp_path}"))
    storage.put("datasets/a/x.tar", b"x")
    for name, old in (("x.tar#1", True), ("x.tar#2", False), ("y#z.tar", True)):
        (tmp_path / "datasets" / "a" / name).write_bytes(b"half")
        if old:
            age(tmp_path / "datasets" / "a" / name)
    collector = Collector(storage, retention_seconds=0, now=NOW)
    (found,) = collector.find()
    assert (found.key, found.bytes) == ("datasets/a/x.tar#1", 4)
    assert collector.remove(found)
    assert sorted(path.name for path in (tmp_path / "datasets" / "a").iterdir()) == ["x.tar", "x.tar#2", "y#z.tar"]
