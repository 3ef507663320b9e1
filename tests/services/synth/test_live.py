"""The live picture and the time-lapse of a job, on a real Redis and real files, in this process."""

import io
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageSequence

from dearkd.data.grid_layouts import LAYOUT
from dearkd.errors import NotFound
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import Job, dataset_of, live_key
from dearkd.local.embedded_redis import embedded_redis
from dearkd.redis_client import job_key
from dearkd.settings import Settings
from dearkd.specs import SynthesisSpec
from dearkd.storage.catalog import Teacher
from dearkd.storage.objects import Storage
from dearkd.work.attempt import Attempt
from dearkd.work.worker import drain, open_ledger
from dearkd_synth.service.job import ShardMaker
from dearkd_synth.service.live import LivePicture, LivePreviews
from dearkd_synth.service.timelapse import FRAME_MILLISECONDS, FRAMES, LAST_FRAME_MILLISECONDS, moments
from dearkd_synth.snapshots import Camera
from dearkd_synth.synthesised import Step
from tests.services.synth.test_job import store_teacher
from tests.support.services import eventually

pytestmark = pytest.mark.services

ITERATIONS = 60


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    folder = tmp_path / "redis"
    folder.mkdir()
    handler = signal.getsignal(signal.SIGTERM)
    with embedded_redis(folder) as url:
        yield Settings(
            redis_url=url,
            storage_url=f"file://{tmp_path}/storage",
            cache_dir=tmp_path / "cache",
            preview_seconds=0.05,
        )
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def teacher(settings: Settings, small_teacher, tmp_path: Path) -> Teacher:
    return store_teacher(open_ledger(settings), small_teacher, tmp_path)


def post(ledger: Ledger, teacher: Teacher, **posted: Any) -> Job:
    """Two shards of ten images in five classes."""
    small = {
        "teacher": teacher.id,
        "images_per_class": 4,
        "batch_size": 10,
        "shard_samples": 10,
        "phases": [{"resolution": 16, "iterations": ITERATIONS}],
        "unlabelled_iterations": ITERATIONS // 3,
        "min_teacher_accuracy": 0,
    }
    spec = SynthesisSpec.resolve(small | posted, teacher.spec)
    return ledger.store.create_synthesis(spec, images=spec.num_samples)


def run(settings: Settings) -> None:
    with ShardMaker() as maker:
        drain("synthesis", maker.perform, settings)


def previews(ledger: Ledger, job: Job) -> list[dict[str, Any]]:
    return [e.data for e in ledger.store.events(job.id, limit=2000)[0] if e.type == "preview"]


@contextmanager
def looking(storage: Storage, key: str) -> Iterator[list[bytes]]:
    """Look at an object again and again; the different contents that it had."""
    seen: list[bytes] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            try:
                content = storage.read(key)
            except NotFound:
                continue
            if not seen or seen[-1] != content:
                seen.append(content)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def test_the_images_at_work_are_shown_before_the_first_shard_is_done_and_until_the_job_ends(
    settings: Settings, teacher: Teacher
) -> None:
    ledger = open_ledger(settings)
    storage = ledger.store.storage
    job = post(ledger, teacher)
    with looking(storage, live_key(job.id)) as seen:
        run(settings)
    ended = ledger.store.get(job.id)
    assert ended.status == "succeeded", ended.error
    assert not storage.exists(live_key(job.id))

    told = previews(ledger, job)
    live = [data for data in told if data.get("live")]
    assert told[0] == live[0], "the first picture is of images at work, the grid of finished ones comes later"
    assert (live[0]["shard"], live[0]["batch"], live[0]["iteration"]) == (0, 0, 1)
    of_first = [data["iteration"] for data in live if data["shard"] == 0]
    assert len(of_first) >= 3
    assert of_first == sorted(set(of_first))
    assert len({data["sha256"] for data in live}) == len(live)
    assert {data["shard"] for data in live} == {0, 1}
    # Of what the teacher thinks the losses tell, as they were last read; without labels there is no cross-entropy.
    late = [data for data in live if data["iteration"] == ITERATIONS or data["iteration"] <= ITERATIONS // 3]
    assert [data.get("confidence", 1.0) < 1.0 for data in late] == [data["iteration"] == ITERATIONS for data in late]
    assert 0 < live[0]["first_preview_seconds"] < 60
    assert ended.metrics["first_preview_seconds"] == live[0]["first_preview_seconds"]

    assert len(seen) >= 3, "it changes"
    pictures = [Image.open(io.BytesIO(content)) for content in seen]
    # Ten images without classes in rows of eight, then two of each of five classes behind its name.
    assert pictures[0].size == (8 * 34 + 2, 2 * 34 + 2)
    named = [picture for picture in pictures if picture.height == 5 * 34 + 2]
    assert named
    assert {picture.width for picture in named} < {2 * 34 + 2 + margin for margin in range(1, 40)}
    layouts = [json.loads(picture.info[LAYOUT]) for picture in pictures]
    assert [(row["name"], row["confidence"]) for row in layouts[0]["rows"]] == [(None, [])] * 2
    for picture, layout in zip(pictures, layouts, strict=True):
        assert picture.width == layout["margin"] + (8 if picture not in named else 2) * 34 + 2
    rows = json.loads(named[-1].info[LAYOUT])["rows"]
    assert [row["name"] for row in rows] == [teacher.class_name(label) for label in range(5)]
    assert all(len(row["confidence"]) == 2 and 0 <= sure <= 1 for row in rows for sure in row["confidence"])


def frames(film: bytes) -> list[tuple[int, torch.Tensor]]:
    """The milliseconds and the pixels of each frame; the encoder keeps equal neighbours as one."""
    found = []
    with Image.open(io.BytesIO(film)) as opened:
        for frame in ImageSequence.Iterator(opened):
            pixels = torch.frombuffer(bytearray(frame.convert("RGB").tobytes()), dtype=torch.uint8)
            found.append((int(frame.info["duration"]), pixels.float()))
    return found


def lasting(number: int) -> int:
    return (number - 1) * FRAME_MILLISECONDS + LAST_FRAME_MILLISECONDS


def test_the_time_lapse_goes_from_noise_to_the_images_and_is_the_same_for_the_same_seed(
    settings: Settings, teacher: Teacher
) -> None:
    ledger = open_ledger(settings)
    storage = ledger.store.storage
    jobs = [post(ledger, teacher, seed=seed) for seed in (7, 7, 8)]
    run(settings)
    files = [storage.read(f"datasets/{dataset_of(job.id)}/timelapse.webp") for job in jobs]
    assert files[0] == files[1] != files[2]
    with Image.open(io.BytesIO(files[0])) as film:
        assert film.format == "WEBP"
    shown = frames(files[0])
    assert sum(held for held, _ in shown) == lasting(len(moments(ITERATIONS)))
    off = [(frame - shown[-1][1]).abs().mean().item() for _, frame in shown]
    assert off[0] > off[len(off) // 2] > off[-1] == 0
    card = storage.read(f"datasets/{dataset_of(jobs[0].id)}/README.md").decode()
    assert "(timelapse.webp)" in card


@pytest.mark.parametrize("iterations", [1, 2, 5, 60, 500, 4000])
def test_frames_are_dense_at_first_and_there_are_not_too_many(iterations: int) -> None:
    found = sorted(moments(iterations))
    assert (found[0], found[-1]) == (1, iterations)
    assert len(found) <= FRAMES
    if iterations >= 500:
        assert len(found) == FRAMES
        assert found[FRAMES // 2] < iterations / 3


def test_a_batch_that_starts_again_begins_its_time_lapse_anew(settings: Settings, teacher: Teacher) -> None:
    ledger = open_ledger(settings)
    posted = {
        "clip": False,
        "learning_rate": 1e20,
        "restart_rate_factor": 1e-20,
        "phases": [{"resolution": 16, "iterations": 5}],
    }
    job = post(ledger, teacher, **posted, unlabelled_iterations=0)
    run(settings)
    ended = ledger.store.get(job.id)
    assert ended.status == "succeeded", ended.error
    assert "starts again" in ledger.log.read(job.id)
    film = ledger.store.storage.read(f"datasets/{dataset_of(job.id)}/timelapse.webp")
    assert sum(held for held, _ in frames(film)) == lasting(len(moments(5)))


def test_storage_that_takes_no_picture_costs_a_line_of_the_log_and_nothing_else(
    settings: Settings, teacher: Teacher
) -> None:
    ledger = open_ledger(settings)
    job = post(ledger, teacher)
    in_the_way = Path(settings.storage_url.removeprefix("file://")) / live_key(job.id) / "folder"
    in_the_way.mkdir(parents=True)
    run(settings)
    ended = ledger.store.get(job.id)
    assert ended.status == "succeeded", ended.error
    assert ledger.log.read(job.id).count("the live picture could not be stored, and is tried again") == 1
    assert not [data for data in previews(ledger, job) if data.get("live")]
    assert "first_preview_seconds" not in ended.metrics


def test_a_device_without_memory_for_pictures_halves_no_batch_for_them(
    settings: Settings, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(self: Camera, rows: Any, side: int) -> Any:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(Camera, "take", take)
    ledger = open_ledger(settings)
    job = post(ledger, teacher)
    run(settings)
    ended = ledger.store.get(job.id)
    assert ended.status == "succeeded", ended.error
    assert "halved" not in ledger.log.read(job.id)
    assert not [data for data in previews(ledger, job) if data.get("live")]
    assert not ledger.store.storage.exists(f"datasets/{dataset_of(job.id)}/timelapse.webp")


def test_where_nobody_wants_pictures_there_is_none(settings: Settings, teacher: Teacher) -> None:
    settings = settings.model_copy(update={"preview_seconds": 0.0})
    ledger = open_ledger(settings)
    job = post(ledger, teacher)
    run(settings)
    assert ledger.store.get(job.id).status == "succeeded"
    assert not [data for data in previews(ledger, job) if data.get("live")]


def step(teacher: Teacher) -> Step:
    """The first step of a batch of two images."""
    camera = Camera(teacher.spec)
    camera.aim(torch.zeros(2, 3, 16, 16), lambda: torch.zeros(2, 5))
    camera.labels = [0, 1]
    return Step(
        shard=0, batch=0, iteration=1, iterations=9, share=0.1, images=2, images_done=0, losses={}, camera=camera
    )


def show(attempt: Attempt, teacher: Teacher) -> None:
    """Let one picture be due, and wait until it is stored or dropped."""
    live = LivePreviews()
    with live.showing(attempt, teacher):
        live.see(step(teacher))
        eventually(lambda: live._waiting is None, seconds=60)


@contextmanager
def attempting(ledger: Ledger, settings: Settings) -> Iterator[Attempt]:
    claim = ledger.claim("synthesis", 60.0)
    assert claim is not None
    with Attempt(claim, ledger.store.get(claim.job), ledger, settings, threading.Event()) as attempt:
        yield attempt


class Stuck(LivePreviews):
    """Stores nothing until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.shown: list[int] = []

    def _show(self, attempt: Attempt, teacher: Teacher, picture: LivePicture) -> None:
        assert self.go.wait(60)
        self.shown.append(picture.step.iteration)


def test_steps_go_on_while_a_picture_is_stored_and_the_newest_is_next(settings: Settings, teacher: Teacher) -> None:
    settings = settings.model_copy(update={"preview_seconds": 1e-9})
    ledger = open_ledger(settings)
    post(ledger, teacher)
    live = Stuck()
    with attempting(ledger, settings) as attempt, live.showing(attempt, teacher):
        live.see(step(teacher))
        eventually(lambda: live._waiting is None)
        for iteration in range(2, 20):
            live.see(replace(step(teacher), iteration=iteration))
        assert live.shown == []
        live.go.set()
        eventually(lambda: len(live.shown) == 2)
    assert live.shown == [1, 19]


@pytest.mark.parametrize("how", ["held", "canceled", "paused", "lost"])
def test_who_may_not_go_on_stores_no_picture(settings: Settings, teacher: Teacher, how: str) -> None:
    settings = settings.model_copy(update={"heartbeat_seconds": 600.0})  # nothing has told it yet
    ledger = open_ledger(settings)
    job = post(ledger, teacher)
    with attempting(ledger, settings) as attempt:
        if how == "canceled":
            ledger.store.cancel(job.id)
        elif how == "paused":
            ledger.store.pause(job.id)
        elif how == "lost":
            ledger.release(attempt.claim)
            assert ledger.claim("synthesis", 60.0) is not None
        show(attempt, teacher)
    assert ledger.store.storage.exists(live_key(job.id)) == (how == "held")
    assert len(previews(ledger, job)) == (how == "held")


def test_of_several_workers_one_shows_its_images_until_it_is_gone(settings: Settings, teacher: Teacher) -> None:
    ledger = open_ledger(settings)
    job = post(ledger, teacher, parallelism=2)
    turn = f"{job_key(job.id)}:live"
    ledger.redis.set(turn, "another worker", ex=600)
    with attempting(ledger, settings) as attempt:
        show(attempt, teacher)
        assert not ledger.store.storage.exists(live_key(job.id))
        assert ledger.redis.get(turn) == b"another worker"
        ledger.redis.delete(turn)
        show(attempt, teacher)
        assert ledger.store.storage.exists(live_key(job.id))
        show(attempt, teacher)
    assert len(previews(ledger, job)) == 2, "it keeps its turn"
    assert 0 < ledger.redis.ttl(turn) <= 10


def test_a_turn_outlasts_the_time_between_two_rare_pictures(settings: Settings, teacher: Teacher) -> None:
    settings = settings.model_copy(update={"preview_seconds": 20.0})
    ledger = open_ledger(settings)
    job = post(ledger, teacher)
    with attempting(ledger, settings) as attempt:
        show(attempt, teacher)
    assert 20 < ledger.redis.ttl(f"{job_key(job.id)}:live") <= 60
