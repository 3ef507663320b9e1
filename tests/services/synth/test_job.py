"""The service around the synthesis on a real Redis and real files, in this process: what a job leaves in storage."""

import io
import json
import re
import signal
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dearkd.data.feature_maps import FEATURE_MAP, FeatureMap
from dearkd.data.manifests import datasets
from dearkd.identifiers import new_id
from dearkd.jobs import measures
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import dataset_of
from dearkd.local.embedded_redis import embedded_redis
from dearkd.settings import Settings
from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd.storage.catalog import Teacher, describe_file, teachers
from dearkd.vision.teacher_statistics import NEVER_UPDATED
from dearkd.work.attempt import Attempt
from dearkd.work.worker import drain, open_ledger
from dearkd_synth.service.job import ShardMaker, _publish_shard
from tests.support.webhook_receiver import NOBODY, says_nothing_of
from tests.unit.synth.test_adaptive_student import store_student

pytestmark = pytest.mark.services

OWNER = "0123456789abcdef"


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    folder = tmp_path / "redis"
    folder.mkdir()
    handler = signal.getsignal(signal.SIGTERM)  # a worker's loop puts its own in place
    with embedded_redis(folder) as url:
        yield Settings(redis_url=url, storage_url=f"file://{tmp_path}/storage", cache_dir=tmp_path / "cache")
    signal.signal(signal.SIGTERM, handler)


def store_teacher(ledger: Ledger, small_teacher, folder: Path) -> Teacher:
    model, spec = small_teacher()
    weights = folder / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    stored = describe_file(weights)
    teacher = Teacher(
        id=new_id("tch"),
        created_at=datetime.now(UTC),
        **spec.model_dump(),
        sha256=stored.sha256,
        bytes=stored.bytes,
        parameters=1,
        batch_norm_layers=1,
    )
    catalog = teachers(ledger.store.storage)
    ledger.store.storage.put(catalog.key(teacher.id, "weights.safetensors"), weights)
    catalog.create(teacher)
    return teacher


def test_a_job_that_shall_be_compiled_where_there_is_no_compiler_fails_with_the_remedy(
    settings: Settings, small_teacher, tmp_path: Path
) -> None:
    ledger = open_ledger(settings)
    teacher = store_teacher(ledger, small_teacher, tmp_path)
    spec = SynthesisSpec.resolve({"teacher": teacher.id, "images_per_class": 2, "compile": True}, teacher.spec)
    job = ledger.store.create_synthesis(spec, images=spec.num_samples)
    with ShardMaker() as maker, torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        drain("synthesis", maker.perform, settings)
    ended = ledger.store.get(job.id)
    assert ended.status == "failed"
    assert ended.error is not None
    assert ended.error.code == "invalid_input"
    assert "set compile to false" in ended.error.message


def test_a_job_with_a_stored_student_and_logits_and_a_rate_that_is_too_high(
    settings: Settings, small_teacher, tmp_path: Path
) -> None:
    ledger = open_ledger(settings)
    storage = ledger.store.storage
    teacher = store_teacher(ledger, small_teacher, tmp_path)
    student, _ = store_student(storage, tmp_path / "model")
    posted = {
        "teacher": teacher.id,
        "images_per_class": 4,
        "batch_size": 10,
        "shard_samples": 10,
        "phases": [{"resolution": 16, "iterations": 2}],
        "min_teacher_accuracy": 0,
        "weights": {"adaptive": 0.5, "boundary": 0.0},
        "adaptive_student": student,
        "store_logits": True,
        "clip": False,
        "learning_rate": 1e20,
        "restart_rate_factor": 1e-20,
        "webhook": NOBODY,
    }
    spec = SynthesisSpec.resolve(posted, teacher.spec)
    job = ledger.store.create_synthesis(spec, images=spec.num_samples, owner=OWNER)
    with ShardMaker() as maker:
        assert drain("synthesis", maker.perform, settings) == 3
    ended = ledger.store.get(job.id)
    assert ended.status == "succeeded", ended.error
    manifest = datasets(storage).get(dataset_of(job.id))
    assert manifest.num_samples == 20
    measured = {name.decode(): float(value) for name, value in ledger.redis.hgetall(measures.KEY).items()}
    assert measured.pop(measures.IMAGES.field()) == 20, "a batch that starts again counts once"
    assert 0 < measured.pop(measures.SHARD_SECONDS.total) < 600
    assert sum(measured.values()) == 2, "the shards, in some buckets"
    assert manifest.owner == OWNER
    assert manifest.quality is not None
    assert manifest.quality["restarts"] == 2
    assert len(manifest.quality["outliers"]) == 20
    assert manifest.spec is not None
    assert manifest.spec["adaptive_student"] == student
    assert manifest.facts.stored_logits
    storage.download(f"{manifest.prefix}/{manifest.shards[1].name}", tmp_path / "shard.tar")
    with tarfile.open(tmp_path / "shard.tar") as tar:
        names = [name.split(".", 1) for name in tar.getnames()]
    assert {key for key, _ in names} == {f"{index:09d}" for index in range(10, 20)}
    assert {suffix for _, suffix in names} == {"cls", "json", "logits.npy", "png"}
    found = FeatureMap.model_validate_json(storage.read(f"{manifest.prefix}/{FEATURE_MAP}"))
    assert [point.key for point in found.points] == [f"{index:09d}" for index in range(20)]
    assert Counter(point.label for point in found.points) == {one.index: one.samples for one in manifest.classes}
    info = json.loads(storage.read(f"{manifest.prefix}/_info.json"))
    assert info["splits"]["train"]["shard_lengths"] == [10, 10]
    messages = [event.data.get("message", "") for event in ledger.store.events(job.id, limit=100, after=None)[0]]
    told = [message for message in messages if "diverged and starts again at a learning rate of 1 " in message]
    assert len(told) == 2
    assert ended.metrics is not None
    assert ended.metrics["restarts"] == 1
    assert all("(restart 1 of 3)" in message for message in told)
    assert manifest.made_with is not None
    assert {"dearkd", "torch", "timm", "pillow", "device", "threads"} <= manifest.made_with.keys()
    card = storage.read(f"{manifest.prefix}/README.md").decode()
    assert f"weights sha256 `{teacher.sha256}`" in card
    assert says_nothing_of(NOBODY, storage, manifest.prefix)


def plain(teacher: Teacher) -> SynthesisSpec:
    """Three shards of ten images, made quickly."""
    posted = {
        "teacher": teacher.id,
        "images_per_class": 6,
        "batch_size": 10,
        "shard_samples": 10,
        "phases": [{"resolution": 16, "iterations": 2}],
        "min_teacher_accuracy": 0,
    }
    return SynthesisSpec.resolve(posted, teacher.spec)


def test_a_job_whose_first_shard_comes_out_badly_ends_with_a_picture_and_makes_no_more(
    settings: Settings, small_teacher, tmp_path: Path
) -> None:
    ledger = open_ledger(settings)
    storage = ledger.store.storage
    spec = plain(store_teacher(ledger, small_teacher, tmp_path)).model_copy(update={"min_teacher_accuracy": 0.99})
    job = ledger.store.create_synthesis(spec, images=spec.num_samples)
    with ShardMaker() as maker:
        assert drain("synthesis", maker.perform, settings) == 1
    ended = ledger.store.get(job.id)
    assert ended.status == "failed"
    assert ended.error is not None
    assert (ended.error.code, ended.error.retryable) == ("poor_images", False)
    assert re.search(r"of the first 10 images .* min_teacher_accuracy is 0\.99; no more were made", ended.error.message)
    prefix = f"datasets/{dataset_of(job.id)}"
    assert Image.open(io.BytesIO(storage.read(f"{prefix}/preview.png"))).height == 5 * 66 + 2
    assert [stored.key for stored in storage.objects(prefix) if stored.key.endswith(".tar")] == []


def test_the_preview_is_there_with_the_first_shard_and_grows_with_each(
    settings: Settings, small_teacher, tmp_path: Path
) -> None:
    ledger = open_ledger(settings)
    storage = ledger.store.storage
    spec = plain(store_teacher(ledger, small_teacher, tmp_path))
    job = ledger.store.create_synthesis(spec, images=spec.num_samples)
    prefix = f"datasets/{dataset_of(job.id)}"
    widths: list[tuple[str, int]] = []
    with ShardMaker() as maker:

        def perform(attempt: Attempt) -> None:
            maker.perform(attempt)
            widths.append((attempt.unit, Image.open(io.BytesIO(storage.read(f"{prefix}/preview.png"))).width))

        assert drain("synthesis", perform, settings) == 4
    assert [unit for unit, _ in widths] == ["0", "1", "2", "finish"]
    first = widths[0][1]
    # Two images of each class a shard, in cells of 64 px with 2 px between them.
    assert [width - first for _, width in widths] == [0, 2 * 66, 4 * 66, 4 * 66]


def test_shards_that_were_made_differently_say_so_each_for_itself(
    settings: Settings, small_teacher, tmp_path: Path
) -> None:
    """A job that two kinds of workers share: here the number of threads changes between its shards."""
    ledger = open_ledger(settings)
    spec = plain(store_teacher(ledger, small_teacher, tmp_path))
    job = ledger.store.create_synthesis(spec, images=spec.num_samples)
    threads = torch.get_num_threads()
    try:
        with ShardMaker() as maker:

            def perform(attempt: Attempt) -> None:
                torch.set_num_threads(2 if attempt.unit == "1" else 1)
                maker.perform(attempt)

            drain("synthesis", perform, settings)
    finally:
        torch.set_num_threads(threads)
    manifest = datasets(ledger.store.storage).get(dataset_of(job.id))
    assert manifest.made_with is None
    assert [shard.made_with["threads"] for shard in manifest.shards if shard.made_with] == [1, 2, 1]


def test_shards_of_which_nothing_is_known_but_their_bytes_make_a_dataset_without_figures(
    settings: Settings, small_teacher, tmp_path: Path
) -> None:
    """Whoever made them left no description, or that of other bytes: they are verified, adopted and not judged."""
    ledger = open_ledger(settings)
    storage = ledger.store.storage
    spec = plain(store_teacher(ledger, small_teacher, tmp_path))
    jobs = [ledger.store.create_synthesis(spec, images=spec.num_samples) for _ in range(2)]
    with ShardMaker() as maker:
        assert drain("synthesis", maker.perform, settings) == 8
    made, other = (datasets(storage).get(dataset_of(job.id)) for job in jobs)
    assert made.shards == other.shards
    assert made.made_with == made.shards[0].made_with is not None

    third = ledger.store.create_synthesis(spec, images=spec.num_samples)
    for shard in made.shards:
        storage.download(f"{made.prefix}/{shard.name}", tmp_path / shard.name)
        storage.put(f"datasets/{dataset_of(third.id)}/{shard.name}", tmp_path / shard.name)
    with ShardMaker() as maker:
        assert drain("synthesis", maker.perform, settings) == 4
    ended = ledger.store.get(third.id)
    assert ended.status == "succeeded", ended.error
    adopted = datasets(storage).get(dataset_of(third.id))
    assert [shard.sha256 for shard in adopted.shards] == [shard.sha256 for shard in made.shards]
    assert adopted.quality == {}
    assert adopted.made_with is None
    messages = [event.data.get("message", "") for event in ledger.store.events(third.id, limit=100, after=None)[0]]
    assert any("of 3 shard(s) no quality figures are known" in message for message in messages)


def test_a_job_of_large_images_of_many_classes_ends_with_a_picture(
    settings: Settings, small_teacher, tmp_path: Path
) -> None:
    """17 classes of 256 px at full size would be a strip of 4096 × 4352 pixels, which no reader takes."""
    ledger = open_ledger(settings)
    teacher = store_teacher(ledger, lambda: small_teacher(image_size=256, num_classes=17), tmp_path)
    posted = {
        "teacher": teacher.id,
        "images_per_class": 1,
        "classes_per_batch": 17,
        "batch_size": 17,
        "phases": [{"resolution": 16, "input_size": 32, "iterations": 1}],
        "min_teacher_accuracy": 0,
        "jitter": 0,
    }
    spec = SynthesisSpec.resolve(posted, teacher.spec)
    job = ledger.store.create_synthesis(spec, images=spec.num_samples)
    with ShardMaker() as maker:
        assert drain("synthesis", maker.perform, settings) == 2
    ended = ledger.store.get(job.id)
    assert ended.status == "succeeded", ended.error
    grid = Image.open(io.BytesIO(ledger.store.storage.read(f"datasets/{dataset_of(job.id)}/preview.png")))
    assert grid.height == 17 * (112 + 2) + 2
    assert "preview could not be made" not in ledger.log.read(job.id)


def test_a_teacher_that_was_trained_in_eval_mode_is_noted(settings: Settings, small_teacher, tmp_path: Path) -> None:
    ledger = open_ledger(settings)

    def noted(teacher: Teacher) -> bool:
        spec = plain(teacher).model_copy(update={"images_per_class": 2})
        job = ledger.store.create_synthesis(spec, images=spec.num_samples)
        with ShardMaker() as maker:
            drain("synthesis", maker.perform, settings)
        return NEVER_UPDATED in ledger.log.read(job.id)

    def untouched() -> tuple[torch.nn.Module, TeacherSpec]:
        model, spec = small_teacher(seed=1)
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.reset_running_stats()
        return model, spec

    assert noted(store_teacher(ledger, untouched, tmp_path))
    assert not noted(store_teacher(ledger, small_teacher, tmp_path))


def test_a_preview_that_cannot_be_made_is_noted_and_ends_no_job(
    settings: Settings, small_teacher, tmp_path: Path
) -> None:
    ledger = open_ledger(settings)
    storage = ledger.store.storage
    spec = plain(store_teacher(ledger, small_teacher, tmp_path))
    job = ledger.store.create_synthesis(spec, images=spec.num_samples)
    with ShardMaker() as maker:

        def perform(attempt: Attempt) -> None:
            for note in storage.objects(f"jobs/{job.id}/shards"):
                if note.key.endswith(".png"):
                    storage.put(note.key, b"no image")
            maker.perform(attempt)

        assert drain("synthesis", perform, settings) == 4
    ended = ledger.store.get(job.id)
    assert ended.status == "succeeded", ended.error
    assert "the preview could not be made: CorruptData" in ledger.log.read(job.id)


def test_who_comes_too_late_leaves_the_winners_figures_alone(settings: Settings, small_teacher, tmp_path: Path) -> None:
    """Other bytes of the same shard, as another kind of device makes them: stored by one, then by the other."""
    ledger = open_ledger(settings)
    storage = ledger.store.storage
    spec = plain(store_teacher(ledger, small_teacher, tmp_path))
    first, late = (
        ledger.store.create_synthesis(each, images=spec.num_samples)
        for each in (spec, spec.model_copy(update={"seed": 1}))
    )
    with ShardMaker() as maker:
        drain("synthesis", maker.perform, settings)
    winner, other = (datasets(storage).get(dataset_of(job.id)) for job in (first, late))
    assert winner.shards[0].sha256 != other.shards[0].sha256

    third = ledger.store.create_synthesis(spec, images=spec.num_samples)
    claim = ledger.claim("synthesis", 60.0)
    assert claim is not None
    name = winner.shards[0].name
    files = [tmp_path / "winner" / name, tmp_path / "late" / name]
    with Attempt(claim, ledger.store.get(third.id), ledger, settings, threading.Event()) as attempt:
        kept = []
        for file, made in zip(files, (winner, other), strict=True):
            file.parent.mkdir()
            storage.download(f"{made.prefix}/{name}", file)
            kept.append(_publish_shard(attempt, spec, 0, file, made.shards[0], {"png": b"strip"}))
    assert kept == [winner.shards[0], winner.shards[0]]
