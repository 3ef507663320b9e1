"""Docstrings begin with a verb or a full noun phrase, so that each can be read without the line above it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FRAGMENTS = frozenset(
    "What How Of As Whether Who Where When Which From By So Those That Why".split()  # noqa: SIM905
)


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of the docstrings of a module, its classes and functions, and of attributes and constants."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for before, statement in zip([None, *body], body, strict=False):
            if (documented and before is None) or isinstance(before, ast.Assign | ast.AnnAssign):
                match statement:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        yield statement.lineno, text.strip()


@pytest.mark.parametrize("folder", ["shared", "services"])
def test_docstrings_begin_with_a_verb_or_a_noun(folder):
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, text in docstrings(ast.parse(path.read_text(encoding="utf-8")))
        if text.split(maxsplit=1)[:1] and text.split(maxsplit=1)[0].rstrip(",:;.") in FRAGMENTS
    ]
    assert not found, "\n".join(found)


def test_docstrings_of_attributes_and_constants_are_seen():
    tree = ast.parse('"""Of."""\nA = 1\n"""By."""\n\n\nclass B:\n    """As."""\n\n    c: int\n    """How."""\n')
    assert [text for _, text in docstrings(tree)] == ["Of.", "By.", "As.", "How."]
