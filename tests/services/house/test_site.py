"""The site builds without a warning, and its pages fetch nothing from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import PAGES, ROOT

ELSEWHERE = re.compile(
    r"<(?:script|img|iframe|source)[^>]+src=[\"']?https?:|<link(?=[^>]+rel=[\"']?(?:stylesheet|preconnect|icon))[^>]+href=[\"']?https?:"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_each_page_is_there_and_fetches_nothing_from_elsewhere(site: Path) -> None:
    for page in PAGES:
        html = (site / page.removeprefix("docs/")).with_suffix(".html").read_text(encoding="utf-8")
        assert not ELSEWHERE.search(html), page
        assert 'class="mermaid"' not in html, "its script would come from elsewhere"


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("specs", ["SynthesisSpec", "TrainingSpec", "TeacherSpec"]),
        ("client", ["Client", "Client.create_synthesis_job"]),
        ("distill", ["distill", "Distillation"]),
        ("synth", ["DeepInversion", "DeepInversion.shard"]),
        ("trainer", ["DearKDTrainer", "DearKDTrainer.fit"]),
    ],
)
def test_the_reference_has_the_public_names(site: Path, page: str, names: list[str]) -> None:
    html = (site / "reference" / f"{page}.html").read_text(encoding="utf-8")
    for name in names:
        assert re.search(rf'id="[\w.]*\b{re.escape(name)}"', html), name
