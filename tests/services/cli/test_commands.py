import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dearkd.cli import main
from dearkd.local.embedded_redis import free_port
from tests.support.specs import synthesis_spec
from tests.support.stand_in_api import StandInApi, a_job, a_teacher


@dataclass(frozen=True)
class Outcome:
    code: int | str | None
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process."""

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(ended.value.code, captured.out, captured.err)

    return run


TEACHER = ["--architecture", "resnet10t", "--num-classes", "10", "--image-size", "32", "--in-chans", "1"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["bogus"], ["bogus", "dearkd --help"]),
        (["jobs", "--kind", "baking"], ["baking", "synthesis", "training"]),
        (["jobs", "--limit", "0"], ["--limit"]),
        (["watch", "ds-1"], ["ds-1", "syn-", "run-"]),
        (["synth"], ["TEACHER"]),
        (["train", "ds-1", "--set", "epochs"], ["epochs", "KEY=VALUE"]),
        (["train", "ds-1", "--spec", "no/such.json"], ["no/such.json"]),
        (["teacher", "add", "no-such-file", *TEACHER, "--mean", "0.5", "--std", "0.5"], ["no-such-file"]),
        (["teacher", "add", __file__, *TEACHER, "--mean", "half", "--std", "0.5"], ["half", "--mean"]),
        (["teacher", "add", __file__, *TEACHER, "--mean", "0.5,0.5", "--std", "0.5"], ["/mean", "in_chans is 1"]),
        (["dataset", "add", "no/such/folder"], ["no/such/folder"]),
        (["up", "--port", "99999"], ["--port", "65535"]),
        (["worker", "baker"], ["baker", "synth", "trainer"]),
    ],
)
def test_wrong_usage_is_one_line_that_names_it_and_exits_2(run: Run, arguments: list[str], named: list[str]) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith("error: ")
    assert all(word in outcome.err for word in named), outcome.err
    as_json = run(*arguments, "--json")
    assert (as_json.code, as_json.err) == (2, "")
    assert json.loads(as_json.out)["error"]["code"] == "usage"


def test_a_malformed_setting_is_named_by_its_variable(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEARKD_CACHE_BYTES", "much")
    outcome = run("jobs")
    assert outcome.code == 2
    assert "DEARKD_CACHE_BYTES is 'much'" in outcome.err


def test_without_an_api_the_remedy_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("DEARKD_URL", url)
    outcome = run("jobs")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith(f"error: cannot reach {url} ")
    assert "start it with `dearkd up`" in outcome.err
    error = json.loads(run("cancel", "run-1", "--json").out)["error"]
    assert (error["code"], error["retryable"]) == ("unreachable", True)


def test_what_the_api_refuses_exits_1_with_its_pointers(run: Run, api: StandInApi) -> None:
    pointer = {"pointer": "/classes/0", "detail": "class 12 is out of range"}
    api.problem("POST /v1/synthesis-jobs", 422, "invalid_input", "/classes/0: class 12 is out of range", [pointer])
    plain = run("synth", "tch-1", "--set", "classes=[12]")
    assert (plain.code, plain.out) == (1, "")
    assert plain.err == "error: /classes/0: class 12 is out of range\n"
    error = json.loads(run("synth", "tch-1", "--set", "classes=[12]", "--json").out)["error"]
    assert error["errors"] == [pointer]


def test_a_spec_is_the_file_then_assignments_then_options(run: Run, api: StandInApi, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text('{"seed": 1, "preset": "published-cifar", "weights": {"l2": 0.5, "boundary": 2}, "flip": 0.25}')
    api.answer("POST /v1/synthesis-jobs", a_job("syn-1", "queued"), status=202)
    sets = [
        "--set",
        "weights.boundary=0",
        "--set",
        "preset=published-imagenet",
        "--set",
        "name=a=b",
        "--set",
        "classes=[0, 1]",
    ]
    outcome = run("synth", "tch-1", "--spec", spec, *sets, "--preset", "auto")
    assert (outcome.code, outcome.out) == (0, "syn-1 queued\n")
    assert json.loads(api.requests[0].body) == {
        "teacher": "tch-1",
        "seed": 1,
        "preset": "auto",
        "weights": {"l2": 0.5, "boundary": 0},
        "flip": 0.25,
        "name": "a=b",
        "classes": [0, 1],
    }


def test_a_dry_run_asks_for_one_and_prints_the_plan(run: Run, api: StandInApi) -> None:
    api.answer("POST /v1/synthesis-jobs", PLAN)
    outcome = run("synth", "tch-1", "--dry-run", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out) == PLAN
    assert api.requests[0].query == {"dry_run": "true"}


def test_both_kinds_of_jobs_are_listed_newest_first(run: Run, api: StandInApi) -> None:
    def page(*jobs: tuple[str, str]) -> dict[str, object]:
        return {"data": [a_job(name, created_at=f"2026-01-0{day}T00:00:00Z") for name, day in jobs], "has_more": False}

    api.answer("GET /v1/synthesis-jobs", page(("syn-d", "4"), ("syn-a", "1")))
    api.answer("GET /v1/training-runs", page(("run-c", "3"), ("run-b", "2")))
    listed = json.loads(run("jobs", "--json", "--limit", "3").out)
    assert [job["id"] for job in listed["data"]] == ["syn-d", "run-c", "run-b"]
    assert listed["has_more"] is True
    table = run("jobs").out.splitlines()
    assert [line.split()[0] for line in table] == ["ID", "syn-d", "run-c", "run-b", "syn-a"]
    assert [job["id"] for job in json.loads(run("jobs", "--json", "--kind", "training").out)["data"]] == [
        "run-c",
        "run-b",
    ]


def test_watching_says_how_far_and_how_it_ended(run: Run, api: StandInApi) -> None:
    call = "GET /v1/synthesis-jobs/syn-1"
    progress = {"done": 120, "total": 200, "unit": "images", "per_second": 12.5, "eta_seconds": 6.4}
    metrics = {"iteration": 40, "cross_entropy": 0.123456}
    api.answer(call, a_job(progress=progress, metrics=metrics))
    api.answer(call, a_job(status="succeeded", progress=progress | {"done": 200}, result={"dataset": "ds-1"}))
    outcome = run("watch", "syn-1")
    assert (outcome.code, outcome.out) == (0, "syn-1 succeeded: dataset ds-1\n")
    assert "120/200 images, 12.5 images/s, 0:07 left, iteration 40 · cross entropy 0.1235" in outcome.err


def test_watching_says_when_a_job_is_tried_again_and_why(run: Run, api: StandInApi) -> None:
    moment = datetime(2026, 1, 1, 12, 30, 5, tzinfo=UTC)
    error = {"code": "disk_full", "message": "no room is left\nin storage", "retryable": True}
    call = "GET /v1/synthesis-jobs/syn-1"
    api.answer(call, a_job(status="queued", attempt=2, retry_at=moment.isoformat(), error=error))
    api.answer(call, a_job(status="succeeded", result={"dataset": "ds-1"}))
    outcome = run("watch", "syn-1")
    assert outcome.code == 0
    shown = f"queued 0/200 images, tried again at {moment.astimezone():%H:%M:%S}, since it failed: no room is left\n"
    assert shown in outcome.err


def test_a_job_that_fails_while_it_is_waited_for_exits_1(run: Run, api: StandInApi) -> None:
    error = {"code": "diverged", "message": "the loss became NaN in epoch 3", "retryable": True}
    failed = a_job("run-1", "failed", error=error)
    api.answer("POST /v1/training-runs", a_job("run-1", "queued"), status=202)
    api.answer("GET /v1/training-runs/run-1", failed)
    plain = run("train", "ds-1", "--wait")
    assert (plain.code, plain.out) == (1, "")
    last = plain.err.splitlines()[-1]
    assert last.startswith("error: run-1 failed: the loss became NaN in epoch 3")
    assert "dearkd retry run-1" in last
    as_json = run("train", "ds-1", "--wait", "--json")
    assert as_json.code == 1
    assert json.loads(as_json.out) == failed


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """What a shell starts in the background ignores SIGINT, and so would all that it starts in its turn."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_ends_the_watching_and_not_the_job(api: StandInApi) -> None:
    api.answer("GET /v1/synthesis-jobs/syn-1", a_job())
    command = [sys.executable, "-m", "dearkd.cli", "watch", "syn-1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "syn-1 running" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130
    assert out == ""
    assert "syn-1 goes on" in err
    assert "Traceback" not in err
    assert {request.method for request in api.requests} == {"GET"}


def test_our_own_commands_load_no_torch_and_no_service() -> None:
    program = """
import sys
from dearkd.cli import application
application("jobs")
heavy = {"torch", "timm", "torchvision", "numpy", "dearkd_api", "dearkd_synth", "dearkd_trainer"} & sys.modules.keys()
sys.exit(" ".join(sorted(heavy)))
"""
    assert subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True).stderr.strip() == ""


def test_a_command_of_a_service_that_is_not_installed_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "half_installed-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: half-installed\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[dearkd.commands]\nfly = no_such_package.fly:register\n")
    monkeypatch.syspath_prepend(tmp_path)
    outcome = run("fly", "--high")
    assert outcome.code == 1
    assert "no_such_package" in outcome.err
    assert "pip install" in outcome.err


def test_a_retry_may_start_over_and_says_so(run: Run, api: StandInApi) -> None:
    api.answer("POST /v1/training-runs/run-1/retry", a_job("run-1", "queued"), status=202)
    for options, body, said in (
        ((), b"", False),
        (("--from", "last"), b"", False),
        (("--from", "beginning"), {"from": "beginning"}, True),
    ):
        outcome = run("retry", "run-1", *options)
        assert (outcome.code, outcome.out) == (0, "run-1 queued\n")
        assert ("starts over" in outcome.err) == said
        sent = api.requests[-1].body
        assert (json.loads(sent) if sent else sent) == body
    assert run("retry", "run-1", "--from", "start").code == 2


def test_what_belongs_to_another_key_is_not_deleted_and_it_is_said_why(run: Run, api: StandInApi) -> None:
    detail = "tch-1 belongs to another key: only its owner and a key of DEARKD_ADMIN_KEYS may delete it"
    api.problem("DELETE /v1/teachers/tch-1", 403, "forbidden", detail)
    outcome = run("teacher", "delete", "tch-1")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.strip() == f"error: {detail}"
    assert json.loads(run("teacher", "delete", "tch-1", "--json").out)["error"]["code"] == "forbidden"


PLAN = {
    "spec": {
        "teacher": "tch-1",
        "preset": "auto",
        "classes": [0, 1],
        "images_per_class": 1000,
        "phases": [{"iterations": 200, "resolution": 16, "input_size": 32}],
    },
    "teacher_passes": 400_000,
    "images": 2000,
    "shards": 5,
    "estimated_bytes": 6_540_000,
    "student": None,
}


def test_a_dry_run_says_what_comes_out_and_how_long_it_takes_here(run: Run, api: StandInApi) -> None:
    api.answer("GET /v1/teachers/tch-1", a_teacher("tch-1", name="shoes"))
    api.answer("POST /v1/synthesis-jobs", PLAN)
    spec = synthesis_spec(teacher="tch-1", images_per_class=10, classes=list(range(10)))
    times = {"started_at": "2026-01-01T00:00:00Z", "finished_at": "2026-01-01T00:00:50Z"}
    done = a_job("syn-3", "succeeded", spec=spec.model_dump(mode="json"), **times)
    api.answer("GET /v1/synthesis-jobs", {"data": [a_job("syn-2")], "has_more": False})
    api.answer("GET /v1/synthesis-jobs", {"data": [done | {"attempt": 2}, done], "has_more": False})
    unknown = run("synth", "tch-1", "--dry-run").out
    assert "2,000: 1,000 of each of 2 classes" in unknown
    assert "5, about 6.5 MB" in unknown
    assert "200 iterations at 16 px, seen at 32" in unknown
    assert "time     not known" in unknown
    wanted = 400_000 / (spec.teacher_passes / 50)
    minutes, seconds = divmod(math.ceil(wanted), 60)
    assert run("synth", "tch-1", "--dry-run").out == unknown.replace(
        "not known: nothing like it has run here yet", f"about {minutes}:{seconds:02}, at the rate of syn-3"
    )


def test_a_dry_run_within_minutes_says_how_many_images_fit_into_them(run: Run, api: StandInApi) -> None:
    api.answer("GET /v1/teachers/tch-1", a_teacher("tch-1", name="shoes"))
    spec = synthesis_spec(teacher="tch-1", budget={"minutes": 2})
    plan = PLAN | {
        "spec": spec.model_dump(mode="json"),
        "images": 20_000,
        "least_images": 200,
        "forecasts": [400, 800, 1600],
        "teacher_passes": 2_000_000,
    }
    api.answer("POST /v1/synthesis-jobs", plan)
    times = {"started_at": "2026-01-01T00:00:00Z", "finished_at": "2026-01-01T00:00:50Z"}
    result = {"dataset": "ds-3", "ended_early": {"reason": "budget", "planned": 20_000, "made": 400, "detail": "x"}}
    done = a_job("syn-3", "succeeded", spec=spec.model_dump(mode="json"), result=result, **times)
    api.answer("GET /v1/synthesis-jobs", {"data": [done], "has_more": False})
    told = run("synth", "tch-1", "--budget", "2m", "--dry-run").out
    assert "at most 20,000: 2,000 of each of 10 classes" in told
    assert "2:00, in rounds of 200 images" in told
    assert "forecast after 400, 800, 1,600 images" in told
    assert "about 800 images in it, at the rate of syn-3" in told, "400 in 50 s are 960 in 120 s: four rounds"


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("2M-passes", {"teacher_passes": 2_000_000}),
        ("0.5k-passes", {"teacher_passes": 500}),
        ("2.01k-passes", {"teacher_passes": 2010}),
        ("1.001M-passes", {"teacher_passes": 1_001_000}),
        ("123-passes", {"teacher_passes": 123}),
        ("30m", {"minutes": 30.0}),
        ("2h", {"minutes": 120.0}),
        ("90s", {"minutes": 1.5}),
    ],
)
def test_a_budget_takes_the_place_of_that_of_the_file(
    run: Run, api: StandInApi, tmp_path: Path, text: str, budget: dict[str, Any]
) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text('{"budget": {"minutes": 7, "teacher_passes": 7}, "seed": 3}')
    api.answer("POST /v1/synthesis-jobs", a_job("syn-1", "queued"), status=202)
    assert run("synth", "tch-1", "--spec", spec, "--budget", text).code == 0
    assert json.loads(api.requests[0].body) == {"teacher": "tch-1", "seed": 3, "budget": budget}


@pytest.mark.parametrize(
    "text",
    ["", "30", "30-minutes", "-passes", "0-passes", "1.5-passes", "nan-passes", "1e999999999k-passes", "-3m", "1e999h"],
)
def test_what_is_no_budget_is_wrong_usage(run: Run, api: StandInApi, text: str) -> None:
    outcome = run("synth", "tch-1", f"--budget={text}")
    assert outcome.code == 2
    assert api.requests == []


def test_a_job_that_ended_early_says_why(run: Run, api: StandInApi) -> None:
    result = {"dataset": "ds-1", "ended_early": {"reason": "budget", "planned": 30, "made": 10, "detail": "time is up"}}
    api.answer("GET /v1/synthesis-jobs/syn-1", a_job("syn-1", "succeeded", result=result))
    outcome = run("watch", "syn-1")
    assert (outcome.code, outcome.out) == (0, "syn-1 succeeded: dataset ds-1\n")
    assert "it ended early: time is up" in outcome.err


def test_a_dry_run_of_training_says_its_steps_and_time(run: Run, api: StandInApi) -> None:
    spec = {"recipe": "small", "student": {"architecture": "a"}, "batch_size": 50}
    api.answer("POST /v1/training-runs", {"spec": spec, "images": 2000, "epochs": 3, "steps": 120})
    alike = a_job("run-1", "running", spec=spec, metrics={"images_per_second": 100.0})
    api.answer("GET /v1/training-runs", {"data": [a_job("run-2"), alike], "has_more": False})
    out = run("train", "ds-1", "--dry-run").out
    assert "3: 120 steps" in out
    assert "about 1:00, at the rate of run-1" in out
    assert [request.query for request in api.requests if request.method == "POST"] == [{"dry_run": "true"}]


def test_a_log_is_printed_as_it_is_without_what_moves_a_terminal(run: Run, api: StandInApi) -> None:
    api.answer("GET /v1/training-runs/run-1/log", b"one\ntwo \x1b[2J\n")
    assert run("log", "run-1").out == "one\ntwo \\x1b[2J\n"
    assert json.loads(run("log", "run-1", "--json").out) == {"id": "run-1", "lines": ["one", "two \x1b[2J"]}


def test_the_dashboard_is_opened_where_an_api_answers(
    run: Run, api: StandInApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or False)
    api.answer("GET /readyz", {})
    outcome = run("open")
    assert (outcome.code, outcome.out, opened) == (0, f"{api.url}/\n", [f"{api.url}/"])
    assert "no browser" in outcome.err
    monkeypatch.setenv("DEARKD_URL", f"http://127.0.0.1:{free_port()}")
    assert run("open").code == 1
    assert len(opened) == 1
