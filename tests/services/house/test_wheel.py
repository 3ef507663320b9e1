"""The wheel alone is enough: built, installed into an empty environment, and run in a folder that is no checkout."""

import json
import shutil
import signal
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.documents import ROOT
from tests.support.wheels import build_wheel, clean_environ, install_wheel

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

PACKAGES = (
    "shared/dearkd",
    "services/api/dearkd_api",
    "services/distill/dearkd_distill",
    "services/synth/dearkd_synth",
    "services/trainer/dearkd_trainer",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git would hand on, with the build back end that is installed here."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "shared", "services"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, source)
    return build_wheel(source, built)


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_wheel(wheel, tmp_path_factory.mktemp("environment") / "venv")


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    expected = {
        str(path.relative_to((ROOT / package).parent))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected
    kinds = {Path(name).suffix for name in held}
    assert {".py", ".html", ".js", ".css", ".typed"} <= kinds


@pytest.fixture
def served(environment: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """`dearkd up` of the wheel, and the facts that it prints once it is up."""
    log = (tmp_path / "up.log").open("w")
    command = [str(environment / "bin" / "dearkd"), "up", "--port", "0", "--data", str(tmp_path / "data"), "--json"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=clean_environ(),
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (tmp_path / "up.log").read_text()
        yield process, json.loads(line)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        log.close()


def test_the_installed_wheel_runs_the_whole_tree(
    environment: Path, served: tuple[subprocess.Popen[str], dict[str, Any]], tmp_path: Path
) -> None:
    code = "import dearkd, dearkd_api, dearkd_synth; print(*(m.__file__ for m in (dearkd, dearkd_api, dearkd_synth)))"
    shown = subprocess.run(
        [environment / "bin" / "python", "-c", code], cwd=tmp_path, env=clean_environ(), capture_output=True, text=True
    )
    assert all(path.startswith(str(environment)) for path in shown.stdout.split()), shown.stdout + shown.stderr
    assert len(shown.stdout.split()) == 3

    process, facts = served
    with httpx.Client(base_url=facts["url"], timeout=60, trust_env=False) as http:
        assert http.get("/healthz").json() == {"status": "alive"}
        assert http.get("/readyz").json()["workers"] == {"synth": 1, "inspect": 1, "trainer": 1}
        assert http.get("/openapi.json").json()["info"]["title"] == "dearkd"
        for page in ("/", "/docs"):
            answer = http.get(page)
            assert answer.status_code == 200
            linked = [part.split('"')[0] for part in answer.text.split('"/static/')[1:]]
            assert linked, page
            for name in linked:
                assert http.get(f"/static/{name}").status_code == 200, name

    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0, (tmp_path / "up.log").read_text()


def test_the_commands_that_services_plug_in_are_there(environment: Path, tmp_path: Path) -> None:
    shown = subprocess.run(
        [environment / "bin" / "dearkd", "--help"], cwd=tmp_path, env=clean_environ(), capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    for command in ("up", "api", "demo", "export", "evaluate"):
        assert f" {command} " in shown.stdout
