"""dearkd: train a vision transformer from a CNN alone.

This package is what every part needs: what is asked for (`specs`), what is going on (`jobs`, `store`, `queue`,
`worker`), where it lies (`storage`, `data`) and how to ask for it (`client`, `cli`). Importing any of
it never imports torch; the torch side of what is shared is `dearkd.vision`.
"""

from importlib.metadata import version

__version__ = version("dearkd")
