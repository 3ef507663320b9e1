"""Webhooks through the API: what is taken and refused, that no secret is seen again, the log, sending again."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from standardwebhooks import Webhook

from dearkd.client import Client
from dearkd.settings import Settings
from dearkd.specs import SynthesisSpec
from dearkd_api.webhook_targets import is_public
from tests.support.api_contents import finish_synthesis, pointers, post_synthesis, put_dataset, put_teacher
from tests.support.services import Api, database, eventually, serving
from tests.support.webhook_receiver import SECRET, Receiver, receiving

pytestmark = pytest.mark.services

JOBS, RUNS = "/v1/synthesis-jobs", "/v1/training-runs"
KEY, OTHER = "key-of-a-0123456789", "key-of-b-0123456789"
PLAIN = {"stage_one": {"distillation": "none", "weights": {"hidden": 0}}}
HOOK = {"url": "https://hooks.example/x", "secret": SECRET}
SECRET_FORMS = (SECRET.encode(), SECRET.removeprefix("whsec_").encode())


@pytest.fixture(scope="module")
def open_api(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API with keys that may send to loopback, as the first of its keys sees it."""
    folder = tmp_path_factory.mktemp("webhooks")
    settings = Settings(
        redis_url=database(redis_server, 1),
        storage_url=f"file://{folder}/storage",
        cache_dir=folder / "cache",
        api_keys=f"{KEY},{OTHER}",
        webhook_private_targets=True,
    )
    with serving(settings, folder) as api, bearing(api, KEY) as http:
        yield replace(api, http=http)


def bearing(api: Api, key: str) -> httpx.Client:
    return httpx.Client(base_url=api.url, timeout=90, trust_env=False, headers={"Authorization": f"Bearer {key}"})


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def log_of(api: Api, job: dict[str, Any], **query: Any) -> list[dict[str, Any]]:
    answer = api.http.get(job["links"]["deliveries"], params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def is_delivered(api: Api, job: dict[str, Any], count: int) -> bool:
    found = log_of(api, job)
    return [delivery["state"] for delivery in found] == ["delivered"] * count


def content(api: Api, key: bytes) -> bytes:
    """All that Redis holds under a key, as one text."""
    redis = api.store.redis
    match redis.type(key):
        case b"hash":
            return b" ".join(part for item in redis.hgetall(key).items() for part in item)
        case b"list":
            return b" ".join(redis.lrange(key, 0, -1))
        case b"set":
            return b" ".join(redis.smembers(key))
        case b"zset":
            return b" ".join(redis.zrange(key, 0, -1))
        case b"stream":
            return b" ".join(value for _, row in redis.xrange(key) for value in row.values())
    return cast(bytes, redis.get(key) or b"")


def test_a_job_tells_its_webhook_and_the_secret_is_never_seen_again(
    open_api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    api, shown = open_api, []
    webhook = receiver.webhook(["queued", "running", "succeeded"])
    body = {"teacher": put_teacher(api), "images_per_class": 2, "shard_samples": 10, "webhook": webhook}
    shown.append(api.http.post(JOBS, params={"dry_run": True}, json=body))
    shown.append(api.http.post(JOBS, json=body, headers={"Idempotency-Key": "webhooks"}))
    shown.append(api.http.post(JOBS, json=body, headers={"Idempotency-Key": "webhooks"}))
    job = shown[1].json()
    assert (shown[1].status_code, shown[2].json()["id"]) == (202, job["id"])
    for found in shown:
        assert found.json()["spec"]["webhook"] == {"url": webhook["url"], "events": webhook["events"]}
    run = api.http.post(RUNS, json={"dataset": job["id"], "webhook": receiver.webhook(["queued", "failed"]), **PLAIN})
    shown.append(run)
    dataset = finish_synthesis(api, job, tmp_path)
    eventually(lambda: is_delivered(api, job, 3) and is_delivered(api, run.json(), 1), seconds=60)
    for message in receiver.received:
        assert Webhook(SECRET).verify(message.body, message.headers) == message.json
    told = {(message.json["data"]["id"], message.json["type"]): message.json for message in receiver.received}
    assert len(told) == len(receiver.received) == 4
    end = told[job["id"], "job.succeeded"]["data"]
    assert end == api.http.get(f"{JOBS}/{job['id']}").json()
    assert end["result"] == {"dataset": dataset}
    here = f"{JOBS}/{job['id']}"
    paths = [JOBS, here, f"{here}/events", f"{here}/log", f"{here}/deliveries", "/v1/events", RUNS, "/metrics"]
    shown += [api.http.get(path) for path in [*paths, f"{RUNS}/{run.json()['id']}", f"/v1/datasets/{dataset}"]]
    assert all(answer.is_success for answer in shown)
    places = [answer.content for answer in shown]
    places += [message.body for message in receiver.received]
    root = Path(api.settings.storage_url.removeprefix("file://"))
    stored = [path.read_bytes() for path in root.rglob("*") if path.is_file()]
    assert any(b"in-the-url" in content for content in stored), "job.json is there"
    places += [*stored, api.log.read_bytes()]
    assert not any(form in place for form in SECRET_FORMS for place in places)
    assert b"in-the-url" not in api.log.read_bytes()
    redis = api.store.redis
    keeping = {key for key in redis.keys("*") if any(form in content(api, key) for form in SECRET_FORMS)}
    assert keeping == {f"dearkd:job:{identifier}".encode() for identifier in (job["id"], run.json()["id"])}
    for key in keeping:
        assert [name for name, value in redis.hgetall(key).items() if SECRET_FORMS[1] in value] == [b"webhook"]


def test_what_was_delivered_is_sent_again_on_request(open_api: Api, receiver: Receiver) -> None:
    job = post_synthesis(open_api, webhook=receiver.webhook(["queued"]))
    eventually(lambda: is_delivered(open_api, job, 1), seconds=60)
    (before,) = log_of(open_api, job)
    assert before.keys() == {"id", "event", "created_at", "state", "attempts", "next_attempt_at"}
    assert before["attempts"][0].keys() == {"at", "seconds", "status", "error"}
    with Client(open_api.url, KEY) as client:
        again = client.redeliver(job["id"], before["id"])
    assert (again.id, again.state) == (before["id"], "pending")
    eventually(lambda: len(receiver.received) == 2 and is_delivered(open_api, job, 1), seconds=60)
    assert len({message.id for message in receiver.received}) == 1
    (after,) = log_of(open_api, job)
    assert [attempt["status"] for attempt in after["attempts"]] == [204, 204]
    assert log_of(open_api, job, after=after["id"]) == []
    with Client(open_api.url, KEY) as client:
        (listed,) = client.list_deliveries(job["id"])
    assert listed.model_dump(mode="json") == after


def test_what_one_api_could_not_deliver_the_next_one_does(
    redis_server: str, tmp_path: Path, receiver: Receiver
) -> None:
    settings = Settings(
        redis_url=database(redis_server, 15),
        storage_url=f"file://{tmp_path}/storage",
        cache_dir=tmp_path / "cache",
        webhook_private_targets=True,
    )
    receiver.answers = [500]
    with serving(settings, tmp_path) as first:
        job = post_synthesis(first, webhook=receiver.webhook(["queued"]))
        eventually(lambda: log_of(first, job)[0]["attempts"], seconds=60)
        first.process.kill()
    with serving(settings, tmp_path) as second:
        eventually(lambda: is_delivered(second, job, 1), seconds=60)
        assert [attempt["status"] for attempt in log_of(second, job)[0]["attempts"]] == [500, 204]
    assert len({message.id for message in receiver.received}) == 1


def test_anothers_deliveries_do_not_exist(open_api: Api, receiver: Receiver) -> None:
    job = post_synthesis(open_api, webhook=receiver.webhook(["queued"]))
    log = job["links"]["deliveries"]
    (delivery,) = log_of(open_api, job)
    with bearing(open_api, OTHER) as other:
        assert other.get(log).status_code == 404
        assert other.post(f"{log}/{delivery['id']}/redeliver").status_code == 404
    as_run = log.replace("synthesis-jobs", "training-runs")
    assert open_api.http.get(as_run).status_code == 404
    assert open_api.http.post(f"{log}/msg_{job['id']}_7/redeliver").status_code == 404
    wrong = open_api.http.get(log, params={"after": "msg_x_1"})
    assert (wrong.status_code, pointers(wrong)) == (422, ["/after"])


def test_what_is_not_public_is_refused_unless_it_is_allowed(api: Api, tmp_path: Path, receiver: Receiver) -> None:
    teacher, dataset = put_teacher(api), put_dataset(api, tmp_path)
    for host in ("127.0.0.1", "10.0.0.1", "169.254.169.254", "[::1]", "0x7f.1", "2130706433", "[::ffff:10.0.0.1]"):
        for path, body in ((JOBS, {"teacher": teacher}), (RUNS, {"dataset": dataset, **PLAIN})):
            webhook = {"url": f"http://{host}/x", "secret": SECRET}
            refused = api.http.post(path, json={**body, "webhook": webhook}, params={"dry_run": True})
            assert (refused.status_code, pointers(refused)) == (422, ["/webhook/url"]), host
            assert "DEARKD_WEBHOOK_PRIVATE_TARGETS" in refused.json()["detail"]
    job = post_synthesis(api, webhook=receiver.webhook(["queued"], "localhost"))
    eventually(lambda: log_of(api, job)[0]["attempts"], seconds=60)
    (tried,) = log_of(api, job)
    assert (tried["state"], tried["attempts"][0]["status"]) == ("pending", None)
    assert "not on the public internet" in tried["attempts"][0]["error"]
    assert receiver.received == []


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"url": "ftp://hooks.example/"}, "/webhook/url"),
        ({"url": "hooks.example"}, "/webhook/url"),
        ({"url": "https://"}, "/webhook/url"),
        ({"url": "https://user:password@hooks.example/"}, "/webhook/url"),
        ({"url": "https://hooks.example/#x"}, "/webhook/url"),
        ({"url": "https://hooks.example:0/"}, "/webhook/url"),
        ({"url": "https://hooks.example:99999/"}, "/webhook/url"),
        ({"url": "https://hooks.example/a b"}, "/webhook/url"),
        ({"url": "https://hooks.example\\@127.0.0.1/"}, "/webhook/url"),
        ({"url": "https://hööks.example/"}, "/webhook/url"),
        ({"url": "https://[::1/"}, "/webhook/url"),
        ({"url": "https://hooks.example/" + "x" * 2000}, "/webhook/url"),
        ({"events": []}, "/webhook/events"),
        ({"events": ["failed", "failed"]}, "/webhook/events"),
        ({"events": ["done"]}, "/webhook/events/0"),
        ({"secret": None}, "/webhook/secret"),
        ({"secret": "SECRET-TEXT-that-is-long-enough-for-a-key"}, "/webhook/secret"),
        ({"secret": "whsec_SECRET+TEXT"}, "/webhook/secret"),
        ({"secret": "whsec_SECRET TEXT!"}, "/webhook/secret"),
        ({"secret": "whsec_" + "SECR" * 23}, "/webhook/secret"),
        ({"x": 1}, "/webhook/x"),
    ],
)
def test_what_is_no_webhook_is_refused_without_repeating_the_secret(
    api: Api, change: dict[str, Any], pointer: str
) -> None:
    webhook = HOOK | change
    answer = api.http.post(JOBS, json={"teacher": put_teacher(api), "webhook": webhook})
    assert (answer.status_code, pointers(answer)) == (422, [pointer]), answer.text
    assert not any(text in answer.text for text in ("SECRET-", "SECRET+", "SECRET ", "SECRS", SECRET))


def test_a_secret_is_needed_and_a_spec_as_shown_has_none(api: Api) -> None:
    job = post_synthesis(api, webhook=HOOK)
    assert job["spec"]["webhook"] == {"url": HOOK["url"], "events": ["succeeded", "failed", "canceled"]}
    again = api.http.post(JOBS, json=job["spec"])
    assert (again.status_code, pointers(again)) == (422, ["/webhook/secret"])
    assert api.http.post(JOBS, json={**job["spec"], "webhook": None}).status_code == 202
    assert post_synthesis(api)["spec"]["webhook"] is None


def test_what_a_job_makes_says_nothing_of_its_webhook(api: Api) -> None:
    """Other keys see datasets, models and their cards; what workers write of it is looked at in their own tests."""
    job = api.store.get(post_synthesis(api, webhook=HOOK)["id"])
    assert job.published_spec == {name: value for name, value in job.spec.items() if name != "webhook"}
    assert SynthesisSpec.stored(job.published_spec).webhook is None


def test_a_job_that_redis_lost_goes_on_and_tells_nobody(api: Api) -> None:
    job = post_synthesis(api, webhook={**HOOK, "events": ["queued"]})
    api.store.redis.flushdb()
    again = api.http.post(job["links"]["retry"])
    assert (again.status_code, again.json()["spec"]["webhook"]["url"]) == (202, HOOK["url"])
    assert log_of(api, job) == []


def test_which_addresses_are_public() -> None:
    """From the registries of IANA for special addresses."""
    for address in ("1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"):
        assert is_public(address), address
    private = ["0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.168.1.1"]
    private += [
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fc00::1",
    ]
    private += ["fec0::1", "ff02::1", "ff0e::1", "2001:db8::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"]
    private += ["fe80::1%1", "2001:0:a00:1::", "::127.0.0.1", "64:ff9b:1::7f00:1"]
    for address in private:
        assert not is_public(address), address
