"""Teachers whose weights lie in storage already: checked and registered, not copied."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from dearkd.errors import CorruptData
from dearkd.settings import Settings
from dearkd.storage.catalog import fetch_weights, teachers
from dearkd.storage.file_cache import FileCache
from tests.services.api.test_api_registration import SPEC, inspector, served, tensors
from tests.support.api_contents import pointers
from tests.support.services import Api

__all__ = ["inspector", "served"]

pytestmark = pytest.mark.services
BODY = SPEC | {"architecture": "test_resnet"}


def test_weights_in_a_folder_or_by_their_key_stay_where_they_are(served: tuple[Api, Api], tmp_path: Path) -> None:
    api, _ = served
    weights = tensors("test_resnet")
    api.storage.put("nets/shoes/model.safetensors", weights)
    api.storage.put("nets/shoes/README.md", b"mine")
    for prefix in ("nets/shoes", "nets/shoes/model.safetensors"):
        answer = api.http.post("/v1/teachers", json=BODY | {"prefix": prefix})
        assert answer.status_code == 201, answer.text
        teacher = answer.json()
        assert teacher["weights"] == "nets/shoes/model.safetensors"
        assert (teacher["sha256"], teacher["bytes"]) == (hashlib.sha256(weights).hexdigest(), len(weights))
        assert not api.storage.exists(f"teachers/{teacher['id']}/weights.safetensors")
    with FileCache(tmp_path / "cache", Settings().cache_bytes) as cache:
        found = teachers(api.storage).get(teacher["id"])
        assert fetch_weights(api.storage, found, cache).read_bytes() == weights
    planned = api.http.post("/v1/synthesis-jobs?dry_run=true", json={"teacher": teacher["id"]})
    assert planned.status_code == 200, planned.text
    assert api.http.delete(f"/v1/teachers/{teacher['id']}").status_code == 204
    assert api.storage.exists("nets/shoes/model.safetensors")


def test_weights_that_change_afterwards_are_noticed(served: tuple[Api, Api], tmp_path: Path) -> None:
    api, _ = served
    api.storage.put("nets/later.safetensors", tensors("test_resnet"))
    teacher = api.http.post("/v1/teachers", json=BODY | {"prefix": "nets/later.safetensors"}).json()
    api.storage.put("nets/later.safetensors", tensors("test_resnet"))
    with FileCache(tmp_path / "cache", Settings().cache_bytes) as cache, pytest.raises(CorruptData):
        fetch_weights(api.storage, teachers(api.storage).get(teacher["id"]), cache)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"prefix": "teachers/x"}, ["/prefix"]),
        ({"prefix": "tmp"}, ["/prefix"]),
        ({"prefix": "../elsewhere"}, ["/prefix"]),
        ({"prefix": "nets/none"}, ["/prefix"]),
        ({"prefix": "nets/two"}, ["/prefix"]),
        ({"prefix": "nets/one.safetensors/below"}, ["/prefix"]),
        ({"prefix": "nets/pickle.safetensors"}, ["/prefix"]),
        ({"prefix": "nets/other.safetensors"}, ["/weights"]),
        ({"prefix": ""}, ["/prefix"]),
        ({"mean": [7.0]}, ["/mean"]),
        ({"image_size": 4096}, ["/image_size"]),
        ({"weights": "nets/one.safetensors"}, ["/weights"]),
    ],
    ids=str,
)
def test_what_cannot_be_registered_in_its_place_is_refused(
    served: tuple[Api, Api], change: dict[str, Any], wanted: list[str]
) -> None:
    api, _ = served
    api.storage.put("nets/one.safetensors", tensors("test_resnet"))
    api.storage.put("nets/other.safetensors", tensors("test_efficientnet"))
    api.storage.put("nets/two/a.safetensors", b"x")
    api.storage.put("nets/two/b.safetensors", b"x")
    api.storage.put("nets/pickle.safetensors", b"\x80\x04 a pickle")
    before = {stored.key for stored in api.storage.objects("teachers")}
    answer = api.http.post("/v1/teachers", json=BODY | {"prefix": "nets/one.safetensors"} | change)
    assert answer.status_code == 422, answer.text
    assert pointers(answer) == wanted
    assert {stored.key for stored in api.storage.objects("teachers")} == before
