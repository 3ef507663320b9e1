"""Which pixels the two terms of total variation compare."""

_ALL, _BUT_LAST, _BUT_FIRST = slice(None), slice(None, -1), slice(1, None)
NEIGHBOURS = (
    ((..., _ALL, _BUT_LAST), (..., _ALL, _BUT_FIRST)),
    ((..., _BUT_LAST, _ALL), (..., _BUT_FIRST, _ALL)),
    ((..., _BUT_FIRST, _BUT_LAST), (..., _BUT_LAST, _BUT_FIRST)),
    ((..., _BUT_LAST, _BUT_LAST), (..., _BUT_FIRST, _BUT_FIRST)),
)
"""Where the two neighbours of a pair lie, for the four directions: horizontal, vertical and the two diagonals."""
