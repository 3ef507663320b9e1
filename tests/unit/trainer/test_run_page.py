"""The report of a run: what it tells is what was measured, names are text, and it is never worth a model."""

import logging
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from dearkd.data.shard_files import Sample, write_shard
from dearkd.specs import Task
from dearkd.specs.webhook import WebhookSpec
from dearkd.vision.images import encode
from dearkd.vision.shards import ShardDataset
from dearkd_trainer.evaluate.evaluation import Evaluation
from dearkd_trainer.model.student import create_student
from dearkd_trainer.record.facts import RunFacts
from dearkd_trainer.report import contents, run
from dearkd_trainer.report.charts import MOST_POINTS, line_chart
from dearkd_trainer.report.finished_run import FinishedRun
from dearkd_trainer.report.page import MAX_BYTES, Section, with_sections
from dearkd_trainer.train.trainer import TrainingResult
from tests.support.bars import TASK, TEACHER, MakeSpec, MakeTrainer
from tests.support.report_pages import Page, read_page, require_alone

pytestmark = pytest.mark.slow

HOSTILE = [
    '</title><script>alert("x")</script>',
    "<img src=//x onerror=alert(1)>",
    "a' onload=\"b{{ 7 * 7 }}<!-- more -->",
]


def page_of(result: TrainingResult) -> Page:
    return read_page((result.weights.parent / "report.html").read_text(encoding="utf-8"))


def test_it_tells_what_was_measured_and_asks_for_nothing(
    make_spec: MakeSpec, make_trainer: MakeTrainer, dataset: ShardDataset
) -> None:
    names = ["low", "middle", "high"]
    about = RunFacts(synthetic=True, quality={"teacher_accuracy": 0.75}, teacher={"id": "tch-7"})
    task = TASK.model_copy(update={"class_names": names})
    result = make_trainer(make_spec(name="bars"), eval_dataset=dataset, task=task, about=about).fit()
    page, found = page_of(result), result.evaluation
    assert found is not None
    require_alone(page)
    figures = f"top-1\n{found.top1:.2%}\ntop-5\n{found.top5:.2%}\n"
    assert figures in page.text
    for name, accuracy in zip(names, found.per_class, strict=True):
        assert f"{name}\n20\n{accuracy:.2%}\n" in page.text
    assert "top-1 of a run" not in page.text
    assert "54 synthetic images, taught by tiny, in 2 + 2 epochs." in page.text
    assert "that the teacher gives their label\n0.75\n" in page.text
    assert "tch-7" in page.text
    charts = [svg["aria-label"] for svg in page.named("svg")]
    assert {"Losses by epoch", "Accuracy by epoch", "Mean attention distance by layer"} <= set(charts)
    right = len(re.findall(r"^right$", page.text, re.MULTILINE))
    wrong = len(re.findall(r"^wrong$", page.text, re.MULTILINE))
    assert right + wrong >= 12
    assert wrong >= min(1, round(60 * (1 - found.top1)))
    # Each image with what the student looked at, and the grid of training images.
    assert len([image for image in page.named("img") if image["src"].startswith("data:image/webp")]) == (
        2 * (right + wrong) + 1
    )
    assert 'timm.create_model("local-dir:FOLDER", pretrained=True)' in page.text


def test_names_made_of_markup_are_text(make_spec: MakeSpec, make_trainer: MakeTrainer, dataset: ShardDataset) -> None:
    task = TASK.model_copy(update={"class_names": HOSTILE})
    spec = make_spec(name=HOSTILE[0], dataset=HOSTILE[1], eval_dataset=HOSTILE[2])
    about = RunFacts(data={HOSTILE[1]: HOSTILE[0]}, teacher={HOSTILE[0]: HOSTILE[1]}, model=HOSTILE[2], run=HOSTILE[1])
    result = make_trainer(spec, eval_dataset=dataset, task=task, about=about).fit()
    page = page_of(result)
    require_alone(page)
    for name in HOSTILE:
        assert page.text.count(" ".join(name.split())) >= 3, name
    # What a section is put before is the template's own mark.
    html = (result.weights.parent / "report.html").read_text(encoding="utf-8")
    added = read_page(with_sections(html, [Section(HOSTILE[0], HOSTILE[1], table=[(HOSTILE[2], HOSTILE[0])])]))
    require_alone(added)
    assert added.text.index(f"{HOSTILE[0]}\n{HOSTILE[1]}\n{HOSTILE[2]}\n") < added.text.index("Curves\n")


def test_without_an_evaluation_it_shows_what_was_held_out_and_no_secret(
    make_spec: MakeSpec, make_trainer: MakeTrainer
) -> None:
    spec = make_spec()
    webhook = WebhookSpec.model_validate({"url": "https://example.org/told-here", "events": ["succeeded"]})
    spec = spec.model_copy(update={"webhook": webhook})
    result = make_trainer(spec).fit()
    page = page_of(result)
    assert "images that were held out of the training" in page.text
    assert f"top-1, held-out training images\n{result.metrics['holdout_top1']:.2%}\n" in page.text
    assert "Results by class" not in page.text
    assert "told-here" not in (result.weights.parent / "report.html").read_text()
    assert "told-here" not in (result.weights.parent / "README.md").read_text()


@pytest.mark.parametrize("broken", ["run_page", "draw_grid", "attention_distance_picture"])
def test_a_report_that_fails_costs_nothing_else(
    make_spec: MakeSpec,
    make_trainer: MakeTrainer,
    dataset: ShardDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: str,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no room is left")

    from dearkd_trainer.evaluate import pictures

    owner = {"run_page": contents, "draw_grid": run, "attention_distance_picture": pictures}[broken]
    monkeypatch.setattr(owner, broken, fail)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.html").write_text("of an earlier attempt")
    with caplog.at_level(logging.WARNING):
        result = make_trainer(make_spec(), eval_dataset=dataset, about=RunFacts(synthetic=True)).fit()
    written = {path.name for path in (tmp_path / "run").iterdir() if path.is_file()}
    whole = {"model.safetensors", "config.json", "README.md", "metrics.jsonl", "evaluation.json"}
    shown = {"report.html", "samples.png", "attention_distance.png"}
    lost = {
        "run_page": "report.html",
        "draw_grid": "samples.png",
        "attention_distance_picture": "attention_distance.png",
    }
    assert written == whole | shown - {lost[broken]}
    assert any(lost[broken] in message and "no room is left" in message for message in caplog.messages)
    assert ("samples.png" in (tmp_path / "run" / "README.md").read_text()) == (broken != "draw_grid")
    assert result.weights.is_file()


def test_a_thousand_classes_and_thousands_of_epochs_stay_within_the_bound(make_spec: MakeSpec, tmp_path: Path) -> None:
    """Noise is the worst that a picture can be, and long names that a table can."""
    classes, side = 1000, 96
    noise = torch.randint(0, 256, (400, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shard = tmp_path / "noise.tar"
    write_shard(shard, (Sample(f"{n:04d}", encode(x, "png"), "png", 2 * n, {}) for n, x in enumerate(noise)))
    data = ShardDataset([shard], num_classes=classes, in_chans=3)
    names = [f"{label} " + "<&é" * 60 for label in range(classes)]
    task = Task(num_classes=classes, in_chans=3, image_size=side, mean=[0.5] * 3, std=[0.5] * 3, class_names=names)
    spec = make_spec(student={"image_size": side, "patch_size": 12})
    random = np.random.default_rng(0)
    shares = random.dirichlet(np.full(classes, 0.01), classes)
    accuracies = random.random(400)
    per_class = [accuracies[label // 2] if label < 800 and label % 2 == 0 else None for label in range(classes)]
    evaluation = Evaluation(400, 0.5, 0.9, 1.0, 0.1, per_class, shares.tolist())
    rows: list[dict[str, float]] = [
        {
            "epoch": n,
            "stage": 1,
            "loss": 3 / n,
            "hidden": random.random(),
            "learning_rate": 1e-3,
            "images_per_second": 9.0,
        }
        for n in range(1, 5001)
    ]
    finished = FinishedRun(
        spec=spec,
        task=task,
        about=RunFacts(synthetic=True),
        student=create_student(spec.student, classes, 3),
        rows=rows,
        heads=[[1.0, 2.0], [3.0, 4.0]],
        dataset=data,
        trained=np.arange(0, 400, 2),
        held_out=np.arange(1, 400, 2),
        eval_dataset=data,
        evaluation=evaluation,
        teacher=TEACHER,
        device=torch.device("cpu"),
        crop_pct=1.0,
    )
    run.write_run_report(tmp_path, finished)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert MAX_BYTES / 10 < len(html.encode()) < MAX_BYTES
    page = read_page(html)
    require_alone(page)
    lowest = np.sort(accuracies)[: contents.MOST_CLASSES]
    shown = re.findall(r"\n1\n([0-9.]+)%\n", page.text)
    assert [float(one) for one in shown] == pytest.approx((100 * lowest).tolist(), abs=0.01)
    assert f"The {contents.MOST_CLASSES} classes of lowest accuracy, of 1,000" in page.text


def test_a_chart_is_well_formed_in_the_pages_colours_and_no_two_share_an_id() -> None:
    points = [(epoch, 10.0**-epoch) for epoch in range(1, 6)]
    charts = [
        line_chart(key, 'a "title" <b>', {"loss": points, "none": []}, logarithmic=True, switch=2.5)
        for key in ("one", "two")
    ]
    ids = []
    for chart in charts:
        root = ElementTree.fromstring(chart)
        assert root.attrib["aria-label"] == 'a "title" <b>'
        ids += [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        targets = re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', chart)
        assert set(targets) <= set(ids)
        assert "var(--line-1)" in chart
        assert "var(--line-2)" not in chart
        assert not re.search(r"#(?!ffffff)[0-9a-f]{6}\b", re.sub(r'"#[^"]*"|url\([^)]*\)', "", chart))
    assert len(ids) == len(set(ids))
    assert line_chart("three", "nothing", {"loss": []}) == ""
    long = line_chart("four", "long", {"loss": [(n, n % 7) for n in range(10 * MOST_POINTS)]})
    assert len(long) < 60_000


def test_further_sections_are_put_into_a_page_of_a_run_alone() -> None:
    with pytest.raises(ValueError, match="give one that a run has left"):
        with_sections("<html></html>", [Section("more")])


def test_the_grid_of_samples_shows_classes_from_all_over(
    make_spec: MakeSpec, make_trainer: MakeTrainer, dataset: ShardDataset, tmp_path: Path
) -> None:
    make_trainer(make_spec(), about=RunFacts(synthetic=True)).fit()
    with Image.open(tmp_path / "run" / "samples.png") as grid:
        width, height = grid.size
    assert (width - 2, height - 2) == (8 * 66, 3 * 66)  # 16 px images, four times as large, in cells with a gap of 2
    card = (tmp_path / "run" / "README.md").read_text()
    assert "![training images, a row for each class](samples.png)" in card
    make_trainer(make_spec(), directory=tmp_path / "real", about=RunFacts(synthetic=False)).fit()
    assert not (tmp_path / "real" / "samples.png").exists(), "real images are not for a card"
    assert "samples.png" not in (tmp_path / "real" / "README.md").read_text()
