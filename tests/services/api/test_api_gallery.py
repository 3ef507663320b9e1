"""The images of datasets on their pages: found by class and page, read out of shards, and nothing else."""

import fcntl
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image

from dearkd.data.feature_maps import FEATURE_MAP, FeatureMap, MapPoint
from dearkd.data.manifests import datasets
from dearkd.data.shard_files import Sample, write_shard
from dearkd.errors import CorruptData, TooLarge
from dearkd.identifiers import new_id
from dearkd.storage.file_cache import RESERVED
from dearkd_api import sample_files
from dearkd_api.dashboard import gallery
from dearkd_api.sample_files import SampleFiles
from tests.support.api_contents import png, put_dataset, shard
from tests.support.pages import get
from tests.support.services import Api

pytestmark = pytest.mark.services


def test_a_dataset_is_looked_through_by_class_and_page(api: Api, tmp_path: Path) -> None:
    dataset = put_dataset(api, tmp_path, num_classes=4, images=400)  # plain grey images, the shade of each its number
    path = f"/datasets/{dataset}"

    def shown(query: str) -> list[str]:
        gallery = get(api, f"{path}?{query}").text.partition('<ul class="gallery">')[2].partition("</ul>")[0]
        return re.findall(r'<img loading="lazy" src="([^"]+)"', gallery)

    every = [source for number in range(1, 10) for source in shown(f"page={number}")]
    assert every == [f"{path}/images/0/{i:05d}" for i in range(400)]
    assert shown("page=99") == every[384:]
    ofthree = shown("class=3&page=1") + shown("class=3&page=2") + shown("class=3&page=3")
    assert ofthree == [f"{path}/images/0/{i:05d}" for i in range(3, 400, 4)]
    for i in (0, 200):
        picture = api.http.get(every[i])
        assert (picture.status_code, picture.headers["content-type"]) == (200, "image/png")
        assert picture.headers["x-content-type-options"] == "nosniff"
        with Image.open(io.BytesIO(picture.content)) as opened:
            assert opened.getpixel((0, 0)) == i
    zoomed = get(api, f"{path}?class=3&page=1&image=0/00007").text
    assert 'rel="prev" href="' + path in zoomed
    assert "0%2F00003" in zoomed or "0/00003" in zoomed
    other = put_dataset(api, tmp_path / "other", num_classes=4, images=8)
    both = get(api, f"{path}?with={other}&class=1").text
    assert f"/datasets/{other}/images/0/00001" in both
    assert api.http.get(f"{path}/files/train-000000.tar").content == (tmp_path / "train-000000.tar").read_bytes()


def test_what_a_dataset_does_not_have_and_what_is_no_image(api: Api, tmp_path: Path) -> None:
    dataset = put_dataset(api, tmp_path, images=20)
    path = f"/datasets/{dataset}"
    for odd, status in (
        (f"{path}/images/0/99999", 404),
        (f"{path}/images/7/00000", 404),
        (f"{path}/images/-1/00000", 404),
        (f"{path}/images/0/../../../etc/passwd", 404),
        (f"{path}/images/0/%2e%2e%2fetc%2fpasswd", 404),
        (f"{path}/images/x/00000", 422),
        (f"{path}?class=10", 422),
        (f"{path}?class=-1", 422),
        (f"{path}?page=0", 422),
        (f"{path}?with=x", 422),
        (f"{path}?with={new_id('ds')}", 404),
        (f"{path}?image=0/nothing", 404),
        (f"{path}?image=nothing", 404),
        (f"{path}/files/passwd", 404),
    ):
        get(api, odd, status)
    # A page as the image of a sample is not sent, whatever its name says.
    page = b"<script>alert(1)</script>"
    samples = [Sample("00000", page, "png", 0, {}), Sample("00001", png(), "png", 1, {})]
    made = write_shard(tmp_path / "odd.tar", samples)
    catalog = datasets(api.storage)
    identifier = new_id("ds")
    manifest = catalog.get(dataset).model_copy(
        update={"id": identifier, "shards": [made], "prefix": f"datasets/{identifier}"}
    )
    api.storage.put(catalog.key(identifier, made.name), tmp_path / made.name)
    catalog.create(manifest)
    refused = api.http.get(f"/datasets/{identifier}/images/0/00000")
    assert (refused.status_code, "script" in refused.text) == (500, False)
    assert api.http.get(f"/datasets/{identifier}/images/0/00001").status_code == 200
    # A shard that is gone, or was altered, is said to be so on the page, and the rest of it is there.
    lost = new_id("ds")
    catalog.create(
        manifest.model_copy(
            update={"id": lost, "prefix": f"datasets/{lost}", "shards": [made.model_copy(update={"sha256": "0" * 64})]}
        )
    )
    assert "gone from storage" in get(api, f"/datasets/{lost}").text
    api.storage.put(catalog.key(lost, made.name), tmp_path / made.name)
    assert "sha256" in get(api, f"/datasets/{lost}").text


def test_many_who_wait_for_a_shard_keep_nobody_else_waiting(api: Api, tmp_path: Path) -> None:
    """As long as another process of this host fetches a copy of it, for instance."""
    dataset = put_dataset(api, tmp_path, images=77)  # no other test has a copy of its shard made
    (stored,) = datasets(api.storage).get(dataset).shards
    folder = api.settings.cache_dir / "files" / stored.sha256
    folder.mkdir(parents=True, exist_ok=True)

    def look(i: int) -> int:
        with httpx.Client(base_url=api.url, timeout=90, trust_env=False) as http:
            return http.get(f"/datasets/{dataset}" + (f"/images/0/{i:05d}" if i % 2 else "")).status_code

    with ThreadPoolExecutor(60) as pool, (folder / RESERVED).open("a") as fetching:
        fcntl.flock(fetching, fcntl.LOCK_EX)
        looking = [pool.submit(look, i) for i in range(60)]
        try:
            assert wait(looking, timeout=3).not_done == {*looking}
            assert api.http.get("/v1/synthesis-jobs", timeout=20).status_code == 200
            assert api.http.get("/", timeout=20).status_code == 200
        finally:
            fcntl.flock(fetching, fcntl.LOCK_UN)
        assert {one.result() for one in looking} == {200}


def test_more_shards_than_stay_open_are_looked_at_at_once(api: Api, tmp_path: Path) -> None:
    shards = [shard(tmp_path / f"train-{i:06d}.tar", [i % 10] * 3) for i in range(20)]
    identifier = new_id("ds")
    catalog = datasets(api.storage)
    for one in shards:
        api.storage.put(catalog.key(identifier, one.name), tmp_path / one.name)
    manifest = datasets(api.storage).get(put_dataset(api, tmp_path / "like"))
    described = {"id": identifier, "shards": shards, "prefix": f"datasets/{identifier}", "num_samples": 60}
    catalog.create(manifest.model_copy(update=described))
    with ThreadPoolExecutor(16) as pool:
        asked = [f"/datasets/{identifier}/images/{i % 20}/0000{i % 3}" for i in range(200)]
        answers = [*pool.map(api.http.get, asked)]
    assert {answer.status_code for answer in answers} == {200}
    held = [Path(file.path).name for file in psutil.Process(api.process.pid).open_files() if file.path.endswith(".tar")]
    assert len(held) <= 8
    assert len(re.findall(r"/images/", get(api, f"/datasets/{identifier}?page=2").text)) >= 12


def test_shards_of_many_samples_make_room_for_each_other(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of the samples of eight of the largest would take a gigabyte of memory."""
    monkeypatch.setattr(sample_files, "OPEN_SAMPLES", 70)
    settings = api.settings.model_copy(update={"cache_dir": tmp_path / "cache"})
    files = sample_files.SampleFiles(api.storage, settings)
    catalog = datasets(api.storage)
    sets = [catalog.get(put_dataset(api, tmp_path / str(i), images=30)) for i in range(4)]
    for dataset in (*sets, *reversed(sets)):
        assert files.keys(dataset, 0) == [f"{i:05d}" for i in range(30)]
        held = [file.path for file in psutil.Process().open_files() if file.path.startswith(str(tmp_path / "cache"))]
        assert 1 <= len([path for path in held if path.endswith(".tar")]) <= 2


def test_a_feature_map_is_drawn_and_a_damaged_one_is_left_out(api: Api, tmp_path: Path) -> None:
    dataset = put_dataset(api, tmp_path, num_classes=4, images=40)
    path, key = f"/datasets/{dataset}", f"datasets/{dataset}/{FEATURE_MAP}"
    assert "Feature map" not in get(api, path).text
    places = [(0, -1.0, 0.5), (1, 1.0, -0.25), (39, 0.0, 0.0), (40, 0.0, 0.0)]
    points = [MapPoint(key=f"{i:05d}", label=i % 4, teacher_label=1, margin=2.5, x=x, y=y) for i, x, y in places]
    found = FeatureMap(explained_variance=(0.5, 0.25), points=points)
    api.storage.put(key, found.model_dump_json().encode())
    page = get(api, path).text
    circles = re.findall(r'<circle cx="([0-9.]+)" cy="([0-9.]+)" r="5"([^>]*)>', page)
    assert [(float(x), float(y)) for x, y, _ in circles] == [(12, 12), (708, 273), (360, 186)], "the last is no image"
    assert ["ring" in rest for _, _, rest in circles] == [True, False, True]
    assert "50.0 % of their variance" in page
    assert "image=0%2F00001#zoom" in page or "image=0/00001#zoom" in page
    assert api.http.get(f"/v1/datasets/{dataset}/files/{FEATURE_MAP}").content == api.storage.read(key)
    grey = re.findall(r'<circle cx="[0-9.]+" cy="[0-9.]+" r="5" class="other"', get(api, f"{path}?class=1").text)
    assert len(grey) == 2
    for damaged in (
        b"",
        b"{}",
        b"[" * 100_000,
        json.dumps({"explained_variance": [1, 1], "points": [{"x": 7}]}).encode(),
    ):
        api.storage.put(key, damaged)
        assert "Feature map" not in get(api, path).text


def test_a_class_that_is_scattered_over_many_large_shards_is_not_fetched_for_a_page(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shuffled shards of real images hold a sample or none of a class: a page of 48 would fetch 48 of them."""
    dataset = put_dataset(api, tmp_path, num_classes=2, images=4)
    catalog = datasets(api.storage)
    (held,) = catalog.get(dataset).shards
    many = [held.model_copy(update={"name": f"part-{n}.tar", "bytes": 2**27}) for n in range(40)]
    page = partial(gallery.page, SampleFiles(api.storage, api.settings))
    spread = catalog.get(dataset).model_copy(update={"shards": many})
    with pytest.raises(TooLarge, match=r"lie in 24 shards of 3221225472 bytes .* look at all classes"):
        page(spread, 0, 0)
    small = spread.model_copy(update={"shards": [one.model_copy(update={"bytes": held.bytes}) for one in many]})
    with pytest.raises(CorruptData, match=r"part-0\.tar"):  # it goes to read them: they are not there
        page(small, 0, 0)
