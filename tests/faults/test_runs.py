"""Training runs that are disturbed: SIGTERM costs one nothing, and a group ends as one and goes on."""

import contextlib
import os
import signal

import psutil
import pytest

from dearkd.client import Json
from tests.support.services import eventually
from tests.support.world import TRAINING, World, alive, kill, workers

pytestmark = pytest.mark.timeout(900)

LONG = {**TRAINING, "checkpoint_every": 100}
"""No checkpoint of its own but the last."""


def losses(here: World, run: str) -> list[float]:
    return [row["loss"] for row in here.client.list_metrics(run)]


def start(here: World, undisturbed: Json, **spec: object) -> str:
    identifier: str = here.client.create_training_run({"dataset": undisturbed["result"]["dataset"], **spec})["id"]
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
    shared_world: World, undisturbed: Json, undisturbed_run: Json, processes: int
) -> None:
    here = shared_world
    eventually(lambda: not workers())
    expected = losses(here, undisturbed_run["id"])
    run = start(here, undisturbed, **{**LONG, "processes": processes})
    eventually(lambda: here.client.get_job(run)["metrics"].get("step", 0) > 3)
    os.kill(here.holder(run).supervisor, signal.SIGTERM)
    eventually(lambda: any("goes back: the worker was asked to end" in line for line in here.log(run)))
    assert here.storage.exists(f"runs/{run}/checkpoints/checkpoint.json")
    ended = here.client.wait_for_job(run)
    assert ended["status"] == "succeeded", ended["error"]
    assert ended["attempt"] == 1
    (resumed,) = [line for line in here.log(run) if "goes on after epoch" in line]
    assert int(resumed.split("step ")[1].split(",")[0]) > 3
    assert here.begins(run) == ["run", "run"]
    if processes == 1:
        assert losses(here, run) == expected
    assert len(losses(here, run)) == len(expected)


@pytest.mark.parametrize("victim", ["rank 1", "torchrun"])
def test_a_gang_that_loses_a_process_ends_and_goes_on_from_its_checkpoint(
    shared_world: World, undisturbed: Json, victim: str
) -> None:
    here = shared_world
    eventually(lambda: not workers())
    run = start(here, undisturbed, **{**TRAINING, "stage_one": {"epochs": 20}, "processes": 2})
    eventually(lambda: len(losses(here, run)) >= 2)
    horse = here.holder(run).horse
    group = below(horse)
    kill(ranks(horse)[1] if victim == "rank 1" else torchrun(horse))
    eventually(lambda: not alive(group))
    ended = here.client.wait_for_job(run)
    assert ended["status"] == "succeeded", ended["error"]
    assert ended["attempt"] == 2
    assert here.begins(run) == ["run", "run"]
    log = here.log(run)
    lost = {"rank 1": "lost rank 1 of the run's 2 processes", "torchrun": "lost torchrun"}[victim]
    assert any(lost in line for line in log)
    assert any("goes on after epoch" in line for line in log)
    assert len(losses(here, run)) == 30


def test_a_gang_ends_with_whoever_answers_for_it_and_when_it_is_canceled(
    shared_world: World, undisturbed: Json
) -> None:
    here = shared_world
    eventually(lambda: not workers())
    run = start(here, undisturbed, **{**TRAINING, "stage_one": {"epochs": 500}, "processes": 2})
    eventually(lambda: len(losses(here, run)) >= 1)
    first = here.holder(run).horse
    group = below(first)
    kill(first)
    eventually(lambda: not alive(group))
    before = len(losses(here, run))
    eventually(lambda: len(here.begins(run)) == 2 and len(losses(here, run)) > before)
    second = here.holder(run).horse
    assert len(ranks(second)) == 2
    group = below(second)
    here.client.cancel_job(run)
    assert here.client.wait_for_job(run)["status"] == "canceled"
    eventually(lambda: not alive(group))
