"""The service around the inversion: a synthesis job under the ledger, from its spec to a published dataset."""
