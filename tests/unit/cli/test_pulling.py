"""`dearkd dataset pull` and `dearkd model pull`: whole and verified or not there, and resumable."""

import hashlib
from pathlib import Path

import pytest

from dearkd.cli.pulling import pull_dataset, pull_model
from dearkd.client import Client
from dearkd.errors import Conflict, CorruptData, Unavailable
from tests.support.stand_in_api import StandInApi, a_dataset, a_model

SHARDS = {"a-0.tar": b"first" * 100, "a-1.tar": b"second" * 100}


def listed(name: str, data: bytes) -> dict[str, object]:
    return {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.fixture
def dataset(api: StandInApi) -> StandInApi:
    api.answer("GET /v1/datasets/ds-1", a_dataset("ds-1", [listed(name, data) for name, data in SHARDS.items()]))
    api.answer("GET /v1/datasets/ds-1/files/a-0.tar", SHARDS["a-0.tar"])
    api.answer("GET /v1/datasets/ds-1/files/dataset.json", b"{}")
    return api


def test_all_shards_come_with_what_there_is_beside_them(dataset: StandInApi, tmp_path: Path) -> None:
    dataset.answer("GET /v1/datasets/ds-1/files/a-1.tar", SHARDS["a-1.tar"])
    files = pull_dataset(Client(dataset.url), "ds-1", tmp_path / "new" / "set")
    assert {path.name: path.read_bytes() for path in files} == SHARDS | {"dataset.json": b"{}"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["set"]


def test_what_breaks_off_leaves_no_folder_and_goes_on_from_what_came(dataset: StandInApi, tmp_path: Path) -> None:
    dataset.problem("GET /v1/datasets/ds-1/files/a-1.tar", 503, "unavailable", "no storage")
    dataset.answer("GET /v1/datasets/ds-1/files/a-1.tar", SHARDS["a-1.tar"])
    client, target = Client(dataset.url), tmp_path / "set"
    with pytest.raises(Unavailable):
        pull_dataset(client, "ds-1", target)
    assert not target.exists()
    (tmp_path / "set.part" / "of-another").touch()
    dataset.requests.clear()
    files = pull_dataset(client, "ds-1", target)
    assert {path.name for path in files} == {*SHARDS, "dataset.json"}
    fetched = [request.path.rpartition("/")[2] for request in dataset.requests]
    assert "a-0.tar" not in fetched
    assert "a-1.tar" in fetched


def test_what_is_not_as_the_manifest_says_is_fetched_again_next_time(dataset: StandInApi, tmp_path: Path) -> None:
    dataset.answer("GET /v1/datasets/ds-1/files/a-1.tar", SHARDS["a-1.tar"][:-1] + b"!")
    dataset.answer("GET /v1/datasets/ds-1/files/a-1.tar", SHARDS["a-1.tar"])
    client, target = Client(dataset.url), tmp_path / "set"
    with pytest.raises(CorruptData, match=r"a-1\.tar has sha256"):
        pull_dataset(client, "ds-1", target)
    assert not target.exists()
    pull_dataset(client, "ds-1", target)
    assert (target / "a-1.tar").read_bytes() == SHARDS["a-1.tar"]


def test_a_folder_with_something_in_it_is_left_alone(dataset: StandInApi, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(Conflict, match="not empty"):
        pull_dataset(Client(dataset.url), "ds-1", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "..", "a/b"])
def test_a_name_that_leads_elsewhere_is_refused(api: StandInApi, tmp_path: Path, name: str) -> None:
    api.answer("GET /v1/models/mdl-1", a_model("mdl-1", files=[listed("config.json", b"{}"), listed(name, b"x")]))
    with pytest.raises(CorruptData, match="no plain file name"):
        pull_model(Client(api.url), "mdl-1", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    assert len(api.requests) == 1
