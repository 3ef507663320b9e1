"""An upgrade without a stop: API and workers of an older version, from its wheel, beside those of today.

They share one Redis and one storage. Nothing is lost, whoever goes first.
"""

import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dearkd.client import Client
from dearkd.settings import Settings
from dearkd.specs import TeacherSpec
from tests.support.documents import ROOT
from tests.support.services import Api, environment, eventually, process, serving
from tests.support.wheels import build_wheel, install_wheel
from tests.support.world import SHORT, SYNTHESIS, TRAINING, RedisServer

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

OLD = "9f646b8fbc4b0d3da6da8a185ec0579b1803b7ff"
"""The version after the rooms: the oldest that stores as today. It knows no schemas."""


RUN = TRAINING | {"stage_one": {"epochs": 40}, "stage_two": {"epochs": 10}}
"""Long enough to be handed over in the midst of stage one."""
EPOCHS = 50


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment in which the older version is installed, from a wheel of its own source."""
    asked = subprocess.run(["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True, text=True)
    if asked.stdout.strip() != "false":
        pytest.skip(f"no history is here, and so no version {OLD:.7} to upgrade from: clone with all of it")
    folder = tmp_path_factory.mktemp("old")
    archive = folder / "source.zip"  # of tars, extractall knows filters since Python 3.11.4 only
    subprocess.run(["git", "archive", "--format=zip", "--output", archive, OLD], cwd=ROOT, check=True)
    with zipfile.ZipFile(archive) as source:
        source.extractall(folder / "source")
    wheel = build_wheel(folder / "source", folder / "wheel")
    return install_wheel(wheel, folder / "venv") / "bin" / "python"


@dataclass(frozen=True)
class Site:
    """One Redis and one storage, and who may be started on them."""

    settings: Settings
    folder: Path
    pythons: dict[str, str | Path]

    def api(self, version: str) -> AbstractContextManager[Api]:
        folder = self.folder / f"{version}-api"
        folder.mkdir()
        return serving(self.settings, folder, self.pythons[version], **self._variables(version))

    @contextmanager
    def worker(self, version: str, kind: str) -> Iterator[None]:
        """A worker; it is asked to end when the block does."""
        command = f"import sys; from dearkd.work.worker import main; sys.exit(main({kind!r}))"
        env = environment(self.settings, **SHORT, **self._variables(version))
        log = self.folder / f"{version}-{kind}.log"
        with process("-c", command, env=env, log=log, python=self.pythons[version]):
            yield

    def _variables(self, version: str) -> dict[str, str]:
        return {"PYTHONPATH": ""} if version == "old" else {}


@pytest.fixture
def site(old: Path, tmp_path: Path) -> Iterator[Site]:
    redis = RedisServer(tmp_path / "redis")
    redis.start()
    assert redis.process is not None
    url = redis.server.url
    settings = Settings(redis_url=url, storage_url=f"file://{tmp_path}/storage", cache_dir=tmp_path / "cache")
    try:
        yield Site(settings, tmp_path, {"old": old, "new": sys.executable})
    finally:
        redis.process.terminate()
        redis.process.wait()


def post(api: Api, collection: str, **body: Any) -> str:
    answer = api.http.post(f"/v1/{collection}", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def job(api: Api, identifier: str) -> dict[str, Any]:
    collection = "synthesis-jobs" if identifier.startswith("syn") else "training-runs"
    answer = api.http.get(f"/v1/{collection}/{identifier}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert found["status"] not in ("failed", "canceled"), found["error"]
    return found


def ended(api: Api, identifier: str) -> Callable[[], bool]:
    return lambda: bool(job(api, identifier)["status"] == "succeeded")


def test_both_versions_side_by_side_lose_nothing(site: Site, plain_teacher: tuple[TeacherSpec, Path]) -> None:
    plan = {name: value for name, value in SYNTHESIS.items() if name != "min_teacher_accuracy"}
    with site.api("old") as before:
        # The old version alone: one of two shards, and a run that waits for both.
        with site.worker("old", "synth"):
            eventually(lambda: before.http.get("/readyz").json().get("workers", {}).get("inspect"))
            with Client(before.url) as client:
                teacher = client.create_teacher(*plain_teacher).id
            first = post(before, "synthesis-jobs", teacher=teacher, **plan)
            run = post(before, "training-runs", dataset=first, **RUN)
            eventually(lambda: before.store.redis.hexists(f"dearkd:job:{first}:done", "0"))
        shard = before.storage.read(f"datasets/ds-{first[4:]}/train-000000.tar")
        assert job(before, first)["status"] in ("queued", "running")

        with site.api("new") as after:
            # A new worker, with APIs of both: it takes the shard over, and what either API accepted.
            of_after = post(after, "synthesis-jobs", teacher=teacher, labels={"team": "v"}, **SYNTHESIS)
            with site.worker("new", "synth"):
                for identifier in (first, of_after):
                    eventually(ended(after, identifier))
            for api in (before, after):
                for identifier in (first, of_after):
                    dataset = api.http.get(f"/v1/datasets/ds-{identifier[4:]}").json()
                    assert dataset["num_samples"] == 40
            assert before.storage.read(f"datasets/ds-{first[4:]}/train-000000.tar") == shard, "nobody made it again"
            assert job(before, run)["status"] == "queued"

            # An old worker, with a new API: it goes on with what the old API accepts, and leaves what it cannot read.
            of_before = post(before, "synthesis-jobs", teacher=teacher, **plan)
            left = post(after, "synthesis-jobs", teacher=teacher, labels={"team": "v"}, priority="high", **SYNTHESIS)
            with site.worker("old", "synth"):
                eventually(ended(after, of_before))
            assert (job(after, left)["status"], job(after, left)["progress"]["done"]) == ("queued", 0)
            assert before.http.post(f"/v1/synthesis-jobs/{left}/cancel").json()["status"] == "canceled"

            # The run passes from an old trainer to a new one, by a checkpoint of stage one.
            with site.worker("old", "trainer"):
                eventually(lambda: job(after, run)["progress"]["done"] >= 1)
            assert 1 <= job(after, run)["progress"]["done"] < EPOCHS
            assert after.storage.exists(f"runs/{run}/checkpoints/checkpoint.json")
            with site.worker("new", "trainer"):
                eventually(ended(before, run))
            rows: list[dict[str, Any]] = []
            while page := after.http.get(f"/v1/training-runs/{run}/metrics?limit=200&after={len(rows)}").json()["data"]:
                rows += page
            assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
            log = after.http.get(f"/v1/training-runs/{run}/log").text
            assert log.count("unit run begins") == 2, log

            for api in (before, after):
                listed = api.http.get("/v1/synthesis-jobs").json()["data"]
                assert {one["id"] for one in listed} == {first, of_after, of_before, left}
                assert {one["status"] for one in listed if one["id"] != left} == {"succeeded"}
                assert api.http.get(f"/v1/models/mdl-{run[4:]}").status_code == 200
                assert len(api.http.get("/v1/datasets").json()["data"]) == 3
