"""The service around the synthesis: turns a job's unit into a call of the library, and its result into a stored shard.

Unit `"3"` makes shard 3: images, tar on local disk, verified, uploaded with `create`, marked. Unit `"student"` trains
the student that a job's other shards compete with, if it trains one (`student_unit`), and `"forecast-2"` foretells what
more images bring (`forecast_unit`). A job with a budget may leave out its last rounds of shards (`early_end`). Unit
`"finish"` opens when all others are done and writes the files that make a folder of shards a dataset, the manifest
last.
"""

import logging
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from dearkd import tracing
from dearkd.data.manifests import DatasetManifest, count_classes, datasets
from dearkd.data.shard_files import Shard, shard_name
from dearkd.data.shard_info import info_json
from dearkd.data.shard_reader import ShardContents, inspect_shard
from dearkd.errors import CorruptData, NotFound, PoorImages
from dearkd.jobs.measures import IMAGES, SHARD_SECONDS
from dearkd.jobs.model import dataset_of, now
from dearkd.settings import Settings
from dearkd.specs import SynthesisSpec
from dearkd.storage.catalog import StoredFile, Teacher, describe_file, fetch_weights, manifest_bytes, teachers
from dearkd.storage.objects import AlreadyExists
from dearkd.vision.devices import choose_device, made_with
from dearkd.vision.shard_writer import write_samples
from dearkd.vision.teacher_statistics import NEVER_UPDATED, never_updated
from dearkd.vision.teachers import batch_norm_layers, load_teacher
from dearkd.work.attempt import Attempt
from dearkd.work.worker import drain as drain_units
from dearkd_synth.batches import sample_label, shard_samples
from dearkd_synth.engine.compilation import compiled_by
from dearkd_synth.engine.determinism import CUBLAS_WORKSPACE, rounding
from dearkd_synth.feature_map import mapped_shards, shard_part
from dearkd_synth.inversion import DeepInversion
from dearkd_synth.quality import merge_quality, shard_quality, without_parts
from dearkd_synth.service import forecast_unit
from dearkd_synth.service.card import dataset_card
from dearkd_synth.service.early_end import delete_left_out, is_wanted, note_end
from dearkd_synth.service.live import LivePreviews
from dearkd_synth.service.pictures import MAX_STRIPS, side_key, store_map, store_preview, update_preview
from dearkd_synth.service.preview import write_strip
from dearkd_synth.service.stored_student import load_student
from dearkd_synth.service.student_unit import UNIT, fetch_student, make_student
from dearkd_synth.service.timelapse import Timelapse, store_timelapse, timelapse_key
from dearkd_synth.synthesised import Step, SynthesisedShard
from dearkd_synth.watch import require_good, warnings

log = logging.getLogger(__name__)


def drain(job: str) -> None:
    """The rq task: perform units of synthesis jobs until none is left; `job` is only the one that woke the worker."""
    settings = Settings()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
    if settings.torch_threads is not None:
        torch.set_num_threads(settings.torch_threads)
    with ShardMaker() as maker:
        drain_units("synthesis", maker.perform, settings)


class ShardMaker:
    """Performs units; keeps the teacher of the current job, so that a job's shards load it once."""

    def __init__(self) -> None:
        self.device = choose_device()
        self._inversion: DeepInversion | None = None
        self._made_for: tuple[str, bool] | None = None
        """The job, and True if the student that it trains itself takes part."""
        self._foretold: dict[str, Any] = {}
        """The forecast that a job with a budget has when a shard begins, as a metric."""
        self._attempt: Attempt | None = None
        self._began = 0.0
        self._images = 0
        """Images of the shard at work that were counted."""
        self._live = LivePreviews()
        self._timelapse: Timelapse | None = None

    def __enter__(self) -> "ShardMaker":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def perform(self, attempt: Attempt) -> None:
        """Perform one unit of a synthesis job. Whatever it raises ends the attempt or fails the job."""
        spec = attempt.job.synthesis_spec
        try:
            teacher = teachers(attempt.storage).get(spec.teacher)
        except NotFound:
            raise NotFound(f"the teacher {spec.teacher} was deleted after this job was accepted") from None
        if attempt.unit == "finish":
            finish(attempt, spec, teacher)
        elif attempt.unit == UNIT:
            self._train_student(attempt, spec, teacher)
        elif attempt.unit.startswith(forecast_unit.UNIT):
            self._forecast(attempt, spec, teacher)
        elif is_wanted(attempt, spec, int(attempt.unit)):
            self._make_shard(attempt, spec, teacher, int(attempt.unit))

    def _make_shard(self, attempt: Attempt, spec: SynthesisSpec, teacher: Teacher, index: int) -> None:
        key = f"datasets/{dataset_of(attempt.job.id)}/{shard_name(index)}"
        if attempt.storage.exists(key):
            shard = adopt(attempt, spec, index)
        else:
            began = time.monotonic()
            made = self._synthesise(attempt, spec, teacher, index)
            if made.halved:
                attempt.note(f"shard {index}: the device has no memory for whole batches; {made.halved} were halved")
            with attempt.cache.scratch("shard") as folder:
                path = folder / shard_name(index)
                made_by = made_with(self.device) | rounding(self.device)
                if spec.compile:
                    made_by |= compiled_by(self.device)
                with tracing.span("write shard"):
                    said = {"quality": shard_quality(made), "made_with": made_by}
                    shard = write_samples(path, made, spec).model_copy(update=said)
                    check_contents(path, spec, index)
                    beside: dict[str, bytes] = {}
                    if index < MAX_STRIPS:  # nobody looks at those of others: 12 MB each, at 224 px and 20 classes
                        beside["png"] = write_strip(made.images, made.labels)
                    if index in mapped_shards(spec.num_shards):
                        beside["safetensors"] = shard_part(made, spec.num_shards)
                if index == 0:
                    self._watch(attempt, spec, teacher, made, beside["png"], shard)
                if self._timelapse is not None:
                    store_timelapse(attempt, self._timelapse)
                with tracing.span("store shard", {"dearkd.bytes": shard.bytes}):
                    shard = attempt.publish(lambda: _publish_shard(attempt, spec, index, path, shard, beside))
            attempt.measures.observe(SHARD_SECONDS, time.monotonic() - began)
        attempt.stop_reporting()
        attempt.publish(lambda: attempt.ledger.done(attempt.claim, shard))
        update_preview(attempt, spec, teacher, index)

    def _watch(
        self,
        attempt: Attempt,
        spec: SynthesisSpec,
        teacher: Teacher,
        made: SynthesisedShard,
        strip: bytes,
        shard: Shard,
    ) -> None:
        """Note what is suspicious in the first shard; end the job, with a picture, where it is too bad to go on."""
        for warning in warnings(made):
            attempt.note(f"shard 0: {warning}")
        try:
            require_good(made, spec)
        except PoorImages:
            attempt.publish(lambda: store_preview(attempt, spec, teacher, [(strip, shard)]))
            raise

    def _train_student(self, attempt: Attempt, spec: SynthesisSpec, teacher: Teacher) -> None:
        student = make_student(attempt, spec, teacher, self._load_teacher(attempt, teacher))
        attempt.stop_reporting()
        attempt.publish(lambda: attempt.ledger.done(attempt.claim, student))

    def _forecast(self, attempt: Attempt, spec: SynthesisSpec, teacher: Teacher) -> None:
        found = forecast_unit.make_forecast(attempt, spec, teacher, self._load_teacher(attempt, teacher))
        attempt.stop_reporting()
        attempt.publish(lambda: attempt.ledger.done(attempt.claim, found))

    def _load_teacher(self, attempt: Attempt, teacher: Teacher) -> nn.Module:
        with tracing.span("load teacher"):
            weights = fetch_weights(attempt.storage, teacher, attempt.cache)
            loaded = load_teacher(teacher.spec, weights, device=self.device)
        if never_updated(batch_norm_layers(loaded)):
            attempt.note(NEVER_UPDATED)
        return loaded

    def _synthesise(self, attempt: Attempt, spec: SynthesisSpec, teacher: Teacher, index: int) -> SynthesisedShard:
        made_for = (attempt.job.id, spec.adaptive_every is not None and spec.competes(index))
        if self._inversion is None or self._made_for != made_for:
            self._close()
            student: nn.Module | None = None
            if spec.adaptive_student is not None:
                student = load_student(attempt.storage, spec.adaptive_student, teacher.spec, attempt.cache)
            elif spec.competes(index):
                student = fetch_student(attempt, teacher)
            self._inversion = DeepInversion(
                self._load_teacher(attempt, teacher),
                teacher.spec,
                spec,
                device=self.device,
                adaptive_student=student,
                on_step=self._on_step,
            )
            self._made_for = made_for
        found = forecast_unit.latest_forecast(attempt, spec)
        self._foretold = {} if found is None else {"forecast": forecast_unit.shown(found)}
        self._attempt, self._began, self._images = attempt, time.monotonic(), 0
        self._timelapse = Timelapse(teacher) if index == 0 else None
        invert = tracing.span("invert shard", {"dearkd.images": len(shard_samples(spec, index))})
        with self._live.showing(attempt, teacher), invert:
            return self._inversion.shard(index)

    def _on_step(self, step: Step) -> None:
        if self._attempt is None:
            return
        self._attempt.check()
        if step.restarts and step.iteration == 1:
            self._attempt.note(restarted(step, self._attempt.job.synthesis_spec))
        self._live.see(step)
        if self._timelapse is not None:
            self._timelapse.see(step)
        # A batch that is half optimised counts as half its images, so that the bar moves while a batch is made.
        images = step.images_done + step.images * step.share
        rate = images / (time.monotonic() - self._began)
        if images >= self._images + 1:  # less than before where a batch starts again: that counts once
            self._attempt.measures.count(IMAGES, by=int(images) - self._images)
            self._images = int(images)
        metrics = {"shard": step.shard, "batch": step.batch, "iteration": step.iteration, **step.losses}
        metrics |= self._live.figures
        metrics |= self._foretold
        self._attempt.progress(int(images), rate, metrics | ({"restarts": step.restarts} if step.restarts else {}))

    def _close(self) -> None:
        if self._inversion is not None:
            self._inversion.close()
        self._inversion = self._made_for = None


def _publish_shard(
    attempt: Attempt, spec: SynthesisSpec, index: int, path: Path, shard: Shard, beside: dict[str, bytes]
) -> Shard:
    """Store a shard, after its description and what lies `beside` it by suffix; adopt it if storage has it already."""
    for suffix, data in (beside | {"json": manifest_bytes(shard)}).items():
        attempt.storage.put(side_key(attempt, shard, suffix), data)
    key = f"datasets/{dataset_of(attempt.job.id)}/{path.name}"
    return attempt.storage.create_or_adopt(key, path, shard, lambda: adopt(attempt, spec, index))


def restarted(step: Step, spec: SynthesisSpec) -> str:
    """The line of the job's log about a batch that starts again."""
    rate = spec.learning_rate * spec.restart_rate_factor**step.restarts
    return (
        f"shard {step.shard}: batch {step.batch} diverged and starts again at a learning rate of {rate:.3g} "
        f"(restart {step.restarts} of {spec.max_restarts})"
    )


def check_contents(path: Path, spec: SynthesisSpec, index: int) -> ShardContents:
    """Read a written shard as a reader would; raises `CorruptData` if its samples are not the spec's."""
    found = inspect_shard(path)
    expected = Counter(sample_label(spec, sample) for sample in shard_samples(spec, index))
    if found.samples != expected.total():
        raise CorruptData(f"{path.name} holds {found.samples} samples, but its spec asks for {expected.total()}")
    for label in sorted(found.classes | expected):
        if found.classes[label] != expected[label]:
            raise CorruptData(
                f"{path.name} holds {found.classes[label]} samples of class {label}, but its spec asks for "
                f"{expected[label]}: delete it and retry the job"
            )
    return found


def adopt(attempt: Attempt, spec: SynthesisSpec, index: int) -> Shard:
    """The description of a shard that is in storage already, after reading and checking all of it.

    Its `quality` and `made_with` come from the description that its maker stored; without that they are None.

    Raises:
        CorruptData: if it is not what the spec asks for.
    """
    name = shard_name(index)
    with attempt.cache.scratch("adopt") as folder:
        path = folder / name
        attempt.storage.download(f"datasets/{dataset_of(attempt.job.id)}/{name}", path)
        found = check_contents(path, spec, index)
        stored = describe_file(path)
    attempt.note(f"shard {index} lies in storage already: verified and adopted")
    shard = Shard(**stored.model_dump(), samples=found.samples, classes=dict(sorted(found.classes.items())))
    try:
        return Shard.model_validate_json(attempt.storage.read(side_key(attempt, shard, "json")))
    except (NotFound, ValidationError):  # or the note was damaged since
        return shard


def finish(attempt: Attempt, spec: SynthesisSpec, teacher: Teacher) -> None:
    """Write `_info.json`, the preview, the card and then the manifest; complete the job. Idempotent."""
    storage, job = attempt.storage, attempt.job
    identifier = dataset_of(job.id)
    payloads = attempt.ledger.payloads(job.id)
    ended = attempt.ledger.ended_early(job.id)
    rounds = spec.cut_in_rounds
    count = spec.num_shards if ended is None else rounds.shards_before(rounds.of_sample(ended.made))
    shards = [Shard.model_validate_json(payloads[str(i)]) for i in range(count)]
    # One listing, not a request for each shard; only what it lacks, or has otherwise, is asked for by name.
    listed = {stored.key: stored.size for stored in storage.objects(f"datasets/{identifier}")}
    for shard in shards:
        key = f"datasets/{identifier}/{shard.name}"
        if listed.get(key) != shard.bytes and (stored := storage.size(key)) != shard.bytes:
            raise CorruptData(
                f"{shard.name} has {stored} bytes in storage, but {shard.bytes} were written: delete it, retry the job"
            )
    judged = [shard.quality for shard in shards if shard.quality is not None]
    quality = merge_quality(judged) if judged else {}
    shards = [
        shard if shard.quality is None else shard.model_copy(update={"quality": without_parts(shard.quality)})
        for shard in shards
    ]
    if len(judged) < len(shards):
        attempt.note(f"of {len(shards) - len(judged)} shard(s) no quality figures are known: they were adopted")
    if UNIT in payloads:
        student = StoredFile.model_validate_json(payloads[UNIT])
        quality["adaptive_student"] = {"sha256": student.sha256, "trained_on_shards": [*spec.student_shards]}
    foretold = forecast_unit.final_forecast(attempt, spec)
    if foretold is not None:
        quality["forecast"] = forecast_unit.shown(foretold)
    manifest = DatasetManifest(
        id=identifier,
        name=spec.name or job.id,
        created_at=now(),
        owner=job.owner,
        num_samples=sum(shard.samples for shard in shards),
        num_classes=teacher.num_classes,
        image_size=teacher.image_size,
        in_chans=teacher.in_chans,
        classes=count_classes(shards, teacher.class_names, teacher.num_classes),
        shards=shards,
        prefix=f"datasets/{identifier}",
        teacher=teacher.id,
        teacher_sha256=teacher.sha256,
        spec=job.published_spec,
        quality=quality,
        ended_early=ended,
        job=job.id,
        seed=spec.seed,
        made_with=shards[0].made_with if all(shard.made_with == shards[0].made_with for shard in shards) else None,
    )
    # An attempt that lost its lease must not change what lies beside a manifest.
    attempt.confirm()
    if ended is not None:
        delete_left_out(attempt, shards)
    note_end(attempt, spec, ended)
    update_preview(attempt, spec, teacher)
    store_map(attempt, spec, shards)
    storage.put(f"datasets/{identifier}/_info.json", info_json(shards))
    timelapse = storage.exists(timelapse_key(job.id))
    storage.put(f"datasets/{identifier}/README.md", dataset_card(manifest, teacher, timelapse).encode())
    attempt.confirm()
    try:
        datasets(storage).create(manifest)
    except AlreadyExists:
        attempt.note("the manifest lies in storage already: another worker finished first")
    attempt.stop_reporting()
    result = {"dataset": identifier} | ({"ended_early": ended.model_dump()} if ended else {})
    if foretold is not None:
        result |= {"forecast": forecast_unit.shown(foretold)}
    attempt.publish(lambda: attempt.ledger.complete(attempt.claim, result, total=manifest.num_samples))
