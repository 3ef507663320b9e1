"""Offers: what workers have that jobs may need, as they say it in Redis; and the needs of jobs, in its words.

Workers of one make say the same, so that a fleet of thousands leaves a few members of one sorted set. `claim.lua`
decides who may claim of a job; what is here tells people, and workers that may find one better than themselves.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from dearkd.choices import Device
from dearkd.redis_client import Redis, milliseconds

OFFER_SECONDS = 45
"""For so long an offer counts; a live worker repeats it every 10 s."""
NEEDS = ("device", "memory_bytes", "compiler", "processes", "ray")
"""Fields of a job's record; one that is missing needs nothing."""
WAITS = "a worker with "
"""The beginning of what a job says that waits for what no worker has."""

RAY = "Ray, for `engine` (DEARKD_RAY_ADDRESS and the extra `ray`, on a node of the cluster)"
"""The words for what drives a run on a Ray cluster, with the remedy where nobody does."""


class Offer(BaseModel):
    """The device of a worker, and what there is beside it."""

    model_config = ConfigDict(frozen=True)

    device: Device
    name: str
    """The device's own name, for people."""
    memory_bytes: int
    """The memory of a GPU, or of the machine or container."""
    compiler: bool
    """True if what `compile` needs is there: a C++ compiler; on a GPU Triton and a C compiler."""
    devices: int = 1
    """The number of GPUs, of which each process of a run takes one; processes of one machine's CPU share it."""
    ray: bool = False
    """True if it can drive runs on a Ray cluster: it knows the cluster's address, and Ray is installed."""

    def fits(self, needs: "Needs") -> bool:
        """Tell whether a worker with it may claim of a job; `claim.lua` does the same."""
        return (
            needs.device in (None, self.device)
            and needs.memory_bytes <= self.memory_bytes
            and (self.compiler or not needs.compiler)
            and (self.device == "cpu" or needs.processes <= self.devices)
            and (self.ray or not needs.ray)
        )

    def __str__(self) -> str:
        return self.told(ray=self.ray)

    def told(self, *, ray: bool) -> str:
        """All that it has, for people, and with `ray` whether it has Ray."""
        what = [gpus(self.devices if self.device == "cuda" else 0), gibibytes(self.memory_bytes)]
        what += ["a compiler" if self.compiler else "no compiler"]
        what += ["Ray" if self.ray else "no Ray"] if ray else []
        return f"{', '.join(what[:-1])} and {what[-1]}"


class Needs(BaseModel):
    """The things that a worker must have to claim of a job."""

    model_config = ConfigDict(frozen=True)

    device: Device | None = None
    memory_bytes: int = 0
    compiler: bool = False
    processes: int = 1
    """Processes that run on the worker's machine side by side, each on a GPU of its own where there are any."""
    ray: bool = False

    @classmethod
    def of_spec(cls, spec: dict[str, Any]) -> "Needs":
        """The needs of a stored spec. A Ray cluster is no worker: its nodes are chosen by the driver.

        Raises:
            ValidationError: if the spec was altered into none.
        """
        on_ray = spec.get("engine") == "ray"
        given = spec.get("resources") if not on_ray else None
        resources = given if isinstance(given, dict) else {}
        return cls(
            device=resources.get("device"),
            memory_bytes=resources.get("memory_bytes") or 0,
            compiler=bool(spec.get("compile")),
            processes=(spec.get("processes") if not on_ray else None) or 1,
            ray=on_ray,
        )

    @classmethod
    def of_record(cls, values: Iterable[bytes | None]) -> "Needs":
        """The needs of a record, from the values of the fields `NEEDS`."""
        device, memory_bytes, compiler, processes, ray = values
        return cls(
            device=cast("Device | None", device.decode() if device else None),
            memory_bytes=int(memory_bytes or 0),
            compiler=bool(compiler),
            processes=int(processes or 1),
            ray=bool(ray),
        )

    def as_record(self) -> dict[str, str]:
        """The fields of a record."""
        given = {
            "device": self.device or "",
            "memory_bytes": str(self.memory_bytes or ""),
            "compiler": "1" if self.compiler else "",
            "processes": str(self.processes) if self.processes > 1 else "",
            "ray": "1" if self.ray else "",
        }
        return {name: text for name, text in given.items() if text}

    def waiting_for(self, offers: Iterable[Offer]) -> str:
        """The clause that tells what a job waits for, since none of these offers fits."""
        wanted = {"cuda": [gpus(self.processes)], "cpu": ["no GPU"]}.get(self.device or "", [])
        if self.device is None and self.processes > 1:
            wanted = [f"{gpus(self.processes)} (or none), for `processes`"]
        wanted += [f"at least {gibibytes(self.memory_bytes)}"] if self.memory_bytes else []
        wanted += ["a compiler, for `compile`"] if self.compiler else []
        wanted += [RAY] if self.ray else []
        there = sorted(offer.told(ray=self.ray) for offer in offers)
        told = f"those there are have {'; or '.join(there[:3])}" if there else "none is there that says what it has"
        return f"{WAITS}{' and '.join(wanted)}: {told}"


def advertise(redis: Redis, queue: str, offer: Offer) -> None:
    """Say that a worker of a queue is there and has this; forget offers that nobody repeats."""
    now = milliseconds(redis) / 1000
    pipe = redis.pipeline(transaction=False)
    pipe.zadd(_key(queue), {offer.model_dump_json(): now})
    pipe.zremrangebyscore(_key(queue), "-inf", now - OFFER_SECONDS)
    pipe.execute()


def offers(redis: Redis, queue: str) -> list[Offer]:
    """The offers of the workers of a queue that were heard of lately, each once.

    Those that this version cannot read, as of newer workers, are left out: they say themselves what they take.
    """
    found = cast("list[bytes]", redis.zrangebyscore(_key(queue), milliseconds(redis) / 1000 - OFFER_SECONDS, "+inf"))
    read = []
    for text in found:
        with suppress(ValidationError):
            read.append(Offer.model_validate_json(text))
    return read


def gpus(count: int) -> str:
    """A number of GPUs, for people."""
    return {0: "no GPU", 1: "a GPU"}.get(count, f"{count} GPUs")


def gibibytes(count: int) -> str:
    """A number of bytes, for people."""
    return f"{count / 2**30:.1f} GiB"


def _key(queue: str) -> str:
    return f"dearkd:offers:{queue}"
