"""A step's forward and backward through torch.compile, and the errors where a machine cannot do that.

What a step computes varies with shapes and with which terms take part, not with its number: views are made and Adam
steps outside, and so nothing is compiled anew between two steps of a phase. The choices here are ours [R]: each shape
is compiled for itself (`dynamic=False`), since a kernel for varying ones is made to fit the first that came, so that a
shard would depend on what was made before it; and nothing is chosen by a stopwatch (`deterministic`, which rules out
max-autotune), so that the same versions make the same kernels.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

import torch
from torch._dynamo import config
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._inductor.cpp_builder import get_cpp_compiler

from dearkd.errors import InvalidInput, reason

P = ParamSpec("P")
R = TypeVar("R")

MAX_VARIANTS = 1024
"""Compiled variants of a step that a process may hold. torch's own limit, 8, is soon reached: each phase needs one,
two with late labels, two more after finished batches, and as many again for a smaller last batch."""


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function as one graph, compiled at its first call for each combination of shapes and constants.

    If that fails, the call raises what `compilation_errors_told` translates.
    """
    options: dict[str, Any] = {
        "deterministic": True,
        # As it would be anyway; but said here it is a part of what torch's cache on disk goes by.
        "cpp.threads": torch.get_num_threads(),
    }
    run = torch.compile(function, fullgraph=True, dynamic=False, options=options)

    @wraps(function)
    def within_limit(*args: P.args, **kwargs: P.kwargs) -> R:
        limits = {"recompile_limit": MAX_VARIANTS, "accumulated_recompile_limit": MAX_VARIANTS}
        with config.patch(limits):
            return run(*args, **kwargs)

    return within_limit


def uncompiled() -> AbstractContextManager[Any]:
    """Run compiled functions uncompiled (eagerly) inside the block."""
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def compilation_errors_told() -> Iterator[None]:
    """Raise `InvalidInput` at `/compile` for whatever torch.compile raises inside the block."""
    try:
        yield
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        inner = getattr(error, "inner_exception", None)
        if isinstance(inner, torch.OutOfMemoryError):
            raise inner from error  # of what the compiler tried out: it is answered as any other
        raise InvalidInput.at(
            "/compile", f"torch.compile cannot compile the step of this teacher ({_brief(error)}): set compile to false"
        ) from error


def require_compiler(device: torch.device) -> None:
    """Compile something small, so that a machine that cannot is found out before any work.

    Raises:
        InvalidInput: at `/compile`, with what is missing.
    """
    try:
        # A function of its own, or the one that was compiled last time would be found.
        made = compiled(lambda x: (x.square() + 1).sum())(torch.ones(64, device=device))
    except Exception as error:  # whatever torch, Triton or the compiler raise where a part of them is missing
        needed = "a C++ compiler (g++, or what CXX names)"
        if device.type == "cuda":
            needed = "Triton (a CUDA build of torch brings it) and a C compiler (gcc)"
        raise InvalidInput.at(
            "/compile",
            f"torch.compile does not work here ({_brief(error)}): install {needed} where the job runs, or set compile "
            "to false",
        ) from error
    if made.item() != 128:
        raise InvalidInput.at("/compile", f"torch.compile computes {made.item()} for 128 here: set compile to false")


def compiled_by(device: torch.device) -> dict[str, Any]:
    """The compiler of the kernels and its version, for a shard's `made_with`."""
    if device.type == "cuda":
        return {"triton": import_module("triton").__version__}
    said = subprocess.run([get_cpp_compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    return {"compiler": said.splitlines()[0]}


def _brief(error: Exception) -> str:
    """The type and first line of an error; of the inner one if torch wrapped it."""
    inner = getattr(error, "inner_exception", error)
    return f"{type(inner).__name__}: {reason(inner).strip().splitlines()[0]}"
