"""The device that the work runs on, and the record of what made a result."""

import json
import platform
from importlib.metadata import version
from typing import Any

import torch

from dearkd import __version__
from dearkd.data.shard_files import SHARD_FORMAT


def choose_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_offer() -> dict[str, Any]:
    """The fields of an `Offer` that say what `choose_device` gives: device, name and, of GPUs, memory and number.

    The memory, in bytes, is the first one's, on which all work but that of several processes is done.
    """
    device = choose_device()
    if device.type != "cuda":
        return {"device": "cpu"}
    properties = torch.cuda.get_device_properties(device)
    there = torch.cuda.device_count()
    return {"device": "cuda", "name": properties.name, "memory_bytes": properties.total_memory, "devices": there}


def made_with(device: torch.device) -> dict[str, Any]:
    """Everything that decides the bytes of a shard beside its spec: versions of code and libraries, device, threads.

    timm builds the teacher, Pillow writes the image files and webdataset the tars; kernels differ with the device's
    name, or, on a CPU, with the instructions that torch found.
    """
    return {
        "dearkd": __version__,
        "torch": torch.__version__,
        "timm": version("timm"),
        "pillow": version("pillow"),
        "webdataset": version("webdataset"),
        "shard_format": SHARD_FORMAT,
        "python": platform.python_version(),
        "device": device.type,
        "device_name": (
            torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        ),
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    print(json.dumps(device_offer()))
