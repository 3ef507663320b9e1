"""Runs on a Ray cluster of two nodes on this machine's loopback, beside runs of two processes without it."""

import importlib
import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from dearkd.data.manifests import DatasetManifest, datasets
from dearkd.data.shard_files import Sample, write_shard
from dearkd.documents import as_written
from dearkd.errors import Unavailable
from dearkd.identifiers import new_id
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import Job
from dearkd.settings import Settings
from dearkd.specs import TrainingSpec
from dearkd.storage.catalog import models
from dearkd.storage.checkpoints import CheckpointFile, StoredCheckpoint, pointer_key
from dearkd.vision.images import encode
from dearkd.work.attempt import STOP_SECONDS
from dearkd.work.worker import drain, open_ledger
from dearkd_trainer.record.checkpoint import BEST
from dearkd_trainer.service.job import RunReporter, perform
from dearkd_trainer.service.ray_group import RayConfig, own_address
from tests.services.trainer.test_windowed_jobs import PLAIN, dataset, settings
from tests.support.bars import bars, curve
from tests.support.services import environment, eventually, process

__all__ = ["dataset", "settings"]

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="ray is not installed: pip install 'dearkd[ray]'")
ray = pytest.importorskip("ray")
ControllerError = pytest.importorskip("ray.train").ControllerError

pytestmark = [
    pytest.mark.services,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8, for two nodes' addresses"),
]

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
SPEC: dict[str, Any] = {
    **PLAIN,
    "workers": 0,
    "processes": 2,
    "checkpoint_seconds": 1e-9,
    "student": {**PLAIN["student"], "drop_path_rate": 0.0},
    "stage_two": {"epochs": 3},
}
STEPS = 5
"""Of an epoch: 54 images by 12."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # 15 by itself: beside other tests they would starve
        # Ray takes 127.0.0.1 for this machine's outer address, but not those beside it.
        found = cluster_utils.Cluster(initialize_head=True, head_node_args={**NODE, "node_ip_address": "127.0.0.2"})
        try:
            yield found
        finally:
            found.shutdown()


@pytest.fixture
def ledger(settings: Settings) -> Ledger:
    return open_ledger(settings)


def start(ledger: Ledger, dataset: DatasetManifest, **posted: Any) -> Job:
    body = {"dataset": dataset.id, "eval_dataset": dataset.id, **SPEC, **posted}
    spec = TrainingSpec.resolve(body, dataset.facts, None, on_ray=True)
    return ledger.store.create_training(spec, epochs=spec.epochs, waits_for=None)


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Any) -> None:
    """Have `act` called once, when a run has done that step."""
    on_step, done = RunReporter.on_step, list[bool]()

    def watched(self: RunReporter, now: int, steps: int) -> None:
        if now == step and not done:
            done.append(True)
            act(self.attempt.job)
        on_step(self, now, steps)

    monkeypatch.setattr(RunReporter, "on_step", watched)


def lose(cluster: Any, node: Any) -> None:
    """Kill all of a node at once; its processes by themselves would only end when they miss their raylet."""
    (raylet,) = node.all_processes["raylet"]
    below = psutil.Process(raylet.process.pid).children(recursive=True)
    cluster.remove_node(node, allow_graceful=False)
    for one in below:
        with suppress(psutil.NoSuchProcess):
            one.kill()


def node() -> str:
    return str(ray.get_runtime_context().get_node_id())


def test_a_run_goes_on_from_its_checkpoint_on_the_node_that_is_left_and_a_canceled_one_ends(
    settings: Settings, dataset: DatasetManifest, ledger: Ledger, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = cluster.add_node(**NODE, node_ip_address="127.0.0.3")
    settings = settings.model_copy(
        update={"ray_address": cluster.address, "cache_bytes": 2**30, "torch_threads": 1, "lease_seconds": 60.0}
    )
    at_step(monkeypatch, 2 * STEPS + 2, lambda _: lose(cluster, second))
    disturbed = start(ledger, dataset, engine="ray")
    assert drain("training", perform, settings) == 1
    ((lost, _),) = ledger.reap(max_deaths=settings.max_deaths)
    assert lost.job == disturbed.id
    assert drain("training", perform, settings) == 1
    log = ledger.log.read(disturbed.id)
    assert re.search(r"lost (rank \d of the run's 2 processes|the processes that Ray had started|the driver)", log)
    assert "trains in 1 processes instead of 2" in log
    # What had come from the lost node before the loss was noticed counts.
    assert re.search(r"goes on after epoch 2, step 1[1-4], from its last checkpoint", log)

    local = start(ledger, dataset)
    assert drain("training", perform, settings) == 1
    ended = [ledger.store.get(job.id) for job in (local, disturbed)]
    assert [job.status for job in ended] == ["succeeded"] * 2, [job.error for job in ended]
    mine, theirs = (models(ledger.store.storage).get(job.result["model"]) for job in ended)
    own = {"id", "name", "created_at", "run", "files", "accuracy", "spec"}
    assert mine.model_dump(exclude=own) == theirs.model_dump(exclude=own)
    assert [file.name for file in mine.files] == [file.name for file in theirs.files]
    assert (mine.accuracy is None, theirs.accuracy is None) == (False, False)
    rows = [curve(ledger.store.rows(job.id)[0]) for job in ended]
    assert rows[0][:2] == rows[1][:2], "two processes do the same wherever they are"
    for here, there in zip(*rows, strict=True):
        assert here == {
            name: value if isinstance(value, str) else pytest.approx(value, rel=1e-3, abs=1e-6)
            for name, value in there.items()
        }

    monkeypatch.undo()
    began: list[float] = []

    def cancel(job: Job) -> None:
        ledger.store.cancel(job.id)
        began.append(time.monotonic())

    at_step(monkeypatch, 3, cancel)
    canceled = start(ledger, dataset, engine="ray", stage_two={"epochs": 3000})
    assert drain("training", perform, settings) == 1
    assert time.monotonic() - began[0] < STOP_SECONDS
    assert ledger.store.get(canceled.id).status == "canceled"


def test_a_run_for_which_the_cluster_has_no_room_says_so_until_it_begins(
    settings: Settings, dataset: DatasetManifest, ledger: Ledger, cluster: Any, tmp_path: Path
) -> None:
    """With a worker as a user starts it."""
    env = environment(
        settings,
        DEARKD_RAY_ADDRESS=cluster.address,
        DEARKD_CACHE_BYTES=str(2**30),
        DEARKD_TORCH_THREADS="1",
        DEARKD_LEASE_SECONDS="60",
    )
    run = start(ledger, dataset, engine="ray", processes=1)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        other = ray.remote(num_cpus=1)(type("Other", (), {"here": lambda self: True})).remote()
        assert ray.get(other.here.remote())
        with process("-m", "dearkd.cli", "worker", "trainer", env=env, log=tmp_path / "worker.log"):
            # Before that it waits for a worker with Ray, until this one has said that it is there.
            eventually(lambda: ledger.store.get(run.id).status == "running" and ledger.store.get(run.id).waiting_for)
            waiting = ledger.store.get(run.id)
            ran = ledger.pace(run.id)[0]
            ray.kill(other)
            eventually(lambda: ledger.store.get(run.id).waiting_for is None)
            assert ledger.store.get(run.id).status == "running"
            assert not ledger.store.rows(run.id)[0]
            eventually(lambda: ledger.store.get(run.id).status not in ("queued", "running"))
    finally:
        ray.shutdown()
    assert (waiting.status, waiting.waiting_for) == ("running", f"room in the Ray cluster at {cluster.address}")
    assert ledger.store.get(run.id).status == "succeeded", (tmp_path / "worker.log").read_text()
    assert ledger.pace(run.id)[0] > ran


def test_the_reason_that_a_process_of_the_cluster_tells_is_the_runs_and_the_log_says_whose_a_line_is(
    settings: Settings, dataset: DatasetManifest, ledger: Ledger, cluster: Any, tmp_path: Path
) -> None:
    settings = settings.model_copy(
        update={"ray_address": cluster.address, "cache_bytes": 2**30, "torch_threads": 1, "lease_seconds": 60.0}
    )
    storage, identifier = ledger.store.storage, new_id("ds")
    # Whole as a file, so that only who opens the image finds it.
    path = tmp_path / "damaged.tar"
    shard = write_shard(path, [Sample("0007", encode(bars(1)[0][0], "png")[:40], "png", 0, {})])
    storage.put(f"datasets/{identifier}/{path.name}", path)
    damaged = {"id": identifier, "prefix": f"datasets/{identifier}", "shards": [shard], "num_samples": 1}
    datasets(storage).create(dataset.model_copy(update=damaged))
    run = start(ledger, dataset, engine="ray", processes=1, eval_dataset=identifier)
    lost = CheckpointFile(name=BEST, bytes=1, sha256="0" * 64)
    pointer = as_written(StoredCheckpoint(files=[lost]))
    storage.put(pointer_key(run.id), pointer.model_dump_json().encode())
    assert drain("training", perform, settings) == 1
    ended, log = ledger.store.get(run.id), ledger.log.read(run.id)
    assert ended.error is not None
    assert (ended.status, ended.error.code) == ("failed", "corrupt_data"), ended.error
    assert re.search(r"damaged\.tar: sample '0007'", ended.error.message)
    assert re.search(rf"rank 0: .*{BEST}.*; the run goes on without it", log), log


def test_room_that_is_there_by_the_sum_but_on_no_node_is_waited_for_aloud_and_does_not_count_as_run(
    settings: Settings, dataset: DatasetManifest, ledger: Ledger, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings.model_copy(
        update={"ray_address": cluster.address, "cache_bytes": 2**30, "torch_threads": 1, "lease_seconds": 60.0}
    )
    second = cluster.add_node(**NODE, node_ip_address="127.0.0.3")
    heard: list[str | None] = []
    ran: list[float] = []
    others: list[Any] = []

    def hear(self: RunReporter, what: str | None) -> None:
        on_wait(self, what)
        heard.append(what)
        job = self.attempt.job.id
        ran.append(ledger.pace(job)[0])
        if what is not None:
            time.sleep(2.0)
            ran.append(ledger.pace(job)[0])
            ray.kill(others[0])
        else:
            assert ledger.store.get(job).waiting_for is None
            ledger.store.cancel(job)

    on_wait = RunReporter.on_wait
    monkeypatch.setattr(RunReporter, "on_wait", hear)
    monkeypatch.setattr(RunReporter, "begin", lambda *_: pytest.fail("it had begun before it no longer waited"))
    run = start(ledger, dataset, engine="ray", processes=1)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        half = ray.remote(num_cpus=0.5, scheduling_strategy="SPREAD")(type("Half", (), {"here": lambda self: node()}))
        others += [half.remote(), half.remote()]
        assert len(set(ray.get([other.here.remote() for other in others]))) == 2
        assert drain("training", perform, settings) == 1
    finally:
        ray.shutdown()
        lose(cluster, second)
    assert heard == [f"room in the Ray cluster at {cluster.address}", None]
    assert ran[0] == ran[1]
    assert ledger.store.get(run.id).status == "canceled"


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray..example:6379", f"{'a' * 64}.example:6379"])
def test_a_cluster_that_does_not_answer_is_an_outage(address: str) -> None:
    with pytest.raises(Unavailable, match=rf"{re.escape(address)} does not answer .* DEARKD_RAY_ADDRESS"):
        own_address(address)


def test_the_end_of_rays_wait_for_room_is_known_by_its_name_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = pytest.importorskip("ray.train.v2._internal.exceptions", reason="this version of Ray has another inside")
    driver = importlib.import_module("dearkd_trainer.service.ray_driver")
    ended: list[Exception] = [inside.WorkerGroupStartupTimeoutError(2), inside.WorkerGroupStartupFailedError("no")]

    class Fails:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def fit(self) -> None:
            raise ControllerError(ended.pop(0))

    # As a version would be that renames it: all of a run but this would still go.
    monkeypatch.delattr(inside, "WorkerGroupStartupTimeoutError")
    importlib.reload(driver)
    monkeypatch.setattr(driver, "TorchTrainer", Fails)
    config = RayConfig.model_construct()
    assert not driver.run(config, {"CPU": 1.0}, 2, tmp_path)
    with pytest.raises(ControllerError, match="no"):
        driver.run(config, {"CPU": 1.0}, 2, tmp_path)
