"""DeepInversion: images optimised until a frozen teacher sees its own training statistics and the wanted classes.

    with DeepInversion(teacher, teacher_spec, SynthesisSpec.resolve({"teacher": "mine"}, teacher_spec)) as inversion:
        shard = inversion.shard(0)

No Redis, HTTP or storage is needed.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from dearkd import tracing
from dearkd.errors import Diverged, InvalidInput, OutOfMemory
from dearkd.specs import Phase, SynthesisSpec, TeacherSpec
from dearkd.vision.images import decode, encode, pixel_range, quantise, to_input
from dearkd.vision.teachers import check_teacher
from dearkd_synth.batches import sample_label, shard_batches, shard_samples
from dearkd_synth.beginnings import Beginnings
from dearkd_synth.engine.compilation import compilation_errors_told, require_compiler, uncompiled
from dearkd_synth.engine.determinism import reproducible
from dearkd_synth.engine.device_memory import batch_too_large
from dearkd_synth.engine.divergence import DelayedFlag
from dearkd_synth.engine.resizing import resize
from dearkd_synth.labelling import assign_labels, restore_order
from dearkd_synth.objective.objective import Objective
from dearkd_synth.objective.statistics import Statistics
from dearkd_synth.objective.term import FinishedBatch
from dearkd_synth.objective.terms.boundary import logit_margin
from dearkd_synth.parametrisation import Parametrisation
from dearkd_synth.snapshots import Camera
from dearkd_synth.student.student_view import check_student
from dearkd_synth.synthesised import Step, SynthesisedBatch, SynthesisedShard
from dearkd_synth.views import Views

__all__ = ["DeepInversion", "Step", "SynthesisedBatch", "SynthesisedShard", "batch_seed", "rate_factor"]

STEPS_BETWEEN_READINGS = 25
"""Steps between two readings of the losses, each of which waits for the device. A total beyond its bound is noticed
without waiting (`DelayedFlag`): on the CPU at the step itself."""


class DeepInversion:
    """Makes the shards of a spec from a teacher.

    Works on a copy of the teacher, so that the one given is never changed; `close` frees it.

    Args:
        teacher: in eval mode, with finite weights and BatchNorm layers.
        teacher_spec: its classes and preprocessing.
        spec: complete, as from `SynthesisSpec.resolve`.
        device: where to compute.
        adaptive_student: the network that the adaptive term competes with; needed where that weighs anything, but not
            for `spec.student_shards`, on whose images `train_adaptive_student` trains one
            (`dearkd_synth.student.adaptive_student`). It takes the teacher's normalised input at every phase's size
            (`dearkd_synth.student.student_view.StudentView`).
        on_step: called after every step, without waiting for the device. What it raises ends the work and is passed on.

    Raises:
        InvalidInput: if the teacher or the student cannot be used with this spec, or the machine cannot compile what it
            asks to be compiled; before any work.
    """

    def __init__(
        self,
        teacher: nn.Module,
        teacher_spec: TeacherSpec,
        spec: SynthesisSpec,
        *,
        device: torch.device | str = "cpu",
        adaptive_student: nn.Module | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> None:
        check_teacher(teacher, teacher_spec, teacher_spec.image_size)
        for i, phase in enumerate(spec.phases):
            if phase.input_size != teacher_spec.image_size:
                check_teacher(teacher, teacher_spec, phase.input_size, pointer=f"/phases/{i}/input_size")
        self.spec = spec
        self.teacher_spec = teacher_spec
        self.device = torch.device(device)
        if spec.compile:
            require_compiler(self.device)
        self._on_step = on_step
        student = None
        if spec.weights.adaptive > 0 and adaptive_student is not None:
            student = self._frozen_copy(adaptive_student)
            check_student(student, teacher_spec, spec)
        elif spec.weights.adaptive > 0 and spec.adaptive_every is None:
            raise InvalidInput.at(
                "/adaptive_student", f"weights.adaptive is {spec.weights.adaptive}, but there is no student"
            )
        self._has_student = student is not None
        self._objective: Objective | None = Objective(spec, self._frozen_copy(teacher), student)
        black, white = (bound.flatten().tolist() for bound in pixel_range(teacher_spec, torch.empty(0)))
        self._beginnings = Beginnings(spec, black, white, self.device)
        self._iterations = sum(phase.iterations for phase in spec.phases)
        self._work = sum(phase.iterations * phase.input_size**2 for phase in spec.phases)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the copies of teacher and student; nothing can be made any more. A second call does nothing."""
        self._objective = None

    def shard(self, index: int) -> SynthesisedShard:
        """Make a shard: a function of the spec and the index alone, whatever this object made before.

        The same pixels for the same versions, type of device and number of threads.

        Raises:
            IndexError: if the spec has no such shard.
            ValueError: if it competes with a student, and none was given.
            Diverged: if the optimisation left the finite numbers or `divergence_factor`, even after `max_restarts`
                restarts.
            OutOfMemory: if the device has no memory for a batch, saying how large a one would fit.
            InvalidInput: if torch cannot compile the teacher's step; at the first.
        """
        samples = shard_samples(self.spec, index)
        competes = self.spec.competes(index)
        if competes and not self._has_student:
            raise ValueError(
                f"shard {index} competes with a student: train one on the images of shards "
                f"{[*self.spec.student_shards]} and give it to another DeepInversion"
            )
        objective = self._open()
        objective.compete(competes)
        self._begin_shard(objective)
        made: list[SynthesisedBatch] = []
        waiting = [
            (batch, batch_seed(self.spec.seed, index, number))
            for number, batch in enumerate(shard_batches(self.spec, index))
        ]
        halved = 0
        batch_limit = self.spec.batch_size
        while waiting:
            batch, seed = waiting.pop(0)
            labels = [sample_label(self.spec, sample) for sample in batch]
            if len(batch) <= batch_limit:
                start = self._start(len(batch), shard=index, batch=len(made), images_done=batch.start - samples.start)
                with tracing.span("invert batch", {"dearkd.batch": start.batch, "dearkd.images": len(batch)}):
                    one = self._make_if_it_fits(labels, seed, start)
                if one is not None:
                    made.append(one)
                    continue
                if not self.spec.halve_batches or len(batch) == 1:
                    raise self._out_of_memory(labels)
                batch_limit = len(batch) - 1  # those to come need not fail first
            middle = len(batch) // 2
            halved += 1
            waiting[:0] = [(part, batch_seed(seed, part.start, part.stop)) for part in (batch[:middle], batch[middle:])]
        return SynthesisedShard(index=index, samples=samples, batches=made, halved=halved)

    def batch(self, labels: Sequence[int], seed: int, *, continue_shard: bool = False) -> SynthesisedBatch:
        """Make one batch outside any shard.

        Args:
            labels: a class for each image.
            seed: of noise, roll and flip.
            continue_shard: True to make it as the next batch of a shard, after those made before: terms that keep
                finished batches count them in. False to make it as a shard's first.

        Raises:
            Diverged: as `shard`.
            OutOfMemory: likewise.
        """
        objective = self._open()
        objective.compete(self._has_student)
        if not continue_shard:
            self._begin_shard(objective)
        made = self._make_if_it_fits(labels, seed, self._start(len(labels)))
        if made is None:
            raise self._out_of_memory(labels)
        return made

    def _begin_shard(self, objective: Objective) -> None:
        objective.begin_shard()
        self._beginnings.begin_shard()

    def _open(self) -> Objective:
        if self._objective is None:
            raise ValueError("this DeepInversion is closed: make another")
        return self._objective

    def _start(self, images: int, *, shard: int | None = None, batch: int = 0, images_done: int = 0) -> Step:
        return Step(
            shard=shard,
            batch=batch,
            iteration=0,
            iterations=self._iterations,
            share=0.0,
            images=images,
            images_done=images_done,
            losses={},
        )

    def _make_if_it_fits(self, labels: Sequence[int], seed: int, start: Step) -> SynthesisedBatch | None:
        """Make a batch; None if the device has no memory for it."""
        try:
            with compilation_errors_told():
                return self._make(labels, seed, start)
        except torch.OutOfMemoryError:
            # Only behind this block are the tensors gone that the exception's traceback holds.
            pass
        return None

    def _make(self, labels: Sequence[int], seed: int, start: Step) -> SynthesisedBatch:
        objective = self._open()
        targets = torch.tensor(labels, device=self.device)
        with reproducible(self.device):
            while True:
                generator = torch.Generator().manual_seed(seed)
                made_of, labelled = self._beginnings.begin(targets, generator)
                own = targets if labelled or self.spec.unlabelled_iterations == 0 else None
                views = Views(self.spec, generator)
                try:
                    with Camera(self.teacher_spec) as camera:
                        x, end, statistics = self._optimise(objective, made_of, targets, own, views, start, camera)
                    break
                except Diverged:
                    if start.restarts == self.spec.max_restarts:
                        raise
                    start = replace(start, restarts=start.restarts + 1)
            pixels, files = self._as_stored(quantise(resize(x, self.teacher_spec.image_size), self.teacher_spec))
            with reproducible(self.device, tf32=False):
                made = self._judge(objective, pixels, targets, end, files)
        self._beginnings.keep(made_of, x, targets)
        objective.keep(FinishedBatch(labels=targets, features=made.features.to(self.device), statistics=statistics))
        return made

    def _optimise(
        self,
        objective: Objective,
        made_of: Parametrisation,
        labels: Tensor,
        own: Tensor | None,
        views: Views,
        start: Step,
        camera: Camera,
    ) -> tuple[Tensor, Step, list[Statistics]]:
        """The optimised images (N, C, r, r) of the last phase, the last step, and each phase's last statistics."""
        spec, step = self.spec, replace(start, camera=camera)
        camera.labels = None if own is None else own.tolist()
        rate = self._rate(start)
        statistics: list[Statistics] = []
        work, bound = 0, math.inf
        beyond = DelayedFlag.on(self.device)
        for number, phase in enumerate(spec.phases):
            made_of.begin_phase(phase.resolution, rate)
            camera.aim(made_of.current, lambda: objective.logits)
            objective.begin_phase(number, labels)
            for iteration in range(phase.iterations):
                made_of.set_rate_factor(rate_factor(spec, phase, iteration))
                if own is None and step.iteration == spec.unlabelled_iterations:
                    own = assign_labels(labels, objective.logits)
                    camera.labels = own.tolist()
                x = made_of.images()
                view = views.show(x, phase, step.iteration)
                losses = objective.losses(x, view, own)
                total = objective.total(losses)
                made_of.step(total)
                work += phase.input_size**2
                step = replace(step, iteration=step.iteration + 1, share=work / self._work)
                beyond.raise_if(~(total.detach() <= bound))  # NaN too
                if step.iteration % STEPS_BETWEEN_READINGS == 1 or step.iteration == self._iterations or beyond.poll():
                    step = replace(step, losses=_read(losses | {"total": total}))
                    self._require_bounded(step, bound, beyond.wait())
                    if step.iteration == 1:
                        bound = spec.divergence_factor * (
                            step.losses["total"] + sum(spec.weights.model_dump().values())
                        )
                if self._on_step is not None:
                    self._on_step(step)
            statistics.append(objective.statistics)
        x = made_of.current.detach()
        if not torch.isfinite(x).all():
            raise self._diverged(step, "left the finite numbers")
        if own is None:
            own = assign_labels(labels, objective.logits)
        return x[restore_order(labels, own)], step, statistics

    def _as_stored(self, pixels: Tensor) -> tuple[Tensor, Sequence[bytes] | None]:
        """The pixels (N, C, H, W), uint8, that a reader will see, and their files where the format is not lossless."""
        if self.spec.image_format != "jpeg":
            return pixels, None
        files = [encode(image, self.spec.image_format) for image in pixels.cpu()]
        return torch.stack([decode(file, self.teacher_spec.in_chans) for file in files]).to(self.device), files

    @torch.no_grad()
    def _judge(
        self, objective: Objective, pixels: Tensor, labels: Tensor, end: Step, files: Sequence[bytes] | None
    ) -> SynthesisedBatch:
        """The finished batch: its pixels (N, C, H, W), uint8, as stored, and the teacher's float32 answers to them."""
        inputs = to_input(pixels, self.teacher_spec).contiguous(memory_format=torch.channels_last)
        by_class = {label: objective.judge(inputs[labels == label])[2].item() for label in labels.unique().tolist()}
        features, logits, distance = objective.judge(inputs)
        first_layer_variance = objective.first_layer_variance
        return SynthesisedBatch(
            images=pixels.cpu(),
            labels=labels.cpu(),
            predicted=logits.argmax(dim=1).cpu(),
            confidence=logits.softmax(dim=1).gather(1, labels[:, None])[:, 0].cpu(),
            margin=logit_margin(logits, labels).cpu(),
            features=features.cpu(),
            logits=logits.cpu(),
            batch_norm_distance=distance.item(),
            class_batch_norm_distance=by_class,
            first_layer_variance=first_layer_variance,
            losses=end.losses,
            restarts=end.restarts,
            files=files,
        )

    def _frozen_copy(self, model: nn.Module) -> nn.Module:
        # In float32, whatever the one given is in: so are the images.
        copied = copy.deepcopy(model).float().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return copied.eval().requires_grad_(False)  # type: ignore[no-any-return]

    def _require_bounded(self, step: Step, bound: float, beyond: bool) -> None:
        if not math.isfinite(step.losses["total"]):
            raise self._diverged(step, "left the finite numbers")
        if beyond:
            raise self._diverged(step, f"came to a loss beyond {bound:.3g} (divergence_factor)")

    def _diverged(self, step: Step, how: str) -> Diverged:
        place = "the batch" if step.shard is None else f"batch {step.batch} of shard {step.shard}"
        return Diverged(
            f"{place} {how} within its first {step.iteration} iterations "
            f"({', '.join(f'{name} {value:.3g}' for name, value in step.losses.items())}): "
            f"lower learning_rate ({self._rate(step):.3g} after {step.restarts} restarts) or the weights"
        )

    def _rate(self, step: Step) -> float:
        """The learning rate before its schedule, lower after each restart."""
        return self.spec.learning_rate * self.spec.restart_rate_factor**step.restarts

    def _out_of_memory(self, labels: Sequence[int]) -> OutOfMemory:
        return batch_too_large(
            len(labels),
            max(phase.input_size for phase in self.spec.phases),
            self.device,
            classes_per_batch=self.spec.classes_per_batch,
            fits=lambda size: self._has_memory_for(labels[:size]),
        )

    def _has_memory_for(self, labels: Sequence[int]) -> bool:
        """Try a step at the largest size that the teacher is shown, and the judgement of finished images."""
        objective = self._open()
        largest = max(self.spec.phases, key=lambda phase: phase.input_size)
        targets = torch.tensor(labels, device=self.device)
        try:
            made_of, _ = self._beginnings.begin(targets, torch.Generator().manual_seed(0))
            made_of.begin_phase(largest.resolution, self.spec.learning_rate)
            x = made_of.images()
            with uncompiled():  # each size that is tried would be compiled
                objective.total(objective.losses(x, resize(x, largest.input_size), targets)).backward()
            with torch.no_grad():
                objective.judge(resize(x.detach(), self.teacher_spec.image_size))
        except torch.OutOfMemoryError:
            return False
        return True


def batch_seed(seed: int, shard: int, batch: int) -> int:
    """A seed for each batch of each shard, unrelated to its neighbours': the first 63 bits of a SHA-256."""
    digest = hashlib.sha256(f"{seed}/{shard}/{batch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def rate_factor(spec: SynthesisSpec, phase: Phase, iteration: int) -> float:
    """The factor of the learning rate at an iteration of a phase (counted from 0), in [0, 1].

    Linear warm-up, then 1 or a cosine to zero; both anew in each phase, as in DeepInversion's code. A phase shorter
    than two warm-ups warms up for half its iterations [R].
    """
    warmup = min(spec.warmup_iterations, phase.iterations // 2)
    if iteration < warmup:
        return (iteration + 1) / warmup
    if spec.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (iteration - warmup) / (phase.iterations - warmup)))


def _read(losses: Mapping[str, Tensor]) -> dict[str, float]:
    """The values of scalars on the device, in one transfer."""
    return dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
