"""The server as a process: what it refuses to bind to, how it ends, and what it serves while Redis is away."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dearkd.identifiers import new_id
from dearkd.jobs.ledger import Ledger
from dearkd.local.embedded_redis import free_port
from dearkd.settings import Settings
from dearkd_api.serving import listen
from tests.services.api.test_api_teachers import GOOD, TEACHER, form
from tests.support.api_contents import answer_of, ask, pointers, put_dataset, put_model, put_teacher
from tests.support.services import Api, database, environment, eventually, serving

pytestmark = pytest.mark.services


def run(settings: Settings) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dearkd_api"]
    return subprocess.run(command, env=environment(settings), capture_output=True, text=True, timeout=120)


def test_answers_do_not_wait_for_an_acknowledgement() -> None:
    with listen("127.0.0.1", 0, keyed=False) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1"])
def test_without_keys_it_binds_to_loopback_alone(tmp_path: Path, host: str) -> None:
    refused = run(Settings(host=host, port=free_port(), storage_url=f"file://{tmp_path}"))
    assert refused.returncode == 1
    assert repr(host) in refused.stderr
    assert "127.0.0.1" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = run(Settings(port=port, storage_url=f"file://{tmp_path}"))
    assert refused.returncode == 1
    assert f"port {port}" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_nothing_of_the_api_or_the_core_imports_torch() -> None:
    check = (
        "import sys, dearkd, dearkd.cli, dearkd.client, dearkd.work.worker, dearkd.jobs.inspections, dearkd_api.app; "
        "import dearkd_api.serving, dearkd_api.command; "
        "print([m for m in ('torch', 'timm', 'safetensors', 'numpy') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


def test_sigterm_ends_it_at_once_whoever_waits(redis_server: str, tmp_path: Path) -> None:
    settings = Settings(
        redis_url=database(redis_server, 11), storage_url=f"file://{tmp_path}/storage", cache_dir=tmp_path / "cache"
    )
    with serving(settings, tmp_path) as api:
        job = api.http.post("/v1/synthesis-jobs", json={"teacher": put_teacher(api)}).json()
        waiting = [ask(api, f"GET {job['links']['self']}?wait=60") for _ in range(2)]
        uploading = ask(api, "POST /v1/teachers", "content-type: multipart/form-data; boundary=b")
        api.process.terminate()
        # Those who wait would wait for 60 s.
        assert api.process.wait(30) == 0, api.log.read_text()
        assert [answer_of(connection)["status"] for connection in waiting] == ["queued", "queued"]
        assert answer_of(uploading)["code"] == "stopping"
        assert list(api.storage.objects("tmp")) == []
        assert "Traceback" not in api.log.read_text()


def test_its_reaper_takes_back_what_dead_workers_held(api: Api) -> None:
    job = api.http.post("/v1/synthesis-jobs", json={"teacher": put_teacher(api)}).json()
    assert Ledger(api.store).claim("synthesis", 0.001) is not None
    eventually(lambda: api.http.get(job["links"]["self"]).json()["attempt"] == 2)
    assert api.http.get(job["links"]["self"]).json()["status"] == "queued"


def test_while_redis_is_away_what_lies_in_storage_is_served(tmp_path: Path) -> None:
    settings = Settings(
        redis_url=f"redis://127.0.0.1:{free_port()}/0",
        storage_url=f"file://{tmp_path}/storage",
        cache_dir=tmp_path / "cache",
    )
    with serving(settings, tmp_path) as api:
        ready = api.http.get("/readyz")
        assert (ready.status_code, ready.json()["down"]) == (503, ["redis"])
        assert "redis" in ready.json()["detail"]
        teacher, dataset, model = put_teacher(api), put_dataset(api, tmp_path, images=1), put_model(api)
        for path in (
            "/teachers",
            "/datasets",
            "/models",
            f"/teachers/{teacher}",
            "/v1/teachers",
            f"/v1/teachers/{teacher}",
            "/v1/datasets",
            f"/v1/datasets/{dataset}",
            f"/v1/datasets/{dataset}/files/train-000000.tar",
            "/v1/models",
            f"/v1/models/{model}",
            f"/v1/models/{model}/files/config.json",
        ):
            assert api.http.get(path).status_code == 200, path
        page = api.http.get("/", headers={"accept": "text/html"})
        assert (page.status_code, "Redis" in page.text) == (503, True), page.text
        jobs = "/v1/synthesis-jobs"
        for answer in (
            api.http.get(jobs),
            api.http.get(f"{jobs}/{new_id('syn')}"),
            api.http.get(f"{jobs}/{new_id('syn')}", params={"wait": "60"}),
            api.http.post(jobs, json={"teacher": teacher}),
            api.http.post("/v1/training-runs", json={"dataset": dataset, "teacher": teacher, "batch_size": 1}),
            api.http.get(f"/v1/training-runs/{new_id('run')}/metrics"),
            api.http.delete(f"/v1/datasets/{dataset}"),
            api.http.post("/v1/teachers", **form(TEACHER, GOOD)),
        ):
            assert (answer.status_code, answer.json()["code"]) == (503, "redis_unavailable"), answer.request.url
            assert pointers(answer) == []
            assert int(answer.headers["retry-after"]) > 0
        # What is wrong with a request is said all the same.
        assert api.http.post(jobs, json={"teacher": "x"}).status_code == 422
        for prefix in ("jobs", "tmp"):
            assert list(api.storage.objects(prefix)) == []
        assert len(list(api.storage.objects("datasets"))) == 3
