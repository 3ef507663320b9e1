"""The list of terms: each is a file, its weight follows from that, and one that others bring is found."""

import json
import os
import subprocess
import sys
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest

from dearkd.specs import SynthesisWeights
from dearkd_synth.objective import terms
from dearkd_synth.objective.term import Term, load_term

BRIGHTNESS = """
from dearkd_synth.objective.term import TermInputs, Term


class Brightness(Term):
    name = "brightness"

    def loss(self, inputs: TermInputs):
        return inputs.x.square().mean()
"""

SPECS = """
import json, sys
from dearkd.errors import InvalidInput
from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd_api.app import create_app

def weights(posted):
    teacher = TeacherSpec(
        name="t", architecture="t", num_classes=2, in_chans=1, image_size=16, mean=[0.5], std=[0.5]
    )
    try:
        return SynthesisSpec.resolve({"teacher": "t", "images_per_class": 2, "weights": posted}, teacher)
    except InvalidInput as error:
        return [fault.pointer for fault in error.errors]

spec = weights({"brightness": 0.5})
print(json.dumps({
    "given": spec.weights.model_dump(),
    "stored": SynthesisSpec.stored(spec.model_dump(mode="json")) == spec,
    "left out": weights({}).weights.model_dump()["brightness"],
    "negative": weights({"brightness": -1.0}),
    "unknown": weights({"brightnes": 1.0}),
    "torch": "torch" in sys.modules,
}))
"""

IMAGES = """
import json, torch
from torch import nn
from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd_synth import DeepInversion

class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.classifier = nn.Linear(4, 2)

    def get_classifier(self):
        return self.classifier

    def forward(self, x):
        return self.classifier(self.layers(x).mean(dim=(2, 3)))

teacher = TeacherSpec(name="t", architecture="t", num_classes=2, in_chans=1, image_size=16, mean=[0.5], std=[0.5])
posted = {"teacher": "t", "images_per_class": 2, "generator": None, "phases": [{"resolution": 16, "iterations": 2}]}
squares = []
for weight in (0.0, 1e6):
    spec = SynthesisSpec.resolve(posted | {"weights": {"brightness": weight}}, teacher)
    with DeepInversion(Teacher().eval(), teacher, spec) as inversion:
        batch = inversion.shard(0).batches[0]
    squares.append((batch.images.float() / 255 - 0.5).square().mean().item())
print(json.dumps({"losses": list(batch.losses), "squares": squares}))
"""


@pytest.fixture
def brightness(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that has another distribution installed, which brings a term."""
    package = tmp_path / "our_terms"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "brightness.py").write_text(BRIGHTNESS)
    about = tmp_path / "our_terms-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: our-terms\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[dearkd.terms]\nours = our_terms\n")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}


def said(script: str, environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_term_that_another_distribution_brings_has_a_weight_without_torch(brightness: dict[str, str]) -> None:
    found = said(SPECS, brightness)
    given = found.pop("given")
    assert given["brightness"] == 0.5
    assert set(given) == {*SynthesisWeights.model_fields, "brightness"}
    assert found == {
        "stored": True,
        "left out": 0.0,
        "negative": ["/weights/brightness"],
        "unknown": ["/weights/brightnes"],
        "torch": False,
    }


def test_a_term_that_another_distribution_brings_takes_part(brightness: dict[str, str]) -> None:
    found = said(IMAGES, brightness)
    assert "brightness" in found["losses"]
    without, with_it = found["squares"]
    assert with_it < without / 2


@pytest.mark.parametrize("name", SynthesisWeights.model_fields)
def test_each_weight_is_of_a_term_in_the_module_of_its_name(name: str) -> None:
    term = load_term(name)
    assert issubclass(term, Term)
    assert (term.name, term.__module__.rpartition(".")[2]) == (name, name)


def test_each_module_among_the_terms_has_a_weight() -> None:
    """Where the package is installed as `pyproject.toml` says: the published ones are fields anyway."""
    assert {module.name for module in iter_modules(terms.__path__)} == set(SynthesisWeights.model_fields)


def test_a_term_that_nobody_has_is_told() -> None:
    with pytest.raises(ModuleNotFoundError, match="brightnes"):
        load_term("brightnes")
