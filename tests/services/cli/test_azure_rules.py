"""Azure's blobs keep the rules of a store, by its own emulator, which checks signatures (`make azurite`)."""

import base64
import hashlib
import hmac
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from dearkd.local.doctor import check_storage
from dearkd.local.embedded_redis import free_port
from dearkd.local.store_rules import RULES
from dearkd.settings import Settings
from dearkd.storage.marker import KEY
from dearkd.storage.objects import Storage

pytestmark = pytest.mark.services
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The emulator's own, which its documentation prints."""
VERSION = "2023-11-03"
READY_SECONDS = 60.0


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A container `dearkd`, and the emulator in the environment."""
    installed = Path(sys.prefix) / "azurite" / "node_modules" / ".bin"
    program = shutil.which("azurite-blob", path=str(installed)) or shutil.which("azurite-blob")
    if program is None:
        pytest.skip("no Azurite: `make azurite` installs it, if npm is there")
    url = f"http://127.0.0.1:{(port := free_port())}"
    options = ["--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program, "--blobPort", str(port), *options], stdout=log, stderr=log, cwd=tmp_path)
    try:
        make_container(url)
        monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
        monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", url)
        yield "az://dearkd/rules"
    finally:
        process.terminate()
        process.wait(10)


def make_container(url: str) -> None:
    """Wait for the emulator, and make the container, for which obstore has no call."""
    date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    about = f"x-ms-date:{date}\nx-ms-version:{VERSION}\n/{ACCOUNT}/{ACCOUNT}/dearkd\nrestype:container"
    text = "PUT" + "\n" * 12 + about
    digest = hmac.new(base64.b64decode(ACCOUNT_KEY), text.encode(), hashlib.sha256).digest()
    authorization = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    headers = {"x-ms-date": date, "x-ms-version": VERSION, "Authorization": authorization}
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            answer = httpx.put(f"{url}/{ACCOUNT}/dearkd?restype=container", headers=headers, trust_env=False)
        except httpx.TransportError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.2)
        else:
            assert answer.status_code == 201, answer.text
            return


def test_azures_blobs_keep_all_rules_and_nothing_stays(container: str) -> None:
    settings = Settings(storage_url=container)
    (_, *found) = check_storage(settings)
    assert [(one.state, one.detail) for one in found] == [("ok", rule.promise) for rule in RULES]
    assert [stored.key for stored in Storage.open(settings).objects("")] == [KEY]
