"""The transitions of jobs: each is a file in `lua/`, which Redis carries out as one atomic step.

`lua/prelude.lua` says what the keys are, and begins every one of them.
"""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from dearkd.redis_client import Pipeline, Redis


@cache
def source(name: str) -> str:
    """The Lua text of a transition."""
    folder = files("dearkd.jobs") / "lua"
    return "".join((folder / f"{part}.lua").read_text(encoding="utf-8") for part in ("prelude", name))


class Transition:
    """A step between states of jobs. Its file says what it takes and returns.

    Args:
        redis: where the jobs are.
        name: of the file.
    """

    def __init__(self, redis: Redis, name: str) -> None:
        self._script = redis.register_script(source(name))

    def __call__(self, **args: object) -> Any:
        """Take the step; returns what its file says. Arguments that are None are left out."""
        return answer(self._script(args=[_packed(args)]))

    def within(self, pipeline: Pipeline, **args: object) -> None:
        """Let a pipeline take the step; `answer` reads what it returned from the pipeline's results."""
        self._script(args=[_packed(args)], client=pipeline)


def answer(value: Any) -> Any:
    """The return value of a step, with text in place of bytes."""
    if isinstance(value, list):
        return [answer(part) for part in value]
    return value.decode() if isinstance(value, bytes) else value


def _packed(args: dict[str, object]) -> bytes:
    given = {name: value for name, value in args.items() if value is not None}
    # A text may hold what a library says of a file whose name is no UTF-8: Redis would refuse it, again and again.
    return json.dumps(given, ensure_ascii=False).encode(errors="replace")
