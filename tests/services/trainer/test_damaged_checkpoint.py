"""A run whose checkpoint is damaged says so; a plain retry fails alike, one from the beginning makes the model."""

from pathlib import Path

import pytest

from dearkd.data.manifests import DatasetManifest
from dearkd.jobs.model import Job, model_of
from dearkd.settings import Settings
from dearkd.specs import TrainingSpec
from dearkd.storage.catalog import models
from dearkd.storage.objects import Storage
from dearkd.work.worker import drain, open_ledger
from dearkd_trainer.service.job import perform
from dearkd_trainer.service.stored_checkpoints import StoredCheckpoint, store_checkpoint
from tests.services.trainer.test_windowed_jobs import PLAIN, dataset, settings, weights
from tests.support.webhook_receiver import NOBODY, says_nothing_of

__all__ = ["dataset", "settings"]

pytestmark = pytest.mark.services

OWNER = "0123456789abcdef"


def leave_damaged(storage: Storage, run: str, folder: Path, damage: str) -> str:
    """What lies in storage of a checkpoint that was cut short there, or before, or whose pointer was; which object."""
    (folder / "last.pt").write_bytes(b"PK\x03\x04" + b"some of a checkpoint" * 100)
    stored = store_checkpoint(storage, run, folder, StoredCheckpoint(), keep=1)
    key = f"runs/{run}/checkpoints/{stored.files[0].sha256[:16]}-last.pt"
    if damage == "pointer":
        key = f"runs/{run}/checkpoints/checkpoint.json"
    if damage == "gone":
        storage.delete(key)
    elif damage != "before it was stored":
        storage.put(key, storage.read(key)[:30])
    return "last.pt" if damage == "before it was stored" else key


@pytest.mark.parametrize("damage", ["in storage", "before it was stored", "pointer", "gone"])
def test_it_is_named_and_a_retry_may_start_over(
    settings: Settings, dataset: DatasetManifest, tmp_path: Path, damage: str
) -> None:
    settings = settings.model_copy(update={"cache_bytes": 20 * 2**20})
    store = open_ledger(settings).store
    spec = TrainingSpec.resolve({"dataset": dataset.id, **PLAIN, "webhook": NOBODY}, dataset.facts, None)

    def create() -> Job:
        return store.create_training(spec, epochs=spec.epochs, waits_for=None, owner=OWNER)

    run = create()
    key = leave_damaged(store.storage, run.id, tmp_path, damage)
    for _ in range(2):
        assert drain("training", perform, settings) == 1
        failed = store.get(run.id)
        assert failed.status == "failed"
        assert failed.error is not None
        assert failed.error.code == "corrupt_data"
        assert key in failed.error.message
        assert "--from beginning" in failed.error.message
        again = store.retry(run.id, from_beginning=failed.attempt == 2)
    assert (again.status, again.progress.done) == ("queued", 0)
    assert drain("training", perform, settings) == 1
    undisturbed = create()
    assert drain("training", perform, settings) == 1
    assert weights(settings, store.get(run.id)) == weights(settings, store.get(undisturbed.id))
    assert models(store.storage).get(model_of(run.id)).owner == OWNER
    assert says_nothing_of(NOBODY, store.storage, f"models/{model_of(run.id)}")
    assert len(store.rows(run.id)[0]) == spec.epochs
