"""The two stages as one run: what is computed when, what is written, and that a restart changes nothing."""

import json
import math
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from dearkd.errors import InvalidInput
from dearkd.specs import Task
from dearkd.vision.shards import Indices, ShardDataset
from dearkd_trainer import DearKDTrainer, FrozenTeacher
from dearkd_trainer.evaluate.attention import recorded_distances
from dearkd_trainer.model.export import load_model
from dearkd_trainer.train.trainer import Metrics
from tests.support.bars import CLASSES, SIDE, STEPS, TASK, TEACHER, TIMED, MakeSpec, MakeTrainer, curve, stop_at

pytestmark = pytest.mark.slow


def test_it_learns(make_spec: MakeSpec, make_trainer: MakeTrainer) -> None:
    spec = make_spec(
        stage_one={"epochs": 8, "weights": {"classification": 1.0, "distillation": 0.1, "hidden": 0.1}},
        optimizer={"lr": 5e-3, "warmup_epochs": 1, "model_ema_half_life": 0.5},
        augmentation={"mixup": 0.0, "degrees": 0.0, "translate": 0.0, "shear": 0.0},
        eval_every=10,
    )
    result = make_trainer(spec).fit()
    first, last = result.history[0], result.history[7]
    for term in ("loss", "classification", "hidden"):
        assert last[term] < first[term]
    assert result.metrics["holdout_top1"] == 1.0


def test_rows_say_what_happened(make_spec: MakeSpec, make_trainer: MakeTrainer, dataset: ShardDataset) -> None:
    rows: list[Metrics] = []
    steps: list[tuple[int, int]] = []
    trainer = make_trainer(
        make_spec(), eval_dataset=dataset, on_epoch=rows.append, on_step=lambda *done: steps.append(done)
    )
    result = trainer.fit()
    assert [(row["epoch"], row["stage"]) for row in rows] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    always = {"epoch", "stage", "loss", "classification", "learning_rate"} | TIMED - {"teacher_share"}
    evaluated = {"holdout_top1", "eval_top1", "eval_top5", "eval_loss", "eval_calibration_error"}
    assert set(rows[0]) == always | evaluated | {"distillation", "hidden", "teacher_share"}
    assert set(rows[2]) == always | evaluated
    assert steps == [(done, 4 * STEPS) for done in range(1, 4 * STEPS + 1)]
    assert result.history == rows
    assert result.metrics == rows[-1]
    assert all(0 < row[share] < 1 for row in rows for share in ("data_wait", "teacher_share") if share in row)
    assert 2**20 < rows[0]["peak_memory"] <= rows[-1]["peak_memory"]
    assert result.evaluation is not None
    assert result.evaluation.top1 == rows[-1]["eval_top1"]
    weights = make_spec().stage_one.weights
    total = sum(getattr(weights, term) * rows[0][term] for term in ("classification", "distillation", "hidden"))
    assert rows[0]["loss"] == pytest.approx(total, rel=1e-5)


def test_stage_two_has_no_teacher_forward_and_stage_one_has_one_a_step(
    make_spec: MakeSpec, make_trainer: MakeTrainer, teacher: nn.Module
) -> None:
    forwards: list[int] = []
    trainer = make_trainer(make_spec(), on_step=lambda done, _: counts.append((done, len(forwards))))
    counts: list[tuple[int, int]] = []
    teacher.get_submodule("layer1").register_forward_hook(lambda *_: forwards.append(1))
    trainer.fit()
    assert counts == [(done, min(done, 2 * STEPS)) for done in range(1, 4 * STEPS + 1)]


def test_the_switch_drops_teacher_aligners_and_their_moments(make_spec: MakeSpec, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(make_spec(stage_two={"epochs": 0}))
    of_aligners = set(trainer.learner.aligners.parameters())
    assert of_aligners
    assert of_aligners <= {p for group in trainer.learner.optimizer.param_groups for p in group["params"]}
    trainer.fit()
    assert len(trainer.learner.aligners) == 0
    left = {p for group in trainer.learner.optimizer.param_groups for p in group["params"]}
    assert left == set(trainer.student.parameters())
    assert of_aligners.isdisjoint(trainer.learner.optimizer.state)


def test_after_the_switch_nothing_keeps_the_memory_of_stage_one(make_spec: MakeSpec, make_trainer: MakeTrainer) -> None:
    """What the caller lets go of too: the fixture's teacher would stay."""
    left: list[int] = []
    kept: dict[str, list[weakref.ref[Any]]] = {}

    def on_step(done: int, _: int) -> None:
        learner = trainer.learner
        if done == 2 * STEPS - 1:
            aligners = list(learner.aligners.parameters())
            kept["teacher"] = [
                weakref.ref(thing) for thing in (learner.teacher.module, *learner.teacher.module.parameters())
            ]
            kept["aligners"] = [weakref.ref(thing) for thing in (*learner.aligners, *aligners)]
            kept["moments"] = [
                weakref.ref(value) for weight in aligners for value in learner.optimizer.state[weight].values()
            ]
        if done == 2 * STEPS + 1:
            left.extend(sum(ref() is not None for ref in refs) for refs in kept.values())

    trainer = make_trainer(
        make_spec(),
        teacher=FrozenTeacher(timm.create_model("resnet10t", num_classes=CLASSES, in_chans=1), TEACHER),
        on_step=on_step,
    )
    trainer.fit()
    assert [len(refs) > 3 for refs in kept.values()] == [True] * 3
    assert left == [0, 0, 0]


@pytest.mark.parametrize(
    "stage_one",
    [
        {"weights": {"classification": 1.0, "distillation": 0.0, "hidden": 0.0}},
        {"distillation": "none", "weights": {"classification": 1.0, "distillation": 1.0, "hidden": 0.0}},
        {"epochs": 0},
    ],
)
def test_a_run_that_distils_nothing_needs_no_teacher(
    make_spec: MakeSpec, make_trainer: MakeTrainer, stage_one: dict[str, Any]
) -> None:
    trainer = make_trainer(make_spec(stage_one=stage_one), teacher=None)
    assert len(trainer.learner.aligners) == 0
    rows = trainer.fit().history
    assert all(not {"distillation", "hidden"} & set(row) for row in rows)


def test_a_stage_one_without_any_term_is_refused(make_spec: MakeSpec) -> None:
    weights = {"classification": 0.0, "distillation": 1.0, "hidden": 0.0}
    with pytest.raises(InvalidInput) as caught:
        make_spec(stage_one={"distillation": "none", "weights": weights})
    assert [error.pointer for error in caught.value.errors] == ["/stage_one/weights"]


def test_logits_alone_are_distilled_by_a_plain_forward(
    make_spec: MakeSpec, make_trainer: MakeTrainer, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "forward_intermediates", None)
    weights = {"classification": 0.5, "distillation": 0.5, "hidden": 0.0}
    rows = make_trainer(make_spec(stage_one={"distillation": "hard", "weights": weights})).fit().history
    assert "hidden" not in rows[0]
    assert rows[0]["distillation"] > 0


def test_past_stage_one_a_restart_needs_no_teacher(make_spec: MakeSpec, make_trainer: MakeTrainer) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_trainer(make_spec(), on_step=stop_at(2 * STEPS + 1)).fit()
    assert len(make_trainer(make_spec(), teacher=None).fit().history) == 4


def test_a_finished_run_only_writes_its_model_again(
    make_spec: MakeSpec, make_trainer: MakeTrainer, dataset: ShardDataset, tmp_path: Path
) -> None:
    first = make_trainer(make_spec(), eval_dataset=dataset).fit()
    weights = load_file(first.weights)
    first.weights.unlink()
    steps: list[int] = []
    again = make_trainer(make_spec(), eval_dataset=dataset, on_step=lambda done, _: steps.append(done)).fit()
    assert not steps
    assert again.history == first.history
    assert again.evaluation == first.evaluation
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_file(again.weights).items())


def test_no_result_depends_on_the_number_of_loader_workers(
    make_spec: MakeSpec, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    alone, shared = (
        make_trainer(make_spec(workers=workers), directory=tmp_path / str(workers)).fit() for workers in (0, 2)
    )
    assert curve(alone.history) == curve(shared.history)


def test_the_seed_changes_everything_random(make_spec: MakeSpec, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    first, second = (make_trainer(make_spec(seed=seed), directory=tmp_path / str(seed)) for seed in (0, 1))
    assert not torch.equal(first.student.pos_embed, second.student.pos_embed)
    assert list(first.train_indices) != list(second.train_indices)


def test_the_callers_random_numbers_are_left_alone(make_spec: MakeSpec, make_trainer: MakeTrainer) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    make_trainer(make_spec()).fit()
    assert torch.equal(torch.rand(3), expected)


def test_averaged_weights_are_what_is_evaluated_and_exported(make_spec: MakeSpec, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(make_spec(optimizer={"model_ema_half_life": 1.0}))
    exported = load_file(trainer.fit().weights)
    assert trainer.learner.average is not None
    trained, averaged = trainer.student.state_dict(), trainer.learner.average.module.state_dict()
    assert all(torch.equal(exported[name], averaged[name]) for name in averaged)
    assert not torch.equal(trained["head.weight"], averaged["head.weight"])


def test_the_exported_model_is_rebuilt_from_its_files(make_spec: MakeSpec, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(make_spec(), task=TASK.model_copy(update={"class_names": ["low", "middle", "high"]}))
    result = trainer.fit()
    config = json.loads((result.weights.parent / "config.json").read_text())
    assert config == result.config
    assert config["label_names"] == ["low", "middle", "high"]
    assert (config["model_args"]["img_size"], config["model_args"]["mhca_blocks"]) == (16, 1)
    assert config["pretrained_cfg"]["mean"] == TEACHER.mean
    assert config["pretrained_cfg"]["crop_pct"] == 1.0
    cropping = make_trainer(make_spec(augmentation={"scale": [0.08, 1.0]}), directory=result.weights.parent / "other")
    assert cropping.crop_pct == 0.875
    images = torch.randn(2, 1, 16, 16)
    model = load_model(config, result.weights)
    torch.testing.assert_close(model(images), trainer.evaluated.eval()(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("theirs", "ours", "order", "says"),
    [
        (["low", "middle", "high"], ["low", "high", "middle"], None, "another order"),
        (["low", "middle", "high"], ["low", "high", "middle"], "given", "another order"),
        (None, ["c1", "c10", "c2"], None, "not certain"),
        (None, ["c1", "c2", "c10"], None, "class_order="),
        (["low", "middle", "high"], ["c1", "c10", "c2"], None, "names none of these classes"),
        (["low", "middle", "high"], ["c1", "c10", "c2"], "name", None),
        (None, ["c1", "c10", "c2"], "name", None),
        (None, ["0", "1", "2"], None, None),
        (["low", "middle", "high"], ["Low", "middle", "high"], None, None),
    ],
)
def test_labels_are_the_teachers_as_far_as_names_tell(
    make_trainer: MakeTrainer,
    make_spec: MakeSpec,
    teacher: nn.Module,
    theirs: list[str] | None,
    ours: list[str],
    order: str | None,
    says: str | None,
) -> None:
    named = TEACHER.model_copy(update={"class_names": theirs})
    with pytest.raises(InvalidInput, match=says) if says else nullcontext():
        make_trainer(
            make_spec(),
            teacher=FrozenTeacher(teacher, named),
            task=TASK.model_copy(update={"class_names": ours}),
            class_order=order,
        )


def test_best_is_chosen_on_the_holdout(make_spec: MakeSpec, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    result = make_trainer(make_spec(optimizer={"lr": 5e-3})).fit()
    accuracies = [row["holdout_top1"] for row in result.history]
    best = max(range(len(accuracies)), key=lambda epoch: (accuracies[epoch], epoch))
    with safe_open(tmp_path / "run" / "checkpoints" / "best.safetensors", "pt") as file:
        about = file.metadata()
    assert about == {"epoch": str(best + 1), "holdout_top1": str(accuracies[best])}


def test_checkpoints_come_as_often_as_asked_and_at_the_end(make_spec: MakeSpec, make_trainer: MakeTrainer) -> None:
    seen: list[tuple[int, str]] = []
    trainer = make_trainer(
        make_spec(checkpoint_every=3),
        on_checkpoint=lambda path: seen.append((trainer.epoch, path.name)),  # type: ignore[has-type]
    )
    trainer.fit()
    assert seen == [(3, "last.pt"), (4, "last.pt")]


def test_a_checkpoint_of_another_spec_is_refused(make_spec: MakeSpec, make_trainer: MakeTrainer) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_trainer(make_spec(), on_step=stop_at(STEPS + 1)).fit()
    with pytest.raises(InvalidInput, match=r"optimizer.lr was 0.003, is 0.01\b"):
        make_trainer(make_spec(optimizer={"lr": 0.01, "warmup_epochs": 1}))
    assert make_trainer(make_spec(name="the same", workers=2, eval_every=2)).epoch == 1


@pytest.mark.parametrize(
    ("change", "pointers", "says"),
    [
        ({"teacher": None}, ["/teacher"], "there is no teacher"),
        ({"task": {"mean": [0.5]}}, ["/teacher"], r"its mean is \[0.4\], the student's \[0.5\]"),
        ({"task": {"mean": [0.4] * 3}}, ["/mean"], "3 values, but in_chans is 1"),
        ({"task": {"class_names": ["one"]}}, ["/class_names"], "1 names, but num_classes is 3"),
        ({"dataset": {}}, ["/dataset"], "no image to train on"),
        ({"eval_dataset": {}}, ["/eval_dataset"], "no image to evaluate on"),
        ({"dataset": {"in_chans": 3, "bars": 1}}, ["/dataset"], "its in_chans is 3, the student's 1"),
        ({"dataset": {"num_classes": 4, "bars": 1}}, ["/dataset"], "its num_classes is 4, the student's 3"),
        (
            {"eval_dataset": {"num_classes": 4, "in_chans": 3, "bars": 1}},
            ["/eval_dataset", "/eval_dataset"],
            "its num_classes is 4, the student's 3",
        ),
        ({"teacher": {"num_classes": 7}}, ["/teacher"], r"of shape \(1, 7\), but its spec has 3 classes"),
        (
            {"teacher": {"num_classes": CLASSES, "in_chans": 3}},
            ["/teacher"],
            r"cannot take a batch of shape \(1, 1, 16",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    make_spec: MakeSpec,
    make_trainer: MakeTrainer,
    bar_shard: Path,
    tmp_path: Path,
    change: dict[str, Any],
    pointers: list[str],
    says: str,
) -> None:
    changes = dict(change)
    for name in {"dataset", "eval_dataset"} & set(change):
        arguments = {"num_classes": CLASSES, "in_chans": 1} | change[name]
        changes[name] = ShardDataset([bar_shard] * arguments.pop("bars", 0), **arguments)
    if isinstance(change.get("teacher"), dict):
        module = timm.create_model("resnet10t", **({"in_chans": 1} | change["teacher"]))
        changes["teacher"] = FrozenTeacher(module, TEACHER)

    def begin() -> None:
        if "task" in change:
            changes["task"] = Task.check(TASK.model_dump() | change["task"])
        make_trainer(make_spec(stage_one={"weights": {"hidden": 0.0}}), **changes)

    with pytest.raises(InvalidInput, match=says) as caught:
        begin()
    assert [error.pointer for error in caught.value.errors] == pointers
    assert not (tmp_path / "run").exists()


def test_the_task_is_the_teachers_at_the_students_size_unless_it_is_given(
    make_spec: MakeSpec, make_trainer: MakeTrainer, teacher: nn.Module
) -> None:
    spec = make_spec(student={"image_size": 8, "patch_size": 2})
    named = TEACHER.model_copy(update={"class_names": ["low", "middle", "high"]})
    task = make_trainer(spec, task=None, teacher=FrozenTeacher(teacher, named)).task
    assert type(task) is Task
    assert task.model_dump() == {
        "num_classes": CLASSES,
        "in_chans": 1,
        "image_size": 8,
        "mean": TEACHER.mean,
        "std": TEACHER.std,
        "class_names": ["low", "middle", "high"],
    }
    for changes, pointer in (({"task": None, "teacher": None}, "/task"), ({"task": TASK}, "/task/image_size")):
        with pytest.raises(InvalidInput) as caught:
            make_trainer(spec, **changes)
        assert [error.pointer for error in caught.value.errors] == [pointer]


def test_a_teacher_of_another_size_sees_resized_images(
    make_spec: MakeSpec, make_trainer: MakeTrainer, teacher: nn.Module
) -> None:
    sizes: set[tuple[int, ...]] = set()
    teacher.register_forward_pre_hook(lambda _, inputs: sizes.add(tuple(inputs[0].shape[1:])))
    teacher.get_submodule("conv1").register_forward_pre_hook(lambda _, inputs: sizes.add(tuple(inputs[0].shape[1:])))
    spec = make_spec(
        student={"image_size": 8, "patch_size": 2},
        stage_one={"epochs": 1},
        stage_two={"epochs": 0},
        optimizer={"warmup_epochs": 0},
    )
    make_trainer(spec).fit()
    assert sizes == {(1, 16, 16)}


@pytest.mark.parametrize("parts", [2, 4])
def test_a_gradient_in_parts_is_that_of_the_whole_batch(
    make_spec: MakeSpec, make_trainer: MakeTrainer, tmp_path: Path, parts: int
) -> None:
    # Ragged batches of 13 and 14, mixed; dropout and drop-path would draw other numbers.
    common = {"student": {"drop_path_rate": 0.0, "mhca_dropout": 0.0}, "optimizer": {"clip_grad": 1.0}}
    whole = make_trainer(make_spec(**common), directory=tmp_path / "whole").fit()
    in_parts = make_trainer(make_spec(**common, grad_accum_steps=parts), directory=tmp_path / "parts").fit()
    for mine, theirs in zip(curve(in_parts.history), curve(whole.history), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-6)
    expected = load_file(whole.weights)
    for name, tensor in load_file(in_parts.weights).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


def test_the_schedule_goes_on_at_the_switch_or_restarts(
    make_spec: MakeSpec, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    def rates(interrupted: bool, **stage_two: Any) -> list[float]:
        spec = make_spec(stage_two=stage_two, optimizer={"warmup_epochs": 0.0, "min_lr": 1e-5})
        arguments = {"directory": tmp_path / f"{interrupted}-{stage_two}"}
        if interrupted:
            with pytest.raises(KeyboardInterrupt):
                make_trainer(spec, **arguments, on_step=stop_at(3 * STEPS + 1)).fit()
        return [row["learning_rate"] for row in make_trainer(spec, **arguments).fit().history]

    def cosine(peak: float, last_step: int, steps: int) -> float:
        return 1e-5 + (peak - 1e-5) * (1 + math.cos(math.pi * last_step / steps)) / 2

    through = [cosine(3e-3, (epoch + 1) * STEPS - 1, 4 * STEPS) for epoch in range(4)]
    assert rates(False) == pytest.approx(through)
    ends = (STEPS - 1, 2 * STEPS - 1)
    first, second = ([cosine(peak, end, 2 * STEPS) for end in ends] for peak in (3e-3, 1e-3))
    assert rates(False, schedule="restarts") == pytest.approx([*first, *first])
    assert rates(True, schedule="restarts", lr=1e-3) == pytest.approx([*first, *second])


def test_the_learning_rate_of_a_row_is_the_one_that_was_asked_for_also_where_layers_have_less(
    make_spec: MakeSpec, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    def rates(**optimizer: Any) -> list[float]:
        trainer = make_trainer(make_spec(optimizer=optimizer), directory=tmp_path / f"{len(optimizer)}")
        return [row["learning_rate"] for row in trainer.fit().history]

    assert rates(layer_decay=0.1) == rates()


def whole_images(trainer: DearKDTrainer, indices: Indices) -> Tensor:
    pixels = torch.stack([trainer.dataset[int(place)][0] for place in indices]).float() / 255
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (trainer.task.mean, trainer.task.std))
    return (pixels - mean) / std


def test_the_hidden_loss_does_not_know_the_scale_of_the_teachers_features(
    make_spec: MakeSpec, make_trainer: MakeTrainer, teacher: nn.Module, tmp_path: Path
) -> None:
    """A network whose features are a thousand times as large, and that answers the same, teaches the same."""

    class Louder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = teacher

        def forward(self, images: Tensor) -> Any:
            return self.teacher(images)

        def forward_intermediates(self, images: Tensor, **how: Any) -> Any:
            answer = self.teacher.forward_intermediates(images, **how)
            if how.get("intermediates_only"):
                return [1000 * features + 7 for features in answer]
            return answer[0], [1000 * features + 7 for features in answer[1]]

        def forward_head(self, features: Tensor) -> Any:
            return self.teacher.forward_head(features)

    spec = make_spec(stage_one={"epochs": 2}, stage_two={"epochs": 0})
    plain = make_trainer(spec).fit().history[0]["hidden"]
    loud = (
        make_trainer(spec, directory=tmp_path / "loud", teacher=FrozenTeacher(Louder().eval(), TEACHER))
        .fit()
        .history[0]["hidden"]
    )
    assert loud == pytest.approx(plain, rel=1e-3)


def test_pairs_are_those_that_were_asked_for(
    make_spec: MakeSpec, make_trainer: MakeTrainer, teacher: nn.Module, tmp_path: Path
) -> None:
    asked = [{"block": 1, "stage": 0}, {"block": 0, "stage": 2}, {"block": 1, "stage": 2}]
    trainer = make_trainer(make_spec(stage_one={"pairs": asked}))
    images = torch.randn(3, 1, 16, 16)
    maps = teacher.forward_intermediates(images, intermediates_only=True)
    output = trainer.student.eval().forward_training(images, [0, 1])
    seen = teacher.forward_intermediates(whole_images(trainer, trainer.train_indices), intermediates_only=True)

    def normalised(stage: int) -> Tensor:
        """In units of each channel's mean and deviation over the training images, dead channels in the layer's."""
        mean, deviation = seen[stage].mean((0, 2, 3), keepdim=True), seen[stage].std((0, 2, 3), False, keepdim=True)
        return (maps[stage] - mean) / (deviation.square() + 1e-4 * deviation.square().mean()).sqrt()

    hidden = [
        (aligner(output.hidden[pair["block"]]) - normalised(pair["stage"])).square().mean()
        for pair, aligner in zip(asked, trainer.learner.aligners, strict=True)
    ]
    terms = trainer.learner.objective(images, torch.zeros(3).long(), torch.zeros(3, CLASSES), [maps[0], maps[2]])
    torch.testing.assert_close(terms["hidden"], torch.stack(hidden).sum())
    assert "hidden" in trainer.fit().history[0]
    with pytest.raises(InvalidInput) as caught:
        make_trainer(make_spec(stage_one={"pairs": [asked[0], {"block": 0, "stage": 7}]}), directory=tmp_path / "two")
    assert [error.pointer for error in caught.value.errors] == ["/stage_one/pairs/1/stage"]


def test_processes_that_did_not_join_are_missed(make_spec: MakeSpec, make_trainer: MakeTrainer) -> None:
    with pytest.raises(InvalidInput, match=r"/processes: 2, but 1 joined: .*torchrun --nproc-per-node 2"):
        make_trainer(make_spec(processes=2))


def test_fewer_processes_of_a_ray_cluster_compute_more_parts_of_the_same_batches(
    make_spec: MakeSpec, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    asked = make_spec(processes=2, grad_accum_steps=2).model_copy(update={"engine": "ray"})
    found = make_trainer(asked, directory=tmp_path / "found").fit()
    parts = make_trainer(make_spec(grad_accum_steps=4), directory=tmp_path / "parts").fit()
    assert curve(found.history) == curve(parts.history)
    spec = make_spec(grad_accum_steps=2)
    assert curve(make_trainer(spec, directory=tmp_path / "two").fit().history) != curve(parts.history)


def test_bfloat16_trains(make_spec: MakeSpec, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(make_spec(precision="bfloat16"))
    rows = trainer.fit().history
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert {parameter.dtype for parameter in trainer.student.parameters()} == {torch.float32}


def test_how_far_the_student_looks_is_measured_at_the_end_of_each_stage(
    make_spec: MakeSpec, make_trainer: MakeTrainer
) -> None:
    rows = make_trainer(make_spec(stage_one={"epochs": 2}, stage_two={"epochs": 2})).fit().history
    looked = recorded_distances(rows)
    assert list(looked) == ["after epoch 2 (stage 1)", "after epoch 4 (stage 2)"]
    # No two patches of an image of this size are further apart.
    assert all(0 < distance < SIDE * 2**0.5 for layers in looked.values() for distance in layers)
