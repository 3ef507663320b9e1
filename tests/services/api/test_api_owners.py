"""Teachers, datasets and models belong to the key that made them, and to administrators."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from dearkd.data.manifests import datasets
from dearkd.jobs.model import owner_of
from dearkd.jobs.queue import require_worker
from dearkd.settings import Settings
from dearkd.storage.catalog import models, teachers
from dearkd_api.keys import Keys
from tests.services.api.test_api_registration import put_shards, tensors, upload
from tests.support.api_contents import pointers, post_synthesis, put_dataset, put_model, put_teacher
from tests.support.services import Api, database, eventually, inspecting, serving

pytestmark = pytest.mark.services

A, B, ADMIN = "key-of-a-0123456789", "key-of-b-0123456789", "key-of-admin-0123456789"
COLLECTIONS = ("teachers", "datasets", "models")
Put = Callable[..., str]


def owner(key: str) -> str:
    return owner_of(sha256(key.encode()).digest())


@pytest.fixture(scope="module")
def keyed(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Api]]:
    """One API, with a real inspector, as two users and an administrator see it."""
    folder = tmp_path_factory.mktemp("owners")
    settings = Settings(
        redis_url=database(redis_server, 6),
        storage_url=f"file://{folder}/storage",
        cache_dir=folder / "cache",
        api_keys=f"{A},{B}",
        admin_keys=f"sha256:{sha256(ADMIN.encode()).hexdigest()}",
    )
    with inspecting(settings, folder), serving(settings, folder) as api, ExitStack() as stack:

        def bearing(key: str) -> Api:
            headers = {"Authorization": f"Bearer {key}"}
            client = httpx.Client(base_url=api.url, timeout=90, trust_env=False, headers=headers)
            return replace(api, http=stack.enter_context(client))

        yield {"a": bearing(A), "b": bearing(B), "admin": bearing(ADMIN)}


def listening(api: Api) -> None:
    def listens() -> bool:
        try:
            require_worker(api.store.redis, "inspect")
        except Exception:
            return False
        return True

    eventually(listens)


def set_owner(api: Api, identifier: str, value: str | None) -> None:
    """As who made it would have written."""
    for catalog in (teachers(api.storage), datasets(api.storage), models(api.storage)):
        if catalog.exists(identifier):
            item = catalog.get(identifier).model_copy(update={"owner": value})
            api.storage.put(catalog.key(identifier, catalog.manifest), item.model_dump_json().encode())


def made(api: Api, tmp_path: Path, value: str | None) -> list[str]:
    found = []
    for collection, identifier in (
        ("teachers", put_teacher(api)),
        ("datasets", put_dataset(api, tmp_path, images=10)),
        ("models", put_model(api)),
    ):
        set_owner(api, identifier, value)
        found.append(f"/v1/{collection}/{identifier}")
    return found


def test_what_is_uploaded_and_registered_is_its_keys(keyed: dict[str, Api], tmp_path: Path) -> None:
    a, b, admin = keyed["a"], keyed["b"], keyed["admin"]
    listening(a)
    put_shards(a, "shared/owned", tmp_path, [0, 1])
    for posted in (
        upload(a, tensors("test_resnet")),
        a.http.post("/v1/datasets", json={"prefix": "shared/owned"}),
    ):
        assert posted.status_code == 201, posted.text
        path = posted.headers["location"]
        refused = b.http.delete(path)
        assert (refused.status_code, refused.json()["code"], pointers(refused)) == (403, "forbidden", [])
        assert "scope admin" in refused.json()["detail"]
        for api in (a, admin):
            shown = api.http.get(path)
            assert (shown.status_code, shown.json()["shared"]) == (200, False)
            assert owner(A) not in shown.text
        assert b.http.get(path).status_code == 404
        assert a.http.delete(path).status_code == 204
    again = upload(b, tensors("test_resnet")).headers["location"]
    assert admin.http.delete(again).status_code == 204


def test_who_may_delete(keyed: dict[str, Api], tmp_path: Path) -> None:
    for value, allowed in (
        (owner(A), ("a", "admin")),
        (owner(B), ("b", "admin")),
        (None, ("admin",)),
        ("?", ("admin",)),
    ):
        for who in ("a", "b", "admin"):
            for path in made(keyed["a"], tmp_path, value):
                answer = keyed[who].http.delete(path)
                assert answer.status_code == (204 if who in allowed else 403), (value, who, path)
                assert keyed["admin"].http.get(path).status_code == (404 if who in allowed else 200)


def test_an_owner_is_nowhere_shown(keyed: dict[str, Api], tmp_path: Path) -> None:
    paths = made(keyed["a"], tmp_path, owner(A))
    for path in [*paths, *(f"/v1/{collection}" for collection in COLLECTIONS), f"{paths[1]}/files/dataset.json"]:
        for who in ("a", "admin"):
            shown = keyed[who].http.get(path)
            assert shown.status_code == 200
            assert '"owner"' not in shown.text
    assert '"owner"' not in keyed["b"].http.get("/openapi.json").text


def test_what_is_damaged_can_be_deleted_by_an_administrator_alone(keyed: dict[str, Api], tmp_path: Path) -> None:
    a, admin = keyed["a"], keyed["admin"]
    for path in made(a, tmp_path, owner(A)):
        key = f"{path.removeprefix('/v1/')}/{path.split('/')[2].removesuffix('s')}.json"
        a.storage.put(key, a.storage.read(key)[:40])
        assert a.http.get(path).status_code == 404  # whose it is can be told no more
        assert admin.http.get(path).status_code == 409
        assert a.http.delete(path).status_code == 403
        assert admin.http.delete(path).status_code == 204
        assert not list(a.storage.objects(path.removeprefix("/v1/")))


def test_an_administrators_key_is_a_key_but_sees_no_others_jobs(keyed: dict[str, Api]) -> None:
    job = post_synthesis(keyed["a"])
    own = post_synthesis(keyed["admin"])
    assert [one["id"] for one in keyed["admin"].http.get("/v1/synthesis-jobs").json()["data"]] == [own["id"]]
    assert keyed["admin"].http.get(job["links"]["self"]).status_code == 404
    in_use = keyed["admin"].http.delete(f"/v1/teachers/{job['spec']['teacher']}")
    assert (in_use.status_code, in_use.json()["code"]) == (409, "in_use")


def test_administrators_keys_alone_close_the_api_too() -> None:
    keys = Keys.configured(Settings(admin_keys=ADMIN))
    assert keys
    assert [identity.is_admin for identity in keys.identities().values()] == [True]
    both = Keys.configured(Settings(api_keys=f"{A},{ADMIN}", admin_keys=ADMIN)).identities()
    assert {identity.owner: identity.is_admin for identity in both.values()} == {owner(A): False, owner(ADMIN): True}
    with pytest.raises(Exception, match="key 1 of DEARKD_ADMIN_KEYS has 5 characters"):
        Keys.configured(Settings(api_keys=A, admin_keys="short"))
