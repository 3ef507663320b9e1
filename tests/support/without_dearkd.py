"""Programs in processes that have torch, timm and transformers, but can import nothing of dearkd's."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from dearkd.vision import torchvision_ops

PREAMBLE = """
import json, runpy, sys
given = json.loads(sys.argv[1])
sys.path += [path for path in given["packages"] if path not in sys.path]

class NoDearKD:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in given["absent"]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoDearKD())
cure = runpy.run_path(given["cure"]) if given["cure"] else {}  # PyPI's torchvision beside a CPU build of torch
arguments = sys.argv[2:]
"""
OURS = ["dearkd", "dearkd_api", "dearkd_synth", "dearkd_trainer"]


def run_without_dearkd(
    code: str, *arguments: str | Path, cwd: Path, absent: tuple[str, ...] = (), cure: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run `code` in an isolated Python, where `arguments` is a list of these.

    Args:
        code: the program.
        arguments: for it.
        cwd: where it runs, and has its caches.
        absent: further packages that it must not be able to import.
        cure: False for a program that imports no torchvision.
    """
    packages = []
    for name in ("torch", "transformers"):
        found = find_spec(name)
        if found is not None and found.origin is not None:
            packages.append(str(Path(found.origin).parents[1]))
    given = {
        "packages": packages,
        "absent": [*OURS, *absent],
        "cure": str(torchvision_ops.__file__) if cure else None,
    }
    return subprocess.run(
        [sys.executable, "-I", "-c", PREAMBLE + code, json.dumps(given), *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"HF_HOME": str(cwd / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
