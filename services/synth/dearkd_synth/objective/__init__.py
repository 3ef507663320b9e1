"""The objective of the inversion: what all terms have in common, and their weighted sum. Each is a file of `terms`."""
