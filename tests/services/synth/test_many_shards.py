"""What a job of many shards asks of storage: it must not grow with them where nobody needs it."""

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from dearkd.data.manifests import datasets
from dearkd.jobs.model import dataset_of
from dearkd.local.embedded_redis import embedded_redis
from dearkd.settings import Settings
from dearkd.specs import SynthesisSpec
from dearkd.storage.objects import Storage
from dearkd.work.worker import drain, open_ledger
from dearkd_synth.service import job as synthesis
from dearkd_synth.service import pictures
from dearkd_synth.service.job import ShardMaker
from tests.services.synth.test_job import store_teacher

pytestmark = pytest.mark.services


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    folder = tmp_path / "redis"
    folder.mkdir()
    handler = signal.getsignal(signal.SIGTERM)
    with embedded_redis(folder) as url:
        yield Settings(redis_url=url, storage_url=f"file://{tmp_path}/storage", cache_dir=tmp_path / "cache")
    signal.signal(signal.SIGTERM, handler)


def test_only_shards_that_the_grid_shows_leave_a_strip_and_the_end_asks_for_none_by_name(
    settings: Settings, small_teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (synthesis, pictures):
        monkeypatch.setattr(module, "MAX_STRIPS", 2)
    asked: Counter[str] = Counter()
    size = Storage.size
    monkeypatch.setattr(Storage, "size", lambda self, key: (asked.update([key]), size(self, key))[1])
    ledger = open_ledger(settings)
    storage = ledger.store.storage
    teacher = store_teacher(ledger, small_teacher, tmp_path)
    posted = {
        "teacher": teacher.id,
        "images_per_class": 8,
        "batch_size": 10,
        "shard_samples": 10,
        "phases": [{"resolution": 16, "iterations": 1}],
        "min_teacher_accuracy": 0,
        "weights": {"boundary": 0.0},
    }
    spec = SynthesisSpec.resolve(posted, teacher.spec)
    assert spec.num_shards > 3
    made = ledger.store.create_synthesis(spec, images=spec.num_samples)
    with ShardMaker() as maker:
        drain("synthesis", maker.perform, settings)
    assert ledger.store.get(made.id).status == "succeeded"
    dataset = datasets(storage).get(dataset_of(made.id))
    # The figures of classes and samples stand once: in each shard they would grow with shards times classes.
    assert dataset.quality is not None
    assert len(dataset.quality["classes"]) == 5
    for shard in dataset.shards:
        assert shard.quality is not None
        assert shard.quality["samples"] == shard.samples
        assert shard.quality.keys().isdisjoint({"classes", "outliers"})
    notes = Counter(stored.key.rpartition(".")[2] for stored in storage.objects(f"jobs/{made.id}/shards"))
    assert notes["png"] == 2
    assert notes["json"] == spec.num_shards
    assert storage.exists(f"datasets/{dataset.id}/preview.png")
    # Each is asked for once, before it is made: whether it is there already.
    assert {asked[f"datasets/{dataset.id}/{shard.name}"] for shard in dataset.shards} == {1}
