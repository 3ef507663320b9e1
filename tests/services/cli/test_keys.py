"""Keys from the command line and from Python, on a real API."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dearkd.client import AsyncClient, Client
from dearkd.errors import Conflict, DearKDError, Forbidden, InvalidInput, NotFound
from dearkd.settings import Settings
from dearkd.specs.requests import Quotas
from tests.support.api_contents import put_teacher
from tests.support.services import Api, database, environment, redis_server, serving

__all__ = ["redis_server"]

pytestmark = pytest.mark.services

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def api(redis_server: str, tmp_path: Path) -> Iterator[Api]:
    settings = Settings(redis_url=database(redis_server, 4), storage_url=f"file://{tmp_path}/storage")
    with serving(settings, tmp_path) as api:
        yield api


@pytest.fixture
def run(api: Api) -> Run:
    def run(*arguments: str, key: str | None = None) -> subprocess.CompletedProcess[str]:
        env = environment(api.settings, **({"DEARKD_API_KEY": key} if key else {}))
        command = [sys.executable, "-m", "dearkd.cli", *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    return run


def test_an_administrator_lets_a_team_in(api: Api, run: Run) -> None:
    refused = run("key", "create", "team")
    assert refused.returncode == 1
    assert "the first key needs the scope admin" in refused.stderr
    root = run("key", "create", "root", "--scope", "admin").stdout.strip()
    assert root.startswith("dearkd_")
    assert run("key", "list").returncode == 1
    flags = ["--expires-in-days", "2", "--images-per-day", "100", "--json"]
    team = json.loads(run("key", "create", "team", *flags, key=root).stdout)
    assert (team["scopes"], team["quotas"]["images_per_day"]) == (["submit"], 100)
    left = datetime.fromisoformat(team["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=1.9) < left < timedelta(days=2)
    listed = run("key", "list", key=root).stdout
    assert [line.split()[1:3] for line in listed.splitlines()[1:]] == [["team", "submit"], ["root", "admin"]]
    own = json.loads(run("key", "show", "--json", key=team["key"]).stdout)
    assert (own["id"], own["used_today"]) == (team["id"], {"images": 0, "bytes": 0})
    assert run("key", "show", "root", key=team["key"]).returncode == 1

    teacher = put_teacher(api, owner=team["id"])
    assert run("teacher", "show", teacher, key=root).returncode == 0
    assert run("share", teacher, key=team["key"]).returncode == 0
    assert json.loads(run("unshare", "t", "--json", key=team["key"]).stdout)["shared"] is False

    rotated = run("key", "rotate", "team", key=root).stdout.strip()
    assert run("teacher", "list", key=team["key"]).returncode == 1
    assert teacher in run("teacher", "list", key=rotated).stdout
    assert run("key", "revoke", "team", key=root).returncode == 0
    ended = run("teacher", "list", key=rotated)
    assert (ended.returncode, f"{team['id']} was revoked" in ended.stderr) == (1, True)
    told = json.loads(run("audit", "--json", key=root).stdout)["data"]
    assert [one["path"].rpartition("/")[2] for one in told] == ["revoke", "rotate", "unshare", "share", "keys", "keys"]


def test_both_clients_administer_keys(api: Api) -> None:
    with Client(api.url) as anyone:
        with pytest.raises(NotFound):
            anyone.get_own_key()
        root = anyone.create_key("root", scopes=["admin"])
        with pytest.raises(DearKDError) as error:
            list(anyone.list_keys())
        assert error.value.code == "unauthorized"
    with Client(api.url, root.key) as client:
        quotas = Quotas(queued_jobs=2)
        team = client.create_key("team", scopes=["read"], quotas=quotas)
        assert [key.id for key in client.list_keys()] == [team.id, root.id]
        assert client.get_key(team.id).quotas == quotas
        teacher = put_teacher(api, owner=team.id)
        assert client.share(teacher).shared
        with pytest.raises(InvalidInput, match="is no teacher"):
            client.share("syn-1")
        with Client(api.url, team.key) as theirs:
            assert theirs.get_own_key().scopes == ["read"]
            assert [one.id for one in theirs.list_teachers()] == [teacher]
            with pytest.raises(Forbidden, match="scope submit"):
                theirs.delete_teacher(teacher)
        client.revoke_key(team.id)
        with pytest.raises(Conflict, match="was revoked"):
            client.rotate_key(team.id)

    async def rotated() -> list[str]:
        async with AsyncClient(api.url, root.key) as client:
            again = await client.rotate_key(root.id, grace_seconds=60)
        async with AsyncClient(api.url, again.key) as client:
            return [f"{one.key_name} {one.path}" async for one in client.list_audit()]

    assert asyncio.run(rotated())[0] == f"root /v1/keys/{root.id}/rotate"
