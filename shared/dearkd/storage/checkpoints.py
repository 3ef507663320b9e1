"""Checkpoints of training runs in storage: which of them a run keeps. What is in them is the trainer's.

The pointer is written after what it names, so a checkpoint that is listed is whole, until newer ones take its place.
"""

from datetime import datetime
from typing import Any

from pydantic import Field

from dearkd.documents import Document, read_document
from dearkd.errors import NotFound
from dearkd.storage.catalog import StoredFile
from dearkd.storage.objects import Storage


class CheckpointFile(StoredFile):
    """A stored file of a run, and where in the run it was made; an earlier version of dearkd did not keep that."""

    epoch: int | None = None
    """Epochs done."""
    stage: int | None = None
    step: int | None = None
    """Steps done, from the run's beginning."""
    created_at: datetime | None = None
    metrics: dict[str, Any] | None = None
    """The figures of the epoch that ended with it; None in the midst of one."""

    @property
    def id(self) -> str:
        """The id in the run: a checkpoint is known by its content."""
        return self.sha256[:16]


class StoredCheckpoint(Document):
    """The pointer `checkpoint.json`, written last: the files of the checkpoint, with sizes and hashes."""

    files: list[CheckpointFile] = Field(default_factory=list)
    earlier: list[CheckpointFile] = Field(default_factory=list)
    """The checkpoints before it that are kept, latest first: a run goes on from the first of all that is whole."""

    def named(self, name: str) -> list[CheckpointFile]:
        """The files of that name, latest first."""
        return [file for file in (*self.files, *self.earlier) if file.name == name]


def read_pointer(storage: Storage, run: str) -> StoredCheckpoint | None:
    """The checkpoints of a run; None where it has made none.

    Raises:
        Unreadable: if what is stored is no such pointer; `NewerSchema` if a newer version wrote it.
    """
    try:
        text = storage.read(pointer_key(run))
    except NotFound:
        return None
    return read_document(StoredCheckpoint, text, pointer_key(run), from_beginning(run))


def pointer_key(run: str) -> str:
    return f"runs/{run}/checkpoints/checkpoint.json"


def checkpoint_key(run: str, file: CheckpointFile) -> str:
    return f"runs/{run}/checkpoints/{file.id}-{file.name}"


def from_beginning(run: str) -> str:
    """The remedy for a run whose checkpoints are damaged."""
    return f"retry the run from its beginning (`dearkd retry {run} --from beginning`)"
