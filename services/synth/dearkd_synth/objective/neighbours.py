"""The pairs of pixels that both total variations compare."""

_ALL, _BUT_LAST, _BUT_FIRST = slice(None), slice(None, -1), slice(1, None)
NEIGHBOURS = (
    ((..., _ALL, _BUT_LAST), (..., _ALL, _BUT_FIRST)),
    ((..., _BUT_LAST, _ALL), (..., _BUT_FIRST, _ALL)),
    ((..., _BUT_FIRST, _BUT_LAST), (..., _BUT_LAST, _BUT_FIRST)),
    ((..., _BUT_LAST, _BUT_LAST), (..., _BUT_FIRST, _BUT_FIRST)),
)
"""Indices of both neighbours in x (…, H, W), for each of four directions: horizontal, vertical, two diagonals."""
