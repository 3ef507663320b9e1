"""The schema as it is committed, and the command that writes it: `python -m dearkd_api.write_openapi FILE`."""

import json
import sys
from pathlib import Path

from dearkd.settings import Settings
from dearkd_api.app import create_app


def schema_text() -> str:
    """The schema of an API without keys, whatever the environment says; a storage is not needed for it."""
    app = create_app(Settings(storage_url="file:///nowhere", api_keys="", admin_keys=""))
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(schema_text(), encoding="utf-8")
