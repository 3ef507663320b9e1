"""The live picture where it is wanted: two real workers, one of which is killed, a real Redis, files, HTTP."""

import io
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageSequence

from dearkd.client import Client
from dearkd.errors import NotFound
from dearkd.jobs.model import live_key
from dearkd.local.parts import with_synth_workers
from dearkd.local.up import UpTree
from dearkd.settings import Settings
from dearkd.specs import TeacherSpec
from dearkd.storage.catalog import Teacher
from dearkd.storage.objects import Storage
from tests.support.services import eventually
from tests.support.world import SHORT, at_work, kill

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

SYNTHESIS: dict[str, Any] = {
    "images_per_class": 4,
    "batch_size": 10,
    "shard_samples": 10,
    "generator": None,  # pixels go on changing, whatever the teacher has learnt
    "phases": [{"resolution": 12, "iterations": 150}],
    "unlabelled_iterations": 0,
    "min_teacher_accuracy": 0,
    "parallelism": 2,
}
"""Four shards of a second or two each."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpTree]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEARKD_PREVIEW_SECONDS", "0.2")
        for name, value in SHORT.items():
            patch.setenv(name, value)
        with UpTree(tmp_path_factory.mktemp("up"), port=0, parts=with_synth_workers(2)) as tree:
            yield tree


@pytest.fixture(scope="module")
def client(tree: UpTree) -> Iterator[Client]:
    with Client(tree.url) as client:
        yield client


@pytest.fixture(scope="module")
def teacher(client: Client, plain_teacher: tuple[TeacherSpec, Path]) -> Teacher:
    return client.create_teacher(*plain_teacher)


def live_events(client: Client, job: str) -> list[dict[str, Any]]:
    return [event.data for event in client.list_events(job) if event.type == "preview" and event.data.get("live")]


def test_the_first_picture_comes_before_the_first_shard_and_two_workers_do_not_show_theirs_in_turn(
    client: Client, tree: UpTree, teacher: Teacher, tmp_path: Path
) -> None:
    job = client.create_synthesis_job({"teacher": teacher.id, **SYNTHESIS})
    pictures: list[bytes] = []
    previews: list[bytes] = []

    def look() -> bool:
        try:
            picture = client.get_live_preview(job.id)
            client.download_preview(job.id, tmp_path / "preview.png")
        except NotFound:
            return client.get_job(job.id).terminal
        pictures.append(picture)
        previews.append((tmp_path / "preview.png").read_bytes())
        return client.get_job(job.id).terminal

    eventually(look)
    ended = client.wait(job.id)
    assert ended.status == "succeeded", ended.error
    events = [event.data for event in client.list_events(job.id) if event.type == "preview"]
    assert events[0].get("live"), "images at work come before those of the first shard"
    live = [data for data in events if data.get("live")]
    shards = [data["shard"] for data in live]
    assert sum(one != other for one, other in pairwise(shards)) <= 3, shards
    assert 0 < live[0]["first_preview_seconds"] < 60

    assert len(set(pictures)) >= 2, "it changes"
    for picture in pictures:
        with Image.open(io.BytesIO(picture)) as opened:
            # Ten classes, of each the one image that a batch has, behind its name.
            assert opened.height == 10 * 34 + 2
            assert 36 < opened.width < 36 + 40
    with Image.open(io.BytesIO(previews[0])) as first:
        assert first.height == 10 * 34 + 2
    with pytest.raises(NotFound, match=r"nothing is being optimised any more: GET .*preview\.png has the images"):
        client.get_live_preview(job.id)
    assert not Storage.open(Settings(storage_url=tree.storage_url)).exists(live_key(job.id))
    client.download_dataset_file(ended.result["dataset"], "timelapse.webp", tmp_path / "timelapse.webp")
    with Image.open(tmp_path / "timelapse.webp") as film:
        assert sum(1 for _ in ImageSequence.Iterator(film)) > 10
    client.delete_dataset(ended.result["dataset"])
    with pytest.raises(NotFound):
        client.download_timelapse(job.id, tmp_path / "gone.webp")


def test_of_a_killed_worker_the_last_picture_stays_until_its_successor_shows_its_own(
    client: Client, tree: UpTree, teacher: Teacher
) -> None:
    endless = {**SYNTHESIS, "parallelism": 1, "phases": [{"resolution": 12, "iterations": 50_000}]}
    job = client.create_synthesis_job({"teacher": teacher.id, **endless})
    eventually(lambda: len(live_events(client, job.id)) >= 3)
    kill(at_work().horse)
    before = live_events(client, job.id)
    assert client.get_live_preview(job.id).startswith(b"\x89PNG")
    eventually(lambda: len(live_events(client, job.id)) > len(before) + 1)
    after = live_events(client, job.id)[len(before) + 1]
    assert after["iteration"] < before[-1]["iteration"] or before[-1]["iteration"] < 100
    client.cancel_job(job.id)
    assert client.wait(job.id).status == "canceled"
    with pytest.raises(NotFound, match=r"has ended \(canceled\)"):
        client.get_live_preview(job.id)
    storage = Storage.open(Settings(storage_url=tree.storage_url))
    eventually(lambda: not storage.exists(live_key(job.id)), seconds=30)
