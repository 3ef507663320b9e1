"""The offer of this machine's workers. No torch here: a process that forks asks for it."""

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from dearkd.errors import DearKDError
from dearkd.extras import require_extras
from dearkd.jobs.offers import Offer
from dearkd.settings import Settings

log = logging.getLogger(__name__)

PROBE_SECONDS = 300
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files in which Linux says what a container may take: of control groups of today, and of before."""


def own_offer(settings: Settings) -> Offer:
    """The device that jobs of this machine run on (`dearkd.vision.devices.choose_device`), and what is beside it."""
    device = dict(_gpu()) if has_gpu(Path("/dev")) else {}
    if device.get("device") != "cuda":
        processor = platform.processor() or platform.machine()
        device = {"device": "cpu", "name": processor, "memory_bytes": _memory_bytes()}
    if settings.memory_bytes is not None:
        device["memory_bytes"] = settings.memory_bytes
    return Offer(compiler=_has_compiler(device["device"]), ray=_drives_ray(settings), **device)


def has_gpu(devices: Path) -> bool:
    """Tell whether a folder of devices such as /dev has what torch's `cuda` may run on: NVIDIA's, or AMD's by ROCm."""
    return any(devices.glob("nvidia[0-9]*")) or any((devices / name).exists() for name in ("dxg", "kfd"))  # dxg: in WSL


@cache
def _gpu() -> dict[str, Any]:
    """The fields of an offer that torch knows; it is asked, once, in a process of its own."""
    try:
        probe = [sys.executable, "-P", "-m", "dearkd.vision.devices"]
        done = subprocess.run(probe, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
        log.warning("this machine has a GPU, but torch did not say whether it can use it: %s", error)
        return {}
    return found


def _memory_bytes() -> int:
    """The memory of this machine, or of the container that this process is in."""
    limits = [psutil.virtual_memory().total]
    for path in CONTAINER_LIMITS:
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # no such file, or `max`
            continue
    return min(limits)


def _drives_ray(settings: Settings) -> bool:
    """Tell whether runs on a Ray cluster can be driven from here; Ray itself is not imported, which takes seconds."""
    if settings.ray_address is None:
        return False
    try:
        require_extras(["ray"], "engine ray")
    except DearKDError:
        return False
    return True


def _has_compiler(device: str) -> bool:
    if device == "cuda":
        return find_spec("triton") is not None and any(map(shutil.which, (os.environ.get("CC", "gcc"), "clang")))
    return any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))
