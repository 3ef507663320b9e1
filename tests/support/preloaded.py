"""What the server of `programs` imports, once for all of its forks."""

from dearkd.imports import import_large

for _name in ("dearkd.vision", "timm", "dearkd_synth.inversion", "dearkd_trainer", "dearkd_trainer.train.trainer"):
    import_large(_name)
