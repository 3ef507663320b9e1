"""The layout of a grid of images, which its PNG holds as a text, so that a page can say what lies under the pointer."""

from typing import Final

LAYOUT: Final = "dearkd:grid"
"""The keyword of the text: JSON with `cell` and `gap` in pixels, `margin` before the columns, and `rows`, each with the
`name` of its class (null while images have none) and the teacher's `confidence` in each image (empty if unknown)."""
