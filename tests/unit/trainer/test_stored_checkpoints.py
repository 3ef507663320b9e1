"""Checkpoints in storage: so many are kept as asked, and a damaged one does not end a run that has an earlier one."""

from pathlib import Path

import pytest

from dearkd.errors import CorruptData
from dearkd.settings import Settings
from dearkd.storage.objects import Storage
from dearkd_trainer.service.stored_checkpoints import StoredCheckpoint, fetch_checkpoint, store_checkpoint

RUN = "run-1"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(Settings(storage_url=f"file://{tmp_path}/storage"))


def store(storage: Storage, folder: Path, contents: list[bytes], keep: int) -> StoredCheckpoint:
    """One after another, with best weights that change with the first two."""
    folder.mkdir(exist_ok=True)
    stored = StoredCheckpoint()
    for number, content in enumerate(contents):
        (folder / "last.pt").write_bytes(content)
        (folder / "best.safetensors").write_bytes(b"best %d" % min(number, 1))
        stored = store_checkpoint(storage, RUN, folder, stored, keep=keep)
    return stored


def damage(storage: Storage, content: bytes) -> None:
    for stored in storage.objects(f"runs/{RUN}/checkpoints"):
        if storage.read(stored.key) == content:
            storage.put(stored.key, content[:-1] + b"!")


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_so_many_are_kept_as_asked_and_nothing_else_is_left(storage: Storage, tmp_path: Path, keep: int) -> None:
    contents = [b"one", b"two", b"three", b"four"]
    stored = store(storage, tmp_path / "run", contents, keep)
    found = {storage.read(o.key) for o in storage.objects(f"runs/{RUN}/checkpoints") if "checkpoint.json" not in o.key}
    assert found == {*contents[-keep:], b"best 1"}
    assert fetch_checkpoint(storage, RUN, tmp_path / "fetched") == stored
    assert (tmp_path / "fetched" / "last.pt").read_bytes() == b"four"
    assert (tmp_path / "fetched" / "best.safetensors").read_bytes() == b"best 1"


def test_from_a_damaged_one_the_run_goes_back_to_the_one_before(storage: Storage, tmp_path: Path) -> None:
    store(storage, tmp_path / "run", [b"one", b"two", b"three"], 3)
    damage(storage, b"three")
    notes: list[str] = []
    stored = fetch_checkpoint(storage, RUN, tmp_path / "fetched", notes.append)
    assert (tmp_path / "fetched" / "last.pt").read_bytes() == b"two"
    assert "last.pt" in notes[0]
    # The same content comes again, and is stored whole.
    (tmp_path / "run" / "last.pt").write_bytes(b"three")
    store_checkpoint(storage, RUN, tmp_path / "run", stored, keep=3)
    again: list[str] = []
    fetch_checkpoint(storage, RUN, tmp_path / "again", again.append)
    assert (tmp_path / "again" / "last.pt").read_bytes() == b"three"
    assert not again


def test_where_all_are_damaged_nothing_is_gone_on_with(storage: Storage, tmp_path: Path) -> None:
    store(storage, tmp_path / "run", [b"one", b"two"], 2)
    damage(storage, b"two")
    damage(storage, b"one")
    with pytest.raises(CorruptData, match=rf"-last.pt has sha256 .*`dearkd retry {RUN} --from beginning`"):
        fetch_checkpoint(storage, RUN, tmp_path / "fetched")
    assert not (tmp_path / "fetched" / "last.pt").exists()


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("last", [b"three", b"two"])
def test_without_its_best_weights_a_run_goes_on_all_the_same(
    storage: Storage, tmp_path: Path, missing: bool, last: bytes
) -> None:
    before = store(storage, tmp_path / "run", [b"one", b"two", b"three"], 3)
    (best,) = (file for file in before.files if file.name == "best.safetensors")
    key = f"runs/{RUN}/checkpoints/{best.sha256[:16]}-{best.name}"
    if missing:
        storage.delete(key)
    else:
        damage(storage, b"best 1")
    if last == b"two":
        damage(storage, b"three")
    notes: list[str] = []
    stored = fetch_checkpoint(storage, RUN, tmp_path / "fetched", notes.append)
    assert (tmp_path / "fetched" / "last.pt").read_bytes() == last
    assert not (tmp_path / "fetched" / "best.safetensors").exists()
    assert [file.name for file in stored.files] == ["last.pt"]
    assert sum("best.safetensors" in note for note in notes) == 1
    # The same best weights come again, and are stored whole.
    store_checkpoint(storage, RUN, tmp_path / "run", stored, keep=3)
    fetch_checkpoint(storage, RUN, tmp_path / "again")
    assert (tmp_path / "again" / "best.safetensors").read_bytes() == b"best 1"
