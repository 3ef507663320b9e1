"""The machinery of the inversion that knows no loss: compilation, determinism, divergence, memory, resizing."""
