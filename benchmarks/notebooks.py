"""Execute the notebooks of the manual, and keep what they showed: `make notebooks`.

    python benchmarks/notebooks.py [NAME …]

They run in a folder of their own, with the constants of their first cell. Kept are what was printed, tables and
pictures, these in few colours; progress bars are not. `metadata.outputs_of` says of which code the outputs are: a test
compares it, so that a change of the code asks for this command.
"""

import argparse
import base64
import hashlib
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from PIL import Image, ImageChops

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
COLOURS = 128
"""The most colours of a picture with hues; grey ones keep their 256 tones."""
SHOWN = ("image/png", "text/markdown", "text/plain")
"""Forms of an output, the best first: one of each is kept."""


def execute(path: Path) -> None:
    """Execute a notebook and write its outputs into it."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3", resources=place).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        cell.execution_count = None
        cell.outputs = [kept(output) for output in cell.outputs if not is_progress(output)]
        cell.metadata.pop("execution", None)  # the times
    notebook.metadata.language_info = {"name": "python"}
    notebook.metadata.outputs_of = hashlib.sha256("\n\n".join(cell.source for cell in code).encode()).hexdigest()
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def is_progress(output: Any) -> bool:
    """True of rich's bars, and of what goes to stderr."""
    return output.get("name") == "stderr" or "text/html" in output.get("data", {})


def kept(output: Any) -> Any:
    """An output in its best form, without the count of its cell."""
    if "data" not in output:
        return output
    kind = next(kind for kind in SHOWN if kind in output.data)
    value = output.data[kind]
    output.data = {kind: smaller(value) if kind == "image/png" else value}
    output.metadata = {}
    if "execution_count" in output:
        output.execution_count = None
    return output


def smaller(encoded: str) -> str:
    """A PNG (base64) in grey, where all of it is, or in few colours."""
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    red, green, blue = picture.split()
    grey = not any(ImageChops.difference(red, other).getbbox() for other in (green, blue))
    file = io.BytesIO()
    (picture.convert("L") if grey else picture.quantize(COLOURS)).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=sorted(path.name for path in FOLDER.glob("*.ipynb")))
    for name in parser.parse_args().names:
        began = time.monotonic()
        execute(FOLDER / name)
        print(f"{name}: {time.monotonic() - began:.0f} s, {(FOLDER / name).stat().st_size / 1000:.0f} KB", flush=True)


if __name__ == "__main__":
    main()
