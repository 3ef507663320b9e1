"""A client that a foreign generator makes of the committed schema, with which nobody of ours has to do."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.documents import ROOT


class GeneratedClient:
    """The package that openapi-python-client writes into `folder`, and a client of it.

    `call("synthesis_jobs.create", …)` calls that operation, and answers what it parsed.
    """

    name = "generated_dearkd_client"

    def __init__(self, folder: Path, url: str, patch: pytest.MonkeyPatch) -> None:
        command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"]
        told = ["--path", str(ROOT / "docs/openapi.json"), "--output-path", str(folder / self.name)]
        made = subprocess.run([*command, *told], cwd=folder, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stdout + made.stderr
        # It forgets this import where a body has several content types (openapi-python-client #1451).
        for path in (folder / self.name / "api").rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            path.write_text(
                text.replace("import UNSET, Response\n", "import UNSET, Response, Unset\n"), encoding="utf-8"
            )
        patch.syspath_prepend(str(folder))
        self.models = importlib.import_module(f"{self.name}.models")
        self.types = importlib.import_module(f"{self.name}.types")
        self._client = importlib.import_module(self.name).Client(base_url=url, timeout=90)

    def call(self, operation: str, *arguments: Any, **named: Any) -> Any:
        module = f"{self.name}.api.{operation.partition('.')[0]}.{operation.replace('.', '_')}"
        answer = importlib.import_module(module).sync_detailed(*arguments, client=self._client, **named)
        assert answer.parsed is not None, (operation, answer.status_code, answer.content[:500])
        return answer.parsed
