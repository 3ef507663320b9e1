"""What is installed where: the API's image must do without torch and all that comes with it."""

import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.documents import ROOT, read

PROJECT: dict[str, Any] = tomllib.loads(read("pyproject.toml"))["project"]
HEAVY = {"torch", "torchvision", "timm", "safetensors", "numpy", "matplotlib", "scikit-learn", "webdataset", "datasets"}


def installed_with(requirements: list[str]) -> set[str]:
    """The names of all distributions that requirements bring on this machine, by the metadata of what is installed."""
    names: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        extras = requirement.extras or {""}
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        mark = f"{canonicalize_name(requirement.name)}[{','.join(sorted(extras))}]"
        if mark in names:
            continue
        names.add(mark)
        try:
            needs = distribution(requirement.name).requires or []
        except PackageNotFoundError:
            continue
        for text in needs:
            need = Requirement(text)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras):
                need.marker = None
                waiting.append(need)
    return {mark.partition("[")[0] for mark in names}


def test_the_api_image_installs_no_torch() -> None:
    extras = PROJECT["optional-dependencies"]
    brought = installed_with(PROJECT["dependencies"] + extras["api"])
    assert {"fastapi", "starlette", "redis", "obstore", "pydantic-core"} <= brought
    assert not brought & HEAVY
    # The same search does find them where they are.
    assert {"torch", "timm", "numpy"} <= installed_with(extras["vision"])


def test_api_and_core_work_where_there_is_no_torch() -> None:
    code = f"""
import importlib, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY | {"sklearn"}!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import dearkd, dearkd_api
for package in (dearkd, dearkd_api):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        torchless = not module.name.startswith(("dearkd.vision", "dearkd.teacher_files"))
        if torchless and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
from dearkd.cli import main
main(["api", "--help"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--port" in done.stdout


@pytest.mark.parametrize("extra", sorted(PROJECT["optional-dependencies"]))
def test_extras_of_extras_exist(extra: str) -> None:
    for text in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            assert requirement.extras <= set(PROJECT["optional-dependencies"])


def test_the_design_says_why_of_every_dependency() -> None:
    design = read("DESIGN.md").split("## Dependencies", 1)[1].split("\n## ", 1)[0]
    cells = {
        word.strip(" ,") for row in design.splitlines() if row.startswith("|") for word in row.split("|")[1].split()
    }
    every = [*PROJECT["dependencies"], *(text for group in PROJECT["optional-dependencies"].values() for text in group)]
    named = {Requirement(text).name for text in every} - {PROJECT["name"]}
    assert {name for name in named if not name.startswith("types-")} <= cells


def test_the_pins_are_for_what_is_required() -> None:
    pins = [Requirement(line) for line in read("constraints.txt").splitlines() if line and not line.startswith("#")]
    extras = PROJECT["optional-dependencies"]
    admitted = {Requirement(text).name: Requirement(text) for name in ("vision", "ray", "dev") for text in extras[name]}
    assert {"torch", "torchvision"} <= {pin.name for pin in pins} <= admitted.keys()
    for pin in pins:
        (version,) = (specifier.version for specifier in pin.specifier)
        assert admitted[pin.name].specifier.contains(version)


def test_the_packages_lie_where_the_wheel_looks_for_them() -> None:
    wheel = tomllib.loads(read("pyproject.toml"))["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    for package in wheel:
        assert (ROOT / package / "__init__.py").exists()
        assert (ROOT / package / "py.typed").exists()
