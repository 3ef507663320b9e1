"""`python -m dearkd_api`: the server, configured by the environment."""

import sys

from pydantic import ValidationError

from dearkd.errors import DearKDError
from dearkd.extras import import_error
from dearkd.settings import Settings


def main() -> int:
    try:
        from dearkd_api.serving import serve
    except ImportError as error:
        return _refuse(import_error(error, "`python -m dearkd_api`", ["api"]).message)
    try:
        serve(Settings())
    except ValidationError as error:
        wrong = [f"DEARKD_{str(e['loc'][0]).upper()} is {e['input']!r}: {e['msg']}" for e in error.errors()]
        return _refuse("; ".join(wrong))
    except DearKDError as error:
        return _refuse(error.message)
    return 0


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
