"""The environment variables that hold API keys, or name their files: who checks or sends one has it, and nothing else
that is started."""

import os
from collections.abc import Collection, Mapping
from typing import Final

CHECKED: Final = frozenset({"DEARKD_API_KEYS", "DEARKD_API_KEYS_FILE", "DEARKD_ADMIN_KEYS", "DEARKD_ADMIN_KEYS_FILE"})
"""Variables of keys that the API checks requests against."""
ALL: Final = CHECKED | {"DEARKD_API_KEY", "DEARKD_API_KEY_FILE"}
"""The last is what clients send."""


def without_keys(environment: Mapping[str, str], but: Collection[str] = ()) -> dict[str, str]:
    """An environment for a child: without those variables, `but` for some. Settings are read in any case of letters."""
    return {name: value for name, value in environment.items() if name.upper() not in ALL or name.upper() in but}


def drop_keys() -> None:
    """Take the keys out of this process's environment, which all that it starts from now on inherits."""
    for name in os.environ.keys() - without_keys(os.environ).keys():
        del os.environ[name]
