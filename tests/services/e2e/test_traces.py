"""The trace of a job and that of a run, from their POST to what they store: real processes, and a collector."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from dearkd.client import Client
from dearkd.local.up import UpTree
from dearkd.specs import TeacherSpec
from tests.support.otlp_receiver import Collector, ReceivedSpan, collecting
from tests.support.services import eventually

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

TRACE, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SYNTHESIS = {
    "images_per_class": 8,
    "batch_size": 20,
    "shard_samples": 40,
    "phases": [{"resolution": 12, "iterations": 6}],
    "min_teacher_accuracy": 0,
}
TRAINING = {
    "student": {"patch_size": 8},
    "stage_one": {"epochs": 2},
    "stage_two": {"epochs": 1},
    "batch_size": 16,
    "checkpoint_every": 1,
    "workers": 1,
}


@dataclass(frozen=True)
class Traced:
    """What was made, and the spans and lines of the log that it left."""

    job: str
    run: str
    collector: Collector
    lines: list[dict[str, Any]]

    def posted(self, route: str) -> ReceivedSpan:
        (found,) = self.collector.named(f"POST {route}")
        return found


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, plain_teacher: tuple[TeacherSpec, Path]) -> Iterator[Traced]:
    folder = tmp_path_factory.mktemp("up")
    spec, weights = plain_teacher
    with pytest.MonkeyPatch.context() as patch, collecting() as collector:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        patch.setenv("DEARKD_LOG_FORMAT", "json")
        with UpTree(folder, port=0) as tree, Client(tree.url) as client:
            teacher = client.create_teacher(spec.model_dump(), weights)
            job = httpx.post(
                f"{tree.url}/v1/synthesis-jobs",
                json={"teacher": teacher.id, **SYNTHESIS},
                headers={"traceparent": f"00-{TRACE}-{CLIENT}-01"},
            ).json()
            run = client.create_training_run({"dataset": job["id"], **TRAINING})
            ended = client.wait(run.id)
            assert ended.status == "succeeded", ended.error
            eventually(lambda: collector.named("training run"), seconds=30)
        text = "\n".join(path.read_text() for path in sorted((folder / "logs").glob("*.log")))
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        yield Traced(job["id"], run.id, collector, lines)


def names(spans: list[ReceivedSpan]) -> list[str]:
    return [span.name for span in spans]


def test_from_the_post_to_each_shard_it_is_one_trace_over_three_processes(traced: Traced) -> None:
    post = traced.posted("/v1/synthesis-jobs")
    assert (post.trace, post.parent, post.service) == (TRACE, CLIENT, "dearkd-api")
    assert post.attributes["dearkd.job.id"] == traced.job
    units = traced.collector.below(post)
    assert sorted(names(units)) == ["synthesis finish", "synthesis shard", "synthesis shard"]
    assert sorted(unit.attributes["dearkd.unit"] for unit in units) == ["0", "1", "finish"]
    for unit in units:
        assert (unit.kind, unit.service, unit.error) == ("consumer", "dearkd-worker-synth", None)
        assert unit.attributes["dearkd.job.id"] == traced.job
        assert unit.attributes["dearkd.unit.done"] is True
        assert unit.began >= post.began
        assert unit.resource["process.pid"] != post.resource["process.pid"]
        # It is the process that the ledger knows.
        assert unit.attributes["dearkd.holder"].endswith(f"/{unit.resource['process.pid']}")
    shards = [unit for unit in units if unit.name == "synthesis shard"]
    parts = [traced.collector.below(shard) for shard in shards]
    made = ["invert shard", "write shard", "store shard"]
    assert sorted(names(found)[-3:] for found in parts) == [made, made]
    assert {name for found in parts for name in names(found)[:-3]} == {"load teacher"}
    for shard, found in zip(shards, parts, strict=True):
        assert all(shard.began <= part.began <= part.ended <= shard.ended for part in found)
        assert all(one.ended <= other.began for one, other in itertools.pairwise(found))
        (invert,) = [part for part in found if part.name == "invert shard"]
        assert invert.attributes["dearkd.images"] == 40
        batches = traced.collector.below(invert)
        assert [(batch.name, batch.attributes) for batch in batches] == [
            ("invert batch", {"dearkd.batch": number, "dearkd.images": 20}) for number in range(2)
        ]
    assert {span.error for span in traced.collector.spans} == {None}
    assert len({span.id for span in traced.collector.spans}) == len(traced.collector.spans)


def test_a_run_has_one_of_its_own_with_its_epochs_and_checkpoints(traced: Traced) -> None:
    post = traced.posted("/v1/training-runs")
    assert post.parent == ""
    assert post.trace != TRACE
    (run,) = traced.collector.below(post)
    assert (run.name, run.kind, run.service) == ("training run", "consumer", "dearkd-worker-train")
    assert (run.attributes["dearkd.job.id"], run.attributes["dearkd.unit.done"]) == (traced.run, True)
    parts = traced.collector.below(run)
    assert names(parts) == ["fetch datasets", "train", "store model"]
    within = traced.collector.below(parts[1])
    assert names(within) == ["train epoch", "store checkpoint"] * 3
    assert [(epoch.attributes["dearkd.epoch"], epoch.attributes["dearkd.stage"]) for epoch in within[::2]] == [
        (1, 1),
        (2, 1),
        (3, 2),
    ]
    assert all(one.ended <= other.began for one, other in itertools.pairwise(within))
    assert parts[1].began <= within[0].began
    assert within[-1].ended <= parts[1].ended


def test_lines_of_the_log_lead_to_their_span(traced: Traced) -> None:
    spans = {(span.trace, span.id): span for span in traced.collector.spans}
    of_units = [line for line in traced.lines if line.get("job_id") in (traced.job, traced.run)]
    assert {line["unit"] for line in of_units} >= {"0", "1", "finish", "run"}
    for line in of_units:
        span = spans[line["trace_id"], line["span_id"]]
        while span.parent and (span.trace, span.parent) in spans and span.kind != "consumer":
            span = spans[span.trace, span.parent]
        assert (span.attributes["dearkd.job.id"], span.attributes["dearkd.unit"]) == (line["job_id"], line["unit"])
