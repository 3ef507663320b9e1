"""The terms of the objective: each module is one, with its formula and where that comes from, called as its weight is.

Importing this package imports no term, and so no torch: `dearkd.specs.terms` lists its modules.
"""
