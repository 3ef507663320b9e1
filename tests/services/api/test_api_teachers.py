"""What the API says of an upload by itself, and that nothing of a refused one stays."""

import io
import json
import pickle
import struct
import zipfile
from typing import Any

import pytest
from rq import Worker
from rq.serializers import JSONSerializer

from dearkd.jobs.queue import queue
from tests.support.api_contents import pointers
from tests.support.services import Api

pytestmark = pytest.mark.services

TEACHERS = "/v1/teachers"
SPEC: dict[str, Any] = {
    "name": "t",
    "architecture": "resnet10t",
    "num_classes": 10,
    "in_chans": 1,
    "image_size": 32,
    "mean": [0.5],
    "std": [0.5],
}


def safetensors(header: dict[str, Any] | list[Any] | None = None, data: bytes = bytes(8)) -> bytes:
    """By the format's description: length (u64, little-endian), JSON, data."""
    if header is None:
        header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"format": "pt"}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def form(*parts: tuple[str, str | None, bytes | str]) -> dict[str, Any]:
    """Parts in the order given: name, filename or None, contents. Names may repeat."""
    boundary = "boundary-of-the-test"
    body = b""
    for name, filename, content in parts:
        disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
        content = content.encode() if isinstance(content, str) else content
        body += f"--{boundary}\r\ncontent-disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"
    body += f"--{boundary}--\r\n".encode()
    return {"content": body, "headers": {"content-type": f"multipart/form-data; boundary={boundary}"}}


def assert_nothing_stored(api: Api) -> None:
    for prefix in ("tmp", "teachers"):
        assert list(api.storage.objects(prefix)) == []


GOOD = ("weights", "w.safetensors", safetensors())
TEACHER = ("teacher", None, json.dumps(SPEC))


@pytest.mark.parametrize(
    "parts",
    [
        [TEACHER, GOOD],
        [GOOD, TEACHER],
        [("teacher", "teacher.json", json.dumps(SPEC)), ("weights", None, safetensors())],
    ],
)
def test_without_an_inspector_nothing_is_taken(api: Api, parts: list[Any]) -> None:
    answer = api.http.post(TEACHERS, **form(*parts))
    assert (answer.status_code, answer.json()["code"]) == (503, "inspector_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert_nothing_stored(api)


def test_an_inspector_that_fell_silent_counts_as_none(api: Api) -> None:
    redis = api.store.redis
    worker = Worker([queue(redis, "inspect")], connection=redis, serializer=JSONSerializer)
    worker.register_birth()
    redis.expire(worker.key, 0)
    answer = api.http.post(TEACHERS, **form(TEACHER, GOOD))
    assert (answer.status_code, answer.json()["code"]) == (503, "inspector_unavailable")


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return file.getvalue()


def _entry(**fields: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | fields}


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (_zip(), "zip archive"),
        (pickle.dumps({"a": 1}), "pickle"),
        (b"", "empty"),
        (b"12345678", "starts with 31 32 33"),
        (bytes(range(1, 200)), "starts with 01 02"),
        (safetensors()[:-1], "cut short"),
        (safetensors(data=bytes(9)), "altered"),
        (safetensors()[:20], "no safetensors header"),
        (struct.pack("<Q", 10**12) + b"{}", "no safetensors header"),
        (safetensors([]), "no JSON object"),
        (safetensors({}), "no tensor"),
        (safetensors(_entry(dtype="F31")), "'a'"),
        (safetensors(_entry(shape=[3])), "shape [3]"),
        (safetensors(_entry(shape=[-1, -2])), "'a'"),
        (safetensors(_entry(shape="2")), "'a'"),
        (safetensors(_entry(data_offsets=[0, 8, 9])), "'a'"),
        (safetensors(_entry(data_offsets=[8, 16]), bytes(16)), "starts at byte 8"),
        (safetensors({"a": _entry()["a"], "b": _entry()["a"]}), "'b' starts at byte 0"),
        (safetensors({"a": 3}), "'a'"),
    ],
)
def test_what_is_no_safetensors_is_named_with_the_remedy(api: Api, weights: bytes, said: str) -> None:
    answer = api.http.post(TEACHERS, **form(TEACHER, ("weights", "model.pth", weights)))
    assert (answer.status_code, answer.json()["code"]) == (422, "not_safetensors")
    assert pointers(answer) == ["/weights"]
    assert said in answer.json()["detail"]
    assert "safetensors.torch.save_file" in answer.json()["detail"]
    assert_nothing_stored(api)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_classes": "10"}, ["/num_classes"]),
        ({"bogus": 1, "in_chans": 2}, ["/bogus", "/in_chans"]),
        ({"model_args": {"pretrained": True}}, ["/model_args"]),
        ({"mean": [0.5, 0.5]}, ["/mean"]),
        ({"class_names": ["a"]}, ["/class_names"]),
        ({"image_size": 2048}, ["/image_size"]),
        ({"architecture": "../x"}, ["/architecture"]),
    ],
)
def test_a_bad_description_is_refused(api: Api, change: dict[str, Any], expected: list[str]) -> None:
    answer = api.http.post(TEACHERS, **form(GOOD, ("teacher", None, json.dumps(SPEC | change))))
    assert (answer.status_code, set(pointers(answer))) == (422, set(expected))
    assert_nothing_stored(api)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([TEACHER], ["/weights"]),
        ([GOOD], ["/teacher"]),
        ([], ["/teacher", "/weights"]),
        ([TEACHER, GOOD, ("extra", None, "1")], ["/extra"]),
        ([TEACHER, GOOD, GOOD], ["/weights"]),
        ([TEACHER, TEACHER, GOOD], ["/teacher"]),
        ([("teacher", None, "{"), GOOD], ["/teacher"]),
        ([("teacher", None, "[]"), ("weights", "w", b"x")], ["/teacher", "/weights"]),
    ],
)
def test_missing_unknown_and_double_parts_are_refused(api: Api, parts: list[Any], expected: list[str]) -> None:
    answer = api.http.post(TEACHERS, **form(*parts))
    assert (answer.status_code, pointers(answer)) == (422, expected)
    assert_nothing_stored(api)


def test_what_is_no_whole_form_is_refused(api: Api) -> None:
    whole = form(TEACHER, GOOD)
    cut = {"content": whole["content"][:-30], "headers": whole["headers"]}
    no_boundary = {"content": whole["content"], "headers": {"content-type": "multipart/form-data"}}
    for request in (cut, no_boundary, {"content": b"x", "headers": whole["headers"]}):
        answer = api.http.post(TEACHERS, **request)
        assert (answer.status_code, pointers(answer)) == (422, [""])
    answer = api.http.post(TEACHERS, json=SPEC)
    assert (answer.status_code, pointers(answer)) == (422, ["/prefix"])
    assert "multipart/form-data" in answer.json()["detail"]
    assert_nothing_stored(api)


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_over_the_limits_is_refused(api: Api, chunked: bool) -> None:
    for parts in (
        [TEACHER, ("weights", "w", bytes(3_100_000))],
        [("teacher", None, " " * 1_100_000 + json.dumps(SPEC)), GOOD],
    ):
        request = form(*parts)
        if chunked:
            request["content"] = iter([request["content"][:1_000_000], request["content"][1_000_000:]])
        answer = api.http.post(TEACHERS, **request)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert_nothing_stored(api)
