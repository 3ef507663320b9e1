"""The service around the trainer: a training run under the ledger, in one process or several."""
