"""Training runs that are disturbed: SIGTERM costs one nothing, and a group ends as one and goes on."""

import contextlib
import os
import signal

import psutil
import pytest

from dearkd.answers import JobView
from tests.support.services import eventually
from tests.support.world import TRAINING, World, alive, kill, workers

pytestmark = pytest.mark.timeout(900)

LONG = {**TRAINING, "checkpoint_every": 100}
"""No checkpoint of its own but the last."""


def losses(here: World, run: str) -> list[float]:
    return [row.figures["loss"] for row in here.client.list_metrics(run)]


def start(here: World, undisturbed: JobView, **spec: object) -> str:
    identifier: str = here.client.create_training_run({"dataset": undisturbed.result["dataset"], **spec}).id
    return identifier


def ranks(horse: int) -> dict[int, int]:
    """Pids of the processes of a group, by rank."""
    found: dict[int, int] = {}
    for process in psutil.Process(horse).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if "dearkd_trainer.service.rank" in process.cmdline() and "RANK" in environment:
                found.setdefault(int(environment["RANK"]), process.pid)
    return found


def torchrun(horse: int) -> int:
    (found,) = (p.pid for p in psutil.Process(horse).children() if "torch.distributed.run" in p.cmdline())
    return found


def below(horse: int) -> list[psutil.Process]:
    """All that a horse has started, directly or not: torchrun, the ranks, and what loads their data."""
    return psutil.Process(horse).children(recursive=True)


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_costs_a_run_nothing(
    shared_world: World, undisturbed: JobView, undisturbed_run: JobView, processes: int
) -> None:
    here = shared_world
    eventually(lambda: not workers())
    expected = losses(here, undisturbed_run.id)
    here.hold_at("add_row", skip=1)
    run = start(here, undisturbed, **{**LONG, "processes": processes})
    assert here.proxy.held.wait(300)
    os.kill(here.holder(run).supervisor, signal.SIGTERM)
    here.proxy.release()
    eventually(lambda: any("goes back: the worker was asked to end" in line for line in here.log(run)))
    assert here.storage.exists(f"runs/{run}/checkpoints/checkpoint.json")
    (checkpoint,) = here.client.list_checkpoints(run)
    ended = here.client.wait(run)
    assert ended.status == "succeeded", ended.error
    assert ended.attempt == 1
    (resumed,) = [line for line in here.log(run) if "goes on after epoch" in line]
    step = int(resumed.split("step ")[1].split(",")[0])
    assert step > 3
    assert (checkpoint.epoch, checkpoint.step) == (int(resumed.split("epoch ")[1].split(",")[0]), step)
    assert here.begins(run) == ["run", "run"]
    if processes == 1:
        assert losses(here, run) == expected
    assert len(losses(here, run)) == len(expected)


def test_a_process_group_ends_as_one_whoever_dies_goes_on_from_its_checkpoint_and_is_canceled_whole(
    shared_world: World, undisturbed: JobView
) -> None:
    """A group of processes that goes on to its end is in the test above."""
    here = shared_world
    eventually(lambda: not workers())
    run = start(here, undisturbed, **{**TRAINING, "stage_one": {"epochs": 5000}, "processes": 2})
    for victim in ("rank 1", "torchrun", "horse", None):
        before = len(losses(here, run))
        eventually(lambda before=before: len(losses(here, run)) >= before + 2)
        horse = here.holder(run).horse
        group = below(horse)
        begun = len(here.begins(run))
        assert len(ranks(horse)) == 2
        if victim is None:
            here.client.cancel_job(run)
            assert here.client.wait(run).status == "canceled"
        else:
            kill({"rank 1": ranks(horse)[1], "torchrun": torchrun(horse), "horse": horse}[victim])
        eventually(lambda group=group: not alive(group))
        if victim is not None:
            eventually(lambda begun=begun: len(here.begins(run)) > begun)
    assert here.begins(run) == ["run"] * 4
    log = here.log(run)
    for lost in ("lost rank 1 of the run's 2 processes", "lost torchrun", "killed by SIGKILL"):
        assert any(lost in line for line in log), lost
    assert sum("goes on after epoch" in line for line in log) == 3
