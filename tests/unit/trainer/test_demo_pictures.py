"""The demo's pictures while images are made: said where they are with the first, and of the main job alone."""

import io
from pathlib import Path

from rich.console import Console

from dearkd.client import Client
from dearkd.storage.objects import Storage
from dearkd_trainer.demo.run import Demo
from tests.support.api_contents import png
from tests.support.stand_in_api import a_job, stand_in_api


def test_the_first_picture_is_told_when_it_is_there_and_other_jobs_leave_it_alone(tmp_path: Path) -> None:
    said = io.StringIO()
    with stand_in_api() as api, Client(api.url) as client:
        for job in ("syn-1", "syn-2"):
            api.answer(f"GET /v1/synthesis-jobs/{job}", a_job(job))
            api.answer(f"GET /v1/synthesis-jobs/{job}", a_job(job, "succeeded"))
            api.answer(f"GET /v1/synthesis-jobs/{job}/live.png", png(8, shade=10 if job == "syn-1" else 20))
        demo = Demo(client, Storage.open, tmp_path, Console(file=said, width=200), seed=0)
        for job in ("syn-1", "syn-2"):
            demo.finished(job)
    assert (tmp_path / "preview.png").read_bytes() == png(8, shade=10)
    lines = said.getvalue().splitlines()
    (told,) = [number for number, line in enumerate(lines) if str(tmp_path / "preview.png") in line]
    ended = next(number for number, line in enumerate(lines) if "syn-1 succeeded" in line)
    assert told < ended, "not at the end"
