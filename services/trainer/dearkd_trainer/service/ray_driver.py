"""The driver of a run on a Ray cluster: has Ray Train start the processes. They and it end with who started it.

`python -m dearkd.imports dearkd_trainer.service.ray_driver ray.json`.
"""

import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util import placement_group_table

from dearkd.errors import Unavailable
from dearkd_trainer.data.world import WAIT
from dearkd_trainer.service.link import LAUNCHER, ParentLink, failure
from dearkd_trainer.service.ray_group import RayConfig

SETTLE_SECONDS = 5.0
"""The time to wait for room for all processes, before the run begins with fewer: those of an earlier attempt are just
ended, and a node that is gone is not known to be yet."""
NO_ROOM = "WorkerGroupStartupTimeoutError"
"""The name of Ray's error for processes that found no room; its class is none of those that Ray promises to keep."""
PENDING_SECONDS = 2.0
"""The time after which processes that Ray has not placed wait for room: what others do not hold is placed at once."""


class Room:
    """The wait of a run for room, told to its parent whenever it begins and ends."""

    def __init__(self, parent: ParentLink, cluster: str) -> None:
        self.parent, self.cluster = parent, cluster
        self._waits = False

    def say(self, waits: bool) -> None:
        if waits != self._waits:
            self._waits = waits
            self.parent.report("waits", why=f"room in the Ray cluster at {self.cluster}" if waits else None)

    def watch(self, over: threading.Event) -> None:
        """Say until `over` whether processes of this driver wait for room: others may take it after it was counted."""
        own, since = ray.get_runtime_context().get_job_id(), None
        while not over.wait(0.2):
            # Each is named by a random word and, behind that, the driver's job.
            found = {group["state"] for name, group in placement_group_table().items() if name.endswith(own)}
            since = (since or time.monotonic()) if "PENDING" in found else None
            if "CREATED" in found:
                self.say(False)
            elif since is not None and time.monotonic() - since > PENDING_SECONDS:
                self.say(True)


def main() -> None:
    path = Path(sys.argv[1])
    config = RayConfig.read(path.read_text(encoding="utf-8"))
    parent = ParentLink(config.address, [LAUNCHER, config.token])
    try:
        ray.init(address=config.cluster, include_dashboard=False, logging_level="WARNING")
    except Exception as error:  # Ray has no type for it
        refused = Unavailable(
            f"the Ray cluster at {config.cluster} cannot be joined ({error}): see that it runs, and that this "
            f"machine is a node of it (ray start --address={config.cluster} --num-cpus=0)"
        )
        parent.report(**failure(refused))
        raise SystemExit(1) from error
    resources = config.inputs.spec.resources
    on_gpus = any(node["Resources"].get("GPU") for node in _nodes())
    if resources is not None and resources.device is not None:
        on_gpus = resources.device == "cuda"
    each = {"CPU": float(config.threads)} | ({"GPU": 1.0} if on_gpus else {})
    processes, ended, room = config.inputs.spec.processes, False, Room(parent, config.cluster)
    try:
        while not ended:
            found = settled_room(processes, each)
            if not found:
                room.say(True)
            over = threading.Event()
            threading.Thread(target=room.watch, args=(over,), name="room", daemon=True).start()
            try:
                ended = run(config, each, found or processes, path.parent)
            finally:
                over.set()
    except TrainingFailedError as error:
        parent.report("died", why=f"lost the processes that Ray had started: {error}")
        raise


def run(config: RayConfig, each: dict[str, float], processes: int, folder: Path) -> bool:
    """Have the run's processes run to their end; returns False if they found no room.

    Args:
        config: of the run.
        each: what each process takes of a node.
        processes: how many.
        folder: for Ray's own notes.

    Raises:
        TrainingFailedError: if one fails, or is lost.
    """

    def train_on_node(arguments: dict[str, str]) -> None:
        # Ray's controller gets this by value, and needs none of the imports.
        from dearkd_trainer.service.ray_rank import train_here

        train_here(arguments["config"])

    trainer = TorchTrainer(
        train_on_node,
        train_loop_config={"config": config.model_dump_json()},
        torch_config=TorchConfig(backend="nccl" if "GPU" in each else "gloo", timeout_s=int(WAIT.total_seconds())),
        scaling_config=ScalingConfig(num_workers=processes, use_gpu="GPU" in each, resources_per_worker=each),
        run_config=RunConfig(
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
        ),
    )
    try:
        trainer.fit()
    except ControllerError as error:
        if type(error.controller_failure).__name__ == NO_ROOM:
            return False
        raise
    return True


def settled_room(processes: int, each: dict[str, float]) -> int:
    """The number of processes that find room soon: all, or as many as do.

    Args:
        processes: how many are wanted.
        each: what each of them takes.
    """
    until = time.monotonic() + SETTLE_SECONDS
    while (found := places(each)) < processes and time.monotonic() < until:
        time.sleep(0.2)
    return min(found, processes)


def places(each: dict[str, float]) -> int:
    """The number of processes that find room in the cluster, if each takes `each` of one node."""
    free = ray.available_resources()
    whole = sum(_times(node["Resources"], each) for node in _nodes())
    return min(whole, _times(free, each))


def _times(resources: dict[str, float], each: dict[str, float]) -> int:
    return int(min(resources.get(name, 0.0) // amount for name, amount in each.items()))


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]
