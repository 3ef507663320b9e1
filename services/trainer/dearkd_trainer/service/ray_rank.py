"""One process of a run on a Ray cluster: what Ray Train calls in it."""

import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import ray.train
import ray.train.torch
import torch

from dearkd.settings import Settings
from dearkd.storage.file_cache import FileCache
from dearkd.storage.objects import Storage
from dearkd_trainer.service.data import PLACES, fetch_datasets, manifests_of
from dearkd_trainer.service.link import ParentLink, failure
from dearkd_trainer.service.rank import train
from dearkd_trainer.service.ray_group import RayConfig

OWN = ("cache_dir", "cache_bytes")
"""Settings that a node may have of its own, from its environment."""


def train_here(arguments: str) -> None:
    """Train as one of the run's processes; Ray Train has joined them. `arguments`: the `RayConfig` as JSON."""
    config = RayConfig.read(arguments)
    rank = ray.train.get_context().get_world_rank()
    torch.set_num_threads(config.threads)
    parent = ParentLink(config.address, [rank, config.token])
    for name in ("dearkd", "dearkd_trainer"):
        logging.getLogger(name).addHandler(_Notes(parent, rank))
    try:
        parent.report("ended", result=_train(config, parent))
    except Exception as error:
        # This process waits for its end, which comes when the connection closes: if it ended now, Ray would end the
        # others, and the group could not tell who failed from who was lost.
        parent.report(**failure(error))
        traceback.print_exc()
        sys.stderr.flush()
        threading.Event().wait()


def _train(config: RayConfig, parent: ParentLink) -> dict[str, Any]:
    own = {name for name in OWN if f"DEARKD_{name.upper()}" in os.environ}
    settings = Settings(**{name: value for name, value in config.inputs.settings.items() if name not in own})
    inputs = config.inputs.model_copy(update={"settings": settings.model_dump(mode="json", include=PLACES)})
    storage = Storage.open(settings, fresh=False)
    with FileCache(settings.cache_dir, settings.cache_bytes) as cache, cache.scratch("run") as directory:
        shards = fetch_datasets(storage, cache, inputs.spec, *manifests_of(storage, inputs.spec))
        placed, _ = inputs.fetch(storage, cache, shards, directory, logging.getLogger(__name__).warning)

        def carry(names: Iterable[str]) -> None:
            for name in names:
                parent.send_file(directory, name)

        return train(placed, parent, ray.train.torch.get_device(), carry)


class _Notes(logging.Handler):
    """Sends warnings to the job's log."""

    def __init__(self, parent: ParentLink, rank: int) -> None:
        super().__init__(logging.WARNING)
        self.parent, self.rank = parent, rank

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # the parent is gone, and so is this process in a moment
            self.parent.report("note", line=f"rank {self.rank}: {record.getMessage()}")
