"""Imports of very many modules, as torch brings them. `python -m dearkd.imports MODULE …` calls its `main`."""

import gc
import importlib
import sys
from types import ModuleType


def import_large(name: str) -> ModuleType:
    """Import a module that brings torch.

    Without the garbage collector, which would look through half a million new objects again and again, and with all of
    them kept out of its way afterwards: a third of the time, and memory that forked processes go on sharing.
    """
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()


if __name__ == "__main__":
    import_large(sys.argv.pop(1)).main()
