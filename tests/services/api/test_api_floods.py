"""Requests that are made to be dear: each is refused, and others are answered meanwhile."""

import json
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import psutil
import pytest
import rq

from dearkd.jobs.inspections import OPEN, Inspections
from dearkd.jobs.queue import queue
from tests.services.api.test_api_teachers import GOOD, SPEC, TEACHER, assert_nothing_stored, form
from tests.support.api_contents import pointers, put_model
from tests.support.pages import HTML, forms, get
from tests.support.services import Api, eventually

pytestmark = pytest.mark.services

MOST = 2_800_000
"""Bytes of an upload that this API takes."""


def header(text: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text.encode() + data


def entry(shape: str, offsets: str = "[0,0]") -> str:
    return f'{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}'


def tensors(count: int) -> str:
    return "{" + ",".join(f'"{i}":{entry("[0]")}' for i in range(count)) + "}"


HEADERS = {
    "150,000 dimensions": f'{{"a":{entry("[" + ",".join(["9999999"] * 150_000) + "]")}}}',
    "300,000 dimensions": f'{{"a":{entry("[" + ",".join(["9999"] * 300_000) + "]")}}}',
    "many short shapes": "{" + ",".join(f'"{i}":{entry("[" + "9," * 98 + "9]")}' for i in range(9000)) + "}",
    "a number of 2 million digits": f'{{"a":{entry("[" + "9" * 2_000_000 + "]")}}}',
    "numbers of 900 digits": "{" + ",".join(f'"{i}":{entry("[" + "9" * 900 + "]")}' for i in range(2500)) + "}",
    "tensors": tensors(45_000),
    "objects": '{"a":[' + ",".join(["{}"] * 900_000) + "]}",
    "objects in the metadata": '{"__metadata__":{"a":[' + ",".join(["{}"] * 900_000) + "]}}",
    "metadata": '{"__metadata__":{' + ",".join(['"":""'] * 450_000) + '},"a":3}',
    "one name": f'{{"{"x" * 2_500_000}":3}}',
    "depth": '{"a":' + "[" * 2_500_000,
    "depth of objects": '{"a":' * 500_000,
    "blanks": "{" + " " * 2_500_000,
    "names": "{" + ",".join(f'"{i}":{{}}' for i in range(200_000)) + "}",
}


class Watch:
    """The longest time that `/healthz` takes, asked by a process's own thread again and again."""

    def __init__(self, api: Api) -> None:
        self.longest = 0.0
        self._url = api.url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=90, trust_env=False) as http:
            while not self._stop.wait(0.01):
                start = time.monotonic()
                assert http.get("/healthz").status_code == 200
                self.longest = max(self.longest, time.monotonic() - start)


@pytest.fixture
def at_rest(api: Api) -> float:
    """The longest answer of an API that nobody attacks: what this machine is good for just now."""
    with Watch(api) as watch:
        time.sleep(0.5)
    return watch.longest


def assert_prompt(watch: Watch, at_rest: float) -> None:
    assert watch.longest < 1 + 3 * at_rest, f"/healthz took {watch.longest:.1f} s, and {at_rest:.2f} s at rest"


def memory(api: Api) -> int:
    return psutil.Process(api.process.pid).memory_info().rss


@pytest.mark.parametrize("text", HEADERS.values(), ids=HEADERS)
def test_no_header_of_weights_stops_the_others(api: Api, at_rest: float, text: str) -> None:
    weights = header(text)
    assert len(weights) < MOST
    request = form(TEACHER, ("weights", "w.safetensors", weights))
    before = memory(api)
    with Watch(api) as watch:
        answer = api.http.post("/v1/teachers", **request)
    assert (answer.status_code in (422, 503), pointers(answer)) == (
        True,
        ["/weights"] if answer.status_code == 422 else [],
    )
    assert len(answer.content) < 3000
    assert_prompt(watch, at_rest)
    assert memory(api) - before < 200e6
    assert_nothing_stored(api)


BODIES: dict[str, bytes] = {
    "unknown fields": json.dumps({f"{i}": 1 for i in range(7_000)}).encode(),
    "a number of 90,000 digits": b'{"seed": ' + b"9" * 90_000 + b"}",
    "a great exponent": b'{"learning_rate": 1e' + b"9" * 90_000 + b"}",
    "a list of wrong items": b'{"classes": [' + b",".join([b'""'] * 30_000) + b"]}",
    "depth": b'{"phases": ' + b'[{"a":' * 15_000,
    "closed depth": b'{"a": ' + b"[" * 45_000 + b"]" * 45_000 + b"}",
    "phases": b'{"phases": [' + b",".join([b"{}"] * 30_000) + b"]}",
    "a long name": b'{"name": "' + b"x" * 90_000 + b'"}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("path", ["/v1/synthesis-jobs", "/v1/training-runs", "/v1/datasets"])
def test_no_body_stops_the_others_or_is_answered_at_length(api: Api, at_rest: float, path: str, body: bytes) -> None:
    with Watch(api) as watch:
        answer = api.http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text[:500]
    assert len(answer.content) < 100_000
    assert_prompt(watch, at_rest)


TEACHERS: dict[str, str] = {
    "unknown fields": json.dumps(SPEC | {f"{i}": 1 for i in range(80_000)}),
    "names of another type": json.dumps(SPEC | {"class_names": [1] * 300_000}),
    "arguments": json.dumps(SPEC | {"model_args": {f"{i}": "" for i in range(80_000)}}),
    "names with control characters": json.dumps(SPEC | {"num_classes": 90_000, "class_names": ["\x1b"] * 90_000}),
}


@pytest.mark.parametrize("text", TEACHERS.values(), ids=TEACHERS)
def test_no_description_of_a_teacher_stops_the_others(api: Api, at_rest: float, text: str) -> None:
    with Watch(api) as watch:
        answer = api.http.post("/v1/teachers", **form(("teacher", None, text), GOOD))
    assert answer.status_code == 422
    assert len(answer.content) < 100_000
    assert_prompt(watch, at_rest)
    assert_nothing_stored(api)


HEAD = b"--boundary-of-the-test\r\n"
DISPOSITION = b'content-disposition: form-data; name="weights"\r\n'
FORMS: dict[str, bytes] = {
    "a header's value": HEAD + DISPOSITION + b"x: " + b"y" * 2_500_000,
    "a header's name": HEAD + b"x" * 2_500_000,
    "headers": HEAD + DISPOSITION + b"".join(b"x-%d: y\r\n" % i for i in range(150_000)),
    "parts": (HEAD + b'content-disposition: form-data; name="x"\r\n\r\n\r\n') * 30_000,
    "parts without a name": (HEAD + b"\r\n\r\n") * 80_000,
    "ends of lines": HEAD + DISPOSITION + b"\r\n" + b"\r\n-" * 800_000,
    "boundaries that are none": HEAD + DISPOSITION + b"\r\n" + b"\r\n--boundary-of-the-tesx" * 100_000,
    "a preamble": b"x" * 2_500_000,
    "parameters": HEAD + b"content-disposition: form-data" + b';a="b"' * 400_000,
}


@pytest.mark.parametrize("body", FORMS.values(), ids=FORMS)
def test_no_form_stops_the_others(api: Api, at_rest: float, body: bytes) -> None:
    assert len(body) < MOST
    headers = {"content-type": "multipart/form-data; boundary=boundary-of-the-test"}
    before = memory(api)
    with Watch(api) as watch:
        answer = api.http.post("/v1/teachers", content=body, headers=headers)
    assert answer.status_code == 422, answer.text[:500]
    assert len(answer.content) < 3000
    assert_prompt(watch, at_rest)
    assert memory(api) - before < 100e6
    assert_nothing_stored(api)


def test_images_that_wait_for_the_inspector_are_not_held_in_memory(api: Api) -> None:
    model = put_model(api)
    path = f"/models/{model}/predict"
    (form,) = forms(get(api, f"/models/{model}").text, path)
    size = 8 * 2**20
    image = {"image": ("x.png", bytes(size), "image/png")}
    worker = rq.Worker([queue(api.store.redis, "inspect")], connection=api.store.redis)
    worker.register_birth()  # it is there, and does nothing
    inspections = Inspections(api.store.redis, api.storage)

    def ask(_: int) -> int:
        with httpx.Client(base_url=api.url, timeout=90, trust_env=False) as http:
            return http.post(path, data=form, files=image, headers=HTML).status_code

    def all_wait(count: int) -> bool:
        return api.store.redis.scard(OPEN) == count

    held = []
    with ThreadPoolExecutor(30) as pool:
        asking = []
        for wave in (10, 20):  # what a first wave has left to the allocator serves the second one
            asking += [pool.submit(ask, i) for i in range(wave)]
            eventually(partial(all_wait, len(asking)), seconds=50)
            held.append(memory(api))
        for identifier in api.store.redis.smembers(OPEN):
            ticket = inspections.get(identifier.decode())
            assert ticket is not None
            inspections.close(ticket, result={"student": [], "teacher": None})
        assert {one.result() for one in asking} == {200}
    worker.register_death()
    assert held[1] - held[0] < 18 * size, f"{(held[1] - held[0]) / size:.1f} images"
