"""A model in a real browser: what it confuses, and its answers to an image; the inspector is a stand-in."""

import base64
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import rq
import torch
from PIL import Image

from dearkd.jobs.inspections import OPEN, Inspections
from dearkd.jobs.queue import queue
from dearkd.vision.attention_overlay import attention_overlay
from tests.services.dashboard.contents import NAMES, Contents, digit_png
from tests.support.browser import Visit
from tests.support.services import Api

pytestmark = pytest.mark.services


@contextmanager
def answering(api: Api) -> Iterator[None]:
    """An inspector that gives the same answer to whatever it is asked, with attention as it is drawn for a student."""
    inspections = Inspections(api.store.redis, api.storage)
    worker = rq.Worker([queue(api.store.redis, "inspect")], connection=api.store.redis)
    worker.register_birth()
    student, teacher = (
        [{"class": i, "name": NAMES[i], "probability": half**i * (1 - half)} for i in range(5)] for half in (0.5, 0.1)
    )
    places = torch.arange(8.0)
    shares = torch.exp(-((places[:, None] - 2) ** 2 + (places - 4) ** 2) / 4)
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(digit_png(0)))))[None]
    overlay = base64.b64encode(attention_overlay(pixels, shares)).decode()
    attention = {"shares": (shares / shares.sum()).tolist(), "overlay": f"data:image/png;base64,{overlay}"}
    answer = {"student": student, "teacher": teacher, "attention": attention}
    over = threading.Event()

    def answer_all() -> None:
        while not over.wait(0.05):
            for identifier in api.store.redis.smembers(OPEN):
                ticket = inspections.get(identifier.decode())
                if ticket is not None and ticket.under_way:
                    inspections.close(ticket, result=answer)

    thread = threading.Thread(target=answer_all)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        worker.register_death()


def test_a_model_is_looked_at_and_tried(visit: Visit, api: Api, contents: Contents) -> None:
    page = visit.page
    visit.open(f"/models/{contents.model}")
    assert "zero taken for one" in page.inner_text("main")
    image = {"name": "digit.png", "mimeType": "image/png", "buffer": digit_png(0)}
    page.set_input_files("#image", image)
    page.click("#try button")
    page.wait_for_selector("#answers .error")
    assert "no worker listens" in page.inner_text("#answers")
    with answering(api):
        page.click("#try button")
        page.wait_for_selector("#answers table")
    assert "50.0 %" in page.inner_text("#answers")
    assert "90.0 %" in page.inner_text("#answers")
    assert page.evaluate("document.querySelector('#answers img').naturalWidth") == 224
    visit.look("model")


def test_the_report_of_a_run_is_one_click_from_run_and_model(visit: Visit, contents: Contents) -> None:
    for page in (f"/runs/{contents.run}", f"/models/{contents.model}"):
        visit.open(page)
        visit.page.click("text=Report: everything on one page")
        visit.page.wait_for_selector("h1:text-is('Report')")
        assert visit.page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(1, 2, 3)"


def test_without_scripts_a_model_is_tried(plain: Visit, api: Api, contents: Contents) -> None:
    page = plain.page
    plain.open(f"/models/{contents.model}")
    page.set_input_files("#image", {"name": "digit.png", "mimeType": "image/png", "buffer": digit_png(0)})
    with answering(api):
        page.click("#try button")
    assert "50.0 %" in page.inner_text("#answers")
