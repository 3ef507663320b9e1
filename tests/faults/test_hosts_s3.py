"""Synthesis on two hosts that share a Redis and a bucket and nothing else, one of which is cut off in mid-shard."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from subprocess import Popen
from typing import cast
from urllib.parse import urlsplit

import pytest

from dearkd.data.manifests import datasets
from dearkd.data.shard_files import Shard
from dearkd.identifiers import new_id
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import dataset_of
from dearkd.local.embedded_redis import embedded_redis
from dearkd.settings import Settings
from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd.storage.catalog import Teacher, describe_file, teachers
from dearkd.work.worker import open_ledger
from tests.support import services
from tests.support.hosts import Host, private_net, require_hosts
from tests.support.proxy import FaultProxy
from tests.support.s3 import S3Server
from tests.support.services import eventually
from tests.support.world import SHORT, SYNTHESIS

pytestmark = pytest.mark.timeout(900)

WORKER = "import sys; from dearkd.work.worker import main; sys.exit(main('synth'))"


@dataclass(frozen=True)
class Fleet:
    """Two hosts with a worker each, and what they share."""

    ledger: Ledger
    hosts: dict[str, Host]
    workers: dict[str, Popen[bytes]]
    teacher: Teacher

    def submit(self, parallelism: int) -> str:
        posted = {"teacher": self.teacher.id, **SYNTHESIS, "parallelism": parallelism}
        spec = SynthesisSpec.resolve(posted, self.teacher.spec)
        return self.ledger.store.create_synthesis(spec, images=spec.num_samples).id

    def wait(self, job: str) -> None:
        eventually(lambda: self.ledger.store.get(job).terminal)
        ended = self.ledger.store.get(job)
        assert ended.status == "succeeded", ended.error

    def log(self, job: str) -> list[str]:
        return [line.partition(" ")[2] for line in self.ledger.log.read(job).splitlines()]

    def begun(self, job: str) -> list[tuple[str, str]]:
        """Unit and host of each attempt, in the order in which they began."""
        words = [line.split() for line in self.log(job) if " begins on " in line]
        return [(line[1], line[4].partition("/")[0]) for line in words]

    def at_work(self, job: str) -> dict[str, str]:
        """The host of each shard of which its worker has told how far it is."""
        key = f"dearkd:job:{job}"
        told = cast("list[bytes]", self.ledger.redis.hkeys(f"{key}:partial"))
        held = cast("dict[bytes, bytes]", self.ledger.redis.hgetall(f"{key}:holders"))
        return {unit.decode(): held[unit].decode().partition("/")[0] for unit in told if unit in held}

    def shards(self, job: str) -> list[Shard]:
        return datasets(self.ledger.store.storage).get(dataset_of(job)).shards

    def files(self, job: str) -> dict[str, tuple[datetime, bytes]]:
        """Time and content of all that a job's dataset consists of, by name."""
        storage = self.ledger.store.storage
        found = storage.objects(f"datasets/{dataset_of(job)}")
        return {one.key.rpartition("/")[2]: (one.modified, storage.read(one.key)) for one in found}

    def contents(self, job: str) -> dict[str, bytes]:
        """The same, but for the two files that name the job itself, and without times."""
        return {name: data for name, (_, data) in self.files(job).items() if name not in ("dataset.json", "README.md")}


def store_teacher(ledger: Ledger, spec: TeacherSpec, weights: Path) -> Teacher:
    """Store a teacher as an inspector would: no worker is to have anything of it before the jobs begin."""
    stored = describe_file(weights)
    found = {"sha256": stored.sha256, "bytes": stored.bytes, "parameters": 1, "batch_norm_layers": 1}
    teacher = Teacher(id=new_id("tch"), created_at=datetime.now(UTC), **spec.model_dump(), **found)
    catalog = teachers(ledger.store.storage)
    ledger.store.storage.put(catalog.key(teacher.id, "weights.safetensors"), weights)
    catalog.create(teacher)
    return teacher


@pytest.fixture
def fleet(s3: S3Server, plain_teacher: tuple[TeacherSpec, Path], tmp_path: Path) -> Iterator[Fleet]:
    require_hosts()
    with ExitStack() as stack:
        redis = stack.enter_context(embedded_redis(tmp_path / "redis"))
        ours = s3.settings("hosts", Settings(redis_url=redis))
        hub = stack.enter_context(private_net())
        ports = []
        for url in (redis, s3.endpoint):
            proxy = FaultProxy(("127.0.0.1", urlsplit(url).port or 0), hub.listener())
            stack.callback(proxy.close)
            ports.append(proxy.port)
        ledger = open_ledger(ours)
        teacher = store_teacher(ledger, *plain_teacher)
        disk = tmp_path / "disk"
        disk.mkdir()
        hosts, workers = {}, {}
        for number, name in enumerate(("first", "second"), 1):
            host = hub.host(name, number, disk)
            theirs = ours.model_copy(
                update={
                    "redis_url": f"redis://:{urlsplit(redis).password}@{host.hub}:{ports[0]}/0",
                    "s3_endpoint": f"http://{host.hub}:{ports[1]}",
                    "cache_dir": disk / "cache",
                }
            )
            environment = services.environment(theirs, **SHORT, TMPDIR=str(disk))
            log = tmp_path / f"{name}.log"
            worker = services.process("-c", WORKER, env=environment, log=log, python=sys.executable, within=host.within)
            hosts[name], workers[name] = host, stack.enter_context(worker)
        yield Fleet(ledger, hosts, workers, teacher)
        assert not list(disk.iterdir())


def test_a_host_that_is_cut_off_in_mid_shard_costs_a_shard_and_takes_up_work_again(fleet: Fleet) -> None:
    both = set(fleet.hosts)
    undisturbed = fleet.submit(parallelism=2)
    fleet.wait(undisturbed)

    job = fleet.submit(parallelism=2)
    eventually(lambda: set(fleet.at_work(job).values()) == both)
    [(unit, lost)] = [(unit, host) for unit, host in fleet.at_work(job).items() if unit == "1"]
    fleet.hosts[lost].pull_cable()
    assert f"train-00000{unit}.tar" not in fleet.files(job)
    alone = fleet.submit(parallelism=1)
    fleet.wait(alone)
    fleet.wait(job)
    [other] = both - {lost}
    assert fleet.begun(alone) == [("0", other), ("1", other), ("finish", other)]
    assert sorted(fleet.begun(job)) == sorted([("0", other), (unit, lost), (unit, other), ("finish", other)])
    assert any(f"unit {unit} lost its worker: {lost}/" in line and "fell silent" in line for line in fleet.log(job))
    assert fleet.contents(undisturbed) == fleet.contents(job) == fleet.contents(alone)
    assert fleet.shards(undisturbed) == fleet.shards(job) == fleet.shards(alone)
    assert {"train-000000.tar", "train-000001.tar", "preview.png"} <= set(fleet.contents(job))

    before = fleet.files(job)
    fleet.hosts[lost].plug_cable()
    eventually(lambda: any("lost its lease, and published nothing more" in line for line in fleet.log(job)))
    assert fleet.files(job) == before
    assert fleet.ledger.store.get(job).status == "succeeded"
    again = fleet.submit(parallelism=2)
    fleet.wait(again)
    assert {host for _, host in fleet.begun(again)} == both
    assert fleet.contents(again) == fleet.contents(job)
    assert {name for name, worker in fleet.workers.items() if worker.poll() is None} == both
    for host in fleet.hosts.values():
        assert len([file for file in host.files("cache") if file.endswith(".safetensors")]) == 1
