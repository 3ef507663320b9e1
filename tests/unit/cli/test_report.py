"""`dearkd report`: of a model, of a run, of a folder; and what it says where there is none."""

import hashlib
import json
from pathlib import Path

import pytest

from dearkd.cli import main
from tests.support.stand_in_api import StandInApi, a_job, a_model

PAGE = b"<!doctype html><title>r</title>"
LISTED = {"name": "report.html", "bytes": len(PAGE), "sha256": hashlib.sha256(PAGE).hexdigest()}


def dearkd(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments])
    return int(ended.value.code or 0)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def served(api: StandInApi) -> StandInApi:
    api.answer("GET /v1/models/mdl-1", a_model("mdl-1", name="vit", files=[LISTED]))
    api.answer("GET /v1/models/mdl-1/files/report.html", PAGE)
    api.answer("GET /v1/training-runs/run-1", a_job("run-1", "succeeded", result={"model": "mdl-1"}))
    api.answer("GET /v1/models", {"data": [a_model("mdl-1", name="vit", files=[LISTED])], "has_more": False})
    return api


@pytest.mark.parametrize("reference", ["mdl-1", "run-1", "vit"])
def test_it_comes_by_model_run_and_name(
    served: StandInApi, tmp_path: Path, capsys: pytest.CaptureFixture[str], reference: str
) -> None:
    assert dearkd(reference, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"model": "mdl-1", "report": "mdl-1.html"}
    assert (tmp_path / "mdl-1.html").read_bytes() == PAGE
    assert dearkd(reference, "--out", "here.html") == 0
    assert capsys.readouterr().out == "here.html\n"
    assert (tmp_path / "here.html").read_bytes() == PAGE


def test_it_is_opened_in_a_browser_where_asked(
    served: StandInApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address)))
    assert dearkd("mdl-1", "--open") == 0
    assert opened == [(tmp_path / "mdl-1.html").as_uri()]
    assert "no browser was found here" in capsys.readouterr().err


def test_a_folder_has_it_already(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "student").mkdir()
    assert dearkd("student") == 1
    assert "student holds no report.html" in capsys.readouterr().err
    (tmp_path / "student" / "report.html").write_bytes(PAGE)
    assert dearkd("student", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"model": None, "report": "student/report.html"}
    assert dearkd("student", "--out", "copy.html") == 0
    assert (tmp_path / "copy.html").read_bytes() == PAGE


def test_what_has_none_is_told(api: StandInApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api.answer("GET /v1/models/mdl-2", a_model("mdl-2"))
    api.answer("GET /v1/training-runs/run-2", a_job("run-2", "running"))
    api.answer("GET /v1/synthesis-jobs/syn-2", a_job("syn-2", "succeeded", result={"dataset": "ds-2"}))
    for reference, said in (
        ("mdl-2", "mdl-2 has no report.html: it was made by an older dearkd"),
        ("run-2", "run-2 (training) is running and has no model: a run's report comes with its model"),
        ("syn-2", "syn-2 (synthesis) is succeeded and has no model: give a training run"),
    ):
        assert dearkd(reference) == 1
        assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_one_that_was_altered_is_not_kept(
    served: StandInApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served.answer("GET /v1/models/mdl-3", a_model("mdl-3", files=[LISTED]))
    served.answer("GET /v1/models/mdl-3/files/report.html", PAGE.replace(b"r", b"s"))
    assert dearkd("mdl-3") == 1
    assert "report.html" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
