"""The machinery of the inversion, independent of any loss: compilation, determinism, divergence, memory, resizing."""
