"""Clients that send or take too slowly, open too much or guess keys: they end, and everybody else goes on meanwhile."""

import hashlib
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from dearkd.settings import Settings
from dearkd.storage.catalog import StoredFile, models
from tests.services.api.test_api_teachers import GOOD, TEACHER, form
from tests.support.api_contents import Json, pointers, put_model
from tests.support.services import Api, database, eventually, inspecting, serving

pytestmark = pytest.mark.services

SLOTS = 8
UPLOAD = "POST /v1/teachers HTTP/1.1\r\ncontent-type: multipart/form-data; boundary=b\r\ncontent-length: 3000000\r\n"
PART = '--b\r\ncontent-disposition: form-data; name="weights"; filename="w"\r\n\r\n'
JSON = "POST /v1/synthesis-jobs HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 90\r\n"
KEY = "a-right-key-0123456789"


@pytest.fixture(scope="module")
def hasty(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API that waits for nobody."""
    folder = tmp_path_factory.mktemp("hasty")
    settings = Settings(
        redis_url=database(redis_server, 6),
        storage_url=f"file://{folder}/storage",
        cache_dir=folder / "cache",
        max_connections=40,
        header_seconds=2,
        body_seconds=2,
        send_seconds=3,
        min_upload_rate=10_000,
        upload_rate_seconds=2,
        upload_wait_seconds=1,
    )
    with serving(settings, folder) as api:
        yield api


@pytest.fixture(scope="module")
def hasty_inspector(hasty: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with inspecting(hasty.settings, tmp_path_factory.mktemp("hasty-inspector")):
        yield


@pytest.fixture(scope="module")
def patient(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API with the deadlines that it has by itself, but with few connections."""
    folder = tmp_path_factory.mktemp("patient")
    settings = Settings(
        redis_url=database(redis_server, 7),
        storage_url=f"file://{folder}/storage",
        cache_dir=folder / "cache",
        max_connections=40,
    )
    with serving(settings, folder) as api:
        yield api


def send(api: Api, text: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", api.settings.port), timeout=60)
    connection.sendall(text.encode())
    return connection


def rest(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection; it must not leave that to us."""
    received = b""
    try:
        while chunk := connection.recv(2**16):
            received += chunk
    except ConnectionError:
        pass
    return received


def document(answer: bytes) -> Json:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    value: Json = json.loads(body)
    assert head.startswith(f"HTTP/1.1 {value['status']} ".encode())
    return value


def is_alive(api: Api) -> bool:
    with httpx.Client(trust_env=False, timeout=30) as client:
        return client.get(f"{api.url}/healthz").status_code == 200


@pytest.mark.parametrize(
    "text",
    ["", "GET", "GET /v1/teachers HTTP/1.1\r\n", "GET / HTTP/1.1\r\nhost: x\r\nx-a: b", "POST / HTTP/1.1\r\nc"],
)
def test_who_sends_no_whole_head_is_closed(hasty: Api, text: str) -> None:
    with send(hasty, text) as connection:
        answer = rest(connection)
    assert (document(answer)["status"] if text else answer) == (408 if text else b"")


def is_closed_on(connection: socket.socket, drop: bytes) -> bool:
    """Whether the server ends a connection on which so much comes five times a second."""
    connection.settimeout(0.2)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            connection.sendall(drop)
            if connection.recv(1000) == b"":
                return True
        except TimeoutError:
            pass
        except ConnectionError:
            return True
    return False


def test_a_head_that_drips_is_no_excuse(hasty: Api) -> None:
    with send(hasty, "GET / HTTP/1.1\r\n") as connection:
        assert is_closed_on(connection, b"x-a: b\r\n")


def test_a_second_request_on_a_connection_has_its_deadline_too(hasty: Api) -> None:
    with send(hasty, "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET /hea") as connection:
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "head",
    [
        JSON,
        JSON.replace("synthesis-jobs", "training-runs"),
        JSON.replace("synthesis-jobs", "datasets"),
        JSON.replace("content-length: 90", "transfer-encoding: chunked"),
        UPLOAD,
        UPLOAD.replace("content-length: 3000000", "transfer-encoding: chunked"),
    ],
)
def test_a_body_that_does_not_come_is_408_and_ends_the_connection(hasty: Api, head: str) -> None:
    with send(hasty, f"{head}host: localhost\r\n\r\n") as connection:
        problem = document(rest(connection))
    assert (problem["status"], problem["code"]) == (408, "too_slow")
    assert "DEARKD_" in problem["detail"]


def test_what_a_refused_request_goes_on_sending_is_not_read_for_ever(hasty: Api) -> None:
    """Its answer is complete, and then its body drips."""
    with send(hasty, "POST /v1/nothing HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n") as connection:
        assert is_closed_on(connection, b"x")


@pytest.mark.usefixtures("hasty_inspector")
@pytest.mark.parametrize("begun", [False, True])
def test_uploads_that_drip_free_their_places_and_nothing_of_them_stays(hasty: Api, begun: bool) -> None:
    """`begun`: so much of them came that each has taken a place."""
    with ExitStack() as stack:
        text = f"{UPLOAD}host: localhost\r\n\r\n{PART}" + "x" * (100_000 if begun else 0)
        drips = [stack.enter_context(send(hasty, text)) for _ in range(SLOTS + 4)]
        eventually(lambda: hasty.http.post("/v1/teachers", **form(TEACHER, GOOD)).status_code in (201, 422))
        assert is_alive(hasty)
        problems = [document(rest(connection)) for connection in drips]
    codes = {problem["code"] for problem in problems}
    assert "too_slow" in codes
    assert codes <= ({"too_slow", "busy"} if begun else {"too_slow"})
    assert list(hasty.storage.objects("tmp")) == []


def test_while_all_places_are_taken_an_upload_is_told_to_come_later(patient: Api) -> None:
    with ExitStack() as stack:
        text = f"{UPLOAD}host: localhost\r\n\r\n{PART}" + "x" * 100_000
        for _ in range(SLOTS):
            stack.enter_context(send(patient, text))
        refused = None
        while refused is None or refused.json()["code"] != "busy":  # until all eight are there
            refused = patient.http.post("/v1/teachers", **form(TEACHER, GOOD))
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert pointers(refused) == []
        assert is_alive(patient)


def put_large_model(api: Api) -> str:
    """A model whose config.json takes a while to send."""
    content = b"x" * 2**24
    file = StoredFile(name="config.json", bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    model = put_model(api, files=[file])
    api.storage.put(models(api.storage).key(model, file.name), content)
    return model


def test_silent_connections_keep_nobody_out(patient: Api) -> None:
    """Five times as many as there may be, long before any deadline."""
    with ExitStack() as stack:
        for text in ("", "GET / HT", f"{JSON}host: localhost\r\n\r\n", f"{UPLOAD}host: localhost\r\n\r\n{PART}"):
            for _ in range(50):
                stack.enter_context(send(patient, text))
            assert is_alive(patient)
            assert patient.http.get("/v1/teachers").status_code == 200


def test_where_all_connections_are_busy_the_next_is_told_so(patient: Api) -> None:
    model = put_large_model(patient)
    with ExitStack() as stack:
        get = f"GET /v1/models/{model}/files/config.json HTTP/1.1\r\nhost: localhost\r\n\r\n"
        for _ in range(patient.settings.max_connections):
            assert stack.enter_context(send(patient, get)).recv(100).startswith(b"HTTP/1.1 200")
        with send(patient, "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n") as connection:
            problem = document(rest(connection))
    assert (problem["status"], problem["code"]) == (503, "too_many_connections")
    eventually(lambda: is_alive(patient))


def test_who_takes_nothing_of_an_answer_is_cut_off(hasty: Api) -> None:
    model = put_large_model(hasty)
    with send(hasty, f"GET /v1/models/{model}/files/config.json HTTP/1.1\r\nhost: localhost\r\n\r\n") as connection:
        time.sleep(3 * hasty.settings.send_seconds)
        assert len(rest(connection)) < 2**24
    assert len(hasty.http.get(f"/v1/models/{model}/files/config.json").content) == 2**24


def test_who_takes_an_answer_slowly_gets_all_of_it(hasty: Api) -> None:
    model = put_large_model(hasty)
    text = f"GET /v1/models/{model}/files/config.json HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    received = 0
    with send(hasty, text) as connection:
        while chunk := connection.recv(2**20):
            received += len(chunk)
            time.sleep(0.3)
    assert received > 2**24


def test_what_is_no_http_is_told_so_as_a_problem(hasty: Api) -> None:
    with send(hasty, "HELLO\r\n\r\n") as connection:
        assert document(rest(connection))["status"] == 400


@pytest.fixture(scope="module")
def locked(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("locked")
    settings = Settings(
        redis_url=database(redis_server, 8),
        storage_url=f"file://{folder}/storage",
        cache_dir=folder / "cache",
        api_keys=KEY,
    )
    with serving(settings, folder) as api:
        yield api


def ask(api: Api, key: str | None, **headers: str) -> httpx.Response:
    bearing: dict[str, Any] = {"Authorization": f"Bearer {key}"} if key else {}
    return api.http.get("/v1/teachers", headers=bearing | headers)


def test_wrong_keys_are_limited_and_logged_and_right_ones_go_on(locked: Api) -> None:
    limit = locked.settings.max_key_failures
    for _ in range(3):  # no key at all is no guess
        assert {ask(locked, None).status_code for _ in range(limit)} == {401}
    guesses = [f"guess-number-{number}" for number in range(4 * limit)]
    answers = [ask(locked, guess) for guess in guesses]
    codes = [answer.status_code for answer in answers]
    assert codes[:limit] == [401] * limit
    assert codes.count(429) > limit
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["code"] == "too_many_failures"
    assert int(refused.headers["retry-after"]) > 0
    assert {ask(locked, KEY).status_code for _ in range(limit)} == {200}
    assert is_alive(locked)
    told = rf"{len(guesses)} requests with a wrong API key from 127\.0\.0\.1 "
    eventually(lambda: "answered 429" in locked.log.read_text())
    eventually(lambda: re.search(told, locked.log.read_text()))
    lines = [line for line in locked.log.read_text().splitlines() if "wrong API key" in line]
    assert len(lines) < 10
    assert not any(guess in locked.log.read_text() for guess in guesses)
    # Who claims to be many does not get further.
    claimed = [ask(locked, "guess", **{"X-Forwarded-For": f"192.0.2.{n % 250}"}) for n in range(15 * limit)]
    assert claimed[-1].status_code == 429
    assert ask(locked, KEY).status_code == 200
