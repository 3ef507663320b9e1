"""Jobs whose budget is a time, on a real Redis and real files: they end behind a complete round, whoever dies."""

import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset

from dearkd.data.manifests import DatasetManifest, datasets
from dearkd.jobs.ledger import Claim, Ledger
from dearkd.jobs.model import TERMINAL, Job, dataset_of
from dearkd.settings import Settings
from dearkd.specs import Phase, SynthesisSpec
from dearkd.specs.budget import BudgetSpec, EndedEarly
from dearkd.work.attempt import Attempt
from dearkd.work.worker import drain, open_ledger
from dearkd_synth.service import forecast_unit
from dearkd_synth.service.job import ShardMaker
from tests.services.synth.test_job import settings, store_teacher
from tests.support.programs import CONTEXT

__all__ = ["settings"]

pytestmark = pytest.mark.services

ROUNDS = 6


def submit(ledger: Ledger, small_teacher: Any, folder: Path, minutes: float, **fields: Any) -> Job:
    """Six rounds of two images of each of five classes, two iterations each, in shards of six: two a round."""
    teacher = store_teacher(ledger, small_teacher, folder)
    posted = {
        "teacher": teacher.id,
        "images_per_class": 2 * ROUNDS,
        "batch_size": 10,
        "shard_samples": 6,
        "min_teacher_accuracy": 0,
        "weights": {"boundary": 0.0},
        "rounds": ROUNDS,
        "budget": {"minutes": minutes},
        **fields,
    }
    spec = SynthesisSpec.resolve(posted, teacher.spec)
    quick = {"phases": [Phase(resolution=16, input_size=32, iterations=2)], "unlabelled_iterations": 0}
    return ledger.store.create_synthesis(spec.model_copy(update=quick), images=spec.num_samples)


def drained(settings: Settings) -> int:
    with ShardMaker() as maker:
        return drain("synthesis", maker.perform, settings)


def dataset(ledger: Ledger, job: Job) -> DatasetManifest:
    ended = ledger.store.get(job.id)
    assert ended.status == "succeeded", ended.error
    return datasets(ledger.store.storage).get(dataset_of(job.id))


def require_balanced(ledger: Ledger, job: Job, rounds: int, folder: Path) -> DatasetManifest:
    """Check that a job left the first rounds, whole, in every file that tells of them; returns its manifest."""
    made, storage, ended = dataset(ledger, job), ledger.store.storage, ledger.store.get(job.id)
    images = 10 * rounds
    assert [shard.name for shard in made.shards] == [f"train-{index:06d}.tar" for index in range(2 * rounds)]
    assert (made.num_samples, {c.samples for c in made.classes}) == (images, {2 * rounds})
    stored = {entry.key for entry in storage.objects(made.prefix) if entry.key.endswith(".tar")}
    assert stored == {f"{made.prefix}/{shard.name}" for shard in made.shards}
    info = json.loads(storage.read(f"{made.prefix}/_info.json"))["splits"]["train"]
    assert (info["num_samples"], info["shard_lengths"]) == (images, [6, 4] * rounds)
    assert made.quality is not None
    assert made.quality["samples"] == images
    assert storage.exists(f"{made.prefix}/preview.png")
    folder = folder / job.id
    folder.mkdir()
    for shard in made.shards:
        storage.download(f"{made.prefix}/{shard.name}", folder / shard.name)
    urls = str(folder / f"train-{{000000..{2 * rounds - 1:06d}}}.tar")
    read = webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("png", "cls")
    assert Counter(label for _, label in read) == dict.fromkeys(range(5), 2 * rounds)
    assert (ended.progress.done, ended.progress.total) == (images, images)
    card = storage.read(f"{made.prefix}/README.md").decode()
    assert f"**Every image here is synthetic.** {images} RGB images" in card
    assert ended.result is not None
    assert ended.result["dataset"] == made.id
    if rounds == ROUNDS:
        assert made.ended_early is None
        assert "ended_early" not in ended.result
        return made
    told = EndedEarly.model_validate(ended.result["ended_early"])
    assert made.ended_early == told
    assert (told.reason, told.planned, told.made) == ("budget", 10 * ROUNDS, images)
    assert told.detail in card
    assert told.detail in ledger.log.read(job.id)
    return made


def test_a_time_that_is_too_short_for_anything_gives_one_round_and_says_so(
    settings: Settings, small_teacher: Any, tmp_path: Path
) -> None:
    ledger = open_ledger(settings)
    whole = submit(ledger, small_teacher, tmp_path, 60)
    short = submit(ledger, small_teacher, tmp_path, 1e-6)
    assert drained(settings) == 2 * ROUNDS + 1 + 4, "two shards, the one that found that time was up, and the end"
    all_of_it = require_balanced(ledger, whole, ROUNDS, tmp_path)
    part = require_balanced(ledger, short, 1, tmp_path)
    assert part.ended_early is not None
    assert "more than the budget of 1e-06" in part.ended_early.detail
    assert "at least one round is made" in ledger.log.read(short.id)
    # A shard is a function of the spec and its index, wherever the job ends: the teachers are equal too.
    assert [shard.sha256 for shard in part.shards] == [shard.sha256 for shard in all_of_it.shards[:2]]


def test_as_many_rounds_are_made_as_fit(settings: Settings, small_teacher: Any, tmp_path: Path) -> None:
    """By a clock of the test's own: every shard takes ten hours, so that a round takes twenty, 1200 minutes."""
    ledger = open_ledger(settings)
    expected = {1100: 1, 3590: 2, 3630: 3, 7100: 5, 7300: 6}
    jobs = {minutes: submit(ledger, small_teacher, tmp_path, minutes) for minutes in expected}
    with ShardMaker() as maker:

        def perform(attempt: Attempt) -> None:
            maker.perform(attempt)
            if attempt.unit.isdigit():
                ledger.redis.hincrbyfloat(f"dearkd:job:{attempt.job.id}", "ran", 36_000)

        drain("synthesis", perform, settings)
    for minutes, job in jobs.items():
        require_balanced(ledger, job, expected[minutes], tmp_path)
    assert re.search(r"would end after 3,60\d\.\d, not within the budget of 3590", ledger.log.read(jobs[3590].id))
    assert re.search(r"it took 1,[28]0\d\.\d minutes, more than its budget of 1100", ledger.log.read(jobs[1100].id))


def test_a_round_that_has_begun_is_finished(settings: Settings, small_teacher: Any, tmp_path: Path) -> None:
    """The time is over in the middle of the second round."""
    ledger = open_ledger(settings)
    job = submit(ledger, small_teacher, tmp_path, 5)
    begun: list[str] = []
    with ShardMaker() as maker:

        def perform(attempt: Attempt) -> None:
            maker.perform(attempt)
            begun.append(attempt.unit)
            if attempt.unit == "2":
                ledger.redis.hincrbyfloat(f"dearkd:job:{job.id}", "ran", 10_000)

        drain("synthesis", perform, settings)
    assert begun == ["0", "1", "2", "3", "4", "finish"]
    require_balanced(ledger, job, 2, tmp_path)


def test_what_a_worker_stored_of_a_round_that_is_left_out_is_deleted(
    settings: Settings, small_teacher: Any, tmp_path: Path
) -> None:
    """It died between storing the round's second shard and saying so; so did who made the first, which is lost."""
    ledger = open_ledger(settings)
    job = submit(ledger, small_teacher, tmp_path, 1e-6)
    ledger.store.storage.put(f"datasets/{dataset_of(job.id)}/train-000003.tar", b"a shard")
    drained(settings)
    require_balanced(ledger, job, 1, tmp_path)


def test_a_round_of_which_a_shard_was_stored_before_its_maker_died_has_begun(
    settings: Settings, small_teacher: Any, tmp_path: Path
) -> None:
    """Time is up when somebody else takes it: what it took to make it is not thrown away."""
    ledger = open_ledger(settings)
    whole = submit(ledger, small_teacher, tmp_path, 60)
    drained(settings)
    job, storage = submit(ledger, small_teacher, tmp_path, 1e-6), ledger.store.storage
    for before, after in (
        (f"datasets/{dataset_of(whole.id)}", f"datasets/{dataset_of(job.id)}"),
        (f"jobs/{whole.id}/shards", f"jobs/{job.id}/shards"),
    ):
        for entry in storage.objects(before):
            if "train-000002" in entry.key:
                storage.put(entry.key.replace(before, after), storage.read(entry.key))
    drained(settings)
    require_balanced(ledger, job, 2, tmp_path)
    assert "shard 2 lies in storage already" in ledger.log.read(job.id)


def test_a_job_that_redis_lost_behind_its_manifest_ends_as_that_says(
    settings: Settings, small_teacher: Any, tmp_path: Path
) -> None:
    """A retry knows nothing of the minutes that were spent, and would make every round."""
    ledger = open_ledger(settings)
    job = submit(ledger, small_teacher, tmp_path, 60)
    with ShardMaker() as maker:

        def perform(attempt: Attempt) -> None:
            if attempt.unit == "3":
                ledger.redis.hincrbyfloat(f"dearkd:job:{job.id}", "ran", 10_000)
            maker.perform(attempt)

        drain("synthesis", perform, settings)
    before, storage = require_balanced(ledger, job, 2, tmp_path), ledger.store.storage
    storage.delete(f"jobs/{job.id}/final.json")  # as it is between the manifest and the record
    ledger.redis.flushall()
    ledger.store.retry(job.id)
    (tmp_path / job.id).rename(tmp_path / "before")
    assert drained(settings) == 4 + 1 + 1, "four shards are adopted, one is left out, and the end"
    assert require_balanced(ledger, job, 2, tmp_path) == before


def work(settings: Settings, job: str, dies: str) -> None:
    """A worker process: drains until the job has ended; or kills itself once, where it is told to."""
    torch.set_num_threads(1)
    conclude, complete = Ledger.conclude, Ledger.complete

    def concluding(self: Ledger, claim: Claim, first: str, ended: EndedEarly) -> bool:
        if dies == "before the conclusion":
            os.kill(os.getpid(), signal.SIGKILL)
        concluded = conclude(self, claim, first, ended)
        if dies == "after the conclusion":
            os.kill(os.getpid(), signal.SIGKILL)
        return concluded

    def completing(self: Ledger, claim: Claim, result: dict[str, Any], *, total: int | None = None) -> None:
        if dies == "after the manifest":
            os.kill(os.getpid(), signal.SIGKILL)
        complete(self, claim, result, total=total)

    Ledger.conclude, Ledger.complete = concluding, completing  # type: ignore[method-assign]
    ledger = open_ledger(settings)
    with ShardMaker() as maker:
        while ledger.store.get(job).status not in TERMINAL:
            drain("synthesis", maker.perform, settings)
            time.sleep(0.05)


def start(settings: Settings, job: Job, dies: str = "") -> BaseProcess:
    process = CONTEXT.Process(target=work, args=(settings, job.id, dies))
    process.start()
    return process


@pytest.mark.parametrize("moment", ["before the conclusion", "after the conclusion", "after the manifest"])
def test_a_worker_that_is_killed_in_the_conclusion_costs_nothing(
    settings: Settings, small_teacher: Any, tmp_path: Path, moment: str
) -> None:
    ledger = open_ledger(settings)
    job = submit(ledger, small_teacher, tmp_path, 1e-6)
    victim = start(settings, job, moment)
    victim.join(300)
    assert victim.exitcode == -signal.SIGKILL
    assert (ledger.ended_early(job.id) is not None) == (moment != "before the conclusion")
    for member in ledger.redis.zrange("dearkd:leases", 0, -1):
        ledger.redis.zadd("dearkd:leases", {member: 0})  # type: ignore[type-var]  # redis-py bounds it by bytes alone
    ledger.reap(max_deaths=3)
    drained(settings)
    require_balanced(ledger, job, 1, tmp_path)


def test_two_workers_at_once_leave_whole_rounds(settings: Settings, small_teacher: Any, tmp_path: Path) -> None:
    ledger = open_ledger(settings)
    job = submit(ledger, small_teacher, tmp_path, 1e-6, parallelism=2)
    two = [start(settings, job) for _ in range(2)]
    for process in two:
        process.join(300)
        assert process.exitcode == 0
    rounds = dataset(ledger, job).num_samples // 10
    assert 1 <= rounds <= 2, "the second worker may begin a round before the first has told that time is up"
    require_balanced(ledger, job, rounds, tmp_path)


def test_a_budget_of_passes_is_kept_by_what_is_made(settings: Settings, small_teacher: Any, tmp_path: Path) -> None:
    ledger = open_ledger(settings)
    teacher = store_teacher(ledger, small_teacher, tmp_path)
    posted = {"teacher": teacher.id, "budget": {"teacher_passes": 620}, "min_teacher_accuracy": 0}
    spec = SynthesisSpec.resolve(posted, teacher.spec)
    assert spec.budget == BudgetSpec(teacher_passes=620)
    job = ledger.store.create_synthesis(spec, images=spec.num_samples)
    steps: list[int] = []
    with ShardMaker() as maker:

        def perform(attempt: Attempt) -> None:
            on_step = maker._on_step

            def counting(step: Any) -> None:
                steps.append(step.images)
                on_step(step)

            maker._on_step = counting  # type: ignore[method-assign]
            maker.perform(attempt)

        drain("synthesis", perform, settings)
    assert dataset(ledger, job).num_samples == 20
    assert sum(steps) == 620, "4 images of each of 5 classes, 31 iterations"


def with_forecasts(ledger: Ledger, small_teacher: Any, folder: Path, rounds: int, **budget: Any) -> Job:
    """Rounds of an image of each of five classes, of as few iterations as a forecast needs."""
    teacher = store_teacher(ledger, small_teacher, folder)
    posted = {
        "teacher": teacher.id,
        "images_per_class": rounds,
        "rounds": rounds,
        "batch_size": 5,
        "shard_samples": 5,
        "min_teacher_accuracy": 0,
        "weights": {"boundary": 0.0},
        "budget": budget,
    }
    spec = SynthesisSpec.resolve(posted, teacher.spec)
    quick = {"phases": [Phase(resolution=8, input_size=16, iterations=87)], "unlabelled_iterations": 0}
    return ledger.store.create_synthesis(spec.model_copy(update=quick), images=spec.num_samples)


def test_a_forecast_is_told_where_the_job_is_told_of(settings: Settings, small_teacher: Any, tmp_path: Path) -> None:
    ledger = open_ledger(settings)
    job = with_forecasts(ledger, small_teacher, tmp_path, 8, minutes=600)
    seen: list[str] = []
    during: dict[str, Any] = {}
    with ShardMaker() as maker:

        def perform(attempt: Attempt) -> None:
            seen.append(attempt.unit)
            maker.perform(attempt)
            during[attempt.unit] = ledger.store.get(job.id).metrics

        drain("synthesis", perform, settings)
    assert seen == ["0", "1", "forecast-2", "2", "3", "forecast-4", "4", "5", "6", "7", "forecast-8", "finish"]
    made, ended = dataset(ledger, job), ledger.store.get(job.id)
    assert made.num_samples == 40
    assert ended.result is not None
    told = ended.result["forecast"]
    assert made.quality is not None
    assert made.quality["forecast"] == told
    assert [(point["images"], point["judged_on"]) for point in told["points"]] == [(5, 5), (10, 10), (20, 20)]
    assert told["images"] == 40
    assert (told["agreement"] is None) == (told["why_not"] is not None)
    assert during["forecast-2"]["forecast"]["points"] == told["points"][:1]
    assert "so far there are 1" in during["forecast-2"]["forecast"]["why_not"]
    assert during["3"]["forecast"]["points"] == told["points"][:1], "while shards are made it is still told"
    assert during["3"]["iteration"] == 87
    events = ledger.store.events(job.id, limit=2000)[0]
    assert any(
        event.type == "metrics" and len(event.data.get("forecast", {}).get("points", [])) == 3 for event in events
    )
    assert "a small student of 20 images agrees with the teacher on" in ledger.log.read(job.id)

    # The same from the shards, which another job adopts: nothing of it depends on who made them.
    other = ledger.store.create_synthesis(SynthesisSpec.check(job.spec), images=40)
    for shard in made.shards:
        ledger.store.storage.download(f"{made.prefix}/{shard.name}", tmp_path / shard.name)
        ledger.store.storage.put(f"datasets/{dataset_of(other.id)}/{shard.name}", tmp_path / shard.name)
    drained(settings)
    assert ledger.store.get(other.id).result == ended.result | {"dataset": dataset_of(other.id)}


@pytest.mark.parametrize(("stop_below", "rounds"), [(9.0, 8), (4.0, 9), (0.1, 12), (None, 12)])
def test_a_job_ends_where_more_images_are_not_expected_to_pay(
    settings: Settings,
    small_teacher: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_below: float | None,
    rounds: int,
) -> None:
    """Students err on 0.8/√rounds: behind 8 of 12 rounds 5.2 points are left, by hand, behind 9 rounds 3.6."""
    judged = iter([0.2, 1 - 0.8 / 2**0.5, 0.6])
    monkeypatch.setattr(forecast_unit, "judge_student", lambda *_, **__: next(judged))
    # Of so few images any trend is chance.
    monkeypatch.setattr("dearkd_synth.forecast.NOISE", 0.0)
    ledger = open_ledger(settings)
    job = with_forecasts(ledger, small_teacher, tmp_path, 12, teacher_passes=10**6, stop_below=stop_below)
    drained(settings)
    made, ended = dataset(ledger, job), ledger.store.get(job.id)
    assert made.num_samples == 5 * rounds
    assert {c.samples for c in made.classes} == {rounds}
    assert ended.result is not None
    assert ended.result["forecast"]["agreement"] == pytest.approx(1 - 0.8 / 12**0.5)
    told = ended.result.get("ended_early")
    assert made.ended_early == (told and EndedEarly.model_validate(told))
    if rounds == 12:
        assert told is None
    else:
        assert (told["reason"], told["planned"], told["made"]) == ("no_gain", 60, 5 * rounds)
        assert f"points of accuracy, less than {stop_below:g}" in told["detail"]


def test_a_forecast_whose_student_fails_costs_the_job_nothing(
    settings: Settings, small_teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in fails the second of three forecasts: a device that is full cannot be had here."""
    judged: Iterator[float | Exception] = iter([0.2, torch.OutOfMemoryError("CUDA out of memory"), 0.6])

    def judge(*_: Any, **__: Any) -> float:
        found = next(judged)
        if not isinstance(found, float):
            raise found
        return found

    monkeypatch.setattr(forecast_unit, "judge_student", judge)
    ledger = open_ledger(settings)
    job = with_forecasts(ledger, small_teacher, tmp_path, 8, teacher_passes=10**6, stop_below=50.0)
    drained(settings)
    assert dataset(ledger, job).num_samples == 40
    result = ledger.store.get(job.id).result
    assert result is not None
    assert [point["agreement"] for point in result["forecast"]["points"]] == [0.2, 0.6]
    assert "no forecast of 10 images: CUDA out of memory" in ledger.log.read(job.id)


def test_a_forecast_that_cannot_be_made_says_why(settings: Settings, small_teacher: Any, tmp_path: Path) -> None:
    ledger = open_ledger(settings)
    few = with_forecasts(ledger, small_teacher, tmp_path, 2, teacher_passes=10**6, stop_below=50.0)
    quick = submit(ledger, small_teacher, tmp_path, 60)
    drained(settings)
    for job, why in ((few, "it takes 8 rounds, and the images are made in 2"), (quick, "with 2 iterations an image")):
        result = ledger.store.get(job.id).result
        assert result is not None
        assert "ended_early" not in result
        assert result["forecast"]["agreement"] is None
        assert why in result["forecast"]["why_not"]


def test_a_retry_keeps_forecasts_and_makes_those_that_are_missing(
    settings: Settings, small_teacher: Any, tmp_path: Path
) -> None:
    ledger = open_ledger(settings)
    job = with_forecasts(ledger, small_teacher, tmp_path, 8, minutes=600)
    begun: list[str] = []
    with ShardMaker() as maker:

        def perform(attempt: Attempt) -> None:
            begun.append(attempt.unit)
            if begun.count("forecast-4") == 1 and attempt.unit == "forecast-4":
                ledger.store.cancel(job.id)
            maker.perform(attempt)

        drain("synthesis", perform, settings)
        assert (ledger.store.get(job.id).status, begun[-1]) == ("canceled", "forecast-4")
        ledger.store.retry(job.id)
        drain("synthesis", perform, settings)
    assert begun.count("forecast-2") == 1
    assert begun.count("forecast-4") == 2
    result = ledger.store.get(job.id).result
    assert result is not None
    assert len(result["forecast"]["points"]) == 3
