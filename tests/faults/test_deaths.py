"""Whatever dies, and wherever it was: an accepted job ends well, and at most the unit in flight is done again."""

from datetime import datetime

import pytest

from dearkd.answers import JobView
from tests.support.deaths import Death, require_one_unit_a_death
from tests.support.services import eventually
from tests.support.world import SYNTHESIS, TRAINING, World, kill, workers

pytestmark = pytest.mark.timeout(900)


STORIES: dict[str, list[Death]] = {
    "before the claim": [("horse", "before the claim", None)],
    "more at once": [("both", "mid-shard", "0"), ("supervisor", "mid-shard", "1")],
}
"""A death before a claim counts for the unit that would have been next (`Leases.blame`), and so is a story of its own.
The longest story is told of a bucket (`test_s3`)."""


@pytest.mark.parametrize("story", STORIES)
def test_a_death_costs_one_unit_at_most(shared_world: World, teacher: str, undisturbed: JobView, story: str) -> None:
    require_one_unit_a_death(shared_world, teacher, undisturbed, STORIES[story])


def test_a_death_costs_a_run_no_more_than_its_checkpoint_interval_and_its_model_is_stored_once(
    shared_world: World, undisturbed_run: JobView
) -> None:
    here, client = shared_world, shared_world.client
    eventually(lambda: not workers())
    run = ""
    done: list[int] = []
    for epoch in (3, 7):  # one in each stage
        here.hold_at_row(epoch)
        run = run or client.create_training_run({"dataset": undisturbed_run.spec["dataset"], **TRAINING}).id
        assert here.proxy.held.wait(300)
        done.append(len(list(client.list_metrics(run))))
        kill(here.holder(run).horse)
        here.proxy.release(forward=False)
    here.hold_at("end_job")
    assert here.proxy.held.wait(300)
    manifest = f"models/mdl-{run.partition('-')[2]}/model.json"
    stored = here.storage.read(manifest)
    kill(here.holder(run).horse)
    here.proxy.release(forward=False)
    ended = client.wait(run)
    assert (ended.status, ended.attempt) == ("succeeded", 4), ended.error
    resumed = [line.split("epoch ")[1].split(",")[0] for line in here.log(run) if "goes on after epoch" in line]
    assert [int(r) >= d - 1 for r, d in zip(resumed[:2], done, strict=True)] == [True, True], (resumed, done)
    assert here.storage.read(manifest) == stored
    assert any("manifest lies in storage already" in line for line in here.log(run))

    def losses(identifier: str) -> list[float]:
        return [row.figures["loss"] for row in client.list_metrics(identifier)]

    assert losses(run) == losses(undisturbed_run.id)


def test_the_api_dies_right_after_its_answer(shared_world: World, teacher: str, undisturbed: JobView) -> None:
    here = shared_world
    job = here.client.create_synthesis_job({"teacher": teacher, **SYNTHESIS})
    (family,) = [family for name, family in here.tree._families.items() if name == "api"]
    kill(family.head)
    eventually(lambda: here.ledger.store.get(job.id).terminal, seconds=240)
    assert here.ledger.store.get(job.id).status == "succeeded"

    def answers() -> bool:
        try:
            return here.client.is_ready()
        except Exception:
            return False

    eventually(answers)
    assert here.shards(here.client.get_job(job.id)) == here.shards(undisturbed)


def test_what_kills_its_worker_three_times_fails_with_the_cause_and_blocks_nobody(
    shared_world: World, teacher: str
) -> None:
    here = shared_world
    endless = {**SYNTHESIS, "phases": [{"resolution": 8, "iterations": 50_000}]}
    poison = here.client.create_synthesis_job({"teacher": teacher, **endless}).id
    for killed in range(3):
        eventually(lambda killed=killed: len(here.begins(poison)) > killed)
        kill(here.holder(poison).horse)
    ended = here.client.wait(poison)
    assert (ended.status, ended.error.code) == ("failed", "worker_died")
    assert "3 times in a row" in ended.error.message
    assert "was killed by SIGKILL" in ended.error.message
    assert "Its log ends:" in ended.error.message
    assert here.begins(poison) == ["0", "0", "0"]
    small = {**SYNTHESIS, "images_per_class": 1, "phases": [{"resolution": 8, "iterations": 10}]}
    healthy = here.client.wait(here.client.create_synthesis_job({"teacher": teacher, **small}).id)
    assert healthy.status == "succeeded"


def test_recovery_begins_within_half_a_minute_by_default(patient_world: World, patient_teacher: str) -> None:
    here = patient_world
    endless = {**SYNTHESIS, "phases": [{"resolution": 8, "iterations": 50_000}]}
    job = here.client.create_synthesis_job({"teacher": patient_teacher, **endless}).id
    eventually(lambda: here.client.get_job(job).metrics.get("iteration", 0) > 0)
    found = here.holder(job)
    # All at one stroke, so that nobody is left to say that the others died: the lease has to run out.
    kill(found.supervisor, found.worker, found.horse)
    killed_at = datetime.now().astimezone()
    eventually(lambda: len(here.begins(job)) == 2)
    again = [e for e in here.client.list_events(job) if e.type == "log" and " begins on " in e.data["message"]]
    assert (again[1].at - killed_at).total_seconds() < 30
    here.client.cancel_job(job)
    assert here.client.wait(job).status == "canceled"
