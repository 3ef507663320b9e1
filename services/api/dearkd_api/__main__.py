"""`python -m dearkd_api`: the server, configured by the environment."""

import sys

from pydantic import ValidationError

from dearkd.errors import DearKDError
from dearkd.extras import import_error
from dearkd.folders import keep_files_private
from dearkd.settings import Settings, broken_settings


def main() -> int:
    keep_files_private()
    try:
        from dearkd_api.serving import serve
    except ImportError as error:
        return _refuse(import_error(error, "`python -m dearkd_api`", ["api"]).message)
    try:
        serve(Settings())
    except ValidationError as error:
        return _refuse("; ".join(broken_settings(error)))
    except DearKDError as error:
        return _refuse(error.message)
    return 0


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
