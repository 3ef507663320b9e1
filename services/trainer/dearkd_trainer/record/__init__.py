"""The records of a run: checkpoints, metrics, and the model card."""
