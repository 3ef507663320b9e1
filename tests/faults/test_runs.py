"""Training runs that are disturbed: SIGTERM costs one nothing, and a gang ends as one and goes on."""

import contextlib
import os
import signal

import psutil
import pytest
from world import TRAINING, World, at_work, kill, workers

from dearkd.client import Json
from services import eventually

pytestmark = pytest.mark.timeout(900)

LONG = {**TRAINING, "checkpoint_every": 100}
"""No checkpoint of its own but the last."""


def losses(here: World, run: str) -> list[float]:
    return [row["loss"] for row in here.client.list_metrics(run)]


def start(here: World, undisturbed: Json, **spec: object) -> str:
    identifier: str = here.client.create_training_run({"dataset": undisturbed["result"]["dataset"], **spec})["id"]
    return identifier


def ranks(horse: int) -> dict[int, int]:
    """Pids of the processes of a gang, by rank."""
    found: dict[int, int] = {}
    for process in psutil.Process(horse).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if "dearkd_trainer.rank" in process.cmdline() and "RANK" in environment:
                found.setdefault(int(environment["RANK"]), process.pid)
    return found


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_costs_a_run_nothing(
    shared_world: World, undisturbed: Json, undisturbed_run: Json, processes: int
) -> None:
    here = shared_world
    eventually(lambda: not workers())
    expected = losses(here, undisturbed_run["id"])
    run = start(here, undisturbed, **{**LONG, "processes": processes})
    eventually(lambda: here.client.get_job(run)["metrics"].get("step", 0) > 3)
    os.kill(at_work().supervisor, signal.SIGTERM)
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


def test_a_gang_that_loses_a_process_ends_and_goes_on_from_its_checkpoint(
    shared_world: World, undisturbed: Json
) -> None:
    here = shared_world
    eventually(lambda: not workers())
    run = start(here, undisturbed, **{**TRAINING, "processes": 2})
    eventually(lambda: len(losses(here, run)) >= 2)
    gang = ranks(at_work().horse)
    kill(gang[1])
    eventually(lambda: not psutil.pid_exists(gang[0]))
    ended = here.client.wait_for_job(run)
    assert ended["status"] == "succeeded", ended["error"]
    assert ended["attempt"] == 2
    assert here.begins(run) == ["run", "run"]
    log = here.log(run)
    assert any("lost rank 1 of the run's 2 processes" in line for line in log)
    assert any("goes on after epoch" in line for line in log)
    assert len(losses(here, run)) == 20


def test_a_gang_ends_with_whoever_answers_for_it_and_when_it_is_canceled(
    shared_world: World, undisturbed: Json
) -> None:
    here = shared_world
    eventually(lambda: not workers())
    run = start(here, undisturbed, **{**TRAINING, "stage_one": {"epochs": 500}, "processes": 2})
    eventually(lambda: len(losses(here, run)) >= 1)
    first = at_work().horse
    gang = ranks(first)
    kill(first)
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in gang.values()))
    eventually(lambda: len(here.begins(run)) == 2 and len(losses(here, run)) >= 2)
    gang = ranks(at_work().horse)
    assert len(gang) == 2
    here.client.cancel_job(run)
    assert here.client.wait_for_job(run)["status"] == "canceled"
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in gang.values()))
