"""Requests that no client means: whatever is in them, the answer is a clear 4xx, and never a fault of the server."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from dearkd.specs import TrainingRequest
from tests.support.api_contents import pointers, post_synthesis, put_dataset, put_model, put_teacher
from tests.support.services import Api

pytestmark = pytest.mark.services

Json = dict[str, Any]
TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    "\ud800",
    "\udcff\udcfe",
    "\u202egnp.exe",
    "\x1b[31mred",
    "x" * 256,
    "x" * 10_000,
    "😀" * 64,
    "é/" * 400 + "é",
    "..",
    "../../etc/passwd",
    "a//b",
    "%00",
    "%2e%2e%2f",
    "tch-",
    "tch-" + "z" * 20,
    "tch-00000000000-00000000",
    "ds-00000000000-00000000\n",
    "syn-٠٠٠٠٠٠٠٠٠٠٠-٠٠٠٠٠٠٠٠",
    "__class__",
    "{}",
    "$ref",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    -(2**64),
    10**400,
    1e308,
    5e-324,
    0.5,
    [],
    {},
    [[]],
    [None],
    [10**30],
    {"": None},
    {"a": {"b": {"c": []}}},
    *TEXTS[2:12],
)
RAW = (
    b"",
    b" ",
    b"null",
    b"[]",
    b'"x"',
    b"{",
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    b'{"teacher": "\xff"}',
    b"{}{}",
    b"NaN",
    b'{"seed": NaN}',
    b'{"seed": -Infinity}',
    b'{"seed": 1e999}',
    b'{"seed": ' + b"9" * 10_000 + b"}",
    b'{"teacher": "t", "images_per_class": ' + b"9" * 4300 + b"}",
    b"[" * 50_000,
    b'{"a":' * 15_000 + b"1" + b"}" * 15_000,
    b'{"prefix": "a", "prefix": "b"}',
    b'{"from": "last", "from": "last"}',
    b'{"name": "\\ud800"}',
    b'{"\\ud800": 1}',
    b'{"\\u0000": 1}',
    b'{"%s": 1}' % (b"k" * 10_000),
)
JSON = {"content-type": "application/json"}


def clear(answer: httpx.Response, *, of: object, allowed: tuple[int, ...] = ()) -> None:
    """Whether it is a problem document of the client's fault, or what is allowed besides."""
    if answer.status_code not in allowed:
        assert 400 <= answer.status_code < 500, (f"{of!r:.200}", answer.status_code, answer.text[:500])
        pointers(answer)


def test_whatever_stands_in_a_field_is_accepted_or_refused_clearly(api: Api) -> None:
    job = post_synthesis(api)
    addresses: list[tuple[str, Json]] = [
        ("/v1/synthesis-jobs", api.http.get(job["links"]["self"]).json()["spec"]),
        ("/v1/training-runs", {"dataset": job["id"], "stage_one": {}, "student": {}, "teacher": None, "seed": 1}),
        ("/v1/datasets", {"prefix": "shared/none", "name": "n"}),
        (f"{job['links']['self']}/retry", {"from": "last"}),
    ]
    for path, valid in addresses:
        more = TrainingRequest.model_fields if path.endswith("runs") else ()
        for field in dict.fromkeys([*valid, *more, "unknown"]):
            for value in VALUES:
                body = json.dumps({**valid, field: value})
                answer = api.http.post(path, content=body, headers=JSON, params=dry(path))
                clear(answer, of=(path, field, value), allowed=(200, 202) if path.endswith(("jobs", "runs")) else ())
        for raw in RAW:
            clear(api.http.post(path, content=raw, headers=JSON, params=dry(path)), of=(path, raw))
    assert [listed["id"] for listed in api.http.get("/v1/synthesis-jobs").json()["data"]] == [job["id"]]


def dry(path: str) -> dict[str, str]:
    return {"dry_run": "true"} if path.endswith(("jobs", "runs")) else {}


def test_whatever_stands_in_a_teachers_description_is_refused_clearly(api: Api) -> None:
    valid = {
        "name": "t",
        "architecture": "resnet10t",
        "num_classes": 10,
        "in_chans": 1,
        "image_size": 32,
        "mean": [0.5],
        "std": [0.5],
        "model_args": {},
        "class_names": [str(i) for i in range(10)],
    }
    described = [json.dumps({**valid, field: value}).encode() for field in valid for value in VALUES]
    for text in [*described, *RAW]:
        answer = api.http.post("/v1/teachers", files={"teacher": (None, text), "weights": (None, b"no weights")})
        clear(answer, of=text)
    for name in ("", "x" * 10_000, "\0", "teacher\0", "é", '"'):
        clear(api.http.post("/v1/teachers", files={name: (None, b"{}")}), of=name)
    assert not list(api.storage.objects("teachers")) + list(api.storage.objects("tmp"))


def quoted(text: str) -> str:
    """For an address; dots too, which a client would resolve."""
    return quote(text.encode(errors="surrogatepass"), safe="").replace(".", "%2e")


def odd_paths() -> Iterator[str]:
    for text in TEXTS:
        yield quoted(text) or "%20"
    yield "%ff%fe"


def test_whatever_stands_in_an_address_is_not_found(api: Api, tmp_path: Any) -> None:
    teacher, dataset, model = put_teacher(api), put_dataset(api, tmp_path, images=10), put_model(api)
    for odd in odd_paths():
        for method, path in (
            ("GET", f"/v1/teachers/{odd}"),
            ("DELETE", f"/v1/teachers/{odd}"),
            ("GET", f"/v1/datasets/{odd}"),
            ("DELETE", f"/v1/datasets/{odd}"),
            ("GET", f"/v1/datasets/{odd}/files/x"),
            ("GET", f"/v1/datasets/{dataset}/files/{odd}"),
            ("HEAD", f"/v1/datasets/{dataset}/files/{odd}"),
            ("GET", f"/v1/models/{odd}"),
            ("GET", f"/v1/models/{model}/files/{odd}"),
            *((m, f"/v1/{kind}/{odd}{suffix}") for kind in ("synthesis-jobs", "training-runs") for m, suffix in (
                ("GET", ""), ("GET", "/events"), ("GET", "/log"), ("POST", "/cancel"), ("POST", "/retry"),
                ("POST", "/pause"), ("POST", "/resume"),
            )),
            ("GET", f"/v1/teachers/{odd}/checks/{odd}"),
            ("GET", f"/v1/teachers/{teacher}/checks/{odd}"),
            ("POST", f"/v1/models/{odd}/predict"),
            *(("GET", f"/v1/synthesis-jobs/{odd}/{name}") for name in ("preview.png", "live.png", "timelapse.webp")),
            ("GET", f"/v1/training-runs/{odd}/metrics"),
            ("GET", f"/v1/training-runs/{odd}/checkpoints"),
            ("GET", f"/v1/training-runs/{odd}/checkpoints/{odd}/files/{odd}"),
        ):  # fmt: skip
            answer = api.http.request(method, path)
            assert answer.status_code in (404, 405), (method, path, answer.status_code, answer.text[:300])


def test_whatever_stands_in_a_query_is_refused_clearly(api: Api) -> None:
    job = post_synthesis(api, teacher=put_teacher(api))
    run = api.http.post("/v1/training-runs", json={"dataset": job["id"]}).json()
    for name, paths in {
        "after": (
            "/v1/teachers",
            "/v1/datasets",
            "/v1/models",
            "/v1/synthesis-jobs",
            job["links"]["events"],
            run["links"]["metrics"],
            run["links"]["checkpoints"],
            "/v1/events",
        ),
        "limit": ("/v1/teachers", job["links"]["events"]),
        "wait": (job["links"]["self"],),
        "status": ("/v1/synthesis-jobs",),
        "created_after": ("/v1/synthesis-jobs",),
    }.items():
        odd = ["٣-٣", "1-1-1", "1e3", "nan", "-inf", "0x1", "99999999999999999999-1", *TEXTS]
        for value in [*(quoted(text) for text in odd if text != "tch-00000000000-00000000"), "%ff"]:
            for path in paths:
                answer = api.http.get(f"{path}?{name}={value}")
                clear(answer, of=(path, name, value))
                assert pointers(answer) == [f"/{name}"]
