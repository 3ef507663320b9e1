"""The objective of the inversion: its terms, each a file with its formula and where that comes from."""
