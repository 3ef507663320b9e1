"""Webhooks of a job on a real Redis: what is told and when, to a real receiver, and what of it goes wrong."""

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from dearkd.errors import NotFound
from dearkd.jobs.deliveries import BACKOFF, Deliveries
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import Delivery, JobError
from dearkd.jobs.store import JobStore
from dearkd.settings import Settings
from dearkd.specs.webhook import WebhookRequest
from dearkd.work.worker import open_ledger
from dearkd_api import deliverer as deliverer_module
from dearkd_api.deliverer import Deliverer, sign
from tests.support.documents import blocks, read
from tests.support.ledger_steps import claim, mark
from tests.support.services import database, eventually
from tests.support.specs import synthesis_spec, training_spec
from tests.support.webhook_receiver import SECRET, Receiver, receiving

pytestmark = pytest.mark.services

EVERY = ["queued", "running", "paused", "canceling", "succeeded", "failed", "canceled", "blocked"]


@pytest.fixture
def ledger(redis_server: str, tmp_path: Path) -> Ledger:
    return open_ledger(Settings(redis_url=database(redis_server, 15), storage_url=f"file://{tmp_path}/storage"))


@pytest.fixture
def store(ledger: Ledger) -> JobStore:
    return ledger.store


@pytest.fixture
def deliveries(ledger: Ledger) -> Deliveries:
    return Deliveries(ledger.redis)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def post(store: JobStore, receiver: Receiver, events: list[str] | None = None, host: str = "127.0.0.1") -> str:
    webhook = receiver.webhook(events, host)
    spec = synthesis_spec(images_per_class=1, batch_size=10, shard_samples=10, webhook=webhook)
    asked = WebhookRequest.check(webhook)
    return store.create_synthesis(spec, images=spec.num_samples, webhook=asked).id


def deliver(deliveries: Deliveries, backoff: tuple[float, ...] = (0, 0), *, private: bool = True) -> int:
    """Everything that is due, and what comes due by that; returns how many attempts that took."""
    sender, attempts = Deliverer(deliveries, private_targets=private, backoff=backoff), 0
    while sender.step():
        attempts += 1
    return attempts


def only(deliveries: Deliveries, job: str) -> Delivery:
    (found,), more = deliveries.page(job)
    assert not more
    return found


def verify_as_documented(secret: str, headers: dict[str, str], body: bytes) -> bool:
    (snippet,) = (block for block in blocks(read("docs/http.md"), "python") if "def verify(" in block)
    names: dict[str, Any] = {}
    exec(snippet, names)
    return bool(names["verify"](secret, headers, body))


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The message and secret of its own documentation, and what its own library makes of them."""
    body = b'{"test": 2432232314}'
    made = sign(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_each_step_that_is_asked_for_is_told_once_with_the_job_as_it_then_was(
    ledger: Ledger, store: JobStore, deliveries: Deliveries, receiver: Receiver
) -> None:
    job = post(store, receiver, EVERY)
    store.pause(job)
    store.resume(job)
    mark(ledger, claim(ledger))
    ledger.complete(claim(ledger), {"dataset": "ds"})
    statuses = ["queued", "paused", "queued", "running", "succeeded"]
    assert deliver(deliveries) == len(receiver.received) == 5
    told = sorted(receiver.received, key=lambda message: int(message.id.rpartition("_")[2]))
    assert [message.json["type"] for message in told] == [f"job.{status}" for status in statuses]
    assert len({message.id for message in told}) == 5
    for message, status in zip(told, statuses, strict=True):
        assert Webhook(SECRET).verify(message.body, message.headers) == message.json
        assert verify_as_documented(SECRET, message.headers, message.body)
        assert not verify_as_documented(SECRET, message.headers, message.body + b" ")
        assert message.headers["content-type"] == "application/json"
        assert message.headers["user-agent"].startswith("dearkd/")
        assert message.path == "/hook?token=in-the-url"
        data = message.json["data"]
        assert (data["id"], data["status"], data["kind"]) == (job, status, "synthesis")
        assert data["result"] == ({"dataset": "ds"} if status == "succeeded" else None)
        assert data["spec"] == store.get(job).spec
        assert data["links"]["self"] == f"/v1/synthesis-jobs/{job}"
        assert "owner" not in data
    found, _ = deliveries.page(job)
    assert [(one.event, one.state) for one in found] == [(status, "delivered") for status in statuses]
    first, more = deliveries.page(job, limit=2)
    rest, none = deliveries.page(job, limit=3, after=first[-1].id)
    assert (first + rest, more, none) == (found, True, False)
    assert ledger.redis.zcard("dearkd:deliveries") == 0


def test_by_default_the_end_is_told_and_a_job_without_a_webhook_tells_nobody(
    ledger: Ledger, store: JobStore, deliveries: Deliveries, receiver: Receiver
) -> None:
    spec = synthesis_spec(images_per_class=1, batch_size=10, shard_samples=10)
    silent = store.create_synthesis(spec, images=spec.num_samples).id
    store.cancel(silent)
    job = post(store, receiver)
    ledger.fail(job, JobError(code="x", message="what went wrong", retryable=True))
    assert deliver(deliveries) == 1
    (message,) = receiver.received
    assert (message.json["type"], message.json["data"]["error"]["message"]) == ("job.failed", "what went wrong")
    store.retry(job)
    store.cancel(job)
    assert deliver(deliveries) == 1, "its second attempt is another one"
    assert receiver.received[1].id != message.id
    assert (receiver.received[1].json["type"], receiver.received[1].json["data"]["attempt"]) == ("job.canceled", 2)
    assert deliveries.page(silent) == ([], False)


def test_a_run_that_fails_with_its_dataset_tells_so(
    store: JobStore, deliveries: Deliveries, receiver: Receiver
) -> None:
    spec = synthesis_spec(images_per_class=1, batch_size=10, shard_samples=10)
    job = store.create_synthesis(spec, images=spec.num_samples).id
    webhook = receiver.webhook(EVERY)
    store.create_training(
        training_spec(job, webhook=webhook), epochs=1, waits_for=job, webhook=WebhookRequest.check(webhook)
    )
    store.cancel(job)
    assert deliver(deliveries) == 2
    told = {message.json["type"]: message.json["data"] for message in receiver.received}
    assert told.keys() == {"job.blocked", "job.failed"}
    assert told["job.failed"]["error"]["code"] == "dataset_failed"


def test_what_is_answered_otherwise_is_sent_again_under_the_same_id(
    store: JobStore, deliveries: Deliveries, receiver: Receiver
) -> None:
    job = post(store, receiver, ["queued"])
    receiver.answers = [500, receiver.url(path="/elsewhere"), 429]
    assert deliver(deliveries, (0, 0, 0)) == 4
    assert len({message.id for message in receiver.received}) == len({message.body for message in receiver.received})
    assert {message.path for message in receiver.received} == {"/hook?token=in-the-url"}, "a redirect is not followed"
    told = only(deliveries, job)
    assert [attempt.status for attempt in told.attempts] == [500, 302, 429, 204]
    assert (told.state, told.next_attempt_at) == ("delivered", None)


def test_it_is_given_up_after_a_day_and_may_be_asked_for_again(
    ledger: Ledger, store: JobStore, deliveries: Deliveries, receiver: Receiver
) -> None:
    assert 0.9 * 86400 < sum(BACKOFF) <= 86400
    assert all(now <= later for now, later in pairwise(BACKOFF))
    job = post(store, receiver, ["queued"])
    receiver.answers = [500] * 3
    assert deliver(deliveries, (0, 0)) == 3
    failed = only(deliveries, job)
    assert (failed.state, failed.next_attempt_at, len(failed.attempts)) == ("failed", None, 3)
    receiver.answers = [503]
    again = deliveries.redeliver(job, failed.id)
    assert (again.state, again.next_attempt_at is not None) == ("pending", True)
    assert deliver(deliveries, (0, 0)) == 2
    assert (only(deliveries, job).state, len(only(deliveries, job).attempts)) == ("delivered", 5)
    deliveries.redeliver(job, failed.id)
    deliver(deliveries)
    assert len({message.id for message in receiver.received}) == 1, "so that the receiver may know it"
    for wrong in (f"msg_{job}_2", "msg_x_1", "", failed.id + "\n"):
        with pytest.raises(NotFound):
            deliveries.redeliver(job, wrong)


def test_the_next_attempt_waits_and_the_log_says_until_when(
    store: JobStore, deliveries: Deliveries, receiver: Receiver
) -> None:
    job = post(store, receiver, ["queued"])
    receiver.answers = [500]
    assert deliver(deliveries, BACKOFF) == 1
    told = only(deliveries, job)
    wait = told.next_attempt_at - told.attempts[0].at
    assert timedelta(seconds=4.5) < wait < timedelta(seconds=15)
    deliveries.redeliver(job, told.id)
    assert deliver(deliveries) == 1, "asked for, it waits no longer"


def test_410_ends_it(store: JobStore, deliveries: Deliveries, receiver: Receiver) -> None:
    job = post(store, receiver, ["queued"])
    receiver.answers = [410]
    assert deliver(deliveries) == 1
    assert only(deliveries, job).state == "failed"


def test_who_cannot_be_reached_is_tried_again(store: JobStore, deliveries: Deliveries, receiver: Receiver) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    job = post(store, Receiver(port), ["queued"])
    assert deliver(deliveries, (0,)) == 2
    told = only(deliveries, job)
    assert [attempt.error for attempt in told.attempts] == ["it could not be connected to"] * 2
    assert "127.0.0.1" not in told.model_dump_json()


def test_what_does_not_answer_or_not_in_http_is_an_error(
    store: JobStore, deliveries: Deliveries, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliverer_module, "ATTEMPT_SECONDS", 0.5)
    job = post(store, receiver, ["queued"])
    receiver.answers = [1.5]
    assert deliver(deliveries, ()) == 1
    assert only(deliveries, job).attempts[0].error == "no answer within 0.5 s"
    with socket.create_server(("127.0.0.1", 0)) as odd:

        def answer() -> None:
            connection, _ = odd.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"220 ftp.example\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        other = post(store, Receiver(odd.getsockname()[1]), ["queued"])
        assert deliver(deliveries, ()) == 1
        thread.join()
    assert only(deliveries, other).attempts[0].error == "the connection was lost, or the answer is not HTTP"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "0x7f.1", "[::ffff:127.0.0.1]"])
def test_nothing_is_sent_to_what_is_not_public(
    store: JobStore, deliveries: Deliveries, receiver: Receiver, host: str
) -> None:
    job = post(store, receiver, ["queued"], host)
    assert deliver(deliveries, (), private=False) == 1
    assert receiver.received == []
    told = only(deliveries, job).attempts[0]
    assert (told.status, "public internet" in told.error) == (None, True)


def test_a_name_is_resolved_once_and_its_address_connected_to(
    store: JobStore, deliveries: Deliveries, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who answers the second question with another address (DNS rebinding) is not asked it."""
    real, asked = socket.getaddrinfo, []

    def resolves(host: str, *args: object, **options: object) -> object:
        asked.append(host)
        return real("127.0.0.1" if host == "hooks.example" else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolves)
    post(store, receiver, ["queued"], "hooks.example")
    assert deliver(deliveries) == 1
    assert asked.count("hooks.example") == 1
    assert receiver.received[0].headers["host"] == f"hooks.example:{receiver.port}"


def test_with_tls_the_certificate_must_be_of_the_name(
    store: JobStore, deliveries: Deliveries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, *names, "-keyout", tmp_path / "key", "-out", pem], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    both = tmp_path / "both.pem"
    both.write_text((tmp_path / "key").read_text() + pem.read_text())
    with receiving(both) as receiver:
        right, wrong = post(store, receiver, ["queued"], "localhost"), post(store, receiver, ["queued"])
        assert deliver(deliveries, ()) == 2
        assert len(receiver.received) == 1
    assert only(deliveries, right).state == "delivered"
    assert "TLS" in only(deliveries, wrong).attempts[0].error


def test_what_a_sender_left_when_it_died_is_sent_by_the_next(
    ledger: Ledger, store: JobStore, deliveries: Deliveries, receiver: Receiver
) -> None:
    job = post(store, receiver, ["queued"])
    dead = deliveries.claim(60)
    assert dead is not None
    assert deliver(deliveries) == 0, "it may be at it"
    for member in ledger.redis.zrange("dearkd:deliveries", 0, -1):
        ledger.redis.zadd("dearkd:deliveries", {member: 0})  # type: ignore[type-var]  # redis-py bounds it by bytes alone
    assert deliver(deliveries) == 1
    assert [message.id for message in receiver.received] == [dead.id]
    attempt = only(deliveries, job).attempts[0]
    deliveries.report(dead, attempt, state="failed")
    assert only(deliveries, job).state == "delivered", "who lost it changes nothing"
    assert len(only(deliveries, job).attempts) == 1


def test_several_senders_send_each_once(
    ledger: Ledger, store: JobStore, deliveries: Deliveries, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliverer_module, "EVERY_SECONDS", 0.01)
    stop = threading.Event()
    for _ in range(2):
        Deliverer(deliveries, private_targets=True).start(stop)
    for _ in range(10):
        store.cancel(post(store, receiver, ["queued", "canceled"]))
    try:
        eventually(lambda: ledger.redis.zcard("dearkd:deliveries") == 0, seconds=60)
    finally:
        stop.set()
    assert len(receiver.received) == len({message.id for message in receiver.received}) == 20


def test_a_slow_receiver_stands_back(
    store: JobStore, deliveries: Deliveries, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliverer_module, "SLOW_SECONDS", 0.2)
    receiver.answers = [0.5]
    for _ in range(3):
        post(store, receiver, ["queued"])
    assert deliver(deliveries) == 1
    with receiving() as other:
        post(store, other, ["queued"], "localhost")
        assert deliver(deliveries) == 1
        assert len(other.received) == 1


def test_the_latest_hundred_are_kept(
    ledger: Ledger, store: JobStore, deliveries: Deliveries, receiver: Receiver
) -> None:
    job = post(store, receiver, ["paused"])
    for _ in range(103):
        store.pause(job)
        store.resume(job)
    found, more = deliveries.page(job, limit=200)
    assert (len(found), more, found[0].id, found[-1].id) == (100, False, f"msg_{job}_4", f"msg_{job}_103")
    assert ledger.redis.zcard("dearkd:deliveries") == 100
    assert json.loads(ledger.redis.hget(f"dearkd:job:{job}", "webhook"))["secret"] == SECRET, "there, and there alone"
