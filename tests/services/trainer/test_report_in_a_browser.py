"""A report in a real browser, opened from its file: light, dark, on a phone; nothing is run, and nothing asked for."""

from pathlib import Path

import pytest

from dearkd.vision.shards import ShardDataset
from dearkd_trainer.record.facts import RunFacts
from tests.support.bars import TASK, MakeSpec, MakeTrainer
from tests.support.browser import chromium, visiting
from tests.support.runs import bar_shard, dataset, make_spec, make_trainer, teacher

__all__ = ["bar_shard", "dataset", "make_spec", "make_trainer", "teacher"]
pytestmark = pytest.mark.services


def test_a_report_is_read_from_its_file(
    make_spec: MakeSpec, make_trainer: MakeTrainer, dataset: ShardDataset, tmp_path: Path
) -> None:
    about = RunFacts(
        synthetic=True, quality={"teacher_accuracy": 0.95, "intra_class_diversity": 0.31}, teacher={"weights": "f" * 64}
    )
    task = TASK.model_copy(update={"class_names": ["low <b>", "middle", "high " * 12]})
    spec = make_spec(name="Bars: a report", stage_one={"epochs": 6}, stage_two={"epochs": 3}, eval_dataset="ds-bars")
    result = make_trainer(spec, eval_dataset=dataset, task=task, about=about).fit()
    file = result.weights.with_name("report.html")
    with chromium() as browser, visiting(browser, file.as_uri()) as visit:
        visit.open("")
        page = visit.page
        paper, line = (
            "getComputedStyle(document.body).backgroundColor",
            "getComputedStyle(document.querySelector('svg.chart path[style*=\"--line-1\"]')).stroke",
        )
        light = page.evaluate(paper), page.evaluate(line)
        page.emulate_media(color_scheme="dark")
        dark = page.evaluate(paper), page.evaluate(line)
        page.emulate_media(color_scheme="light")
        assert light == ("rgb(246, 247, 249)", "rgb(58, 82, 204)")
        assert dark == ("rgb(17, 19, 24)", "rgb(142, 164, 255)")
        assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        assert "low <b>" in page.inner_text("main")
        visit.look("report")
