"""The compose files and Dockerfiles, checked by reading: there need be no Docker engine to run the tests."""

import json
import re
from typing import Any, get_args

import pytest
import yaml

from dearkd.cli import application
from dearkd.settings import Settings
from dearkd.work.worker import GRACE_SECONDS, WorkerKind
from tests.support.documents import ROOT, read

COMPOSE: dict[str, Any] = yaml.safe_load(read("docker-compose.yml"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("api", "synth", "trainer")


def interpolated(value: str) -> str:
    """Compose's `${NAME:-default}` and `${NAME:?message}`, in an environment without any of them."""
    return re.sub(r"\$\{(\w+)(:-|:\?)([^}]*)\}", lambda match: match[3] if match[2] == ":-" else "given", value)


def instructions(service: str) -> dict[str, list[str]]:
    """A Dockerfile's instructions by name, continued lines joined."""
    found: dict[str, list[str]] = {}
    text = read(f"services/{service}/Dockerfile").replace("\\\n", " ")
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        if name.isupper():
            found.setdefault(name, []).append(" ".join(rest.split()))
    return found


def test_there_are_the_services_of_the_design() -> None:
    assert {"redis", "s3", *OURS} <= set(SERVICES)
    for name, service in SERVICES.items():
        assert service.get("image"), name
        assert ("build" in service) == (name in OURS)
    for name in set(SERVICES) - set(OURS):
        tag = SERVICES[name]["image"].partition(":")[2]
        assert tag, f"{name} names no version"
        assert tag != "latest"


def test_what_services_refer_to_exists() -> None:
    for name, service in SERVICES.items():
        assert set(service.get("depends_on", {})) <= set(SERVICES), name
        for needed, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_started" or "healthcheck" in SERVICES[needed]
        volumes = {volume.partition(":")[0] for volume in service.get("volumes", [])}
        assert volumes <= set(COMPOSE["volumes"]), name
        if str(service.get("network_mode", "")).startswith("service:"):
            assert service["network_mode"].removeprefix("service:") in SERVICES
            assert not {"ports", "networks"} & service.keys(), "they belong to the one whose network it shares"
    assert {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])} == set(
        COMPOSE["volumes"]
    )


@pytest.mark.parametrize("name", OURS)
def test_the_environment_is_one_of_settings(name: str) -> None:
    environment = {key: interpolated(value) for key, value in SERVICES[name]["environment"].items()}
    ours = {key.removeprefix("DEARKD_").lower(): value for key, value in environment.items() if "DEARKD_" in key}
    assert set(ours) <= set(Settings.model_fields)
    settings = Settings.model_validate(ours)
    assert settings.storage_url.startswith("s3://")
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= environment.keys()
    assert f"-bucket={settings.storage_url.removeprefix('s3://')}" in SERVICES["s3"]["command"]
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert SERVICES["s3"]["environment"][key] == SERVICES[name]["environment"][key]


def test_the_endpoint_of_s3_means_the_same_inside_and_outside() -> None:
    match = re.fullmatch(r"http://([a-z0-9.]+):(\d+)", SERVICES["api"]["environment"]["DEARKD_S3_ENDPOINT"])
    assert match
    assert match[1] in SERVICES["s3"]["networks"]["default"]["aliases"]
    assert f"127.0.0.1:{match[2]}:{match[2]}" in SERVICES["s3"]["ports"]


def test_nothing_is_published_beyond_loopback() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_gateway_hands_on_to_where_the_api_listens() -> None:
    api = SERVICES["api"]
    assert api["network_mode"] == "service:gateway"
    environment = api["environment"]
    assert SERVICES["gateway"]["command"][-1] == f"{environment['DEARKD_HOST']}:{environment['DEARKD_PORT']}"
    inside = SERVICES["gateway"]["command"][SERVICES["gateway"]["command"].index("--from") + 1]
    assert interpolated(SERVICES["gateway"]["ports"][0]) == f"127.0.0.1:8000{inside}"


def test_redis_keeps_what_it_is_given() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert SERVICES["redis"]["volumes"] == ["redis:/data"]


@pytest.mark.parametrize("name", ["synth", "trainer"])
def test_workers_get_the_time_to_hand_back_and_can_be_scaled(name: str) -> None:
    service = SERVICES[name]
    assert int(service["stop_grace_period"].removesuffix("s")) >= GRACE_SECONDS + 10
    assert not {"container_name", "ports"} & service.keys()


def test_the_gpu_file_changes_workers_alone() -> None:
    override = yaml.safe_load(read("docker-compose.gpu.yml"))["services"]
    assert set(override) == {"synth", "trainer"}
    for service in override.values():
        assert service["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


@pytest.mark.parametrize("name", OURS)
def test_an_image_installs_its_extra_with_the_pins_and_runs_a_command_that_exists(name: str) -> None:
    build = SERVICES[name]["build"]
    assert (ROOT / build["context"]).resolve() == ROOT
    assert build["dockerfile"] == f"services/{name}/Dockerfile"
    found = instructions(name)
    for line in found["COPY"]:
        assert all((ROOT / source).exists() for source in line.split()[:-1]), line
    assert [line for line in found["RUN"] if f"pip install --constraint constraints.txt '.[{name},otel]'" in line]
    assert found["USER"] == ["dearkd"]
    entrypoint = json.loads(found["ENTRYPOINT"][0])
    assert entrypoint == ["tini", "--", "dearkd"]
    command, *arguments = SERVICES[name].get("command") or json.loads(found["CMD"][0])
    assert command in {info.name for info in application().registered_commands}
    assert (command, arguments) == ("api", []) or (command == "worker" and arguments[0] in get_args(WorkerKind))


def test_the_build_context_holds_what_images_copy_and_no_more() -> None:
    lines = [line for line in read(".dockerignore").splitlines() if line and not line.startswith("#")]
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert lines[0] == "*"
    copied = {
        source.split("/")[0] for name in OURS for line in instructions(name)["COPY"] for source in line.split()[:-1]
    }
    assert allowed == copied


def test_only_the_api_is_given_api_keys() -> None:
    for name, service in SERVICES.items():
        keys = {key for key in service.get("environment", {}) if key.endswith(("API_KEY", "API_KEYS", "ADMIN_KEYS"))}
        assert keys <= ({"DEARKD_API_KEYS", "DEARKD_ADMIN_KEYS"} if name == "api" else set()), name
        assert not service.get("env_file"), f"{name} would be given all of it"
