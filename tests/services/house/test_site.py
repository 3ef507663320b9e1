"""The site builds without a warning, and its pages fetch nothing from elsewhere."""

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.documents import PAGES, ROOT

ELSEWHERE = re.compile(
    r"<(?:script|img|iframe|source)[^>]+src=[\"']?https?:|<link(?=[^>]+rel=[\"']?(?:stylesheet|preconnect|icon))[^>]+href=[\"']?https?:"
)

NOTEBOOKS = sorted(path.stem for path in (ROOT / "docs" / "notebooks").glob("*.ipynb"))
KINDS = ("markdown", "code")


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
        shown = (site / page.removeprefix("docs/")).with_suffix(".html").read_text(encoding="utf-8")
        assert not ELSEWHERE.search(shown), page
        assert 'class="mermaid"' not in shown, "its script would come from elsewhere"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_a_page_with_its_headings_and_pictures(site: Path, name: str) -> None:
    notebook = json.loads((ROOT / "docs" / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    page = (site / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    sources = {kind: ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == kind] for kind in KINDS}
    headings = re.findall(r"^#+ (.+)$", "\n".join(sources["markdown"]), re.MULTILINE)
    assert headings
    for heading in headings:
        assert re.search(rf"<h[1-6][^>]*>{re.escape(html.escape(heading, quote=False))}<", page), heading
    for source in sources["code"]:
        assert source.strip() in text
    pictures = re.findall(r'<img[^>]+src="([^":]+\.png)"', page)
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    assert len(pictures) == sum("image/png" in output.get("data", {}) for output in outputs)
    assert pictures
    for picture in pictures:
        with Image.open(site / "notebooks" / picture) as opened:
            opened.verify()
    assert not ELSEWHERE.search(page)
    assert not re.search(r'href="[^"]*\.md(?:#[^"]*)?"', page), "a link to a page's source"
    (download,) = re.findall(r'href="(files/[^"]+\.ipynb)"', page)
    assert json.loads((site / "notebooks" / download).read_text(encoding="utf-8")) == notebook


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
    shown = (site / "reference" / f"{page}.html").read_text(encoding="utf-8")
    for name in names:
        assert re.search(rf'id="[\w.]*\b{re.escape(name)}"', shown), name
