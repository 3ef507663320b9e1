"""Wheels of dearkd, built and installed as a user would, without a network."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def build_wheel(source: Path, folder: Path) -> Path:
    """The wheel of a source tree, in a folder, made with the build back end that is installed here."""
    pip("wheel", source, "--wheel-dir", folder, "--no-deps", "--no-index", "--no-build-isolation")
    (found,) = folder.glob("dearkd-*.whl")
    return found


def install_wheel(wheel: Path, folder: Path) -> Path:
    """Make a virtual environment with the wheel; what it depends on is found where this Python finds it."""
    venv.create(folder, with_pip=False)
    pip("--python", folder / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    # As a line of a .pth file, this folder's own .pth files do not count: dearkd itself is not found by way of them.
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder


def clean_environ() -> dict[str, str]:
    """The environment without what leads to the checkout or to another dearkd's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DEARKD_", "PYTHON"))}
    return kept | {"PYTHONUNBUFFERED": "1"}
