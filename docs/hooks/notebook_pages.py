"""Notebooks as pages of the site: each becomes Markdown, with the outputs that are kept in it, and a file to download.

So a notebook looks as the other pages do, its headings are in the contents and the search, and links between notebooks
and pages hold both here and where the files lie. mkdocs-jupyter, which does it with JupyterLab's styles, brings 650 KB
a page, fifteen packages and an older ipykernel than ours.
"""

import base64
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

FENCE = "```"


class NotebookPage(File):
    """A notebook that mkdocs takes for a page, whose content is Markdown."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put a page, its pictures and the notebook as a download in the place of each notebook."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(notebook)
        content = notebook.content_string
        download = f"notebooks/files/{notebook.name}.ipynb"
        files.append(File.generated(config, download, content=content))
        text, pictures = as_markdown(nbformat.reads(content, as_version=4), notebook.name)
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
        files.append(NotebookPage.generated(config, notebook.src_uri, content=text))
    return files


def as_markdown(notebook: Any, name: str) -> tuple[str, dict[str, bytes]]:
    """The page of a notebook, and its pictures by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            if len(parts) == 1:
                parts.append(f"[This notebook](files/{name}.ipynb){{ download }} as a file.")
            continue
        parts.append(block("python", cell.source))
        for number, output in enumerate(cell.outputs):
            data = output.get("data", {})
            if "image/png" in data:
                picture = f"{name}-{cell.id}-{number}.png"
                pictures[picture] = base64.b64decode(data["image/png"])
                parts.append(f"![What the cell above shows]({picture})")
            elif "text/markdown" in data:
                parts.append(data["text/markdown"])
            else:
                parts.append(block("text", output.get("text") or data["text/plain"]))
    return "\n\n".join(parts) + "\n", pictures


def block(language: str, text: str) -> str:
    """Text in a fence that none of its lines can close."""
    fence = FENCE
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
