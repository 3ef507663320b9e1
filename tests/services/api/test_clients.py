"""`dearkd.client` against the real API: both clients, every answer as its model, waiting, events, downloads."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from dearkd.answers import JobView, RegisteredDataset, RegisteredTeacher, TrainedModel
from dearkd.cli.output import json_of
from dearkd.client import AsyncClient, Client
from dearkd.errors import Conflict, CorruptData, InvalidInput, NotFound, TooSlow
from dearkd.jobs.model import dataset_of, live_key
from dearkd.jobs.records import add_event
from dearkd.specs import Phase, SynthesisRequest
from dearkd.specs.webhook import WebhookRequest
from dearkd.storage.catalog import StoredFile
from tests.support.api_contents import finish_synthesis, post_synthesis, put_dataset, put_model, put_teacher
from tests.support.both_clients import WAYS, Way, connected
from tests.support.documents import blocks, read
from tests.support.proxy import FaultProxy
from tests.support.services import Api, eventually

pytestmark = [pytest.mark.services, pytest.mark.timeout(120)]

WEIGHTS = os.urandom(6_000_000)
SECRET = "whsec_" + "MDEy" * 8


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


@pytest.fixture
def client(api: Api, way: Way) -> Iterator[Client]:
    with connected(way, api.url) as client:
        yield client


@pytest.fixture
def proxy(api: Api) -> Iterator[FaultProxy]:
    proxy = FaultProxy(("127.0.0.1", httpx.URL(api.url).port or 0))
    yield proxy
    proxy.close()


@pytest.fixture
def far(proxy: FaultProxy, way: Way) -> Iterator[Client]:
    """A client behind the proxy."""
    with connected(way, f"http://127.0.0.1:{proxy.port}") as client:
        yield client


@pytest.fixture
def model(api: Api) -> str:
    """A model with weights of 6 MB."""
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    identifier = put_model(api, files=[StoredFile(name="w", bytes=len(WEIGHTS), sha256=digest)])
    api.storage.put(f"models/{identifier}/w", WEIGHTS)
    return identifier


def test_every_answer_is_its_model_and_holds_what_the_api_sent(api: Api, client: Client, tmp_path: Path) -> None:
    teacher, dataset, model = put_teacher(api), put_dataset(api, tmp_path, images=20), put_model(api)
    job = client.create_synthesis_job(
        teacher=teacher, images_per_class=2, webhook={"url": "http://a.b", "secret": SECRET}
    )
    run = client.create_training_run(dataset=job.id, stage_one={"epochs": 1}, name="both")
    single: list[tuple[Any, type, str]] = [
        (client.get_teacher(teacher), RegisteredTeacher, f"teachers/{teacher}"),
        (client.get_registration(teacher), RegisteredTeacher, f"teachers/{teacher}"),
        (client.get_dataset(dataset), RegisteredDataset, f"datasets/{dataset}"),
        (client.get_registration(dataset), RegisteredDataset, f"datasets/{dataset}"),
        (client.get_model(model), TrainedModel, f"models/{model}"),
        (client.get_job(job.id), JobView, f"synthesis-jobs/{job.id}"),
        (client.get_job(run.id), JobView, f"training-runs/{run.id}"),
    ]
    for found, kind, path in single:
        assert type(found) is kind
        assert json_of(found) == api.http.get(f"/v1/{path}").json()
    add_event(api.store.redis, job.id, "log", {"message": "x"})
    several: list[tuple[Iterator[Any], str]] = [
        (client.list_teachers(), "teachers"),
        (client.list_datasets(), "datasets"),
        (client.list_models(), "models"),
        (client.list_jobs("synthesis", status="queued"), "synthesis-jobs"),
        (client.list_jobs("training"), "training-runs"),
        (client.list_events(job.id), f"synthesis-jobs/{job.id}/events"),
        (client.list_deliveries(job.id), f"synthesis-jobs/{job.id}/deliveries"),
        (client.list_metrics(run.id), f"training-runs/{run.id}/metrics"),
    ]
    for items, path in several:
        assert [json_of(item) for item in items] == api.http.get(f"/v1/{path}").json()["data"], path
    assert (job.synthesis_spec.images_per_class, run.training_spec.name) == (2, "both")
    assert client.is_ready()
    for name in (f"datasets/{dataset_of(job.id)}/timelapse.webp", live_key(job.id)):
        api.storage.put(name, name.encode())
    assert client.get_live_preview(job.id) == live_key(job.id).encode()
    client.download_preview(job.id, tmp_path / "preview.png")
    assert (tmp_path / "preview.png").read_bytes() == live_key(job.id).encode()
    client.download_timelapse(job.id, tmp_path / "timelapse.webp")
    assert (tmp_path / "timelapse.webp").read_bytes().endswith(b"timelapse.webp")
    with pytest.raises(NotFound, match="no live picture yet"):
        client.get_live_preview(client.create_synthesis_job(teacher=teacher).id)
    assert client.get_log(job.id) == api.http.get(f"/v1/synthesis-jobs/{job.id}/log").text


def test_a_request_is_fields_or_a_spec_or_an_object_and_says_only_what_was_given(api: Api, client: Client) -> None:
    teacher = put_teacher(api)
    webhook = WebhookRequest(url="http://a.b/c", secret=SECRET)
    fields: dict[str, Any] = {"teacher": teacher, "images_per_class": 3, "seed": 5}
    plain = fields | {"phases": [{"resolution": 16, "iterations": 7}]}
    asked = [
        client.create_synthesis_job(**fields, phases=[{"resolution": 16, "iterations": 7}], webhook=webhook),
        client.create_synthesis_job(SynthesisRequest.check(plain)),
        client.create_synthesis_job(plain),
        client.create_synthesis_job(client.plan_synthesis_job(**plain).synthesis_spec),
        client.create_synthesis_job(**fields, phases=(Phase(resolution=16, input_size=32, iterations=7),)),
    ]
    theirs = api.http.post("/v1/synthesis-jobs", json=plain).json()["spec"]
    assert [job.spec | {"webhook": None} for job in asked] == [theirs] * len(asked)
    assert asked[0].synthesis_spec.webhook is not None
    assert api.store.redis.hget(f"dearkd:job:{asked[0].id}", "webhook") is not None, "its secret has come"
    with pytest.raises(InvalidInput, match="give one or the other"):
        client.create_synthesis_job(plain, seed=3)


def test_fields_that_break_a_rule_are_refused_here_as_the_api_refuses_them(api: Api, client: Client) -> None:
    wrong: dict[str, Any] = {"teacher": put_teacher(api), "images_per_klass": 3, "seed": "1", "weights": {"l2": -1.0}}
    before = len(list(client.list_jobs("synthesis")))
    with pytest.raises(InvalidInput) as here:
        client.create_synthesis_job(**wrong)
    with pytest.raises(InvalidInput) as there:
        client.create_synthesis_job(wrong)
    assert {e.pointer for e in here.value.errors} == {"/images_per_klass", "/seed", "/weights/l2"}
    assert here.value.errors == there.value.errors
    with pytest.raises(NotFound):
        client.get_teacher("tch-none")
    assert len(list(client.list_jobs("synthesis"))) == before


def test_a_job_is_steered(api: Api, client: Client) -> None:
    job = client.create_synthesis_job(teacher=put_teacher(api), labels={"team": "both"})
    assert client.set_job_priority(job.id, "high").spec["priority"] == "high"
    assert client.pause_job(job.id).status == "paused"
    assert client.resume_job(job.id).status == "queued"
    assert client.cancel_job(job.id).terminal
    assert client.retry_job(job.id).attempt == 2
    assert [found.id for found in client.list_jobs("synthesis", labels="team=both")] == [job.id]
    plan = client.plan_training_run(dataset=job.id)
    assert plan.training_spec.dataset == job.id
    client.cancel_job(job.id)
    client.delete_teacher(job.synthesis_spec.teacher)
    with pytest.raises(Conflict):
        client.cancel_job(job.id)


def test_waiting_tells_each_change_and_survives_an_outage(
    api: Api, far: Client, proxy: FaultProxy, tmp_path: Path
) -> None:
    job = post_synthesis(api)
    seen: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        waited = pool.submit(far.wait, job["id"], interval=0.1, on_progress=lambda found: seen.append(found.status))
        eventually(lambda: seen)
        with proxy.down():
            told = len(seen)
            finish_synthesis(api, job, tmp_path)
            eventually(lambda: proxy.faults > 5)
            assert len(seen) <= told + 1
        ended = waited.result(timeout=60)
    assert (ended.status, seen[0], seen[-1]) == ("succeeded", "queued", "succeeded")


def test_waiting_ends_after_its_timeout_and_says_how_the_job_stands(api: Api, client: Client) -> None:
    job = client.create_synthesis_job(teacher=put_teacher(api))
    with pytest.raises(TooSlow, match=f"{job.id} is still queued") as raised:
        client.wait(job, timeout=0.3)
    assert raised.value.code == "still_running"
    assert client.cancel_job(job.id).terminal
    assert client.wait(job, timeout=0.3).status == "canceled"


def test_events_are_followed_to_the_end_over_broken_connections(
    api: Api, far: Client, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here every connection breaks after its third event."""
    monkeypatch.setattr("dearkd.client.jobs.RETRY_PAUSES", (0.01,))
    job = post_synthesis(api)
    count = breaks = 0

    def broken(chunk: bytes) -> bytes:
        nonlocal count, breaks
        count += chunk.count(b"\nid: ") + chunk.startswith(b"id: ")
        if count > 3:
            count, breaks = 0, breaks + 1
            raise ConnectionResetError
        return chunk

    with proxy.altering(broken), ThreadPoolExecutor(1) as pool:
        followed = pool.submit(lambda: list(far.events(job["id"])))
        for number in range(20):
            add_event(api.store.redis, job["id"], "log", {"message": str(number)})
        finish_synthesis(api, job, tmp_path)
        seen = followed.result(timeout=90)
    assert breaks
    shown = api.http.get(f"/v1/synthesis-jobs/{job['id']}/events", params={"limit": 200}).json()["data"]
    assert [json_of(event) for event in seen] == shown
    assert seen[-1].data == {"status": "succeeded"}


def cut_after(limit: int) -> tuple[Callable[[bytes], bytes], list[int]]:
    """A change for the proxy that breaks a connection once so many bytes have passed, and the bytes that passed."""
    passed = [0]

    def change(chunk: bytes) -> bytes:
        if passed[-1] + len(chunk) > limit:
            passed.append(0)
            raise ConnectionResetError
        passed[-1] += len(chunk)
        return chunk

    return change, passed


def test_a_download_goes_on_over_broken_connections_and_tells_how_far_it_is(
    model: str, far: Client, proxy: FaultProxy, tmp_path: Path
) -> None:
    told: list[tuple[int, int | None]] = []
    change, passed = cut_after(1_000_000)
    with proxy.altering(change):
        far.download_model_file(model, "w", tmp_path / "w", on_progress=lambda *now: told.append(now))
    assert (tmp_path / "w").read_bytes() == WEIGHTS
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
    assert len(passed) > 5, "it was broken again and again"
    assert sum(passed) < 1.5 * len(WEIGHTS)
    assert told == sorted(told)
    assert told[-1] == (len(WEIGHTS), len(WEIGHTS))


def test_a_download_goes_on_from_what_a_killed_process_has_left(
    api: Api, model: str, far: Client, proxy: FaultProxy, tmp_path: Path
) -> None:
    code = "import sys; from pathlib import Path; from dearkd.client import Client\n"
    code += "Client(sys.argv[1]).download_model_file(sys.argv[2], 'w', Path(sys.argv[3]))"
    half, go_on = threading.Event(), threading.Event()
    passed = 0

    def slow(chunk: bytes) -> bytes:
        nonlocal passed
        passed += len(chunk)
        if passed > 3_000_000:
            half.set()
            go_on.wait()
        return chunk

    with proxy.altering(slow):
        command = [sys.executable, "-c", code, f"http://127.0.0.1:{proxy.port}", model, str(tmp_path / "w")]
        with subprocess.Popen(command) as process:
            assert half.wait(60)
            (part,) = tmp_path.iterdir()
            eventually(lambda: part.stat().st_size > 2_000_000, seconds=30)
            process.send_signal(signal.SIGKILL)
        go_on.set()
    kept = part.stat().st_size
    first: list[int] = []
    far.download_model_file(model, "w", tmp_path / "w", on_progress=lambda done, _: first.append(done))
    assert kept < first[0] <= kept + 200_000
    assert (tmp_path / "w").read_bytes() == WEIGHTS
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


@pytest.mark.parametrize("left", ["altered", "longer", "whole", "of another file"])
def test_what_was_left_is_not_trusted(model: str, client: Client, tmp_path: Path, left: str) -> None:
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    part = tmp_path / f"w.{'0' * 16 if left == 'of another file' else digest[:16]}.part"
    match left:
        case "altered":
            part.write_bytes(b"!" + WEIGHTS[1:3_000_000])
        case "longer":
            part.write_bytes(WEIGHTS + b"!")
        case _:
            part.write_bytes(WEIGHTS)
    client.download_model_file(model, "w", tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == WEIGHTS
    assert {path.name for path in tmp_path.iterdir()} == {"w"} | ({part.name} if left == "of another file" else set())


def test_what_was_altered_on_the_way_is_never_put_in_place(
    model: str, far: Client, proxy: FaultProxy, tmp_path: Path
) -> None:
    (tmp_path / "w").write_bytes(b"before")
    with proxy.altering(lambda chunk: chunk.replace(WEIGHTS[-1000:], bytes(1000))), pytest.raises(CorruptData):
        far.download_model_file(model, "w", tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == b"before"
    far.download_model_file(model, "w", tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == WEIGHTS


def test_two_do_not_write_the_same_file_and_one_who_will_not_come_back_leaves_nothing(
    model: str, far: Client, proxy: FaultProxy, tmp_path: Path
) -> None:
    refused: list[BaseException] = []

    def again(*_: object) -> None:
        if not refused:
            with Client(far_url) as other, pytest.raises(Conflict) as raised:
                other.download_model_file(model, "w", tmp_path / "w")
            refused.append(raised.value)

    far_url = f"http://127.0.0.1:{proxy.port}"
    far.download_model_file(model, "w", tmp_path / "w", on_progress=again)
    assert "another process" in str(refused[0])
    (tmp_path / "w").unlink()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        far.download_model_file(model, "w", tmp_path / "w", on_progress=stop, resume=False)
    assert list(tmp_path.iterdir()) == []


def test_what_no_manifest_lists_comes_whole_and_an_error_says_what_there_is(
    api: Api, client: Client, tmp_path: Path
) -> None:
    dataset = put_dataset(api, tmp_path / "made", images=10)
    client.download_dataset_file(dataset, "_info.json", tmp_path / "info")
    assert (tmp_path / "info").read_bytes() == api.storage.read(f"datasets/{dataset}/_info.json")
    with pytest.raises(NotFound, match="there are its shards"):
        client.download_dataset_file(dataset, "train-000009.tar", tmp_path / "none")
    assert {path.name for path in tmp_path.iterdir()} == {"made", "info"}


def test_many_calls_at_once_on_one_event_loop(api: Api, model: str, tmp_path: Path) -> None:
    jobs = [post_synthesis(api)["id"] for _ in range(8)]

    async def all_of_it() -> list[JobView]:
        async with AsyncClient(api.url) as client:
            waits = [client.wait(job, timeout=60) for job in jobs]
            cancels = [client.cancel_job(job) for job in jobs]
            files = [client.download_model_file(model, "w", tmp_path / str(number)) for number in range(4)]
            ended, *_ = await asyncio.gather(asyncio.gather(*waits), *cancels, *files)
        return list(ended)

    assert {job.status for job in asyncio.run(all_of_it())} == {"canceled"}
    assert all((tmp_path / str(number)).read_bytes() == WEIGHTS for number in range(4))


def test_the_pages_example_for_asyncio_runs_as_shown(api: Api, tmp_path: Path) -> None:
    (snippet,) = (block for block in blocks(read("docs/client.md"), "python") if "AsyncClient" in block)
    job = post_synthesis(api)
    run = api.http.post("/v1/training-runs", json={"dataset": job["id"]}).json()
    assert api.http.post(job["links"]["cancel"]).status_code == 202
    code = snippet.replace("http://127.0.0.1:8000", api.url).replace("syn-…", job["id"]).replace("run-…", run["id"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *events, first, second = done.stdout.splitlines()
    assert (first, second) == (f"{job['id']} canceled None", f"{run['id']} failed None")
    assert events[0].endswith("status {'status': 'queued'}")
    assert events[-1].endswith("status {'status': 'canceled'}")
