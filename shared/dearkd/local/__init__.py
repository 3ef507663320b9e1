"""The machine at hand: `dearkd up` and its process tree, the embedded Redis, `doctor` and `gc`."""
