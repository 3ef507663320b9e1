import inspect
import json
import os
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from dearkd.client import AsyncClient, Client
from dearkd.errors import Conflict, DearKDError, FieldError, InvalidInput, NotFound, TooLarge, Unavailable
from dearkd.local.embedded_redis import free_port
from tests.support.both_clients import WAYS, Way, connected
from tests.support.stand_in_api import StandInApi, a_dataset, a_job, a_model, a_teacher


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


def test_both_clients_have_the_same_calls_with_the_same_arguments() -> None:
    def calls(client: type[Any]) -> dict[str, Any]:
        members = {name: inspect.getattr_static(client, name) for name in dir(client) if not name.startswith("_")}
        return {name: member for name, member in members.items() if not isinstance(member, property)}

    assert calls(Client).keys() == calls(AsyncClient).keys()
    for name, call in calls(Client).items():
        assert inspect.signature(call) == inspect.signature(getattr(AsyncClient, name)), name
        assert call.__doc__ == getattr(AsyncClient, name).__doc__


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidInput),
        (404, NotFound),
        (409, Conflict),
        (413, TooLarge),
        (422, InvalidInput),
        (503, Unavailable),
        (500, DearKDError),
    ],
)
def test_a_problem_becomes_the_error_of_its_status(
    api: StandInApi, status: int, kind: type[DearKDError], way: Way
) -> None:
    fields = [{"pointer": "/a/0", "detail": "too many"}]
    api.problem("POST /v1/synthesis-jobs/syn-1/cancel", status, "the_code", "what is wrong", fields)
    with connected(way, api.url) as client, pytest.raises(DearKDError, match=r"^what is wrong$") as raised:
        client.cancel_job("syn-1")
    assert type(raised.value) is kind
    assert raised.value.code == "the_code"
    assert raised.value.errors == (FieldError("/a/0", "too many"),)


def test_what_may_be_sent_again_is_when_the_api_is_unavailable(api: StandInApi, tmp_path: Path, way: Way) -> None:
    """A GET always may; what creates something bears an `Idempotency-Key`, the same at each try."""
    (tmp_path / "w").write_bytes(b"weights")
    for call in ("GET /v1/teachers/tch-1", "POST /v1/datasets", "POST /v1/teachers"):
        api.problem(call, 503, "redis_unavailable", "Redis is away")
        api.answer(call, a_dataset("it") if "datasets" in call else a_teacher("it"))
    cancel = "POST /v1/synthesis-jobs/syn-1/cancel"
    api.problem(cancel, 503, "redis_unavailable", "Redis is away")
    with connected(way, api.url) as client:
        assert client.get_teacher("tch-1").id == "it"
        assert client.create_dataset("a/b", "name").id == "it"
        assert client.create_teacher({}, tmp_path / "w").id == "it"
        with pytest.raises(Unavailable, match="Redis is away"):
            client.cancel_job("syn-1")
    assert [request.method for request in api.requests] == ["GET"] * 2 + ["POST"] * 5
    keys = [request.headers.get("Idempotency-Key") for request in api.requests]
    assert keys[:2] == [None, None]
    assert keys[2] == keys[3] != keys[4] == keys[5]
    assert keys[6] is None
    assert api.requests[4].body.count(b"weights") == api.requests[5].body.count(b"weights")


def test_a_full_queue_is_waited_for_a_little_and_no_inspector_is_not(api: StandInApi, way: Way) -> None:
    job, dataset = "POST /v1/synthesis-jobs", "POST /v1/datasets"
    api.problem(job, 429, "too_many_jobs", "full")
    api.answer(job, a_job("syn-1"))
    api.problem(dataset, 503, "inspector_unavailable", "nobody listens")
    with connected(way, api.url) as client:
        assert client.create_synthesis_job(teacher="tch-1").id == "syn-1"
        with pytest.raises(Unavailable, match="nobody listens"):
            client.create_dataset("a/b", "name")
    assert len(api.requests) == 3


def test_where_no_api_answers_the_error_names_the_address_and_the_remedy(way: Way) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with (
        connected(way, url) as client,
        pytest.raises(Unavailable, match=rf"cannot reach {url} .*`dearkd up`") as raised,
    ):
        client.create_training_run({"dataset": "ds-1"})
    assert raised.value.code == "unreachable"


def test_what_is_no_api_of_ours_is_named_as_such(api: StandInApi, way: Way) -> None:
    api.answer("GET /v1/models/mdl-1", b"<html>It works!</html>")
    with connected(way, api.url) as client, pytest.raises(DearKDError, match="does not speak dearkd's API"):
        client.get_model("mdl-1")
    with pytest.raises(InvalidInput, match="no URL of an API"):
        Client("localhost:8000")


def test_pages_are_followed_from_the_last_id(api: StandInApi, way: Way) -> None:
    api.answer("GET /v1/training-runs", {"data": [a_job("run-3"), a_job("run-2")], "has_more": True})
    api.answer("GET /v1/training-runs", {"data": [a_job("run-1")], "has_more": False})
    with connected(way, api.url) as client:
        found = [job.id for job in client.list_jobs("training", status="running")]
    assert found == ["run-3", "run-2", "run-1"]
    first, second = (request.query for request in api.requests)
    assert "after" not in first
    assert second["after"] == "run-2"
    assert first["status"] == second["status"] == "running"


def test_an_upload_carries_the_spec_and_the_very_bytes(api: StandInApi, tmp_path: Path, way: Way) -> None:
    weights = tmp_path / "net.safetensors"
    weights.write_bytes(os.urandom(3 * 2**20))
    api.answer("POST /v1/teachers", a_teacher("tch-1"), status=201)
    spec = {"name": "größer", "mean": [0.5]}
    with connected(way, api.url, "secret") as client:
        assert client.create_teacher(spec, weights).id == "tch-1"
    (request,) = api.requests
    assert request.headers["Authorization"] == "Bearer secret"
    # Python's own MIME parser, as an independent reader of multipart bodies.
    head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
    parts = {_name_of(part): part for part in message_from_bytes(head + request.body).walk() if not part.is_multipart()}
    assert set(parts) == {"teacher", "weights"}
    assert json.loads(_payload(parts["teacher"])) == spec
    assert parts["weights"].get_filename() == "net.safetensors"
    assert _payload(parts["weights"]) == weights.read_bytes()


def test_an_upload_tells_how_far_it_is_and_begins_again_where_it_is_sent_again(
    api: StandInApi, tmp_path: Path, way: Way
) -> None:
    weights = tmp_path / "net.safetensors"
    weights.write_bytes(os.urandom(1_000_000))
    api.problem("POST /v1/teachers", 503, "redis_unavailable", "away")
    api.answer("POST /v1/teachers", a_teacher("tch-1"), status=201)
    told: list[tuple[int, int | None]] = []
    with connected(way, api.url) as client:
        client.create_teacher({}, weights, on_progress=lambda *now: told.append(now))
    done = [number for number, _ in told]
    assert {total for _, total in told} == {1_000_000}
    assert done.count(1_000_000) == 2
    assert done == 2 * sorted(set(done))
    assert len(set(done)) > 10


def test_what_a_newer_server_adds_is_ignored_and_what_it_changed_is_said(api: StandInApi, way: Way) -> None:
    api.answer("GET /v1/models/mdl-1", a_model("mdl-1", files=[], color="red"))
    api.answer("GET /v1/models/mdl-2", a_model("mdl-2", image_size={"height": 1}))
    with connected(way, api.url) as client:
        assert client.get_model("mdl-1").model_dump(mode="json").keys() >= a_model("mdl-1").keys()
        with pytest.raises(
            DearKDError, match=r"a TrainedModel .* cannot read \(/image_size: .*install the server"
        ) as raised:
            client.get_model("mdl-2")
    assert raised.value.code == "unreadable_answer"


def test_what_is_being_registered_is_seen_as_that(api: StandInApi, way: Way) -> None:
    refusal = {"code": "invalid_input", "message": "no BatchNorm", "retryable": False, "errors": []}
    api.answer("GET /v1/teachers/tch-1", {"id": "tch-1", "status": "registering"})
    api.answer("GET /v1/teachers/tch-2", {"id": "tch-2", "status": "failed", "error": refusal})
    with connected(way, api.url) as client:
        assert client.get_registration("tch-1").status == "registering"
        assert client.get_registration("tch-2").status == "failed"
        with pytest.raises(Conflict, match="is being registered"):
            client.get_teacher("tch-1")
        with pytest.raises(InvalidInput, match="no BatchNorm"):
            client.get_teacher("tch-2")


def test_what_the_inspector_refuses_after_the_first_answer_is_an_error_all_the_same(api: StandInApi, way: Way) -> None:
    api.answer("POST /v1/datasets", {"id": "ds-1", "status": "registering"}, status=202)
    refusal = {"code": "invalid_input", "message": "shard 7 is cut short", "retryable": False, "errors": []}
    api.answer("GET /v1/datasets/ds-1", {"id": "ds-1", "status": "failed", "error": refusal})
    with connected(way, api.url) as client, pytest.raises(InvalidInput, match="shard 7 is cut short"):
        client.create_dataset("a/b", "name")


def test_waiting_for_a_job_survives_an_outage_of_the_api(api: StandInApi, way: Way) -> None:
    call = "GET /v1/synthesis-jobs/syn-1"
    api.answer(call, a_job(status="queued"))
    for _ in range(6):  # more than a single GET's own tries
        api.problem(call, 503, "redis_unavailable", "away")
    api.answer(call, a_job(status="running"))
    api.answer(call, a_job(status="succeeded", result={"dataset": "ds-1"}))
    seen: list[str] = []
    with connected(way, api.url) as client:
        job = client.wait("syn-1", interval=0.01, on_progress=lambda job: seen.append(job.status))
    assert seen == ["queued", "running", "succeeded"]
    assert job.result == {"dataset": "ds-1"}
    assert api.requests[-1].query["wait"] == "0.01"


def test_a_download_is_whole_or_not_at_all(api: StandInApi, tmp_path: Path, way: Way) -> None:
    call = "GET /v1/datasets/ds-1/files/train-000000.tar"
    api.answer(call, b"half of", headers={"Content-Length": "1000"})
    api.answer(call, b"all of it")
    target = tmp_path / "shard.tar"
    with connected(way, api.url) as client:
        with pytest.raises(Unavailable):
            client.download_dataset_file("ds-1", "train-000000.tar", target)
        assert list(tmp_path.iterdir()) == []
        client.download_dataset_file("ds-1", "train-000000.tar", target)
    assert target.read_bytes() == b"all of it"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("odd", ["../../healthz", "syn-1/../../x", "syn-1?wait=9", "syn-#"])
def test_an_odd_id_never_leaves_its_place_in_the_path(api: StandInApi, odd: str, way: Way) -> None:
    with connected(way, api.url) as client, pytest.raises(DearKDError):
        client.get_teacher(odd)
    assert all(request.path.startswith("/v1/teachers/") and not request.query for request in api.requests)


def _name_of(part: Message) -> Any:
    return part.get_param("name", header="content-disposition")


def _payload(part: Message) -> bytes:
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return payload
