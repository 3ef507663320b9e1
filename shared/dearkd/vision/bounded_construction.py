"""Building a network that somebody else described, no further than it can be of use."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as registration
from torch.overrides import TorchFunctionMode


class TooLargeToBuild(Exception):
    """The network has more modules and tensors than were allowed."""


class ParametersOnMeta(TorchFunctionMode):
    """New tensors that parameters are made of take no memory; those that numbers are read from stay real.

    For constructors that cannot run under `torch.device("meta")`, where no tensor has values.
    """

    factories = frozenset((torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.factories and kwargs.get("device") is None:
            kwargs = kwargs | {"device": "meta"}
        return func(*args, **kwargs)


@contextmanager
def bounded_construction(registrations: int) -> Iterator[None]:
    """Ends the construction of networks in this thread once they register more modules, parameters and buffers.

    Raises:
        TooLargeToBuild: from within the construction; at the end of it, if that swallowed the error.
    """
    mine = threading.get_ident()
    count = 0

    def look(parent: nn.Module, name: str, registered: Any) -> None:
        nonlocal count
        if threading.get_ident() != mine:
            return
        count += 1
        if count > registrations:
            raise TooLargeToBuild

    handles = [
        registration.register_module_module_registration_hook(look),
        registration.register_module_parameter_registration_hook(look),
        registration.register_module_buffer_registration_hook(look),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if count > registrations:
        raise TooLargeToBuild
