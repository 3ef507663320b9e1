"""The part of a spec that says which workers may take the job."""

from pydantic import Field

from dearkd.choices import Device
from dearkd.specs.base import Spec


class ResourcesSpec(Spec):
    """The worker that a job needs; a field that is left out needs nothing. Where none has it, the job waits, and its
    `waiting_for` says so."""

    device: Device | None = None
    """The device that the worker works on: `cuda`, or `cpu` to leave those with a GPU to other jobs."""
    memory_bytes: int | None = Field(default=None, ge=1, lt=2**53)
    """The least memory that this device has: a GPU's own, or that of the machine or container."""
