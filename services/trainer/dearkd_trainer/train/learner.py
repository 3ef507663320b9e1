"""The learner: the student with its teacher, aligners, optimiser, schedule and averaged weights, step by step."""

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dearkd.specs import StageOneSpec, Task, TrainingSpec
from dearkd_trainer.data import loader
from dearkd_trainer.data.recipe import (
    Mixing,
    autocast,
    create_average,
    create_optimizer,
    create_schedule,
    drop_aligners,
)
from dearkd_trainer.data.world import World
from dearkd_trainer.model.student import Student, create_student
from dearkd_trainer.record.meter import TeacherClock
from dearkd_trainer.train.aligner import Aligner, Pair, choose_pairs, named_pairs
from dearkd_trainer.train.losses import distils, stage_one_loss, stage_two_loss
from dearkd_trainer.train.teacher import FrozenTeacher


class Learner:
    """All that a step reads or changes, except the images.

    Every process of a run has the same one: gradients are averaged before the optimiser sees them.

    Args:
        spec: of the run.
        task: the student's.
        teacher: prepared for the task, on the device; None if stage one is over or uses none.
        epoch: epochs done.
        steps_per_epoch: turns epochs into steps.
        sample: gives training images (N, in_chans, H, W), normalised, on the device: on them the teacher's features are
            measured.
        initial: whose weights the student begins with; None: with random ones.
        device: where to compute.
        world: who learns together.

    Raises:
        InvalidInput: if the teacher cannot give the features that stage one asks for.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        *,
        task: Task,
        teacher: FrozenTeacher | None,
        epoch: int,
        steps_per_epoch: int,
        sample: Callable[[], Tensor],
        initial: Student | None,
        device: torch.device,
        world: World,
    ) -> None:
        self.spec, self.device, self.world = spec, device, world
        self.teacher = teacher
        self.steps_per_epoch = steps_per_epoch
        self.clock = TeacherClock(device)
        pairs: list[Pair] = []
        with loader.preserved_generators():
            torch.manual_seed(loader.derive_seed(spec.seed, loader.WEIGHTS))
            self.student = create_student(spec.student, task.num_classes, task.in_chans).to(device)
            if teacher is not None and spec.stage_one.weights.hidden:
                stages = teacher.stages()
                chosen = spec.stage_one.pairs
                pairs = choose_pairs(self.student, stages) if chosen is None else named_pairs(chosen, stages)
            if initial is not None:
                self.student.begin_from(initial)
            shapes = self.student.hidden_shapes
            aligners = [Aligner(shapes[pair.block].channels, pair.stage).to(device) for pair in pairs]
        if teacher is not None and pairs:
            moments = teacher.feature_moments(sample(), [pair.stage.index for pair in pairs])
            for pair, aligner in zip(pairs, aligners, strict=True):
                aligner.take(moments[pair.stage.index])
        self.optimizer = create_optimizer(self.student, nn.ModuleList(aligners), spec.optimizer)
        self.average = create_average(self.student, spec.optimizer.model_ema_half_life, steps_per_epoch)
        self.mixing = Mixing(spec.augmentation, task.num_classes)
        self._enter(1 if epoch < spec.stage_one.epochs else 2, nn.ModuleList(aligners), pairs)

    @property
    def evaluated(self) -> Student:
        """The weights that are evaluated and exported: averaged, where the spec asks for averaging."""
        return self.student if self.average is None else cast(Student, self.average.module)

    @property
    def aligners(self) -> nn.ModuleList:
        return self.objective.aligners

    @property
    def pairs(self) -> Sequence[Pair]:
        return self.objective.pairs

    def leave_stage_one(self) -> None:
        """Free the teacher and everything that only served to learn from it."""
        drop_aligners(self.optimizer)
        self.teacher = None
        # The hooks by which it averages gradients stay on the student until the old wrapper is gone.
        del self._shared, self.objective
        gc.collect()
        self._enter(2, nn.ModuleList(), [])

    def step(
        self, number: int, images: Tensor, labels: Tensor, logits: Tensor | None = None, *, global_batch: int
    ) -> dict[str, Tensor]:
        """One step of the optimiser, on the gradient of the mean loss over the whole batch of all processes.

        Args:
            number: of the step, from the run's beginning: with the seed it decides all that is random.
            images: (B, in_chans, H, W), this process's part of the batch, normalised.
            labels: (B,).
            logits: (B, num_classes), the teacher's stored ones; None to run the teacher itself.
            global_batch: images of all processes together.

        Returns:
            The loss and its terms, means over the whole batch.
        """
        self._seed(number)
        self.schedule.step_update(number - self._schedule_begins)
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        images, target = self.mixing(images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        terms: dict[str, Tensor] = {}
        # Where fewer processes learn than the spec has, each takes more parts, not larger ones.
        parts = min(-(-self.spec.grad_accum_steps * self.spec.processes // self.world.size), len(images))
        stored = [None] * parts if logits is None else logits.to(self.device, non_blocking=True).tensor_split(parts)
        batch_parts = zip(images.tensor_split(parts), target.tensor_split(parts), stored, strict=True)
        for place, some in enumerate(batch_parts, 1):
            share = len(some[0]) / global_batch
            with self._gradients_travel(place == parts):
                found = self._terms(*some)
                # The processes' gradients are averaged, as if all had as many images.
                (found["loss"] * (share * self.world.size)).backward()
            for name, term in found.items():
                part = term.detach() * share
                terms[name] = terms[name] + part if name in terms else part
        if self.spec.optimizer.clip_grad is not None:
            trained = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
            nn.utils.clip_grad_norm_(trained, self.spec.optimizer.clip_grad)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.student, number + 1)
        return self.world.total(terms)

    def is_finite(self) -> bool:
        """True if all that a checkpoint would hold is finite: weights of student, average and aligners, moments."""
        average = [] if self.average is None else self.average.module.parameters()
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        held = [*self.student.parameters(), *average, *self.aligners.parameters(), *moments]
        return all(bool(value.isfinite().all()) for value in held if isinstance(value, Tensor))

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {
            "student": self.student.state_dict(),
            "average": self.average.module.state_dict() if self.average else None,
            "aligners": self.aligners.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint of the same stage."""
        self.student.load_state_dict(state["student"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        # Older ones know no measure: theirs are 0 and 1, which change nothing.
        unmeasured = {
            name: torch.full_like(buffer, name.endswith("std")) for name, buffer in self.aligners.named_buffers()
        }
        self.aligners.load_state_dict(unmeasured | state["aligners"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _enter(self, stage: int, aligners: nn.ModuleList, pairs: Sequence[Pair]) -> None:
        spec = self.spec
        one = spec.stage_one if stage == 1 else None
        self.objective = Objective(self.student, aligners, pairs, one, spec.augmentation.smoothing)
        self._shared: nn.Module = self.objective
        if self.world.size > 1:
            # What a loss does not depend on gets no gradient, and must not be waited for.
            self._shared = DistributedDataParallel(
                self.objective, find_unused_parameters=self.objective.leaves_weights_out
            )
        restarts = spec.stage_two.schedule == "restarts" and spec.stage_one.epochs > 0 and spec.stage_two.epochs > 0
        epochs = spec.epochs if not restarts else spec.stage_one.epochs if stage == 1 else spec.stage_two.epochs
        again = restarts and stage == 2
        self._schedule_begins = spec.stage_one.epochs * self.steps_per_epoch if again else 0
        self.schedule = create_schedule(
            self.optimizer,
            spec.optimizer,
            epochs=epochs,
            steps_per_epoch=self.steps_per_epoch,
            restart_at=(spec.stage_two.lr or spec.optimizer.lr) if again else None,
        )

    def _seed(self, number: int) -> None:
        """Mixing is the same for all processes, dropout and drop-path are not: each has its own images."""
        seed = loader.derive_seed(self.spec.seed, loader.STEP, number)
        loader.seed_generators(seed)
        if self.world.rank:
            seed = loader.derive_seed(self.spec.seed, loader.STEP, number, self.world.rank)
            torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def _gradients_travel(self, now: bool) -> AbstractContextManager[None]:
        if isinstance(self._shared, DistributedDataParallel) and not now:
            return self._shared.no_sync()
        return nullcontext()

    def _terms(self, images: Tensor, target: Tensor, stored: Tensor | None) -> dict[str, Tensor]:
        with autocast(self.device, self.spec.precision):
            logits, features = (stored, []) if stored is not None else self._ask_teacher(images)
            terms: dict[str, Tensor] = self._shared(images, target, logits, features)
            return terms

    def _ask_teacher(self, images: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        if self.teacher is None:
            return None, []
        with self.clock.running():
            return self.teacher.forward(images, sorted({pair.stage.index for pair in self.pairs}))


class Objective(nn.Module):
    """A stage's loss as a network, so that DistributedDataParallel sees which weights the loss depends on.

    Args:
        student: the network that learns.
        aligners: of stage one, one a pair.
        pairs: of blocks and teacher stages.
        stage_one: its spec, or None in stage two.
        smoothing: of labels.
    """

    def __init__(
        self,
        student: Student,
        aligners: nn.ModuleList,
        pairs: Sequence[Pair],
        stage_one: StageOneSpec | None,
        smoothing: float,
    ) -> None:
        super().__init__()
        self.student, self.aligners = student, aligners
        self.pairs, self.stage_one, self.smoothing = pairs, stage_one, smoothing
        self._blocks = sorted({pair.block for pair in pairs})
        self._stages = sorted({pair.stage.index for pair in pairs})

    @property
    def leaves_weights_out(self) -> bool:
        """True where the loss may not depend on some weight, such as a head that learns nothing in this stage."""
        one = self.stage_one
        if one is None:
            return self.student.distilled
        return not one.weights.classification or (self.student.distilled and not distils(one))

    def forward(
        self, images: Tensor, target: Tensor, logits: Tensor | None, features: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """The loss's terms and `loss`, their weighted sum.

        Args:
            images: (B, in_chans, H, W).
            target: (B,) or (B, num_classes).
            logits: (B, num_classes), the teacher's; None where it is not asked.
            features: the teacher's, of each of the pairs' stages in ascending order.
        """
        output = self.student.forward_training(images, self._blocks)
        if self.stage_one is None:
            return stage_two_loss(output, target, self.smoothing)
        hidden = dict(zip(self._blocks, output.hidden, strict=True))
        maps = dict(zip(self._stages, features, strict=True))
        aligned = [aligner(hidden[pair.block]) for aligner, pair in zip(self.aligners, self.pairs, strict=True)]
        wanted = [
            cast(Aligner, aligner).normalised(maps[pair.stage.index])
            for aligner, pair in zip(self.aligners, self.pairs, strict=True)
        ]
        return stage_one_loss(output, target, logits, aligned, wanted, self.stage_one, self.smoothing)
