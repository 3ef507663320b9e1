"""Programs in processes that can import nothing of dearkd's, and of other packages what they are let."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from dearkd.vision import torchvision_ops

PREAMBLE = """
import json, runpy, sys
given = json.loads(sys.argv.pop(1))
sys.path += [path for path in given["packages"] if path not in sys.path]
absent = set(given["absent"])

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())

def cure_torchvision():
    # PyPI's torchvision beside a CPU build of torch: whoever has no dearkd sees to that by other means.
    kept.append(runpy.run_path(given["cure"]))

kept = []
"""
OURS = ("dearkd", "dearkd_api", "dearkd_distill", "dearkd_synth", "dearkd_trainer")


def run_without_dearkd(
    code: str, *arguments: str | Path, cwd: Path, absent: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run `code` in an isolated Python, from which nothing leads to a checkout.

    Args:
        code: the program, which finds its arguments in `sys.argv[1:]`. It may take names out of the set `absent`, and
            calls `cure_torchvision()` before it imports timm.
        arguments: for it.
        cwd: where it runs, and has its caches.
        absent: further packages that it cannot import.
    """
    found = [find_spec(name) for name in ("torch", "transformers")]
    folders = [str(Path(spec.origin).parents[1]) for spec in found if spec is not None and spec.origin is not None]
    given = {"packages": folders, "absent": [*OURS, *absent], "cure": torchvision_ops.__file__}
    return subprocess.run(
        [sys.executable, "-I", "-B", "-c", PREAMBLE + code, json.dumps(given), *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"HF_HOME": str(cwd / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
