"""The demo's steps, each through the API: teacher, upload, synthesis, training, evaluation, report."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from dearkd.client import Client
from dearkd.errors import NotFound
from dearkd.local.parts import usable_cores, with_synth_workers
from dearkd.local.up import UpTree
from dearkd.settings import Settings
from dearkd.storage.objects import Storage
from dearkd.vision.devices import choose_device
from dearkd_trainer.demo.comparison import run_comparison
from dearkd_trainer.demo.digits import real_digits, top1, train_teacher
from dearkd_trainer.demo.report import write_report
from dearkd_trainer.demo.run import Demo

SCHEDULE: dict[str, Any] = {"stage_one": {"epochs": 44}, "stage_two": {"epochs": 4}}
"""Half of the recipe's epochs for as many images: whoever tries dearkd should not wait for an hour."""
SHARDS: dict[str, Any] = {"shard_samples": 500}
"""Four, so that two or four workers are busy to the end, though each begins with a new generator."""


def share_cores() -> int:
    """The processes that make images, and then train, beside each other: one with a GPU, else up to four.

    A power of two, since they share the batches of a run.
    """
    if choose_device().type != "cpu":
        return 1
    return next(number for number in (4, 2, 1) if number <= usable_cores())


def run_demo(data: Path, *, seed: int, compare: bool, as_json: bool, pictures: bool = True) -> None:
    """Run everything, print the table, leave `demo/report.json` and `demo/report.html` under `data`.

    Raises:
        DearKDError: if a step fails; what was made so far stays under `data`.
    """
    console = Console(stderr=as_json)
    folder = data.absolute() / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"Starting dearkd with its data under {data} …")
    workers = share_cores()
    with (
        UpTree(data, port=0, parts=with_synth_workers(workers)) as tree,
        Client(tree.url, Settings().api_key) as client,
    ):
        next(client.list_teachers(), None)  # an API key that is needed is missed now, not after the teacher's training
        console.print(f"The API and its dashboard: {tree.url}")
        storage = Storage.open(Settings(storage_url=tree.storage_url))
        demo = Demo(client, storage, folder, console, seed, pictures=pictures and not as_json)
        report = _main_job(demo, workers)
        if compare:
            report |= run_comparison(demo, report)
        report["seconds"]["total"] = round(sum(report["seconds"].values()), 1)
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        try:
            write_report(demo.client, folder, report)
        except NotFound as error:  # what was trained and measured is there all the same
            console.print(f"no report.html: {error.message}", markup=False)
    if as_json:
        print(json.dumps(report))
    else:
        _print_table(console, report, folder)


def _main_job(demo: Demo, workers: int) -> dict[str, Any]:
    client, seed = demo.client, demo.seed
    train, held_out = real_digits()
    weights = demo.folder / "teacher.safetensors"
    with demo.step("teacher", "1. A CNN is trained on 1,257 real digits: the model whose data will be gone"):
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} epochs")
        )
        with bar as progress:
            task = progress.add_task("  teacher", total=None)
            spec, model = train_teacher(
                train,
                weights,
                seed=seed,
                on_epoch=lambda done, total: progress.update(task, completed=done, total=total),
            )
        teacher_top1 = top1(model, held_out, spec)
    with demo.step("upload", "2. Its weights are uploaded; from here on the real training digits are not used"):
        teacher = client.create_teacher(spec, weights)
        test = demo.register(held_out, "real digits, held out")
    with demo.step("synthesis", "3. A training set is synthesised from the weights alone"):
        synthesis = client.create_synthesis_job(
            teacher=teacher.id, seed=seed, name=f"digits, seed {seed}", parallelism=workers, **SHARDS
        )
        run = client.create_training_run(
            dataset=synthesis.id,
            eval_dataset=test.id,
            seed=seed,
            name=f"digits, seed {seed}",
            processes=workers,
            **SCHEDULE,
        )
        demo.console.print(f"  {run.id} is {run.status}: it waits for {synthesis.id}")
        synthesis = demo.finished(synthesis.id)
    with demo.step("training", "4. A vision transformer is trained on it, in DearKD's two stages"):
        run = demo.finished(run.id)
    with demo.step("evaluation", "5. It is judged on 540 real digits that nothing before has touched"):
        dataset = demo.dataset_of(synthesis)
        trained = demo.model_of(run)
        client.download_preview(synthesis.id, demo.folder / "preview.png")
    quality = dataset.quality or {}
    return {
        "seed": seed,
        "teacher_top1": teacher_top1,
        "student_top1": demo.top1_of(trained),
        "num_images": dataset.num_samples,
        "images_teacher_accuracy": quality["teacher_accuracy"],
        "images_intra_class_diversity": quality["intra_class_diversity"],
        "seconds": demo.seconds,
        "teacher": teacher.id,
        "synthesis_job": synthesis.id,
        "training_run": run.id,
        "dataset": dataset.id,
        "model": trained.id,
        "eval_dataset": test.id,
    }


def _print_table(console: Console, report: dict[str, Any], folder: Path) -> None:
    table = Table(title="dearkd demo", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("teacher (CNN), held-out real digits", f"{report['teacher_top1']:.2%}")
    table.add_row("student (ViT), trained without one real image", f"{report['student_top1']:.2%}")
    for name, value in report.get("comparison", {}).items():
        table.add_row(f"  {name}", f"{value['student_top1']:.2%}")
    table.add_row("synthetic images", f"{report['num_images']}")
    table.add_row("  that the teacher gives their label", f"{report['images_teacher_accuracy']:.2%}")
    table.add_row("  intra-class diversity (mean cosine distance)", f"{report['images_intra_class_diversity']:.3f}")
    for name, seconds in report["seconds"].items():
        table.add_row(f"  {name}", f"{seconds:.0f} s")
    console.print(table)
    console.print(f"Look at the images: {folder / 'preview.png'}")
    if (folder / "report.html").is_file():
        console.print(f"Everything on one page: {folder / 'report.html'}")
    console.print(f"Dashboard, models and files: dearkd up --data {folder.parent}")
