"""`dearkd demo --compare`: the same student on other images, and with each part of the method turned off."""

from copy import deepcopy
from typing import Any

from dearkd_trainer.demo.digits import real_digits
from dearkd_trainer.demo.run import Demo


def run_comparison(demo: Demo, report: dict[str, Any]) -> dict[str, Any]:
    """Train the comparisons one after the other; every one differs from the demo's run in what its name says alone.

    Returns:
        `comparison` by name, and the two accuracies that reports are searched for.
    """
    client = demo.client
    synthesis = client.get_job(report["synthesis_job"]).spec
    training = client.get_job(report["training_run"]).spec
    results: dict[str, Any] = {}

    def train(name: str, spec: dict[str, Any], **more: Any) -> None:
        with demo.step(f"compare: {name}", f"Compare: {name}"):
            run = demo.finished(client.create_training_run({**spec, "name": name}).id)
            model = demo.model_of(run)
            results[name] = {"student_top1": demo.top1_of(model), "training_run": run.id, **more}

    def synthesise(name: str, spec: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        with demo.step(f"compare: images for {name}", f"Compare: images for {name}"):
            job = demo.finished(client.create_synthesis_job({**spec, "name": name}).id)
            dataset = demo.dataset_of(job)
            quality = dataset.quality or {}
            figures = {
                "images_teacher_accuracy": quality["teacher_accuracy"],
                "images_intra_class_diversity": quality["intra_class_diversity"],
                "synthesis_job": job.id,
            }
            return dataset.id, figures

    with demo.step("compare: register", "Compare: the real training digits are registered"):
        real = demo.register(real_digits()[0], "real digits, training split")
    train("real training digits", changed(training, dataset=real.id))

    side = synthesis["phases"][-1]["input_size"]
    steps = sum(phase["iterations"] for phase in synthesis["phases"])
    plain = {
        "teacher": synthesis["teacher"],
        "preset": "published-cifar",
        "seed": synthesis["seed"],
        "phases": [{"resolution": side, "input_size": side, "iterations": steps}],
        "weights": {"boundary": 0.0},
        "flip": 0.0,  # a digit in a mirror is none
        "min_teacher_accuracy": 0.0,
    }
    dataset, figures = synthesise("plain DeepInversion", plain)
    train("plain DeepInversion", changed(training, dataset=dataset), **figures)

    dataset, figures = synthesise(
        "no boundary term", changed(synthesis, weights={**synthesis["weights"], "boundary": 0.0})
    )
    train("no boundary term", changed(training, dataset=dataset), **figures)

    train("no MHCA", changed(training, student={**training["student"], "mhca_blocks": 0}))
    one, two = training["stage_one"], training["stage_two"]
    train("no hidden distillation", changed(training, stage_one={**one, "weights": {**one["weights"], "hidden": 0.0}}))
    epochs = one["epochs"] + two["epochs"]
    train("no stage two", changed(training, stage_one={**one, "epochs": epochs}, stage_two={**two, "epochs": 0}))
    return {
        "comparison": results,
        "real_data_student_top1": results["real training digits"]["student_top1"],
        "deepinversion_student_top1": results["plain DeepInversion"]["student_top1"],
    }


def changed(spec: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A copy of a filled-in spec with some fields replaced."""
    return {**deepcopy(spec), **fields}
