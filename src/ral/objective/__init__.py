"""Losses as pure functions: tensors in, a `Term` (a loss and its metrics) out."""
