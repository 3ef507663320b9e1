"""Storage that fails, fills up, or does not return what was stored."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from dearkd.answers import JobView
from dearkd.errors import DearKDError
from tests.support.services import eventually
from tests.support.world import SYNTHESIS, TRAINING, World

pytestmark = pytest.mark.timeout(900)


def flip(here: World, key: str, at: int) -> None:
    """Invert a bit of a stored object."""
    path = Path(here.tree.storage_url.removeprefix("file://")) / key
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_damaged_dataset_is_named_and_never_trained_on(shared_world: World, undisturbed: JobView) -> None:
    here, client = shared_world, shared_world.client
    dataset = undisturbed.result["dataset"]
    shard, manifest = f"datasets/{dataset}/train-000001.tar", f"datasets/{dataset}/dataset.json"
    whole = {key: here.storage.read(key) for key in (shard, manifest)}
    run = ""
    try:
        for damage in ("a bit", "the end"):
            if damage == "a bit":
                flip(here, shard, 5000)
            else:
                here.storage.put(shard, whole[shard][:-1024])
            # The tree's cache is keyed by content, and the whole shard may lie in it.
            for path in (here.tree.data / "cache").rglob("train-000001.tar"):
                path.unlink()
            if run:
                client.retry_job(run)
            run = run or client.create_training_run({"dataset": dataset, **TRAINING}).id
            ended = client.wait(run)
            error = ended.error
            assert (ended.status, error.code, error.retryable) == ("failed", "corrupt_data", False)
            assert "train-000001.tar" in error.message
            assert not list(client.list_metrics(run))
        here.storage.put(manifest, whole[manifest][:-20])
        for act in (lambda: client.get_dataset(dataset), lambda: client.create_training_run({"dataset": dataset})):
            with pytest.raises(DearKDError) as refused:
                act()
            assert (refused.value.code, manifest in refused.value.message) == ("corrupt_data", True)
    finally:  # it is there for the tests after this one
        for key, data in whole.items():
            here.storage.put(key, data)


def test_a_damaged_checkpoint_is_named_and_not_gone_on_with(shared_world: World, undisturbed: JobView) -> None:
    here, client = shared_world, shared_world.client
    long = {**TRAINING, "stage_one": {"epochs": 500}}
    run = client.create_training_run({"dataset": undisturbed.result["dataset"], **long}).id
    eventually(lambda: len(list(client.list_metrics(run))) >= 2)
    client.cancel_job(run)
    assert client.wait(run).status == "canceled"
    (last,) = (o for o in here.storage.objects(f"runs/{run}/checkpoints") if o.key.endswith("last.pt"))
    flip(here, last.key, last.size // 2)
    client.retry_job(run)
    ended = client.wait(run)
    assert (ended.status, ended.error.code) == ("failed", "corrupt_data")
    assert last.key in ended.error.message
    assert f"`dearkd retry {run} --from beginning`" in ended.error.message
    again = client.retry_job(run, from_beginning=True)
    assert (again.progress.done, list(client.list_metrics(run))) == (0, [])
    eventually(lambda: len(list(client.list_metrics(run))) >= 2)
    client.cancel_job(run)
    assert client.wait(run).status == "canceled"


def test_a_full_disk_fails_the_job_and_with_room_a_retry_completes_it(
    patient_world: World, patient_teacher: str
) -> None:
    here = patient_world
    disk = Path(here.tree.storage_url.removeprefix("file://"))
    if not disk.is_mount():
        pytest.skip("only who may mount a tmpfs can fill a disk")
    short = {**SYNTHESIS, "phases": [{"resolution": 8, "iterations": 10}]}
    job = here.client.create_synthesis_job({"teacher": patient_teacher, **short}).id
    with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    assert shutil.disk_usage(disk).free == 0
    eventually(lambda: here.client.get_job(job).status == "failed")
    error = here.client.get_job(job).error
    assert (error.code, error.retryable) == ("disk_full", True)
    assert "make room and retry" in error.message
    assert not here.storage.exists(f"datasets/ds-{job.partition('-')[2]}/dataset.json")
    os.unlink(disk / "filler")
    here.client.retry_job(job)
    ended = here.client.wait(job)
    assert ended.status == "succeeded", ended.error
